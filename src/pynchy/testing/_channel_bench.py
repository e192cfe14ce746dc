"""Where ChannelConformance has its channels: made as Pynchy makes them, watched, and disconnected in time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from structlog.testing import capture_logs

from pynchy.channel_host import create_channel, owner_among
from pynchy.home import make_private
from pynchy.outbox import Outbox
from pynchy.plugin import Channel, PluginRegistry
from pynchy.plugin_calls import PluginRaised
from pynchy.store import Store
from pynchy.testing._channel_sides import FarSide, Inbox, Overheard, differ
from pynchy.testing._outcome import fail

#: What Pynchy gives a channel, in seconds.
CONNECT_WITHIN = 60.0
DISCONNECT_WITHIN = 5.0
#: How long the event loop may be held up, in seconds: much more than it should be, for machines that are busy.
HELD_UP_FOR = 1.5
#: How long what ought not to come is waited for, in seconds.
_A_MOMENT = 0.3
#: What ends by itself may take so long at least, in seconds.
_ENDING = 3.0
_ASSISTANT = "Pynchy"


def ending(patience: float) -> float:
    """How long what ends by itself may take, in seconds."""
    return max(_ENDING, patience)


class Bench:
    """One test's far side, its store, and the channels between them, all of one home.

    What takes longer than `patience` seconds without any progress does not happen any more.
    """

    def __init__(self, far: FarSide, home: Path, patience: float) -> None:
        self.far = far
        self.inbox = Inbox(far.jid)
        self.folder = home
        self._patience = patience
        self._connected: list[Channel] = []
        self._before = asyncio.all_tasks()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, far_side: Callable[[Path], AbstractAsyncContextManager[FarSide]], home: Path, patience: float
    ) -> AsyncIterator[Bench]:
        """A bench with this far side, whose channels are disconnected at the end."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("PYNCHY_")}
        make_private(home)
        with patch.dict(os.environ, {**own, "PYNCHY_HOME": str(home)}, clear=True):
            async with far_side(home) as far:
                os.environ.update(far.environment)
                bench = cls(far, home, patience)
                try:
                    yield bench
                finally:
                    leaving = [asyncio.ensure_future(channel.disconnect()) for channel in bench._connected]
                    if leaving:
                        await asyncio.wait(leaving, timeout=DISCONNECT_WITHIN)

    # --- the channel ----------------------------------------------------------------------------------------

    def create(self) -> Channel:
        """A new channel, not yet connected."""
        plugin = Overheard(self.far.plugin, self.inbox.refused)
        try:
            return create_channel(PluginRegistry(channels=[plugin]), plugin, self.folder, self.inbox)
        except (PluginRaised, TypeError) as error:
            fail(f"create_channel() did not give a channel: {error}")

    async def connect(self, channel: Channel | None = None) -> Channel:
        """Connect a channel, or a new one."""
        channel = channel or self.create()
        self._connected.append(channel)
        connecting = asyncio.ensure_future(channel.connect())
        if not await ended(connecting, CONNECT_WITHIN):
            connecting.cancel()
            fail(f"connect() did not return within {CONNECT_WITHIN:.0f} s, though the far side is there")
        if error := error_of(connecting):
            fail(f"connect() raised {error!r}, though the far side is there")
        if channel.is_connected() is not True:
            fail(f"connect() has returned, and is_connected() says {channel.is_connected()!r} instead of True")
        return channel

    async def disconnect(self, channel: Channel) -> None:
        """Disconnect a channel, in time."""
        if channel in self._connected:
            self._connected.remove(channel)
        leaving = asyncio.ensure_future(channel.disconnect())
        if not await ended(leaving, DISCONNECT_WITHIN):
            leaving.cancel()
            fail(f"disconnect() did not return within {DISCONNECT_WITHIN:.0f} s: cancel what it waits for")
        if error := error_of(leaving):
            fail(f"disconnect() raised {error!r}: it must release what there is, in every state, and then return")
        if channel.is_connected() is not False:
            fail(f"disconnect() has returned, and is_connected() says {channel.is_connected()!r} instead of False")

    async def no_task_is_left(self) -> None:
        """Return once every task that has begun since this bench was made has ended."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + ending(self._patience)
        while (tasks := asyncio.all_tasks() - self._before) and (left := deadline - clock()) > 0:
            await asyncio.wait(tasks, timeout=left)
        if tasks:
            names = ", ".join(sorted(getattr(task.get_coro(), "__qualname__", task.get_name()) for task in tasks))
            fail(f"after disconnect() tasks still run: {names}; cancel and await each that the channel has started")

    # --- in -------------------------------------------------------------------------------------------------

    async def handed(self, count: int) -> None:
        """Return once so many messages have been handed over."""
        if not await self._progress(lambda: len(self.inbox.handed), count):
            fail(
                f"of {count} messages {len(self.inbox.handed)} were handed over, and no more in {self._patience:.0f} s"
            )

    async def arrive(self, texts: Sequence[str], anew: Callable[[], Awaitable[object]] | None = None) -> None:
        """Return once exactly these texts are stored, in this order; `anew` is tried where some do not come."""
        wanted = set(texts)

        def count() -> int:
            return len(wanted.intersection(self.inbox.texts))

        tries = 3 if anew else 0
        while not await self._progress(count, len(wanted)) and anew and tries:
            await anew()
            tries -= 1
        await asyncio.sleep(_A_MOMENT)
        if self.inbox.texts != list(texts):
            fail(self.inbox.difference(texts))

    # --- out ------------------------------------------------------------------------------------------------

    async def say(self, channel: Channel, *texts: str) -> None:
        """Have Pynchy's own outbox send these texts; return once a reader has all of them, whole and in order.

        Whitespace is not compared: it is where a text may be split.
        """
        before = len(_plain(self.far.read()))
        expected = _plain(
            f"{_ASSISTANT}: {text}" if getattr(channel, "prefix_assistant_name", True) else text for text in texts
        )
        with capture_logs() as logs:
            async with Store.open(self.folder / "pynchy.db") as store:
                outbox = Outbox(
                    store, lambda jid: owner_among([channel], jid), _ASSISTANT, lambda: self.far.jid, self.folder
                )
                sending = asyncio.create_task(outbox.run())
                for text in texts:
                    await store.enqueue(self.far.jid, text, "reply")
                outbox.wake()
                await self._progress(lambda: len(_plain(self.far.read())) - before, len(expected))
                await ended(asyncio.create_task(outbox.flush(self.far.jid)), ending(self._patience))
                sending.cancel()
                await asyncio.wait([sending])
        if (read := _plain(self.far.read())[before:]) != expected:
            if raised := [one["error"] for one in logs if one["event"] == "a channel could not send"]:
                fail(f"send_message() raised {raised[0]}, and was called {len(raised)} times")
            fail(
                f"what was sent and what a reader sees, both without spaces, {differ(expected, read)}: "
                "send every character once and in order, or raise"
            )

    # --- waiting --------------------------------------------------------------------------------------------

    async def _progress(self, count: Callable[[], int], wanted: int) -> bool:
        """Wait until a count is there, for as long as it rises; whether it is."""
        clock = asyncio.get_running_loop().time
        highest, since = count(), clock()
        while highest < wanted:
            if clock() - since > self._patience:
                return False
            await asyncio.sleep(0.01)
            if (now := count()) > highest:
                highest, since = now, clock()
        return True


@asynccontextmanager
async def heartbeat() -> AsyncIterator[None]:
    """Fail where the event loop is held up meanwhile."""
    clock, longest = asyncio.get_running_loop().time, 0.0

    async def beat() -> None:
        nonlocal longest
        last = clock() - _waited()
        while True:
            await asyncio.sleep(0.01)
            now = clock() - _waited()
            longest, last = max(longest, now - last), now

    beating = asyncio.create_task(beat())
    try:
        yield
        await asyncio.sleep(0.02)
    finally:
        beating.cancel()
        await asyncio.wait([beating])
    if longest > HELD_UP_FOR:
        fail(f"the event loop was held up for {longest:.1f} s: run what blocks with asyncio.to_thread")


def _waited() -> float:
    """How many seconds this thread has waited for a processor, which is the machine's doing; 0 but on Linux."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, LookupError, ValueError):
        return 0.0


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test on an event loop of its own, which is closed in time even where something refuses to end."""
    loop = asyncio.new_event_loop()
    try:
        try:
            loop.run_until_complete(test())
        finally:
            loop.run_until_complete(_end_everything())
    finally:
        loop.close()


async def _end_everything() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    # Not asyncio.run, which waits for what swallows its cancellation, nor a timeout around the last: it joins a thread.
    if tasks:
        await asyncio.wait(tasks, timeout=DISCONNECT_WITHIN)
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    await asyncio.wait([loop.create_task(loop.shutdown_default_executor())], timeout=_ENDING)


async def ended(task: asyncio.Future[Any], within: float) -> bool:
    """Wait for a task without cancelling it; whether it has ended."""
    await asyncio.wait([task], timeout=within)
    return task.done()


def error_of(task: asyncio.Future[Any]) -> BaseException | None:
    """What a task that has ended raised, its own cancellation included."""
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def _plain(texts: Iterable[str]) -> str:
    return "".join("".join(texts).split())
