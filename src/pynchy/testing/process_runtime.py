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
from pathlib import Path

from pynchy.agent_environment import AgentEnvironment
from pynchy.plugin import RuntimeUnavailable, VolumeMount


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

    def build_image(self, image: str) -> None:
        """Fill the agent's environment."""
        self._environment.build()

    def build_run_args(self, mounts: list[VolumeMount], container_name: str, image: str) -> list[str]:
        """Arguments for this module. Read-only mounts are as writable as their sources are."""
        links = [f"{mount.container_path}={mount.host_path}" for mount in mounts]
        return ["-m", "pynchy.testing.process_runtime", container_name, str(self._environment.python), *links]

    def list_running_containers(self, prefix: str = "pynchy-") -> list[str]:
        """The names of this user's agents that are still running."""
        return sorted(path.name for path in _base().iterdir() if path.name.startswith(prefix) and _group(path))

    def stop(self, name: str) -> None:
        """End the agent's processes and remove its temporary home."""
        root = _base() / name
        if group := _group(root):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
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
        "PYNCHY_WORKSPACE": str(root / "workspace"),
    }
    agent = subprocess.Popen([python, str(root / "opt" / "pynchy")], env=env, start_new_session=True)
    (root / "pid").write_text(str(agent.pid))
    # The pipe belongs to the agent alone: when it ends, the host must see the end.
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    code = agent.wait()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(agent.pid, signal.SIGKILL)  # what it may have left running
    shutil.rmtree(root, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
