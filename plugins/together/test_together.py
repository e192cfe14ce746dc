"""Telegram, WhatsApp and the terminal at once, and voice notes that agents hear, with real libraries and sandboxes."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from bot_api import until
from household import ADA, Home
from whatsapp_protos import events

from pynchy import channel_host

pytestmark = pytest.mark.anyio

_HEARD = "home tonight"


def transcribe(path: str) -> str:
    """A line that has the scripted model call the tool."""
    return f"/tool mcp__voice__transcribe_voice {json.dumps({'path': path})}"


async def test_a_voice_note_on_telegram_is_heard_in_the_container_and_answered_in_the_chat(
    home: Home, note: bytes
) -> None:
    home.telegram.voice(ADA, note, caption=transcribe("$attachment"))
    await until(lambda: home.telegram.sent, 90)
    (answer,) = home.on_telegram()
    assert "heard by Pocketsphinx" in answer
    assert _HEARD in answer
    assert home.telegram.sent[0].chat == ADA
    await until(lambda: home.telegram.waiting == 0)  # it is acknowledged


async def test_a_voice_note_on_whatsapp_is_heard_in_the_container_and_answered_in_the_chat(
    home: Home, note: bytes
) -> None:
    home.whatsapp.voice(note)
    await until(lambda: home.whatsapp.read(), 90)
    (told,) = home.whatsapp.read()
    path = re.search(r"\[attachment (/workspace/attachments/\S+)\]", told)
    assert path, told
    await home.whatsapp.write(transcribe(path[1]))
    await until(lambda: len(home.whatsapp.read()) == 2, 90)
    assert _HEARD in home.whatsapp.read()[1]
    await until(lambda: home.whatsapp.waiting == {})  # both are acknowledged


async def test_both_channels_and_the_terminal_are_answered_at_once_each_in_its_own_chat(home: Home) -> None:
    async def telegram() -> None:
        for number in range(5):
            home.telegram.write(ADA, f"telegram {number}")
            await until(lambda number=number: any(f"telegram {number}" in text for text in home.on_telegram()), 90)

    async def whatsapp() -> None:
        for number in range(5):
            await home.whatsapp.write(f"whatsapp {number}")
            await until(lambda number=number: any(f"whatsapp {number}" in text for text in home.whatsapp.read()), 90)

    async def terminal() -> None:
        for number in range(5):
            assert await home.terminal.ask(f"terminal {number}") == f"You said: terminal {number}"

    await asyncio.gather(telegram(), whatsapp(), terminal())
    assert home.on_telegram() == [f"You said: telegram {number}" for number in range(5)]
    assert home.whatsapp.read() == [f"Pynchy: You said: whatsapp {number}" for number in range(5)]


async def test_the_main_chat_hears_that_the_phone_has_unlinked_whatsapp_and_telegram_goes_on(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_host, "_RECONNECT_WITHIN", 0.1)  # it will not come back by itself
    await home.whatsapp.write("before")
    await until(lambda: home.whatsapp.read(), 90)
    home.whatsapp.happen(events.LoggedOut(OnConnect=False, Reason=events.LOGGED_OUT), logged_out=True)
    told: list[str] = []

    async def hear(text: str) -> None:
        told.append(text)

    with home.service.terminal.attached(home.service.groups.main_jid, hear):
        await until(lambda: any("pynchy whatsapp login" in text for text in told), 60)
    (notice,) = [text for text in told if "whatsapp" in text]
    assert "no WhatsApp account is linked here, or its phone has unlinked this device" in notice
    home.telegram.write(ADA, "still there?")
    await until(lambda: home.on_telegram() == ["You said: still there?"], 90)


async def test_an_agent_sends_a_photo_to_its_own_chat_on_telegram_and_sees_no_token(home: Home) -> None:
    look = "printf '\\377\\330\\377\\340jpeg' > cat.jpg; env; tr '\\0' '\\n' < /proc/self/environ"
    photo = {"path": "cat.jpg", "caption": "a cat"}
    lines = [f"/tool Bash {json.dumps({'command': look})}", f"/tool mcp__telegram__send_photo {json.dumps(photo)}"]
    home.telegram.write(ADA, "\n".join(lines))
    await until(lambda: len(home.telegram.sent) == 2, 90)
    sent, answer = home.telegram.sent
    assert (sent.chat, sent.text) == (ADA, "a cat")
    assert home.telegram.token not in answer.text
    assert "TELEGRAM" not in answer.text
