"""A runtime whose containers are plain processes of `stub_agent.py`, and the plugin that `pynchy run` finds it by."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pynchy.plugin import RuntimePlugin, VolumeMount

_AGENT = Path(__file__).parent / "stub_agent.py"


class StubRuntime:
    """Agents that take so many seconds for each answer."""

    name = "stub"
    cli = sys.executable

    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds

    def ensure_running(self) -> None:
        """Always."""

    def list_running_containers(self, prefix: str = "pynchy-") -> list[str]:
        """None that outlive their client."""
        return []

    def build_run_args(self, mounts: list[VolumeMount], container_name: str, image: str) -> list[str]:
        """The arguments of the process."""
        return ["-IS", str(_AGENT), str(self.seconds)]


class StubPlugin(RuntimePlugin):
    """Installed by `with_stub_plugin` alone."""

    name = "stub"

    def create_runtime(self) -> StubRuntime:
        """Agents that answer at once."""
        return StubRuntime()


def with_stub_plugin(folder: Path) -> dict[str, str]:
    """Lay out an installed plugin in a folder; returns the environment in which `pynchy` chooses its runtime."""
    record = folder / "pynchy_bench_stub-1.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: pynchy-bench-stub\nVersion: 1\n")
    (record / "entry_points.txt").write_text(f"[pynchy.plugins]\nstub = {__name__}:{StubPlugin.__name__}\n")
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[1])])
    return {**os.environ, "PYTHONPATH": path, "CONTAINER_RUNTIME": StubRuntime.name}
