"""What Pynchy sends is read in Telegram: whole, in order, once, and as it should look."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bot_api import (
    BAD_GATEWAY,
    BAD_MARKUP,
    BLOCKED,
    FLOOD,
    NONSENSE,
    RESET,
    RESET_AFTERWARDS,
    STALL_AFTERWARDS,
    Answer,
    until,
)
from telegram_world import FORUM, GROUP, PERSON, World, world

from pynchy.plugin import NotConnected, Refused
from pynchy_plugin_telegram import outgoing

JID = f"telegram:{PERSON}"
PNG = b"\x89PNG\r\n\x1a\n and the rest"
JPEG = b"\xff\xd8\xff and the rest"


def _words(count: int, word: str = "word") -> str:
    return " ".join(f"{word}{number}" for number in range(count))


def _read(here: World) -> list[str]:
    return [one.text for one in here.api.sent]


def test_markdown_is_sent_as_telegrams_own_markup_and_opens_no_link(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            number = await here.channel.send_message(JID, "# Plan\n\n😀 **now** see [this](https://a.example)")
            (sent,) = here.api.sent
            assert str(sent.number) == number
            assert sent.text == "Plan\n\n😀 now see this"
            assert sent.entities == [
                {"type": "bold", "offset": 0, "length": 4},
                {"type": "bold", "offset": 9, "length": 3},
                {"type": "text_link", "offset": 17, "length": 4, "url": "https://a.example"},
            ]
            assert sent.fields["link_preview_options"] == '{"is_disabled": true}'

    asyncio.run(body())


def test_what_telegram_does_not_take_as_markup_is_sent_as_plain_text(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            here.api.failing["sendMessage"] = [BAD_MARKUP]
            await here.channel.send_message(JID, "**now** [here](https://a.example)")
            assert [(one.text, one.entities) for one in here.api.sent] == [("now here (https://a.example)", [])]

    asyncio.run(body())


def test_a_blank_text_is_sent_to_nobody(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            assert await here.channel.send_message(JID, " \n ") is None
            assert here.api.sent == []

    asyncio.run(body())


@pytest.mark.parametrize("text", [_words(600), "😀" * 4096, "| a |\n|---|\n| b |\n" * 300, "- x\n" * 1500])
def test_a_text_that_telegram_finds_too_long_is_sent_in_parts(tmp_path: Path, text: str) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            number = await here.channel.send_message(JID, text)
            assert str(here.api.sent[-1].number) == number
            letters = [one for one in "".join(_read(here)) if one.isalnum() or one > "\uffff"]
            assert letters == [one for one in text if one.isalnum() or one > "\uffff"]

    asyncio.run(body())


def test_it_writes_to_a_topic_and_to_general(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            await here.channel.send_message(f"telegram:{FORUM}/5", "topic")
            await here.channel.send_message(f"telegram:{FORUM}", "general")
            await here.channel.set_typing(f"telegram:{FORUM}/5", True)
            assert [(one.chat, one.thread) for one in here.api.sent] == [(FORUM, 5), (FORUM, None)]
            (action,) = here.api.actions
            assert (action["action"], action["message_thread_id"]) == ("typing", "5")

    asyncio.run(body())


# --- limits -------------------------------------------------------------------------------------------------


def test_it_waits_as_long_as_telegram_asks(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            here.api.failing["sendMessage"] = [FLOOD]
            begun = time.monotonic()
            await here.channel.send_message(JID, "patience")
            assert time.monotonic() - begun >= 1
            assert _read(here) == ["patience"]

    asyncio.run(body())


def test_a_text_that_has_to_wait_for_long_stays_queued_and_holds_up_no_other_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(outgoing, "_PATIENCE", 0.5)
    monkeypatch.setattr(outgoing, "time", SimpleNamespace(monotonic=lambda: now))

    async def body() -> None:
        nonlocal now
        async with world(tmp_path) as here:
            here.api.failing["sendMessage"] = [FLOOD]
            for _ in range(2):  # the second is not even tried
                with pytest.raises(NotConnected, match="takes no messages for this chat for another 1 s"):
                    await here.channel.send_message(JID, "later")
            assert here.api.calls.count("sendMessage") == 1
            assert here.channel.is_connected()
            await here.channel.send_message(f"telegram:{GROUP}", "not held up")
            now += 2
            await here.channel.send_message(JID, "later")  # as Pynchy does, from time to time
            assert _read(here) == ["not held up", "later"]

    asyncio.run(body())


def test_showing_that_it_writes_takes_nothing_from_what_it_may_write(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            async with asyncio.timeout(25):  # were they counted, it would take longer than half a minute
                for _ in range(30):
                    await here.channel.set_typing(f"telegram:{GROUP}", True)
                await here.channel.send_message(f"telegram:{GROUP}", "written")

    asyncio.run(body())


# --- troubles -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (BLOCKED, "does not let the bot write to telegram:1001: Forbidden: bot was blocked by the user"),
        (Answer.error(400, "Bad Request: chat not found"), "knows no chat telegram:1001 of this bot: somebody must"),
        (Answer.error(400, "Bad Request: group chat was upgraded", migrate_to_chat_id=-100), "become telegram:-100"),
        (Answer.error(400, "Bad Request: not enough rights"), "refuses this: Not enough rights"),
    ],
)
def test_what_cannot_be_sent_says_why(tmp_path: Path, answer: Answer, words: str) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            here.api.failing["sendMessage"] = [answer]
            with pytest.raises(Refused, match=words):
                await here.channel.send_message(JID, "x")
            assert here.channel.is_connected()
            await here.channel.send_message(JID, "x")
            assert _read(here) == ["x"]

    asyncio.run(body())


@pytest.mark.parametrize("answer", [Answer(), BAD_GATEWAY, NONSENSE, RESET, Answer(200, b"[]"), Answer(200, b"{}")])
def test_a_text_stays_queued_while_telegram_cannot_take_it(tmp_path: Path, answer: Answer) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            here.api.failing["sendMessage"] = [answer]
            with pytest.raises(NotConnected):
                await here.channel.send_message(JID, "x")
            await here.channel.send_message(JID, "x")
            assert _read(here) == ["x"]

    asyncio.run(body())


@pytest.mark.parametrize("chat", [PERSON, GROUP, FORUM])
def test_a_text_whose_confirmation_was_lost_is_not_sent_twice(tmp_path: Path, chat: int) -> None:
    jid = f"telegram:{chat}"

    async def body() -> None:
        async with world(tmp_path) as here:
            await here.hear(chat, {"text": "Hello"})
            for _ in range(30):  # a forum counts for itself, and the bot for all others together
                here.api.write(GROUP if chat == PERSON else PERSON, "elsewhere")
            await here.confirmed()
            here.api.failing["sendMessage"] = [RESET_AFTERWARDS]
            with pytest.raises(NotConnected):
                await here.channel.send_message(jid, "**Hello**")
            here.api.write(PERSON, "meanwhile")
            number = await here.channel.send_message(jid, "**Hello**")
            assert [str(one.number) for one in here.api.sent] == [number]
            assert here.api.sent[0].edits == 0
            await here.channel.send_message(jid, "**Hello**")  # this is another one
            assert _read(here) == ["Hello", "Hello"]

    asyncio.run(body())


def test_looking_for_a_lost_text_changes_no_other(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            await here.channel.send_message(f"telegram:{FORUM}/5", "first")
            here.api.failing["sendMessage"] = [RESET]
            with pytest.raises(NotConnected):
                await here.channel.send_message(f"telegram:{FORUM}/5", "lost")
            await here.channel.send_message(f"telegram:{FORUM}/6", "another topic's")
            await here.channel.send_message(f"telegram:{FORUM}/5", "lost")
            assert [(one.thread, one.text) for one in here.api.sent] == [
                (5, "first"),
                (6, "another topic's"),
                (5, "lost"),
            ]

    asyncio.run(body())


def test_the_same_text_twice_at_once_is_sent_twice(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            numbers = await asyncio.gather(*(here.channel.send_message(JID, "Ping") for _ in range(2)))
            assert numbers == [str(one.number) for one in here.api.sent]

    asyncio.run(body())


def test_a_text_stays_queued_while_the_token_is_not_accepted(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            here.api.failing["sendMessage"] = [Answer.error(401, "Unauthorized")]
            with pytest.raises(NotConnected, match="does not accept the bot's token"):
                await here.channel.send_message(JID, "x")

    asyncio.run(body())


def test_a_text_that_was_cut_off_while_being_sent_is_not_sent_twice(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            await here.channel.send_message(JID, "first")
            here.api.failing["sendMessage"] = [STALL_AFTERWARDS]
            cut_off = asyncio.create_task(here.channel.send_message(JID, "second"))
            await until(lambda: len(here.api.sent) == 2)
            cut_off.cancel()
            await asyncio.wait([cut_off])
            await here.channel.send_message(JID, "second")
            assert _read(here) == ["first", "second"]

    asyncio.run(body())


def test_a_long_text_goes_on_after_the_part_that_was_sent(tmp_path: Path) -> None:
    text = _words(1500)

    async def body() -> None:
        async with world(tmp_path) as here:
            await here.channel.send_message(JID, "before it")
            here.api.failing["sendMessage"] = [RESET_AFTERWARDS]
            with pytest.raises(NotConnected):
                await here.channel.send_message(JID, text)
            here.api.failing["sendMessage"] = [RESET]
            with pytest.raises(NotConnected):
                await here.channel.send_message(JID, text)
            await here.channel.disconnect()
            await here.channel.connect()
            await here.channel.send_message(JID, text)
            assert " ".join(_read(here)[1:]).split() == text.split()

    asyncio.run(body())


def test_a_doubtful_text_is_sent_again_where_nothing_is_known_of_its_chat(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            here.api.failing["sendMessage"] = [RESET_AFTERWARDS]
            with pytest.raises(NotConnected):
                await here.channel.send_message(JID, "rather twice than never")
            await here.channel.send_message(JID, "rather twice than never")
            assert len(_read(here)) == 2

    asyncio.run(body())


def test_a_text_that_telegram_never_takes_is_given_up_while_all_else_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "_MOST_FAILURES", 3)

    async def body() -> None:
        async with world(tmp_path) as here:
            here.api.broken["sendMessage"] = Answer()
            here.api.broken["getMe"] = Answer()
            for _ in range(5):
                with pytest.raises(NotConnected):
                    await here.channel.send_message(JID, "poison")
            del here.api.broken["getMe"]
            for _ in range(2):
                with pytest.raises(Refused, match="times to take this message"):
                    await here.channel.send_message(JID, "poison")

    asyncio.run(body())


def test_the_same_text_much_later_is_another_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "_SAME_TEXT", 0)

    async def body() -> None:
        async with world(tmp_path) as here:
            await here.hear(PERSON, {"text": "Hello"})
            here.api.failing["sendMessage"] = [RESET_AFTERWARDS]
            with pytest.raises(NotConnected):
                await here.channel.send_message(JID, "Done.")
            await here.channel.send_message(JID, "Done.")
            assert _read(here) == ["Done.", "Done."]

    asyncio.run(body())


def test_texts_of_one_chat_keep_their_order_and_wait_for_no_other_chat(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            here.api.failing["sendMessage"] = [Answer(how="stall")]
            stalled = asyncio.create_task(here.channel.send_message(JID, "stalled"))
            await until(lambda: "sendMessage" in here.api.calls)
            await here.channel.send_message(f"telegram:{GROUP}", "not held up")
            stalled.cancel()
            await asyncio.wait([stalled])
            await asyncio.gather(*(here.channel.send_message(JID, str(number)) for number in range(10)))
            assert _read(here) == ["not held up", *map(str, range(10))]

    asyncio.run(body())


# --- changes and files --------------------------------------------------------------------------------------


def test_a_message_can_be_changed(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            number = await here.channel.send_message(JID, "Working...")
            assert number
            for _ in range(2):  # that it is so already is no failure
                await here.channel.edit_message(JID, number, "**Still** working...")
            assert [(one.text, one.edits) for one in here.api.sent] == [("Still working...", 1)]
            here.api.failing["editMessageText"] = [BAD_MARKUP]
            await here.channel.edit_message(JID, number, "*x* " * 3000)
            assert here.api.sent[0].text.startswith("x x x")
            with pytest.raises(Refused, match="Message to edit not found"):
                await here.channel.edit_message(JID, "999", "x")

    asyncio.run(body())


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("a.png", PNG, "photo"),
        ("b.jpg", JPEG, "photo"),
        ("c.png", PNG + b"wrong dimensions", "document"),
        ("d.png", PNG + bytes(11 * 1024**2), "document"),
        ("e.png", b"no picture", "document"),
        ("ü\r\n\".txt", b"text\r\n--x\r\n", "document"),
    ],
)  # fmt: skip
def test_a_file_is_sent_as_a_photo_where_it_is_one(tmp_path: Path, name: str, data: bytes, kind: str) -> None:
    async def body() -> None:
        async with world(tmp_path / "data") as here:
            path = tmp_path / name
            path.write_bytes(data)
            await here.channel.send_file(JID, path, "**Look**")
            (sent,) = here.api.sent
            assert sent.file
            assert (sent.kind, sent.text, sent.file.data) == (kind, "Look", data)
            assert sent.entities == [{"type": "bold", "offset": 0, "length": 4}]

    asyncio.run(body())


def test_a_long_caption_follows_its_file_and_a_failure_between_repeats_neither(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            path = tmp_path / "a.png"
            path.write_bytes(PNG)
            here.api.failing["sendMessage"] = [RESET]
            with pytest.raises(NotConnected):
                await here.channel.send_file(JID, path, _words(300))
            await here.channel.send_file(JID, path, _words(300))
            assert [(one.kind, one.text) for one in here.api.sent] == [("photo", ""), ("message", _words(300))]

    asyncio.run(body())


def test_a_file_is_not_repeated_where_its_caption_is_refused(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            path = tmp_path / "a.png"
            path.write_bytes(PNG)
            here.api.broken["sendMessage"] = Answer.error(400, "Bad Request: not enough rights")
            for _ in range(5):
                with pytest.raises(Refused):
                    await here.channel.send_file(JID, path, _words(300))
            assert len(here.api.sent) == 1

    asyncio.run(body())


@pytest.mark.parametrize(("size", "words"), [(0, "is empty"), (50 * 1024**2 + 1, "larger than the 50 MB")])
def test_a_file_that_telegram_does_not_carry_is_refused(tmp_path: Path, size: int, words: str) -> None:
    async def body() -> None:
        async with world(tmp_path / "data") as here:
            path = tmp_path / "big"
            with path.open("wb") as file:
                file.truncate(size)
            with pytest.raises(Refused, match=words):
                await here.channel.send_file(JID, path, "")

    asyncio.run(body())


def test_what_is_no_address_of_a_chat_is_an_error(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            wrong: list[Any] = ["telegram:", "telegram:0", "telegram:1/0", "telegram:١", "telegram:1\n", "whatsapp:1"]
            for jid in wrong:
                assert not here.channel.owns_jid(jid)
                with pytest.raises(ValueError, match="is no chat of Telegram's"):
                    await here.channel.send_message(jid, "x")

    asyncio.run(body())
