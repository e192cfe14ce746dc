"""What is inside a sandbox, under a root host and under an ordinary user: no more than was let in, and no way out."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bwrap_hosts import AGENT, PREFIX, Host, checked, group

from pynchy.plugin import RunSpec, RuntimeUnavailable, VolumeMount
from pynchy_plugin_bubblewrap.runtime import BubblewrapRuntime

pytestmark = pytest.mark.usefixtures("clean_environment")


def test_proc_tells_nothing_of_the_machine_and_dev_has_no_device_of_it(host: Host) -> None:
    code = """
import json, os
told = []
for name in ("kcore", "keys", "timer_list", "sched_debug", "acpi/wakeup", "scsi/scsi"):
    try:
        told += [name] if open("/proc/" + name, "rb").read(100) else []
    except OSError:
        pass
devices = sorted(one for one in os.listdir("/dev"))
own = ("/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/acpi")
writable = [path for path in own if os.access(path, os.W_OK)]
print(json.dumps([told, devices, writable]))
"""
    told, devices, writable = host.run(code)
    assert told == []
    assert writable == []
    assert set(devices) <= {
        *("console", "core", "fd", "full", "null", "ptmx", "pts", "random", "shm"),
        *("stderr", "stdin", "stdout", "tty", "urandom", "zero"),
    }


def test_nothing_of_the_hosts_files_is_there_but_programs_and_mounts(host: Host) -> None:
    secret = host.place / "secret"
    secret.write_text("a secret")
    secret.chmod(0o644)
    home = Path.home()
    prefix = Path(sys.base_prefix)
    private = [str(path) for path in home.iterdir() if path not in (prefix, *prefix.parents)]
    private += [
        str(secret),
        "/etc/shadow",
        "/etc/passwd",
        "/etc/hostname",
        "/var",
        "/run",
        "/srv",
        "/mnt",
        "/boot",
        "/sys",
    ]
    private += [str(Path(__file__)), "/var/run/docker.sock"]
    code = f"""
import json, os
seen = [path for path in {private!r} if os.path.lexists(path)]
files = []
for top, directories, names in os.walk("/"):
    hidden = ("/proc", "/dev", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt/agent-env",
              "/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/etc/alternatives", {str(prefix)!r})
    directories[:] = [one for one in directories if os.path.join(top, one) not in hidden]
    files += [os.path.join(top, one) for one in names if not top.startswith("/etc")]
print(json.dumps([seen, files]))
"""
    folder = host.folder()
    assert host.run(code, group(folder)) == [[], ["/opt/pynchy/__main__.py"]]


def test_the_environment_is_ours_alone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import json, os, subprocess
child = subprocess.run(["env", "-0"], capture_output=True).stdout.split(b"\\0")
print(json.dumps([dict(os.environ), sorted(line.decode().partition("=")[0] for line in child if line)]))
"""
    own, child = host.run(code, env={"EXTRA": "a, b=c"})
    own.pop("LC_CTYPE", None)  # which Python sets for itself
    assert own.pop("PWD", "/") == "/"
    assert own == {
        "EXTRA": "a, b=c",
        "HOME": "/home/agent",
        "LANG": "C.UTF-8",
        "PATH": "/opt/agent-env/bin:/usr/local/bin:/usr/bin:/bin",
        "PYNCHY_CONTAINER": PREFIX + "one",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    assert set(child) - {"LC_CTYPE", "PWD", "_"} == set(own)


_NEEDLE = "sk-ant-test-inside"
_LOOK = r"""
import json, os, re, sys
found, seen = [], 0
for entry in os.listdir("/proc"):
    if entry.isdecimal():
        seen += 1
        for name in ("environ", "cmdline"):
            try:
                if b"sk-ant" + b"-test-inside" in open(f"/proc/{entry}/{name}", "rb").read():
                    found.append(f"/proc/{entry}/{name}")
            except PermissionError:
                pass
def send(head, body):
    body = json.dumps(body).encode()
    sys.stdout.buffer.write(json.dumps({**head, "bytes": len(body)}).encode() + b"\n" + body)
    sys.stdout.flush()
head = json.loads(sys.stdin.buffer.readline())
send({"type": "ready", "session": None}, {"mcp_servers": []})
text = json.dumps([seen, found])
answer = {"ids": head["ids"], "text": text, "session_id": None, "error": None}
send({"type": "result", "id": "r"}, answer)
sys.stdin.buffer.read()
"""


@pytest.mark.bubblewrap
def test_a_credential_of_the_host_is_in_no_process_of_the_sandbox(
    hosts: dict[str, Callable[[], Host]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pynchy.container_runner import AgentRun, Limits
    from pynchy.types import ContainerInput

    host = hosts["root" if os.geteuid() == 0 else "user"]()
    (tmp_path / "__main__.py").write_text(_LOOK)
    tmp_path.chmod(0o755)
    monkeypatch.setenv("ANTHROPIC_API_KEY", _NEEDLE)
    monkeypatch.setenv("PYNCHY_AGENT_ENV", str(host.place / f"env-{host.uid}"))
    runtime = BubblewrapRuntime()
    spec = RunSpec((VolumeMount(str(tmp_path), "/opt/pynchy", readonly=True),), PREFIX + "run", "", user=host.agent)

    async def ask() -> str | None:
        services: Any = None
        run = AgentRun(runtime, spec, services, Limits(start=30, answer=30, close=5))
        try:
            await run.start(ContainerInput("hi", "main", "terminal:main"), (1,))
            return (await run.result()).text
        finally:
            await run.stop()

    seen, found = json.loads(asyncio.run(ask()) or "")
    assert seen >= 2
    assert found == []


def test_only_its_own_processes_are_there(host: Host) -> None:
    code = """
import json, os, socket
names = [open(f"/proc/{p}/comm").read().strip() for p in os.listdir("/proc") if p.isdecimal()]
print(json.dumps([sorted(names), socket.gethostname(), os.getcwd()]))
"""
    # Root's bwrap stays as the first process, as another user than the agent; nobody else's does.
    assert host.run(code) == [["bwrap", "python3"] if host.root else ["python3"], "pynchy", "/"]


def test_every_namespace_is_its_own(host: Host) -> None:
    names = ["ipc", "mnt", "net", "pid", "uts"] + (["cgroup"] if Path("/proc/self/ns/cgroup").exists() else [])
    names += [] if host.root else ["user"]
    code = f"import json, os; print(json.dumps([os.readlink('/proc/self/ns/' + name) for name in {names!r}]))"
    outside = [str(Path(f"/proc/self/ns/{name}").readlink()) for name in names]
    assert not set(host.run(code)) & set(outside)


def test_there_is_no_network_but_its_own_loopback(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"\0{PREFIX}")  # an abstract address, which no file tree hides
        unix.listen()
        code = f"""
import json, socket
def knock(family, address):
    with socket.socket(family) as one:
        one.settimeout(5)
        try:
            one.connect(address)
            return "reached"
        except OSError:
            return "unreachable"
names = [name for _, name in socket.if_nameindex()]
inet = socket.AF_INET
print(json.dumps([names, knock(inet, ("127.0.0.1", {tcp.getsockname()[1]})), knock(inet, ("192.0.2.1", 80)),
                  knock(socket.AF_UNIX, "\\0{PREFIX}")]))
"""
        assert host.run(code) == [["lo"], "unreachable", "unreachable", "unreachable"]


def test_its_own_loopback_works(host: Host) -> None:
    code = """
import json, socket
with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
    print(json.dumps("connected"))
"""
    assert host.run(code) == "connected"


def test_nothing_can_be_written_but_writable_mounts_and_memory(host: Host) -> None:
    folder, sources = host.folder(), host.folder()  # the second would be writable, were it not mounted read-only
    code = """
import json, os
written = []
for top, directories, _ in os.walk("/"):
    directories[:] = [] if top.startswith(("/proc", "/usr/")) else directories
    try:
        with open(os.path.join(top, "x"), "w") as file:
            file.write("x")
        written.append(top)
    except OSError:
        pass
for setting in ("kernel/hostname", "kernel/core_pattern", "vm/overcommit_memory", "net/ipv4/ip_forward"):
    try:
        open(f"/proc/sys/{setting}", "r+").write("1")
        written.append(setting)
    except OSError:
        pass
sizes = {d: os.statvfs(d).f_blocks * os.statvfs(d).f_frsize for d in ("/home/agent", "/tmp", "/dev/shm")}
print(json.dumps([sorted(written), sizes]))
"""
    plugin = VolumeMount(str(sources), "/workspace/plugins/x", readonly=True)
    written, sizes = host.run(code, group(folder), plugin)
    assert written == ["/dev/shm", "/home/agent", "/tmp", "/workspace/group"]
    assert set(sizes.values()) == {1024**3}
    assert (folder / "x").read_text() == "x"
    assert (folder / "x").stat().st_uid == host.agent[0]
    assert list(sources.iterdir()) == []


def test_there_are_no_capabilities_and_no_way_to_any(host: Host) -> None:
    code = """
import json, os, re
status = open("/proc/self/status").read()
print(json.dumps([os.getresuid(), os.getresgid(), [g for g in os.getgroups() if g != os.getgid()],
                  dict(re.findall(r"^(Cap\\w+|NoNewPrivs):\\s*(\\w+)$", status, re.M))]))
"""
    uids, gids, groups, status = host.run(code)
    assert uids == [host.agent[0]] * 3
    assert gids == [host.agent[1]] * 3
    none = "0" * 16
    assert status == {
        "CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none, "NoNewPrivs": "1",
    }  # fmt: skip
    if host.root:
        assert groups == []


@pytest.mark.bubblewrap
def test_under_an_ordinary_user_no_further_user_namespace_can_be_made(hosts: dict[str, Callable[[], Host]]) -> None:
    # A root host cannot forbid it without a filter of system calls, as the README says.
    code = "import ctypes, json; print(json.dumps(ctypes.CDLL(None).unshare(0x10000000)))"
    assert checked(hosts["user"]()).run(code) == -1


def test_a_setuid_file_made_inside_is_not_roots_outside(host: Host) -> None:
    folder = host.folder()
    code = """
import json, os, shutil
shutil.copy("/usr/bin/id", "/workspace/group/id")
os.chmod("/workspace/group/id", 0o6755)
try:
    os.chown("/workspace/group/id", 0, 0)
    print(json.dumps("given to root"))
except OSError:
    print(json.dumps("refused"))
"""
    assert host.run(code, group(folder)) == "refused"
    status = (folder / "id").stat()
    assert (status.st_uid, status.st_gid) == host.agent
    assert status.st_uid != 0


def test_a_link_that_the_agent_leaves_makes_nothing_come_into_being_on_the_host(host: Host) -> None:
    folder = host.folder()
    targets = host.place / f"targets-{host.uid}"
    targets.mkdir()
    targets.chmod(0o777)
    code = f"""
import os
target = {str(targets)!r}
for name in (".claude", "plugins", "CLAUDE.md", "x", "group", "workspace", "home", "tmp"):
    for way in ("", "/oldroot", "/newroot", "../../oldroot", "../../../oldroot"):
        os.symlink(way + target + "/" + name, f"/workspace/group/{{name}}{{way.replace('/', '-')}}")
print("{{}}")
"""
    host.run(code, group(folder))
    assert len(list(folder.iterdir())) == 40
    plugin = VolumeMount(str(host.place / "runner"), "/workspace/plugins/x/.claude", readonly=True)
    assert host.run("print('{}')", group(folder), plugin) == {}
    assert list(targets.iterdir()) == []


def test_a_mount_inside_one_that_the_agent_can_write_is_refused(tmp_path: Path) -> None:
    mounts = (group(tmp_path), VolumeMount(str(tmp_path), "/workspace/group/.claude/skills", readonly=True))
    for order in (mounts, mounts[::-1]):
        with pytest.raises(RuntimeUnavailable, match="lies in /workspace/group, which the agent can write"):
            BubblewrapRuntime().run_args(RunSpec(order, "x", ""))


def test_an_agent_is_never_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    args = BubblewrapRuntime().run_args(RunSpec((), "x", ""))
    assert "--reuid=65534" in args
    for user in ((0, 0), (0, 5), (5, 0)):
        with pytest.raises(RuntimeUnavailable, match="may not run as root"):
            BubblewrapRuntime().run_args(RunSpec((), "x", "", user=user))


def test_root_mounts_without_a_user_namespace_and_then_becomes_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    args = BubblewrapRuntime().run_args(RunSpec((), "x", "", user=AGENT))
    assert "--unshare-user" not in args
    drop = args[args.index("/usr/bin/setpriv") :]
    assert {"--reuid=60999", "--regid=60999", "--clear-groups", "--no-new-privs", "--bounding-set=-all"} <= set(drop)
    assert drop[-3:] == ["/opt/agent-env/bin/python3", "/opt/pynchy", "x"]


def test_an_ordinary_user_gets_a_user_namespace_that_holds_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    args = BubblewrapRuntime().run_args(RunSpec((), "x", ""))
    assert {"--unshare-user", "--disable-userns"} <= set(args)
    assert args[args.index("--uid") + 1] == "1234"
    assert "/usr/bin/setpriv" not in args


def test_build_run_args_are_the_run_args_with_the_defaults(tmp_path: Path) -> None:
    runtime = BubblewrapRuntime()
    mount = group(tmp_path)
    assert runtime.build_run_args([mount], "x", "an-image") == runtime.run_args(RunSpec((mount,), "x", "another"))


def test_memory_is_empty_again_at_the_next_start(host: Host) -> None:
    code = """
import json, os
found = [os.listdir(d) for d in ("/home/agent", "/tmp", "/dev/shm")]
for d in ("/home/agent", "/tmp", "/dev/shm"):
    open(d + "/left", "w").close()
print(json.dumps(found))
"""
    assert host.run(code) == host.run(code) == [[], [], []]


@pytest.mark.parametrize(
    "name", ["with a space", "com,ma", "ünïcödé 🎉", 'quo"te', "a=b", "--bind", "line\nbreak", "$HOME"]
)
def test_a_file_is_read_through_a_mount_whatever_its_name(name: str, host: Host) -> None:
    folder = host.folder() / name
    folder.mkdir()
    (folder / "file").write_text("found")
    folder.parent.chmod(0o755)
    folder.chmod(0o755)
    mount = VolumeMount(str(folder), f"/workspace/plugins/{name}", readonly=True)
    code = f"import json; print(json.dumps(open({mount.container_path + '/file'!r}).read()))"
    assert host.run(code, mount) == "found"


def test_a_mount_whose_source_is_missing_fails_and_makes_nothing(host: Host) -> None:
    absent = host.place / "absent"
    done = subprocess.run(
        host.command(VolumeMount(str(absent), "/x")), input="print('{}')", capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "absent" in done.stderr
    assert not absent.exists()
