"""The channel with the real worker and neonize's real client; only the functions of the Go library are replaced."""

import asyncio
import contextlib
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from whatsapp_protos import e2e, events
from whatsapp_side import ADA, GROUP, ME, WhatsAppSide, jid, message_event

from pynchy.plugin import Group, NewMessage, NotConnected, PluginContext
from pynchy_plugin_whatsapp.channel import WhatsApp, WhatsAppTrouble
from pynchy_plugin_whatsapp.session import in_use
from pynchy_plugin_whatsapp.spool import Spool

_CHAT = f"whatsapp:{ADA}@s.whatsapp.net"
_GROUP = f"whatsapp:{GROUP}@g.us"


class Bench:
    """A channel and what it has said to Pynchy."""

    def __init__(self, side: WhatsAppSide, **config: str) -> None:
        self.side = side
        self.came: list[NewMessage] = []
        self.files: list[bytes] = []
        self.names: dict[str, str] = {}
        self.storing: Callable[[NewMessage], Awaitable[object]] = lambda message: asyncio.sleep(0)
        self.groups = {one: Group(one, "Test", f"test{number}") for number, one in enumerate((_CHAT, _GROUP))}
        context = PluginContext(
            send_message=self._nothing,
            registered_groups=lambda: self.groups,
            config=config,
            on_message=self._on_message,
            on_chat_metadata=self._on_chat,
            data_dir=side.data,
            log=logging.getLogger("test"),
        )
        channel = side.plugin.create_channel(context)
        assert isinstance(channel, WhatsApp)
        self.channel = channel

    async def _nothing(self, chat: str, text: str) -> None:
        pass

    async def _on_message(self, message: NewMessage) -> None:
        await self.storing(message)
        for attachment in message.attachments:
            assert attachment.path
            self.files.append(attachment.path.read_bytes())
        self.came.append(message)

    async def _on_chat(self, chat: str, name: str) -> None:
        self.names[chat] = name

    @property
    def texts(self) -> list[str]:
        return [message.content for message in self.came]


@asynccontextmanager
async def _connected(folder: Path, **config: str) -> AsyncIterator[Bench]:
    async with WhatsAppSide.open(folder) as side:
        bench = Bench(side, **config)
        await bench.channel.connect()
        try:
            yield bench
        finally:
            await bench.channel.disconnect()


async def _until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60  # a worker takes a while to start
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


def _run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # pyright: ignore[reportArgumentType]


# --- what comes in ------------------------------------------------------------------------------------------


def test_a_voice_note_of_a_registered_chat_comes_with_its_sound_and_leaves_no_file(tmp_path: Path) -> None:
    async def test() -> None:
        async with _connected(tmp_path) as bench:
            bench.side.voice(b"OggS" + bytes(300_000))
            await _until(lambda: bench.came, "the voice note has not come")
            (attachment,) = bench.came[0].attachments
            assert (attachment.name, attachment.media_type) == ("voice-note.ogg", "audio/ogg")
            assert bench.files == [b"OggS" + bytes(300_000)]
            await _until(lambda: not list((bench.side.data / "media").iterdir()), "the file is still there")

    _run(test)


def test_a_file_of_a_chat_that_nobody_has_registered_is_not_fetched(tmp_path: Path) -> None:
    async def test() -> None:
        async with _connected(tmp_path) as bench:
            bench.groups.clear()
            bench.side.voice(b"OggS")
            await _until(lambda: bench.came, "the message has not come")
            assert not bench.came[0].attachments
            assert bench.texts == ["[voice-note.ogg: not fetched, for this chat was not registered]"]

    _run(test)


def test_a_file_that_is_gone_or_too_large_is_named_and_the_message_comes(tmp_path: Path) -> None:
    async def test() -> None:
        async with _connected(tmp_path) as bench:
            gone = e2e.ImageMessage(mimetype="image/jpeg", caption="Look", directPath="/gone", fileLength=5)
            bench.side.deliver(message_event(e2e.Message(imageMessage=gone)))
            large = e2e.VideoMessage(mimetype="video/mp4", directPath="/large", fileLength=2**40)
            bench.side.deliver(message_event(e2e.Message(videoMessage=large)))
            await _until(lambda: len(bench.came) == 2, "the messages have not come")
            assert bench.texts == [
                "Look\n[image.jpg: it could not be fetched]",
                "[video.mp4: not fetched, for it is too large]",
            ]

    _run(test)


def test_names_of_chats_are_kept_current(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            side.groups = [(GROUP, "Neighbours"), ("not a number", "Odd")]
            side.names = {ADA: "Ada Lovelace"}
            bench = Bench(side)
            await bench.channel.connect()
            await bench.channel.sync_metadata()
            assert bench.names == {_GROUP: "Neighbours"}
            renamed = events.GroupInfoEvent(JID=jid(GROUP, "g.us"), Name=events.GroupName(Name="Friends\n"))
            side.happen(renamed)
            await _until(lambda: bench.names[_GROUP] == "Friends", "the new name has not come")
            joined = events.GroupInfo(JID=jid("42", "g.us"), GroupName=events.GroupName(Name="New"))
            side.happen(events.JoinedGroup(GroupInfo=joined))
            await _until(lambda: bench.names.get("whatsapp:42@g.us") == "New", "the new group has not come")
            await side.write("Hi")
            await _until(lambda: bench.names.get(_CHAT) == "Ada Lovelace", "the person's name has not come")
            await bench.channel.disconnect()

    _run(test)


def test_one_chat_whose_messages_cannot_be_stored_does_not_hold_up_another(tmp_path: Path) -> None:
    async def store(message: NewMessage) -> None:
        if message.chat_jid == _CHAT:
            raise OSError("no space left on device")

    async def test() -> None:
        async with _connected(tmp_path) as bench:
            bench.storing = store
            await bench.side.write("stuck")
            bench.side.deliver(message_event(e2e.Message(conversation="through"), chat=jid(GROUP, "g.us"), group=True))
            await _until(lambda: bench.texts == ["through"], "the other chat waits")
            bench.storing = lambda message: asyncio.sleep(0)
            await _until(lambda: bench.texts == ["through", "stuck"], "the first message is lost")

    _run(test)


def test_a_message_that_is_refused_each_time_is_set_aside_and_the_next_one_comes(tmp_path: Path) -> None:
    async def store(message: NewMessage) -> None:
        if message.content == "bad":
            raise ValueError("it cannot be stored")

    async def test() -> None:
        async with _connected(tmp_path) as bench:
            bench.storing = store
            await bench.side.write("bad")
            await bench.side.write("good")
            await _until(lambda: bench.texts == ["good"], "the bad message holds up the good one")
            with closing(sqlite3.connect(bench.side.data / "spool.db")) as spool:
                aside = "SELECT why FROM set_aside"
                await _until(lambda: spool.execute(aside).fetchall() == [("it cannot be stored",)], "it is not kept")

    _run(test)


def test_events_that_cannot_be_decoded_hold_up_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with _connected(tmp_path) as bench:
            for event in (b"\xff\xff", b"\x0a\x03abc", b"", bytes(100_000)):
                bench.side.deliver_raw(event)
            bench.side.happen(events.GroupInfoEvent())
            await bench.side.write("good")
            await _until(lambda: bench.texts == ["good"], "the good message has not come")
            assert bench.channel.is_connected()

    _run(test)


# --- nothing is lost ----------------------------------------------------------------------------------------


def test_what_was_handed_over_survives_that_the_worker_is_killed_at_any_moment(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            side.acknowledge = "handed"
            texts = [f"message {number}" for number in range(400)]
            stored: dict[str, str] = {}
            for round_ in range(5):
                bench = Bench(side)
                await bench.channel.connect()
                for text in texts[80 * round_ : 80 * round_ + 80]:
                    await side.write(text)
                await _until(lambda bench=bench: len(bench.came) > 10, "nothing comes")
                assert bench.channel._link
                assert bench.channel._link._process
                os.kill(bench.channel._link._process.pid, signal.SIGKILL)
                await _until(lambda bench=bench: not bench.channel.is_connected(), "it does not see its worker end")
                await bench.channel.disconnect()
                stored |= {message.id: message.content for message in bench.came}
            bench = Bench(side)
            await bench.channel.connect()
            await _until(
                lambda: set((stored | {one.id: one.content for one in bench.came}).values()) == set(texts),
                "messages are lost",
            )
            stored |= {message.id: message.content for message in bench.came}
            assert sorted(stored.values()) == sorted(texts)  # each has one id
            await bench.channel.disconnect()

    _run(test)


def test_what_still_comes_while_it_disconnects_overtakes_nothing(tmp_path: Path) -> None:
    async def store(message: NewMessage) -> None:
        if message.content == "0":
            await asyncio.Event().wait()

    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            side.pace = 0.05
            bench = Bench(side)
            begun = asyncio.Event()
            bench.storing = lambda message: begun.set() or store(message)
            await bench.channel.connect()
            for number in range(5):
                await side.write(str(number))
            async with asyncio.timeout(60):
                await begun.wait()
            await bench.channel.disconnect()
            assert bench.texts == []
            again = Bench(side)
            await again.channel.connect()
            await _until(lambda: len(again.came) == 5, "some are lost")
            assert again.texts == [str(number) for number in range(5)]
            await again.channel.disconnect()

    _run(test)


def test_a_stop_waits_for_what_the_library_has_acknowledged_and_not_handed_over(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            side.pace = 0.005
            bench = Bench(side)
            await bench.channel.connect()
            texts = {str(number) for number in range(40)}  # few, for a stop has three seconds
            for text in sorted(texts):
                await side.write(text)
            await _until(lambda: len(side.waiting) < 20, "nothing is acknowledged")
            await bench.channel.disconnect()
            again = Bench(side)
            await again.channel.connect()
            await _until(lambda: {*bench.texts, *again.texts} == texts, "some are lost")
            await again.channel.disconnect()

    _run(test)


def test_a_file_that_ends_the_worker_each_time_is_left_out_and_its_message_comes(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            side.deadly.add("download")
            side.voice(b"OggS")
            bench = Bench(side)
            for _ in range(3):
                await bench.channel.connect()
                await _until(lambda: not bench.channel.is_connected(), "the worker has not ended")
                await bench.channel.disconnect()
            await bench.channel.connect()
            await _until(lambda: bench.texts == ["[voice-note.ogg: it could not be fetched]"], "the message is lost")
            await bench.channel.disconnect()

    _run(test)


def test_the_worker_of_a_service_that_is_killed_in_the_middle_of_a_line_ends_and_frees_the_session(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            worker = subprocess.Popen(
                [sys.executable, *side.worker, str(side.data), "run"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            assert worker.stdin
            assert worker.stdout
            assert worker.stderr
            await asyncio.to_thread(worker.stdout.readline)
            worker.stdout.close()
            worker.stderr.close()
            worker.stdin.write(b'{"stored": 1')
            worker.stdin.close()
            await asyncio.to_thread(worker.wait, 60)
            assert not in_use(side.data)

    _run(test)


def test_the_spool_is_empty_once_everything_is_stored(tmp_path: Path) -> None:
    async def test() -> None:
        async with _connected(tmp_path) as bench:
            for number in range(20):
                await bench.side.write(str(number))
            await _until(lambda: len(bench.came) == 20, "the messages have not come")
            await _until(lambda: not bench.side.waiting, "some are not acknowledged")
            spool = Spool(bench.side.data)
            await _until(lambda: not spool.waiting(), "the spool still holds messages")
            spool.close()

    _run(test)


def test_an_event_that_has_ended_the_worker_three_times_is_set_aside(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            spool = Spool(side.data)
            seq = spool.add(message_event(e2e.Message(conversation="poison")).SerializeToString())
            spool.close()
            with sqlite3.connect(side.data / "spool.db") as counted:
                counted.execute("UPDATE received SET reading = 3 WHERE seq = ?", (seq,))
            counted.close()
            bench = Bench(side)
            await bench.channel.connect()
            await side.write("good")
            await _until(lambda: bench.texts == ["good"], "the good message has not come")
            await bench.channel.disconnect()

    _run(test)


# --- what goes out ------------------------------------------------------------------------------------------


def test_an_answer_is_formatted_has_an_id_and_can_be_edited(tmp_path: Path) -> None:
    async def test() -> None:
        async with _connected(tmp_path) as bench:
            message_id = await bench.channel.send_message(_CHAT, "**Hello** @4915100000003 @120363000@g.us")
            assert bench.side.read() == ["*Hello* @4915100000003 @120363000@g.us"]
            await bench.channel.edit_message(_CHAT, message_id, "# Better")
            assert bench.side.read() == ["*Better*"]
            assert [what for what, _ in bench.side.said] == ["send", "send"]  # neonize has asked nothing by itself

    _run(test)


def test_what_it_has_sent_does_not_come_back_also_after_a_restart(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            bench = Bench(side)
            await bench.channel.connect()
            message_id = await bench.channel.send_message(_CHAT, "mine")
            await bench.channel.disconnect()
            bench = Bench(side)
            await bench.channel.connect()
            echo = message_event(e2e.Message(conversation="mine"), id=message_id, sender=jid(ME), from_me=True)
            side.deliver(echo)
            side.deliver(message_event(e2e.Message(conversation="typed"), sender=jid(ME), from_me=True))
            await _until(lambda: bench.came, "what was typed has not come")
            assert [(one.content, one.is_from_me) for one in bench.came] == [("typed", True)]
            await bench.channel.disconnect()

    _run(test)


@pytest.mark.parametrize(
    ("name", "field", "media_type"),
    [
        ("cat.png", "imageMessage", "image/png"),
        ("film.mp4", "videoMessage", "video/mp4"),
        ("voice.ogg", "audioMessage", "audio/ogg; codecs=opus"),
        ("song.mp3", "audioMessage", "audio/mpeg"),
        ("page.pdf", "documentMessage", "application/pdf"),
        ("moving.gif", "documentMessage", "image/gif"),
        ("no type", "documentMessage", "application/octet-stream"),
    ],
)
def test_a_file_is_sent_as_what_it_is(tmp_path: Path, name: str, field: str, media_type: str) -> None:
    async def test() -> None:
        async with _connected(tmp_path) as bench:
            (tmp_path / name).write_bytes(b"content of the file")
            await bench.channel.send_file(_CHAT, tmp_path / name, "**See** this")
            _, message = bench.side.sent[0]
            media = getattr(message, field)
            assert [field for field, _ in message.ListFields()] == [e2e.Message.DESCRIPTOR.fields_by_name[field]]
            assert (media.mimetype, bench.side.files[media.directPath]) == (media_type, b"content of the file")
            captions = [getattr(media, "caption", "")] + [text.conversation for _, text in bench.side.sent[1:]]
            assert "*See* this" in captions
            if field == "documentMessage":
                assert media.fileName == name

    _run(test)


def test_a_caption_that_is_too_long_follows_as_a_text(tmp_path: Path) -> None:
    async def test() -> None:
        async with _connected(tmp_path) as bench:
            (tmp_path / "cat.png").write_bytes(b"cat")
            await bench.channel.send_file(_CHAT, tmp_path / "cat.png", "x" * 1500)
            assert [one.conversation or one.imageMessage.caption for _, one in bench.side.sent] == ["", "x" * 1500]

    _run(test)


def test_what_whatsapp_refuses_is_an_error_and_what_it_cannot_hear_waits(tmp_path: Path) -> None:
    async def test() -> None:
        async with _connected(tmp_path) as bench:
            bench.side.refuse["send"] = "server returned error 463"
            with pytest.raises(RuntimeError, match="463"):
                await bench.channel.send_message(_CHAT, "no")
            bench.side.refuse["send"] = "failed to get device list: websocket disconnected before info query returned"
            with pytest.raises(NotConnected):
                await bench.channel.send_message(_CHAT, "no")
            for address in ("telegram:1", "whatsapp:status@broadcast", "whatsapp:1@g.us\n"):
                with pytest.raises(ValueError, match="no address"):
                    await bench.channel.send_message(address, "no")

    _run(test)


def test_a_call_that_hangs_holds_up_neither_others_nor_the_end(tmp_path: Path) -> None:
    async def test() -> None:
        async with _connected(tmp_path) as bench:
            bench.side.hang.add("send")
            calls = [asyncio.create_task(bench.channel.send_message(_CHAT, "hangs")) for _ in range(4)]
            await bench.side.write("comes")
            await _until(lambda: bench.texts == ["comes"], "nothing comes in")
            await bench.channel.set_typing(_CHAT, True)
            await bench.channel.disconnect()
            assert all(isinstance(one, NotConnected) for one in await asyncio.gather(*calls, return_exceptions=True))

    _run(test)


def test_only_an_account_that_is_pynchys_alone_shows_itself_online_and_marks_what_it_has_read(tmp_path: Path) -> None:
    async def test(dedicated: str, folder: Path, shown: list[str]) -> None:
        async with _connected(folder, dedicated=dedicated) as bench:
            assert bench.channel.prefix_assistant_name is (dedicated == "no")
            await bench.channel.set_typing(_CHAT, True)
            await bench.channel.set_typing(_CHAT, False)
            await bench.side.write("read me")
            await _until(lambda: len(bench.side.said) >= len(shown) and bench.came, "not everything was shown")
            assert [what for what, _ in bench.side.said] == shown

    asyncio.run(test("no", tmp_path / "own", ["typing", "typing"]))
    asyncio.run(test("yes", tmp_path / "alone", ["presence", "typing", "typing", "read"]))


def test_a_setting_that_is_neither_yes_nor_no_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            with pytest.raises(ValueError, match="PYNCHY_WHATSAPP_DEDICATED"):
                Bench(side, dedicated="perhaps")

    _run(test)


# --- the connection -----------------------------------------------------------------------------------------


def test_without_a_session_it_says_what_to_run(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path, linked=False) as side:
            bench = Bench(side)
            with pytest.raises(WhatsAppTrouble, match="pynchy whatsapp login"):
                await bench.channel.connect()

    _run(test)


def test_a_session_that_another_process_uses_is_left_alone(tmp_path: Path) -> None:
    async def test() -> None:
        async with _connected(tmp_path) as bench:
            second = Bench(bench.side)
            with pytest.raises(WhatsAppTrouble, match="another process"):
                await second.channel.connect()
            assert bench.channel.is_connected()

    _run(test)


def test_where_whatsapp_cannot_be_reached_it_says_so(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            await side.vanish()
            bench = Bench(side)
            with pytest.raises(WhatsAppTrouble, match="WhatsApp cannot be reached: dial tcp"):
                await bench.channel.connect()
            assert not bench.channel.is_connected()

    _run(test)


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (events.LoggedOut(OnConnect=False, Reason=events.LOGGED_OUT), "pynchy whatsapp login"),
        (events.StreamReplaced(), "another program"),
        (events.TemporaryBan(Code=events.TemporaryBan.BLOCKED_BY_USERS, Expire=3600), "for 60 minutes"),
        (events.ClientOutdated(), "no longer takes this version"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_ends_the_connection_is_said_in_a_sentence(tmp_path: Path, event: Any, sentence: str) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            bench = Bench(side)
            await bench.channel.connect()
            side.happen(event, logged_out=isinstance(event, events.LoggedOut))
            await _until(lambda: not bench.channel.is_connected(), "it still says that it is connected")
            with pytest.raises(NotConnected, match=sentence):
                await bench.channel.send_message(_CHAT, "no")
            await bench.channel.disconnect()
            await _until(lambda: not side.is_there, "its connection has not ended")
            side.greet = False
            connecting = asyncio.create_task(bench.channel.connect())
            await _until(lambda: side.is_there or connecting.done(), "it does not connect")
            side.happen(event)
            with pytest.raises(WhatsAppTrouble, match=sentence):
                await connecting

    _run(test)


def test_during_a_ban_nothing_is_tried(tmp_path: Path) -> None:
    async def test() -> None:
        async with _connected(tmp_path) as bench:
            bench.side.happen(events.TemporaryBan(Code=events.TemporaryBan.BROADCAST_LIST, Expire=7200))
            await _until(lambda: not bench.channel.is_connected(), "it still says that it is connected")
            await bench.channel.disconnect()
            with pytest.raises(WhatsAppTrouble, match="120 minutes"):
                await bench.channel.connect()
            assert bench.side.connections == 1

    _run(test)


@pytest.mark.parametrize(
    "event",
    [
        events.Disconnected(status=True),
        events.KeepAliveTimeout(ErrorCount=1, LastSuccess=0),
        events.StreamError(Code="515"),
        events.ConnectFailure(Reason=events.SERVICE_UNAVAILABLE, Message="later"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_connection_that_is_lost_and_comes_back_is_told_truly(tmp_path: Path, event: Any) -> None:
    async def test() -> None:
        async with _connected(tmp_path) as bench:
            bench.side.happen(event)
            await _until(lambda: not bench.channel.is_connected(), "it still says that it is connected")
            with pytest.raises(NotConnected):
                await bench.channel.send_message(_CHAT, "no")
            bench.side.happen(events.Connected(status=True))
            await _until(bench.channel.is_connected, "it does not see that it is connected again")
            await bench.channel.send_message(_CHAT, "yes")

    _run(test)


def test_what_is_written_while_the_connection_is_cut_comes_once_the_library_has_connected_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with _connected(tmp_path) as bench:
            await bench.side.write("before")
            bench.side.open_to_all.clear()
            bench.side.drop()
            await bench.side.write("meanwhile")
            await _until(lambda: not bench.channel.is_connected(), "it still says that it is connected")
            bench.side.open_to_all.set()
            await _until(bench.channel.is_connected, "it does not see that it is connected again")
            await _until(  # the first may come again, under its id
                lambda: list({one.id: one.content for one in bench.came}.values()) == ["before", "meanwhile"],
                "a message is lost",
            )
            assert bench.side.connections == 2

    _run(test)


def test_the_worker_sees_no_credential_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret")

    async def test() -> None:
        async with _connected(tmp_path) as bench:
            assert bench.channel._link
            assert bench.channel._link._process
            environment = Path(f"/proc/{bench.channel._link._process.pid}/environ")
            if environment.exists():
                assert b"secret" not in environment.read_bytes()

    _run(test)


def test_what_it_keeps_is_readable_by_the_user_alone(tmp_path: Path) -> None:
    async def test() -> None:
        async with _connected(tmp_path) as bench:
            modes: dict[str, int] = {}

            async def look(message: NewMessage) -> None:  # while its file is there
                for path in bench.side.data.rglob("*"):
                    with contextlib.suppress(FileNotFoundError):  # a journal of the database's
                        modes[path.name] = path.stat().st_mode

            bench.storing = look
            bench.side.voice(b"OggS")
            await _until(lambda: bench.came, "the voice note has not come")
            del modes["session.db"]
            assert [name for name in modes if name.endswith(".media")]
            assert not [name for name, mode in modes.items() if mode & 0o077]

    _run(test)
