"""What people write in Telegram reaches Pynchy: each message, in words, once it can be kept."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from bot_api import ADA, BOT, NONSENSE, RESET, Answer, until
from telegram_world import FORUM, GROUP, PERSON, world

from pynchy.plugin import NewMessage
from pynchy_plugin_telegram import files, polling

AT = 1_900_000_000
OTHER_BOT = {"id": 77, "is_bot": True, "first_name": "Bot"}
CHANNEL = {"id": -1009, "type": "channel", "title": "News"}


def test_a_message_says_who_wrote_it_where_and_when(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, owner="5, 1001") as here:
            number = here.api.write(GROUP, "Good morning", date=AT)
            here.api.write(GROUP, "And me?", {"id": 6, "is_bot": False, "first_name": "Eve\u202e\n"})
            mine, hers = await here.arrived(2)
        assert mine == NewMessage(
            id=str(number),
            chat_jid=f"telegram:{GROUP}",
            sender="1001",
            sender_name="Ada Lovelace",
            content="Good morning",
            timestamp=datetime.fromtimestamp(AT, UTC),
            is_from_me=True,
        )
        assert (hers.sender, hers.sender_name, hers.is_from_me) == ("6", "Eve", False)
        assert here.names == {f"telegram:{GROUP}": "Group 5005"}

    asyncio.run(body())


def test_a_message_is_confirmed_only_once_it_is_stored(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            gate = asyncio.Event()

            async def store(message: NewMessage) -> None:
                await gate.wait()

            here.storing = store
            here.api.write(PERSON, "Keep this")
            await until(lambda: here.offers)
            assert here.api.waiting == 1
            gate.set()
            await here.confirmed()
            assert [one.content for one in here.messages] == ["Keep this"]

    asyncio.run(body())


def test_a_message_that_was_not_stored_comes_again_and_none_overtakes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "_FIRST_PAUSE", 0.01)

    async def body() -> None:
        async with world(tmp_path) as here:

            async def store(message: NewMessage) -> None:
                if len(here.offers) < 4:
                    raise OSError("the disk is full")

            here.storing = store
            for text in ("one", "two", "three"):
                here.api.write(PERSON, text)
            await here.confirmed()
            assert [one.content for one in here.offers] == ["one"] * 4 + ["two", "three"]
            assert len({one.id for one in here.offers}) == 3

    asyncio.run(body())


def test_a_message_that_pynchy_never_takes_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "_FIRST_PAUSE", 0.01)

    async def body() -> None:
        async with world(tmp_path) as here:

            async def store(message: NewMessage) -> None:
                if message.content == "bad":
                    raise ValueError("no such message")

            here.storing = store
            here.api.write(PERSON, "bad")
            here.api.write(PERSON, "good")
            await here.confirmed()
            assert [one.content for one in here.messages] == ["good"]
            assert here.channel.is_connected()

    asyncio.run(body())


@pytest.mark.parametrize(
    "update",
    [
        {"message": None},
        {"message": 7},
        {"message": {}},
        {"message": {"message_id": 1, "date": "then", "chat": {"id": "x", "type": 5}}},
        {"message": {"message_id": 1, "date": 10**30, "chat": {"id": 5, "type": "private"}, "text": "x"}},
        {"message": {"message_id": [], "date": 1, "chat": {"id": 5, "type": "private"}, "text": ["x"]}},
        {"message": {"message_id": 1, "date": 1, "chat": {"id": 5, "type": "private"}, "photo": [1]}},
        {"message": {"message_id": 1, "date": 1, "chat": {"id": 5, "type": "private"}, "text": "x", "entities": 1}},
        {"unheard_of": {"message_id": 1}},
        {"my_chat_member": {"chat": 1}},
    ],
)
def test_an_update_that_nobody_can_read_holds_up_nothing(tmp_path: Path, update: dict[str, Any]) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            here.api.update({**update, "message_kind": "x"} if "unheard_of" not in update else {**update, "message": 1})
            here.api.write(PERSON, "after it")
            await until(lambda: any(one.content == "after it" for one in here.messages))
            await here.confirmed()

    asyncio.run(body())


def test_updates_without_a_number_do_not_make_it_ask_without_end(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            here.api.broken["getUpdates"] = Answer(200, b'{"ok": true, "result": [{"message": {}}, 5]}')
            await asyncio.sleep(0.5)
            assert here.api.calls.count("getUpdates") < 5
            del here.api.broken["getUpdates"]
            here.api.write(PERSON, "better now")
            await here.arrived()

    asyncio.run(body())


# --- in words -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "content"),
    [
        ({"text": "@pynchy_test_bot and @Pynchy: /do@bot it"}, "@pynchy_test_bot and @Pynchy: /do@bot it"),
        ({"text": "half a \ud83d character"}, "half a \ufffd character"),
        (
            {
                "text": "😀 see here, and https://b.example",
                "entities": [
                    {"type": "text_link", "offset": 3, "length": 8, "url": "https://a.example/x"},
                    {"type": "bold", "offset": 3, "length": 3},
                    {"type": "text_link", "offset": 17, "length": 17, "url": "https://b.example/"},
                ],
            },
            "😀 see here (https://a.example/x), and https://b.example",
        ),
        ({"sticker": {"file_id": "s", "file_unique_id": "s", "width": 1, "height": 1, "is_animated": False,
                      "is_video": False, "type": "regular", "emoji": "👍"}}, "👍"),
        ({"location": {"latitude": 52.5, "longitude": 13.25}}, "[Location: 52.5, 13.25]"),
        ({"venue": {"location": {"latitude": 1.5, "longitude": 2.5}, "title": "Café", "address": "1\nStreet"}},
         "[Place: Café, 1 Street, 1.5, 2.5]"),
        ({"contact": {"phone_number": "+49 1", "first_name": "Bo", "last_name": "X"}}, "[Contact: Bo X, +49 1]"),
        ({"poll": {"id": "1", "question": "Tea?", "options": [
            {"text": "Yes", "voter_count": 0, "persistent_id": "0"},
            {"text": "No", "voter_count": 0, "persistent_id": "1"}],
            "total_voter_count": 0, "is_closed": False, "is_anonymous": True, "type": "regular",
            "allows_multiple_answers": False, "allows_revoting": True, "members_only": False}},
         "[Poll: Tea?]\n- Yes\n- No"),
        ({"dice": {"emoji": "🎲", "value": 6}}, "🎲 6"),
        ({"story": {"chat": CHANNEL, "id": 1}}, "[A story, which cannot be read here]"),
        (
            {"text": "/clear", "forward_origin": {"type": "hidden_user", "date": AT, "sender_user_name": "Eve\n]x"}},
            "[Forwarded from Eve ]x]\n/clear",
        ),
        ({"text": "x", "forward_origin": {"type": "user", "date": AT, "sender_user": ADA}},
         "[Forwarded from Ada Lovelace]\nx"),
        ({"text": "x", "forward_origin": {"type": "channel", "date": AT, "chat": CHANNEL, "message_id": 1}},
         "[Forwarded from News]\nx"),
        ({"text": "x", "forward_origin": {"type": "chat", "date": AT, "sender_chat": CHANNEL}},
         "[Forwarded from News]\nx"),
    ],
)  # fmt: skip
def test_what_was_sent_arrives_in_words(tmp_path: Path, fields: dict[str, Any], content: str) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            assert (await here.hear(PERSON, fields)).content == content

    asyncio.run(body())


def test_a_reply_names_the_message_and_quotes_it(tmp_path: Path) -> None:
    def original(**fields: Any) -> dict[str, Any]:
        return {"message_id": 7, "date": AT, "chat": {"id": PERSON, "type": "private"}, "from": BOT, **fields}

    async def body() -> None:
        async with world(tmp_path) as here:
            whole = await here.hear(PERSON, {"text": "Why?", "reply_to_message": original(text="Because of that.")})
            assert (whole.reply_to, whole.quote) == ("7", "Because of that.")
            part = await here.hear(
                PERSON,
                {
                    "text": "What?",
                    "reply_to_message": original(text="Because of that."),
                    "quote": {"text": "of that", "position": 8, "is_manual": True},
                },
            )
            assert (part.reply_to, part.quote) == ("7", "of that")
            photo = original(photo=[{**here.api.file(b"x"), "width": 1, "height": 1}], caption="Us")
            assert (await here.hear(PERSON, {"text": "Nice", "reply_to_message": photo})).quote == "Us"
            del photo["caption"]
            assert (await here.hear(PERSON, {"text": "Nice", "reply_to_message": photo})).quote == "[photo-7.jpg]"

    asyncio.run(body())


def test_an_edited_message_is_a_new_one_that_names_the_old(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            first = await here.hear(PERSON, {"text": "Dinner at 7"})
            edit = {"message_id": int(first.id), "date": AT, "edit_date": AT + 60}
            again = await here.hear(PERSON, {"text": "Dinner at 8", **edit}, kind="edited_message")
            assert (again.id, again.edits, again.content) == (f"{first.id}+{AT + 60}", first.id, "Dinner at 8")
            assert again.timestamp == datetime.fromtimestamp(AT + 60, UTC)
            here.api.post(PERSON, {"location": {"latitude": 1, "longitude": 2}, **edit}, kind="edited_message")
            here.api.post(PERSON, {"text": "/clear", **edit, "edit_date": AT + 90}, kind="edited_message")
            await here.hear(PERSON, {"text": "the end"})
            assert [one.content for one in here.messages] == ["Dinner at 7", "Dinner at 8", "the end"]

    asyncio.run(body())


# --- who and where ------------------------------------------------------------------------------------------


def test_what_bots_write_is_not_heard(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            here.api.write(GROUP, "I am a program", OTHER_BOT)
            here.api.write(GROUP, "I am this bot", BOT)
            assert (await here.hear(GROUP, {"text": "I am not"})).content == "I am not"
            await here.confirmed()
            assert len(here.offers) == 1

    asyncio.run(body())


def test_who_writes_for_a_chat_is_that_chat_and_never_the_owner(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, owner=f"1087968824,{PERSON}") as here:
            anonymous = {"id": 1087968824, "is_bot": True, "first_name": "Group"}
            chat = here.api.chat(FORUM)
            said = await here.hear(
                FORUM, {"text": "x", "sender_chat": chat, "author_signature": "Boss"}, sender=anonymous
            )
            assert (said.sender, said.sender_name, said.is_from_me) == (str(FORUM), "Club (Boss)", False)
            here.api.chat(-1009, type="channel", title="News")
            post = await here.hear(-1009, {"text": "News!", "sender_chat": CHANNEL}, kind="channel_post")
            assert (post.chat_jid, post.sender, post.sender_name) == ("telegram:-1009", "-1009", "News")
            edit = {"message_id": int(post.id), "text": "News?", "edit_date": AT}
            assert (await here.hear(-1009, edit, kind="edited_channel_post")).edits == post.id

    asyncio.run(body())


def test_a_topic_is_a_chat_of_its_own_with_the_name_it_has_now(tmp_path: Path) -> None:
    topic = {"message_thread_id": 5, "is_topic_message": True}
    created = {"name": "Garden", "icon_color": 1}
    root = {"message_id": 5, "date": AT, "chat": {"id": FORUM, "type": "supergroup"}, "forum_topic_created": created}

    async def body() -> None:
        async with world(tmp_path) as here:
            said = await here.hear(FORUM, {"text": "Tulips", "reply_to_message": root, **topic})
            assert (said.chat_jid, said.reply_to, said.quote) == (f"telegram:{FORUM}/5", None, None)
            assert here.names == {f"telegram:{FORUM}/5": "Club / Garden"}
            here.api.post(FORUM, {"forum_topic_edited": {"name": "Flowers"}, **topic})
            await until(lambda: here.names[f"telegram:{FORUM}/5"] == "Club / Flowers")
            general = await here.hear(FORUM, {"text": "All", "message_thread_id": 3})
            assert general.chat_jid == f"telegram:{FORUM}"
        async with world(tmp_path) as later:  # each message of a topic still tells its first name
            await later.hear(FORUM, {"text": "Roses", "reply_to_message": root, **topic})
            await later.hear(FORUM, {"text": "Roses", "message_thread_id": 6, "is_topic_message": True})
            assert later.names == {f"telegram:{FORUM}/5": "Club / Flowers", f"telegram:{FORUM}/6": "Club / topic 6"}

    asyncio.run(body())


def test_a_chat_is_known_once_the_bot_is_added_to_it(tmp_path: Path) -> None:
    def member(status: str) -> dict[str, Any]:
        return {"user": BOT, "status": status, **({"until_date": 0} if status == "kicked" else {})}

    async def body() -> None:
        async with world(tmp_path) as here:
            change = {"chat": here.api.chat(GROUP), "from": ADA, "date": AT, "old_chat_member": member("left")}
            here.api.update({"my_chat_member": {**change, "new_chat_member": member("member")}})
            await until(lambda: here.names)
            assert here.names == {f"telegram:{GROUP}": "Group 5005"}

    asyncio.run(body())


def test_the_log_says_what_to_do_about_a_group_that_has_moved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            here.api.post(GROUP, {"migrate_to_chat_id": -10099})
            await here.confirmed()
            assert not here.offers

    asyncio.run(body())
    assert "`pynchy groups add telegram:-10099 FOLDER`" in caplog.text


# --- files --------------------------------------------------------------------------------------------------


def _media(**more: Any) -> dict[str, Any]:
    return {"duration": 1, **more}


@pytest.mark.parametrize(
    ("kind", "more", "name", "media_type"),
    [
        ("voice", _media(mime_type="audio/ogg"), "voice-{}.ogg", "audio/ogg"),
        ("voice", _media(), "voice-{}.ogg", "audio/ogg"),
        ("audio", _media(file_name="Song\n.flac"), "Song .flac", "audio/x-flac|audio/flac"),
        ("video", _media(width=1, height=1), "video-{}.mp4", "video/mp4"),
        ("video_note", _media(length=1), "video-note-{}.mp4", "video/mp4"),
        ("document", {"file_name": "plan.pdf"}, "plan.pdf", "application/pdf"),
        ("document", {}, "document-{}", "application/octet-stream"),
        ("document", {"file_name": "x.txt", "mime_type": "text/x-odd"}, "x.txt", "text/x-odd"),
    ],
)
def test_a_file_arrives_with_its_message(
    tmp_path: Path, kind: str, more: dict[str, Any], name: str, media_type: str
) -> None:
    async def body() -> None:
        async with world(tmp_path, f"telegram:{PERSON}") as here:
            fields = {kind: {**here.api.file(b"\0data\r\n"), **more}, "caption": "Look"}
            said = await here.hear(PERSON, fields)
            (file,) = said.attachments
            assert (said.content, file.data) == ("Look", b"\0data\r\n")
            assert file.name == name.format(said.id)
            assert file.media_type in media_type.split("|")

    asyncio.run(body())


def test_of_a_photo_the_largest_arrives_and_of_an_animation_itself(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, f"telegram:{PERSON}") as here:
            sizes = [{**here.api.file(data), "width": side, "height": side} for data, side in ((b"s", 9), (b"L", 90))]
            (photo,) = (await here.hear(PERSON, {"photo": sizes[::-1]})).attachments
            assert (photo.data, photo.media_type) == (b"L", "image/jpeg")
            moving = {**here.api.file(b"gif"), "width": 1, "height": 1, "duration": 1, "mime_type": "video/mp4"}
            (animation,) = (await here.hear(PERSON, {"animation": moving, "document": moving})).attachments
            assert (animation.data, animation.media_type) == (b"gif", "video/mp4")

    asyncio.run(body())


def test_each_picture_of_an_album_is_a_message(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, f"telegram:{PERSON}") as here:
            for data in (b"1", b"2"):
                photo = [{**here.api.file(data), "width": 1, "height": 1}]
                here.api.post(PERSON, {"photo": photo, "media_group_id": "m"})
            assert [one.attachments[0].data for one in await here.arrived(2)] == [b"1", b"2"]

    asyncio.run(body())


def test_a_file_that_is_too_large_is_named_and_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with world(tmp_path, f"telegram:{PERSON}") as here:
            document = {**here.api.file(b"x"), "file_name": "film.mkv", "file_size": 21 * 1024**2}
            said = await here.hear(PERSON, {"document": document, "caption": "Watch"})
            assert (said.attachments[0].name, said.attachments[0].data) == ("film.mkv", None)
            assert said.content == "Watch\n[film.mkv is larger than 20 MB and was not fetched]"
            monkeypatch.setattr(files, "_MOST", 1000)
            liar = {**here.api.file(b"x" * 2000), "file_name": "a", "file_size": 5}
            assert (await here.hear(PERSON, {"document": liar})).attachments[0].data is None
            assert "getFile" in here.api.calls
            assert here.api.calls.count("getFile") == 1

    asyncio.run(body())


@pytest.mark.parametrize(
    ("at", "trouble"),
    [
        ("getFile", Answer()),
        ("getFile", RESET),
        ("getFile", NONSENSE),
        ("getFile", Answer(200, b"{}")),
        ("file", Answer()),
        ("file", RESET),
    ],
)
def test_a_file_is_fetched_again_after_a_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, trouble: Answer
) -> None:
    monkeypatch.setattr(files, "_PAUSE", 0.01)

    async def body() -> None:
        async with world(tmp_path, f"telegram:{PERSON}") as here:
            here.api.failing[at] = [trouble, trouble]
            here.api.voice(PERSON, b"sound")
            here.api.write(PERSON, "after it")
            (file,) = (await here.arrived(2))[0].attachments
            assert file.data == b"sound"

    asyncio.run(body())


@pytest.mark.parametrize("at", ["getFile", "file"])
def test_a_file_that_does_not_come_holds_up_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    monkeypatch.setattr(files, "_PAUSE", 0.01)
    monkeypatch.setattr(files, "_WITHIN", 0.5)

    async def body() -> None:
        async with world(tmp_path, f"telegram:{PERSON}") as here:
            here.api.broken[at] = Answer(how="stall")
            here.api.voice(PERSON, b"sound")
            (said,) = await here.arrived()
            assert said.content == f"[voice-{said.id}.ogg could not be fetched from Telegram]"
            assert said.attachments[0].data is None

    asyncio.run(body())


def test_the_files_of_strangers_are_not_fetched(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as here:
            here.api.voice(PERSON, b"sound")
            (said,) = await here.arrived()
            assert (said.attachments[0].name, said.attachments[0].data) == (f"voice-{said.id}.ogg", None)
            assert "getFile" not in here.api.calls

    asyncio.run(body())
