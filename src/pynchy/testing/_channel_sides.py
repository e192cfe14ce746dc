"""What stands on either side of a channel in ChannelConformance: the service far away, and a store of the test's."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from pynchy.plugin import Channel, ChannelPlugin, Group, NewMessage, PluginContext


class FarSide(ABC):
    """The service at the other end of a channel, as far as tests need it.

    `plugin` makes channels that reach this side, once the variables of `environment` are set; `jid` is the address
    of one chat that exists over there. It runs in the test's event loop, and must not block it. There may be
    `async def vanish(self)`: from then on nobody can reach it.
    """

    plugin: ChannelPlugin
    environment: Mapping[str, str] = MappingProxyType({})
    jid: str

    @abstractmethod
    async def write(self, text: str) -> None:
        """Somebody writes a text in that chat; it waits over here until a channel has acknowledged it."""

    @abstractmethod
    def read(self) -> list[str]:
        """The texts that channels have sent to that chat so far, in order, each as a reader sees it now."""


class Inbox:
    """The service behind the channel: stores a message once, by its chat and id, when `storing` has returned."""

    def __init__(self, jid: str) -> None:
        self.handed: list[NewMessage] = []
        self.stored: dict[tuple[str, str], NewMessage] = {}
        self.texts: list[str] = []
        self.refused: list[str] = []
        self.storing: Callable[[NewMessage], Awaitable[object]] = lambda message: asyncio.sleep(0)
        self._groups = {jid: Group(jid, "Conformance", "conformance", needs_trigger=False)}
        self._loop = asyncio.get_running_loop()

    async def on_message(self, message: NewMessage) -> None:
        """Store a message."""
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(
                "on_message was called in another event loop than connect(): use run_coroutine_threadsafe"
            )
        self.handed.append(message)
        await self.storing(message)
        self.store(message)

    def store(self, message: NewMessage) -> None:
        """Keep a message, if it is not there already."""
        if self.stored.setdefault((message.chat_jid, message.id), message) is message:
            self.texts.append(message.content.strip())

    async def on_chat_metadata(self, jid: str, name: str) -> None:
        """Take note of nothing."""
        if not isinstance(jid, str) or not isinstance(name, str):
            raise TypeError("on_chat_metadata takes a chat's address and its name, both strings")

    async def send_text(self, jid: str, text: str) -> None:
        """Say nothing."""

    def registered_groups(self) -> Mapping[str, Group]:
        """The far side's chat."""
        return self._groups

    def wake_outbox(self) -> None:
        """There is none."""

    def difference(self, texts: Sequence[str]) -> str:
        """What is wrong where other texts are stored than these, or in another order."""
        came, wanted, ids = self.texts, set(texts), _ids(self.handed)
        missing = [text for text in texts if text not in set(came)]
        if others := [text for text in came if text not in wanted]:
            return f"what was written and what was stored {differ((missing or texts)[0], others[0])}"
        if missing and self.refused:
            return f"Pynchy has refused what it was given: {self.refused[0]}"
        if missing:
            return f"{len(missing)} of {len(texts)} messages were never stored; {self._lost(missing[0])}"
        for text in came:
            if came.count(text) > 1:
                return (
                    f"{text!a} was stored {came.count(text)} times, with the ids {sorted(ids[text])}: give it the "
                    "service's own id, the same at each delivery"
                )
        at = next(number for number, (one, other) in enumerate(zip(came, texts, strict=True)) if one != other)
        return (
            f"{came[at]!a} was stored before {texts[at]!a}, which was written first: hand over a chat's messages one "
            "after another, and none before on_message has returned for the one before it"
        )

    def _lost(self, text: str) -> str:
        stored = {one.id: text for one, text in zip(self.stored.values(), self.texts, strict=True)}
        handed = [one for one in self.handed if one.content.strip() == text]
        if not handed:
            return f"{text!a} was not even handed over: fetch what waits for an acknowledgement, at each connection too"
        if (other := stored.get(handed[0].id)) is not None:
            return f"{text!a} has the id {handed[0].id!r}, and so has {other!a}: give each an id of its own"
        return (
            f"{text!a} was handed over {len(handed)} times, the last time in vain: hand it over again where on_message "
            "raises or is cancelled, and acknowledge it only after on_message has returned"
        )


class Overheard(ChannelPlugin):
    """The author's plugin, with a note of each message that Pynchy has refused."""

    def __init__(self, plugin: ChannelPlugin, refused: list[str]) -> None:
        self.name = plugin.name
        self._plugin = plugin
        self._refused = refused

    def create_channel(self, ctx: PluginContext) -> Channel:
        async def on_message(message: NewMessage) -> None:
            try:
                await ctx.on_message(message)
            except (TypeError, ValueError, RuntimeError) as error:
                self._refused.append(str(error))
                raise

        return self._plugin.create_channel(replace(ctx, on_message=on_message))


def differ(expected: str, seen: str) -> str:
    """Where two texts do, in plain ASCII: some differences cannot be seen."""
    pairs = enumerate(zip(expected, seen, strict=False))
    at = next((at for at, (one, other) in pairs if one != other), min(len(expected), len(seen)))
    return (
        f"differ from character {at} on: {expected[at : at + 40]!a} and {seen[at : at + 40]!a}, "
        f"with {len(expected)} and {len(seen)} characters in all"
    )


def _ids(messages: Iterable[NewMessage]) -> dict[str, set[str]]:
    """The ids that each text came with."""
    found: dict[str, set[str]] = {}
    for one in messages:
        found.setdefault(one.content.strip(), set()).add(one.id)
    return found
