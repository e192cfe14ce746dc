"""What comes in: messages, their files, and the names of chats."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from channel_bench import CHAT, GROUP_CHAT, Bench, connected, run, until
from whatsapp_protos import e2e, events
from whatsapp_side import ADA, GROUP, WhatsAppSide, jid, message_event

from pynchy.plugin import NewMessage


def test_a_voice_note_of_a_registered_chat_comes_with_its_sound_and_leaves_no_file(tmp_path: Path) -> None:
    async def test() -> None:
        async with connected(tmp_path) as bench:
            bench.side.voice(b"OggS" + bytes(300_000))
            await until(lambda: bench.came, "the voice note has not come")
            (attachment,) = bench.came[0].attachments
            assert (attachment.name, attachment.media_type) == ("voice-note.ogg", "audio/ogg")
            assert bench.files == [b"OggS" + bytes(300_000)]
            await until(lambda: not list((bench.side.data / "media").iterdir()), "the file is still there")

    run(test)


def test_a_file_of_a_chat_that_nobody_has_registered_is_not_fetched(tmp_path: Path) -> None:
    async def test() -> None:
        async with connected(tmp_path) as bench:
            bench.groups.clear()
            bench.side.voice(b"OggS")
            await until(lambda: bench.came, "the message has not come")
            assert not bench.came[0].attachments
            assert bench.texts == ["[voice-note.ogg: not fetched, for this chat was not registered]"]

    run(test)


def test_a_file_that_is_gone_or_too_large_is_named_and_the_message_comes(tmp_path: Path) -> None:
    async def test() -> None:
        async with connected(tmp_path) as bench:
            gone = e2e.ImageMessage(mimetype="image/jpeg", caption="Look", directPath="/gone", fileLength=5)
            bench.side.deliver(message_event(e2e.Message(imageMessage=gone)))
            large = e2e.VideoMessage(mimetype="video/mp4", directPath="/large", fileLength=2**40)
            bench.side.deliver(message_event(e2e.Message(videoMessage=large)))
            await until(lambda: len(bench.came) == 2, "the messages have not come")
            assert bench.texts == [
                "Look\n[image.jpg: it could not be fetched]",
                "[video.mp4: not fetched, for it is too large]",
            ]

    run(test)


def test_names_of_chats_are_kept_current(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            side.groups = [(GROUP, "Neighbours"), ("not a number", "Odd")]
            side.names = {ADA: "Ada Lovelace"}
            bench = Bench(side)
            await bench.channel.connect()
            await bench.channel.sync_metadata()
            assert bench.names == {GROUP_CHAT: "Neighbours"}
            renamed = events.GroupInfoEvent(JID=jid(GROUP, "g.us"), Name=events.GroupName(Name="Friends\n"))
            side.happen(renamed)
            await until(lambda: bench.names[GROUP_CHAT] == "Friends", "the new name has not come")
            joined = events.GroupInfo(JID=jid("42", "g.us"), GroupName=events.GroupName(Name="New"))
            side.happen(events.JoinedGroup(GroupInfo=joined))
            await until(lambda: bench.names.get("whatsapp:42@g.us") == "New", "the new group has not come")
            await side.write("Hi")
            await until(lambda: bench.names.get(CHAT) == "Ada Lovelace", "the person's name has not come")
            await bench.channel.disconnect()

    run(test)


def test_one_chat_whose_messages_cannot_be_stored_does_not_hold_up_another(tmp_path: Path) -> None:
    async def store(message: NewMessage) -> None:
        if message.chat_jid == CHAT:
            raise OSError("no space left on device")

    async def test() -> None:
        async with connected(tmp_path) as bench:
            bench.storing = store
            await bench.side.write("stuck")
            bench.side.deliver(message_event(e2e.Message(conversation="through"), chat=jid(GROUP, "g.us"), group=True))
            await until(lambda: bench.texts == ["through"], "the other chat waits")
            bench.storing = lambda message: asyncio.sleep(0)
            await until(lambda: bench.texts == ["through", "stuck"], "the first message is lost")

    run(test)


def test_a_message_that_is_refused_each_time_is_set_aside_and_the_next_one_comes(tmp_path: Path) -> None:
    async def store(message: NewMessage) -> None:
        if message.content == "bad":
            raise ValueError("it cannot be stored")

    async def test() -> None:
        async with connected(tmp_path) as bench:
            bench.storing = store
            await bench.side.write("bad")
            await bench.side.write("good")
            await until(lambda: bench.texts == ["good"], "the bad message holds up the good one")
            with closing(sqlite3.connect(bench.side.data / "spool.db")) as spool:
                aside = "SELECT why FROM set_aside"
                await until(lambda: spool.execute(aside).fetchall() == [("it cannot be stored",)], "it is not kept")

    run(test)


def test_events_that_cannot_be_decoded_hold_up_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with connected(tmp_path) as bench:
            for event in (b"\xff\xff", b"\x0a\x03abc", b"", bytes(100_000)):
                bench.side.deliver_raw(event)
            bench.side.happen(events.GroupInfoEvent())
            await bench.side.write("good")
            await until(lambda: bench.texts == ["good"], "the good message has not come")
            assert bench.channel.is_connected()

    run(test)
