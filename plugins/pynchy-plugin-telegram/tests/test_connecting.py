"""A connection that says what is wrong, comes back by itself, and keeps the token to itself."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from bot_api import BAD_GATEWAY, TOKEN, Answer, elsewhere, until
from telegram_world import GROUP, PERSON, world

from pynchy.plugin import NotConnected
from pynchy_plugin_telegram import TelegramPlugin, polling
from pynchy_plugin_telegram.bot import NeedsMending


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("", "there is no bot token: put TELEGRAM_BOT_TOKEN"),
        ("my token", "is no bot token: copy what @BotFather shows"),
        (f"{TOKEN}/../x", "is no bot token"),
        ("123456:AnotherTokenThatNobodyKnows", "does not accept the bot's token"),
    ],
)
def test_a_token_that_is_none_is_an_error_that_says_what_to_do(tmp_path: Path, token: str, words: str) -> None:
    async def body() -> None:
        async with world(tmp_path, connect=False) as here:
            channel = here.new_channel(token)
            with pytest.raises(NeedsMending, match=words) as raised:
                await channel.connect()
            assert not token or token not in repr(raised.getrepr(style="long"))
            assert not channel.is_connected()
            await channel.disconnect()

    asyncio.run(body())


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [("owner", "@ada", "PYNCHY_TELEGRAM_OWNER must be numbers"), ("api", "loopback", "PYNCHY_TELEGRAM_API is no addr")],
)
def test_a_setting_that_is_wrong_is_an_error_that_says_how_it_should_be(
    tmp_path: Path, setting: str, value: str, words: str
) -> None:
    async def body() -> None:
        async with world(tmp_path, connect=False, **{setting: value}) as here:
            with pytest.raises(NeedsMending, match=words):
                await here.channel.connect()

    asyncio.run(body())


def test_the_token_may_be_a_setting_of_the_plugin_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with world(tmp_path, connect=False, token=TOKEN) as here:
            context = here.channel.context
            channel = TelegramPlugin().create_channel(context)
            await channel.connect()
            await channel.disconnect()
            monkeypatch.setenv("TELEGRAM_BOT_TOKEN", "wrong")
            with pytest.raises(NeedsMending):
                await TelegramPlugin().create_channel(context).connect()

    asyncio.run(body())


def test_a_webhook_is_an_error_and_is_not_taken_away(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, connect=False) as here:
            here.api.webhook = "https://example.org"
            with pytest.raises(NeedsMending, match="the bot has a webhook"):
                await here.channel.connect()
            assert here.api.webhook

    asyncio.run(body())


def test_another_program_with_the_same_bot_is_an_error_that_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            async with elsewhere(here.api):
                await until(lambda: not here.channel.is_connected())
                await here.channel.disconnect()
                with pytest.raises(NeedsMending, match="another program receives this bot's messages"):
                    await here.channel.connect()
                await here.channel.disconnect()
            await here.channel.connect()
            here.api.write(PERSON, "Only us now")
            await here.arrived()

    asyncio.run(body())
    assert "another program receives this bot's messages" in caplog.text


def test_it_is_not_connected_while_telegram_is_gone_and_comes_back_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(polling, "_FIRST_PAUSE", 0.05)

    async def body() -> None:
        async with world(tmp_path) as here:
            await here.api.stop()
            await until(lambda: not here.channel.is_connected())
            with pytest.raises(NotConnected, match="Telegram cannot be reached"):
                await here.channel.send_message(f"telegram:{PERSON}", "lost?")
            here.api.write(PERSON, "while it was away")
            await here.api.start()
            await here.arrived()
            await until(here.channel.is_connected)

    asyncio.run(body())
    warnings = [one for one in caplog.records if "no messages from Telegram" in one.getMessage()]
    assert len(warnings) == 1


def test_a_connection_to_nobody_is_an_error_and_leaves_nothing_open(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, connect=False) as here:
            await here.api.stop()
            with pytest.raises(NotConnected, match="Telegram cannot be reached"):
                await here.channel.connect()
            await here.channel.disconnect()
            with pytest.raises(NotConnected):
                await here.channel.send_message(f"telegram:{PERSON}", "x")

    asyncio.run(body())


@pytest.mark.parametrize(
    "answer",
    [
        Answer(),
        BAD_GATEWAY,
        Answer(200, b""),
        Answer(200, b"{}"),
        Answer(200, b'{"ok":true,"result":{"a":1}}'),
        Answer.error(429, "Too Many Requests: retry after 1", retry_after=1),
        Answer.error(401, "Unauthorized"),
        Answer(how="reset"),
    ],
)
def test_an_odd_answer_to_a_poll_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer) -> None:
    monkeypatch.setattr(polling, "_FIRST_PAUSE", 0.05)

    async def body() -> None:
        async with world(tmp_path) as here:
            here.api.failing["getUpdates"] = [answer, answer]
            for number in range(3):
                here.api.write(PERSON, str(number))
            await here.confirmed()
            assert [one.content for one in here.messages] == ["0", "1", "2"]
            assert here.channel.is_connected()

    asyncio.run(body())


def test_it_tells_what_the_groups_chats_are_called(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, f"telegram:{GROUP}", f"telegram:{PERSON}", "telegram:666", "terminal:main") as here:
            await here.channel.sync_metadata()
            assert here.names == {f"telegram:{GROUP}": "Group 5005", f"telegram:{PERSON}": "Person 1001"}
            await here.channel.disconnect()
            await here.channel.sync_metadata()

    asyncio.run(body())


def test_the_token_is_in_no_line_of_the_log_and_in_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "telegram"):
        caplog.set_level(logging.DEBUG, name)
    errors: list[str] = []

    async def body() -> None:
        async with world(tmp_path, f"telegram:{PERSON}") as here:
            here.api.voice(PERSON, b"sound")
            here.api.update({"message": {"message_id": 1}})
            await here.arrived()
            for answer in (Answer(), Answer(200, b"no JSON"), Answer.error(403, f"Forbidden: {TOKEN}")):
                here.api.failing["sendMessage"] = [answer]
                with pytest.raises((NotConnected, Exception)) as raised:
                    await here.channel.send_message(f"telegram:{PERSON}", "x")
                errors.append(str(raised.getrepr(style="long", chain=True)) + repr(raised.value))
            here.api.broken["getUpdates"] = Answer.error(401, "Unauthorized")
            here.api.write(PERSON, "so that it polls")
            await until(lambda: not here.channel.is_connected())
            await here.channel.disconnect()
            with pytest.raises(NeedsMending) as refused:
                await here.channel.connect()
            errors.append(str(refused.getrepr(style="long", chain=True)))
            errors.append(repr(here.channel))

    asyncio.run(body())
    assert "HTTP Request" in caplog.text
    assert "[the token]" in caplog.text
    assert TOKEN not in caplog.text
    for error in errors:
        assert TOKEN not in error
