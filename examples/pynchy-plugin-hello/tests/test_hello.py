"""The example: found by its entry point, and its server answers when started as the container starts it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.types import TextContent

import pynchy
from pynchy.plugin import discover_plugins
from pynchy_plugin_hello import HelloPlugin

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """The server and its client are asyncio's here."""
    return "asyncio"


@asynccontextmanager
async def server() -> AsyncIterator[ClientSession]:
    """The server, with nothing of the environment but what the container gives it."""
    spec = HelloPlugin().mcp_server_spec()
    paths = [spec.host_source.parent, Path(pynchy.__file__).parents[1]]
    parameters = StdioServerParameters(
        command=sys.executable, args=spec.args, env={"PYTHONPATH": ":".join(str(path) for path in paths)}
    )
    async with stdio_client(parameters) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        yield session


def test_it_is_discovered_by_its_entry_point() -> None:
    registry = discover_plugins()
    (record,) = [record for record in registry.records if record.entry_point == "hello"]
    assert (record.state, record.types) == ("ready", ("mcp",))
    assert [type(plugin) for plugin in registry.mcp_servers].count(HelloPlugin) == 1


async def test_the_server_offers_one_tool_with_a_schema() -> None:
    async with server() as session:
        (tool,) = (await session.list_tools()).tools
    assert tool.name == "greet"
    assert tool.description == "Greet somebody by name."


async def test_the_tool_greets_and_a_bad_call_is_an_error_that_the_server_survives() -> None:
    async with server() as session:
        assert (await session.call_tool("greet", {})).is_error
        good = await session.call_tool("greet", {"name": "Ada"})
    (text,) = good.content
    assert isinstance(text, TextContent)
    assert text.text == "Hello, Ada! The hello plugin sends this greeting."
