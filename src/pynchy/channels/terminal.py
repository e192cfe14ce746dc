"""The terminal channel: chats of people who are attached through the control socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

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
        self._note_sinks: dict[str, list[Sink]] = {}

    async def connect(self) -> None:
        """There is nothing to connect to; terminals come by themselves."""

    async def disconnect(self) -> None:
        """Forget every terminal."""
        self._sinks.clear()
        self._note_sinks.clear()

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

    async def send_file(self, jid: str, path: Path, caption: str) -> None:
        """Say where a file is: whoever sits at the terminal has the disk before them."""
        await self.send_message(jid, f"{caption}\n[file: {path}]".strip())

    async def send_note(self, jid: str, text: str) -> None:
        """Show how an answer gets on, where it cannot be taken for one."""
        for sink in list(self._note_sinks.get(jid, ())):
            with suppress(ConnectionError):
                await sink(text)

    @contextmanager
    def attached(self, jid: str, sink: Sink, notes: Sink | None = None) -> Iterator[None]:
        """Show this chat's texts through `sink` meanwhile, and how answers get on through `notes`."""
        with _among(self._sinks, jid, sink), _among(self._note_sinks, jid, notes) if notes else nullcontext():
            yield


@contextmanager
def _among(sinks: dict[str, list[Sink]], jid: str, sink: Sink) -> Iterator[None]:
    sinks.setdefault(jid, []).append(sink)
    try:
        yield
    finally:
        those = sinks.get(jid, [])
        if sink in those:
            those.remove(sink)
        if not those:
            sinks.pop(jid, None)
