"""A scheduled task at work: beside its chat, with an agent of its own, and whatever becomes of it is said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from loft import JID, Loft, database, loft, seen
from stored import raw, rows
from support import RogueRuntime, until

from pynchy.schedule import Schedule
from pynchy.tasks import Task
from pynchy.types import Group, VolumeMount

pytestmark = pytest.mark.anyio

GROUP = Group(JID, "Family", "family", needs_trigger=False)
UTC_ZONE = ZoneInfo("UTC")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pauses that a test can wait for."""
    monkeypatch.setenv("PYNCHY_RETRY_PAUSE", "0.01")
    monkeypatch.setenv("TMPDIR", str(tmp_path))


async def due(channel: Loft, prompt: str = "water the plants", **wishes: Any) -> Task:
    """A task that is due now."""
    assert channel.service
    service = channel.service
    now = datetime.now(UTC)
    schedule = Schedule.parse("interval", "1h", UTC_ZONE, now)
    given = {"context": "isolated", "missed": "once", **wishes}
    task = await service._store.tasks.add("family", prompt, schedule, given["context"], given["missed"], UTC_ZONE, now)
    await make_due(channel, task)
    return task


async def make_due(channel: Loft, task: Task) -> None:
    """Let a task come due once more."""
    assert channel.service
    at = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    with raw(channel.service.settings.home / "pynchy.db") as db:
        db.execute("UPDATE tasks SET next_run = ? WHERE id = ?", (at, task.id))
    channel.service.wake_scheduler()


def runs(tmp_path: Path) -> list[tuple[Any, ...]]:
    return rows(database(tmp_path), "SELECT state, attempts, result FROM task_runs ORDER BY id")


@asynccontextmanager
async def family(kind: str) -> AsyncIterator[Loft]:
    """The family's chat, with agents of this kind."""
    async with loft(GROUP, RogueRuntime(kind)) as channel:
        yield channel


async def ended(channel: Loft, tmp_path: Path, count: int = 1) -> list[tuple[Any, ...]]:
    """The runs, once so many have ended."""
    async with asyncio.timeout(60):
        while len(found := [run for run in runs(tmp_path) if run[0] != "claimed"]) < count:
            await asyncio.sleep(0.02)
    return found


async def test_what_a_task_answers_is_sent_and_logged_and_the_chats_next_turn_hears_of_it(tmp_path: Path) -> None:
    async with family("echoes") as channel:
        task = await due(channel, "water <the> plants")
        answer = await channel.hear()
        assert answer.startswith(f'<messages task="{task.id}">')
        assert seen(answer) == [("scheduled task", "water <the> plants", False)]
        assert await ended(channel, tmp_path) == [("done", 0, answer)]
        await channel.arrive("thanks")
        ((assistant, text, context), mine) = seen(await channel.hear())
        assert (assistant, text, context) == ("Pynchy", answer, True)
        assert mine == ("Ada", "thanks", False)
        await channel.arrive("again")
        assert len(seen(await channel.hear())) == 1, "it is told once"


async def test_a_task_that_has_nothing_to_say_says_nothing(tmp_path: Path) -> None:
    class Quiet(RogueRuntime):
        """Answers with what nobody is to see."""

    async with loft(GROUP, Quiet("echoes")) as channel:
        assert channel.service
        service = channel.service
        finish = service._store.tasks.finish
        said: list[str | None] = []

        async def watched(run_id: int, result: str, now: datetime, say: str | None = None) -> Any:
            said.append(say)
            return await finish(run_id, result, now, say)

        service._store.tasks.finish = watched  # type: ignore[method-assign]
        from pynchy import task_runs

        task_runs_visible = task_runs.visible_text
        try:
            task_runs.visible_text = lambda text: task_runs_visible(f"<internal>{text}</internal>")
            await due(channel)
            assert await ended(channel, tmp_path) == [("done", 0, "")]
        finally:
            task_runs.visible_text = task_runs_visible
        await channel.silence()
        assert said == [""]


async def test_a_task_works_beside_its_chats_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with family("answers-when-told") as channel:
        await channel.arrive("take your time")
        async with asyncio.timeout(30):
            while not (tmp_path / "family.started").exists():
                await asyncio.sleep(0.01)
        (tmp_path / "family.started").unlink()
        await due(channel)
        async with asyncio.timeout(30):
            while not (tmp_path / "family.started").exists():  # the task's, while the chat's has not answered yet
                await asyncio.sleep(0.01)
        (tmp_path / "family.go").touch()
        assert [await channel.hear(), await channel.hear()] == ["an answer"] * 2


async def test_a_run_that_fails_before_any_tool_is_tried_again(tmp_path: Path) -> None:
    async with family("fails-the-first-time") as channel:
        await due(channel)
        assert await channel.hear() == "an answer"
        assert await ended(channel, tmp_path) == [("done", 1, "an answer")]


async def test_a_run_that_goes_on_failing_is_said_and_five_in_a_row_pause_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYNCHY_ATTEMPTS", "2")
    async with family("exits-before-ready") as channel:
        task = await due(channel)
        for number in range(1, 6):
            notice = await channel.hear()
            assert notice.startswith(f'Task {task.id} ("water the plants") failed: its process ended with exit code 1')
            assert ("is paused" in notice) == (number == 5)
            await ended(channel, tmp_path, number)
            await make_due(channel, task)
        await channel.silence()
        assert channel.service
        found = await channel.service._store.tasks.get(task.id)
        assert found
        assert (found.state, found.failures) == ("paused", 5)
    assert [(state, attempts) for state, attempts, _ in runs(tmp_path)] == [("failed", 1)] * 5


async def test_a_run_that_may_have_acted_is_not_repeated(tmp_path: Path) -> None:
    async with family("exits-after-a-tool") as channel:
        await due(channel)
        assert (await channel.hear()).endswith("A part of it may have been done.")
        assert [(state, attempts) for state, attempts, _ in await ended(channel, tmp_path)] == [("failed", 0)]


async def test_a_service_that_ends_in_the_middle_of_a_run_takes_it_up_again(tmp_path: Path) -> None:
    async with family("never-answers") as channel:
        await due(channel)
        async with asyncio.timeout(30):
            while not rows(database(tmp_path), "SELECT 1 FROM task_runs WHERE started_at IS NOT NULL"):
                await asyncio.sleep(0.01)
    async with family("answers") as channel:
        assert await channel.hear() == "an answer"
        assert [state for state, *_ in await ended(channel, tmp_path)] == ["done"]


async def test_a_run_that_had_acted_when_the_service_ended_is_said_and_not_taken_up(tmp_path: Path) -> None:
    async with family("never-answers-after-a-tool") as channel:
        await due(channel)
        async with asyncio.timeout(30):
            while not rows(database(tmp_path), "SELECT 1 FROM task_runs WHERE acted"):
                await asyncio.sleep(0.01)
    async with family("answers") as channel:
        assert "Pynchy was stopped while it ran. A part of it may have been done." in await channel.hear()
        await channel.silence()


async def test_stop_ends_a_task_that_is_at_work_and_it_is_no_failure(tmp_path: Path) -> None:
    async with family("never-answers") as channel:
        task = await due(channel)
        async with asyncio.timeout(30):
            while not rows(database(tmp_path), "SELECT 1 FROM task_runs WHERE started_at IS NOT NULL"):
                await asyncio.sleep(0.01)
        await channel.arrive("/stop")
        assert await channel.hear() == "Stopped."
        assert await ended(channel, tmp_path) == [("done", 0, "it was stopped in the chat")]
        assert channel.service
        found = await channel.service._store.tasks.get(task.id)
        assert found
        assert (found.state, found.failures) == ("active", 0)
        await channel.silence()


async def test_stop_ends_what_is_left_when_a_run_ends_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with family("answers-when-told") as channel:
        assert channel.service
        service = channel.service
        for _ in range(2):
            await due(channel)
        await until(lambda: len(runs(tmp_path)) == 2 and (tmp_path / "family.started").exists())
        get = service._store.tasks.get

        async def get_late(task_id: int) -> Task | None:
            if asyncio.current_task() is stopping:
                (tmp_path / "family.go").touch()
                await until(lambda: len(service._task_runs.running) < 2)
            return await get(task_id)

        monkeypatch.setattr(service._store.tasks, "get", get_late)
        stopping = asyncio.create_task(service.stop_agents(GROUP))
        assert await stopping == "Stopped."
        assert [state for state, *_ in await ended(channel, tmp_path, 2)] == ["done"] * 2


async def test_a_task_that_is_cancelled_while_it_waits_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_CONCURRENT_CONTAINERS", "1")
    async with family("answers-when-told") as channel:
        await channel.arrive("take your time")
        async with asyncio.timeout(30):
            while not (tmp_path / "family.started").exists():
                await asyncio.sleep(0.01)
        task = await due(channel)
        async with asyncio.timeout(30):
            while not runs(tmp_path):
                await asyncio.sleep(0.01)
        await channel.arrive(f"/tasks cancel {task.id}")
        assert f"Task {task.id}: water the plants" in await channel.hear()
        (tmp_path / "family.go").touch()
        assert await channel.hear() == "an answer"
        assert [state for state, *_ in await ended(channel, tmp_path)] == ["skipped"]
        await channel.silence()


async def test_a_group_that_is_removed_has_no_tasks_any_more(tmp_path: Path) -> None:
    async with family("never-answers") as channel:
        await due(channel)
        assert channel.service
        await channel.service.remove_group("family")
        async with asyncio.timeout(30):
            while channel.service._task_runs.running:
                await asyncio.sleep(0.01)
        await channel.silence()
    assert json.dumps(rows(database(tmp_path), "SELECT * FROM tasks")) == "[]"


class Counting(RogueRuntime):
    """Knows the containers that were started, and waits for a sign to let them answer."""

    def __init__(self) -> None:
        super().__init__("answers-when-told")
        self.started: list[str] = []

    def build_run_args(self, mounts: list[VolumeMount], container_name: str, image: str) -> list[str]:
        self.started.append(container_name)
        return super().build_run_args(mounts, container_name, image)


async def test_one_task_of_a_group_is_at_work_at_a_time_and_the_next_begins_when_it_ends(tmp_path: Path) -> None:
    runtime = Counting()
    async with loft(GROUP, runtime) as channel:
        for number in range(3):
            await due(channel, f"task {number}")
        async with asyncio.timeout(30):
            while len(runs(tmp_path)) < 3 or not (tmp_path / "family.started").exists():
                await asyncio.sleep(0.01)
        assert len(runtime.started) == 1
        (tmp_path / "family.go").touch()
        assert [await channel.hear() for _ in range(3)] == ["an answer"] * 3
        assert [state for state, *_ in await ended(channel, tmp_path, 3)] == ["done"] * 3
    assert len(runtime.started) == 3


async def test_tasks_leave_a_place_to_the_chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_CONCURRENT_CONTAINERS", "2")
    runtime = Counting()
    async with loft(GROUP, runtime) as channel:
        assert channel.service
        service = channel.service
        await service.register_group(Group("loft:2", "Work", "work", needs_trigger=False))
        now = datetime.now(UTC)
        schedule = Schedule.parse("interval", "1h", UTC_ZONE, now)
        work = await service._store.tasks.add("work", "later", schedule, "isolated", "once", UTC_ZONE, now)
        await make_due(channel, work)
        await due(channel)
        async with asyncio.timeout(30):
            while len(runs(tmp_path)) < 2 or not runtime.started:
                await asyncio.sleep(0.01)
        await channel.arrive("and me?")
        async with asyncio.timeout(30):
            while len(runtime.started) < 2:
                await asyncio.sleep(0.01)
        assert service.groups_running == [JID]
        for folder in ("family", "work"):
            (tmp_path / f"{folder}.go").touch()
        heard = [await channel.hear() for _ in range(3)]
        assert sorted(heard) == ["an answer", "an answer", "to loft:2: an answer"]


async def test_runs_that_wait_for_a_credential_wait_in_silence_and_then_go_on(tmp_path: Path) -> None:
    async with family("answers") as channel:
        assert channel.service
        service = channel.service
        service._credential.refused()
        await due(channel, "one")
        await due(channel, "two")
        for run in await service._store.tasks.claim_due(datetime.now(UTC), service.zone_of):
            service._task_runs.start(run)
        begun = service._queue
        assert begun
        wakes = 0
        wake = begun.wake

        def counted(key: str) -> None:
            nonlocal wakes
            wakes += 1
            wake(key)

        begun.wake = counted  # type: ignore[method-assign]
        for _ in range(200):
            await asyncio.sleep(0.001)
        assert wakes < 10
        service._credential.accepted()
        await service._wake_pending()
        assert [await channel.hear(), await channel.hear()] == ["an answer"] * 2
