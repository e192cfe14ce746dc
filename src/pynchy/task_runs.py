"""Scheduled tasks at work: each run at a place of its own in the queue, with an agent of its own.

So a task never waits for its chat's agent, nor that for the task. One that knows its chat's conversation reads it
as it was when the run began; what it adds is a conversation of its own, and what it says the chat's next turn hears.
"""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import structlog

from pynchy.agent_setup import AgentSetup, preparing
from pynchy.container_runner import AgentFailed, AgentRun
from pynchy.credential import Credential
from pynchy.failures import Failure, Verdict
from pynchy.group_host import GroupHost
from pynchy.group_queue import Place
from pynchy.router import format_task, visible_text
from pynchy.store import Store
from pynchy.tasks import Task, TaskRun
from pynchy.types import Group

log = structlog.get_logger(__name__)

_PREFIX = "task:"
_AFTER_AN_ERROR = 5.0  # seconds
_STOPPED = "it was stopped in the chat"


class Behind(Protocol):
    """What a task's run reaches of the service."""

    def group_in(self, folder: str) -> Group | None:
        """The group of a folder."""
        ...

    def zone_of(self, folder: str) -> ZoneInfo:
        """Where the people of a group are."""
        ...

    def task_host_of(self, group: Group, work: TaskWork) -> TaskHost:
        """A new end of the wire for an agent that works for a task."""
        ...

    def refusal(self, group: Group) -> str | None:
        """Why no model request of this group's may be made now; None where one may."""
        ...

    def wake(self, key: str) -> None:
        """Give this key a place in the queue."""
        ...

    def wake_outbox(self) -> None:
        """Something may be sent now."""
        ...


class TaskWork:
    """A run that has been claimed, over all its attempts."""

    def __init__(self, run: TaskRun) -> None:
        self.run = run
        self.session: tuple[str, int] | None = None
        self.attempts = run.attempts
        self.afresh = False
        self.stopped = False
        self.agent: AgentRun | None = None


class TaskHost(GroupHost):
    """The end of the wire of an agent that works for a task."""

    work: TaskWork

    @property
    def task_id(self) -> int:
        """The scheduled task that the agent works for."""
        return self.work.run.task_id

    async def note_acting(self, ids: tuple[int, ...]) -> None:
        """From now on, repeating the run could act twice."""
        await self._store.tasks.note_acted(self.work.run.id)

    async def append_transcript(self, session_id: str, subpath: str, entries: list[dict[str, Any]]) -> int:
        """Store what the run adds, beside the conversation that it knows and never in it."""
        own = f"{session_id}+task-{self.work.run.id}"
        return await self._store.until_stored(
            lambda: self._store.transcripts.append(self._group.folder, own, subpath, entries)
        )

    async def load_transcript(
        self, session_id: str, subpath: str, after: int
    ) -> tuple[list[dict[str, Any]], int | None]:
        """A page of the chat's conversation, as it was when the run began."""
        end = self.work.session[1] if self.work.session else 0
        return await self._store.transcripts.load(self._group.folder, session_id, subpath, after, end)


class TaskRuns:
    """The runs that have been claimed and have not ended. `work` is what the queue runs for them.

    Of one group's tasks one is at work at a time, and tasks leave one place of the queue to the chats.
    """

    def __init__(self, setup: AgentSetup, store: Store, credential: Credential, behind: Behind) -> None:
        self._setup = setup
        self._store = store
        self._credential = credential
        self._behind = behind
        self._open: dict[str, TaskWork] = {}
        self._most = max(1, setup.settings.max_concurrent_containers - 1)
        #: The folders of those at work, by their keys.
        self._at_work: dict[str, str] = {}

    @staticmethod
    def owns(key: str) -> bool:
        """Whether a key of the queue is a task's."""
        return key.startswith(_PREFIX)

    @property
    def running(self) -> list[int]:
        """The tasks whose runs have been claimed and have not ended."""
        return sorted(work.run.task_id for work in self._open.values())

    def start(self, run: TaskRun) -> None:
        """Have a run that is claimed take its turn. Never waits."""
        key = f"{_PREFIX}{run.task_id}"
        self._open[key] = TaskWork(run)
        self._behind.wake(key)

    def wake_all(self) -> None:
        """The runs that wait for a credential may go on."""
        self._wake_others("")

    def _wake_others(self, than: str) -> None:
        for key in [key for key in self._open if key != than and key not in self._at_work]:
            self._behind.wake(key)

    async def stop(self, folder: str) -> int:
        """End the runs of a group's tasks, as its people want; how many there were."""
        mine = []
        for key, work in list(self._open.items()):
            task = await self._store.tasks.get(work.run.task_id)
            if task and task.folder == folder and not work.stopped:
                mine.append((key, work))
        for key, work in mine:
            work.stopped = True
            if work.agent:
                await work.agent.stop()
            self._behind.wake(key)
        return len(mine)

    async def work(self, place: Place) -> None:
        """One attempt at a run."""
        place.has_work.clear()
        work = self._open.get(place.jid)
        if work is None:
            return
        task = await self._store.tasks.get(work.run.task_id)
        folder = task.folder if task else ""
        if folder in self._at_work.values() or len(self._at_work) >= self._most:
            return  # the next that ends wakes it
        self._at_work[place.jid] = folder
        try:
            await self._work(work, place)
        finally:
            del self._at_work[place.jid]
            if self._credential.usable:  # else all are woken once it is
                self._wake_others(place.jid)

    async def _work(self, work: TaskWork, place: Place) -> None:
        try:
            ended = await self._attempt(work, place)
        except sqlite3.OperationalError as error:
            log.error("the database failed; trying again", task=work.run.task_id, error=str(error))
            place.again_in = _AFTER_AN_ERROR
            return
        except Exception as error:
            log.exception("a task's run failed", task=work.run.task_id)
            ended = True
            await self._finish(work, False, f"something went wrong in here ({type(error).__name__}: {error})")
        if ended and self._open.get(place.jid) is work:  # its task may have come due again by now
            del self._open[place.jid]

    async def _attempt(self, work: TaskWork, place: Place) -> bool:
        """Whether the run has ended with it."""
        task = await self._store.tasks.get(work.run.task_id)
        group = self._behind.group_in(task.folder) if task else None
        if task is None or group is None:
            return True
        if work.stopped:
            await self._finish(work, True, _STOPPED)
            return True
        if not self._credential.usable:
            return False  # the run waits, and is woken when there is one
        if refusal := self._behind.refusal(group):
            await self._finish(work, False, refusal)
            return True
        if await self._store.tasks.begin(work.run.id, datetime.now(UTC)) is None:
            return True  # it was paused or cancelled meanwhile
        return await self._run(work, task, group, place)

    async def _run(self, work: TaskWork, task: Task, group: Group, place: Place) -> bool:
        host = self._behind.task_host_of(group, work)
        try:
            try:
                with preparing():
                    text = await self._ask(work, task, group, host)
            finally:
                if work.agent:
                    await self._setup.end_run(work.agent)
        except AgentFailed as error:
            failed = error
        else:
            await self._finish(work, True, text, says=True)
            return True
        finally:
            acted = bool(work.agent and work.agent.acted)
            work.agent = None
        return await self._failed(work, group, place, host, acted, failed)

    async def _ask(self, work: TaskWork, task: Task, group: Group, host: TaskHost) -> str:
        """Have an agent do it; returns what it answers, AgentFailed where it gives no answer."""
        knows = task.context == "group" and not work.afresh
        work.session = await self._store.session(group.jid) if knows else None
        plugins = host.plugins = await self._setup.plugins(group)
        prompt = format_task(task.id, task.prompt, datetime.now(UTC), self._behind.zone_of(group.folder))
        session_id = work.session[0] if work.session else None
        given = self._setup.input(group, plugins, prompt, session_id, [], host.tools, is_scheduled_task=True)
        work.agent = await self._setup.new_run(group, plugins, host)
        await work.agent.start(given, (work.run.id,))
        if work.stopped:
            raise AgentFailed(_STOPPED)
        output = await work.agent.result()
        if output.error is not None:
            raise AgentFailed(output.error, reported=True)
        return visible_text(output.text)

    async def _failed(
        self, work: TaskWork, group: Group, place: Place, host: TaskHost, acted: bool, failed: AgentFailed
    ) -> bool:
        if work.stopped:
            await self._finish(work, True, _STOPPED)
            return True
        log.warning("a task's run failed", task=work.run.task_id, group=group.folder, reason=str(failed))
        resumed = work.session is not None
        failure = Failure(str(failed), host.model_failure, failed.reported, resumed, work.attempts, failed.hopeless)
        verdict = failure.verdict
        if not acted and verdict is Verdict.CREDENTIAL:
            self._credential.refused()
            return False
        work.attempts += 1
        settings = self._setup.settings
        again = verdict in (Verdict.RETRY, Verdict.AFRESH) and work.attempts < settings.attempts
        if acted or not again:
            await self._finish(work, False, visible_text(failure.plain))
            return True
        work.afresh = work.afresh or verdict is Verdict.AFRESH
        await self._store.until_stored(lambda: self._store.tasks.attempted(work.run.id))
        place.again_in = failure.pause(settings.retry_pause)
        return False

    async def _finish(self, work: TaskWork, ok: bool, result: str, says: bool = False) -> None:
        """Record how a run ended; what it `says`, or that it failed, goes to its chat in the same transaction."""
        tasks, run_id, now = self._store.tasks, work.run.id, datetime.now(UTC)
        if ok:
            await self._store.until_stored(lambda: tasks.finish(run_id, result, now, result if says else None))
        else:
            await self._store.until_stored(lambda: tasks.fail(run_id, result, now))
        self._behind.wake_outbox()
