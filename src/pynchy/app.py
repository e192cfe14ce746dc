"""The composition root: builds every room of the service, starts it, and stops it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import structlog

from pynchy.agent_plugins import skills_folder
from pynchy.agent_setup import AgentSetup, container_prefix
from pynchy.attachments import discard, keep_all, not_kept
from pynchy.channel_host import ChannelHost
from pynchy.channels.terminal import TerminalChannel
from pynchy.chat_commands import ChatCommands
from pynchy.config import Settings
from pynchy.control import ControlError, ControlServer
from pynchy.conversations import STOPPED, STOPPED_NOTICE, Conversations
from pynchy.costs import Costs
from pynchy.credential import Credential
from pynchy.egress import Egress
from pynchy.fault_points import reached
from pynchy.group_host import GroupHost
from pynchy.group_queue import GroupQueue
from pynchy.groups import TERMINAL_MAIN, Groups
from pynchy.home import control_socket, database
from pynchy.host_tools import HostTools
from pynchy.messages import KeptAttachment
from pynchy.model_gateway import ModelGateway, Upstream
from pynchy.orphans import reap_orphans, remove_orphans
from pynchy.outbox import Outbox
from pynchy.plugin import ContainerRuntime, PluginRegistry, State
from pynchy.plugin_inventory import changed_since, plugin_line, records_with_reports
from pynchy.plugin_reports import PluginReports
from pynchy.progress import Progress
from pynchy.retention import Retention
from pynchy.router import command_in, trigger_of
from pynchy.scheduler import Scheduler
from pynchy.starting import home_lock
from pynchy.status import Status
from pynchy.store import Store
from pynchy.task_runs import TaskHost, TaskRuns, TaskWork
from pynchy.tasks import Task
from pynchy.types import Channel, Group, NewMessage

log = structlog.get_logger(__name__)

_MAX_MESSAGE = 200_000  # characters

_Host = TypeVar("_Host", bound=GroupHost)


class Service:
    """A running service. `async with Service.start(...)` begins and ends it."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        registry: PluginRegistry,
        runtime: ContainerRuntime,
        demo: bool,
        channels: Sequence[Channel],
    ) -> None:
        self.settings = settings
        self.demo = demo
        self.terminal = TerminalChannel()
        self.groups = Groups(settings, store)
        self.reports = PluginReports(store, self._main, self.wake_outbox)
        self.channels = ChannelHost(settings.home, self, self.reports, [self.terminal, *channels])
        self.outbox = Outbox(store, self.channels.owner_of, settings.assistant_name, self._main, settings.home)
        self._progress = Progress(self.channels.owner_of, self.channels.typing, settings.assistant_name)
        self._tools = HostTools(settings, store, self)
        self._commands = ChatCommands(store, self)
        self._costs = Costs(settings, store, self._main, self.wake_outbox, free=demo)
        self._store = store
        self._registry = registry
        self._runtime = runtime
        self._settling: dict[int, asyncio.Future[str | None]] = {}
        self._queue: GroupQueue | None = None
        self._scheduler: Scheduler | None = None

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        settings: Settings,
        upstream: Upstream,
        registry: PluginRegistry,
        runtime: ContainerRuntime,
        demo: bool = False,
        channels: Sequence[Channel] = (),
        plugin_channels: bool = True,
    ) -> AsyncIterator[Service]:
        """Start everything, and at the end stop it: messages under way stay open for the next start.

        `channels` are connected already, and hand what they receive to `on_message`. Without `plugin_channels`
        it serves the terminal alone.
        """
        async with AsyncExitStack() as stack:
            stack.enter_context(home_lock(settings.home))
            store = await stack.enter_async_context(Store.open(database(settings.home)))
            service = cls(settings, store, registry, runtime, demo, channels)
            service._gateway = await stack.enter_async_context(ModelGateway.open(upstream))
            egress = service._egress = Egress(store.destinations, settings.network_bytes_a_day)
            stack.callback(egress.close)
            await egress.begin()
            await service._costs.begin()
            stack.push_async_callback(service._costs.end)
            prefix = container_prefix(store)
            # A run of an earlier service gave no answer any more; its containers may still be running.
            await asyncio.to_thread(remove_orphans, runtime, prefix, frozenset())
            await store.release(None, STOPPED, STOPPED_NOTICE)
            await asyncio.to_thread(shutil.rmtree, skills_folder(settings.home), ignore_errors=True)
            await service.register_group(Group(TERMINAL_MAIN, "main", "main", is_main=True, needs_trigger=False))
            credential = service._credential = Credential(
                settings,
                service._gateway,
                service._say_to_main,
                service._held_up,
                service._wake_pending,
                replaceable=not demo,
            )
            setup = AgentSetup(settings, store, runtime, registry, service.reports, lambda: service.groups.by_jid)
            conversations = service._conversations = Conversations(setup, store, credential, service)
            tasks = service._task_runs = TaskRuns(setup, store, credential, service)
            service._queue = GroupQueue(
                settings.max_concurrent_containers,
                lambda place: tasks.work(place) if tasks.owns(place.jid) else conversations.work(place),
            )
            stack.push_async_callback(service._queue.close)
            stack.push_async_callback(service._progress.stop)
            scheduler = service._scheduler = Scheduler(
                store.tasks,
                service.zone_of,
                tasks.start,
                hold=lambda: not credential.usable,
                recovered=service.wake_outbox,
            )
            for action in (
                service.outbox.run(),
                credential.watch(),
                reap_orphans(runtime, prefix, setup.containers),
                scheduler.run(),
                Retention(store, settings.home, settings, service.conversation_ended).run(),
            ):
                stack.push_async_callback(_cancelled, asyncio.get_running_loop().create_task(action))
            await service.reports.begin(registry.records)
            stack.push_async_callback(service.channels.stop)
            if plugin_channels:
                await service.channels.start(registry)
            service.door = ControlServer(control_socket(settings.home), service)
            await stack.enter_async_context(service.door.listening())
            await service._wake_pending()
            log.info("ready", home=str(settings.home), runtime=runtime.name, demo=demo)
            yield service

    door: ControlServer
    _gateway: ModelGateway
    _egress: Egress
    _credential: Credential
    _conversations: Conversations
    _task_runs: TaskRuns

    # --- groups ---------------------------------------------------------------------------------------------

    async def register_group(self, group: Group) -> None:
        """Answer this chat from now on; one that is registered already stays as it is. ValueError."""
        await self.groups.register(group)
        self.wake(group.jid)

    async def update_group(self, group: Group) -> None:
        """Let a group's next agent have these settings; one that is idle now is ended. ValueError."""
        await self.groups.update(group)
        self.wake(group.jid)
        self.wake_scheduler()

    async def remove_group(self, folder: str) -> None:
        """Answer a chat no longer, and end its tasks; ValueError for the main chat, and where there is none."""
        removed = await self.groups.remove(folder)
        await self.stop_agents(removed)
        self.wake(removed.jid)

    def _main(self) -> str:
        return self.groups.main_jid

    def registered_groups(self) -> Mapping[str, Group]:
        """Every group by its jid."""
        return self.groups.by_jid

    def group(self, jid: str) -> Group | None:
        """The group of a chat as it is now."""
        return self.groups.by_jid.get(jid)

    def group_in(self, folder: str) -> Group | None:
        """The group of a folder."""
        return self.groups.in_folder(folder)

    def zone_of(self, folder: str) -> ZoneInfo:
        """Where the people of a group are."""
        return self.groups.zone_of(folder)

    def installed_plugins(self) -> frozenset[str]:
        """The plugins that a group can have."""
        return frozenset(record.name for record in self._registry.records if record.state is State.READY)

    async def known_chats(self) -> dict[str, str]:
        """The names of the chats that channels have seen, by jid."""
        return await self._store.chats()

    async def people(self, folder: str) -> dict[str, str]:
        """Who has written in a group's chat: what each is called, by their ids."""
        return await self._store.people(await self.group_jid(folder))

    # --- the way in -----------------------------------------------------------------------------------------

    async def on_message(self, message: NewMessage, asks: bool | None = None) -> int | None:
        """Store a message and wake its group; returns once it is durable. None: it was there already.

        Whether it asks for an answer is for its group to say, unless it is known.
        """
        reached("received")
        group = self.group(message.chat_jid)
        kept = await self._keep_attachments(message, group)
        answer = await self._answer_itself(message, group) if group else None
        if asks is None:
            asks = self.groups.is_asked(message)
        try:
            row_id = await self._store.add_message(message, answer, asks, kept)
        except BaseException:
            if group:
                discard(self.settings.home, group, kept)
            raise
        reached("committed")
        if row_id is None:
            if group:
                discard(self.settings.home, group, kept)
        elif answer is not None:
            self.outbox.wake()
        elif group and asks and self._queue:
            self._queue.wake(message.chat_jid)
        return row_id

    async def _keep_attachments(self, message: NewMessage, group: Group | None) -> tuple[KeptAttachment, ...]:
        if not message.attachments:
            return ()
        if group is None or await self._store.has_message(message.chat_jid, message.id):
            return not_kept(message.attachments)
        limit = self.settings.attachment_bytes
        return await asyncio.to_thread(keep_all, self.settings.home, group, message.attachments, limit)

    async def _answer_itself(self, message: NewMessage, group: Group) -> str | None:
        """What the host says to a message that no agent is to see; None where one is."""
        command = command_in(message.content, trigger_of(group, self.settings.default_trigger))
        if command is None or await self._store.has_message(message.chat_jid, message.id):
            return None
        return await self._commands.answer(command, message, group)

    async def status(self, group: Group | None = None) -> list[str]:
        """How the service is, in lines of text; of one group or of all. Main hears of all groups."""
        groups = [group] if group else list(self.groups.by_jid.values())
        return Status(
            self._runtime.name,
            groups,
            frozenset(self.groups_running),
            frozenset(await self._store.chats_with_pending()),
            self.settings.max_concurrent_containers,
            await self._store.destinations.today(group.folder if group else None),
            [] if group else self.reports.troubles(),
            await self._store.last_failure(group.jid if group else None),
            self._costs.summary_lines(groups if group or len(groups) > 1 else [], overall=group is None),
            self._task_runs.running,
        ).lines()

    async def plugin_lines(self) -> list[str]:
        """Every installed plugin, what is wrong with it, and what has changed since the start."""
        reports, records = self.reports.by_plugin(), self._registry.records
        lines = [plugin_line(record, reports.get(record.name, {})) for record in records]
        return lines + await asyncio.to_thread(changed_since, records)

    async def stop_agents(self, group: Group) -> str | None:
        """End what a group's agents do; what to say of it, None where nothing was to be ended."""
        tasks = await self._task_runs.stop(group.folder)
        said = await self._conversations.stop(group.jid)
        return said or ("Stopped." if tasks else None)

    async def begin_anew(self, group: Group) -> None:
        """Let a group's next message begin a new conversation."""
        await self._conversations.renew(group.jid)

    def conversation_ended(self, jid: str) -> None:
        """A chat's conversation has become too old, and the store has ended it."""
        self._conversations.ended(jid)
        self.wake_outbox()

    async def change_task(self, action: str, task: Task) -> Task:
        """Pause, resume or cancel a task; ValueError where that cannot be."""
        changed = await self._store.tasks.act(action, task.id, self.zone_of(task.folder), datetime.now(UTC))
        self.wake_scheduler()
        return changed

    async def tasks(self, folder: str | None) -> list[str]:
        """The scheduled tasks of one group or of all, a line each."""
        return [task.in_words(self.zone_of(task.folder), True) for task in await self._store.tasks.of(folder)]

    async def task(self, task_id: int) -> Task:
        """A task by its number; ControlError where there is none."""
        task = await self._store.tasks.get(task_id)
        if task is None:
            raise ControlError(f"There is no task {task_id}; `pynchy tasks list` lists those there are.")
        return task

    async def task_runs(self, task: Task) -> list[str]:
        """What became of a task's latest runs, newest first, a line each."""
        zone = self.zone_of(task.folder)
        return [run.in_words(zone) for run in await self._store.tasks.runs(task.id)]

    async def on_chat_metadata(self, jid: str, name: str) -> None:
        """Remember that a chat exists and what it is called."""
        await self._store.note_chat(jid, name)

    async def say(self, jid: str, text: str) -> int:
        """A message typed at a terminal."""
        if not text.strip():
            raise ControlError("The message is empty: there is nothing to answer.")
        if len(text) > _MAX_MESSAGE:
            raise ControlError(f"The message has {len(text)} characters; {_MAX_MESSAGE} is the most there can be.")
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be stored
        user = os.environ.get("USER") or "user"
        try:
            message = NewMessage(uuid.uuid4().hex, jid, user, user, text, datetime.now(UTC), is_from_me=True)
            row_id = await self.on_message(message, asks=True)
        except sqlite3.Error as error:
            raise ControlError(f"The message could not be stored ({error}): make room, and send it again.") from None
        assert row_id is not None
        return row_id

    async def group_jid(self, folder: str) -> str:
        """The chat of the group in this folder."""
        if group := self.groups.in_folder(folder):
            return group.jid
        known = ", ".join(sorted(group.folder for group in self.groups.by_jid.values()))
        raise ControlError(f"There is no group {folder!r}; there are: {known}.")

    # --- the way out ----------------------------------------------------------------------------------------

    async def settlement(self, row_id: int) -> str | None:
        """Wait until a message is done or failed: None, or why it failed, or why it must wait for long."""
        if (known := await self._store.outcome(row_id)) is not None:
            return known.error
        future = self._settling.setdefault(row_id, asyncio.get_running_loop().create_future())
        # It may have been settled between the look and the wait.
        if (known := await self._store.outcome(row_id)) is not None:
            self._settling.pop(row_id, None)
            return known.error
        if self._credential.known_refused:
            self._settling.pop(row_id, None)
            return self._credential.trouble
        return await asyncio.shield(future)

    def settled(self, ids: tuple[int, ...], error: str | None) -> None:
        """These messages are answered, or for this reason will not be."""
        for row_id in ids:
            if (future := self._settling.pop(row_id, None)) and not future.done():
                future.set_result(error)

    async def send_text(self, jid: str, text: str) -> None:
        """Queue a text for a chat, as a plugin wants it sent."""
        await self._store.enqueue(jid, text, "message")
        self.outbox.wake()

    def wake_outbox(self) -> None:
        """Something may be sent now."""
        self.outbox.wake()

    def wake_scheduler(self) -> None:
        """A task may be due at another time now."""
        if self._scheduler:
            self._scheduler.wake()

    def wake(self, key: str) -> None:
        """Give a group, or a task's run, a place in the queue."""
        if self._queue:
            self._queue.wake(key)

    def working(self, jid: str, doing: Callable[[], str] | None) -> None:
        """An agent works for this chat, or no longer."""
        self._progress.working(jid, doing)

    def refusal(self, group: Group) -> str | None:
        """Why no model request of this group's may be made now; None where one may."""
        return self._costs.refusal(group)

    def sends_files(self, jid: str) -> bool:
        """Whether the channel of a chat can carry a file."""
        channel = self.channels.owner_of(jid)
        return channel is None or hasattr(channel, "send_file")  # one that is away is asked when it is back

    def host_of(self, group: Group) -> GroupHost:
        """A new end of the wire for an agent of this group."""
        return self._end_of_wire(GroupHost, group)

    def task_host_of(self, group: Group, work: TaskWork) -> TaskHost:
        """A new end of the wire for an agent that works for a task."""
        host = self._end_of_wire(TaskHost, group)
        host.work = work
        return host

    def _end_of_wire(self, kind: type[_Host], group: Group) -> _Host:
        return kind(
            lambda: self.groups.by_jid.get(group.jid, group),
            self._store,
            self._gateway,
            self._credential,
            self.wake_outbox,
            self.reports,
            self._egress,
            self._tools,
            self._costs,
        )

    async def flush_outbox(self, jid: str) -> None:
        """Send everything that can be sent to a chat now."""
        await self.outbox.flush(jid)

    async def _say_to_main(self, text: str) -> None:
        """Tell the user something that concerns all groups."""
        await self._store.until_stored(lambda: self._store.enqueue(self._main(), text, "notice"))
        self.outbox.wake()

    def _held_up(self, why: str) -> None:
        """Nobody gets an answer for now, and none need wait for it here."""
        self.settled(tuple(self._settling), why)

    async def _wake_pending(self) -> None:
        assert self._queue
        for jid in await self._store.chats_with_pending():
            if jid in self.groups.by_jid:
                self._queue.wake(jid)
        self._task_runs.wake_all()
        self.wake_scheduler()

    @property
    def container_prefix(self) -> str:
        """How the names of this service's containers begin."""
        return container_prefix(self._store)

    @property
    def groups_running(self) -> list[str]:
        """The chats whose agents have a place now."""
        return [key for key in self._queue.running if not self._task_runs.owns(key)] if self._queue else []

    def plugin_records(self) -> list[dict[str, Any]]:
        """What discovery found at the start, with what has been heard of each plugin's parts since."""
        return records_with_reports(self._registry.records, self.reports.by_plugin())


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
