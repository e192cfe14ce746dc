"""The terminal channel: chats of people who are attached through the control socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from pynchy.types import NotConnected

_PREFIX = "terminal:"

Sink = Callable[[str], Awaitable[None]]


def terminal_jid(folder: str) -> str:
    """The address of a group's chat in the terminal."""
    return _PREFIX + folder


class TerminalChannel:
    """Shows texts to every terminal that is attached to a chat; without one they wait."""

    name = "terminal"
    prefix_assistant_name = False

    def __init__(self) -> None:
        self._sinks: dict[str, list[Sink]] = {}

    async def connect(self) -> None:
        """There is nothing to connect to; terminals come by themselves."""

    async def disconnect(self) -> None:
        """Forget every terminal."""
        self._sinks.clear()

    def is_connected(self) -> bool:
        """Whether any terminal is attached."""
        return bool(self._sinks)

    def owns_jid(self, jid: str) -> bool:
        """Whether this is a chat in the terminal."""
        return jid.startswith(_PREFIX)

    async def send_message(self, jid: str, text: str) -> None:
        """Show a text to whoever is attached to the chat; NotConnected where nobody is."""
        shown = False
        for sink in list(self._sinks.get(jid, ())):
            try:
                await sink(text)
                shown = True
            except ConnectionError:
                continue  # that terminal has just been closed
        if not shown:
            raise NotConnected(jid)

    @contextmanager
    def attached(self, jid: str, sink: Sink) -> Iterator[None]:
        """Show this chat's texts through `sink` meanwhile."""
        self._sinks.setdefault(jid, []).append(sink)
        try:
            yield
        finally:
            sinks = self._sinks.get(jid, [])
            if sink in sinks:
                sinks.remove(sink)
            if not sinks:
                self._sinks.pop(jid, None)
