"""Who runs when: one agent a group, a limit over all, first come first served between groups.

A group that has its place keeps it while it has work, and for a while after. When another group waits, the
place that has been idle longest is given up at once. Everything here is woken by events; nothing polls.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from enum import Enum

import structlog

log = structlog.get_logger(__name__)


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


class GroupQueue:
    """Runs `work(place)` for each group that was woken, at most `limit` at a time.

    `work` returns when its group has nothing more to do or was asked to leave; a group that was woken
    meanwhile stands in line again.
    """

    def __init__(self, limit: int, work: Callable[[Place], Awaitable[None]]) -> None:
        self._limit = limit
        self._work = work
        self._places: dict[str, Place] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._idle: OrderedDict[str, Place] = OrderedDict()  # longest idle first
        self._closing = False

    def wake(self, jid: str) -> None:
        """Say that a group has something to do. Never waits."""
        if self._closing:
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

    async def close(self) -> None:
        """Let every group leave and wait until all have."""
        self._closing = True
        self._waiting.clear()
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

    def _dispatch(self) -> None:
        while self._waiting and len(self._places) < self._limit and not self._closing:
            jid, _ = self._waiting.popitem(last=False)
            place = Place(self, jid)
            self._places[jid] = place
            task = asyncio.get_running_loop().create_task(self._run(place))
            self._tasks[jid] = task
        self._make_room()

    def _make_room(self) -> None:
        leaving = sum(1 for place in self._places.values() if place._leave.is_set())
        for _ in range(len(self._waiting) - leaving):
            if not self._idle:
                return
            _, place = self._idle.popitem(last=False)
            place.ask_to_leave()

    async def _run(self, place: Place) -> None:
        try:
            await self._work(place)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("the work of a group failed", jid=place.jid)
        finally:
            del self._places[place.jid], self._tasks[place.jid]
            if place.has_work.is_set() and not self._closing:
                self._waiting[place.jid] = None
            self._dispatch()
