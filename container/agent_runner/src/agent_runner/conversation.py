"""One conversation with the SDK: prompts go in one at a time, each comes back as one result frame."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

from claude_agent_sdk import (
    AssistantMessage,
    ClaudeSDKClient,
    Message,
    ResultMessage,
    SystemMessage,
    ToolUseBlock,
)

from agent_runner.host_link import HostLink
from pynchy.types import ContainerOutput
from pynchy.wire import Frame, json_frame


@dataclass(slots=True)
class Turn:
    """A prompt under way: the message ids it answers, and whether a tool has run for it yet."""

    ids: tuple[int, ...]
    prompt: str
    uuid: str
    tools_used: bool = False


class Conversation:
    """Feeds prompts to a connected client, one after the other, and reports what comes of them.

    Nothing is sent to the SDK while a prompt is being answered: it would fold the two into one result, and
    nobody could say which message was answered.
    """

    def __init__(self, client: ClaudeSDKClient, link: HostLink) -> None:
        self._client = client
        self._link = link
        self._waiting: asyncio.Queue[Turn] = asyncio.Queue()
        self._turn: Turn | None = None
        self._turn_over = asyncio.Event()
        self._reported_servers: Any = None

    def accept(self, ids: tuple[int, ...], prompt: str) -> None:
        """Queue a prompt, and tell the host that it is in safe hands."""
        self._waiting.put_nowait(Turn(ids, prompt, str(uuid.uuid4())))
        self._link.send(Frame("accepted", {"ids": list(ids)}))

    async def interrupt(self) -> None:
        """Stop what is being answered; its result says that it was interrupted."""
        if self._turn:
            await self._client.interrupt()

    async def run(self) -> None:
        """Answer prompts until cancelled. Raises what the SDK raises when its process dies."""
        reading = asyncio.get_running_loop().create_task(self._read())
        try:
            while True:
                getting = asyncio.ensure_future(self._waiting.get())
                await asyncio.wait({reading, getting}, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    getting.cancel()
                    break
                self._turn = getting.result()
                self._turn_over.clear()
                await self._client.query(_as_stream(self._turn))
                over = asyncio.ensure_future(self._turn_over.wait())
                await asyncio.wait({reading, over}, return_when=asyncio.FIRST_COMPLETED)
                over.cancel()
            reading.result()  # raises why the stream broke
            raise RuntimeError("the Claude process ended by itself")
        finally:
            reading.cancel()

    async def _read(self) -> None:
        async for message in self._client.receive_messages():
            self._handle(message)

    def _handle(self, message: Message) -> None:
        if isinstance(message, SystemMessage) and message.subtype == "init":
            self._report_ready(message.data)
        elif isinstance(message, AssistantMessage):
            for block in message.content:
                if isinstance(block, ToolUseBlock):
                    if self._turn:
                        self._turn.tools_used = True
                    self._link.send(Frame("progress", {"tool": block.name[:200]}))
        elif isinstance(message, ResultMessage):
            self._report_result(message)

    def _report_ready(self, data: dict[str, Any]) -> None:
        servers = [{"name": one["name"], "status": one["status"]} for one in data.get("mcp_servers", [])]
        if servers == self._reported_servers:
            return
        self._reported_servers = servers
        body = {"mcp_servers": servers, "plugin_errors": data.get("plugin_errors", [])}
        self._link.send(json_frame("ready", body, session=data.get("session_id")))

    def _report_result(self, message: ResultMessage) -> None:
        turn = self._turn
        if turn and message.user_message_uuid not in (None, turn.uuid):
            turn = None  # the end of something the agent had started by itself
        failed = message.is_error or message.subtype != "success"
        output = ContainerOutput(
            ids=turn.ids if turn else (),
            text=None if failed else message.result,
            session_id=message.session_id,
            error=_failure(message) if failed else None,
            tools_used=bool(turn and turn.tools_used),
        )
        body = {**asdict(output), "usage": message.usage, "cost_usd": message.total_cost_usd}
        self._link.send(json_frame("result", body, id=f"result-{message.uuid}"))
        if turn:
            self._turn = None
            self._turn_over.set()


def _failure(message: ResultMessage) -> str:
    if message.terminal_reason and "abort" in message.terminal_reason:
        return "interrupted"
    words = message.result or "; ".join(message.errors or []) or message.subtype
    status = f" (HTTP {message.api_error_status})" if message.api_error_status else ""
    return words + status if str(message.api_error_status) not in words else words


async def _as_stream(turn: Turn) -> AsyncIterator[dict[str, Any]]:
    yield {
        "type": "user",
        "uuid": turn.uuid,
        "message": {"role": "user", "content": turn.prompt},
        "parent_tool_use_id": None,
    }
