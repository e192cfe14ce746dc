"""That an answer takes its time: a sign of typing at once, and a short note in the chat after a minute.

A note is no message: it is not stored, nothing waits for it, and one that cannot be sent is a line in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from pynchy.plugin_calls import ask_quietly
from pynchy.router import visible_text
from pynchy.types import Channel

log = structlog.get_logger(__name__)

#: After so many seconds a chat hears that its agent still works, and where the note cannot be edited, again.
_NOTES_AT = (60.0, 300.0, 900.0, 1800.0, 3600.0)
_EDIT_EVERY = 30.0  # seconds
_SEND_WITHIN = 30.0  # seconds


class Progress:
    """The notes of every chat. `owner_of` names its connected channel, `typing` shows that somebody types there."""

    def __init__(
        self, owner_of: Callable[[str], Channel | None], typing: Callable[[str, bool], None], assistant_name: str
    ) -> None:
        self._owner_of = owner_of
        self._typing = typing
        self._assistant_name = assistant_name
        self._notes: dict[str, asyncio.Task[None]] = {}

    def working(self, jid: str, doing: Callable[[], str] | None) -> None:
        """An agent works for this chat, and `doing` says on what; None: it no longer does. Never waits."""
        self._typing(jid, doing is not None)
        if doing is None:
            if task := self._notes.pop(jid, None):
                task.cancel()
        elif jid not in self._notes:
            self._notes[jid] = asyncio.get_running_loop().create_task(self._note(jid, doing))

    async def stop(self) -> None:
        """Say nothing more."""
        tasks = list(self._notes.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _note(self, jid: str, doing: Callable[[], str]) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        message_id: str | None = None
        last = ""
        for at in _NOTES_AT:
            while (left := began + at - loop.time()) > 0:
                await asyncio.sleep(min(left, _EDIT_EVERY) if message_id else left)
                text = self._text(loop.time() - began, doing())
                if message_id and text != last:
                    last = text
                    await self._edit(jid, message_id, text)
            if message_id is None:
                last = self._text(loop.time() - began, doing())
                message_id = await self._send(jid, last)

    def _text(self, seconds: float, doing: str) -> str:
        minutes = max(1, round(seconds / 60))
        return visible_text(f"Still working ({minutes} min{f'; {doing}' if doing else ''}) ...")

    async def _send(self, jid: str, text: str) -> str | None:
        """Send a note; returns its id where the channel can edit it."""
        channel = self._owner_of(jid)
        if channel is None:
            return None
        send = getattr(channel, "send_note", None) or channel.send_message
        note = self._prefixed(channel, text)
        message_id = await ask_quietly("a note", channel.name, lambda: send(jid, note), _SEND_WITHIN)
        return message_id if isinstance(message_id, str) and hasattr(channel, "edit_message") else None

    async def _edit(self, jid: str, message_id: str, text: str) -> None:
        channel = self._owner_of(jid)
        edit = getattr(channel, "edit_message", None)
        if channel is None or edit is None:
            return
        note = self._prefixed(channel, text)
        await ask_quietly("edit_message", channel.name, lambda: edit(jid, message_id, note), _SEND_WITHIN)

    def _prefixed(self, channel: Channel, text: str) -> str:
        return f"{self._assistant_name}: {text}" if getattr(channel, "prefix_assistant_name", True) else text
