"""A group's agent, from its pending messages to their recorded answers.

The room between queue, store and container: it claims what is pending, starts or reuses the agent, and
records what came of it, so that every message ends as done or failed and every failure is a notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol
from zoneinfo import ZoneInfo

import structlog

from pynchy.agent_setup import AgentSetup, preparing
from pynchy.attachments import attach_text, excerpt_of, images
from pynchy.container_runner import AgentFailed, AgentRun
from pynchy.credential import Credential
from pynchy.failures import Failure, Verdict
from pynchy.fault_points import reached
from pynchy.group_host import GroupHost
from pynchy.group_queue import Place, Wake
from pynchy.messages import StoredMessage
from pynchy.router import Command, command_in, format_prompt, trigger_of, visible_text
from pynchy.store import Store
from pynchy.types import ContainerOutput, Group

log = structlog.get_logger(__name__)

#: Messages answered in one go, and how long their texts may be together, in characters. A longer one travels
#: as an attachment: in a conversation it would be sent to the model again and again, until that is full.
_BATCH = 50
_BATCH_CHARACTERS = 50_000
_LONGEST_TEXT = 50_000  # bytes
#: Of what is only context, so many messages and characters are part of the prompt; the rest is a file.
_CONTEXT = 100
_CONTEXT_CHARACTERS = 25_000
#: Until the next attempt after the database or our own code has failed, in seconds.
_AFTER_AN_ERROR = 5.0
_GIVE_BACK_WITHIN = 3.0

MAY_HAVE_ACTED = "I may have done a part of it already; look before you ask again."
STOPPED = "I was stopped before I had answered"
STOPPED_NOTICE = f"{STOPPED}. {MAY_HAVE_ACTED}"
_COMPACTED = "Our conversation is compacted: I remember what it was about, and no longer every word."


class Behind(Protocol):
    """What agents' runs reach of the service."""

    def group(self, jid: str) -> Group | None:
        """The group of a chat as it is now."""
        ...

    def zone_of(self, folder: str) -> ZoneInfo:
        """Where the people of a group are."""
        ...

    def host_of(self, group: Group) -> GroupHost:
        """A new end of the wire for an agent of this group."""
        ...

    def refusal(self, group: Group) -> str | None:
        """Why no model request of this group's may be made now; None where one may."""
        ...

    def working(self, jid: str, doing: Callable[[], str] | None) -> None:
        """An agent works for this chat, and `doing` says on what; None: it no longer does. Never waits."""
        ...

    def settled(self, ids: tuple[int, ...], error: str | None) -> None:
        """These messages are answered, or for this reason will not be."""
        ...

    def wake_outbox(self) -> None:
        """Something may be sent now."""
        ...


class Conversations:
    """The chats' agents, for all groups. `work` is what the queue runs."""

    def __init__(self, setup: AgentSetup, store: Store, credential: Credential, behind: Behind) -> None:
        self.setup = setup
        self.settings = setup.settings
        self.store = store
        self.credential = credential
        self.behind = behind
        self._shifts: dict[str, Shift] = {}

    async def work(self, place: Place) -> None:
        """Answer a group's messages until it has none for a while, or its place is needed."""
        group = self.behind.group(place.jid)
        if group is None:
            return
        shift = self._shifts[place.jid] = Shift(self, group, place)
        try:
            await shift.serve()
        except sqlite3.OperationalError as error:
            log.error("the database failed; trying again", group=group.folder, error=str(error))
            place.again_in = _AFTER_AN_ERROR
        except Exception as error:
            log.exception("answering a group failed", group=group.folder)
            place.again_in = _AFTER_AN_ERROR
            await shift.fail(AgentFailed(f"something went wrong in here ({type(error).__name__}: {error})"))
        finally:
            try:
                await shift.end()
            finally:
                del self._shifts[place.jid]

    async def stop(self, jid: str) -> str | None:
        """End what a chat's agent does, and give up what waits there; what to say of it, None where nothing was.

        What comes in meanwhile is answered.
        """
        newest = await self.store.newest_message()
        dropped = await self._drop(jid, newest)  # first: once the agent has ended, the next one would claim it
        shift = self._shifts.get(jid)
        said = await shift.stop() if shift else None
        dropped += await self._drop(jid, newest)  # what a run that was just failing has given back
        return said or ("Stopped." if dropped else None)

    async def _drop(self, jid: str, newest: int) -> list[int]:
        dropped = await self.store.drop_pending(jid, STOPPED, newest)
        self.behind.settled(tuple(dropped), STOPPED)
        return dropped

    async def renew(self, jid: str) -> None:
        """Let a chat's next message begin a new conversation; what is being answered still belongs to the old one."""
        self.ended(jid)
        await self.store.end_session(jid)

    def ended(self, jid: str) -> None:
        """A chat's conversation is over in the store: its agent must not take it up again."""
        if shift := self._shifts.get(jid):
            shift.renew()


class Shift:
    """One group at its place: from its first message until it leaves, with at most one agent."""

    def __init__(self, host: Conversations, group: Group, place: Place) -> None:
        self._host = host
        self._behind = host.behind
        self._store = host.store
        self._group = group
        self._place = place
        self._run: AgentRun | None = None
        self._services = host.behind.host_of(group)
        self._answer: asyncio.Task[ContainerOutput] | None = None
        self._resumed = False
        self._renewing = False
        self._compacting = False
        self._claiming = asyncio.Lock()
        self._stopped: asyncio.Future[str] | None = None
        self._heard = 0
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
                    self._behind.working(self._group.jid, None)
            elif await place.idle(self._host.settings.idle_timeout) is Wake.LEAVE:
                return

    async def end(self) -> None:
        """Leave nothing open and nothing running behind."""
        self._behind.working(self._group.jid, None)
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
            if self._stopped and not self._stopped.done():
                self._stopped.set_result("Stopped.")
        if self._host.credential.usable and await self._store.has_pending(self._group.jid):
            self._place.has_work.set()

    async def stop(self) -> str | None:
        """End what the agent is doing, as the user wants; what to say of it, None where it does nothing."""
        async with self._claiming:
            pass  # what is about to be open is to be stopped as well
        if not self._open:
            return None
        if self._stopped is None:
            self._stopped = asyncio.get_running_loop().create_future()
        stopped = self._stopped
        if self._run:
            await self._run.stop()  # which is what `_next` waits for
        return await asyncio.shield(stopped)

    def renew(self) -> None:
        """Begin a new conversation with the next message, once this one's last is answered."""
        self._renewing = True
        self._place.has_work.set()  # an agent that is idle ends

    async def _end_run(self) -> None:
        if self._run:
            await self._host.setup.end_run(self._run)
            self._run = None

    # --- in -------------------------------------------------------------------------------------------------

    async def _take(self) -> None:
        """Claim what is pending and hand it to the agent; while it answers, only if nobody waits for the place."""
        current = self._behind.group(self._group.jid)
        if self._run and not self._open and (self._renewing or not self._run.alive or current != self._group):
            await self._end_run()  # it has died while it was idle, or the next one is to be another
        if self._run is None:
            self._renewing = False
            if current is None:
                return  # it is no group any more
            self._group = current
        room = _BATCH_CHARACTERS - sum(len(message.content) for message in self._open.values())
        elsewhere = self._place.wanted or self._renewing or self._compacting or self._stopped or room <= 0
        if not self._host.credential.usable or (self._open and elsewhere):
            return
        busy = bool(self._open)
        async with self._claiming:
            messages = await self._store.claim(self._group.jid, _BATCH, room, self._is_compact)
            if not messages:
                return
            if busy and self._compact_of(messages) is not None:
                await self._store.release([messages[0].id], STOPPED, STOPPED_NOTICE)
                return  # it goes in alone, once this is answered
            self._open |= {message.id: message for message in messages}
        if not busy and (refusal := self._behind.refusal(self._group)):
            await self.fail(AgentFailed(refusal, hopeless=True))
            return
        self._behind.working(self._group.jid, lambda: self._run.doing if self._run else "")
        reached("claimed")
        try:
            with preparing():
                await self._hand_over(messages)
        except AgentFailed as failed:
            await self.fail(failed)

    async def _hand_over(self, messages: Sequence[StoredMessage]) -> None:
        """Give messages to the agent, which is started where there is none; AgentFailed, OSError, ValueError."""
        prompt, pictures = await self._prompt(messages)
        ids = tuple(message.id for message in messages)
        if self._run:
            self._run.send(prompt, ids, pictures)
            return
        if self._stopped:
            raise AgentFailed(STOPPED)
        plugins = self._services.plugins = await self._host.setup.plugins(self._group)
        session_id = await self._store.resume(self._group.jid)
        self._resumed = session_id is not None
        tools = self._services.tools
        given = self._host.setup.input(self._group, plugins, prompt, session_id, pictures, tools)
        self._run = await self._host.setup.new_run(self._group, plugins, self._services)
        await self._run.start(given, ids)
        if self._stopped:
            raise AgentFailed(STOPPED)

    def _is_compact(self, content: str) -> bool:
        return self._compacts(content) is not None

    def _compact_of(self, messages: Sequence[StoredMessage]) -> Command | None:
        """The command that these messages are; None where they are what people say."""
        return self._compacts(messages[0].content) if messages[0].asks else None

    def _compacts(self, content: str) -> Command | None:
        command = command_in(content, trigger_of(self._group, self._host.settings.default_trigger))
        return command if command and command.word == "compact" else None

    async def _prompt(self, messages: Sequence[StoredMessage]) -> tuple[str, list[str]]:
        """What the agent reads of these messages, and the images that it sees with it; OSError."""
        if command := self._compact_of(messages):
            self._compacting = True
            return f"/compact {command.rest}".strip(), []
        zone = self._behind.zone_of(self._group.folder)
        earlier, shown = _shown(messages)
        said = await self._store.unheard(self._group.jid)
        self._heard = said[-1].id if said else self._heard
        file = await asyncio.to_thread(self._attach_earlier, earlier, zone) if earlier else ""
        short = [await self._short(message) for message in shown]
        prompt = format_prompt(short, zone, said, self._host.settings.assistant_name, file)
        return prompt, images(one for message in shown for one in message.attachments)

    def _attach_earlier(self, earlier: Sequence[StoredMessage], zone: ZoneInfo) -> str:
        name = f"earlier-{earlier[-1].id}.txt"
        return attach_text(self._host.settings.home, self._group, name, format_prompt(earlier, zone))

    async def _short(self, message: StoredMessage) -> StoredMessage:
        if len(message.content.encode()) <= _LONGEST_TEXT:
            return message
        name, home = f"message-{message.id}.txt", self._host.settings.home
        path = await asyncio.to_thread(attach_text, home, self._group, name, message.content)
        return replace(message, content=excerpt_of(message.content, path))

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
            await self.fail(failed)
            return False
        if output.error is not None:
            await self.fail(AgentFailed(output.error, reported=True), output.ids)
            return False
        await self._record(output)
        return True

    async def _record(self, output: ContainerOutput) -> None:
        reply = _COMPACTED if self._compacting else visible_text(output.text)
        self._compacting = False
        # A conversation that was ended meanwhile is not taken up again.
        session_id = None if self._renewing else output.session_id
        await self._store.until_stored(
            lambda: self._store.complete(
                self._group.jid, output.ids, reply, session_id, output.transcript_end, self._heard
            )
        )
        reached("recorded")
        self._resumed = True
        self._settle(output.ids, None)
        if self._stopped and not self._open:
            self._stopped.set_result("There is nothing to stop any more: it had just been answered.")
            self._stopped = None

    # --- failures -------------------------------------------------------------------------------------------

    async def fail(self, failed: AgentFailed, ids: tuple[int, ...] | None = None) -> None:
        """The run has failed: for these messages, or None where it ended and all of its open ones failed.

        It is tried again, unless that is hopeless.
        """
        acting: set[int] = set()
        self._compacting = False
        if self._run:
            await self._run.stop()  # first: what still runs in there could act
            acting = self._run.acted & set(self._open)
        if self._stopped:
            await self._stop_all(acting)
            return
        under_way = tuple(self._open) if ids is None else ids
        log.warning("an agent gave no answer", group=self._group.folder, reason=str(failed))
        if acted := tuple(row_id for row_id in under_way if row_id in acting):
            await self._give_up(acted, self._failure(acted, failed), MAY_HAVE_ACTED)
        if untouched := tuple(row_id for row_id in under_way if row_id not in acting):
            await self._try_again(untouched, self._failure(untouched, failed))
        if self._open:  # what it held for later
            await self.give_back(str(failed))

    async def _stop_all(self, acting: set[int]) -> None:
        """Give up everything that is open, as the user wants; who asked for it says so."""
        ids = tuple(self._open)
        await self._store.until_stored(lambda: self._store.fail(self._group.jid, ids, STOPPED, None))
        await self._end_run()
        self._settle(ids, STOPPED)
        assert self._stopped
        self._stopped.set_result(f"Stopped. {MAY_HAVE_ACTED}" if acting else "Stopped.")
        self._stopped = None

    def _failure(self, ids: tuple[int, ...], failed: AgentFailed) -> Failure:
        attempts = max(self._open[row_id].attempts for row_id in ids)
        model = self._services.model_failure
        return Failure(str(failed), model, failed.reported, self._resumed, attempts, failed.hopeless)

    async def _try_again(self, ids: tuple[int, ...], failure: Failure) -> None:
        settings, verdict = self._host.settings, failure.verdict
        if verdict is Verdict.CREDENTIAL:
            self._host.credential.refused()
            await self.give_back(failure.reason)
            return
        if verdict is Verdict.AFRESH:
            notice = (
                f"I could not go on with our conversation ({visible_text(failure.plain)}), so I have begun a new one: "
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
            await self._retry(left, failure, failure.pause(self._host.settings.retry_pause))

    async def _retry(self, ids: tuple[int, ...], failure: Failure, pause: float) -> None:
        await self._store.until_stored(lambda: self._store.retry(ids, failure.reason))
        for row_id in ids:
            del self._open[row_id]
        self._place.again_in = pause

    async def _give_up(self, ids: tuple[int, ...], failure: Failure, what_next: str) -> None:
        notice = f"I could not answer: {visible_text(failure.plain)}. {what_next}"
        await self._store.until_stored(lambda: self._store.fail(self._group.jid, ids, failure.reason, notice))
        self._settle(ids, failure.reason)

    async def give_back(self, reason: str) -> None:
        """Release what is open; what a tool may have acted for is failed instead."""
        await self._end_run()
        ids = tuple(self._open)
        failed = await self._store.until_stored(lambda: self._store.release(ids, reason, STOPPED_NOTICE))
        self._open.clear()
        if failed:
            self._behind.wake_outbox()
            self._behind.settled(tuple(failed), reason)

    def _settle(self, ids: tuple[int, ...], error: str | None) -> None:
        for row_id in ids:
            self._open.pop(row_id, None)
        self._behind.wake_outbox()
        self._behind.settled(ids, error)


def _shown(messages: Sequence[StoredMessage]) -> tuple[list[StoredMessage], list[StoredMessage]]:
    """The messages whose context is too long to be part of a prompt, and those that are."""
    earlier: list[StoredMessage] = []
    shown: list[StoredMessage] = []
    count, characters = 0, 0
    for message in reversed(messages):
        if not message.asks:
            count, characters = count + 1, characters + len(message.content)
        too_much = count > _CONTEXT or characters > _CONTEXT_CHARACTERS
        (earlier if too_much and not message.asks else shown).insert(0, message)
    return earlier, shown
