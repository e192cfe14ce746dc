"""Who runs when: one agent a group, a limit over all, first come first served between groups.

A group that has its place keeps it until it has no work, and for a while after; but when others wait, it
leaves after each answer and stands in line again, and a place that is idle is given up at once. Everything
here is woken by events; nothing polls.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from enum import Enum

import structlog

log = structlog.get_logger(__name__)

#: After our own code has failed, a group is tried again in so many seconds.
_AFTER_AN_ERROR = 5.0


class Wake(Enum):
    """Why a place that was idle goes on."""

    WORK = "work"  # there may be something to do
    LEAVE = "leave"  # idle for too long, another group waits, or everything stops


class Place:
    """One group's permission to run an agent."""

    def __init__(self, queue: GroupQueue, jid: str) -> None:
        self._queue = queue
        self.jid = jid
        self.has_work = asyncio.Event()
        self._leave = asyncio.Event()
        #: Where its work is to be tried again later: in how many seconds.
        self.again_in: float | None = None

    @property
    def wanted(self) -> bool:
        """Whether another group waits that no other place will go to."""
        return self._leave.is_set() or self._queue.more_wait_than_leave

    def yield_turn(self) -> bool:
        """Whether to leave now, between two answers, because others wait; then the place counts as theirs."""
        if self.wanted:
            self._leave.set()
        return self._leave.is_set()

    async def idle(self, seconds: float) -> Wake:
        """Wait for work, at most that many seconds; the place may be asked to leave meanwhile."""
        self._queue.note_idle(self)
        waits = [asyncio.ensure_future(event.wait()) for event in (self.has_work, self._leave)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            self._queue.note_busy(self)
        # An ask to leave goes first: the group stands in line again if it has work.
        if self.has_work.is_set() and not self._leave.is_set():
            self.has_work.clear()
            return Wake.WORK
        return Wake.LEAVE

    def ask_to_leave(self) -> None:
        """End the idling, now or when it begins."""
        self._leave.set()

    @property
    def leaving(self) -> bool:
        """Whether it was asked to leave, or leaves by itself for those that wait."""
        return self._leave.is_set()


class GroupQueue:
    """Runs `work(place)` for each group that was woken, at most `limit` at a time.

    `work` returns when its group has nothing more to do or was asked to leave; a group that was woken
    meanwhile stands in line again, one that set `place.again_in` does so after that time.
    """

    def __init__(self, limit: int, work: Callable[[Place], Awaitable[None]]) -> None:
        self._limit = limit
        self._work = work
        self._places: dict[str, Place] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._later: dict[str, asyncio.TimerHandle] = {}
        self._idle: OrderedDict[str, Place] = OrderedDict()  # longest idle first
        self._closing = False

    def wake(self, jid: str) -> None:
        """Say that a group has something to do. Never waits."""
        if self._closing or jid in self._later:
            return
        if place := self._places.get(jid):
            place.has_work.set()
        else:
            self._waiting[jid] = None
            self._dispatch()

    @property
    def running(self) -> list[str]:
        """The groups that have a place, in no order."""
        return list(self._places)

    @property
    def waiting(self) -> list[str]:
        """The groups that wait for a place, next first."""
        return list(self._waiting)

    @property
    def more_wait_than_leave(self) -> bool:
        """Whether groups wait that no place has been promised to."""
        return len(self._waiting) > self._leaving

    async def close(self) -> None:
        """Let every group leave and wait until all have."""
        self._closing = True
        self._waiting.clear()
        for timer in self._later.values():
            timer.cancel()
        self._later.clear()
        for place in self._places.values():
            place.ask_to_leave()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        # A task that was cancelled before it began could not take itself out.
        self._places.clear()
        self._tasks.clear()

    def note_idle(self, place: Place) -> None:
        """A place begins to idle; where others wait, it is asked to leave."""
        self._idle[place.jid] = place
        self._make_room()

    def note_busy(self, place: Place) -> None:
        """A place stops idling."""
        self._idle.pop(place.jid, None)

    @property
    def _leaving(self) -> int:
        return sum(1 for place in self._places.values() if place.leaving)

    def _dispatch(self) -> None:
        while self._waiting and len(self._places) < self._limit and not self._closing:
            jid, _ = self._waiting.popitem(last=False)
            place = Place(self, jid)
            self._places[jid] = place
            task = asyncio.get_running_loop().create_task(self._run(place))
            self._tasks[jid] = task
        self._make_room()

    def _make_room(self) -> None:
        while self._idle and self.more_wait_than_leave:
            _, place = self._idle.popitem(last=False)
            place.ask_to_leave()

    async def _run(self, place: Place) -> None:
        try:
            await self._work(place)
        except (Exception, asyncio.CancelledError):
            if self._closing:
                raise
            log.exception("the work of a group failed", jid=place.jid)
            place.again_in = max(place.again_in or 0, _AFTER_AN_ERROR)
        finally:
            del self._places[place.jid], self._tasks[place.jid]
            if not self._closing:
                self._stand_in_line(place)
            self._dispatch()

    def _stand_in_line(self, place: Place) -> None:
        if place.again_in is not None:
            loop = asyncio.get_running_loop()
            self._later[place.jid] = loop.call_later(place.again_in, self._wake_again, place.jid)
        elif place.has_work.is_set():
            self._waiting[place.jid] = None

    def _wake_again(self, jid: str) -> None:
        del self._later[jid]
        self.wake(jid)
