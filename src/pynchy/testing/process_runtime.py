"""The agent as a plain process, with links for mounts. THIS IS NO SANDBOX: it has the rights of its user.

For the tests of plugins, and for a demo at the terminal on machines where no sandbox can start.

    python -m pynchy.testing.process_runtime NAME PYTHON TARGET=SOURCE...
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pynchy.agent_environment import AgentEnvironment
from pynchy.plugin import RuntimeUnavailable, VolumeMount

#: Tells the runner where its workspace is, and us whose processes they are.
_VARIABLE = "PYNCHY_WORKSPACE"


class ProcessRuntime:
    """A ContainerRuntime without a container: a temporary home, a scrubbed environment, and no wall."""

    name = "process"

    def __init__(self) -> None:
        self.cli = sys.executable
        self._environment = AgentEnvironment()

    def ensure_running(self) -> None:
        """A process can always be started."""

    def check_image(self, image: str) -> None:
        """Raise RuntimeUnavailable when the agent's environment is missing."""
        self._environment.check()

    def image_packages(self, image: str) -> frozenset[str] | None:
        """What of plugins the agent's environment was built with."""
        return self._environment.packages

    def build_image(self, image: str, lock: Path, packages: frozenset[str]) -> None:
        """Fill the agent's environment."""
        self._environment.build(lock, packages)

    def build_run_args(self, mounts: list[VolumeMount], container_name: str, image: str) -> list[str]:
        """Arguments for this module. Read-only mounts are as writable as their sources are."""
        links = [f"{mount.container_path}={mount.host_path}" for mount in mounts]
        return ["-m", "pynchy.testing.process_runtime", container_name, str(self._environment.python), *links]

    def list_running_containers(self, prefix: str = "pynchy-") -> list[str]:
        """The names of this user's agents that are still running."""
        return sorted(path.name for path in _base().iterdir() if path.name.startswith(prefix) and _group(path))

    def stop(self, name: str) -> None:
        """End the agent's processes and remove its temporary home; returns once none of them is left."""
        root = _base() / name
        _end(root)
        shutil.rmtree(root, ignore_errors=True)


def _base() -> Path:
    """Where temporary homes are; refused where somebody else made it."""
    base = Path(tempfile.gettempdir(), f"pynchy-process-{os.geteuid()}")
    base.mkdir(mode=0o700, exist_ok=True)
    if base.is_symlink() or base.stat().st_uid != os.geteuid():
        raise RuntimeUnavailable(f"{base} belongs to somebody else", "remove it, or set TMPDIR")
    return base


def _group(root: Path) -> int | None:
    """The process group of the agent that runs in `root`, None where it has ended."""
    try:
        group = int((root / "pid").read_text())
        os.killpg(group, 0)
    except (OSError, ValueError):
        return None
    return group


def _end(root: Path) -> None:
    """Kill what runs in `root`: the agent's process group, and what has made a group of its own.

    The second, which is what the commands of the agent's shell do, can be found on Linux only.
    """
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if group := _group(root):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        strays = _started_in(root)
        for pid in strays:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not strays:
            return
        time.sleep(0.01)


def _started_in(root: Path) -> list[int]:
    """The processes that inherited `root` in their environment."""
    marker = f"{_VARIABLE}={root / 'workspace'}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marker in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def main(name: str, python: str, *links: str) -> int:
    """Lay out the temporary home, run the agent in a process group of its own, clean up behind it."""
    root = _base() / name
    (root / "home").mkdir(parents=True)
    for link in links:
        target, _, source = link.partition("=")
        path = root / target.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(source)
    env = {
        "PATH": f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "HOME": str(root / "home"),
        "LANG": "C.UTF-8",
        _VARIABLE: str(root / "workspace"),
    }
    # The shell notes down its pid before it becomes the agent, so that none can run that `stop` misses.
    command = ["/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', str(root / "pid"), python, str(root / "opt" / "pynchy")]
    agent = subprocess.Popen(command, env=env, start_new_session=True)
    # The pipe belongs to the agent alone: when it ends, the host must see the end.
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    code = agent.wait()
    _end(root)  # what it may have left running
    shutil.rmtree(root, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
