"""Measure everything, or the parts that are named, and print the table: `python -m benchmarks [PART...]`."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from pathlib import Path

from benchmarks import fairness, messages, plugins, runtimes, scale, shutdown, startup, throughput
from benchmarks.table import Row, markdown
from pynchy.cli.output import configure_logging
from pynchy.config import MODEL_VARIABLES
from pynchy.plugin import ContainerRuntime, PluginRegistry, RuntimeUnavailable
from pynchy.runtime import agent_image

_RUNTIMES = (
    ("pynchy.runtime", "DockerRuntime"),
    ("pynchy_plugin_bubblewrap.runtime", "BubblewrapRuntime"),
    ("pynchy_plugin_podman.runtime", "PodmanRuntime"),
)


def main(only: list[str]) -> None:
    """Print a table of the parts asked for, or of all."""
    configure_logging("error")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or every start would compile everything anew
    for name in MODEL_VARIABLES:
        os.environ.pop(name, None)
    rows: list[Row] = []
    if not only or "messages" in only:
        for runtime in _runtimes():
            rows += asyncio.run(messages.measure(runtime, PluginRegistry(), runtime.name))
            rows += asyncio.run(messages.measure(runtime, _example(), f"{runtime.name}, with an MCP plugin"))
    if not only or "runtimes" in only:
        for runtime in _runtimes():
            rows += asyncio.run(runtimes.measure(runtime))
    if not only or "startup" in only:
        rows += startup.measure()
    if not only or "plugins" in only:
        rows += plugins.measure()
        for runtime in _runtimes():
            rows += asyncio.run(plugins.measure_warm(runtime))
    if not only or "throughput" in only:
        rows += asyncio.run(throughput.measure())
    if not only or "scale" in only:
        rows += asyncio.run(scale.measure())
    if not only or "fairness" in only:
        rows += asyncio.run(fairness.measure())
    if not only or "shutdown" in only:
        for runtime in _runtimes():
            rows += asyncio.run(shutdown.measure(runtime))
    print(markdown(rows))


def _runtimes() -> list[ContainerRuntime]:
    found: list[ContainerRuntime] = []
    sys.path += [str(path) for path in (Path(__file__).parents[1] / "plugins").glob("*/src")]  # installed or not
    for module, name in _RUNTIMES:
        try:
            runtime = getattr(importlib.import_module(module), name)()
            runtime.ensure_running()
            runtime.check_image(agent_image())
            found.append(runtime)
        except (ImportError, RuntimeUnavailable) as error:
            print(f"without {name}: {error}", file=sys.stderr)
    return found


def _example() -> PluginRegistry:
    from pynchy_plugin_hello import HelloPlugin

    return PluginRegistry(mcp_servers=[HelloPlugin()])


if __name__ == "__main__":
    main(sys.argv[1:])
