"""A program that behaves as Apple's `container` is documented to: its arguments, its JSON, its exit codes, its words.

What is a virtual machine there is a bubblewrap sandbox here, in which holds what the arguments of `run` ask for and
nothing else: the network, the capabilities and a writable root are there until an option takes them away. In the place
of the image stands this machine's Python, or the environment of an agent. Its state lies in the directory that is its
first argument; what `settings.json` says there, it does.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

STATE = Path(sys.argv[1])
CONTAINERS = STATE / "containers"
SETTINGS: dict[str, Any] = json.loads((STATE / "settings.json").read_text())
MEBIBYTE = 1 << 20
USAGE = 64  # what its argument parser ends with

#: Flags, then options with a value; those that the plugin has no use for are left out.
OPTIONS = {
    "run": (
        "--rm --remove --interactive -i --tty -t --detach -d --init --read-only --no-dns --rosetta --ssh",
        "--env -e --user -u --workdir -w --ulimit --cpus -c --memory -m --arch -a --platform --cap-add --cap-drop "
        "--entrypoint --label -l --mount --name --network --tmpfs --volume -v --progress",
    ),
    "ls": ("--all -a --quiet -q", "--format"),
    "kill": ("--all -a", "--signal -s"),
    "stop": ("--all -a", "--signal -s --time -t"),
    "delete": ("--all -a --force -f", ""),
    "image inspect": ("", ""),
    "system status": ("", "--prefix -p"),
    "system start": ("--enable-kernel-install --disable-kernel-install", "--app-root --install-root"),
    "build": ("--no-cache --quiet -q --pull", "--build-arg --file -f --tag -t --platform --arch --progress --target"),
}
IMAGE_ENVIRONMENT = {"HOME": "/home/agent", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}


def main() -> None:
    """Do what the arguments say."""
    arguments = sys.argv[2:]
    with (STATE / "calls").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    length = 2 if " ".join(arguments[:2]) in OPTIONS else 1
    command, rest = " ".join(arguments[:length]), arguments[length:]
    if command not in OPTIONS:
        fail(f"Unknown subcommand '{command}'", USAGE)
    if "--help" in rest:
        for option in " ".join(OPTIONS[command]).split():
            if option not in SETTINGS["lacks"]:
                print(f"  {option:<24}What it is for")
        return
    if command in SETTINGS["hangs"]:
        time.sleep(600)
    if answer := SETTINGS["answers"].get(command):
        sys.stdout.write(answer.get("stdout", ""))
        sys.stderr.write(answer.get("stderr", ""))
        sys.exit(answer.get("code", 0))
    given, words = parse(command, rest)
    if command not in ("system status", "system start", "build") and not (STATE / "running").exists():
        fail('interrupted: "XPC connection error: Connection invalid"\nEnsure that its services have been started.')
    globals()[command.replace(" ", "_")](given, words)


def fail(words: str, code: int = 1) -> NoReturn:
    """End as it ends where something is wrong."""
    sys.stderr.write(f"Error: {words}\n")
    sys.exit(code)


def parse(command: str, rest: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The options with their values, and what is none; an option that it does not know is an error."""
    flags, values = (group.split() for group in OPTIONS[command])
    given: dict[str, list[str]] = {}
    rest = list(rest)
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option in SETTINGS["lacks"] or option not in (*flags, *values):
            fail(f"Unknown option '{option}'", USAGE)
        if option in values and not rest:
            fail(f"Missing value for '{option}'", USAGE)
        given.setdefault(option, []).append(rest.pop(0) if option in values else "")
    return given, rest


# --- its services -------------------------------------------------------------------------------------------


def system_status(given: dict[str, list[str]], words: list[str]) -> None:
    """Exit code 0 where they run."""
    if not (STATE / "running").exists():
        print("apiserver is not running and not registered with launchd")
        sys.exit(1)
    print("FIELD   VALUE\nstatus  running")


def system_start(given: dict[str, list[str]], words: list[str]) -> None:
    """Start them, and ask about a kernel where there is none."""
    print("Registering API server with launchd...\nVerifying apiserver is running...")
    if not SETTINGS["kernel"]:
        print("No default kernel configured.")
        if "--enable-kernel-install" not in given:
            sys.stdout.write("Install the recommended default kernel? [Y/n]: ")
            sys.stdout.flush()
            if not sys.stdin.readline():
                fail('internalError: "failed to read user input"')
        print("Installing kernel...")
        if SETTINGS["offline"]:
            fail("The Internet connection appears to be offline.")
    (STATE / "running").touch()


# --- containers ---------------------------------------------------------------------------------------------


def run(given: dict[str, list[str]], words: list[str]) -> None:
    """Create a container and begin it; this process is its client, which carries its stdin and stdout."""
    if not words:
        fail("Missing expected argument '<image>'", USAGE)
    name = given.get("--name", ["unnamed"])[-1]
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", name):
        fail(f"invalidArgument: invalid entity name {name}")
    for cpus in given.get("--cpus", []):
        if not cpus.isdecimal():
            fail(f"The value '{cpus}' is invalid for '--cpus <cpus>'", USAGE)
    if load(name):
        fail(f'exists: "container with id {name} already exists"')
    check_image(words[0], given.get("--platform", ["linux/arm64"])[-1])
    if memory(given.get("--memory", ["1G"])[-1]) < 200 * MEBIBYTE:
        fail("invalidArgument: minimum memory amount allowed is 200 MiB")
    for network in given.get("--network", ["default"]):
        if network not in ("none", "default"):
            fail(f'notFound: "network {network}"')
    labels = dict(label(one) for one in given.get("--label", []))
    for limit in given.get("--ulimit", []):
        if not re.fullmatch(r"(core|nofile|nproc|memlock|stack)=\d+(:\d+)?", limit):
            fail(f"invalidArgument: invalid ulimit format '{limit}'")
    mounts = [mount(one) for one in given.get("--mount", [])]
    command = sandbox(name, given, mounts)
    save(name, {"id": name, "labels": labels, "image": words[0], "mounts": mounts, "supervisor": 0})
    if SETTINGS["never_begins"]:
        time.sleep(600)
    attend(name, command, "--rm" in given, "--interactive" in given)


def check_image(reference: str, platform: str) -> None:
    """Fetch an image that is not here; nothing can be fetched."""
    image = SETTINGS["images"].get(reference)
    for variant in image["variants"] if image else ():
        if f"{variant['platform']['os']}/{variant['platform']['architecture']}" == platform:
            return
    (STATE / "fetched").write_text(reference)
    fail(f"HTTP request to the registry for {reference} failed")


def memory(text: str) -> int:
    """Bytes; a number alone is bytes, too."""
    found = re.fullmatch(r"(\d+)([kmgtp]?)i?b?", text.lower())
    if not found:
        fail(f"invalidArgument: invalid size {text}")
    return int(found[1]) << (10 * " kmgtp".index(found[2] or " "))


def label(text: str) -> tuple[str, str]:
    """The name and the value, which can hold no equals sign."""
    parts = [part for part in text.split("=") if part]
    if len(parts) not in (1, 2):
        fail(f'invalidArgument: "invalid label format {text}"')
    return parts[0], "".join(parts[1:])


def mount(text: str) -> dict[str, str]:
    """The fields of `--mount`: commas part them, and no quotes are known."""
    fields = {"type": "virtiofs"}
    names = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
    for part in filter(None, text.split(",")):
        words = [word for word in part.split("=", 2) if word]
        name = names.get(words[0], words[0])
        if name not in ("type", "source", "target", "readonly", "size", "mode"):
            fail(f"invalidArgument: unknown directive {words[0]} when parsing mount {text}")
        if name != "readonly" and len(words) != 2:
            fail(f"invalidArgument: invalid directive format missing value {part} in {text}")
        fields[name] = words[1] if name != "readonly" else ""
    if fields["type"] == "tmpfs":
        return fields
    if not Path(fields["source"]).exists():
        fail(f"invalidArgument: path '{fields['source']}' does not exist")
    if not Path(fields["source"]).is_dir():
        fail(f"invalidArgument: path '{fields['source']}' is not a directory")
    return fields


def sandbox(name: str, given: dict[str, list[str]], mounts: list[dict[str, str]]) -> list[str]:
    """How the container's program is started, with what its options ask for and nothing else."""
    dropped, user, root = "ALL" in given.get("--cap-drop", []), given.get("--user", [""])[-1], os.geteuid() == 0
    args = [SETTINGS["bwrap"], "--die-with-parent", "--new-session", "--hostname", name[:60]]
    args += ["--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    if "--init" not in given:
        args += ["--as-pid-1"]
    if given.get("--network") == ["none"]:
        args += ["--unshare-net"]
    if not root:
        uid, _, gid = user.partition(":")
        args += ["--unshare-user", *(["--uid", uid, "--gid", gid or uid] if user else [])]
    if dropped:
        kept = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP") if root else ()
        args += ["--cap-drop", "ALL", *(word for one in kept for word in ("--cap-add", one))]
    args += ["--clearenv"]
    for variable, value in {"PATH": "/usr/bin:/bin", **IMAGE_ENVIRONMENT}.items():
        args += ["--setenv", variable, value]
    for one in given.get("--env", []):
        variable, _, value = one.partition("=")
        args += ["--setenv", variable, value]
    args += ["--chmod", "0777", "/", "--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    for directory in ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/alternatives", "/etc/ssl/certs"):
        if Path(directory).is_symlink():
            args += ["--symlink", str(Path(directory).readlink()), directory]
        else:
            args += [*parents(directory), "--ro-bind-try", directory, directory]
    if not SETTINGS["prefix"].startswith("/usr"):
        args += [*parents(SETTINGS["prefix"]), "--ro-bind", SETTINGS["prefix"], SETTINGS["prefix"]]
    for directory in ("/tmp", "/workspace/group", "/workspace/plugins", "/opt/pynchy", "/home/agent"):
        args += [*parents(directory), "--perms", "0755", "--dir", directory]
    python = SETTINGS["python"]
    if SETTINGS["agent_environment"]:
        args += [*parents("/opt/agent-env"), "--ro-bind", SETTINGS["agent_environment"], "/opt/agent-env"]
        python = "/opt/agent-env/bin/python3"
    for one in mounts:
        args += parents(one["target"])
        if one["type"] == "tmpfs":
            args += ["--perms", one.get("mode", "1777"), "--size", str(memory(one.get("size", "1G")))]
            args += ["--tmpfs", one["target"]]
        else:
            args += ["--ro-bind" if "readonly" in one else "--bind", one["source"], one["target"]]
    if "--read-only" in given:
        args += ["--remount-ro", "/"]
    args += ["--chdir", "/"]
    if root and user:
        uid, _, gid = user.partition(":")
        args += ["/usr/bin/setpriv", f"--reuid={uid}", f"--regid={gid or uid}", "--clear-groups"]
        args += ["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all", "--"] if dropped else ["--"]
    # As whoever it then is, for the folder may be closed to us.
    return [*args, "/usr/bin/env", "--chdir=/workspace/group", python, "/opt/pynchy"]


def parents(path: str) -> list[str]:
    """The directories above a mount point, open to any user."""
    above = [str(one) for one in reversed(Path(path).parents[:-1])]
    return [word for one in above for word in ("--perms", "0755", "--dir", one)]


def attend(name: str, command: list[str], remove: bool, interactive: bool) -> NoReturn:
    """Be the client of a container that outlives it: pass on what goes in and comes out, and its exit code."""
    (stdin, fed), (read_out, stdout), (read_err, stderr) = os.pipe(), os.pipe(), os.pipe()
    supervisor = os.fork()
    if supervisor == 0:
        for descriptor in (fed, read_out, read_err):
            os.close(descriptor)
        supervise(name, command, (stdin, stdout, stderr), remove)
    for descriptor in (stdin, stdout, stderr):
        os.close(descriptor)
    if interactive:
        threading.Thread(target=carry, args=(0, fed), daemon=True).start()
    else:
        os.close(fed)
    ways = [threading.Thread(target=carry, args=way, daemon=True) for way in ((read_out, 1), (read_err, 2))]
    for way in ways:
        way.start()
    for way in ways:
        way.join()
    os._exit(os.waitstatus_to_exitcode(os.waitpid(supervisor, 0)[1]))


def carry(source: int, target: int) -> None:
    """Everything from one descriptor to the other, then its end."""
    with contextlib.suppress(OSError):
        while data := os.read(source, 65536):
            view = memoryview(data)
            while view:
                view = view[os.write(target, view) :]
    os.close(target)


def supervise(name: str, command: list[str], streams: tuple[int, int, int], remove: bool) -> NoReturn:
    """What the services do with a container: begin it, end it when told to, and forget it once it is gone."""
    os.setsid()
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    (read_info, info), (blocked, begin) = os.pipe(), os.pipe()
    command[1:1] = ["--info-fd", str(info), "--block-fd", str(blocked)]
    process = subprocess.Popen(command, env={"PATH": "/usr/bin:/bin"}, pass_fds=(info, blocked))
    os.close(info)
    os.close(blocked)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    with os.fdopen(read_info) as file:
        told = file.read()

    def end(*_: object) -> None:
        # The kernel ends everything else in there before the first process is gone, and bwrap waits for that.
        with contextlib.suppress(ValueError, OSError):
            os.kill(json.loads(told)["child-pid"], signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    if state := load(name):
        save(name, {**state, "supervisor": os.getpid()})
    os.close(begin)  # from now on it can be ended, and does not run before
    code = process.wait()
    path = CONTAINERS / f"{name}.json"
    if remove:
        path.unlink(missing_ok=True)
    elif state := load(name):
        save(name, {**state, "supervisor": 0})
    os._exit(code if code >= 0 else 128 - code)


def save(name: str, state: dict[str, Any]) -> None:
    """Note a container."""
    beside = CONTAINERS / f".{name[:200]}-{os.getpid()}"
    beside.write_text(json.dumps(state))
    beside.rename(CONTAINERS / f"{name}.json")


def load(name: str) -> dict[str, Any] | None:
    """A container; None where there is none of this name."""
    try:
        return json.loads((CONTAINERS / f"{name}.json").read_text())
    except FileNotFoundError:
        return None


def ls(given: dict[str, list[str]], words: list[str]) -> None:
    """The containers, in the shape of one of its versions."""
    found = [load(path.stem) for path in sorted(CONTAINERS.glob("[!.]*.json"))]
    shown = [one for one in found if one and ("--all" in given or one["supervisor"])]
    if given.get("--format") != ["json"]:
        print("\n".join(["ID", *(one["id"] for one in shown)]))
        return
    entries = []
    for one in shown:
        state = "running" if one["supervisor"] else "stopped"
        configuration = {"id": one["id"], "labels": one["labels"], "image": {"reference": one["image"]}}
        entries.append(
            {
                "0.x": {"status": state, "configuration": configuration, "networks": []},
                "1.0": {"configuration": configuration, "state": state, "status": {"networks": []}},
                "1.x": {"id": one["id"], "configuration": configuration, "status": {"state": state, "networks": []}},
            }[SETTINGS["shape"]]
        )
    print(json.dumps(entries))


def kill(given: dict[str, list[str]], words: list[str]) -> None:
    """End containers, and return once they are not running."""
    for name in words:
        state = load(name)
        if state is None:
            fail(f"No such container: {name}")
        if SETTINGS["immortal"]:
            continue
        if state["supervisor"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(state["supervisor"], signal.SIGTERM)
            while (left := load(name)) and left["supervisor"]:
                time.sleep(0.005)
        print(name)


stop = kill


def delete(given: dict[str, list[str]], words: list[str]) -> None:
    """Forget containers; with `--force` also those that run."""
    for name in words:
        state = load(name)
        if state is None:
            fail(f'notFound: "container {name} not found"')
        if SETTINGS["immortal"]:
            fail(f'internalError: "failed to delete container {name}"')
        if state["supervisor"]:
            if "--force" not in given:
                fail(f'invalidState: "container {name} is running and can not be deleted"')
            kill({}, [name])
        (CONTAINERS / f"{name}.json").unlink(missing_ok=True)
        print(name)


# --- images -------------------------------------------------------------------------------------------------


def image_inspect(given: dict[str, list[str]], words: list[str]) -> None:
    """What is known of images."""
    found = [SETTINGS["images"][name] for name in words if name in SETTINGS["images"]]
    if found:
        print(json.dumps(found))
    for name in words:
        if name not in SETTINGS["images"]:
            fail(SETTINGS["not_found"].format(name))


def build(given: dict[str, list[str]], words: list[str]) -> None:
    """Note what an image is to be made of, and make one with the labels of Pynchy's Dockerfile."""
    (context,) = words
    file = Path(given["--file"][-1])
    if not file.is_file():
        fail(f"Dockerfile does not exist at path: {file}")
    arguments = {name: value for name, _, value in (one.partition("=") for one in given.get("--build-arg", []))}
    record = {
        "options": given,
        "arguments": arguments,
        "files": {
            str(path.relative_to(context)): path.read_text() for path in Path(context).rglob("*") if path.is_file()
        },
        "real": str(Path(context).resolve()) == context,
    }
    (STATE / "build.json").write_text(json.dumps(record))
    if SETTINGS["build_fails"]:
        fail('unknown: "failed to solve"')
    labels = {
        "io.pynchy.agent-lock": arguments["AGENT_LOCK_SHA256"],
        "io.pynchy.plugin-packages": arguments.get("PLUGIN_PACKAGES", "[]"),
    }
    (tag,), (platform,) = given["--tag"], given["--platform"]
    system, _, architecture = platform.partition("/")
    one = {"os": system, "architecture": architecture}
    SETTINGS["images"][tag] = {
        "name": tag,
        "variants": [{"platform": one, "size": 1, "config": {**one, "config": {"Labels": labels}}}],
    }
    (STATE / "settings.json").write_text(json.dumps(SETTINGS))


if __name__ == "__main__":
    main()
