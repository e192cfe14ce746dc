"""What groups want done later, and what became of it: a row for each task, and one for each of its runs.

A task is active, paused or ended. An occurrence that came due is a run, claimed and then done or failed, or is
skipped, and says why. A task has one claimed run at most. All times are aware, in UTC.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

from pynchy.database import Database, as_text
from pynchy.outgoing import enqueue
from pynchy.schedule import Schedule, describe, next_after

#: So many tasks a folder has that have not ended.
MOST_TASKS = 100
MOST_PROMPT = 20_000  # characters
#: So many failures in a row pause a task.
MOST_FAILURES = 5
#: What is due for longer than this is late, and the task's `missed` says what becomes of it.
GRACE = timedelta(seconds=120)
_MOST_RESULT = 20_000  # characters
_MOST_TITLE = 60  # characters
_CONTEXTS = ("group", "isolated")
_MISSED = ("skip", "once")
_INSTANT = timedelta(microseconds=1)

#: A group's time zone by its folder. It is asked in the database's thread, and only looks something up.
ZoneOf = Callable[[str], ZoneInfo]


@dataclass(frozen=True, slots=True)
class Task:
    """Something to be done at its times, in the `group`'s conversation or `isolated`, in one of its own.

    `missed` says whether what came due while nothing could run is made up for `once`, or not: `skip`. `next_run` of
    a paused task is when it would have been; `failures` are those in a row.
    """

    id: int
    folder: str
    prompt: str
    schedule: Schedule
    anchor: datetime
    context: Literal["group", "isolated"]
    missed: Literal["skip", "once"]
    state: Literal["active", "paused", "ended"]
    next_run: datetime | None
    failures: int
    created_at: datetime

    def in_words(self, zone: ZoneInfo, with_folder: bool = False) -> str:
        """One line for people and agents: its number, what it does, when, and how it is."""
        state: str = self.state
        if self.state == "active":
            state = f"next {self.next_run.astimezone(zone):%Y-%m-%d %H:%M}" if self.next_run else "at work"
        words = [describe(self.schedule, zone), state]
        if self.context == "isolated":
            words.append("isolated")
        if self.missed == "skip":
            words.append("skipped where missed")
        if self.failures:
            words.append("failed last time" if self.failures == 1 else f"failed {self.failures} times in a row")
        of = f" of {self.folder}" if with_folder else ""
        return f"Task {self.id}{of}: {self.title} ({', '.join(words)})"

    @property
    def title(self) -> str:
        """The beginning of the prompt, in one line."""
        line = " ".join(self.prompt.split())
        return line if len(line) <= _MOST_TITLE else f"{line[: _MOST_TITLE - 1].rstrip()}…"


@dataclass(frozen=True, slots=True)
class TaskRun:
    """What became of an occurrence. `attempts` have failed before; after `acted`, another could act twice.

    `result` is what the run gave, why it failed, or why it was skipped.
    """

    id: int
    task_id: int
    due_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    state: Literal["claimed", "done", "failed", "skipped"]
    attempts: int
    acted: bool
    result: str

    def in_words(self, zone: ZoneInfo) -> str:
        """One line: when it was due, how it ended, and the beginning of what came of it."""
        result = " ".join(self.result.split())[:200]
        return f"{self.due_at.astimezone(zone):%Y-%m-%d %H:%M} {self.state}{f': {result}' if result else ''}"


class Tasks:
    """The tables of tasks and their runs."""

    def __init__(self, db: Database) -> None:
        self._db = db

    # --- tasks ----------------------------------------------------------------------------------------------

    async def add(
        self, folder: str, prompt: str, schedule: Schedule, context: str, missed: str, zone: ZoneInfo, now: datetime
    ) -> Task:
        """Keep a new task; ValueError for one that cannot be, or is one too many."""
        prompt = _checked_prompt(prompt)
        _check("context", context, _CONTEXTS)
        _check("missed", missed, _MISSED)
        first = next_after(schedule, now, zone, now)
        if first is None:
            raise ValueError("the time of the task has passed")

        def add(db: sqlite3.Connection) -> Task:
            (open_tasks,) = db.execute(
                "SELECT count(*) FROM tasks WHERE folder = ? AND state != 'ended'", (folder,)
            ).fetchone()
            if open_tasks >= MOST_TASKS:
                raise ValueError(f"a chat has at most {MOST_TASKS} tasks: cancel one that is no longer needed")
            row = db.execute(
                "INSERT INTO tasks (folder, prompt, kind, schedule, anchor, context, missed, next_run, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
                (folder, prompt, schedule.kind, schedule.text, _iso(now), context, missed, _iso(first), _iso(now)),
            ).fetchone()
            return _task(db, row[0])

        return await self._db.write(add)

    async def get(self, task_id: int) -> Task | None:
        """A task by its id."""
        return await self._db.read(lambda db: _find(db, task_id))

    async def of(self, folder: str | None = None, ended: bool = False) -> Sequence[Task]:
        """The tasks of one folder or of all, oldest first, with or without those that have ended."""
        return await self._db.read(
            lambda db: _tasks(
                db, "(? IS NULL OR folder = ?) AND (? OR state != 'ended') ORDER BY id", folder, folder, ended
            )
        )

    async def change(
        self,
        task_id: int,
        zone: ZoneInfo,
        now: datetime,
        *,
        prompt: str | None = None,
        schedule: Schedule | None = None,
        context: str | None = None,
        missed: str | None = None,
    ) -> Task:
        """Change what is given, and forget the failures; ValueError for what cannot be.

        A run that has begun goes on as it was. An interval of a new schedule counts from now.
        """
        if prompt is not None:
            prompt = _checked_prompt(prompt)
        if context is not None:
            _check("context", context, _CONTEXTS)
        if missed is not None:
            _check("missed", missed, _MISSED)

        def change(db: sqlite3.Connection) -> Task:
            task = _open_task(db, task_id)
            db.execute(
                "UPDATE tasks SET prompt = coalesce(?, prompt), context = coalesce(?, context),"
                " missed = coalesce(?, missed), failures = 0 WHERE id = ?",
                (prompt, context, missed, task.id),
            )
            if schedule is not None:
                following = _upcoming(db, task.id, schedule, now, zone, now)
                if following is None:
                    raise ValueError("the time of the task has passed")
                db.execute(
                    "UPDATE tasks SET kind = ?, schedule = ?, anchor = ?, next_run = ? WHERE id = ?",
                    (schedule.kind, schedule.text, _iso(now), _iso(following), task.id),
                )
            return _task(db, task.id)

        return await self._db.write(change)

    async def pause(self, task_id: int) -> Task:
        """Begin no more runs of a task; ValueError where there is none, or it has ended."""

        def pause(db: sqlite3.Connection) -> Task:
            task = _open_task(db, task_id)
            db.execute("UPDATE tasks SET state = 'paused' WHERE id = ?", (task.id,))
            return _task(db, task.id)

        return await self._db.write(pause)

    async def resume(self, task_id: int, zone: ZoneInfo, now: datetime) -> Task:
        """Go on with a task from now, its failures forgotten; ValueError where it has ended or nothing is to come."""

        def resume(db: sqlite3.Connection) -> Task:
            task = _open_task(db, task_id)
            db.execute("UPDATE tasks SET state = 'active', failures = 0 WHERE id = ?", (task.id,))
            if task.state == "paused":
                following = _upcoming(db, task.id, task.schedule, now, zone, task.anchor)
                if following is None and not _is_running(db, task.id):
                    raise ValueError(f"the time of task {task.id} has passed: give it another one, or cancel it")
                db.execute("UPDATE tasks SET next_run = ? WHERE id = ?", (following and _iso(following), task.id))
            return _task(db, task.id)

        return await self._db.write(resume)

    async def end(self, task_id: int) -> Task:
        """Cancel a task; ValueError where there is none. What has ended already stays so."""

        def end(db: sqlite3.Connection) -> Task:
            db.execute("UPDATE tasks SET state = 'ended', next_run = NULL WHERE id = ?", (task_id,))
            return _task(db, task_id)

        return await self._db.write(end)

    async def act(self, action: str, task_id: int, zone: ZoneInfo, now: datetime) -> Task:
        """Do what a person says of a task: pause, resume or cancel it; ValueError where that cannot be."""
        match action:
            case "pause":
                return await self.pause(task_id)
            case "resume":
                return await self.resume(task_id, zone, now)
            case "cancel":
                return await self.end(task_id)
        raise ValueError(f"a task cannot be {action[:40]!r}: pause, resume or cancel it")

    async def reschedule(self, now: datetime, zone_of: ZoneOf, folder: str | None = None) -> None:
        """Find anew when active tasks come next, of one folder or of all: a zone has changed, or the clock went back.

        What is due already stays due.
        """

        def reschedule(db: sqlite3.Connection) -> None:
            where = "state = 'active' AND next_run > ? AND (? IS NULL OR folder = ?)"
            for task in _tasks(db, where, _iso(now), folder, folder):
                following = _upcoming(db, task.id, task.schedule, now, zone_of(task.folder), task.anchor)
                if following is not None and following != task.next_run:
                    db.execute("UPDATE tasks SET next_run = ? WHERE id = ?", (_iso(following), task.id))

        await self._db.write(reschedule)

    async def forget(self, folder: str) -> None:
        """Forget everything of a group that is removed."""

        def forget(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM task_runs WHERE task_id IN (SELECT id FROM tasks WHERE folder = ?)", (folder,))
            db.execute("DELETE FROM tasks WHERE folder = ?", (folder,))

        await self._db.write(forget)

    async def forget_before(self, cutoff: datetime) -> None:
        """Forget runs that ended before this, and ended tasks that have none left and are older."""

        def forget(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM task_runs WHERE state != 'claimed' AND ended_at < ?", (_iso(cutoff),))
            db.execute(
                "DELETE FROM tasks WHERE state = 'ended' AND created_at < ?"
                " AND NOT EXISTS (SELECT 1 FROM task_runs WHERE task_id = tasks.id)",
                (_iso(cutoff),),
            )

        await self._db.write(forget)

    # --- runs -----------------------------------------------------------------------------------------------

    async def runs(self, task_id: int, most: int = 20) -> Sequence[TaskRun]:
        """What became of a task's latest occurrences, latest first."""
        return await self._db.read(lambda db: _runs(db, "task_id = ? ORDER BY id DESC LIMIT ?", task_id, most))

    async def next_due(self) -> datetime | None:
        """When the next occurrence of any task is due; it may have passed."""
        row = await self._db.read(
            lambda db: db.execute(
                "SELECT min(next_run) FROM tasks WHERE state = 'active' AND next_run IS NOT NULL"
            ).fetchone()
        )
        return _when(row[0])

    async def claim_due(self, now: datetime, zone_of: ZoneOf) -> Sequence[TaskRun]:
        """Take what has come due: the runs to start, one a task at most; all else that was due is skipped.

        An occurrence is skipped while a run of its task is claimed, and where it is late (GRACE) and its task does
        not make up for it.
        """

        def claim(db: sqlite3.Connection) -> list[TaskRun]:
            due = _tasks(
                db,
                "state = 'active' AND next_run IS NOT NULL AND next_run <= ? ORDER BY next_run, id",
                _iso(now),
            )
            claimed = [_claim(db, task, now, zone_of(task.folder)) for task in due]
            return [run for run in claimed if run]

        return await self._db.write(claim)

    async def begin(self, run_id: int, now: datetime) -> Task | None:
        """Record that a claimed run is started now; returns its task.

        None where it is not to be started: its task was paused, ended or forgotten meanwhile.
        """

        def begin(db: sqlite3.Connection) -> Task | None:
            if not (found := _claimed(db, run_id)):
                return None
            _, task = found
            if task.state != "active":
                _close(db, run_id, task.id, "skipped", f"the task was {task.state} before it began", now)
                return None
            db.execute("UPDATE task_runs SET started_at = ? WHERE id = ?", (_iso(now), run_id))
            return task

        return await self._db.write(begin)

    async def attempted(self, run_id: int) -> None:
        """Count an attempt of a run that failed and is to be followed by another."""
        await self._db.write(
            lambda db: db.execute(
                "UPDATE task_runs SET attempts = attempts + 1 WHERE id = ? AND state = 'claimed'", (run_id,)
            )
        )

    async def note_acted(self, run_id: int) -> None:
        """Record that a tool is about to run: from now on, repeating the run could act twice."""
        await self._db.write(
            lambda db: db.execute("UPDATE task_runs SET acted = 1 WHERE id = ? AND state = 'claimed'", (run_id,))
        )

    async def finish(self, run_id: int, result: str, now: datetime, say: str | None = None) -> Task | None:
        """Record what a run gave, and queue what it says in its chat; returns the task as it is then.

        None, and nothing is done, where the run is not claimed (any more).
        """

        def finish(db: sqlite3.Connection) -> Task | None:
            if not (found := _claimed(db, run_id)):
                return None
            _, task = found
            db.execute("UPDATE tasks SET failures = 0 WHERE id = ?", (task.id,))
            if say:
                _say(db, task, say, "message")
            _close(db, run_id, task.id, "done", result, now)
            return _task(db, task.id)

        return await self._db.write(finish)

    async def fail(self, run_id: int, reason: str, now: datetime) -> Task | None:
        """Record that a run failed, and queue the notice that says why; returns the task as it is then, maybe paused.

        None, and nothing is done, where the run is not claimed (any more).
        """

        def fail(db: sqlite3.Connection) -> Task | None:
            if not (found := _claimed(db, run_id)):
                return None
            return _fail(db, *found, reason, now)

        return await self._db.write(fail)

    async def recover(self, now: datetime) -> Sequence[TaskRun]:
        """Take up the claimed runs of an earlier service: those to be started again.

        One that may have acted has failed, with a notice; one whose task is not active is skipped.
        """

        def recover(db: sqlite3.Connection) -> list[TaskRun]:
            again: list[TaskRun] = []
            # The plus keeps SQLite from reading all runs in their order for these few.
            for run in _runs(db, "state = 'claimed' ORDER BY +id"):
                task = _task(db, run.task_id)
                if run.acted:
                    _fail(db, run, task, "Pynchy was stopped while it ran", now)
                elif task.state != "active":
                    _close(db, run.id, task.id, "skipped", f"the task was {task.state} before it could run again", now)
                else:
                    again.append(run)
            return again

        return await self._db.write(recover)


# --- within a transaction -----------------------------------------------------------------------------------


def _claim(db: sqlite3.Connection, task: Task, now: datetime, zone: ZoneInfo) -> TaskRun | None:
    """The run of an active task that is due; its other occurrences until now are one row that says why not."""

    def upcoming(after: datetime) -> datetime | None:
        return _upcoming(db, task.id, task.schedule, after, zone, task.anchor)

    due = task.next_run
    assert due is not None
    if _is_running(db, task.id):
        chosen, why = None, "the run before had not ended"
    elif now - due <= GRACE or task.missed == "once":
        chosen, why = due, f"the run that was due at {_minute(due)} stands for it"
    else:
        # Of a task that comes often, one may be in time although others were missed.
        timely = upcoming(now - GRACE - _INSTANT)
        chosen = timely if timely and timely <= now else None
        why = "Pynchy was stopped, asleep or held up when it was due"
    passed_over = upcoming(due) if chosen == due else due
    if passed_over and passed_over <= now:
        text = f"{why}, as with any other that was due until {_minute(now)}"
        db.execute(
            "INSERT INTO task_runs (task_id, due_at, ended_at, state, result) VALUES (?, ?, ?, 'skipped', ?)",
            (task.id, _iso(passed_over), _iso(now), text),
        )
    run = None
    if chosen:
        (run_id,) = db.execute(
            "INSERT INTO task_runs (task_id, due_at, state) VALUES (?, ?, 'claimed') RETURNING id",
            (task.id, _iso(chosen)),
        ).fetchone()
        run = TaskRun(run_id, task.id, chosen, None, None, "claimed", 0, False, "")
    following = upcoming(now)
    db.execute("UPDATE tasks SET next_run = ? WHERE id = ?", (following and _iso(following), task.id))
    _end_if_over(db, task.id)
    return run


def _upcoming(
    db: sqlite3.Connection, task_id: int, schedule: Schedule, after: datetime, zone: ZoneInfo, anchor: datetime
) -> datetime | None:
    """The next occurrence that has not been run: after the clock went back, some have."""
    following = next_after(schedule, after, zone, anchor)
    while (
        following
        and db.execute(
            "SELECT 1 FROM task_runs WHERE task_id = ? AND due_at = ? AND state != 'skipped'",
            (task_id, _iso(following)),
        ).fetchone()
    ):
        following = next_after(schedule, following, zone, anchor)
    return following


def _fail(db: sqlite3.Connection, run: TaskRun, task: Task, reason: str, now: datetime) -> Task:
    failures = task.failures + 1
    paused = failures >= MOST_FAILURES and task.state == "active"
    db.execute(
        "UPDATE tasks SET failures = ?, state = iif(?, 'paused', state) WHERE id = ?", (failures, paused, task.id)
    )
    _close(db, run.id, task.id, "failed", reason, now)
    after = _task(db, task.id)
    notice = f'Task {task.id} ("{task.title}") failed: {reason.rstrip(" .")}.'
    if run.acted:
        notice += " A part of it may have been done."
    if paused:
        notice += (
            f" It has failed {failures} times in a row and is paused; to go on with it, have me resume it (resume_task)"
            f" or run `pynchy tasks resume {task.id}`."
        )
    _say(db, after, notice, "notice")
    return after


def _say(db: sqlite3.Connection, task: Task, text: str, kind: str) -> None:
    """Queue a text for the task's chat, if there still is one."""
    if row := db.execute("SELECT jid FROM groups WHERE folder = ?", (task.folder,)).fetchone():
        enqueue(db, row[0], text, kind, unseen=True)


def _close(db: sqlite3.Connection, run_id: int, task_id: int, state: str, result: str, now: datetime) -> None:
    db.execute(
        "UPDATE task_runs SET state = ?, result = ?, ended_at = ? WHERE id = ?",
        (state, as_text(result[:_MOST_RESULT]), _iso(now), run_id),
    )
    _end_if_over(db, task_id)


def _end_if_over(db: sqlite3.Connection, task_id: int) -> None:
    """A task that comes no more has ended with its last run."""
    if not _is_running(db, task_id):
        db.execute("UPDATE tasks SET state = 'ended' WHERE id = ? AND next_run IS NULL", (task_id,))


def _is_running(db: sqlite3.Connection, task_id: int) -> bool:
    claimed = db.execute("SELECT 1 FROM task_runs WHERE task_id = ? AND state = 'claimed'", (task_id,)).fetchone()
    return claimed is not None


# --- rows ---------------------------------------------------------------------------------------------------


def _tasks(db: sqlite3.Connection, where: str, *values: Any) -> list[Task]:
    rows = db.execute(
        "SELECT id, folder, prompt, kind, schedule, anchor, context, missed, state, next_run, failures, created_at"  # noqa: S608 - ours
        f" FROM tasks WHERE {where}",
        values,
    ).fetchall()
    return [
        Task(
            *(task_id, folder, prompt, Schedule(kind, text), datetime.fromisoformat(anchor), context, missed),
            *(state, _when(next_run), failures, datetime.fromisoformat(created)),
        )
        for task_id, folder, prompt, kind, text, anchor, context, missed, state, next_run, failures, created in rows
    ]


def _find(db: sqlite3.Connection, task_id: int) -> Task | None:
    return next(iter(_tasks(db, "id = ?", task_id)), None)


def _task(db: sqlite3.Connection, task_id: int) -> Task:
    if task := _find(db, task_id):
        return task
    raise ValueError(f"there is no task {task_id}")


def _open_task(db: sqlite3.Connection, task_id: int) -> Task:
    task = _task(db, task_id)
    if task.state == "ended":
        raise ValueError(f"task {task_id} has ended: make a new one")
    return task


def _runs(db: sqlite3.Connection, where: str, *values: Any) -> list[TaskRun]:
    rows = db.execute(
        "SELECT id, task_id, due_at, started_at, ended_at, state, attempts, acted, result"  # noqa: S608 - ours
        f" FROM task_runs WHERE {where}",
        values,
    ).fetchall()
    return [
        TaskRun(
            *(run_id, task_id, datetime.fromisoformat(due_at), _when(started_at), _when(ended_at)),
            *(state, attempts, bool(acted), result),
        )
        for run_id, task_id, due_at, started_at, ended_at, state, attempts, acted, result in rows
    ]


def _claimed(db: sqlite3.Connection, run_id: int) -> tuple[TaskRun, Task] | None:
    for run in _runs(db, "id = ? AND state = 'claimed'", run_id):
        return run, _task(db, run.task_id)
    return None


def _checked_prompt(prompt: str) -> str:
    prompt = as_text(prompt.strip())
    if not 0 < len(prompt) <= MOST_PROMPT:
        raise ValueError(f"the prompt of a task has 1 to {MOST_PROMPT:,} characters")
    return prompt


def _check(name: str, value: str, there_are: tuple[str, ...]) -> None:
    if value not in there_are:
        raise ValueError(f"{name} {value[:40]!r} cannot be: write {' or '.join(f'`{one}`' for one in there_are)}")


def _iso(when: datetime) -> str:
    """A time as text that sorts as the times do."""
    return when.astimezone(UTC).isoformat(timespec="microseconds")


def _when(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _minute(when: datetime) -> str:
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
