"""What agents do in Telegram: in their own chat alone, in the main chat's case in others', and without the token."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest
from bot_api import BLOCKED, TOKEN, Answer
from telegram_world import FORUM, GROUP, PERSON, World, group, world

from pynchy.plugin import Attachment, Group, HostTool, ToolCall
from pynchy_plugin_telegram import TelegramPlugin
from pynchy_plugin_telegram.tools import TelegramTools

MAIN = f"telegram:{PERSON}"
FAMILY = f"telegram:{GROUP}"
PNG = Attachment("cat.png", "image/png", b"\x89PNG\r\n\x1a\n cat")


def _tools(here: World) -> dict[str, HostTool]:
    return {one.name: one for one in TelegramTools(lambda: here.channel).all()}


async def _call(
    here: World, name: str, caller: str | Group = FAMILY, file: Attachment | None = None, **arguments: Any
) -> str:
    """A call as Pynchy makes it: arguments that do not fit the schema never get there."""
    tool = _tools(here)[name]
    fastjsonschema.compile(dict(tool.input_schema))(arguments)
    return await tool.handler(arguments, ToolCall(here.groups[caller] if isinstance(caller, str) else caller, file))


def _families(tmp_path: Path) -> Any:
    return world(tmp_path, FAMILY, MAIN)


def test_the_plugin_offers_its_tools_before_there_is_a_channel() -> None:
    tools = {one.name: one for one in TelegramPlugin().tools()}
    assert set(tools) == {"send_photo", "send_document", "send_poll", "edit_message", "react", "chat_description"}
    assert {one.chats for one in tools.values()} == {"telegram:"}
    assert tools["send_photo"].file == tools["send_document"].file == "path"
    assert all(one.input_schema["additionalProperties"] is False for one in tools.values())
    with pytest.raises(ValueError, match="only the service, `pynchy run`, does that"):
        asyncio.run(tools["chat_description"].handler({}, ToolCall(group(MAIN))))  # type: ignore[arg-type]


def test_a_picture_and_a_document_are_sent_to_the_callers_chat(tmp_path: Path) -> None:
    async def body() -> None:
        async with _families(tmp_path) as here:
            said = await _call(here, "send_photo", file=PNG, path="cat.png", caption="A cat?")
            await _call(here, "edit_message", message=str(here.api.sent[0].number), text="A **cat**")
            await _call(here, "send_document", file=PNG, path="cat.png")
            photo, document = here.api.sent
            assert said == f"Sent as message {photo.number}."
            assert (photo.chat, photo.kind, photo.text) == (GROUP, "photo", "A cat")
            assert (document.chat, document.kind, document.text) == (GROUP, "document", "")
            assert document.file
            assert (document.file.name, document.file.data) == ("cat.png", PNG.data)
            with pytest.raises(ValueError, match="there is no file"):
                await _call(here, "send_photo", path="cat.png")

    asyncio.run(body())


def test_a_poll_a_change_and_a_reaction(tmp_path: Path) -> None:
    async def body() -> None:
        async with _families(tmp_path) as here:
            asked = await here.hear(GROUP, {"text": "Tea?"})
            await _call(here, "send_poll", question="Tea?", options=["Yes", "No"], multiple=True, anonymous=False)
            poll = here.api.sent[0]
            assert [one["text"] for one in poll.fields["options"]] == ["Yes", "No"]
            assert (poll.fields["allows_multiple_answers"], poll.fields["is_anonymous"]) == (True, False)
            number = await here.channel.send_message(FAMILY, "Tea at 4")
            assert await _call(here, "edit_message", message=number, text="Tea at **5**") == "Changed."
            assert here.api.sent[1].text == "Tea at 5"
            await _call(here, "react", message=asked.id, emoji="❤\ufe0f")
            reaction = here.api.reactions[0]
            assert (reaction["message_id"], json.loads(reaction["reaction"])[0]["emoji"]) == (asked.id, "❤")
            with pytest.raises(ValueError, match="takes only some emoji as reactions"):
                await _call(here, "react", message=asked.id, emoji="🦖")

    asyncio.run(body())


def test_the_description_of_a_chat(tmp_path: Path) -> None:
    async def body() -> None:
        async with _families(tmp_path) as here:
            pinned = {"message_id": 1, "date": 1, "chat": {"id": GROUP, "type": "group"}, "text": "Rules"}
            here.api.chat(GROUP, description="We", pinned_message=pinned)
            description = await _call(here, "chat_description")
            assert description == "Title: Group 5005\nMembers: 3\nDescription: We\nPinned: Rules"

    asyncio.run(body())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("send_poll", {"question": "x" * 301, "options": ["a", "b"]}),
        ("send_poll", {"question": "x", "options": ["a"]}),
        ("send_poll", {"question": "x", "options": [str(number) for number in range(11)]}),
        ("send_poll", {"question": "x", "options": ["a", "x" * 101]}),
        ("edit_message", {"message": "-1", "text": "x"}),
        ("edit_message", {"message": "1", "text": "x" * 4097}),
        ("react", {"message": "1", "emoji": ""}),
        ("chat_description", {"token": True}),
        ("chat_description", {"chat": "telegram:1 or any"}),
        ("send_photo", {}),
    ],
)
def test_what_does_not_fit_gets_nowhere(tmp_path: Path, name: str, arguments: dict[str, Any]) -> None:
    async def body() -> None:
        async with world(tmp_path, FAMILY, connect=False) as here:
            with pytest.raises(fastjsonschema.JsonSchemaException):
                await _call(here, name, **arguments)

    asyncio.run(body())


def test_the_main_chat_alone_names_another_and_only_a_group(tmp_path: Path) -> None:
    async def body() -> None:
        async with _families(tmp_path) as here:
            main = replace(here.groups[MAIN], is_main=True)
            await _call(here, "send_poll", main, question="Tea?", options=["Yes", "No"], chat=FAMILY)
            assert here.api.sent[0].chat == GROUP
            with pytest.raises(PermissionError, match="only the main chat may name another"):
                await _call(here, "chat_description", chat=MAIN)
            with pytest.raises(ValueError, match="that chat is no group"):
                await _call(here, "chat_description", main, chat="telegram:9")
            terminal = replace(main, jid="terminal:main")
            with pytest.raises(ValueError, match="this is no Telegram chat: name one by `chat`"):
                await _call(here, "chat_description", terminal)
            with pytest.raises(ValueError, match=r"this is no Telegram chat$"):
                await _call(here, "chat_description", replace(terminal, is_main=False))
            assert "Group 5005" in await _call(here, "chat_description", terminal, chat=FAMILY)

    asyncio.run(body())


def test_a_topics_agent_reaches_no_message_of_another_topic(tmp_path: Path) -> None:
    mine, other = f"telegram:{FORUM}/5", f"telegram:{FORUM}/6"

    async def body() -> None:
        async with world(tmp_path, mine, other) as here:
            number = await here.channel.send_message(other, "not yours")
            own = await here.channel.send_message(mine, "yours")
            tries: list[tuple[str, dict[str, Any]]] = [("edit_message", {"text": "x"}), ("react", {"emoji": "👍"})]
            for name, more in tries:
                with pytest.raises(PermissionError, match=f"no message {number} of this topic is known"):
                    await _call(here, name, mine, message=number, **more)
                await _call(here, name, mine, message=own, **more)
            club = {"id": FORUM, "type": "supergroup", "title": "Club"}
            pinned = {"message_id": 1, "date": 1, "chat": club, "text": "secret", "is_topic_message": True}
            here.api.chat(FORUM, pinned_message={**pinned, "message_thread_id": 6})
            assert "secret" not in await _call(here, "chat_description", mine)
            assert "secret" in await _call(here, "chat_description", other)

    asyncio.run(body())


def test_errors_say_what_is_wrong_and_nothing_of_the_token(tmp_path: Path) -> None:
    async def body() -> None:
        async with _families(tmp_path) as here:
            troubles = {
                "does not let the bot write": BLOCKED,
                r"refuses this: \[the token\]": Answer.error(400, f"Bad Request: {TOKEN}"),
                "does not accept the bot's token": Answer.error(401, "Unauthorized"),
                "cannot be reached": Answer(how="reset"),
            }
            for words, answer in troubles.items():
                here.api.failing["sendPoll"] = [answer]
                with pytest.raises(ValueError, match=words) as raised:
                    await _call(here, "send_poll", question="x", options=["a", "b"])
                assert TOKEN not in str(raised.getrepr(style="long", chain=True))
            await here.channel.disconnect()
            with pytest.raises(ValueError, match="the bot is not connected to Telegram"):
                await _call(here, "send_poll", question="x", options=["a", "b"])

    asyncio.run(body())
