"""The processes that watch Podman's containers, conmon: all that shows one which Podman has lost sight of.

A `podman run` that is killed while it sets a container up leaves one that waits to be begun; its monitor has Podman
forget it, and then waits for it for ever. A monitor whose client does not read waits for that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path


def monitors() -> list[tuple[int, str]]:
    """The monitors of this user's containers, each process id with the container's name; none but on Linux."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if directory.stat().st_uid != os.geteuid():
                continue
            words = _command_line(int(directory.name))
            if Path(words[0]).name == "conmon" and (name := _value(words, "-n")) and _is_outside(directory):
                found.append((int(directory.name), name))
    return found


def end(monitor: int) -> None:
    """Have the monitor of a container that Podman does not know any more end, with what is left of that.

    It is not worth waiting for, but for a Podman that it has started to clean up.
    """
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        words = _command_line(monitor)
        children = [int(pid) for pid in Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split()]
        programs = {pid: Path(_command_line(pid)[0]).name for pid in children}
        alive = {pid: name for pid, name in programs.items() if name}  # a dead one may wait to be noticed
        for pid in alive or [monitor]:
            if alive.get(pid) != "podman":
                os.kill(pid, signal.SIGKILL)
        if "podman" not in alive.values():
            _forget(words)


def _forget(words: list[str]) -> None:
    """Have the program that a monitor's command line names as its runtime drop what it keeps of the container."""
    runtime, container = _value(words, "-r"), _value(words, "-c")
    if runtime and container:
        inside = [] if os.geteuid() == 0 else ["podman", "unshare"]  # where that program has run
        subprocess.run([*inside, runtime, "delete", "--force", container], capture_output=True, timeout=10)


def _command_line(pid: int) -> list[str]:
    """What a process was started with; an empty word for one that has ended."""
    return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")


def _value(words: list[str], option: str) -> str:
    """What follows an option, empty where it is not there."""
    return words[words.index(option) + 1] if option in words[:-1] else ""


def _is_outside(process: Path) -> bool:
    """Whether it is no container's: in there, an agent can call its processes what it likes."""
    return (process / "ns/pid").readlink() == Path("/proc/self/ns/pid").readlink()
