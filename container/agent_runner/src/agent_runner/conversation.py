"""One conversation with the SDK: prompts go in one at a time, each comes back as one result frame."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

from claude_agent_sdk import ClaudeSDKClient, ResultMessage, SystemMessage

from agent_runner.host_link import HostLink, HostRefused
from agent_runner.images import image_blocks
from pynchy.types import INTERRUPTED, ContainerOutput
from pynchy.wire import Frame, json_frame

#: The argument of a tool that says in a line what it is about.
_DETAILS = {
    "Agent": "description",
    "Bash": "description",
    "Edit": "file_path",
    "Glob": "pattern",
    "Grep": "pattern",
    "NotebookEdit": "notebook_path",
    "Read": "file_path",
    "Skill": "skill",
    "Task": "description",
    "WebFetch": "url",
    "WebSearch": "query",
    "Write": "file_path",
}
_MAX_DETAIL = 200  # characters
#: An interrupt may come before the SDK has begun with a prompt, and then does nothing: it is sent again after so
#: many seconds. While the SDK waits for a server it heeds none; after so many the host is answered in its place.
_INTERRUPT_AGAIN = 0.5
_INTERRUPT_WITHIN = 1.0


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the host gives to be answered: message ids, their text, and pictures by their paths."""

    ids: tuple[int, ...]
    text: str
    images: tuple[str, ...] = ()

    @property
    def is_command(self) -> bool:
        """Whether it is for the SDK's program rather than for the model, which it is only by itself."""
        return self.text.split(None, 1)[:1] == ["/compact"]


@dataclass(slots=True)
class Turn:
    """A prompt under way: how far it is. `reported`: the host has its result, and the SDK is to forget it."""

    prompt: Prompt
    uuid: str
    sent: bool = False
    tools_used: bool = False
    interrupted: bool = False
    reported: bool = False

    @property
    def ids(self) -> tuple[int, ...]:
        """The messages that it answers."""
        return self.prompt.ids


class Conversation:
    """Feeds prompts to a connected client, one after the other, and reports what comes of them.

    Nothing is sent to the SDK while a prompt is being answered: it would fold the two into one result, and
    nobody could say which message was answered. What comes meanwhile is held, and answered together afterwards.
    """

    def __init__(self, link: HostLink, hook_troubles: Callable[[], dict[str, str]]) -> None:
        self._link = link
        self._hook_troubles = hook_troubles
        self._client: ClaudeSDKClient | None = None
        self._held: list[Prompt] = []
        self._something_held = asyncio.Event()
        self._turn: Turn | None = None
        self._turn_over = asyncio.Event()
        # What asks to stop one turn must not come behind the prompt of the next.
        self._writing = asyncio.Lock()
        self._stopping: set[asyncio.Task[None]] = set()
        self._session_id: str | None = None
        self._reported_servers: Any = None
        self._explaining: asyncio.Task[None] | None = None

    def accept(self, prompt: Prompt) -> None:
        """Hold a prompt, and tell the host that it is in safe hands."""
        self._held.append(prompt)
        self._something_held.set()
        self._link.send(Frame("accepted", {"ids": list(prompt.ids)}))

    def interrupt(self) -> None:
        """Stop what is being answered, or will be once the SDK is up; its result says that it was interrupted."""
        if self._turn is None:
            if self._held:
                self._report_interrupted(self._next_turn())
        elif not self._turn.interrupted:
            self._turn.interrupted = True
            stopping = asyncio.get_running_loop().create_task(self._stop(self._turn))
            self._stopping.add(stopping)
            stopping.add_done_callback(self._stopping.discard)

    async def _stop(self, turn: Turn) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _INTERRUPT_WITHIN
        async with self._writing:
            while self._turn is turn and turn.sent and self._client:
                with contextlib.suppress(Exception):  # whether it has ended, its reader will say
                    async with asyncio.timeout(_INTERRUPT_AGAIN):
                        await self._client.interrupt()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_INTERRUPT_AGAIN):
                        await self._turn_over.wait()
                if self._turn is turn and not turn.reported and loop.time() > deadline:
                    self._report_interrupted(turn)

    async def before_tool(self, call: Any, tool_use_id: str | None, context: Any) -> dict[str, Any]:
        """The SDK's PreToolUse hook: no tool runs before the host has on record that one may have.

        After a crash the host repeats a message only if none did. Once a turn is enough. What the tool is about
        is said each time, and nothing waits for that.
        """
        self._link.send(Frame("doing", _doing(call)))
        turn = self._turn
        if turn and turn.interrupted:
            return _denied("you were told to stop")
        if turn is None or turn.tools_used:
            return {}
        try:
            await self._link.request("progress", {"ids": list(turn.ids), "tool": str(call.get("tool_name"))[:200]})
        except HostRefused as refusal:
            return _denied(str(refusal))
        turn.tools_used = True
        return {}

    async def run(self, client: ClaudeSDKClient) -> None:
        """Answer prompts until cancelled. Raises what the SDK raises when its process dies."""
        self._client = client
        reading = asyncio.get_running_loop().create_task(self._read(client))
        try:
            while await self._unless_ended(reading, self._something_held):
                if not self._held:  # it was interrupted before it began
                    continue
                self._turn = self._next_turn()
                self._turn_over.clear()
                await self._ask(client, self._turn)
                if not await self._unless_ended(reading, self._turn_over):
                    break
            reading.result()  # raises why the stream broke
            raise RuntimeError("the Claude process ended by itself")
        finally:
            reading.cancel()

    async def _ask(self, client: ClaudeSDKClient, turn: Turn) -> None:
        content = await _content(turn.prompt)
        async with self._writing:
            if not turn.interrupted:
                await client.query(_as_stream(turn, content))
                turn.sent = True
                return
        self._report_interrupted(turn)
        self._turn = None
        self._turn_over.set()

    def _report_interrupted(self, turn: Turn) -> None:
        """Answer in the SDK's place, which has not seen it or does not say."""
        turn.reported = True
        output = ContainerOutput(turn.ids, session_id=self._session_id, error=INTERRUPTED)
        self._link.send(json_frame("result", asdict(output), id=f"result-{turn.uuid}"))

    @staticmethod
    async def _unless_ended(reading: asyncio.Task[None], event: asyncio.Event) -> bool:
        """Wait for the event; False where the SDK's stream ended before."""
        waiting = asyncio.ensure_future(event.wait())
        await asyncio.wait({reading, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        return not reading.done()

    def _next_turn(self) -> Turn:
        """Everything that is held, as one prompt; but a command goes by itself, when it is its turn."""
        taken = list(takewhile(lambda prompt: not prompt.is_command, self._held)) or self._held[:1]
        del self._held[: len(taken)]
        if not self._held:
            self._something_held.clear()
        return Turn(_together(taken), str(uuid.uuid4()))

    async def _read(self, client: ClaudeSDKClient) -> None:
        async for message in client.receive_messages():
            if isinstance(message, SystemMessage) and message.subtype == "init":
                self._session_id = message.data.get("session_id")
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
        # Whatever has become of it: a compaction that was stopped looks like one that was not.
        error = INTERRUPTED if turn and turn.interrupted else _failure(message)
        output = ContainerOutput(
            ids=turn.ids if turn else (),
            text=None if error else message.result,
            session_id=message.session_id,
            error=error,
        )
        if turn is None or not turn.reported:
            body = {**asdict(output), "usage": message.usage, "cost_usd": message.total_cost_usd}
            self._link.send(json_frame("result", body, id=f"result-{message.uuid}"))
        if turn:
            self._turn = None
            # After any other failure the host ends this run, and what is held is for the next.
            if turn.reported or error in (None, INTERRUPTED):
                self._turn_over.set()


def _failure(message: ResultMessage) -> str | None:
    if not message.is_error and message.subtype == "success":
        return None
    if "abort" in (message.terminal_reason or ""):
        return INTERRUPTED
    words = message.result or "; ".join(message.errors or []) or message.subtype
    status = f" (HTTP {message.api_error_status})" if message.api_error_status else ""
    return words + status if str(message.api_error_status) not in words else words


def _denied(reason: str) -> dict[str, Any]:
    return {
        "hookSpecificOutput": {
            "hookEventName": "PreToolUse",
            "permissionDecision": "deny",
            "permissionDecisionReason": reason,
        }
    }


def _together(prompts: list[Prompt]) -> Prompt:
    return Prompt(
        tuple(row_id for prompt in prompts for row_id in prompt.ids),
        "\n".join(prompt.text for prompt in prompts),
        tuple(image for prompt in prompts for image in prompt.images),
    )


def _doing(call: Any) -> dict[str, str]:
    tool, given = str(call.get("tool_name"))[:_MAX_DETAIL], call.get("tool_input")
    detail = given.get(_DETAILS.get(tool)) if isinstance(given, dict) else None
    # Cut before it is looked through: a model can write very long lines.
    line = " ".join(detail[: 2 * _MAX_DETAIL].split()) if isinstance(detail, str) else ""
    return {"tool": tool, "detail": line[:_MAX_DETAIL]}


async def _content(prompt: Prompt) -> str | list[dict[str, Any]]:
    if not prompt.images:
        return prompt.text  # and nothing else is taken for a command
    return [{"type": "text", "text": prompt.text}, *await asyncio.to_thread(image_blocks, prompt.images)]


async def _as_stream(turn: Turn, content: str | list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    yield {
        "type": "user",
        "uuid": turn.uuid,
        "message": {"role": "user", "content": content},
        "parent_tool_use_id": None,
    }
