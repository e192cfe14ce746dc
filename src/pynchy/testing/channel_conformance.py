"""What every channel must do, as tests that a channel's package inherits."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from pynchy.plugin import Channel, NewMessage, NotConnected
from pynchy.testing._channel_bench import Bench, ended, ending, error_of, heartbeat, run
from pynchy.testing._channel_sides import FarSide
from pynchy.testing._leftovers import Leftovers
from pynchy.testing._outcome import fail

__all__ = ["ChannelConformance", "FarSide"]

#: Texts that go astray where somebody counts bytes, UTF-16 or what can be seen, or takes text for markup.
_TEXTS = {
    "emoji": "a family 👩‍👩‍👧‍👦, a flag 🏳️‍🌈, a thumb 👍🏽, and two letters of a country 🇺🇳",
    "right to left": "שלום עולם and مرحبا بالعالم in one line",
    "combining": "e\u0301 is not \u00e9, n\u0303 is not \u00f1, and z\u0351\u036b\u0343 is a heap",
    "astral": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𠜎 𝄞",
    "east": "漢字かな交じり文、한국어 텍스트",
    "markup": "5 < 6 & 7 > 3, \"quoted\" and 'quoted', 100% {0} %s",
}
_LINES = "one\ntwo\n\nfour, after an empty line\n    and five, far  inside"
#: Addresses of other services.
_OTHERS = (
    "terminal:main",
    "telegram:4711",
    "whatsapp:4915112345678@s.whatsapp.net",
    "signal:+4915112345678",
    "matrix:!room:example.org",
    "mailto:ada@example.org",
    "irc:#pynchy",
)


def _tried(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """An async test as pytest can run it, its `bench` made of its `tmp_path`."""

    @functools.wraps(test)
    def tried(self: ChannelConformance, tmp_path: Path, **parameters: Any) -> None:
        self._run(tmp_path, lambda bench: test(self, bench, **parameters))

    signature = inspect.signature(test)
    parameters = [one.replace(name="tmp_path") if one.name == "bench" else one for one in signature.parameters.values()]
    cast("Any", tried).__signature__ = signature.replace(parameters=parameters)
    return tried


class ChannelConformance:
    """Inherit it as a class whose name begins with `Test`, and define `far_side`.

    A test is skipped where the channel or the far side lacks the optional member that it is about.
    """

    #: Threads that a library keeps for the whole process, by their names; `*` stands for anything.
    may_stay: ClassVar[frozenset[str]] = frozenset()
    #: How many seconds may pass without a message, or a part of a text, until it counts as lost.
    patience: ClassVar[float] = 15.0

    def far_side(self, folder: Path) -> AbstractAsyncContextManager[FarSide]:
        """The service, running; `folder` is Pynchy's home, and the channel's `data_dir` its `plugins/NAME`."""
        raise NotImplementedError("define far_side in the class that inherits ChannelConformance")

    def _run(self, home: Path, test: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
        async def on_a_bench() -> None:
            async with Bench.open(self.far_side, home, self.patience) as bench:
                await test(bench)

        run(on_a_bench)

    # --- what is written arrives ----------------------------------------------------------------------------

    @pytest.mark.parametrize("text", _TEXTS.values(), ids=_TEXTS)
    @_tried
    async def test_a_text_of_any_script_arrives_as_it_was_written(self, bench: Bench, text: str) -> None:
        await bench.connect()
        await bench.far.write(text)
        await bench.arrive([text])

    @pytest.mark.parametrize("text", [_LINES, f"\n  {_LINES}  \n\n"], ids=["inside", "around"])
    @_tried
    async def test_line_breaks_and_spaces_inside_a_text_arrive_and_those_around_it_may_be_cut(
        self, bench: Bench, text: str
    ) -> None:
        await bench.connect()
        await bench.far.write(text)
        await bench.arrive([text.strip()])

    @_tried
    async def test_a_text_of_4000_characters_arrives_whole(self, bench: Bench) -> None:
        text = "".join(f"{number:04} " for number in range(800)).strip()
        await bench.connect()
        await bench.far.write(text)
        await bench.arrive([text])

    @_tried
    async def test_a_message_says_its_chat_its_sender_and_its_time_in_utc(self, bench: Bench) -> None:
        await bench.connect()
        await bench.far.write("Who is this?")
        await bench.arrive(["Who is this?"])
        (message,) = bench.inbox.stored.values()
        assert message.chat_jid == bench.far.jid, (
            f"the message came from the chat {message.chat_jid!r}, and was written in {bench.far.jid!r}"
        )
        assert message.sender, "the message has an empty sender: give the service's own id of who wrote it"
        assert message.timestamp.utcoffset() == timedelta(0), (
            f"the timestamp {message.timestamp.isoformat()} is not in UTC: convert it with astimezone(UTC)"
        )

    @_tried
    async def test_what_was_written_before_the_channel_connected_arrives(self, bench: Bench) -> None:
        texts = _numbered(5)
        for text in texts[:3]:
            await bench.far.write(text)
        channel = await bench.connect()
        await bench.arrive(texts[:3])
        await bench.disconnect(channel)
        for text in texts[3:]:
            await bench.far.write(text)
        await bench.connect()
        await bench.arrive(texts)

    @_tried
    async def test_a_thousand_messages_at_once_arrive_once_each_and_in_order(self, bench: Bench) -> None:
        texts = _numbered(1000)
        await bench.connect()
        async with heartbeat():
            for text in texts:
                await bench.far.write(text)
            await bench.arrive(texts)

    # --- nothing is lost ------------------------------------------------------------------------------------

    @_tried
    async def test_a_slow_store_loses_nothing_and_changes_no_order(self, bench: Bench) -> None:
        texts = _numbered(15)

        async def store(message: NewMessage) -> None:
            # The first takes longest, so that those behind it overtake it where they can.
            await asyncio.sleep(0.2 if len(bench.inbox.handed) == 1 else 0.02)

        bench.inbox.storing = store
        await bench.connect()
        for text in texts:
            await bench.far.write(text)
        await bench.arrive(texts)

    @_tried
    async def test_a_message_that_was_not_stored_comes_again(self, bench: Bench) -> None:
        texts = _numbered(6)
        refusals = {texts[0]: 2, texts[3]: 1}

        async def store(message: NewMessage) -> None:
            await asyncio.sleep(0)
            if refusals.get(text := message.content.strip(), 0):
                refusals[text] -= 1
                raise sqlite3.OperationalError("database or disk is full")

        bench.inbox.storing = store
        channel = await bench.connect()

        async def reconnect() -> None:
            nonlocal channel
            await bench.disconnect(channel)
            channel = await bench.connect()

        for text in texts:
            await bench.far.write(text)
        await bench.arrive(texts, anew=reconnect)
        _expect_stable_ids(bench)

    @pytest.mark.parametrize("stored", [False, True], ids=["not stored", "stored"])
    @_tried
    async def test_a_message_that_was_being_stored_at_a_disconnect_is_stored_once(
        self, bench: Bench, stored: bool
    ) -> None:
        texts = _numbered(5)
        at_once = bench.inbox.storing

        async def store(message: NewMessage) -> None:
            await at_once(message)
            if message.content.strip() == texts[2]:
                if stored:
                    bench.inbox.store(message)
                await asyncio.Event().wait()

        bench.inbox.storing = store
        channel = await bench.connect()
        for text in texts:
            await bench.far.write(text)
        await bench.handed(3)
        await bench.disconnect(channel)
        bench.inbox.storing = at_once
        await bench.connect()
        await bench.arrive(texts)
        _expect_stable_ids(bench)

    # --- what is sent is read -------------------------------------------------------------------------------

    @pytest.mark.parametrize("text", _TEXTS.values(), ids=_TEXTS)
    @_tried
    async def test_a_text_of_any_script_is_read_as_it_was_sent(self, bench: Bench, text: str) -> None:
        await bench.say(await bench.connect(), text)

    @pytest.mark.parametrize("word", ["word", "😀😀"], ids=["letters", "emoji"])
    @_tried
    async def test_a_text_of_100_kilobytes_is_read_whole_and_in_order(self, bench: Bench, word: str) -> None:
        size, words = 0, list[str]()
        while size < 100_000:
            number = len(words) + 1
            words.append(f"{word}{number}{'' if number % 12 else chr(10)}{'' if number % 60 else chr(10)}")
            size += len(words[-1].encode()) + 1
        await bench.say(await bench.connect(), " ".join(words))

    @_tried
    async def test_texts_are_read_in_the_order_in_which_they_were_sent(self, bench: Bench) -> None:
        await bench.say(await bench.connect(), *_numbered(10))

    @_tried
    async def test_a_text_cannot_be_sent_before_connect_and_after_disconnect(self, bench: Bench) -> None:
        channel = bench.create()
        await _expect_not_connected(channel.send_message(bench.far.jid, "too early"), "before connect()")
        await bench.connect(channel)
        await bench.disconnect(channel)
        await _expect_not_connected(channel.send_message(bench.far.jid, "too late"), "after disconnect()")
        assert bench.far.read() == [], f"a reader sees {bench.far.read()}, sent while there was no connection"

    # --- connections ----------------------------------------------------------------------------------------

    @_tried
    async def test_it_says_whether_it_is_connected(self, bench: Bench) -> None:
        channel = bench.create()
        assert channel.is_connected() is False, f"before connect() is_connected() says {channel.is_connected()!r}"
        await bench.connect(channel)
        await bench.disconnect(channel)

    @_tried
    async def test_it_connects_again_after_a_disconnect(self, bench: Bench) -> None:
        channel = await bench.connect()
        await bench.far.write("the first")
        await bench.arrive(["the first"])
        await bench.disconnect(channel)
        await bench.far.write("the second")
        await bench.connect(channel)
        await bench.arrive(["the first", "the second"])
        await bench.say(channel, "and an answer")

    @pytest.mark.parametrize(
        "state",
        ["never connected", "connecting", "nearly connected", "idle", "storing", "disconnected", "abandoned"],
    )
    @_tried
    async def test_disconnect_returns_in_time_and_leaves_no_task(self, bench: Bench, state: str) -> None:
        channel = bench.create()
        if state in ("connecting", "nearly connected"):  # as when Pynchy is stopped meanwhile
            connecting = asyncio.ensure_future(channel.connect())
            await asyncio.sleep(0 if state == "connecting" else 0.02)
            connecting.cancel()
        elif state != "never connected":
            await bench.connect(channel)
        if state == "storing":
            bench.inbox.storing = lambda message: asyncio.Event().wait()
            await bench.far.write("never stored")
            await bench.handed(1)
        if state == "abandoned":
            await _vanish(bench.far)
        await bench.disconnect(channel)
        if state == "disconnected":
            await bench.disconnect(channel)
        await bench.no_task_is_left()

    @_tried
    async def test_disconnect_cleans_up_after_a_connect_that_failed(self, bench: Bench) -> None:
        await _vanish(bench.far)
        channel = bench.create()
        connecting = asyncio.ensure_future(channel.connect())
        if await ended(connecting, self.patience) and not error_of(connecting):
            assert channel.is_connected() is False, "nobody is there, and is_connected() says True after connect()"
        connecting.cancel()
        await bench.disconnect(channel)
        await bench.no_task_is_left()

    @_tried
    async def test_a_text_that_nobody_can_take_raises(self, bench: Bench) -> None:
        channel = await bench.connect()
        await _vanish(bench.far)
        sending = asyncio.ensure_future(channel.send_message(bench.far.jid, "lost?"))
        if await ended(sending, self.patience) and not error_of(sending):
            fail("send_message() has returned, though nobody could take the text: raise NotConnected, so that it waits")
        sending.cancel()

    @pytest.mark.parametrize("state", ["idle", "storing"])
    def test_no_thread_process_or_open_file_is_left(self, tmp_path: Path, state: str) -> None:
        async def visit(bench: Bench) -> None:
            channel = await bench.connect()
            await bench.far.write("stored")
            await bench.arrive(["stored"])
            await bench.say(channel, "sent")
            if state == "storing":
                bench.inbox.storing = lambda message: asyncio.Event().wait()
                await bench.far.write("never stored")
                await bench.handed(2)
            await bench.disconnect(channel)

        with Leftovers(self.may_stay, ending(self.patience)) as leftovers:
            self._run(tmp_path / "first", visit)
            leftovers.warmed_up()  # what a library opens once in a process may stay open
            self._run(tmp_path / "second", visit)

    @_tried
    async def test_the_event_loop_is_not_held_up(self, bench: Bench) -> None:
        channel = bench.create()
        texts = _numbered(20)
        async with heartbeat():
            await bench.connect(channel)
            for text in texts:
                await bench.far.write(text)
            await bench.arrive(texts)
            await bench.say(channel, *texts)
            await bench.disconnect(channel)

    # --- addresses, and what not every channel has ----------------------------------------------------------

    @_tried
    async def test_it_owns_its_own_addresses_and_no_others(self, bench: Bench) -> None:
        channel, jid = bench.create(), bench.far.jid
        service = jid.partition(":")[0]
        others = ["", ":", "nonsense", f"not{jid}", f"{service}", *_OTHERS]
        odd = [
            f"{jid}\n",
            f" {jid}",
            f"{jid}\0",
            f"{service}:",
            f"{service}:\ud800",
            f"{service}:{'9' * 100_000}",
            "٣:٣",
        ]
        assert _owns(channel, jid) is True, f"owns_jid({jid!r}) is not True, and that is one of its chats"
        for one in others:
            if one.partition(":")[0] != service or ":" not in one:
                assert _owns(channel, one) is False, f"owns_jid({one!r}) is not False: Pynchy would send it here"
        for one in odd:
            assert isinstance(_owns(channel, one), bool), f"owns_jid({one[:40]!r}) is neither True nor False"

    @_tried
    async def test_its_longest_message_is_a_number(self, bench: Bench) -> None:
        longest = _optional(bench.create(), "max_message_length")
        assert type(longest) is int, f"max_message_length is {longest!r}: give a number of characters"
        assert longest > 0, f"max_message_length is {longest}: leave it out where there is no limit"

    @_tried
    async def test_typing_can_be_shown(self, bench: Bench) -> None:
        channel = bench.create()
        set_typing = _optional(channel, "set_typing")
        await bench.connect(channel)
        for on in (True, True, False):
            await _call("set_typing", set_typing, bench.far.jid, on)

    @_tried
    async def test_what_chats_are_called_can_be_asked_for(self, bench: Bench) -> None:
        channel = bench.create()
        sync_metadata = _optional(channel, "sync_metadata")
        await bench.connect(channel)
        await _call("sync_metadata", sync_metadata)

    @_tried
    async def test_a_file_can_be_sent(self, bench: Bench) -> None:
        channel, path = bench.create(), bench.folder / "a räport, of 2.txt"
        send_file = _optional(channel, "send_file")
        path.write_text("what is in it")
        await bench.connect(channel)
        for caption in ("what it is", ""):
            await _call("send_file", send_file, bench.far.jid, path, caption)

    @_tried
    async def test_what_was_sent_can_be_edited(self, bench: Bench) -> None:
        channel = bench.create()
        edit_message = _optional(channel, "edit_message")
        await bench.connect(channel)
        message_id = await channel.send_message(bench.far.jid, "It is under way.")
        assert isinstance(message_id, str), (
            f"send_message() returned {message_id!r}: with edit_message, it must return the id of what it has sent"
        )
        await _call("edit_message", edit_message, bench.far.jid, message_id, "It is done.")
        read = bench.far.read()
        assert [text for text in read if text.strip().endswith("It is done.")], f"after the edit a reader sees {read}"


def _numbered(count: int) -> list[str]:
    return [f"message {number}" for number in range(1, count + 1)]


def _optional(owner: object, name: str) -> Any:
    """A member that need not be there, without which the test is skipped."""
    if (member := getattr(owner, name, None)) is None:
        pytest.skip(f"the {'far side' if isinstance(owner, FarSide) else 'channel'} has no `{name}`")
    return member


def _owns(channel: Channel, jid: str) -> object:
    try:
        return channel.owns_jid(jid)
    except Exception as error:
        fail(f"owns_jid({jid[:40]!r}) raised {error!r}: it must answer for any text")


async def _call(name: str, member: Callable[..., Awaitable[object]], *arguments: object) -> None:
    try:
        await member(*arguments)
    except Exception as error:
        fail(f"{name}() raised {error!r}: leave it out where it cannot be done")


async def _vanish(far: FarSide) -> None:
    await _optional(far, "vanish")()


async def _expect_not_connected(sending: Coroutine[Any, Any, object], when: str) -> None:
    try:
        await sending
    except NotConnected:
        return
    except Exception as error:
        fail(f"send_message() {when} raised {error!r}: raise NotConnected, so that the text waits instead of failing")
    fail(f"send_message() {when} has returned, though nothing was sent: raise NotConnected")


def _expect_stable_ids(bench: Bench) -> None:
    ids: dict[str, str] = {}
    for message in bench.inbox.handed:
        first = ids.setdefault(message.content, message.id)
        assert message.id == first, (
            f"{message.content!r} came with the id {first!r} and then with {message.id!r}: an id must be the service's "
            "own, the same at each delivery, or the message is answered twice"
        )
