"""The scheduler: when it looks, what it hands over, and two years of it in a world where everything goes wrong."""

from __future__ import annotations

import asyncio
import heapq
import random
import sqlite3
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from stored import column, damage, raw, rows
from structlog.testing import capture_logs

from pynchy import scheduler
from pynchy.database import Database
from pynchy.schedule import Schedule
from pynchy.scheduler import Scheduler
from pynchy.schema import migrate
from pynchy.tasks import Task, TaskRun, Tasks

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
GRACE = 120 * SECOND
LOOK_EVERY = 30.0


class Stopped(BaseException):
    """The process is gone, wherever it was."""


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Database]:
    """A database file that does not wait for the disk."""

    def prepare(db: sqlite3.Connection) -> None:
        migrate(db)
        db.execute("PRAGMA synchronous = OFF")

    async with Database.open(path, prepare) as db:
        yield db


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pynchy.db"


@pytest.fixture
async def tasks(path: Path) -> AsyncIterator[Tasks]:
    async with opened(path) as db:
        yield Tasks(db)


def utc(folder: str) -> ZoneInfo:
    return ZoneInfo("UTC")


async def add(tasks: Tasks, seconds: int = 3600, missed: str = "skip", now: datetime = NOW) -> Task:
    return await tasks.add("main", "prompt", Schedule("interval", str(seconds)), "group", missed, utc("main"), now)


Step = Callable[[], Awaitable[object]] | timedelta | None


@dataclass
class Play:
    """A scheduler whose clock goes, in each of its waits, by one of these steps: as far as it asked for, by some other
    time, or by what a call does; and it is gone when there is none left."""

    tasks: Tasks
    now: datetime = NOW
    held: bool = False
    asked: list[float] = field(default_factory=list)
    started: list[tuple[datetime, datetime]] = field(default_factory=list)  # when, and when it was due
    runs: list[TaskRun] = field(default_factory=list)
    scheduler: Scheduler | None = None

    async def go(self, *steps: Step) -> None:
        following = iter(steps)

        async def wait(woken: asyncio.Event, seconds: float) -> None:
            self.asked.append(seconds)
            try:
                step = next(following)
            except StopIteration:
                raise Stopped from None
            if step is None:
                self.now += seconds * SECOND
            elif isinstance(step, timedelta):
                self.now += step
            else:
                await step()

        self.scheduler = Scheduler(self.tasks, utc, self.start, lambda: self.now, wait, lambda: self.held)
        with pytest.raises(Stopped):
            await self.scheduler.run()

    def start(self, run: TaskRun) -> None:
        self.started.append((self.now, run.due_at))
        self.runs.append(run)

    async def finish(self) -> None:
        """The latest run ends."""
        await self.tasks.finish(self.runs[-1].id, "done", self.now)


# --- one thing at a time ------------------------------------------------------------------------------------


async def test_it_looks_when_something_is_due_and_else_every_half_minute(tasks: Tasks) -> None:
    play = Play(tasks)
    await add(tasks, 70)
    await play.go(None, None, None)
    assert play.asked == [30, 30, 10, 30]
    assert play.started == [(NOW + 70 * SECOND, NOW + 70 * SECOND)]


async def test_without_tasks_it_waits(tasks: Tasks) -> None:
    play = Play(tasks)
    await play.go(None, None)
    assert play.asked == [30, 30, 30]


async def test_a_clock_that_jumps_ahead_leads_to_what_is_late(tasks: Tasks) -> None:
    play = Play(tasks)
    await add(tasks, missed="skip")
    await add(tasks, missed="once")
    await play.go(5 * HOUR + HOUR / 2)
    assert play.started == [(NOW + 5 * HOUR + HOUR / 2, NOW + HOUR)]


async def test_a_clock_that_jumps_back_runs_nothing_twice_and_skips_nothing(tasks: Tasks) -> None:
    play = Play(tasks)
    await add(tasks)
    await play.go(HOUR, play.finish, HOUR, play.finish, -100 * MINUTE, 40 * MINUTE, HOUR, HOUR)
    assert [due for _, due in play.started] == [NOW + HOUR, NOW + 2 * HOUR, NOW + 3 * HOUR]


async def test_a_clock_that_was_far_ahead_keeps_nothing_from_coming(tasks: Tasks) -> None:
    play = Play(tasks)
    await add(tasks)
    await play.go(3650 * DAY + MINUTE, play.finish, -3650 * DAY, HOUR - MINUTE)
    assert [when for when, _ in play.started] == [NOW + 3650 * DAY + MINUTE, NOW + HOUR]


async def test_what_comes_due_while_it_is_held_waits(tasks: Tasks, path: Path) -> None:
    play = Play(tasks, held=True)
    await add(tasks, missed="skip")
    await add(tasks, missed="once")

    async def release() -> None:
        assert column(path, "SELECT id FROM task_runs") == []
        play.held = False

    await play.go(HOUR, HOUR / 2, release)
    assert play.asked[:3] == [30, 30, 30]
    assert play.started == [(NOW + 1.5 * HOUR, NOW + HOUR)]
    assert column(path, "SELECT state FROM task_runs ORDER BY task_id") == ["skipped", "claimed"]


async def test_a_run_that_was_left_behind_is_handed_over_first_and_once(tasks: Tasks) -> None:
    await add(tasks)
    await add(tasks, 3700)
    await Play(tasks).go(HOUR)
    play = Play(tasks, NOW + 3700 * SECOND)
    await play.go(None)
    assert [due for _, due in play.started] == [NOW + HOUR, NOW + 3700 * SECOND]


async def test_a_run_that_was_left_behind_waits_while_it_is_held(tasks: Tasks) -> None:
    await add(tasks)
    await Play(tasks).go(HOUR)
    play = Play(tasks, NOW + HOUR, held=True)

    async def release() -> None:
        assert play.started == []
        play.held = False

    await play.go(None, release)
    assert [due for _, due in play.started] == [NOW + HOUR]


async def test_the_time_zone_that_holds_at_a_start_is_the_one_that_counts(tasks: Tasks) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    await tasks.add("main", "prompt", Schedule("cron", "0 18 * * *"), "group", "skip", berlin, NOW)
    play = Play(tasks)
    await play.go(5 * HOUR, HOUR)
    assert [due for _, due in play.started] == [NOW + 6 * HOUR]


@pytest.mark.parametrize("table", ["tasks", "task_runs"])
async def test_a_database_that_fails_is_tried_again(tasks: Tasks, path: Path, table: str) -> None:
    play = Play(tasks)
    await add(tasks)

    async def breaks() -> None:
        play.now += HOUR
        with raw(path) as db:
            db.execute(f"ALTER TABLE {table} RENAME TO gone")

    async def mends() -> None:
        play.now += 5 * SECOND
        with raw(path) as db:
            db.execute(f"ALTER TABLE gone RENAME TO {table}")

    with capture_logs() as logs:
        await play.go(breaks, None, mends)
    assert play.asked == [30, 5, 5, 30]
    assert [entry["log_level"] for entry in logs] == ["error", "error"]
    assert play.started == [(NOW + HOUR + 10 * SECOND, NOW + HOUR)]


async def test_a_database_that_fails_at_the_start_leaves_nothing_behind(tasks: Tasks, path: Path) -> None:
    await add(tasks)
    await Play(tasks).go(HOUR)
    play = Play(tasks, NOW + HOUR)
    with raw(path) as db:
        db.execute("ALTER TABLE tasks RENAME TO gone")

    async def mends() -> None:
        with raw(path) as db:
            db.execute("ALTER TABLE gone RENAME TO tasks")

    with capture_logs():
        await play.go(mends)
    assert [due for _, due in play.started] == [NOW + HOUR]


async def test_a_run_that_cannot_be_handed_over_does_not_hold_up_the_others(tasks: Tasks) -> None:
    bad, good = await add(tasks), await add(tasks)
    play = Play(tasks)

    def start(run: TaskRun) -> None:
        if run.task_id == bad.id:
            raise RuntimeError("a bug")
        play.runs.append(run)

    play.start = start
    with capture_logs() as logs:
        await play.go(HOUR, None)
    assert [run.task_id for run in play.runs] == [good.id]
    assert len(logs) == 1


async def test_a_new_task_is_seen_when_it_is_woken(tasks: Tasks) -> None:
    started, waiting = asyncio.get_running_loop().create_future(), asyncio.Event()

    async def wait(woken: asyncio.Event, seconds: float) -> None:
        waiting.set()
        await scheduler._wait(woken, seconds)

    running = Scheduler(tasks, utc, started.set_result, lambda: NOW + HOUR, wait)
    job = asyncio.ensure_future(running.run())
    try:
        await waiting.wait()
        task = await add(tasks)
        running.wake()
        async with asyncio.timeout(LOOK_EVERY / 2):
            assert (await started).task_id == task.id
    finally:
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)


async def test_it_wakes_by_itself_when_something_is_due(tasks: Tasks) -> None:
    started = asyncio.get_running_loop().create_future()
    now = datetime.now(UTC)
    await add(tasks, 60, now=now - 59.8 * SECOND)
    job = asyncio.ensure_future(Scheduler(tasks, utc, started.set_result).run())
    try:
        async with asyncio.timeout(LOOK_EVERY / 2):
            await started
        assert datetime.now(UTC) >= now + 0.2 * SECOND
    finally:
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)


# --- twenty-four months -------------------------------------------------------------------------------------

BEGIN = datetime(2026, 1, 1, 12, tzinfo=UTC)
END = datetime(2028, 1, 1, 12, tzinfo=UTC)
#: The clock may be ahead of the time, and a sleep go past the end.
HORIZON = END + 20 * DAY
SLOT = 15 * MINUTE

#: Whether a clock that shows this is one of a cron schedule's.
Fits = Callable[[datetime], bool]

#: In every zone, by their texts.
CRONS: dict[str, Fits] = {
    "30 1,2 * * FRI,SUN": lambda t: t.minute == 30 and t.hour in (1, 2) and t.weekday() in (4, 6),
    "15 2 * * 0": lambda t: (t.hour, t.minute) == (2, 15) and t.weekday() == 6,
    "0 0 * * 5": lambda t: (t.hour, t.minute) == (0, 0) and t.weekday() == 4,
    "0 9 * * MON,THU": lambda t: (t.hour, t.minute) == (9, 0) and t.weekday() in (0, 3),
    "45 17 1,15 * *": lambda t: (t.hour, t.minute) == (17, 45) and t.day in (1, 15),
    "*/30 1-2 * * SUN": lambda t: t.minute in (0, 30) and t.hour in (1, 2) and t.weekday() == 6,
    "15 */8 1 * *": lambda t: t.minute == 15 and t.hour % 8 == 0 and t.day == 1,
}
ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo")
INTERVALS = (86400, 90001, 3 * 86400 + 61, 7 * 86400)
#: The group that moves from the first zone to the second.
MOVES = "Europe/Berlin", "America/New_York"


def walk(zone: ZoneInfo) -> dict[str, list[datetime]]:
    """When each of the cron schedules comes, found by watching a clock for two years.

    Where minutes or hours have a star, the clock is read; else what it shows for the first time or goes past counts.
    """
    found: dict[str, list[datetime]] = {text: [] for text in CRONS}
    read = {text: fits for text, fits in CRONS.items() if "*" in "".join(text.split()[:2])}
    passed = {text: fits for text, fits in CRONS.items() if text not in read}
    moment = BEGIN
    shown = moment.astimezone(zone).replace(tzinfo=None)
    while (moment := moment + SLOT) < HORIZON:
        clock = moment.astimezone(zone).replace(tzinfo=None)
        for text, fits in read.items():
            if fits(clock):
                found[text].append(moment)
        news: list[datetime] = []
        while shown < clock:
            shown += SLOT
            news.append(shown)
        for text, fits in passed.items():
            if any(map(fits, news)):
                found[text].append(moment)
    return found


def count_up(anchor: datetime, seconds: int) -> list[datetime]:
    found = [anchor + seconds * SECOND]
    while found[-1] < HORIZON:
        found.append(found[-1] + seconds * SECOND)
    return found


@dataclass
class Expected:
    """A task as it should be: when it comes is a list, and what has become of it another."""

    id: int
    folder: str
    occurrences: list[datetime]
    missed: str
    seen: datetime  # everything up to here is decided
    once: bool = False
    unreliable: float = 0.03
    text: str = ""
    state: str = "active"
    failures: int = 0
    ran: set[datetime] = field(default_factory=set)
    rows: list[tuple[datetime, str]] = field(default_factory=list)
    running: int | None = None  # which row
    acted: bool = False

    def to_come(self, after: datetime) -> list[datetime]:
        return [one for one in self.occurrences[bisect_right(self.occurrences, after) :] if one not in self.ran]

    def next(self) -> datetime | None:
        for one in self.occurrences[bisect_right(self.occurrences, self.seen) :]:
            if one not in self.ran:
                return one
        return None

    def plan_anew(self, now: datetime) -> None:
        if self.state == "active" and (following := self.next()) and following > now and not self.once:
            self.seen = now

    def look(self, now: datetime, noted: Counter[str]) -> None:
        if self.state != "active":
            return
        due = self.occurrences[bisect_right(self.occurrences, self.seen) : bisect_right(self.occurrences, now)]
        due = [one for one in due if one not in self.ran]
        if not due:
            return
        self.seen = now
        candidates = [one for one in due if now - one <= GRACE] if self.missed == "skip" else due
        chosen = candidates[0] if candidates and self.running is None else None
        rest = [one for one in due if one != chosen]
        if rest:
            self.rows.append((rest[0], "skipped"))
            noted["overlap" if self.running is not None else "made up for" if chosen else "missed"] += 1
        if chosen:
            self.running = len(self.rows)
            self.acted = False
            self.ran.add(chosen)
            self.rows.append((chosen, "claimed"))
            noted["late" if now - chosen > GRACE else "in time"] += 1
        self.end_if_over()

    def close(self, state: str) -> None:
        assert self.running is not None
        self.rows[self.running] = (self.rows[self.running][0], state)
        self.running = None
        if state == "done":
            self.failures = 0
        if state == "failed":
            self.failures += 1
            if self.failures >= 5 and self.state == "active":
                self.state = "paused"
        self.end_if_over()

    def end_if_over(self) -> None:
        if self.once and self.next() is None and self.running is None:
            self.state = "ended"


class World:
    """Two years: what people do, how long runs take, and what becomes of the machine and of its clock."""

    def __init__(self) -> None:
        self.chance = random.Random(20260101)
        self.time = BEGIN
        self.ahead = timedelta(0)  # the clock, of the time
        self.looked: datetime | None = None
        self.held = False
        self.life = 0
        self.zones = {name: ZoneInfo(name) for name in ZONES}
        self.watched = {name: walk(zone) for name, zone in self.zones.items()}
        self.expected: dict[int, Expected] = {}
        self.handed_over: set[int] = set()  # runs
        self.again: set[int] = set()  # runs that are to be handed over again, or at last
        self.busy: set[int] = set()  # tasks
        self.noted: Counter[str] = Counter()
        self.events: list[tuple[datetime, int, int | None, Callable[[], Awaitable[None]]]] = []
        self.order = count()
        self.tasks: Tasks | None = None
        self.scheduler: Scheduler | None = None
        self.soon: datetime | None = None
        self.plan()

    # --- what happens when ---

    @property
    def clock(self) -> datetime:
        return self.time + self.ahead

    def at(self, when: datetime, what: Callable[[], Awaitable[None]], life: int | None = None) -> None:
        heapq.heappush(self.events, (when, next(self.order), life, what))

    def every(self, days: float, what: Callable[[], Awaitable[None]]) -> None:
        when = BEGIN
        while (when := when + self.chance.uniform(0.2, 1.8) * days * DAY) < END:
            self.at(when, what)

    def plan(self) -> None:
        self.every(6, self.sleep)
        self.every(9, self.set_clock)
        self.every(12, self.die)
        self.every(25, self.hold)
        self.every(5, self.pause)
        self.every(8, self.add_once)
        self.every(40, self.change)
        self.every(90, self.cancel)
        self.at(datetime(2026, 9, 1, tzinfo=UTC), self.move)
        self.at(END, self.die)

    async def sleep(self) -> None:
        """The machine is suspended."""
        self.time += self.chance.choice([5 * MINUTE, HOUR, 9 * HOUR, 3 * DAY]) * self.chance.uniform(0.2, 1)
        self.look_soon()

    async def set_clock(self) -> None:
        self.look_soon(0)
        self.at(self.time + SECOND, self.step)

    async def step(self) -> None:
        before = self.ahead
        wrong = self.chance.choice([0, 1, 40, 3600, 7200, 90000]) * self.chance.uniform(-1, 1)
        self.ahead = timedelta(seconds=round(wrong)) if not self.ahead else timedelta(0)
        self.noted["clock back"] += self.ahead < before
        self.look_soon()

    async def die(self) -> None:
        raise Stopped

    async def hold(self) -> None:
        self.held = True
        self.at(self.time + self.chance.uniform(0.001, 1) * DAY, self.release)
        self.look_soon()

    async def release(self) -> None:
        self.held = False
        self.look_soon()

    def some(self, fits: Callable[[Expected], bool]) -> Expected | None:
        found = [one for one in self.expected.values() if fits(one)]
        return self.chance.choice(found) if found else None

    async def pause(self) -> None:
        assert self.tasks
        if task := self.some(lambda one: one.state == "active"):
            await self.tasks.pause(task.id)
            task.state = "paused"
            self.at(self.time + self.chance.uniform(0.01, 10) * DAY, lambda: self.resume(task))

    async def resume(self, task: Expected) -> None:
        assert self.tasks
        assert self.scheduler
        if task.state != "paused":
            return
        zone = self.zones[task.folder]
        if not task.to_come(self.clock) and task.running is None:
            with pytest.raises(ValueError, match="has passed"):
                await self.tasks.resume(task.id, zone, self.clock)
            return
        await self.tasks.resume(task.id, zone, self.clock)
        task.state, task.failures, task.seen = "active", 0, self.clock
        self.noted["resumed"] += 1
        self.scheduler.wake()

    async def add_once(self) -> None:
        assert self.tasks
        assert self.scheduler
        folder, missed = self.chance.choice(ZONES), self.chance.choice(["skip", "once"])
        when = (self.clock + self.chance.uniform(0.001, 20) * DAY).replace(microsecond=0)
        schedule = Schedule.parse("once", when.isoformat(), self.zones[folder], self.clock)
        task = await self.tasks.add(folder, "prompt", schedule, "isolated", missed, self.zones[folder], self.clock)
        self.expected[task.id] = Expected(task.id, folder, [when], missed, self.clock, once=True)
        self.scheduler.wake()

    async def change(self) -> None:
        assert self.tasks
        assert self.scheduler
        if task := self.some(lambda one: one.text == "interval" and one.state != "ended"):
            seconds = self.chance.randrange(20_000, 200_000)
            schedule = Schedule.parse("interval", str(seconds), self.zones[task.folder], self.clock)
            await self.tasks.change(task.id, self.zones[task.folder], self.clock, schedule=schedule)
            task.occurrences, task.seen, task.failures = count_up(self.clock, seconds), self.clock, 0
            self.scheduler.wake()

    async def cancel(self) -> None:
        assert self.tasks
        if task := self.some(lambda one: one.state != "ended"):
            await self.tasks.end(task.id)
            task.state = "ended"

    async def move(self) -> None:
        """A group's people are somewhere else from now on."""
        assert self.tasks
        assert self.scheduler
        home, away = MOVES
        if (due := self.next_due()) is None or due <= self.clock:
            self.at(self.time + MINUTE, self.move)
            return
        self.noted["moved"] += 1
        self.zones[home] = ZoneInfo(away)
        await self.tasks.reschedule(self.clock, lambda folder: self.zones[folder], home)
        for task in self.expected.values():
            if task.folder == home and task.text in CRONS:
                task.occurrences, task.seen = self.watched[away][task.text], self.clock
        self.scheduler.wake()

    # --- runs ---

    def start(self, run: TaskRun) -> None:
        task = self.expected[run.task_id]
        assert task.running is not None
        assert task.rows[task.running] == (run.due_at, "claimed")
        if run.id in self.again:
            self.again.remove(run.id)
        else:
            assert run.id not in self.handed_over
            if task.missed == "skip":
                assert self.clock - run.due_at <= GRACE
        self.handed_over.add(run.id)
        if self.chance.random() < 0.004:
            self.noted["died at a start"] += 1
            raise Stopped
        wait = self.chance.choice([0.0, 0.0, 1.0, 600.0]) * SECOND
        self.at(self.time + wait, lambda: self.begin(run), self.life)

    async def begin(self, run: TaskRun) -> None:
        assert self.tasks
        expected = self.expected[run.task_id]
        task = await self.tasks.begin(run.id, self.clock)
        assert (task is not None) == (expected.state == "active")
        if task is None:
            self.noted["stopped before it began"] += 1
            expected.close("skipped")
            return
        assert run.task_id not in self.busy, "two runs of a task at work at once"
        self.busy.add(run.task_id)
        if self.chance.random() < 0.3:
            await self.tasks.note_acted(run.id)
            expected.acted = True
        long = self.chance.random() < 0.03
        takes = self.chance.uniform(5, 40) * HOUR if long else self.chance.uniform(0.05, 20) * MINUTE
        self.at(self.time + takes, lambda: self.finish(run), self.life)
        if self.chance.random() < 0.01:
            self.at(self.time + takes / 2, self.die, self.life)

    async def finish(self, run: TaskRun) -> None:
        assert self.tasks
        expected = self.expected[run.task_id]
        self.busy.remove(run.task_id)
        was = expected.state
        if self.chance.random() < expected.unreliable:
            task = await self.tasks.fail(run.id, "no reason", self.clock)
            expected.close("failed")
        else:
            task = await self.tasks.finish(run.id, "done", self.clock)
            expected.close("done")
        assert task
        assert (task.state, task.failures) == (expected.state, expected.failures)
        self.after_a_failure(expected, was)

    def after_a_failure(self, task: Expected, was: str) -> None:
        if task.state == "paused" and was == "active":
            self.noted["paused"] += 1
            self.at(self.time + self.chance.uniform(0.1, 10) * DAY, lambda: self.resume(task))

    # --- the machine ---

    def look_soon(self, seconds: float | None = None) -> None:
        """Let the wait under way end, as it would within half a minute."""
        self.soon = self.time + (self.chance.uniform(0, LOOK_EVERY) if seconds is None else seconds) * SECOND

    async def wait(self, woken: asyncio.Event, seconds: float) -> None:
        """Let happen what happens until the next look; the looks between, at which nothing is due, are left out."""
        due = self.next_due()
        assert seconds == (LOOK_EVERY if due is None else min(max(0.0, (due - self.clock) / SECOND), LOOK_EVERY))
        self.soon = None
        until = self.time + seconds * SECOND
        while not woken.is_set():
            target = until
            if seconds == LOOK_EVERY:
                due = self.next_due()
                target = max(until, due - self.ahead) if due else END
            target = min(target, self.soon or target)
            if self.events[0][0] > target:
                self.time = max(self.time, target)
                break
            await self.happen()
        self.look()

    async def happen(self) -> None:
        when, _, life, what = heapq.heappop(self.events)
        self.time = max(self.time, when)
        if life in (None, self.life):
            await what()

    def next_due(self) -> datetime | None:
        if self.held:
            return None
        return min(
            (due for one in self.expected.values() if one.state == "active" and (due := one.next())), default=None
        )

    def look(self) -> None:
        """What the scheduler should decide at its next look."""
        if self.looked is None or self.clock < self.looked:
            for task in self.expected.values():
                task.plan_anew(self.clock)
        self.looked = self.clock
        if not self.held:
            for task in self.expected.values():
                task.look(self.clock, self.noted)

    async def live(self, db: Database) -> None:
        """One process, from its start to its death."""
        self.life += 1
        self.noted["lives"] += 1
        self.tasks = Tasks(db)
        self.busy.clear()
        if not self.expected:
            await self.settle()
        self.take_up(await db.read(_claimed))
        self.looked = None
        self.look()
        self.scheduler = Scheduler(
            *(self.tasks, lambda folder: self.zones[folder], self.start, lambda: self.clock, self.wait),
            lambda: self.held,
        )
        with pytest.raises(Stopped):
            await self.scheduler.run()
        self.time += self.chance.choice([SECOND, 10 * MINUTE, 2 * DAY]) * self.chance.uniform(0.1, 1)

    def take_up(self, found: Sequence[tuple[int, int]]) -> None:
        """What should become of the runs that a process left behind."""
        assert {task_id for _, task_id in found} == {
            one.id for one in self.expected.values() if one.running is not None
        }
        self.again.clear()
        for run_id, task_id in found:
            task = self.expected[task_id]
            was = task.state
            if task.acted:
                self.noted["may have acted"] += 1
                task.close("failed")
                self.after_a_failure(task, was)
            elif was != "active":
                task.close("skipped")
            else:
                self.noted["taken up again"] += 1
                self.again.add(run_id)

    async def settle(self) -> None:
        """The tasks that there are from the beginning."""
        assert self.tasks
        for number, (folder, zone) in enumerate(self.zones.items()):
            schedules = [(Schedule.parse("cron", text, zone, self.clock), text) for text in CRONS]
            seconds = INTERVALS[number :: len(ZONES)]
            schedules += [(Schedule.parse("interval", str(one), zone, self.clock), "interval") for one in seconds]
            for schedule, text in schedules:
                missed = self.chance.choice(["skip", "once"])
                task = await self.tasks.add(folder, "prompt", schedule, "group", missed, zone, self.clock)
                cron = text in CRONS
                occurrences = self.watched[folder][text] if cron else count_up(self.clock, int(schedule.text))
                unreliable = self.chance.choice([0.02, 0.02, 0.02, 0.8])
                self.expected[task.id] = Expected(
                    *(task.id, folder, occurrences, missed, self.clock), unreliable=unreliable, text=text
                )


def _claimed(db: sqlite3.Connection) -> list[Any]:
    return db.execute("SELECT id, task_id FROM task_runs WHERE state = 'claimed' ORDER BY id").fetchall()


async def test_in_two_years_everything_that_comes_due_is_run_once_or_says_why_not(path: Path) -> None:
    world = World()
    while world.time < END:
        async with opened(path) as db:
            await world.live(db)

    for task in world.expected.values():
        found = rows(path, "SELECT due_at, state FROM task_runs WHERE task_id = ? ORDER BY id", task.id)
        assert [(datetime.fromisoformat(due), state) for due, state in found] == task.rows
    assert rows(path, "SELECT id, state, failures FROM tasks ORDER BY id") == [
        (task.id, task.state, task.failures) for task in world.expected.values()
    ]
    twice = "SELECT task_id, due_at FROM task_runs WHERE state != 'skipped' GROUP BY 1, 2 HAVING count(*) > 1"
    assert rows(path, twice) == []
    assert damage(path) == []
    # All of it has happened.
    assert world.noted["in time"] > 5000, world.noted
    assert all(world.noted[what] > 20 for what in ("overlap", "missed", "made up for", "late", "paused", "resumed"))
    assert all(
        world.noted[what] >= 10 for what in ("may have acted", "taken up again", "clock back", "died at a start")
    )
    assert world.noted["lives"] > 100
    assert world.noted["moved"] == 1
