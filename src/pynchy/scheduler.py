"""The clock behind the tasks: claims what has come due and hands it over, whatever the machine's own clock does."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import structlog

from pynchy.tasks import TaskRun, Tasks, ZoneOf

log = structlog.get_logger(__name__)

#: The timers of a machine that sleeps stand still, and its clock may be set: it is looked at this often, in seconds.
_LOOK_EVERY = 30.0
#: After the database or our own code has failed, it is tried again in so many seconds.
_AFTER_AN_ERROR = 5.0


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _never() -> bool:
    return False


def _nothing() -> None:
    """Nobody wants to know."""


async def _wait(woken: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await woken.wait()
    except TimeoutError:
        pass


class Scheduler:
    """Hands each run that is to be started to `start`, which neither waits nor raises.

    While `hold()` is true nothing is claimed or handed over: what comes due then waits, and may be late. `recovered`
    is called once what an earlier service left behind is taken up, which may have queued notices. `wait` returns
    when the event is set or the seconds have passed.
    """

    def __init__(
        self,
        tasks: Tasks,
        zone_of: ZoneOf,
        start: Callable[[TaskRun], None],
        clock: Callable[[], datetime] = _utc_now,
        wait: Callable[[asyncio.Event, float], Awaitable[None]] = _wait,
        hold: Callable[[], bool] = _never,
        recovered: Callable[[], None] = _nothing,
    ) -> None:
        self._tasks = tasks
        self._zone_of = zone_of
        self._start = start
        self._clock = clock
        self._wait = wait
        self._hold = hold
        self._on_recovery = recovered
        self._woken = asyncio.Event()
        self._ready: deque[TaskRun] = deque()
        self._recovered = False
        self._looked: datetime | None = None

    def wake(self) -> None:
        """Look again: a task is new or changed, or nothing holds them up any more. Never waits."""
        self._woken.set()

    async def run(self) -> None:
        """Start with what an earlier service left behind, and go on until cancelled."""
        while True:
            self._woken.clear()
            try:
                pause = await self._look()
            except Exception:
                log.exception("cannot look for tasks that are due; trying again")
                pause = _AFTER_AN_ERROR
            await self._wait(self._woken, pause)

    async def _look(self) -> float:
        """Do what is to be done now; returns in how many seconds to look again."""
        now = self._clock()
        await self._take_up(now)
        if self._hold():
            return _LOOK_EVERY
        self._ready.extend(await self._tasks.claim_due(now, self._zone_of))
        while self._ready:
            self._start(self._ready.popleft())
        due = await self._tasks.next_due()
        return _LOOK_EVERY if due is None else min(max(0.0, (due - self._clock()).total_seconds()), _LOOK_EVERY)

    async def _take_up(self, now: datetime) -> None:
        """Recover after a start; and then, or when the clock went back, find anew when each task comes next."""
        if not self._recovered:
            self._ready.extend(await self._tasks.recover(now))
            self._recovered = True
            self._on_recovery()
        if self._looked is None or now < self._looked:
            await self._tasks.reschedule(now, self._zone_of)
        self._looked = now
