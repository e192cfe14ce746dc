"""Whether the plugins' parts of this container work, without a model: servers are started, hooks imported."""

from __future__ import annotations

import asyncio
import os
import tempfile
from typing import Any

from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from agent_runner.host_link import HostLink
from agent_runner.options import RUNNER, WORKSPACE, server_parameters
from agent_runner.plugin_hooks import plugin_hooks
from pynchy.types import ContainerInput
from pynchy.wire import json_frame

_SERVER_WITHIN = 30.0  # seconds, as the agent's SDK allows
_HOOKS_WITHIN = 20.0  # seconds
_LAST_WORDS = 1500  # characters of what a server writes to its stderr


async def check(link: HostLink, given: ContainerInput) -> None:
    """Send one `checked` frame: each server's tools or trouble, and each plugin's hooks' trouble."""
    servers = {name: await _check_server(name, server) for name, server in (given.plugin_mcp_servers or {}).items()}
    async with plugin_hooks(given.plugin_hooks or {}, str(WORKSPACE), RUNNER, lambda *_: None) as hooks:
        troubles = await hooks.imported(_HOOKS_WITHIN)
    link.send(json_frame("checked", {"servers": servers, "hooks": troubles}))


async def _check_server(name: str, server: dict[str, Any]) -> dict[str, Any]:
    """Start it in an environment that holds nothing else, as the agent's SDK does, and list its tools."""
    with tempfile.TemporaryFile("w+") as words:
        try:
            parameters = StdioServerParameters(cwd=WORKSPACE / "group", **server_parameters(name, server))
            async with (
                asyncio.timeout(_SERVER_WITHIN),
                Client(stdio_client(parameters, errlog=words), read_timeout_seconds=_SERVER_WITHIN) as client,
            ):
                tools = (await client.list_tools()).tools
            found = [{"name": tool.name, "description": tool.description or ""} for tool in tools]
            return {"tools": found, "trouble": ""}
        except BaseException as error:
            words.seek(0, os.SEEK_END)
            words.seek(max(0, words.tell() - _LAST_WORDS))
            said = words.read().strip()
            return {"tools": [], "trouble": _reason(error), "stderr": said}


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return f"it did not answer within {_SERVER_WITHIN:.0f} s"
    return f"{type(error).__name__}: {error}"
