"""What an agent may ask of the host, and who may ask it.

A call comes through the pipe of one group's container and acts for that group: no field of it can name
another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pynchy.credential import Credential
from pynchy.model_gateway import ModelFailure, ModelGateway
from pynchy.router import visible_text
from pynchy.store import Store
from pynchy.types import ContainerOutput, Group
from pynchy.wire import Frame, FrameWriter

_MAX_TEXT = 100_000  # characters


class GroupHost:
    """Everything that one group's agent can reach of the host."""

    def __init__(
        self,
        group: Group,
        store: Store,
        gateway: ModelGateway,
        credential: Credential,
        wake_outbox: Callable[[], None],
    ) -> None:
        self._group = group
        self._store = store
        self._gateway = gateway
        self._credential = credential
        self._wake_outbox = wake_outbox
        #: How the agent's last model request failed; None where it was answered.
        self.model_failure: ModelFailure | None = None

    async def call_tool(self, name: str, arguments: Any) -> str:
        """Do what a tool of the MCP server `pynchy` asks; ValueError and PermissionError are refusals."""
        if not isinstance(arguments, dict):
            raise ValueError("the arguments must be an object")
        if name == "send_message":
            return await self._send_message(arguments)
        raise ValueError(f"there is no host tool {name[:80]!r}")

    async def _send_message(self, arguments: dict[str, Any]) -> str:
        text = arguments.get("text")
        if set(arguments) != {"text"} or not isinstance(text, str):
            raise ValueError("send_message takes one argument, `text`, a string")
        text = visible_text(text)
        if not text:
            raise ValueError("there is nothing to send: the text is empty")
        if len(text) > _MAX_TEXT:
            raise ValueError(f"the text has {len(text)} characters, more than the {_MAX_TEXT} that can be sent")
        await self._store.enqueue(self._group.jid, text, "message")
        self._wake_outbox()
        return "Message sent."

    async def note_acting(self, ids: tuple[int, ...]) -> None:
        """From now on, repeating these messages could act twice."""
        await self._store.mark_acted(ids)

    async def unsolicited(self, output: ContainerOutput) -> None:
        """What the agent says of its own accord goes to its chat."""
        if text := visible_text(output.text):
            await self._store.enqueue(self._group.jid, text, "message")
            self._wake_outbox()

    async def append_transcript(self, session_id: str, subpath: str, entries: list[dict[str, Any]]) -> int:
        """Store transcript entries of this group."""
        return await self._store.until_stored(
            lambda: self._store.append_transcript(self._group.folder, session_id, subpath, entries)
        )

    async def load_transcript(
        self, session_id: str, subpath: str, after: int
    ) -> tuple[list[dict[str, Any]], int | None]:
        """A page of a transcript of this group."""
        return await self._store.load_transcript(self._group.folder, session_id, subpath, after)

    async def transcript_subpaths(self, session_id: str) -> list[str]:
        """The sub-agent transcripts of a session of this group."""
        return await self._store.transcript_subpaths(self._group.folder, session_id)

    async def forward_model_request(self, frame: Frame, out: FrameWriter) -> None:
        """Answer a model request on the wire."""
        await self._gateway.forward(frame, out, self._note_model)

    def _note_model(self, failure: ModelFailure | None) -> None:
        self.model_failure = failure
        if failure is None:
            self._credential.accepted()
