"""The MCP server `pynchy` and one for each plugin with host tools: what the agent may ask of the host, as tools.

It decides nothing, and what tools there are the host says. Each call becomes a `request` frame, one of `send_file` a
`file` frame with the file in it; the host knows who is asking by the pipe it came through, checks, acts, and its answer
or refusal is the tool's result.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from claude_agent_sdk import McpSdkServerConfig, SdkMcpTool, create_sdk_mcp_server

from agent_runner.files import Unreadable, read_whole
from agent_runner.host_link import HostLink, HostRefused
from agent_runner.options import WORKSPACE
from pynchy.wire import MAX_FILE

SERVER_NAME = "pynchy"

#: Our own tool whose argument `path` is read in here, for no path of a container means anything to the host.
_SEND_FILE = "send_file"
#: What else it is given travels in a frame's head, as JSON in JSON, and that is a line of at most 64 KiB.
_MAX_ARGUMENTS = 30_000  # bytes

Described = dict[str, Any]  # name, description, input_schema
Ask = Callable[[dict[str, Any]], Awaitable[Any]]


def host_tools(
    link: HostLink, own_tools: list[Described], plugin_tools: dict[str, list[Described]]
) -> dict[str, McpSdkServerConfig]:
    """The in-process MCP servers by name: our own, and one for each plugin that has tools."""
    servers = {plugin: _server(link, plugin, tools, plugin) for plugin, tools in plugin_tools.items()}
    return {**servers, SERVER_NAME: _server(link, SERVER_NAME, own_tools, None)}


def _server(link: HostLink, name: str, tools: list[Described], plugin: str | None) -> McpSdkServerConfig:
    return create_sdk_mcp_server(name, tools=[_tool(link, described, plugin) for described in tools])


def _tool(link: HostLink, described: Described, plugin: str | None) -> SdkMcpTool[Any]:
    name = described["name"]

    async def request(arguments: dict[str, Any]) -> Any:
        return await link.request("request", arguments, name=name, plugin=plugin)

    async def send_file(arguments: dict[str, Any]) -> Any:
        return await _send_file(link, arguments)

    ask = send_file if plugin is None and name == _SEND_FILE else request
    return SdkMcpTool(name, described["description"], described["input_schema"], handler=_handler(ask))


def _handler(ask: Ask) -> Ask:
    async def call(arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = await ask(arguments)
        except (HostRefused, Unreadable) as refusal:
            return {"content": [{"type": "text", "text": str(refusal)}], "is_error": True}
        return {"content": [{"type": "text", "text": str(answer)}]}

    return call


async def _send_file(link: HostLink, arguments: dict[str, Any]) -> Any:
    given = dict(arguments)
    path = WORKSPACE / "group" / str(given.pop("path", ""))
    rest = json.dumps(given, ensure_ascii=False)
    if len(rest.encode("utf-8", "surrogatepass")) > _MAX_ARGUMENTS:
        raise Unreadable("what you say beside the path is too long: shorten it, or put it into a message of its own")
    data = await asyncio.to_thread(read_whole, path, MAX_FILE)
    return await link.hand_over(data, name=path.name, arguments=rest)
