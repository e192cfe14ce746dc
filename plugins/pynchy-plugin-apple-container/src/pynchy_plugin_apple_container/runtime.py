"""Where Apple's `container` is not Docker: its services, what its `run` takes, its JSON, and how a machine ends."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pynchy.plugin import OciRuntime, RunSpec, RuntimeUnavailable, VolumeMount

log = logging.getLogger("pynchy.plugin")

_HOME = "/home/agent"
#: The one that these machines have. The program runs on Apple silicon alone, and a Python that is itself translated
#: would name another.
_ARCHITECTURE = "arm64"
#: What `run` must know for an agent to be contained. `--cap-drop` is the youngest of them; whatever has it also has a
#: network called `none`, keeps `readonly`, and takes more than 64 KiB of stdin before the program inside has begun.
_NEEDED_OPTIONS = ("--cap-drop", "--label", "--mount", "--network", "--no-dns", "--read-only", "--ulimit")
_FIRST_VERSION = "0.12"
_MEBIBYTE = 1 << 20
#: What its parser of `--mount` would take for the end of a field or of a name; there is no way to quote them.
_NOT_IN_PATHS = ",="


class AppleContainerRuntime(OciRuntime):
    """Apple's `container`: every container is a small virtual machine with a kernel of its own.

    So the kernel's ways out lead into a machine that holds this one agent. What Docker does besides is done where
    there is an option for it: no capabilities, a read-only root, another user than root, no network. There is none
    for `no-new-privileges`, for swap (these machines have none) or for a log driver.
    """

    name = "apple"
    cli = "container"
    build_script = Path(__file__).with_name("build.sh")
    #: How long things may take, in seconds. The first start of the services downloads a kernel and a file system.
    answer_within = 20.0
    start_within = 300.0
    kill_within = 10.0
    stop_within = 30.0

    def __init__(self) -> None:
        self._known_images: set[str] = set()

    def architecture(self) -> str:
        """The processor of the machines that containers are."""
        return _ARCHITECTURE

    # --- its services ---------------------------------------------------------------------------------------

    def ensure_running(self) -> None:
        """Start the services where they do not run, and verify that this version can contain an agent."""
        if shutil.which(self.cli) is None:
            raise RuntimeUnavailable(
                "Apple's container is not installed",
                "install the package from github.com/apple/container/releases, or unset CONTAINER_RUNTIME and "
                "uninstall pynchy-plugin-apple-container",
            )
        if not self._services_run():
            self._start()
        # Asked of the program, for what it knows is certain and what its version means is not.
        usage = self.command("run", "--help", timeout=self.answer_within)
        if missing := [option for option in _NEEDED_OPTIONS if not re.search(rf"{option}\b(?!-)", usage)]:
            raise RuntimeUnavailable(
                f"this version of Apple's container cannot contain an agent: its `run` lacks {', '.join(missing)}",
                f"update it to {_FIRST_VERSION} or newer",
            )

    def _services_run(self) -> bool:
        try:
            done = self._run("system", "status", timeout=self.answer_within)
        except RuntimeUnavailable as error:
            raise RuntimeUnavailable(
                error.args[0].replace("container system`", "container system status`"),
                "run `container system stop` and `container system start`",
            ) from None
        _refuse_old_system(done.stderr)
        return done.returncode == 0

    def _start(self) -> None:
        # Without the option it would ask whether it may download a kernel, and there is nobody to answer.
        try:
            done = self._run("system", "start", "--enable-kernel-install", timeout=self.start_within)
        except RuntimeUnavailable as error:
            raise RuntimeUnavailable(
                error.args[0].replace("container system`", "container system start`"),
                "run `container system start` in a terminal and see what it waits for",
            ) from None
        if done.returncode == 0:
            return
        _refuse_old_system(done.stderr)
        said = f"{done.stdout}\n{done.stderr}".strip()
        last = said.splitlines()[-1][-300:] if said else "it said nothing"
        # It announces the kernel last of all, so that whatever fails afterwards is about that.
        if "kernel" in said.lower():
            raise RuntimeUnavailable(
                f"Apple's container has no kernel for its machines: {last}",
                "install one with `container system kernel set --recommended`",
            )
        raise RuntimeUnavailable(f"Apple's container does not start: {last}", "see `container system logs`")

    # --- containers -----------------------------------------------------------------------------------------

    def list_running_containers(self, prefix: str = "pynchy-") -> list[str]:
        """Return the names of containers that start with `prefix`: those that run, and those that never began to."""
        # A container that was created and never begun is `stopped`, like one that has ended. With `--rm` those that
        # have ended are gone, so that nothing is listed for long that does not run.
        names, unknown = _names(self.command("ls", "--all", "--format", "json"))
        for words in unknown:
            log.warning("`container ls` lists what is not known here, and is left alone: %s", words)
        return [name for name in names if name.startswith(prefix)]

    def run_args(self, spec: RunSpec) -> list[str]:
        """Arguments for a machine without a network, whose program has no capabilities and a read-only root."""
        self._expect_image(spec.image)
        # No `--init`: it would hold the wire as the agent's user, who could then write into it.
        args = ["run", "--rm", "--interactive", "--progress", "none", "--name", spec.container_name]
        args += ["--platform", f"linux/{_ARCHITECTURE}", "--cap-drop", "ALL", "--read-only"]
        if spec.network == "none":
            # A version that does not know this name looks for a network that is called so, and starts nothing.
            args += ["--network", "none", "--no-dns"]
        # Else it gets what it gets without the option: the default network, which leads to the internet and the host.
        if spec.user:
            args += ["--user", f"{spec.user[0]}:{spec.user[1]}"]
        for path in (_HOME, "/tmp"):  # noqa: S108 - inside the container
            # Not `--tmpfs`, which takes a path and nothing else. These may run programs, as Docker's `exec`.
            args += ["--mount", f"type=tmpfs,target={path},size=1G,mode=1777"]
        args += _limits(spec)
        for key, value in sorted(spec.labels.items()):
            args += ["--label", f"{key}={value}"]
        for key, value in sorted(spec.env.items()):
            args += ["--env", f"{key}={value}"]
        for mount in spec.mounts:
            args += ["--mount", _mount_argument(mount)]
        return [*args, spec.image]

    def stop(self, name: str) -> None:
        """Kill the container and return once it is gone; RuntimeUnavailable where that cannot be seen."""
        deadline = time.monotonic() + self.stop_within
        while True:
            # It may be gone already, or another removal may be under way, or hang: what counts is what is left.
            for words in (("kill", name), ("delete", "--force", name)):
                with contextlib.suppress(RuntimeUnavailable):
                    self._run(*words, timeout=self.kill_within)
            names, unknown = _names(self.command("ls", "--all", "--format", "json"))
            if unknown:
                raise RuntimeUnavailable(
                    f"whether the container {name} is gone cannot be seen: `container ls` lists {unknown[0]}",
                    "look with `container ls --all`",
                )
            if name not in names:
                return
            if time.monotonic() > deadline:
                raise RuntimeUnavailable(
                    f"the container {name} does not end",
                    f"try `container delete --force {name}`, and then `container system stop`",
                )
            time.sleep(0.1)

    # --- images ---------------------------------------------------------------------------------------------

    def _expect_image(self, image: str) -> None:
        """Refuse an image that is not here: `run` would fetch one of that name, and has no option against it."""
        if image in self._known_images:
            return
        found = self._inspect(image)
        if found is None:
            raise RuntimeUnavailable(f"the agent image {image} is missing", "build it with `pynchy image build`")
        if found["Architecture"] != _ARCHITECTURE:
            raise RuntimeUnavailable(
                f"the agent image {image} is for {found['Architecture']} processors, and not for {_ARCHITECTURE} ones",
                "build it here with `pynchy image build`",
            )
        self._known_images.add(image)

    def _runs(self, image: str) -> bool:
        """No: what is for another processor would have to be translated, which this does not set up."""
        return False

    def _inspect(self, image: str) -> dict[str, Any] | None:
        """What is known of an image, in Docker's words; None where there is none of this name; RuntimeUnavailable."""
        done = self._run("image", "inspect", image, timeout=self.answer_within)
        if done.returncode:
            # Older ones say `notFound: "image with reference ..."`, newer ones `image not found`.
            if re.search(r"not ?found", done.stderr, re.IGNORECASE):
                return None
            raise self._failed("image", done.stderr)
        try:
            found = json.loads(done.stdout.strip() or "[]")
            if not found:
                return None
            variant = _variant(found[0]["variants"])
            config = variant["config"].get("config") or {}
            return {
                "Architecture": variant["platform"]["architecture"],
                "Config": {"Labels": config.get("Labels") or {}},
            }
        except (ValueError, LookupError, TypeError, AttributeError):
            raise self._failed("image", "its answer is none that is known here") from None

    def _failed(self, verb: str, words: str) -> RuntimeUnavailable:
        """Why a command has failed."""
        if "XPC connection error" in words:
            return RuntimeUnavailable("Apple's container does not run", "start it with `container system start`")
        return super()._failed(verb, words)


def _limits(spec: RunSpec) -> Iterator[str]:
    """How large the machine is. Where nothing is said it has the program's own measures, for it must have some."""
    if spec.memory_bytes is not None:
        yield from ("--memory", f"{spec.memory_bytes // _MEBIBYTE}M")
    if spec.cpus is not None:
        if spec.cpus < 1:
            raise RuntimeUnavailable(
                f"Apple's container gives whole processors, and this agent may have {spec.cpus:g} of one",
                "set its limit to 1 or more",
            )
        yield from ("--cpus", str(int(spec.cpus)))
    if spec.pids is not None:
        # The kernel counts a user's processes, and there is no other user's process in the machine.
        yield from ("--ulimit", f"nproc={spec.pids}")


def _mount_argument(mount: VolumeMount) -> str:
    """A mount as the value of `--mount`, which fails for a source that does not exist."""
    for path in (mount.host_path, mount.container_path):
        if unfit := [character for character in _NOT_IN_PATHS if character in path]:
            raise RuntimeUnavailable(
                f"Apple's container cannot mount {path}: it takes no path with `{'` or `'.join(unfit)}` in it",
                "rename it, or use Docker",
            )
    fields = ["type=bind", f"source={mount.host_path}", f"target={mount.container_path}"]
    return ",".join([*fields, "readonly"] if mount.readonly else fields)


def _names(output: str) -> tuple[list[str], list[str]]:
    """The containers' names in what `ls --format json` says, and the beginnings of what it says in no known way.

    Up to 0.x an entry had the state as `status` beside `configuration`; 1.0 called it `state` and put other things
    into `status`; since then it is `status.state`. The name has always been the configuration's `id`, and the state
    does not matter: what is there and ours is to be found.
    """
    try:
        entries = json.loads(output.strip() or "[]")
    except ValueError:
        return [], [repr(output[:200])]
    if not isinstance(entries, list):
        return [], [repr(output[:200])]
    names, unknown = [], []
    for entry in entries:
        configuration = entry.get("configuration") if isinstance(entry, dict) else None
        name = configuration.get("id") if isinstance(configuration, dict) else None
        if isinstance(name, str):
            names.append(name)
        else:
            unknown.append(json.dumps(entry)[:200])
    return names, unknown


def _variant(variants: list[dict[str, Any]]) -> dict[str, Any]:
    """That for these machines, else another that is a Linux image's at all; LookupError."""
    own = [one for one in variants if one["platform"]["os"] == "linux"]
    return next((one for one in own if one["platform"]["architecture"] == _ARCHITECTURE), own[0])


def _refuse_old_system(stderr: str) -> None:
    """Raise RuntimeUnavailable where the program could not even be loaded."""
    if "newer than running OS" in stderr or re.search(r"requires macOS", stderr, re.IGNORECASE):
        raise RuntimeUnavailable(
            "this macOS is too old for Apple's container", "update to macOS 26 or newer, or use Docker"
        )
