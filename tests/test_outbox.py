"""From the outbox to the channels: in order, as often as needed, and no chat waits for another's trouble."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from pynchy import database, outbox
from pynchy.channel_host import owner_among
from pynchy.outbox import Outbox
from pynchy.store import Outgoing, Store
from pynchy.types import NotConnected, Refused

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

#: The chat that hears of what could not be sent.
MAIN = "main:a"
#: Longer than any test.
FOREVER = 1000.0

#: Called with chat and text before a channel takes it; may raise, or wait.
Before = Callable[[str, str], Awaitable[None]]


class Channel:
    """A channel that owns the chats whose addresses begin with its name, and keeps what it was given."""

    prefix_assistant_name = False

    def __init__(self, name: str, before: Before | None = None) -> None:
        self.name = name
        self.connected = True
        self.before = before
        self.tried: list[str] = []
        self.sent: list[tuple[str, str]] = []
        self._news = asyncio.Event()

    async def connect(self) -> None:
        self.connected = True

    async def disconnect(self) -> None:
        self.connected = False

    def is_connected(self) -> bool:
        return self.connected

    def owns_jid(self, jid: str) -> bool:
        return jid.startswith(f"{self.name}:")

    async def send_message(self, jid: str, text: str) -> None:
        self.tried.append(text)
        self._news.set()
        if self.before:
            await self.before(jid, text)
        self.sent.append((jid, text))
        self._news.set()

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.sent]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when something that this channel keeps meets a condition."""
        while not condition():
            self._news.clear()
            await self._news.wait()


async def hanging(jid: str, text: str) -> None:
    """Takes what is bad for ever."""
    if "bad" in jid:
        await asyncio.Event().wait()


def failing(times: int, only: str = "", error: type[Exception] = OSError) -> Before:
    """Fails so many times for what has `only` in its chat or text."""
    left = times

    async def before(jid: str, text: str) -> None:
        nonlocal left
        if only in f"{jid} {text}" and left:
            left -= 1
            raise error("the line is down")

    return before


async def until_all_wait() -> None:
    """Let every task go on until nothing but this one, or the database, can."""
    for _ in range(50):
        await asyncio.sleep(0)


class Post:
    """A database, what is queued in it, and outboxes that send from it."""

    def __init__(self, path: Path, store: Store) -> None:
        self.path = path
        self.store = store

    async def queue(self, jid: str, *texts: str) -> None:
        await asyncio.gather(*(self.store.enqueue(jid, text, "reply") for text in texts))

    def states(self) -> list[tuple[str, str | None]]:
        """What the database knows of each text, in the order in which they were queued."""
        with closing(sqlite3.connect(self.path)) as db:
            return db.execute("SELECT state, error FROM outbox ORDER BY id").fetchall()

    @asynccontextmanager
    async def running(self, *channels: Channel) -> AsyncIterator[Outbox]:
        """An outbox that sends meanwhile, and that leaves no task behind however the test left it."""
        before = asyncio.all_tasks()
        sending = Outbox(self.store, lambda jid: owner_among(channels, jid), "Pynchy", lambda: MAIN, self.path.parent)
        task = asyncio.create_task(sending.run())
        try:
            async with asyncio.timeout(30):
                yield sending
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await until_all_wait()  # what waited for one of its tasks may have ended with it
        assert asyncio.all_tasks() == before


@pytest.fixture
async def post(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Post]:
    monkeypatch.setattr(outbox, "_FIRST_PAUSE", 0)  # attempts follow each other at once
    path = tmp_path / "pynchy.db"
    async with Store.open(path) as store:
        yield Post(path, store)


# --- in order -----------------------------------------------------------------------------------------------


async def test_each_chat_gets_its_texts_in_order_and_once(post: Post) -> None:
    channels = [Channel("one"), Channel("two")]
    jids = [f"{channel.name}:{number}" for channel in channels for number in range(3)]
    async with post.running(*channels) as sending:
        for number in range(20):
            for jid in jids:
                await post.queue(jid, f"{jid} {number}")
            if number % 7 == 0:
                sending.wake()
        sending.wake()  # one is enough for all
        for channel in channels:
            await channel.until(lambda channel=channel: len(channel.sent) == 60)
        for jid in jids:
            await sending.flush(jid)
    for channel in channels:
        for jid in jids:
            expected = [f"{jid} {number}" for number in range(20)] if channel.owns_jid(jid) else []
            assert [text for to, text in channel.sent if to == jid] == expected
    assert post.states() == [("sent", None)] * 120


async def test_a_text_goes_out_under_the_assistants_name_where_the_channel_wants_it(post: Post) -> None:
    channel = Channel("one")
    channel.prefix_assistant_name = True
    await post.queue("one:a", "hello")
    async with post.running(channel):  # what was queued before is sent without being asked for
        await channel.until(lambda: channel.texts == ["Pynchy: hello"])


async def test_no_wake_is_lost_however_near_it_comes_to_the_end_of_a_chats_work(post: Post) -> None:
    channel = Channel("one")
    async with post.running(channel) as sending:
        for number in range(100):
            await post.queue("one:a", f"{number}")
            sending.wake()
            await channel.until(lambda number=number: len(channel.sent) == number + 1)
            for _ in range(number % 25):  # the chat's task comes so much nearer to its end
                await asyncio.sleep(0)
    assert channel.texts == [f"{number}" for number in range(100)]


@pytest.mark.parametrize("ask", ["wake", "flush"])
async def test_what_is_queued_after_a_chats_task_has_looked_for_the_last_time_goes_out(post: Post, ask: str) -> None:
    asked: list[asyncio.Task[None]] = []

    class Late(Store):
        async def next_queued(self, jid: str) -> Outgoing | None:
            found = await super().next_queued(jid)
            if found is None and not asked:
                await post.queue(jid, "second")
                if ask == "wake":
                    sending.wake()
                asked.append(asyncio.create_task(sending.flush(jid) if ask == "flush" else asyncio.sleep(0)))
                await until_all_wait()
                await super().next_queued(jid)  # reads happen in turn: the look that was asked for is over
            return found

    async with Late.open(post.path) as post.store:
        channel = Channel("one")
        await post.queue("one:a", "first")
        async with post.running(channel) as sending:
            await channel.until(lambda: channel.texts == ["first", "second"])
            await asked[0]


# --- the end ------------------------------------------------------------------------------------------------


async def test_what_was_under_way_at_the_end_stays_queued_and_is_sent_by_the_next(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    async def before(jid: str, text: str) -> None:
        if jid == "one:fails":
            raise OSError("the line is down")
        try:
            await asyncio.Event().wait()
        finally:
            await until_all_wait()  # it may still have something to do, for longer than `running` looks on
            await until_all_wait()
            ended.append(jid)

    channel = Channel("one", before)
    for jid in ("one:hangs", "one:fails"):
        await post.queue(jid, f"{jid} 1", f"{jid} 2")
    with monkeypatch.context() as patch:
        patch.setattr(outbox, "_FIRST_PAUSE", FOREVER)
        async with post.running(channel) as sending:
            await channel.until(lambda: len(channel.tried) == 2)
            flushes = [asyncio.create_task(sending.flush(jid)) for jid in ("one:hangs", "one:fails")]
            await until_all_wait()
            await post.store.has_pending("")  # reads happen in turn: each flush has looked, and waits
    assert ended == ["one:hangs"], "the end waits for whoever still has something to do"
    assert all(flushing.done() for flushing in flushes)
    assert post.states() == [("queued", None)] * 4
    channel.before = None
    async with post.running(channel) as sending:
        for jid in ("one:hangs", "one:fails"):
            await sending.flush(jid)
    assert sorted(channel.texts) == ["one:fails 1", "one:fails 2", "one:hangs 1", "one:hangs 2"]
    assert post.states() == [("sent", None)] * 4


# --- not now ------------------------------------------------------------------------------------------------


async def test_a_chat_that_cannot_be_reached_keeps_its_texts_in_order_and_others_go_out(post: Post) -> None:
    channel = Channel("one", failing(1000, only="away", error=NotConnected))
    for number in range(3):
        await post.queue("one:away", f"away {number}")
        await post.queue("one:here", f"here {number}")
    async with post.running(channel) as sending:
        for jid in ("one:away", "one:here"):
            await sending.flush(jid)
        assert channel.texts == ["here 0", "here 1", "here 2"]
        assert set(channel.tried) == {"away 0", *channel.texts}, "the first shows that the chat is away"
        assert post.states() == [("queued", None), ("sent", None)] * 3
        channel.before = None
        sending.wake()
        await channel.until(lambda: channel.texts[3:] == ["away 0", "away 1", "away 2"])


async def test_a_chat_that_was_away_is_tried_again_though_its_channel_always_was_connected(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pynchy.outbox._LOOK_AGAIN_AFTER", 0.01)
    channel = Channel("one", failing(3, only="away", error=NotConnected))
    await post.queue("one:away", "away 0", "away 1")
    async with post.running(channel):
        await channel.until(lambda: channel.texts == ["away 0", "away 1"])
    assert channel.tried == ["away 0"] * 3 + ["away 0", "away 1"]


async def test_what_cannot_be_sent_now_is_not_tried_and_never_stands_in_the_way_however_much_it_is(post: Post) -> None:
    away, here = Channel("away"), Channel("here")
    away.connected = False
    texts = [f"{number}" for number in range(550)]
    for jid in ("away:a", "nobody:a"):
        await post.queue(jid, *texts)
    await asyncio.gather(*(post.queue(f"nobody:{text}", "waits") for text in texts))
    await post.queue("here:a", "hello")
    async with post.running(away, here) as sending:
        await here.until(lambda: here.texts == ["hello"])
        for jid in ("away:a", "away:b", "here:b", "nobody:a"):
            await sending.flush(jid)  # returns, with nothing that it could send
        assert away.tried == []
        away.connected = True
        sending.wake()
        await away.until(lambda: len(away.sent) == 550)
        await sending.flush("away:a")  # and stored
    assert away.texts == texts
    assert post.states().count(("queued", None)) == 1100


@pytest.mark.parametrize("trouble", ["hangs", "is tried again"])
async def test_a_chat_in_trouble_holds_up_no_other_of_its_channel(
    post: Post, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr(outbox, "_FIRST_PAUSE", FOREVER)
    channel = Channel("one", hanging if trouble == "hangs" else failing(1000, only="bad"))
    await post.queue("one:bad", "first", "second")
    async with post.running(channel) as sending:
        await channel.until(lambda: channel.tried == ["first"])
        for text in ("hello", "goodbye"):
            await post.queue("one:good", text)
            sending.wake()
            await channel.until(lambda text=text: text in channel.texts)
        await sending.flush("one:good")
    assert channel.tried == ["first", "hello", "goodbye"], "a chat's second text waits for its first"
    assert post.states() == [("queued", None)] * 2 + [("sent", None)] * 2


# --- failing ------------------------------------------------------------------------------------------------


async def test_a_text_that_fails_is_tried_again_and_arrives_once_before_those_behind_it(post: Post) -> None:
    channel = Channel("one", failing(4, only="first"))
    await post.queue("one:a", "first", "second")
    async with post.running(channel) as sending:
        await sending.flush("one:a")
    assert channel.tried == ["first"] * 5 + ["second"]
    assert channel.texts == ["first", "second"]
    assert post.states() == [("sent", None)] * 2


async def test_what_a_service_refuses_is_tried_once_and_the_main_chat_hears_why(post: Post) -> None:
    channel, main = Channel("one", failing(1000, only="bad", error=Refused)), Channel("main")
    await post.queue("one:a", "a bad text", "good")
    async with post.running(channel, main) as sending:
        await sending.flush("one:a")
        assert channel.tried == ["a bad text", "good"]
        await main.until(lambda: bool(main.sent))
    assert "through one (the line is down)" in main.sent[0][1]


async def test_a_text_that_cannot_be_sent_is_given_up_and_the_main_chat_is_told_all_about_it(post: Post) -> None:
    channel, main = Channel("one", failing(1000, only="bad")), Channel("main")
    await post.queue("one:a", "a bad text", "good")
    async with post.running(channel, main) as sending:
        await sending.flush("one:a")
        assert (channel.tried, channel.texts) == (["a bad text"] * 5 + ["good"], ["good"])
        await main.until(lambda: bool(main.sent))  # without being asked
        for jid in ("one:a", MAIN):
            await sending.flush(jid)
        assert len(channel.tried) == 6, "what was given up is not tried again"
    ((jid, notice),) = main.sent
    assert jid == MAIN
    for part in ("one:a", "through one", "OSError: the line is down", "a bad text"):
        assert part in notice
    assert post.states() == [("failed", "OSError: the line is down"), ("sent", None), ("sent", None)]


async def test_the_main_chat_is_not_told_of_its_own_trouble(post: Post) -> None:
    channels = [Channel(name, failing(1000)) for name in ("one", "main")]
    await post.queue("one:a", "hello")
    await post.queue(MAIN, "goodbye")
    async with post.running(*channels) as sending:
        for jid in ("one:a", MAIN, MAIN):
            await sending.flush(jid)
    # The notice of the first was the last: it would never end.
    assert post.states() == [("failed", "OSError: the line is down")] * 3


@pytest.mark.parametrize("broken", ["is_connected", "owns_jid", "prefix_assistant_name"])
async def test_a_channel_that_is_broken_inside_hurts_no_other_and_is_served_at_the_next_wake_after_that(
    post: Post, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    class Bad(Channel):
        pass

    def fail(_: Channel) -> None:
        raise RuntimeError("as you wished")

    bad, good = Bad("bad"), Channel("good")
    for channel in (bad, good):
        await post.queue(f"{channel.name}:a", "first", "second")
    with monkeypatch.context() as patch:
        patch.setattr(Bad, broken, property(fail))
        async with post.running(bad, good) as sending:
            for channel in (bad, good):
                await sending.flush(f"{channel.name}:a")
            assert (bad.tried, good.texts) == ([], ["first", "second"])
            patch.undo()
            sending.wake()
            await bad.until(lambda: bad.texts == ["first", "second"])


@pytest.mark.parametrize("fails", [False, True], ids=["sent", "given up"])
async def test_a_text_is_tried_no_further_while_the_database_cannot_be_told_of_its_end(
    post: Post, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr(database, "_LOCK_PATIENCE", 0)
    channel = Channel("main", failing(1000 if fails else 0))
    async with Store.open(post.path) as post.store:
        await post.queue(MAIN, "hello")
        with closing(sqlite3.connect(post.path, isolation_level=None)) as other, capture_logs() as logs:
            other.execute("BEGIN IMMEDIATE")  # from here on nothing else can be written
            async with post.running(channel) as sending:
                while sum("does not take a write" in entry["event"] for entry in logs) < 2:
                    sending.wake()
                    await asyncio.sleep(0)
                assert post.states() == [("queued", None)]
                other.execute("ROLLBACK")
                await sending.flush(MAIN)
    assert channel.tried == ["hello"] * (5 if fails else 1)
    assert post.states() == [("failed", "OSError: the line is down") if fails else ("sent", None)]


# --- flush --------------------------------------------------------------------------------------------------


async def test_flush_returns_when_all_of_its_chat_is_sent_and_not_before(post: Post) -> None:
    permits = asyncio.Semaphore(0)

    async def before(jid: str, text: str) -> None:
        await permits.acquire()

    channels = one, slow = Channel("one", before), Channel("slow", hanging)
    await post.queue("slow:bad", "never")
    await post.queue("one:a", "first")
    async with post.running(*channels) as sending:
        await one.until(lambda: one.tried == ["first"])
        await post.queue("one:a", "second")
        flushing = asyncio.create_task(sending.flush("one:a"))
        for tried in (["first"], ["first", "second"]):
            await one.until(lambda tried=tried: one.tried == tried)
            await until_all_wait()
            assert not flushing.done()
            permits.release()
        await flushing
        assert (one.texts, slow.texts) == (["first", "second"], []), "another chat's texts are not waited for"


async def test_many_flushes_at_once_all_return(post: Post) -> None:
    channel = Channel("one")

    async def say(number: int) -> None:
        await post.queue(f"one:{number % 3}", f"{number}")
        await sending.flush(f"one:{number % 3}")
        assert f"{number}" in channel.texts

    async with post.running(channel) as sending:
        await asyncio.gather(*(say(number) for number in range(60)))
    assert len(channel.sent) == 60


# --- what breaks inside -------------------------------------------------------------------------------------


class Breaking(Store):
    """A database whose next call of the method `broken` fails, for a reason that is not the disk's."""

    broken = ""

    async def _maybe(self, name: str) -> None:
        if self.broken == name:
            self.broken = ""
            raise sqlite3.DatabaseError("something else")

    async def chats_with_queued(self) -> list[str]:
        await self._maybe("chats_with_queued")
        return await super().chats_with_queued()

    async def next_queued(self, jid: str) -> Outgoing | None:
        await self._maybe("next_queued")
        return await super().next_queued(jid)


@pytest.mark.parametrize("broken", ["chats_with_queued", "next_queued"])
async def test_what_could_not_be_read_once_is_sent_without_being_woken(
    broken: str, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_LOOK_AGAIN_AFTER", 0.01)
    channel = Channel("one")
    async with Breaking.open(post.path) as post.store:
        assert isinstance(post.store, Breaking)
        await post.queue("one:a", "first")
        post.store.broken = broken
        async with post.running(channel):
            await channel.until(lambda: channel.texts == ["first"])


async def test_a_flush_after_the_end_starts_nothing(post: Post) -> None:
    channel = Channel("one")
    async with post.running(channel) as sending:
        await sending.flush("one:a")
    await post.queue("one:a", "for the next start")
    await sending.flush("one:a")
    assert channel.tried == []


async def test_a_channel_that_turns_its_cancellation_into_an_error_holds_up_no_end(post: Post) -> None:
    async def stubborn(jid: str, text: str) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise OSError("closed") from None

    channel = Channel("one", stubborn)
    await post.queue("one:a", "first")
    async with post.running(channel):
        await channel.until(lambda: channel.tried == ["first"])
    assert channel.tried == ["first"]


async def test_a_channel_that_cancels_by_itself_is_tried_again(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "_FIRST_PAUSE", 0.01)
    cancelling = 1

    async def before(jid: str, text: str) -> None:
        nonlocal cancelling
        cancelling -= 1
        if not cancelling:
            raise asyncio.CancelledError

    channel = Channel("one", before)
    await post.queue("one:a", "first")
    async with post.running(channel):
        await channel.until(lambda: channel.texts == ["first"])


async def test_a_channel_that_loses_its_connection_keeps_what_it_did_not_send(post: Post) -> None:
    async def lost(jid: str, text: str) -> None:
        channel.connected = False
        raise OSError("the line is down")

    channel = Channel("one", lost)
    await post.queue("one:a", "first")
    async with post.running(channel) as sending:
        await channel.until(lambda: bool(channel.tried))
        channel.before, channel.connected = None, True
        await sending.flush("one:a")
    assert channel.texts == ["first"]
    assert len(channel.tried) == 2
