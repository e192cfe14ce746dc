"""One conversation with the SDK: prompts go in one at a time, each comes back as one result frame."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from typing import Any

from claude_agent_sdk import ClaudeSDKClient, ResultMessage, SystemMessage

from agent_runner.host_link import HostLink, HostRefused
from pynchy.types import INTERRUPTED, ContainerOutput
from pynchy.wire import Frame, json_frame


@dataclass(slots=True)
class Turn:
    """A prompt under way: the message ids it answers, and whether a tool may have run for it yet."""

    ids: tuple[int, ...]
    prompt: str
    uuid: str
    tools_used: bool = False


class Conversation:
    """Feeds prompts to a connected client, one after the other, and reports what comes of them.

    Nothing is sent to the SDK while a prompt is being answered: it would fold the two into one result, and
    nobody could say which message was answered. What comes meanwhile is held, and answered together afterwards.
    """

    def __init__(self, link: HostLink, hook_troubles: Callable[[], dict[str, str]]) -> None:
        self._link = link
        self._hook_troubles = hook_troubles
        self._client: ClaudeSDKClient | None = None
        self._held: list[tuple[tuple[int, ...], str]] = []
        self._something_held = asyncio.Event()
        self._turn: Turn | None = None
        self._turn_over = asyncio.Event()
        self._reported_servers: Any = None
        self._explaining: asyncio.Task[None] | None = None

    def accept(self, ids: tuple[int, ...], prompt: str) -> None:
        """Hold a prompt, and tell the host that it is in safe hands."""
        self._held.append((ids, prompt))
        self._something_held.set()
        self._link.send(Frame("accepted", {"ids": list(ids)}))

    async def interrupt(self) -> None:
        """Stop what is being answered; its result says that it was interrupted."""
        if self._turn and self._client:
            await self._client.interrupt()

    async def before_tool(self, call: Any, tool_use_id: str | None, context: Any) -> dict[str, Any]:
        """The SDK's PreToolUse hook: no tool runs before the host has on record that one may have.

        After a crash the host repeats a message only if none did. Once a turn is enough.
        """
        turn = self._turn
        if turn is None or turn.tools_used:
            return {}
        try:
            await self._link.request("progress", {"ids": list(turn.ids), "tool": str(call.get("tool_name"))[:200]})
        except HostRefused as refusal:
            return {
                "hookSpecificOutput": {
                    "hookEventName": "PreToolUse",
                    "permissionDecision": "deny",
                    "permissionDecisionReason": str(refusal),
                }
            }
        turn.tools_used = True
        return {}

    async def run(self, client: ClaudeSDKClient) -> None:
        """Answer prompts until cancelled. Raises what the SDK raises when its process dies."""
        self._client = client
        reading = asyncio.get_running_loop().create_task(self._read(client))
        try:
            while await self._unless_ended(reading, self._something_held):
                self._turn = self._next_turn()
                self._turn_over.clear()
                await client.query(_as_stream(self._turn))
                if not await self._unless_ended(reading, self._turn_over):
                    break
            reading.result()  # raises why the stream broke
            raise RuntimeError("the Claude process ended by itself")
        finally:
            reading.cancel()

    @staticmethod
    async def _unless_ended(reading: asyncio.Task[None], event: asyncio.Event) -> bool:
        """Wait for the event; False where the SDK's stream ended before."""
        waiting = asyncio.ensure_future(event.wait())
        await asyncio.wait({reading, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        return not reading.done()

    def _next_turn(self) -> Turn:
        """Everything that is held, as one prompt."""
        ids = tuple(row_id for batch, _ in self._held for row_id in batch)
        prompt = "\n".join(prompt for _, prompt in self._held)
        self._held.clear()
        self._something_held.clear()
        return Turn(ids, prompt, str(uuid.uuid4()))

    async def _read(self, client: ClaudeSDKClient) -> None:
        async for message in client.receive_messages():
            if isinstance(message, SystemMessage) and message.subtype == "init":
                self._report_ready(client, message.data)
            elif isinstance(message, ResultMessage):
                self._report_result(message)

    def _report_ready(self, client: ClaudeSDKClient, data: dict[str, Any]) -> None:
        servers = [{"name": one["name"], "status": one["status"]} for one in data.get("mcp_servers", [])]
        if servers == self._reported_servers:
            return
        self._reported_servers = servers
        body = {"mcp_servers": servers, "hooks": self._hook_troubles(), "plugin_errors": data.get("plugin_errors", [])}
        self._link.send(json_frame("ready", body, session=data.get("session_id")))
        if any(one["status"] == "failed" for one in servers):
            self._explaining = asyncio.get_running_loop().create_task(self._explain(client))

    async def _explain(self, client: ClaudeSDKClient) -> None:
        """Say why servers have failed, which the first report could not."""
        with contextlib.suppress(Exception):  # the run does not depend on it
            status = await client.get_mcp_status()
            servers = [
                {"name": one["name"], "status": one["status"], "error": str(one.get("error", ""))[:1000]}
                for one in status["mcpServers"]
            ]
            self._link.send(json_frame("ready", {"mcp_servers": servers}))

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
        )
        body = {**asdict(output), "usage": message.usage, "cost_usd": message.total_cost_usd}
        self._link.send(json_frame("result", body, id=f"result-{message.uuid}"))
        if turn:
            self._turn = None
            if output.error in (None, INTERRUPTED):  # else the host ends this run: what is held is for the next
                self._turn_over.set()


def _failure(message: ResultMessage) -> str:
    if message.terminal_reason and "abort" in message.terminal_reason:
        return INTERRUPTED
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
