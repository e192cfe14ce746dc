"""The registered groups: what may be one, and what of its chat is answered from then on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from zoneinfo import ZoneInfo

from pynchy.agent_setup import agent_owner
from pynchy.channels.terminal import terminal_jid
from pynchy.config import Settings
from pynchy.messages import Wants, nothing_asks
from pynchy.mount_security import extra_mounts
from pynchy.network_policy import NetworkPolicy
from pynchy.router import is_for_the_agent
from pynchy.store import Store
from pynchy.types import Group, NewMessage, valid_folder

#: The user's own chat from the first day, at the terminal.
TERMINAL_MAIN = terminal_jid("main")
#: When a chat becomes a group, what was said before is context, but for the last hour.
_ANSWERED_FROM = timedelta(hours=1)


class Groups:
    """Every group of one home, as the store has them and in memory."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._by_jid: dict[str, Group] = {}

    async def load(self) -> None:
        """Take up what the store has."""
        self._by_jid = await self._store.groups()

    @property
    def by_jid(self) -> Mapping[str, Group]:
        """Every group by its chat's address."""
        return MappingProxyType(self._by_jid)

    @property
    def main_jid(self) -> str:
        """The chat that hears of what concerns everybody: the user's own on a channel, or else at the terminal."""
        own = (group.jid for group in self._by_jid.values() if group.is_main and group.jid != TERMINAL_MAIN)
        return next(own, TERMINAL_MAIN)

    def in_folder(self, folder: str) -> Group | None:
        """The group of this folder."""
        return next((group for group in self._by_jid.values() if group.folder == folder), None)

    def zone_of(self, folder: str) -> ZoneInfo:
        """Where the people of a group are."""
        group = self.in_folder(folder)
        return ZoneInfo((group and group.time_zone) or self._settings.time_zone)

    def is_asked(self, message: NewMessage) -> bool:
        """Whether a message asks for an answer; one to no group asks nobody.

        One that is older than what is kept may have been answered and removed: it is never asked.
        """
        group = self._by_jid.get(message.chat_jid)
        kept_from = datetime.now(UTC) - timedelta(days=self._settings.keep_days or 36500)
        return (
            group is not None
            and message.timestamp >= kept_from
            and is_for_the_agent(
                group, self._settings.default_trigger, message.sender, message.content, message.is_from_me
            )
        )

    async def register(self, group: Group) -> None:
        """Answer this chat from now on; one that is registered already stays as it is.

        ValueError where its folder belongs to another chat or can be nobody's, or a setting is none.
        """
        if not valid_folder(group.folder):
            raise ValueError(
                f"a group's folder cannot be called {group.folder!r}: use lower-case letters, digits, `-` and `_`"
            )
        await self._check(group)
        await self._one_main(group)
        await self._store.register_group(group, self._wants(group))
        await self.load()

    async def update(self, group: Group) -> None:
        """Give a group these settings; ValueError where one is none."""
        await self._check(group)
        await self._one_main(group)
        await self._store.update_group(group, self._wants(group))
        await self.load()
        await self._store.tasks.reschedule(datetime.now(UTC), self.zone_of, group.folder)

    async def remove(self, folder: str) -> Group:
        """Answer a chat no longer, and end its tasks; ValueError for the main chat, and where there is none."""
        group = self.in_folder(folder)
        if group is None or group.is_main:
            raise ValueError(f"{folder[:80]!r} is {'the main chat, which stays' if group else 'no group'}")
        await self._store.tasks.forget(folder)
        await self._store.remove_group(group.jid)
        await self.load()
        return group

    async def _one_main(self, group: Group) -> None:
        """The user has one chat of his own beside the terminal's: another one takes its place."""
        if group.jid == TERMINAL_MAIN and not group.is_main:
            raise ValueError("the terminal's own chat stays a main one")
        for other in self._by_jid.values():
            if group.is_main and other.is_main and other.jid not in (group.jid, TERMINAL_MAIN):
                await self._store.update_group(replace(other, is_main=False), nothing_asks)

    async def _check(self, group: Group) -> None:
        NetworkPolicy.parse(group.network)
        before = self._by_jid.get(group.jid)
        if before and before.mounts == group.mounts:
            return  # a disk that is away now is no reason against another name
        others = [one for one in self._by_jid.values() if one.jid != group.jid]
        owner = agent_owner(self._settings)
        await asyncio.to_thread(extra_mounts, self._settings.home, group, [*others, group], owner)

    def _wants(self, group: Group) -> Wants:
        """Which of a chat's messages ask for an answer, as its group is set; none that is old."""
        oldest = datetime.now(UTC) - _ANSWERED_FROM

        def wants(sender: str, content: str, is_from_me: bool, at: datetime) -> bool:
            trigger = self._settings.default_trigger
            return at >= oldest and is_for_the_agent(group, trigger, sender, content, is_from_me)

        return wants
