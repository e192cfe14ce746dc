"""The MCP server `pynchy` and one for each plugin with host tools: what the agent may ask of the host, as tools.

It decides nothing. Each call becomes a `request` frame; the host knows who is asking by the pipe it came
through, checks, acts, and its answer or refusal is the tool's result.
"""

from __future__ import annotations

from typing import Any

from claude_agent_sdk import McpSdkServerConfig, SdkMcpTool, create_sdk_mcp_server

from agent_runner.host_link import HostLink, HostRefused

SERVER_NAME = "pynchy"

_SEND_MESSAGE_SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string", "description": "What to say, as plain text."}},
    "required": ["text"],
    "additionalProperties": False,
}


def host_tools(link: HostLink, plugin_tools: dict[str, list[dict[str, Any]]]) -> dict[str, McpSdkServerConfig]:
    """The in-process MCP servers by name; `plugin_tools` maps a plugin to its tools' descriptions."""
    servers = {
        plugin: create_sdk_mcp_server(
            plugin,
            tools=[_host_tool(link, one["name"], one["description"], one["input_schema"], plugin) for one in tools],
        )
        for plugin, tools in plugin_tools.items()
    }
    return {**servers, SERVER_NAME: _own_tools(link)}


def _own_tools(link: HostLink) -> McpSdkServerConfig:
    return create_sdk_mcp_server(
        SERVER_NAME,
        tools=[
            _host_tool(
                link,
                "send_message",
                "Send a message to this chat at once, while you are still working. Your final answer is sent "
                "by itself; use this for progress or for an extra message.",
                _SEND_MESSAGE_SCHEMA,
            )
        ],
    )


def _host_tool(
    link: HostLink, name: str, description: str, schema: dict[str, Any], plugin: str | None = None
) -> SdkMcpTool[Any]:
    async def call(arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = await link.request("request", arguments, name=name, plugin=plugin)
        except HostRefused as refusal:
            return {"content": [{"type": "text", "text": str(refusal)}], "is_error": True}
        return {"content": [{"type": "text", "text": str(answer)}]}

    return SdkMcpTool(name=name, description=description, input_schema=schema, handler=call)
