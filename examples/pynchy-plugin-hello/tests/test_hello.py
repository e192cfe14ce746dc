"""The plugin, found as Pynchy finds it, and its server, started as the agent starts it."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from mcp import Client, StdioServerParameters

from pynchy.agent_environment import AgentEnvironment
from pynchy.agent_plugins import plugin_parts, server_mounts
from pynchy.plugin import McpPlugin, State, discover_plugins
from pynchy.testing import McpConformance
from pynchy.types import Group
from pynchy.workspace import stage_runner
from pynchy_plugin_hello import HelloPlugin

#: Before any test looks elsewhere for it.
_AGENT_PYTHON = AgentEnvironment().python


@pytest.fixture
def anyio_backend() -> str:
    """As in Pynchy."""
    return "asyncio"


def test_it_is_discovered_by_its_entry_point(tmp_path: Path) -> None:
    registry = discover_plugins()
    (record,) = (one for one in registry.records if one.entry_point == "hello")
    assert (record.state, record.name, record.types) == (State.READY, "hello", ("mcp",))
    assert record.distribution == "pynchy-plugin-hello"
    assert HelloPlugin in [type(plugin) for plugin in registry.mcp_servers]
    assert "hello" in plugin_parts(registry, tmp_path, Group("x", "x", "x"), None).mcp_servers


class TestServer(McpConformance):
    """The server does what every one must."""

    bad_call: ClassVar[Any] = ("greet", {"name": ["Ada"]})
    good_call: ClassVar[Any] = ("greet", {"name": "Ada"})

    def plugin(self) -> McpPlugin:
        """The one that is tested."""
        return HelloPlugin()


@pytest.fixture(params=["ours", "the agent's"])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    """The server as it is laid out in the container, run by this Python and by that of the agent's environment.

    The second has nothing but the container's packages.
    """
    python = sys.executable
    if request.param != "ours":
        if not _AGENT_PYTHON.exists():
            pytest.skip("there is no agent's environment: `pynchy image build --runtime bubblewrap` makes one")
        python = str(_AGENT_PYTHON)
    spec = HelloPlugin().mcp_server_spec()
    (mount,) = server_mounts(spec, {})
    inside = tmp_path / mount.container_path.lstrip("/")
    inside.parent.mkdir(parents=True)
    inside.symlink_to(mount.host_path)
    paths = [str(tmp_path / "workspace/plugins/hello"), str(stage_runner(tmp_path / "home"))]
    assert spec.command == "python"
    parameters = StdioServerParameters(
        command=python,
        args=spec.args,
        env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1", **spec.env},
        cwd=tmp_path,
    )
    async with Client(parameters, read_timeout_seconds=60) as client:
        yield client


def text(result: Any) -> str:
    """What the agent reads."""
    (block,) = result.content
    return block.text


@pytest.mark.anyio
async def test_its_server_offers_one_tool_described_for_the_model(server: Client) -> None:
    (tool,) = (await server.list_tools()).tools
    assert tool.name == "greet"
    assert tool.description == "Greet somebody by name."
    assert tool.input_schema["required"] == ["name"]
    assert tool.input_schema["properties"]["name"]["type"] == "string"


@pytest.mark.anyio
async def test_the_tool_greets_whomever_it_is_given(server: Client) -> None:
    for name in ("Ada", 'Zoë "the 1st" 🎉\n<b>', "x" * 100_000):
        result = await server.call_tool("greet", {"name": name})
        assert not result.is_error
        assert text(result).startswith(f"Hello, {name}!")
        assert result.structured_content is None
