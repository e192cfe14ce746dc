"""What plugins cost: the list of them, their discovery, and a warm message."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.messages import service
from benchmarks.table import Row
from pynchy.plugin import ContainerRuntime, HostTool, PluginRegistry, SkillPlugin, ToolCall, ToolPlugin
from pynchy.testing import ScriptedModel

RUNS = 15
_WARM_ROUNDS = 8

_PLUGIN = """
from pathlib import Path
from pynchy.plugin import McpPlugin, McpServerSpec

class Plugin(McpPlugin):
    name = "plugin-{number}"
    def mcp_server_spec(self):
        return McpServerSpec("plugin-{number}", "python", ["-m", "x"], {{}}, Path(__file__).parent)
"""


def measure() -> list[Row]:
    """Rows for `plugins list` with 20 plugins, and for the discovery of 100 among 300 distributions."""
    with tempfile.TemporaryDirectory() as directory:
        few, many = Path(directory, "few"), Path(directory, "many")
        _install(few, plugins=20, others=0)
        _install(many, plugins=100, others=200)
        return [*_listing(few, Path(directory, "home")), *_discovery(many, Path(directory, "home"))]


def _install(directory: Path, plugins: int, others: int) -> None:
    """Distributions as an installer leaves them, some of them plugins."""
    for number in range(plugins + others):
        name = f"bench_{'plugin' if number < plugins else 'other'}_{number}"
        metadata = directory / f"{name}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: pynchy\n"
        )
        (metadata / "RECORD").write_text("")
        if number < plugins:
            (metadata / "entry_points.txt").write_text(f"[pynchy.plugins]\nplugin-{number} = {name}:Plugin\n")
            (directory / name).mkdir()
            (directory / name / "__init__.py").write_text(_PLUGIN.format(number=number))
        else:
            (metadata / "entry_points.txt").write_text(f"[console_scripts]\n{name} = {name}:main\n")


def _listing(directory: Path, home: Path) -> list[Row]:
    env = {**os.environ, "PYTHONPATH": str(directory), "PYNCHY_HOME": str(home)}
    bare = [sys.executable, "-c", "from importlib.metadata import entry_points; entry_points(group='pynchy.plugins')"]
    times: list[float] = []
    floors: list[float] = []
    peaks: list[float] = []
    for _ in range(RUNS + 1):
        floors.append(_run(bare, env)[0])
        seconds, peak = _run([str(Path(sys.executable).with_name("pynchy")), "plugins", "list"], env)
        times.append(seconds)
        peaks.append(peak)
    scan = "python and a scan of entry points"
    floor_peak = _run(bare, env)[1]
    return [
        Row("pynchy plugins list, 22 plugins", median(times[1:]), median(floors[1:]), scan, most=0.15),
        Row("the same, peak memory", median(peaks[1:]), floor_peak, scan, unit="MB", most=40),
    ]


#: Starts a command from a small process, for the kernel counts what the starting one holds as the other's peak.
_START = """
import os, sys, time
nothing = os.open(os.devnull, os.O_WRONLY)
began = time.perf_counter()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, nothing, 1)])
_, status, usage = os.wait4(pid, 0)
print(time.perf_counter() - began, usage.ru_maxrss, status)
"""


def _run(command: list[str], env: dict[str, str]) -> tuple[float, float]:
    """Seconds, and the peak of its memory in MB."""
    small = [sys.executable, "-I", "-S", "-c", _START, *command]
    seconds, kilobytes, status = subprocess.run(
        small, env=env, capture_output=True, text=True, check=True
    ).stdout.split()
    assert status == "0"
    return float(seconds), int(kilobytes) / 1024


_SCAN = """
import sys, json
sys.path[:0] = sys.argv[1:]
from importlib.metadata import entry_points
from time import perf_counter
began = perf_counter()
found = entry_points(group="pynchy.plugins")
print(json.dumps([perf_counter() - began, 0, len(found)]))
"""
_DISCOVER = """
import sys, json
sys.path[:0] = sys.argv[1:]
from time import perf_counter
from pynchy.plugin import discover_plugins
began = perf_counter()
records = discover_plugins().records
took = perf_counter() - began
print(json.dumps([took, sum(record.import_milliseconds for record in records) / 1000, len(records)]))
"""


def _discovery(directory: Path, home: Path) -> list[Row]:
    """In an interpreter that sees these distributions alone."""
    paths = [str(directory), str(Path(__file__).parents[1] / "src")]
    env = {**os.environ, "PYNCHY_HOME": str(home)}
    scans: list[float] = []
    own: list[float] = []
    imports: list[float] = []
    for _ in range(RUNS + 1):
        for code in (_SCAN, _DISCOVER):
            done = subprocess.run(
                [sys.executable, "-S", "-c", code, *paths], env=env, capture_output=True, text=True, check=True
            )
            took, importing, found = json.loads(done.stdout)
            assert found == 100
            if code is _SCAN:
                scans.append(took)
            else:
                own.append(took - importing)
                imports.append(importing)
    floor = f"entry_points() over 300 distributions (the plugins' own imports: {median(imports) * 1000:.0f} ms more)"
    return [Row("discover_plugins(), 100 plugins", median(own[1:]), median(scans[1:]), floor, 2.0)]


# --- a warm message -----------------------------------------------------------------------------------------


async def measure_warm(runtime: ContainerRuntime) -> list[Row]:
    """A row for a warm message with 20 plugins beside one with none; the two take turns."""
    without: list[float] = []
    with_plugins: list[float] = []
    async with ScriptedModel() as model:
        for _ in range(_WARM_ROUNDS):
            without += (await service(runtime, PluginRegistry(), model))[1]
            with_plugins += (await service(runtime, _twenty(), model))[1]
    return [
        Row(
            f"warm message -> reply, {runtime.name}, 20 plugins",
            median(with_plugins),
            median(without),
            "the same without plugins",
            1.1,
        )
    ]


def _twenty() -> PluginRegistry:
    from pynchy_plugin_hello import HelloPlugin

    registry = PluginRegistry(mcp_servers=[HelloPlugin()])
    for number in range(19):
        plugin: Any = _Tool(number) if number % 2 else _Skill(number)
        (registry.tools if number % 2 else registry.skills).append(plugin)
    return registry


class _Tool(ToolPlugin):
    def __init__(self, number: int) -> None:
        self.name = f"tool-{number}"

    def tools(self) -> list[HostTool]:
        async def nothing(arguments: dict[str, Any], call: ToolCall) -> str:
            return ""

        return [HostTool("nothing", "Does nothing.", {"type": "object", "properties": {}}, nothing)]


class _Skill(SkillPlugin):
    def __init__(self, number: int) -> None:
        self.name = f"skill-{number}"

    def skill_paths(self) -> list[Path]:
        return []
