"""A sandbox's limits on memory, processors and processes, kept by control groups where this user has any.

Where systemd runs it is asked for a scope (systemd-run(1)), elsewhere a group is made in the tree itself
(cgroups(7)), which mostly takes root. `bwrap` starts in the group, so that nothing of a sandbox is ever outside.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pynchy.plugin import RunSpec

SHELL = "/bin/sh"
_TREE = Path("/sys/fs/cgroup")
_PERIOD = 100_000  # microseconds: the kernel's own default
#: What controllers are called, and the limits of a RunSpec.
_CONTROLLERS = {"memory": "memory", "cpu": "cpus", "pids": "pids"}
#: Nobody can be between making a group and entering it for so long, in seconds.
_ABANDONED_AFTER = 30.0

#: Makes each group, sets its limits, enters it, and becomes what follows the `--`. One of this name that has ended
#: makes room, one that runs does not.
_ENTER = """
while [ "$1" != -- ]; do
    case $1 in
        /*) group=$1 && { rmdir "$group" 2>/dev/null; mkdir "$group"; } ;;
        .) echo $$ >"$group/cgroup.procs" ;;
        *) echo "${1#*=}" >"$group/${1%%=*}" ;;
    esac || { echo "the sandbox's limits cannot be set ($group: $1)" >&2; exit 125; }
    shift
done
shift
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """How limits are kept on this machine. `supports` has the names of those that are; none where nothing keeps any."""

    supports: frozenset[str] = frozenset()
    #: With systemd: the arguments that ask it for a scope.
    scope: tuple[str, ...] = ()
    #: Without: where groups can be made, by controller; for all of them the same in version 2.
    groups: tuple[tuple[str, Path], ...] = ()

    def args(self, spec: RunSpec, bwrap: list[str]) -> list[str]:
        """The arguments for SHELL with which it becomes `bwrap`, with the limits of the spec."""
        if self.scope:
            bwrap = [*self.scope, "--unit", spec.container_name, *self._properties(spec), "--", *bwrap]
        words = []
        for base in dict.fromkeys(path for _, path in self.groups):
            words += [str(base / spec.container_name)]
            for controller, path in self.groups:
                if path == base:
                    words += _values(controller, base, spec)
            words += ["."]
        return ["-c", _ENTER, "pynchy-limits", *words, "--", *bwrap]

    def _properties(self, spec: RunSpec) -> Iterator[str]:
        wanted = {
            "memory": [f"MemoryMax={spec.memory_bytes}", "MemorySwapMax=0"] if spec.memory_bytes else [],
            "cpus": [f"CPUQuota={spec.cpus * 100:.0f}%"] if spec.cpus else [],
            "pids": [f"TasksMax={spec.pids}"] if spec.pids else [],
        }
        for name in sorted(self.supports):
            for one in wanted[name]:
                yield f"--property={one}"

    def remove(self, name: str | None = None) -> None:
        """Remove the group of a sandbox that has ended, or of all that have ended a while ago."""
        for base in {path for _, path in self.groups}:
            for group in [base / name] if name else base.glob("pynchy-*"):
                with contextlib.suppress(OSError):  # gone already, or somebody is in it
                    if name or time.time() - group.stat().st_mtime > _ABANDONED_AFTER:
                        group.rmdir()


def _values(controller: str, base: Path, spec: RunSpec) -> Iterator[str]:
    """`FILE=VALUE` for each file of a group that keeps this controller's limit, in either version of the tree."""
    if controller == "memory" and spec.memory_bytes:
        if (base / "memory.limit_in_bytes").exists():
            yield f"memory.limit_in_bytes={spec.memory_bytes}"
            if (base / "memory.memsw.limit_in_bytes").exists():
                yield f"memory.memsw.limit_in_bytes={spec.memory_bytes}"
        else:
            yield f"memory.max={spec.memory_bytes}"
            yield "memory.swap.max=0"
    elif controller == "cpu" and spec.cpus:
        quota = max(1000, int(spec.cpus * _PERIOD))
        if (base / "cpu.cfs_quota_us").exists():
            yield f"cpu.cfs_period_us={_PERIOD}"
            yield f"cpu.cfs_quota_us={quota}"
        else:
            yield f"cpu.max={quota} {_PERIOD}"
    elif controller == "pids" and spec.pids:
        yield f"pids.max={spec.pids}"


def find_limits() -> Limits:
    """What keeps limits on this machine for this user."""
    if Path("/run/systemd/system").is_dir():
        return _systemd()
    if (_TREE / "cgroup.controllers").exists():
        return _version_2()
    return _version_1()


def _systemd() -> Limits:
    if shutil.which("systemd-run") is None:
        return Limits()
    root = os.geteuid() == 0
    scope = ("systemd-run", *(() if root else ("--user",)), "--scope", "--quiet", "--collect")
    try:
        done = subprocess.run([*scope, "--", "true"], capture_output=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return Limits()
    if done.returncode:
        return Limits()
    user = f"user.slice/user-{os.getuid()}.slice/user@{os.getuid()}.service"
    found = _read(_TREE / ("" if root else user) / "cgroup.controllers").split()
    supports = frozenset(limit for controller, limit in _CONTROLLERS.items() if controller in found)
    return Limits(supports, scope=scope) if supports else Limits()


def _version_2() -> Limits:
    """A directory of ours below the root: a group with processes of its own could not hand its controllers down."""
    base = _TREE / "pynchy"
    found = [controller for controller in _CONTROLLERS if controller in _read(_TREE / "cgroup.controllers").split()]
    try:
        base.mkdir(exist_ok=True)
        for directory in (_TREE, base):
            (directory / "cgroup.subtree_control").write_text(" ".join(f"+{one}" for one in found))
    except OSError:
        return Limits()
    return _writable([(controller, base) for controller in found])


def _version_1() -> Limits:
    """Below the group that this process is in, which each controller has of its own."""
    groups = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, names, path = line.split(":", 2)
        for controller in set(names.split(",")) & set(_CONTROLLERS):
            # Where this is a container, the tree shows its part only, and calls that the root.
            for base in (_TREE / names / path.lstrip("/"), _TREE / names):
                if base.is_dir():
                    groups.append((controller, base))
                    break
    return _writable(sorted(groups))


def _writable(groups: list[tuple[str, Path]]) -> Limits:
    """Those in which a group can really be made."""
    kept = []
    for controller, base in groups:
        trial = base / f"pynchy-trial-{os.getpid()}"
        try:
            trial.mkdir()
            trial.rmdir()
        except OSError:
            continue
        kept.append((controller, base))
    return Limits(frozenset(_CONTROLLERS[controller] for controller, _ in kept), groups=tuple(kept))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
