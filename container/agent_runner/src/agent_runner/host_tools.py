"""The MCP server `pynchy` and one for each plugin with host tools: what the agent may ask of the host, as tools.

It decides nothing, and what tools there are the host says. Each call becomes a `request` frame, or a `file` frame with
the file in it where an argument names one; the host knows who is asking by the pipe it came through, checks, acts, and
its answer or refusal is the tool's result.
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

#: What a call with a file is given besides travels in a frame's head, as JSON in JSON: a line of at most 64 KiB.
_MAX_ARGUMENTS = 30_000  # bytes

#: name, description, input_schema; `file` names the argument that is a path in here, which means nothing to the host.
Described = dict[str, Any]
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
    name, file = described["name"], described.get("file")

    async def ask(arguments: dict[str, Any]) -> Any:
        if file in arguments:
            data, given = await _with_file(arguments, file)
            return await link.hand_over(data, name=name, plugin=plugin, **given)
        return await link.request("request", arguments, name=name, plugin=plugin)

    return SdkMcpTool(name, described["description"], described["input_schema"], handler=_handler(ask))


def _handler(ask: Ask) -> Ask:
    async def call(arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = await ask(arguments)
        except (HostRefused, Unreadable) as refusal:
            return {"content": [{"type": "text", "text": str(refusal)}], "is_error": True}
        return {"content": [{"type": "text", "text": str(answer)}]}

    return call


async def _with_file(arguments: dict[str, Any], argument: str) -> tuple[bytes, dict[str, str]]:
    """The file that an argument names, its name, and the other arguments as JSON."""
    path = WORKSPACE / "group" / str(arguments[argument])
    rest = json.dumps({name: value for name, value in arguments.items() if name != argument}, ensure_ascii=False)
    if len(rest.encode("utf-8", "surrogatepass")) > _MAX_ARGUMENTS:
        raise Unreadable("what you say beside the path is too long: shorten it, or put it into a message of its own")
    return await asyncio.to_thread(read_whole, path, MAX_FILE), {"file": path.name, "arguments": rest}
