"""An answer that takes its time is no silence: a note after a minute, kept up to date where that can be."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support import until

from pynchy import progress
from pynchy.channels.terminal import TerminalChannel
from pynchy.progress import Progress
from pynchy.types import Channel

pytestmark = pytest.mark.anyio


class Notes:
    """A channel that takes notes of what it is to show."""

    name = "notes"
    prefix_assistant_name = True

    def __init__(self) -> None:
        self.shown: list[str] = []

    async def connect(self) -> None: ...
    async def disconnect(self) -> None: ...

    def is_connected(self) -> bool:
        return True

    def owns_jid(self, jid: str) -> bool:
        return True

    async def send_message(self, jid: str, text: str) -> str | None:
        self.shown.append(text)
        return "id-1"


class Editing(Notes):
    """One that can change what it has shown."""

    def __init__(self) -> None:
        super().__init__()
        self.edits: list[tuple[str, str, str]] = []

    async def edit_message(self, jid: str, message_id: str, text: str) -> None:
        self.edits.append((jid, message_id, text))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute is a hundredth of a second."""
    monkeypatch.setattr(progress, "_NOTES_AT", (0.01, 0.05, 0.1))
    monkeypatch.setattr(progress, "_EDIT_EVERY", 0.01)


def notes_of(channel: Any, typed: list[tuple[str, bool]] | None = None) -> Progress:
    seen = [] if typed is None else typed
    return Progress(lambda jid: channel, lambda jid, on: seen.append((jid, on)), "Pynchy")


async def test_a_long_answer_is_noted_again_and_again_but_seldom() -> None:
    channel = Notes()
    notes = notes_of(channel)
    notes.working("x:1", lambda: "Bash: run the tests")
    await until(lambda: len(channel.shown) == 3)
    assert channel.shown[0] == "Pynchy: Still working (1 min; Bash: run the tests) ..."
    await notes.stop()


async def test_a_short_answer_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_NOTES_AT", (0.01,))
    channel = Notes()
    typed: list[tuple[str, bool]] = []
    notes = notes_of(channel, typed)
    for _ in range(20):
        notes.working("x:1", lambda: "a short answer")
        notes.working("x:1", None)
    notes.working("x:2", lambda: "a long one")
    await until(lambda: channel.shown)
    assert channel.shown == ["Pynchy: Still working (1 min; a long one) ..."]
    assert typed[:2] == [("x:1", True), ("x:1", False)]
    await notes.stop()


async def test_where_a_note_can_be_changed_there_is_one_and_it_says_what_is_done_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "_NOTES_AT", (0.01, 0.05, 60.0))
    channel = Editing()
    doing = ["Read: a.txt"]
    asked: list[str] = []

    def now() -> str:
        asked.append(doing[0])
        return doing[0]

    notes = notes_of(channel)
    notes.working("x:1", now)
    await until(lambda: channel.shown)
    doing[0] = "Bash: make <internal>hidden</internal>"
    await until(lambda: channel.edits)
    assert channel.edits[0] == ("x:1", "id-1", "Pynchy: Still working (1 min; Bash: make ) ...")
    before = len(asked)
    await until(lambda: len(asked) > before + 10)  # which takes it past the second time of a note
    await notes.stop()
    assert len(channel.shown) == 1
    assert len(channel.edits) == 1, "what has not changed is not said again"


async def test_a_channel_that_fails_disturbs_nobody() -> None:
    channel = Notes()

    async def fail(jid: str, text: str) -> None:
        channel.shown.append(text)
        raise SystemExit(3)

    channel.send_message = fail
    notes = notes_of(channel)
    notes.working("x:1", lambda: "")
    await asyncio.gather(*notes._notes.values())
    assert len(channel.shown) == 3


async def test_a_chat_whose_channel_is_away_hears_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_NOTES_AT", [number / 100 for number in range(1, 2001)])
    here: list[Channel] = []
    looked: list[str] = []
    channel = Notes()

    def owner_of(jid: str) -> Channel | None:
        looked.append(jid)
        return here[0] if here else None

    notes = Progress(owner_of, lambda jid, on: None, "Pynchy")
    notes.working("x:1", lambda: "")
    await until(lambda: looked)
    here.append(channel)
    await until(lambda: channel.shown)
    await notes.stop()


async def test_a_note_in_the_terminal_is_none_of_the_answer() -> None:
    terminal = TerminalChannel()
    texts: list[str] = []
    noted: list[str] = []

    async def show(text: str) -> None:
        texts.append(text)

    async def note(text: str) -> None:
        noted.append(text)

    notes = notes_of(terminal)
    with terminal.attached("terminal:main", show, note):
        notes.working("terminal:main", lambda: "")
        await until(lambda: noted)
    await notes.stop()
    assert texts == []
    assert noted[0] == "Still working (1 min) ..."
