"""Plugins that a test writes down: modules of one package, and the discovery of what they hold."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from pynchy.plugin import GROUP, PluginRecord, PluginRegistry, State, discover_plugins

#: What every module begins with. `Good` is an MCP plugin without a fault.
PREAMBLE = """
import functools, re, sys
from pathlib import Path
from pynchy.plugin import *

SOURCE = Path(__file__).parent / "some_package"


def a_hook(*args):
    pass


async def a_tool(arguments, call):
    return ""


def tool(name="look", description="Looks.", schema={"type": "object"}, handler=a_tool, timeout=60, **more):
    return HostTool(name, description, schema, handler, timeout, **more)


def spec(name="good", command="python", args=("-m", "x"), env=None, host_source=SOURCE, folders={}):
    return McpServerSpec(name, command, list(args), env or {}, host_source, folders)


class Good(McpPlugin):
    name = "good"

    def mcp_server_spec(self):
        return spec()


"""

#: Discovers the plugins of a module with this text, by `entry_point=Class` or else `good=Good`.
Discover = Callable[..., PluginRegistry]


def package_in(tmp_path: Path) -> Path:
    """The one package of a test, which no other test has imported; it has a package inside that may be mounted."""
    package = tmp_path / "modules" / f"package_{tmp_path.name}"
    if not package.exists():
        (package / "some_package").mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "some_package" / "__init__.py").touch()
    return package


def discovery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Discover:
    """Each call writes a module and discovers it alone."""
    package = package_in(tmp_path)
    monkeypatch.syspath_prepend(str(package.parent))

    def discover(text: str = "", **objects: str) -> PluginRegistry:
        module = f"module_{len(list(package.glob('module_*')))}"
        (package / f"{module}.py").write_text(PREAMBLE + text)
        importlib.invalidate_caches()
        target = f"{package.name}.{module}"
        found = [EntryPoint(name, f"{target}:{value}", GROUP) for name, value in (objects or {"good": "Good"}).items()]
        monkeypatch.setattr("pynchy.plugin._discovery.entry_points", lambda group: found)
        return discover_plugins()

    return discover


def contents(registry: PluginRegistry) -> list[Any]:
    """Every plugin in every list."""
    return [plugin for name, value in vars(registry).items() if name not in ("records", "names") for plugin in value]


def only(registry: PluginRegistry) -> PluginRecord:
    """The one record of a registry in which nothing was registered."""
    (record,) = registry.records
    assert contents(registry) == []
    assert registry.names == {}
    assert record.state is not State.READY
    assert record.reason
    assert "\n" not in record.reason
    assert record.remedy
    assert "\n" not in record.remedy
    return record
