"""From the outbox to the channels: in order, as often as needed, and nobody waits for somebody else's trouble."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from pynchy import outbox as outbox_module
from pynchy.outbox import Outbox
from pynchy.store import Store
from pynchy.types import NotConnected

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once."""
    monkeypatch.setattr(outbox_module, "_FIRST_PAUSE", 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pynchy.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    async with Store.open(path) as store:
        yield store


class Channel:
    """A channel that owns the chats whose addresses begin with its name, and keeps what it was given."""

    prefix_assistant_name = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.connected = True
        self.sent: list[tuple[str, str]] = []
        self.attempts = 0
        #: Called before a text is taken; may raise, or wait.
        self.before: Callable[[str, str], Awaitable[None]] | None = None

    async def connect(self) -> None:
        self.connected = True

    async def disconnect(self) -> None:
        self.connected = False

    def is_connected(self) -> bool:
        return self.connected

    def owns_jid(self, jid: str) -> bool:
        return jid.startswith(f"{self.name}:")

    async def send_message(self, jid: str, text: str) -> None:
        self.attempts += 1
        if self.before:
            await self.before(jid, text)
        self.sent.append((jid, text))

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.sent]


@asynccontextmanager
async def running(store: Store, *channels: Channel) -> AsyncIterator[Outbox]:
    """An outbox that sends meanwhile."""
    outbox = Outbox(store, channels, "Pynchy")
    task = asyncio.create_task(outbox.run())
    try:
        yield outbox
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def flush(outbox: Outbox) -> None:
    async with asyncio.timeout(30):
        await outbox.flush()


def states(path: Path) -> list[tuple[str, str | None]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT state, error FROM outbox ORDER BY id").fetchall()


async def until_all_wait() -> None:
    """Let every task go on until nothing but this one, or the database, can."""
    for _ in range(50):
        await asyncio.sleep(0)


# --- in order -----------------------------------------------------------------------------------------------


async def test_each_channel_gets_the_texts_of_its_chats_in_order_and_once(store: Store, path: Path) -> None:
    one, two = Channel("one"), Channel("two")
    async with running(store, one, two) as outbox:
        for number in range(20):
            await store.enqueue(f"{'one' if number % 2 else 'two'}:{number % 3}", f"{number}", "reply")
            if number % 7 == 0:
                outbox.wake()
        await flush(outbox)
        await flush(outbox)
    assert one.texts == [f"{number}" for number in range(1, 20, 2)]
    assert two.texts == [f"{number}" for number in range(0, 20, 2)]
    assert all(jid.startswith("one:") for jid, _ in one.sent)
    assert states(path) == [("sent", None)] * 20


async def test_a_text_goes_out_under_the_assistants_name_where_the_channel_wants_it(store: Store) -> None:
    class Shared(Channel):
        prefix_assistant_name = True

    channel = Shared("one")
    await store.enqueue("one:a", "hello", "reply")
    async with running(store, channel) as outbox:
        await flush(outbox)
    assert channel.texts == ["Pynchy: hello"]


async def test_what_was_queued_before_the_start_is_sent_without_being_asked(store: Store) -> None:
    channel, sent = Channel("one"), asyncio.Event()

    async def before(jid: str, text: str) -> None:
        sent.set()

    channel.before = before
    await store.enqueue("one:a", "from yesterday", "reply")
    async with running(store, channel), asyncio.timeout(30):
        await sent.wait()
    assert channel.texts == ["from yesterday"]


async def test_what_was_under_way_when_the_service_stopped_is_sent_by_the_next(store: Store, path: Path) -> None:
    channel, sending = Channel("one"), asyncio.Event()

    async def before(jid: str, text: str) -> None:
        sending.set()
        await asyncio.Event().wait()

    channel.before = before
    await store.enqueue("one:a", "hello", "reply")
    async with running(store, channel), asyncio.timeout(30):
        await sending.wait()
    assert states(path) == [("queued", None)]
    channel.before = None
    async with running(store, channel) as outbox:
        await flush(outbox)
    assert channel.texts == ["hello"]


# --- not now ------------------------------------------------------------------------------------------------


async def test_a_chat_that_cannot_be_reached_keeps_its_texts_in_order_and_others_go_out(
    store: Store, path: Path
) -> None:
    channel = Channel("one")
    tried: set[str] = set()

    async def before(jid: str, text: str) -> None:
        tried.add(text)
        if jid == "one:away":
            raise NotConnected(jid)

    channel.before = before
    for number in range(3):
        await store.enqueue("one:away", f"away {number}", "reply")
        await store.enqueue("one:here", f"here {number}", "reply")
    async with running(store, channel) as outbox:
        await flush(outbox)
        assert channel.texts == ["here 0", "here 1", "here 2"]
        assert tried == {"away 0", "here 0", "here 1", "here 2"}, "the first shows that the chat is away"
        assert states(path) == [("queued", None), ("sent", None)] * 3
        channel.before = None
        await flush(outbox)
    assert channel.texts[3:] == ["away 0", "away 1", "away 2"]
    assert states(path) == [("sent", None)] * 6


async def test_a_channel_that_is_not_connected_is_not_tried_until_it_is(store: Store, path: Path) -> None:
    channel = Channel("one")
    await channel.disconnect()
    await store.enqueue("one:a", "hello", "reply")
    async with running(store, channel) as outbox:
        await flush(outbox)
        assert channel.attempts == 0
        assert states(path) == [("queued", None)]
        await channel.connect()
        outbox.wake()
        await flush(outbox)
    assert channel.texts == ["hello"]


async def test_what_cannot_be_sent_never_stands_in_the_way_of_what_can_however_much_it_is(store: Store) -> None:
    away, here = Channel("away"), Channel("here")
    await away.disconnect()
    for number in range(1100):
        await store.enqueue(("away:a", "nobody:a")[number % 2], "waits", "reply")
    await store.enqueue("here:a", "hello", "reply")
    async with running(store, away, here) as outbox:
        await flush(outbox)
        assert here.texts == ["hello"]
        await away.connect()
        await flush(outbox)
    assert len(away.sent) == 550


# --- failing ------------------------------------------------------------------------------------------------


def failing(times: int, only: str = "") -> Callable[[str, str], Awaitable[None]]:
    """Fails so many times for texts that contain `only`."""
    left = times

    async def before(jid: str, text: str) -> None:
        nonlocal left
        if only in text and left:
            left -= 1
            raise OSError("the line is down")

    return before


async def test_a_channel_that_fails_is_tried_again_and_the_text_arrives_once(store: Store, path: Path) -> None:
    channel = Channel("one")
    channel.before = failing(4)
    await store.enqueue("one:a", "hello", "reply")
    async with running(store, channel) as outbox:
        await flush(outbox)
    assert (channel.texts, channel.attempts) == (["hello"], 5)
    assert states(path) == [("sent", None)]


async def test_a_text_that_cannot_be_sent_is_given_up_with_the_reason_and_the_next_goes_out(
    store: Store, path: Path
) -> None:
    channel = Channel("one")
    channel.before = failing(1000, only="bad")
    for text in ("bad", "good"):
        await store.enqueue("one:a", text, "reply")
    async with running(store, channel) as outbox:
        await flush(outbox)
        attempts = channel.attempts
        await flush(outbox)
        assert channel.attempts == attempts, "what was given up is not tried again"
    assert channel.texts == ["good"]
    assert attempts == 5 + 1
    assert states(path) == [("failed", "OSError: the line is down"), ("sent", None)]


async def test_later_texts_of_a_chat_wait_for_the_one_that_is_tried_again(store: Store) -> None:
    channel = Channel("one")
    channel.before = failing(3, only="first")
    for text in ("first", "second"):
        await store.enqueue("one:a", text, "reply")
    async with running(store, channel) as outbox:
        await flush(outbox)
    assert channel.texts == ["first", "second"]


@pytest.mark.parametrize("broken", ["is_connected", "owns_jid"])
async def test_a_channel_that_is_broken_inside_stops_neither_others_nor_itself(
    store: Store, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    bad, good = Channel("bad"), Channel("good")
    for name in ("bad", "good"):
        await store.enqueue(f"{name}:a", "hello", "reply")

    def fail(*_: object) -> bool:
        raise RuntimeError("as you wished")

    with monkeypatch.context() as patch:
        patch.setattr(bad, broken, fail)
        async with running(store, bad, good) as outbox:
            await flush(outbox)
            assert (bad.texts, good.texts) == ([], ["hello"])
            patch.undo()
            await flush(outbox)
            assert bad.texts == ["hello"], "when it is well again it is served"


async def test_a_slow_channel_holds_up_no_other(store: Store) -> None:
    slow, quick = Channel("slow"), Channel("quick")
    go_on, sending, arrived = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def wait(jid: str, text: str) -> None:
        sending.set()
        await go_on.wait()

    async def note(jid: str, text: str) -> None:
        if text == "last":
            arrived.set()

    slow.before, quick.before = wait, note
    await store.enqueue("slow:a", "hello", "reply")
    async with running(store, slow, quick) as outbox, asyncio.timeout(30):
        await sending.wait()
        for text in ("first", "last"):
            await store.enqueue("quick:a", text, "reply")
            outbox.wake()
        await arrived.wait()
        assert slow.texts == []
        go_on.set()
        await outbox.flush()
    assert (slow.texts, quick.texts) == (["hello"], ["first", "last"])


# --- flush --------------------------------------------------------------------------------------------------


async def test_flush_returns_when_all_is_sent_and_not_before(store: Store) -> None:
    one, two = Channel("one"), Channel("two")
    permits, tries = asyncio.Semaphore(0), asyncio.Queue[str]()

    async def wait(jid: str, text: str) -> None:
        tries.put_nowait(text)
        await permits.acquire()

    one.before = two.before = wait
    for text in ("first", "second"):
        await store.enqueue("one:a", text, "reply")
    await store.enqueue("two:a", "third", "reply")
    async with running(store, one, two) as outbox, asyncio.timeout(30):
        flushing = asyncio.create_task(outbox.flush())
        for _ in range(3):
            await tries.get()
            await until_all_wait()
            assert not flushing.done()
            permits.release()
        await flushing
    assert (one.texts, two.texts) == (["first", "second"], ["third"])


async def test_flush_includes_what_was_queued_while_something_was_being_sent(store: Store) -> None:
    channel = Channel("one")
    sending, go_on = asyncio.Event(), asyncio.Event()

    async def wait(jid: str, text: str) -> None:
        sending.set()
        await go_on.wait()

    channel.before = wait
    await store.enqueue("one:a", "first", "reply")
    async with running(store, channel) as outbox, asyncio.timeout(30):
        await sending.wait()
        await store.enqueue("one:a", "second", "reply")
        flushing = asyncio.create_task(outbox.flush())
        go_on.set()
        await flushing
        assert channel.texts == ["first", "second"]


async def test_flush_that_comes_as_a_channel_is_done_includes_what_was_queued_since(store: Store) -> None:
    channel = Channel("one")
    await store.enqueue("one:a", "first", "reply")
    async with running(store, channel) as outbox, asyncio.timeout(30):
        async with outbox._idle:  # the channel's task is done with its queue and waits to say so
            while not outbox._idle._lock._waiters:  # pyright: ignore[reportAttributeAccessIssue]
                await asyncio.sleep(0)
            await store.enqueue("one:a", "second", "reply")
            flushing = asyncio.create_task(outbox.flush())
            await until_all_wait()
        await flushing
        assert channel.texts == ["first", "second"]


async def test_many_flushes_at_once_all_return(store: Store) -> None:
    one, two = Channel("one"), Channel("two")

    async def say(number: int) -> None:
        await store.enqueue(f"{('one', 'two')[number % 2]}:a", f"{number}", "reply")
        await outbox.flush()
        assert f"{number}" in one.texts + two.texts

    async with running(store, one, two) as outbox, asyncio.timeout(30):
        await asyncio.gather(*(say(number) for number in range(60)))
    assert len(one.sent) == len(two.sent) == 30


async def test_flush_with_nothing_to_send_returns(store: Store) -> None:
    away = Channel("away")
    await away.disconnect()
    async with running(store, away, Channel("idle")) as outbox:
        await flush(outbox)
        await flush(outbox)
