"""A group's agent, from its pending messages to their recorded answers.

The room between queue, store and container: it claims what is pending, starts or reuses the agent, and
records what came of it, so that every message ends as done or failed and every failure is a notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import uuid
from collections.abc import Callable
from dataclasses import replace

import structlog

from pynchy.agent_plugins import AgentPlugins, plugin_parts
from pynchy.config import Settings
from pynchy.container_runner import AgentFailed, AgentRun, Limits
from pynchy.credential import Credential
from pynchy.egress import Egress
from pynchy.failures import Failure, Verdict
from pynchy.fault_points import reached
from pynchy.group_queue import Place, Wake
from pynchy.host_tools import GroupHost
from pynchy.model_gateway import ModelGateway
from pynchy.plugin import ContainerRuntime, PluginRegistry
from pynchy.plugin_reports import PluginReports
from pynchy.router import format_prompt, visible_text
from pynchy.runtime import agent_image
from pynchy.store import Store, StoredMessage
from pynchy.types import ContainerInput, ContainerOutput, Group, RunSpec
from pynchy.workspace import attach_text, attachments_folder, group_folder, group_mounts, stage_runner

log = structlog.get_logger(__name__)

#: Messages answered in one go, and how long their texts may be together, in characters. A longer one travels
#: as an attachment: in a conversation it would be sent to the model again and again, until that is full.
_BATCH = 50
_BATCH_CHARACTERS = 50_000
_LONGEST_TEXT = 50_000  # bytes
#: Between two attempts at most, and until the next one after the database or our own code has failed, in seconds.
_LONGEST_PAUSE = 300.0
_AFTER_AN_ERROR = 5.0
_GIVE_BACK_WITHIN = 3.0
_PLUGINS_ANSWER_WITHIN = 30.0  # seconds

#: Labels that say whose containers these are.
LABEL_INSTALLATION = "io.pynchy.installation"
LABEL_GROUP = "io.pynchy.group"

_MAY_HAVE_ACTED = "I may have done a part of it already; look before you ask again."
STOPPED = "I was stopped before I had answered"
STOPPED_NOTICE = f"{STOPPED}. {_MAY_HAVE_ACTED}"


class Hopeless(Exception):
    """An agent that cannot be started as its group is set up, however often it is tried."""


Settled = Callable[[tuple[int, ...], str | None], None]


class Conversations:
    """Everything that a group's run needs, for all groups. `work` is what the queue runs."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        gateway: ModelGateway,
        credential: Credential,
        runtime: ContainerRuntime,
        registry: PluginRegistry,
        reports: PluginReports,
        egress: Egress,
        wake_outbox: Callable[[], None],
        settled: Settled,
        group: Callable[[str], Group | None],
        typing: Callable[[str, bool], None],
    ) -> None:
        self.settings = settings
        self.store = store
        self.gateway = gateway
        self.credential = credential
        self.runtime = runtime
        self.registry = registry
        self.reports = reports
        self.egress = egress
        self.wake_outbox = wake_outbox
        self.settled = settled
        self.runner_dir = stage_runner(settings.home)
        self.limits = Limits(start=settings.start_timeout, answer=settings.hard_timeout)
        #: The names of the containers that are in use, or about to be.
        self.containers: set[str] = set()
        self.group = group
        self.typing = typing
        self._asking: dict[str, asyncio.Future[AgentPlugins]] = {}

    async def work(self, place: Place) -> None:
        """Answer a group's messages until it has none for a while, or its place is needed."""
        group = self.group(place.jid)
        if group is None:
            return
        shift = Shift(self, group, place)
        try:
            await shift.serve()
        except sqlite3.OperationalError as error:
            log.error("the database cannot be used; trying again", group=group.folder, error=str(error))
            place.again_in = _AFTER_AN_ERROR
            await shift.give_back(STOPPED)
        except Exception as error:
            log.exception("answering a group failed", group=group.folder)
            place.again_in = _AFTER_AN_ERROR
            await shift.fail(f"something went wrong in here ({type(error).__name__}: {error})", reported=False)
        finally:
            await shift.end()

    async def ask_plugins(self, group: Group) -> AgentPlugins:
        """What plugins add to a group's next agent; ValueError where one of them does not answer.

        Asked in a thread, for their code may take its time, and of each group's once at a time, for a thread
        cannot be ended.
        """
        asking = self._asking.pop(group.jid, None)
        if asking is None or asking.done():
            home, owner = self.settings.home, agent_owner(self.settings)
            asking = asyncio.ensure_future(asyncio.to_thread(plugin_parts, self.registry, home, group, owner))
        done, _ = await asyncio.wait([asking], timeout=_PLUGINS_ANSWER_WITHIN)
        if not done:
            self._asking[group.jid] = asking
            raise ValueError(f"a plugin did not say within {_PLUGINS_ANSWER_WITHIN:.0f} s what it offers")
        return asking.result()


class Shift:
    """One group at its place: from its first message until it leaves, with at most one agent."""

    def __init__(self, host: Conversations, group: Group, place: Place) -> None:
        self._host = host
        self._store = host.store
        self._group = group
        self._place = place
        self._run: AgentRun | None = None
        self._services = GroupHost(
            lambda: host.group(group.jid) or self._group,
            host.store,
            host.gateway,
            host.credential,
            host.wake_outbox,
            host.reports,
            host.egress,
        )
        self._answer: asyncio.Task[ContainerOutput] | None = None
        self._resumed = False
        #: What is claimed and neither answered nor failed.
        self._open: dict[int, StoredMessage] = {}

    async def serve(self) -> None:
        """Claim, hand over, record, until there is nothing more to do here."""
        place = self._place
        while True:
            place.has_work.clear()
            if self._run and not self._open and place.yield_turn():
                return
            await self._take()
            if self._run is None:
                return
            if self._open:
                if not await self._next():
                    return
                if not self._open:
                    self._host.typing(self._group.jid, False)
            elif await place.idle(self._host.settings.idle_timeout) is Wake.LEAVE:
                return

    async def end(self) -> None:
        """Leave nothing open and nothing running behind."""
        self._host.typing(self._group.jid, False)
        try:
            if self._answer:
                self._answer.cancel()
                with contextlib.suppress(asyncio.CancelledError, AgentFailed):
                    await self._answer
            await self._end_run()
        finally:
            if self._open:  # the service stops; where the disk is full, the next start does the same
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_GIVE_BACK_WITHIN):
                        await self.give_back(STOPPED)
        if self._host.credential.usable and await self._store.has_pending(self._group.jid):
            self._place.has_work.set()

    async def _end_run(self) -> None:
        if self._run:
            await self._run.stop()
            self._host.containers.discard(self._run.name)
            self._run = None

    # --- in -------------------------------------------------------------------------------------------------

    async def _take(self) -> None:
        """Claim what is pending and hand it to the agent; while it answers, only if nobody waits for the place."""
        current = self._host.group(self._group.jid) or self._group
        if self._run and not self._open and (not self._run.alive or current != self._group):
            await self._end_run()  # it has died while it was idle, or is to have other plugins
        if self._run is None:
            self._group = current
        room = _BATCH_CHARACTERS - sum(len(message.content) for message in self._open.values())
        if not self._host.credential.usable or (self._open and (self._place.wanted or room <= 0)):
            return
        messages = await self._store.claim(self._group.jid, _BATCH, room)
        if not messages:
            return
        self._open |= {message.id: message for message in messages}
        self._host.typing(self._group.jid, True)
        reached("claimed")
        ids = tuple(message.id for message in messages)
        prompt = format_prompt([self._short(message) for message in messages])
        if self._run:
            self._run.send(prompt, ids)
            return
        try:
            plugins = await self._plugins()
            given = await self._input(prompt, plugins)
            self._run = self._new_run(plugins)
            await self._run.start(given, ids)
        except AgentFailed as failed:
            await self.fail(str(failed), failed.reported)
        except Hopeless as hopeless:
            await self.fail(str(hopeless), reported=False, hopeless=True)
        except (OSError, ValueError) as error:
            await self.fail(f"its container could not be prepared: {error}", reported=False)

    def _short(self, message: StoredMessage) -> StoredMessage:
        if len(message.content.encode()) <= _LONGEST_TEXT:
            return message
        words = attach_text(self._host.settings.home, self._group, message.id, message.content)
        return replace(message, content=words)

    async def _plugins(self) -> AgentPlugins:
        """What plugins add to the next agent."""
        host = self._host
        plugins = await host.ask_plugins(self._group)
        self._services.plugins = plugins
        await host.reports.note(plugins.reports)
        return plugins

    def _new_run(self, plugins: AgentPlugins) -> AgentRun:
        host, group = self._host, self._group
        owner = agent_owner(host.settings)
        home = host.settings.home
        folder, attachments = group_folder(home, group, owner), attachments_folder(home, group)
        spec = RunSpec(
            mounts=(*group_mounts(folder, host.runner_dir, attachments), *plugins.mounts),
            container_name=f"{container_prefix(self._store)}{group.folder[:40]}-{uuid.uuid4().hex[:8]}",
            image=agent_image(),
            labels={LABEL_INSTALLATION: self._store.installation_id, LABEL_GROUP: group.folder},
            memory_bytes=group.memory_bytes or host.settings.agent_memory,
            cpus=group.cpus or host.settings.agent_cpus,
            pids=group.pids or host.settings.agent_pids,
            user=owner,
            network="bridge" if group.network == "bridge" else "none",
        )
        if unmet := _cannot(host.runtime, group):
            raise Hopeless(f"the runtime {host.runtime.name} {unmet}")
        host.containers.add(spec.container_name)
        return AgentRun(host.runtime, spec, self._services, host.limits)

    async def _input(self, prompt: str, plugins: AgentPlugins) -> ContainerInput:
        session_id = await self._store.resume(self._group.jid)
        self._resumed = session_id is not None
        return ContainerInput(
            prompt=prompt,
            group_folder=self._group.folder,
            chat_jid=self._group.jid,
            is_main=self._group.is_main,
            session_id=session_id,
            plugin_mcp_servers=dict(plugins.mcp_servers) or None,
            plugin_hooks=dict(plugins.hooks) or None,
            plugin_tools=plugins.tool_descriptions() or None,
            plugin_skills=list(plugins.skills),
            assistant_name=self._host.settings.assistant_name,
            model=self._host.settings.model,
            network=self._group.network,
        )

    # --- out ------------------------------------------------------------------------------------------------

    async def _next(self) -> bool:
        """Wait for an answer or for more messages; False where the agent has failed."""
        assert self._run
        answer = self._answer = self._answer or asyncio.ensure_future(self._run.result())
        more = asyncio.ensure_future(self._place.has_work.wait())
        try:
            await asyncio.wait({answer, more}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            more.cancel()
        if not answer.done():
            return True
        self._answer = None
        try:
            output = answer.result()
        except AgentFailed as failed:
            await self.fail(str(failed), failed.reported)
            return False
        if output.error is not None:
            await self.fail(output.error, reported=True, ids=output.ids)
            return False
        await self._record(output)
        return True

    async def _record(self, output: ContainerOutput) -> None:
        reply = visible_text(output.text)
        await self._store.until_stored(
            lambda: self._store.complete(self._group.jid, output.ids, reply, output.session_id, output.transcript_end)
        )
        reached("recorded")
        self._resumed = True
        self._settle(output.ids, None)

    # --- failures -------------------------------------------------------------------------------------------

    async def fail(
        self, reason: str, reported: bool, ids: tuple[int, ...] | None = None, hopeless: bool = False
    ) -> None:
        """The run has failed: for these messages, or None where it ended and all of its open ones failed.

        It is tried again, unless it is `hopeless`.
        """
        acting: set[int] = set()
        if self._run:
            await self._run.stop()  # first: what still runs in there could act
            acting = self._run.acted
        under_way = tuple(self._open) if ids is None else ids
        log.warning("an agent gave no answer", group=self._group.folder, reason=reason)
        if acted := tuple(row_id for row_id in under_way if row_id in acting):
            failure = self._failure(acted, reason, reported, hopeless)
            await self._give_up(acted, failure, _MAY_HAVE_ACTED)
        if untouched := tuple(row_id for row_id in under_way if row_id not in acting):
            await self._try_again(untouched, self._failure(untouched, reason, reported, hopeless))
        if self._open:  # what it held for later
            await self.give_back(reason)

    def _failure(self, ids: tuple[int, ...], reason: str, reported: bool, hopeless: bool) -> Failure:
        attempts = max(self._open[row_id].attempts for row_id in ids)
        return Failure(reason, self._services.model_failure, reported, self._resumed, attempts, hopeless)

    async def _try_again(self, ids: tuple[int, ...], failure: Failure) -> None:
        settings, verdict = self._host.settings, failure.verdict
        if verdict is Verdict.CREDENTIAL:
            self._host.credential.refused()
            await self.give_back(failure.reason)
            return
        if verdict is Verdict.AFRESH:
            notice = (
                f"I could not go on with our conversation ({failure.plain}), so I have begun a new one: "
                "I may not remember what was said before."
            )
            await self._store.until_stored(lambda: self._store.set_session_aside(self._group.jid, notice))
            await self._retry(ids, failure, 0)
            return
        if verdict is Verdict.GIVE_UP:
            await self._give_up(ids, failure, "Nothing was done. Send it again to have me try again.")
            return
        if spent := tuple(row_id for row_id in ids if self._open[row_id].attempts + 1 >= settings.attempts):
            tried = f"I tried {settings.attempts} times, and nothing was done. " if settings.attempts > 1 else ""
            await self._give_up(spent, failure, f"{tried}Send it again to have me try again.")
        if left := tuple(row_id for row_id in ids if row_id not in spent):
            await self._retry(left, failure, self._pause(failure))

    def _pause(self, failure: Failure) -> float:
        pause = self._host.settings.retry_pause * 4**failure.attempts
        asked_for = (failure.model and failure.model.retry_after) or 0
        return min(max(pause, asked_for), _LONGEST_PAUSE)

    async def _retry(self, ids: tuple[int, ...], failure: Failure, pause: float) -> None:
        await self._store.until_stored(lambda: self._store.retry(ids, failure.reason))
        for row_id in ids:
            del self._open[row_id]
        self._place.again_in = pause

    async def _give_up(self, ids: tuple[int, ...], failure: Failure, what_next: str) -> None:
        notice = f"I could not answer: {failure.plain}. {what_next}"
        await self._store.until_stored(lambda: self._store.fail(self._group.jid, ids, failure.reason, notice))
        self._settle(ids, failure.reason)

    async def give_back(self, reason: str) -> None:
        """Release what is open; what a tool may have acted for is failed instead."""
        await self._end_run()
        ids = tuple(self._open)
        failed = await self._store.until_stored(lambda: self._store.release(ids, reason, STOPPED_NOTICE))
        self._open.clear()
        if failed:
            self._host.wake_outbox()
            self._host.settled(tuple(failed), reason)

    def _settle(self, ids: tuple[int, ...], error: str | None) -> None:
        for row_id in ids:
            self._open.pop(row_id, None)
        self._host.wake_outbox()
        self._host.settled(ids, error)


def _cannot(runtime: ContainerRuntime, group: Group) -> str:
    """What a group asks of its runtime that this one does not do, and what to do about it; empty where it does all."""
    supported = getattr(runtime, "supports", frozenset())
    if group.network == "bridge" and "bridge" not in supported:
        return "gives no agent a network of its own: set another network policy, or use another runtime"
    limits = (("memory", group.memory_bytes), ("cpus", group.cpus), ("pids", group.pids))
    unmet = [name for name, value in limits if value is not None and name not in supported]
    if unmet:
        return (
            f"cannot limit {', '.join(unmet)} here, as is set for this chat: remove the limit, or use another runtime"
        )
    return ""


def container_prefix(store: Store) -> str:
    """How the names of all containers of this installation begin, and of no other's."""
    return f"pynchy-{store.installation_id}-"


def agent_owner(settings: Settings) -> tuple[int, int]:
    """Whom agents run as: this user, or where that is root, a uid that is nobody's."""
    if os.geteuid() == 0:
        return settings.agent_uid, settings.agent_uid
    return os.geteuid(), os.getegid()
