"""Tasks: their limits, what is claimed and what is skipped, what a run's end changes, and what a restart finds."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from stored import column, outbox_that_takes_nothing, queued, rows

from pynchy.database import Database
from pynchy.schedule import Schedule
from pynchy.schema import migrate
from pynchy.tasks import GRACE, MOST_FAILURES, MOST_PROMPT, MOST_TASKS, Task, TaskRun, Tasks

pytestmark = pytest.mark.anyio

BERLIN = ZoneInfo("Europe/Berlin")
NEW_YORK = ZoneInfo("America/New_York")
NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
HOURLY = Schedule("interval", "3600")
JID = "terminal:main"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pynchy.db"


@pytest.fixture
async def tasks(path: Path) -> AsyncIterator[Tasks]:
    async with Database.open(path, migrate) as db:
        await db.write(lambda db: db.execute("INSERT INTO groups (jid, name, folder) VALUES (?, '', 'main')", (JID,)))
        yield Tasks(db)


def berlin(folder: str) -> ZoneInfo:
    return BERLIN


async def add(tasks: Tasks, schedule: Schedule = HOURLY, missed: str = "skip", **changed: Any) -> Task:
    given = {"folder": "main", "prompt": "Water the plants", "context": "group", "zone": BERLIN, "now": NOW} | changed
    return await tasks.add(schedule=schedule, missed=missed, **given)


def once(when: datetime) -> Schedule:
    return Schedule("once", when.isoformat())


async def claim(tasks: Tasks, now: datetime) -> list[TaskRun]:
    return list(await tasks.claim_due(now, berlin))


async def claim_one(tasks: Tasks, now: datetime) -> TaskRun:
    (run,) = await claim(tasks, now)
    return run


async def state(tasks: Tasks, task: Task) -> tuple[str, datetime | None, int]:
    found = await tasks.get(task.id)
    assert found
    return found.state, found.next_run, found.failures


async def history(tasks: Tasks, task: Task) -> list[tuple[datetime, str]]:
    return [(run.due_at, run.state) for run in reversed(await tasks.runs(task.id))]


# --- tasks --------------------------------------------------------------------------------------------------


async def test_a_task_is_kept_as_it_was_given(tasks: Tasks) -> None:
    task = await add(tasks, prompt="  Water\nthe \ud800 plants ")
    assert task == Task(
        *(task.id, "main", "Water\nthe ? plants", HOURLY, NOW, "group", "skip", "active", NOW + HOUR, 0, NOW),
    )
    assert await tasks.get(task.id) == task
    assert await tasks.of("main") == await tasks.of() == [task]
    assert await tasks.of("family") == []
    assert await tasks.next_due() == NOW + HOUR


async def test_a_title_is_one_short_line(tasks: Tasks) -> None:
    assert (await add(tasks, prompt="Water\nthe plants")).title == "Water the plants"
    assert (await add(tasks, prompt="word " * 100)).title == "word " * 11 + "word…"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"prompt": " \n"}, "1 to 20,000 characters"),
        ({"prompt": "x" * (MOST_PROMPT + 1)}, "1 to 20,000 characters"),
        ({"context": "both"}, "write `group` or `isolated`"),
        ({"missed": "twice"}, "write `skip` or `once`"),
        ({"schedule": once(NOW)}, "has passed"),
    ],
)
async def test_a_task_that_cannot_be_is_refused_and_nothing_is_kept(
    tasks: Tasks, wrong: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        await add(tasks, **wrong)
    task = await add(tasks)
    with pytest.raises(ValueError, match=reason):
        await tasks.change(task.id, BERLIN, NOW, **wrong)
    assert await tasks.of(ended=True) == [task]


async def test_a_folder_has_a_limit_of_tasks_that_have_not_ended(tasks: Tasks) -> None:
    first = await add(tasks)
    for _ in range(MOST_TASKS - 1):
        await add(tasks)
    with pytest.raises(ValueError, match="at most 100 tasks"):
        await add(tasks)
    await add(tasks, folder="family")
    await tasks.end(first.id)
    await add(tasks)


async def test_a_change_takes_only_what_is_given_and_forgets_the_failures(tasks: Tasks) -> None:
    task = await add(tasks)
    await tasks.fail((await claim_one(tasks, NOW + HOUR)).id, "no reason", NOW + HOUR)
    now = NOW + HOUR + MINUTE
    changed = await tasks.change(task.id, BERLIN, now, prompt="Feed the cat", missed="once")
    assert (changed.prompt, changed.missed, changed.failures) == ("Feed the cat", "once", 0)
    assert (changed.schedule, changed.context, changed.next_run) == (HOURLY, "group", NOW + 2 * HOUR)
    changed = await tasks.change(task.id, BERLIN, now, schedule=Schedule("interval", "7200"), context="isolated")
    assert (changed.anchor, changed.next_run, changed.context) == (now, now + 2 * HOUR, "isolated")


async def test_what_is_due_is_not_lost_when_only_the_prompt_changes(tasks: Tasks) -> None:
    task = await add(tasks, once(NOW + HOUR))
    await tasks.change(task.id, BERLIN, NOW + HOUR + MINUTE, prompt="Feed the cat")
    assert (await claim_one(tasks, NOW + HOUR + MINUTE)).due_at == NOW + HOUR


async def test_a_paused_task_is_not_due_and_goes_on_from_when_it_is_resumed(tasks: Tasks) -> None:
    task = await add(tasks, missed="once")
    assert (await tasks.pause(task.id)).state == (await tasks.pause(task.id)).state == "paused"
    assert await tasks.next_due() is None
    assert await claim(tasks, NOW + DAY) == []
    resumed = await tasks.resume(task.id, BERLIN, NOW + DAY + MINUTE)
    assert (resumed.state, resumed.next_run) == ("active", NOW + DAY + HOUR)
    assert await tasks.resume(task.id, BERLIN, NOW + 2 * DAY) == resumed


async def test_a_task_whose_only_time_passed_while_it_was_paused_cannot_be_resumed(tasks: Tasks) -> None:
    task = await add(tasks, once(NOW + HOUR))
    await tasks.pause(task.id)
    with pytest.raises(ValueError, match="has passed"):
        await tasks.resume(task.id, BERLIN, NOW + DAY)
    assert (await state(tasks, task))[0] == "paused"
    await tasks.change(task.id, BERLIN, NOW + DAY, schedule=once(NOW + 2 * DAY))
    assert (await tasks.resume(task.id, BERLIN, NOW + DAY)).next_run == NOW + 2 * DAY


async def test_an_ended_task_stays_ended(tasks: Tasks) -> None:
    task = await add(tasks)
    assert (await tasks.end(task.id)).state == (await tasks.end(task.id)).state == "ended"
    for call in (
        tasks.pause(task.id),
        tasks.resume(task.id, BERLIN, NOW),
        tasks.change(task.id, BERLIN, NOW, prompt="Feed the cat"),
    ):
        with pytest.raises(ValueError, match=f"task {task.id} has ended"):
            await call
    assert await claim(tasks, NOW + DAY) == []
    assert await tasks.of("main") == []
    assert [one.id for one in await tasks.of("main", ended=True)] == [task.id]


async def test_a_task_that_is_not_there_is_named(tasks: Tasks) -> None:
    for call in (tasks.pause(7), tasks.resume(7, BERLIN, NOW), tasks.end(7), tasks.change(7, BERLIN, NOW)):
        with pytest.raises(ValueError, match="there is no task 7"):
            await call
    assert await tasks.get(7) is None


# --- what is due --------------------------------------------------------------------------------------------


async def test_what_is_due_is_claimed_once(tasks: Tasks) -> None:
    task = await add(tasks)
    assert await claim(tasks, NOW + HOUR - timedelta(microseconds=1)) == []
    run = await claim_one(tasks, NOW + HOUR)
    assert (run.task_id, run.due_at, run.state, run.attempts, run.acted) == (task.id, NOW + HOUR, "claimed", 0, False)
    assert await claim(tasks, NOW + HOUR) == []
    assert list(await tasks.runs(task.id)) == [run]
    assert await state(tasks, task) == ("active", NOW + 2 * HOUR, 0)


async def test_what_is_due_first_is_claimed_first(tasks: Tasks) -> None:
    later, sooner = await add(tasks), await add(tasks, Schedule("interval", "3590"))
    assert [run.task_id for run in await claim(tasks, NOW + HOUR)] == [sooner.id, later.id]


async def test_a_task_never_overlaps_itself(tasks: Tasks) -> None:
    task = await add(tasks, missed="once")
    run = await claim_one(tasks, NOW + HOUR)
    await tasks.begin(run.id, NOW + HOUR)
    assert await claim(tasks, NOW + 2 * HOUR) == []
    await tasks.finish(run.id, "done", NOW + 2 * HOUR + MINUTE)
    await claim_one(tasks, NOW + 3 * HOUR)
    assert [(due, state) for due, state in await history(tasks, task)] == [
        (NOW + HOUR, "done"),
        (NOW + 2 * HOUR, "skipped"),
        (NOW + 3 * HOUR, "claimed"),
    ]
    assert (await tasks.runs(task.id))[1].result.startswith("the run before had not ended")


@pytest.mark.parametrize(
    ("missed", "late", "expected"),
    [
        ("skip", GRACE, [(NOW + HOUR, "claimed")]),
        ("skip", GRACE + timedelta(seconds=1), [(NOW + HOUR, "skipped")]),
        ("once", GRACE + timedelta(seconds=1), [(NOW + HOUR, "claimed")]),
        # Many were missed: one row says so, and where they are made up for, it is once.
        ("skip", 5 * HOUR + HOUR / 2, [(NOW + HOUR, "skipped")]),
        ("once", 5 * HOUR + HOUR / 2, [(NOW + HOUR, "claimed"), (NOW + 2 * HOUR, "skipped")]),
        # Many were missed, but not the latest.
        ("skip", 5 * HOUR + MINUTE, [(NOW + HOUR, "skipped"), (NOW + 6 * HOUR, "claimed")]),
        ("skip", 5 * HOUR + GRACE, [(NOW + HOUR, "skipped"), (NOW + 6 * HOUR, "claimed")]),
    ],
)
async def test_what_is_late_follows_the_policy_of_its_task(
    tasks: Tasks, missed: str, late: timedelta, expected: list[tuple[datetime, str]]
) -> None:
    task = await add(tasks, missed=missed)
    await claim(tasks, NOW + HOUR + late)
    assert sorted(await history(tasks, task)) == expected
    (_, following, _) = await state(tasks, task)
    assert following is not None
    assert NOW + HOUR + late < following <= NOW + 2 * HOUR + late


async def test_a_skipped_row_says_why_and_until_when(tasks: Tasks) -> None:
    task = await add(tasks)
    await claim(tasks, NOW + 3 * HOUR + HOUR / 2)
    (skipped,) = await tasks.runs(task.id)
    assert skipped.result == (
        "Pynchy was stopped, asleep or held up when it was due, as with any other that was due until"
        " 2026-01-15 15:30 UTC"
    )
    assert skipped.ended_at == NOW + 3 * HOUR + HOUR / 2


async def test_a_task_with_one_time_ends_with_its_run(tasks: Tasks) -> None:
    task = await add(tasks, once(NOW + HOUR))
    run = await claim_one(tasks, NOW + HOUR)
    assert await state(tasks, task) == ("active", None, 0)
    assert await tasks.begin(run.id, NOW + HOUR)
    await tasks.finish(run.id, "done", NOW + HOUR)
    assert await state(tasks, task) == ("ended", None, 0)


@pytest.mark.parametrize("missed", ["skip", "once"])
async def test_a_task_with_one_time_that_was_missed(tasks: Tasks, missed: str) -> None:
    task = await add(tasks, once(NOW + HOUR), missed)
    claimed = await claim(tasks, NOW + DAY)
    assert await history(tasks, task) == [(NOW + HOUR, "claimed" if claimed else "skipped")]
    assert bool(claimed) == (missed == "once")
    assert (await state(tasks, task))[0] == ("active" if claimed else "ended")


async def test_a_new_time_given_while_it_runs_is_kept(tasks: Tasks) -> None:
    task = await add(tasks, once(NOW + HOUR))
    run = await claim_one(tasks, NOW + HOUR)
    await tasks.change(task.id, BERLIN, NOW + HOUR, schedule=once(NOW + DAY))
    await tasks.finish(run.id, "done", NOW + HOUR)
    assert await state(tasks, task) == ("active", NOW + DAY, 0)


async def test_after_the_clock_went_back_no_occurrence_runs_again(tasks: Tasks) -> None:
    task = await add(tasks)
    for hour in (1, 2, 3):
        await tasks.finish((await claim_one(tasks, NOW + hour * HOUR)).id, "done", NOW + hour * HOUR)
    await tasks.reschedule(NOW + HOUR / 2, berlin)
    assert (await state(tasks, task))[1] == NOW + 4 * HOUR


async def test_after_a_clock_that_was_far_ahead_tasks_go_on(tasks: Tasks) -> None:
    daily = await add(tasks, Schedule("cron", "0 9 * * *"))
    hourly = await add(tasks, missed="once")
    for run in await claim(tasks, NOW + 4000 * DAY):
        await tasks.finish(run.id, "done", NOW + 4000 * DAY)
    await tasks.reschedule(NOW + MINUTE, berlin)
    assert (await state(tasks, daily))[1] == datetime(2026, 1, 16, 8, tzinfo=UTC)
    # The first of those that were missed has been made up for.
    assert (await state(tasks, hourly))[1] == NOW + 2 * HOUR
    # What has run is left out from then on, too.
    await claim(tasks, NOW + 2 * HOUR)
    assert (await history(tasks, hourly))[-1] == (NOW + 2 * HOUR, "claimed")


async def test_a_new_time_zone_moves_what_goes_by_the_clock(tasks: Tasks) -> None:
    daily = await add(tasks, Schedule("cron", "0 9 * * *"))
    others = [await add(tasks), await add(tasks, once(NOW + DAY))]
    elsewhere = await add(tasks, Schedule("cron", "0 9 * * *"), folder="family")
    paused = await tasks.pause((await add(tasks, Schedule("cron", "0 9 * * *"))).id)
    await tasks.reschedule(NOW, lambda folder: NEW_YORK, "main")
    assert (await state(tasks, daily))[1] == datetime(2026, 1, 15, 14, tzinfo=UTC)
    for task in (*others, elsewhere, paused):
        assert await tasks.get(task.id) == task


async def test_what_is_due_already_stays_due_in_a_new_time_zone(tasks: Tasks) -> None:
    task = await add(tasks, Schedule("cron", "5 13 * * *"))
    await tasks.reschedule(NOW + 5 * MINUTE, lambda folder: NEW_YORK)
    assert (await state(tasks, task))[1] == NOW + 5 * MINUTE


# --- runs ---------------------------------------------------------------------------------------------------


async def test_an_answer_is_queued_with_the_end_of_its_run(tasks: Tasks, path: Path) -> None:
    await add(tasks)
    run = await claim_one(tasks, NOW + HOUR)
    assert await tasks.begin(run.id, NOW + HOUR)
    task = await tasks.finish(run.id, "x" * 30_000, NOW + HOUR + MINUTE, "The plants are watered.")
    assert task
    assert task.failures == 0
    (ended,) = await tasks.runs(task.id)
    assert (ended.state, ended.started_at, ended.ended_at) == ("done", NOW + HOUR, NOW + HOUR + MINUTE)
    assert ended.result == "x" * 20_000
    assert rows(path, "SELECT chat_jid, text, kind, unseen FROM outbox") == [
        (JID, "The plants are watered.", "message", 1)
    ]


async def test_a_run_ends_once(tasks: Tasks, path: Path) -> None:
    await add(tasks)
    run = await claim_one(tasks, NOW + HOUR)
    assert await tasks.finish(run.id, "done", NOW + HOUR)
    assert await tasks.finish(run.id, "again", NOW + HOUR, "again") is None
    assert await tasks.fail(run.id, "no reason", NOW + HOUR) is None
    assert await tasks.begin(run.id, NOW + HOUR) is None
    await tasks.attempted(run.id)
    await tasks.note_acted(run.id)
    (ended,) = await tasks.runs(run.task_id)
    assert (ended.state, ended.result, ended.attempts, ended.acted) == ("done", "done", 0, False)
    assert queued(path) == []


async def test_a_failure_is_told_in_its_chat(tasks: Tasks, path: Path) -> None:
    task = await add(tasks, prompt="Water the\nplants")
    run = await claim_one(tasks, NOW + HOUR)
    await tasks.attempted(run.id)
    after = await tasks.fail(run.id, "the model's API is overloaded (HTTP 529).", NOW + HOUR)
    assert after
    assert (after.state, after.failures) == ("active", 1)
    assert rows(path, "SELECT chat_jid, text, kind, unseen FROM outbox") == [
        (
            JID,
            f'Task {task.id} ("Water the plants") failed: the model\'s API is overloaded (HTTP 529).',
            "notice",
            1,
        )
    ]
    (ended,) = await tasks.runs(task.id)
    assert (ended.state, ended.attempts) == ("failed", 1)


async def test_a_failure_after_a_tool_ran_says_so(tasks: Tasks, path: Path) -> None:
    await add(tasks)
    run = await claim_one(tasks, NOW + HOUR)
    await tasks.note_acted(run.id)
    await tasks.fail(run.id, "no reason", NOW + HOUR)
    assert [text.endswith("failed: no reason. A part of it may have been done.") for _, text, _ in queued(path)] == [
        True
    ]


async def test_five_failures_in_a_row_pause_a_task_and_say_how_to_go_on(tasks: Tasks, path: Path) -> None:
    task = await add(tasks)
    now = NOW
    for outcome in "ff.ffff":
        now += HOUR
        run = await claim_one(tasks, now)
        ended = tasks.finish(run.id, "done", now) if outcome == "." else tasks.fail(run.id, "no reason", now)
        assert (await ended) is not None
    assert (await state(tasks, task))[::2] == ("active", MOST_FAILURES - 1)
    now += HOUR
    after = await tasks.fail((await claim_one(tasks, now)).id, "no reason", now)
    assert after
    assert (after.state, after.failures) == ("paused", MOST_FAILURES)
    assert await claim(tasks, now + HOUR) == []
    notices = [text for _, text, _ in queued(path)]
    assert [f"pynchy tasks resume {task.id}" in text for text in notices] == [False] * 6 + [True]
    assert "It has failed 5 times in a row and is paused" in notices[-1]
    assert "resume_task" in notices[-1]
    resumed = await tasks.resume(task.id, BERLIN, now + MINUTE)
    assert (resumed.state, resumed.failures, resumed.next_run) == ("active", 0, now + HOUR)


async def test_a_task_that_was_cancelled_is_not_paused_by_its_last_failure(tasks: Tasks, path: Path) -> None:
    task = await add(tasks)
    for hour in range(1, MOST_FAILURES + 1):
        run = await claim_one(tasks, NOW + hour * HOUR)
        if hour == MOST_FAILURES:
            await tasks.end(task.id)
        await tasks.fail(run.id, "no reason", NOW + hour * HOUR)
    assert (await state(tasks, task))[0] == "ended"
    assert not any("paused" in text for _, text, _ in queued(path))


async def test_a_run_and_what_it_says_are_stored_together_or_not_at_all(tasks: Tasks, path: Path) -> None:
    task = await add(tasks)
    run = await claim_one(tasks, NOW + HOUR)
    with outbox_that_takes_nothing(path):
        for ended in (tasks.finish(run.id, "done", NOW + HOUR, "Done."), tasks.fail(run.id, "no reason", NOW + HOUR)):
            with pytest.raises(sqlite3.IntegrityError):
                await ended
    assert list(await tasks.runs(task.id)) == [run]
    assert await state(tasks, task) == ("active", NOW + 2 * HOUR, 0)


async def test_a_run_of_a_chat_that_is_gone_says_nothing(tasks: Tasks, path: Path) -> None:
    await add(tasks, folder="gone")
    run = await claim_one(tasks, NOW + HOUR)
    assert await tasks.fail(run.id, "no reason", NOW + HOUR)
    assert queued(path) == []


@pytest.mark.parametrize("what", ["pause", "end"])
async def test_a_claimed_run_of_a_task_that_was_stopped_does_not_begin(tasks: Tasks, what: str) -> None:
    task = await add(tasks)
    run = await claim_one(tasks, NOW + HOUR)
    await getattr(tasks, what)(task.id)
    assert await tasks.begin(run.id, NOW + HOUR) is None
    assert await history(tasks, task) == [(NOW + HOUR, "skipped")]


@pytest.mark.parametrize("what", ["pause", "end"])
async def test_a_run_that_has_begun_may_end_after_its_task_was_stopped(tasks: Tasks, what: str) -> None:
    task = await add(tasks)
    run = await claim_one(tasks, NOW + HOUR)
    await tasks.begin(run.id, NOW + HOUR)
    stopped = await getattr(tasks, what)(task.id)
    after = await tasks.fail(run.id, "no reason", NOW + HOUR)
    assert after
    assert (after.state, after.failures) == (stopped.state, 1)
    assert await history(tasks, task) == [(NOW + HOUR, "failed")]


async def test_the_prompt_of_a_run_is_the_one_at_its_beginning(tasks: Tasks) -> None:
    task = await add(tasks)
    run = await claim_one(tasks, NOW + HOUR)
    changed = await tasks.change(task.id, BERLIN, NOW + HOUR, prompt="Feed the cat")
    assert await tasks.begin(run.id, NOW + HOUR) == changed


# --- after a restart ----------------------------------------------------------------------------------------


async def test_a_run_that_has_not_acted_is_taken_up_again_as_the_same(tasks: Tasks, path: Path) -> None:
    await add(tasks)
    run = await claim_one(tasks, NOW + HOUR)
    await tasks.begin(run.id, NOW + HOUR)
    await tasks.attempted(run.id)
    for _ in range(2):
        (again,) = await tasks.recover(NOW + DAY)
        assert (again.id, again.state, again.attempts) == (run.id, "claimed", 1)
    assert queued(path) == []


async def test_a_run_that_may_have_acted_has_failed(tasks: Tasks, path: Path) -> None:
    task = await add(tasks)
    run = await claim_one(tasks, NOW + HOUR)
    await tasks.begin(run.id, NOW + HOUR)
    await tasks.note_acted(run.id)
    assert list(await tasks.recover(NOW + DAY)) == list(await tasks.recover(NOW + DAY)) == []
    assert await history(tasks, task) == [(NOW + HOUR, "failed")]
    assert await state(tasks, task) == ("active", NOW + 2 * HOUR, 1)
    assert queued(path) == [
        (
            JID,
            f'Task {task.id} ("Water the plants") failed: Pynchy was stopped while it ran.'
            " A part of it may have been done.",
            "notice",
        )
    ]


async def test_a_task_with_one_time_that_may_have_acted_ends_at_the_restart(tasks: Tasks) -> None:
    task = await add(tasks, once(NOW + HOUR))
    await tasks.note_acted((await claim_one(tasks, NOW + HOUR)).id)
    await tasks.recover(NOW + DAY)
    assert (await state(tasks, task))[0] == "ended"


@pytest.mark.parametrize("what", ["pause", "end"])
async def test_a_run_of_a_stopped_task_is_not_taken_up_again(tasks: Tasks, what: str) -> None:
    task = await add(tasks)
    run = await claim_one(tasks, NOW + HOUR)
    await tasks.begin(run.id, NOW + HOUR)
    await getattr(tasks, what)(task.id)
    assert list(await tasks.recover(NOW + DAY)) == []
    assert await history(tasks, task) == [(NOW + HOUR, "skipped")]


# --- what is forgotten --------------------------------------------------------------------------------------


async def test_a_group_that_is_removed_takes_its_tasks_along(tasks: Tasks, path: Path) -> None:
    gone, kept = await add(tasks, folder="family"), await add(tasks)
    run, _ = await claim(tasks, NOW + HOUR)
    assert run.task_id == gone.id
    await tasks.forget("family")
    assert [task.id for task in await tasks.of(ended=True)] == [kept.id]
    assert column(path, "SELECT task_id FROM task_runs") == [kept.id]
    # Its run may still be on its way.
    assert await tasks.begin(run.id, NOW + HOUR) is None
    assert await tasks.finish(run.id, "done", NOW + HOUR, "Done.") is None
    assert await tasks.fail(run.id, "no reason", NOW + HOUR) is None
    assert queued(path) == []


async def test_what_ended_long_ago_is_forgotten(tasks: Tasks, path: Path) -> None:
    ended, going, new = await add(tasks), await add(tasks), await add(tasks, now=NOW + 40 * DAY)
    for run in await claim(tasks, NOW + HOUR):
        await tasks.finish(run.id, "done", NOW + HOUR)
    (running, *_) = [run for run in await claim(tasks, NOW + 2 * HOUR) if run.task_id == going.id]
    for task in (ended, new):
        await tasks.end(task.id)
    await tasks.forget_before(NOW + HOUR)
    assert len(column(path, "SELECT id FROM task_runs")) == 4
    # The run of the ended task is still claimed.
    await tasks.forget_before(NOW + 30 * DAY)
    assert {task.id for task in await tasks.of(ended=True)} == {ended.id, going.id, new.id}
    assert column(path, "SELECT state FROM task_runs") == ["claimed", "claimed"]
    for run in await tasks.recover(NOW + 2 * DAY):
        assert run.id == running.id
    await tasks.forget_before(NOW + 30 * DAY)
    assert {task.id for task in await tasks.of(ended=True)} == {going.id, new.id}
    assert column(path, "SELECT task_id FROM task_runs") == [going.id]
