"""The composition root: builds every room of the service, starts it, and stops it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from pynchy.channels.terminal import TerminalChannel, terminal_jid
from pynchy.config import Settings
from pynchy.control import ControlError, ControlServer
from pynchy.conversations import Conversations, container_prefix
from pynchy.group_queue import GroupQueue
from pynchy.home import control_socket, make_private
from pynchy.model_gateway import ModelGateway, Upstream
from pynchy.outbox import Outbox
from pynchy.plugin import ContainerRuntime, PluginRegistry, RuntimeUnavailable
from pynchy.runtime import agent_image, get_runtime
from pynchy.store import Store
from pynchy.types import Group, NewMessage

log = structlog.get_logger(__name__)

MAIN_FOLDER = "main"
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

    def __init__(self, settings: Settings, store: Store, registry: PluginRegistry, demo: bool) -> None:
        self.settings = settings
        self.demo = demo
        self.terminal = TerminalChannel()
        self.outbox = Outbox(store, [self.terminal], settings.assistant_name)
        self._store = store
        self._registry = registry
        self._groups: dict[str, Group] = {}
        self._settling: dict[int, asyncio.Future[str | None]] = {}
        self._queue: GroupQueue | None = None

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        settings: Settings,
        upstream: Upstream,
        registry: PluginRegistry,
        runtime: ContainerRuntime,
        demo: bool = False,
    ) -> AsyncIterator[Service]:
        """Start everything, and at the end stop it: messages under way stay open for the next start."""
        async with AsyncExitStack() as stack:
            stack.enter_context(home_lock(settings.home))
            store = await stack.enter_async_context(Store.open(settings.home / "pynchy.db"))
            service = cls(settings, store, registry, demo)
            gateway = await stack.enter_async_context(ModelGateway.open(upstream))
            await store.release()
            await service.register_group(Group(terminal_jid(MAIN_FOLDER), "main", MAIN_FOLDER, is_main=True))
            await asyncio.to_thread(remove_orphans, runtime, container_prefix(store))
            conversations = Conversations(
                settings, store, gateway, runtime, registry, service.outbox.wake, service._settle
            )
            service._queue = GroupQueue(settings.max_concurrent_containers, conversations.work)
            stack.push_async_callback(service._queue.close)
            sending = asyncio.get_running_loop().create_task(service.outbox.run())
            stack.push_async_callback(_cancelled, sending)
            service.door = ControlServer(control_socket(settings.home), service)
            await stack.enter_async_context(service.door.listening())
            for jid in await store.chats_with_pending():
                service._queue.wake(jid)
            log.info("ready", home=str(settings.home), runtime=runtime.name, demo=demo)
            yield service

    door: ControlServer

    async def register_group(self, group: Group) -> None:
        """Answer this chat from now on; one that is registered already stays as it is."""
        await self._store.register_group(group)
        self._groups = await self._store.groups()

    # --- the way in -----------------------------------------------------------------------------------------

    async def on_message(self, message: NewMessage) -> int | None:
        """Store a message and wake its group; returns once it is durable. None: it was there already."""
        row_id = await self._store.add_message(message)
        if row_id is not None and message.chat_jid in self._groups and self._queue:
            self._queue.wake(message.chat_jid)
        return row_id

    async def say(self, jid: str, text: str) -> int:
        """A message typed at a terminal."""
        if not text.strip():
            raise ControlError("The message is empty: there is nothing to answer.")
        if len(text) > _MAX_MESSAGE:
            raise ControlError(f"The message has {len(text)} characters; {_MAX_MESSAGE} is the most there can be.")
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be stored
        user = os.environ.get("USER") or "user"
        row_id = await self.on_message(NewMessage(uuid.uuid4().hex, jid, user, user, text, datetime.now(UTC)))
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
        """Wait until a message is done or failed: None, or why it failed."""
        if (known := await self._store.outcome(row_id)) is not None:
            return known.error
        future = self._settling.setdefault(row_id, asyncio.get_running_loop().create_future())
        # It may have been settled between the look and the wait.
        if (known := await self._store.outcome(row_id)) is not None:
            self._settling.pop(row_id, None)
            return known.error
        return await asyncio.shield(future)

    def _settle(self, ids: tuple[int, ...], error: str | None) -> None:
        for row_id in ids:
            if (future := self._settling.pop(row_id, None)) and not future.done():
                future.set_result(error)

    async def flush_outbox(self) -> None:
        """Send everything that can be sent now."""
        await self.outbox.flush()

    @property
    def container_prefix(self) -> str:
        """How the names of this service's containers begin."""
        return container_prefix(self._store)

    @property
    def groups_running(self) -> list[str]:
        """The chats whose agents have a place now."""
        return self._queue.running if self._queue else []

    def plugin_records(self) -> list[dict[str, Any]]:
        """What discovery found at the start."""
        return [record.to_dict() for record in self._registry.records]


def remove_orphans(runtime: ContainerRuntime, prefix: str) -> None:
    """End containers that an earlier service of this home left behind, and no others."""
    stop = getattr(runtime, "stop", None)
    if stop is None:
        return
    try:
        for name in runtime.list_running_containers(prefix):
            log.warning("removing a container that was left behind", container=name)
            stop(name)
    except RuntimeUnavailable as error:
        log.warning("could not look for containers left behind", error=str(error))


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
