"""The plugins' channels: created at the start, each connected and kept connected by a task of its own."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import structlog

from pynchy.plugin import Attachment, Channel, ChannelPlugin, Group, NewMessage, PluginContext, PluginRegistry
from pynchy.plugin._crashes import watched
from pynchy.plugin._errors import PluginRaised, ask
from pynchy.plugin._settings import plugin_config, plugin_data_dir
from pynchy.plugin_calls import ask_async, ask_quietly
from pynchy.plugin_reports import PluginReports
from pynchy.types import PluginReport

log = structlog.get_logger(__name__)

# All in seconds.
_CONNECT_WITHIN = 60.0
_DISCONNECT_WITHIN = 5.0
#: Between two tries to connect, doubled after each, and at most.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 300.0
#: How often a channel is asked whether it is connected, and how long it may take to reconnect by itself.
_LOOK_EVERY = 2.0
_RECONNECT_WITHIN = 30.0
#: What services show of typing fades after some five seconds.
_TYPING_EVERY = 4.0


class Behind(Protocol):
    """What channels reach of the service."""

    async def on_message(self, message: NewMessage) -> int | None:
        """Store a message; returns once it is durable."""
        ...

    async def on_chat_metadata(self, jid: str, name: str) -> None:
        """Remember that a chat exists and what it is called."""
        ...

    async def send_text(self, jid: str, text: str) -> None:
        """Queue a text for a chat."""
        ...

    def registered_groups(self) -> Mapping[str, Group]:
        """Every registered chat by its jid."""
        ...

    def wake_outbox(self) -> None:
        """What waits may be sent now."""
        ...


class ChannelHost:
    """The channels of one service. `channels` begins with the built-in ones, which take care of themselves."""

    def __init__(self, home: Path, behind: Behind, reports: PluginReports, built_in: list[Channel]) -> None:
        self._home = home
        self._behind = behind
        self._reports = reports
        self.channels = built_in
        self._supervised: dict[str, Channel] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._typing: dict[str, asyncio.Task[None]] = {}

    async def start(self, registry: PluginRegistry) -> None:
        """Create every plugin's channel and begin to connect them; one that cannot be created is reported."""
        for plugin in registry.channels:
            name = registry.name_of(plugin)
            try:
                channel = create_channel(registry, plugin, self._home, self._behind)
            except (PluginRaised, TypeError) as error:
                log.warning("a plugin's channel cannot be created", plugin=name, error=str(error))
                await self._reports.note([PluginReport(name, "channel", str(error))])
                continue
            self._supervised[name] = channel
            self.channels.append(channel)
            self._spawn(self._keep_connected(name, channel))

    async def stop(self) -> None:
        """Disconnect every channel, giving each a few seconds."""
        for task in (*self._tasks, *self._typing.values()):
            task.cancel()
        leaving = [self._spawn(_disconnect(name, channel)) for name, channel in self._supervised.items()]
        # Not gather: a channel may swallow a cancellation.
        if tasks := {*self._tasks, *self._typing.values(), *leaving}:
            await asyncio.wait(tasks, timeout=_DISCONNECT_WITHIN + 1)

    def owner_of(self, jid: str) -> Channel | None:
        """The connected channel whose chat this is."""
        return owner_among(self.channels, jid)

    # --- connecting -----------------------------------------------------------------------------------------

    async def _keep_connected(self, name: str, channel: Channel) -> None:
        pause = _FIRST_PAUSE
        loop = asyncio.get_running_loop()
        while True:
            if trouble := await self._connect(channel):
                log.warning("a channel does not connect", plugin=name, error=trouble, again_in=pause)
                await _disconnect(name, channel)
                await self._reports.note([PluginReport(name, "channel", trouble)])
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            log.info("channel connected", plugin=name)
            connected_at = loop.time()
            self._behind.wake_outbox()
            await self._reports.note([PluginReport(name, "channel")])
            if sync := getattr(channel, "sync_metadata", None):
                self._spawn(ask_quietly("sync_metadata", name, sync, _CONNECT_WITHIN))
            await self._until_dropped(channel)
            log.warning("a channel has lost its connection", plugin=name)
            await _disconnect(name, channel)
            if loop.time() - connected_at > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE

    async def _connect(self, channel: Channel) -> str:
        """Connect; empty where that worked, else why it did not."""
        try:
            async with asyncio.timeout(_CONNECT_WITHIN):
                await ask_async(channel.connect)
            return "" if _is_connected(channel) else "connect() returned, but it is not connected"
        except TimeoutError:
            return f"it did not connect within {_CONNECT_WITHIN:.0f} s"
        except PluginRaised as error:
            return str(error)

    async def _until_dropped(self, channel: Channel) -> None:
        """Return once it is not connected any more and does not get there again by itself."""
        patience = _RECONNECT_WITHIN
        while patience > 0:
            await asyncio.sleep(_LOOK_EVERY)
            if not _is_connected(channel):
                patience -= _LOOK_EVERY
            elif patience < _RECONNECT_WITHIN:
                patience = _RECONNECT_WITHIN
                self._behind.wake_outbox()

    # --- typing ---------------------------------------------------------------------------------------------

    def typing(self, jid: str, on: bool) -> None:
        """Show in a chat that an answer is on its way, or no longer, where its channel can. Never waits."""
        if (task := self._typing.pop(jid, None)) and not on:
            task.cancel()
        elif task:
            self._typing[jid] = task
        elif on and (set_typing := getattr(self.owner_of(jid), "set_typing", None)):
            self._typing[jid] = asyncio.get_running_loop().create_task(self._show_typing(jid, set_typing))

    async def _show_typing(self, jid: str, set_typing: Callable[[str, bool], Awaitable[None]]) -> None:
        try:
            while True:
                await ask_quietly("set_typing", jid, lambda: set_typing(jid, True), _CONNECT_WITHIN)
                await asyncio.sleep(_TYPING_EVERY)
        finally:
            self._spawn(ask_quietly("set_typing", jid, lambda: set_typing(jid, False), _CONNECT_WITHIN))

    def _spawn(self, action: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(action)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def create_channel(registry: PluginRegistry, plugin: ChannelPlugin, home: Path, behind: Behind) -> Channel:
    """Have a plugin create its channel; PluginRaised or TypeError where it does not give one."""
    name = registry.name_of(plugin)
    created: list[Channel] = []

    async def on_message(message: NewMessage) -> None:
        _check_message(message, created[0] if created else None)
        await behind.on_message(message)

    context = PluginContext(
        send_message=behind.send_text,
        registered_groups=lambda: MappingProxyType(dict(behind.registered_groups())),
        config=plugin_config(name, os.environ),
        on_message=on_message,
        on_chat_metadata=behind.on_chat_metadata,
        data_dir=plugin_data_dir(name, home),
        log=logging.getLogger(f"pynchy.plugins.{name}"),
    )
    with watched(registry.record_of(name), home):
        channel = ask(lambda: plugin.create_channel(context))
    if not isinstance(channel, Channel) or not isinstance(channel.name, str):
        raise TypeError(f"create_channel() returned {type(channel).__name__}, which is no Channel")
    created.append(channel)
    return channel


def owner_among(channels: Iterable[Channel], jid: str) -> Channel | None:
    """The first connected channel whose chat this is."""
    for channel in channels:
        try:
            if ask(lambda channel=channel: channel.is_connected() and channel.owns_jid(jid)):
                return channel
        except PluginRaised as error:
            log.warning("a channel cannot say whose chat it is", channel=channel.name, jid=jid, error=str(error))
    return None


def _is_connected(channel: Channel) -> bool:
    try:
        return ask(channel.is_connected) is True
    except PluginRaised:
        return False


async def _disconnect(name: str, channel: Channel) -> None:
    await ask_quietly("disconnect", name, channel.disconnect, _DISCONNECT_WITHIN)


def _check_message(message: Any, channel: Channel | None) -> None:
    """Refuse what cannot be stored or is not the channel's, in words for its author."""
    if not isinstance(message, NewMessage):
        raise TypeError(f"on_message takes a NewMessage, not {type(message).__name__}")
    for name in ("id", "chat_jid", "sender", "sender_name", "content"):
        if not isinstance(getattr(message, name), str):
            raise TypeError(f"{name} of a message must be a string, not {type(getattr(message, name)).__name__}")
    if not message.id or not message.chat_jid:
        raise ValueError("a message needs an id and a chat_jid")
    if not isinstance(message.timestamp, datetime) or message.timestamp.tzinfo is None:
        raise ValueError("the timestamp of a message must be a datetime with a time zone, in UTC")
    if not all(isinstance(one, Attachment) for one in message.attachments):
        raise TypeError("the attachments of a message must be Attachment objects")
    if channel is not None and not channel.owns_jid(message.chat_jid):
        raise ValueError(f"the chat {message.chat_jid!r} does not belong to the channel {channel.name!r}")
