"""The composition root: builds every room of the service, starts it, and stops it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import sqlite3
import uuid
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from pynchy.agent_plugins import skills_folder
from pynchy.channel_host import ChannelHost
from pynchy.channels.terminal import TerminalChannel, terminal_jid
from pynchy.config import Settings
from pynchy.control import ControlError, ControlServer
from pynchy.conversations import STOPPED, STOPPED_NOTICE, Conversations, container_prefix
from pynchy.credential import Credential
from pynchy.egress import Egress
from pynchy.fault_points import reached
from pynchy.group_queue import GroupQueue
from pynchy.home import control_socket, make_private
from pynchy.model_gateway import ModelGateway, Upstream
from pynchy.network_policy import NetworkPolicy
from pynchy.outbox import Outbox
from pynchy.plugin import ContainerRuntime, PluginRegistry, RuntimeUnavailable
from pynchy.plugin_inventory import records_with_reports
from pynchy.plugin_reports import PluginReports
from pynchy.runtime import agent_image, get_runtime
from pynchy.status import Status
from pynchy.store import Store
from pynchy.types import Channel, Group, NewMessage, valid_folder

log = structlog.get_logger(__name__)

MAIN_FOLDER = "main"
_MAIN_JID = terminal_jid(MAIN_FOLDER)
_REAP_EVERY = 180.0  # seconds
_MAX_MESSAGE = 200_000  # characters


class CannotStart(Exception):
    """The service cannot start; one sentence says why and what to do."""


class AlreadyRunning(CannotStart):
    """Another service has this home."""


@dataclass(frozen=True, slots=True)
class ChosenRuntime:
    """The runtime agents run in; `warning` is what the user must know of it."""

    runtime: ContainerRuntime
    warning: str = ""


def choose_runtime(registry: PluginRegistry, *, sandbox_optional: bool) -> ChosenRuntime:
    """The runtime for this machine, with its daemon running; CannotStart where there is none.

    Only a demo at the terminal may do without a sandbox, and only where none can start at all.
    """
    try:
        runtime = get_runtime(registry)
    except RuntimeError as error:
        raise CannotStart(str(error)) from None
    chosen = ChosenRuntime(runtime)
    try:
        runtime.ensure_running()
    except RuntimeUnavailable as error:
        if not sandbox_optional or os.environ.get("CONTAINER_RUNTIME", "").strip():
            raise CannotStart(f"No sandbox for the agent: {_with_mismatches(error, registry)}.") from None
        from pynchy.testing import ProcessRuntime

        why = _with_mismatches(error, registry)
        warning = f"THIS IS NO SANDBOX: the agent runs as a plain process, with your rights. {why}."
        chosen = ChosenRuntime(ProcessRuntime(), warning)
    return chosen


def _with_mismatches(error: RuntimeUnavailable, registry: PluginRegistry) -> str:
    """Why the chosen runtime does not work, and why the other ones were not chosen."""
    return "; ".join([str(error), *(f"{record.name} {record.note}" for record in registry.records if record.note)])


def check_image(runtime: ContainerRuntime) -> None:
    """Raise RuntimeUnavailable where an agent could not start for want of its image or environment."""
    if check := getattr(runtime, "check_image", None):
        check(agent_image())


@contextmanager
def home_lock(home: Path) -> Iterator[None]:
    """Be the only service of this home; AlreadyRunning where there is one."""
    try:
        make_private(home)
        descriptor = os.open(home / "service.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotStart(
            f"PYNCHY_HOME {home} cannot be used ({error.strerror or error}): make it a directory of yours, "
            f"or set another."
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
            raise AlreadyRunning(
                f"A pynchy service (process {pid or 'unknown'}) already runs on {home}: "
                f"use `pynchy chat`, stop it, or set another PYNCHY_HOME."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


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
        self.reports = PluginReports(store, _MAIN_JID, self.wake_outbox)
        self.channels = ChannelHost(settings.home, self, self.reports, [self.terminal, *channels])
        self.outbox = Outbox(store, self.channels.owner_of, settings.assistant_name, _MAIN_JID)
        self._store = store
        self._registry = registry
        self._runtime = runtime
        self._groups: dict[str, Group] = {}
        self._settling: dict[int, asyncio.Future[str | None]] = {}
        self._queue: GroupQueue | None = None
        self._credential: Credential | None = None

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
            store = await stack.enter_async_context(Store.open(settings.home / "pynchy.db"))
            service = cls(settings, store, registry, runtime, demo, channels)
            gateway = await stack.enter_async_context(ModelGateway.open(upstream))
            egress = Egress(store.destinations, settings.network_bytes_a_day)
            stack.callback(egress.close)
            await egress.begin()
            # A run of an earlier service gave no answer any more; its containers may still be running.
            await asyncio.to_thread(remove_orphans, runtime, container_prefix(store), frozenset())
            await store.release(None, STOPPED, STOPPED_NOTICE)
            await asyncio.to_thread(shutil.rmtree, skills_folder(settings.home), ignore_errors=True)
            await service.register_group(Group(_MAIN_JID, "main", MAIN_FOLDER, is_main=True))
            credential = service._credential = Credential(
                settings, gateway, service._say_to_main, service._held_up, service._wake_pending, replaceable=not demo
            )
            conversations = Conversations(
                settings,
                store,
                gateway,
                credential,
                runtime,
                registry,
                service.reports,
                egress,
                service.outbox.wake,
                service._settle,
                service._groups.get,
                service.channels.typing,
            )
            service._queue = GroupQueue(settings.max_concurrent_containers, conversations.work)
            stack.push_async_callback(service._queue.close)
            for action in (
                service.outbox.run(),
                credential.watch(),
                reap_orphans(runtime, container_prefix(store), conversations.containers),
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

    async def register_group(self, group: Group) -> None:
        """Answer this chat from now on; one that is registered already stays as it is.

        ValueError where its folder belongs to another chat or can be nobody's, or its network policy is none.
        """
        if not valid_folder(group.folder):
            raise ValueError(
                f"a group's folder cannot be called {group.folder!r}: use lower-case letters, digits, `-` and `_`"
            )
        NetworkPolicy.parse(group.network)
        await self._store.register_group(group)
        self._groups.update(await self._store.groups())
        if self._queue:
            self._queue.wake(group.jid)  # what was said before it was registered waits for an answer

    async def update_group(self, group: Group) -> None:
        """Let a group's next agent have these settings; one that is idle now is ended.

        ValueError where its network policy is none.
        """
        NetworkPolicy.parse(group.network)
        await self._store.update_group(group)
        self._groups.update(await self._store.groups())
        if self._queue:
            self._queue.wake(group.jid)

    def registered_groups(self) -> dict[str, Group]:
        """Every group by its jid."""
        return self._groups

    async def known_chats(self) -> dict[str, str]:
        """The names of the chats that channels have seen, by jid."""
        return await self._store.chats()

    # --- the way in -----------------------------------------------------------------------------------------

    async def on_message(self, message: NewMessage) -> int | None:
        """Store a message and wake its group; returns once it is durable. None: it was there already."""
        reached("received")
        group = self._groups.get(message.chat_jid)
        answer = await self._answer_itself(message.content, group) if group else None
        row_id = await self._store.add_message(message, answer)
        reached("committed")
        if answer is not None:
            self.outbox.wake()
            return row_id
        if row_id is not None and message.chat_jid in self._groups and self._queue:
            self._queue.wake(message.chat_jid)
        return row_id

    async def _answer_itself(self, text: str, group: Group) -> str | None:
        """What the host says to a message that no agent is to see; None where one is. Main hears of all groups."""
        if text.strip().lower() != "/status":
            return None
        return "\n".join(await self.status(None if group.is_main else group))

    async def status(self, group: Group | None = None) -> list[str]:
        """How the service is, in lines of text; of one group or of all."""
        return Status(
            self._runtime.name,
            [group] if group else list(self._groups.values()),
            frozenset(self.groups_running),
            frozenset(await self._store.chats_with_pending()),
            self.settings.max_concurrent_containers,
            await self._store.destinations.today(group.folder if group else None),
            [] if group else self.reports.troubles(),
        ).lines()

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
            row_id = await self.on_message(NewMessage(uuid.uuid4().hex, jid, user, user, text, datetime.now(UTC)))
        except sqlite3.Error as error:
            raise ControlError(f"The message could not be stored ({error}): make room, and send it again.") from None
        assert row_id is not None
        return row_id

    async def group_jid(self, folder: str) -> str:
        """The chat of the group in this folder."""
        for jid, group in self._groups.items():
            if group.folder == folder:
                return jid
        known = ", ".join(sorted(group.folder for group in self._groups.values()))
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
        if self._credential and self._credential.known_refused:
            self._settling.pop(row_id, None)
            return self._credential.trouble
        return await asyncio.shield(future)

    def _settle(self, ids: tuple[int, ...], error: str | None) -> None:
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

    async def flush_outbox(self, jid: str) -> None:
        """Send everything that can be sent to a chat now."""
        await self.outbox.flush(jid)

    async def _say_to_main(self, text: str) -> None:
        """Tell the user something that concerns all groups."""
        await self._store.until_stored(lambda: self._store.enqueue(_MAIN_JID, text, "notice"))
        self.outbox.wake()

    def _held_up(self, why: str) -> None:
        """Nobody gets an answer for now, and none need wait for it here."""
        self._settle(tuple(self._settling), why)

    async def _wake_pending(self) -> None:
        assert self._queue
        for jid in await self._store.chats_with_pending():
            if jid in self._groups:
                self._queue.wake(jid)

    @property
    def container_prefix(self) -> str:
        """How the names of this service's containers begin."""
        return container_prefix(self._store)

    @property
    def groups_running(self) -> list[str]:
        """The chats whose agents have a place now."""
        return self._queue.running if self._queue else []

    def plugin_records(self) -> list[dict[str, Any]]:
        """What discovery found at the start, with what has been heard of each plugin's parts since."""
        return records_with_reports(self._registry.records, self.reports.by_plugin())


def remove_orphans(runtime: ContainerRuntime, prefix: str, in_use: Collection[str]) -> None:
    """End this home's containers that nobody uses, and no others: an earlier service left them behind."""
    stop = getattr(runtime, "stop", None)
    if stop is None:
        return
    try:
        for name in runtime.list_running_containers(prefix):
            if name not in in_use:
                log.warning("removing a container that was left behind", container=name)
                stop(name)
    except RuntimeUnavailable as error:
        log.warning("could not look for containers left behind", error=str(error))


async def reap_orphans(runtime: ContainerRuntime, prefix: str, in_use: Collection[str]) -> None:
    """Do so every few minutes, until cancelled."""
    while True:
        await asyncio.sleep(_REAP_EVERY)
        await asyncio.to_thread(remove_orphans, runtime, prefix, in_use)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
