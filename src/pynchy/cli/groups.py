"""`pynchy groups`: the registered chats and what each may have, through the running service or without one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, Protocol

from pynchy.cli.homes import guarded, without_service
from pynchy.cli.output import complain, visible
from pynchy.config import Settings
from pynchy.control import ControlError, ask, connect, group_from
from pynchy.group_settings import apply, group_lines, in_words
from pynchy.groups import Groups
from pynchy.home import control_socket
from pynchy.plugin import State, discover_plugins
from pynchy.store import Store
from pynchy.types import Group, valid_folder


class Registered(Protocol):
    """The groups of one home."""

    async def groups(self) -> list[Group]:
        """Every registered group."""
        ...

    async def chats(self) -> dict[str, str]:
        """The names of the chats that channels have seen, by jid."""
        ...

    async def add(self, group: Group) -> None:
        """Register a chat; ValueError or ControlError where it cannot be."""
        ...

    async def update(self, group: Group) -> None:
        """Give a group these settings; ValueError or ControlError where one cannot be."""
        ...

    async def people(self, jid: str) -> dict[str, str]:
        """Who has written in a group's chat: what each is called, by their ids."""
        ...

    async def remove(self, folder: str) -> None:
        """Answer a chat no longer; ValueError or ControlError where that cannot be."""
        ...


def show() -> int:
    """Print the groups, and the chats that could become one."""

    async def action(registered: Registered) -> int:
        for line in group_lines(await registered.groups(), await registered.chats()):
            print(visible(line))
        return 0

    return _guarded(action)


def add(jid: str, folder: str, wishes: Mapping[str, str]) -> int:
    """Register a chat as a group with a folder."""

    async def action(registered: Registered) -> int:
        if not valid_folder(folder):
            return complain(f"{folder!r} cannot be a folder: use lower-case letters, digits, `-` and `_`.")
        if not jid.strip():
            return complain("A chat needs an address; `pynchy groups list` shows those that channels have seen.")
        for group in await registered.groups():
            if group.jid == jid:
                return complain(f"The chat {jid} is the group {group.folder!r} already.")
        group = Group(jid, (await registered.chats()).get(jid) or folder, folder)
        await registered.add(apply(group, wishes, _installed()))
        print(f"{folder} is the group of {jid}.")
        return 0

    return _guarded(action)


def change(folder: str, wishes: Mapping[str, str]) -> int:
    """Say what a group's agent has and may do."""

    async def action(registered: Registered) -> int:
        changed = apply(await _in_folder(registered, folder), wishes, _installed())
        await registered.update(changed)
        print(f"{folder} has {', '.join(in_words(changed))}.")
        return 0

    return _guarded(action)


def people(folder: str) -> int:
    """Print who has written in a group's chat."""

    async def action(registered: Registered) -> int:
        for sender, name in (await registered.people((await _in_folder(registered, folder)).jid)).items():
            print(f"{visible(sender)}: {visible(name)}")
        return 0

    return _guarded(action)


def remove(folder: str) -> int:
    """Answer a chat no longer."""

    async def action(registered: Registered) -> int:
        await registered.remove(folder)
        print(f"{folder} is no group any more; its folder and its history are kept.")
        return 0

    return _guarded(action)


async def _in_folder(registered: Registered, folder: str) -> Group:
    groups = {group.folder: group for group in await registered.groups()}
    if folder not in groups:
        raise ControlError(f"There is no group {folder!r}; there are: {', '.join(sorted(groups)) or 'none'}.")
    return groups[folder]


def _installed() -> set[str]:
    return {record.name for record in discover_plugins().records if record.state is State.READY}


class _Running:
    """Asks the service, an operation a connection."""

    def __init__(self, settings: Settings) -> None:
        self._socket = control_socket(settings.home)

    async def _ask(self, **request: Any) -> dict[str, Any]:
        answer = await ask(self._socket, **request)
        if answer is None or answer["event"] == "error":
            raise ControlError((answer or {}).get("message", "The service has stopped; try again."))
        return answer

    async def groups(self) -> list[Group]:
        return [group_from(fields) for fields in (await self._ask(op="groups"))["groups"]]

    async def chats(self) -> dict[str, str]:
        return (await self._ask(op="groups"))["chats"]

    async def add(self, group: Group) -> None:
        await self._ask(op="add-group", group=asdict(group))

    async def update(self, group: Group) -> None:
        await self._ask(op="set-group", group=asdict(group))

    async def people(self, jid: str) -> dict[str, str]:
        folders = {group.jid: group.folder for group in await self.groups()}
        return (await self._ask(op="people", group=folders[jid]))["people"]

    async def remove(self, folder: str) -> None:
        await self._ask(op="remove-group", group=folder)


class _Stopped:
    """Reads and writes the database itself, where no service does."""

    def __init__(self, store: Store, groups: Groups) -> None:
        self._store = store
        self._groups = groups

    async def groups(self) -> list[Group]:
        return list(self._groups.by_jid.values())

    async def chats(self) -> dict[str, str]:
        return await self._store.chats()

    async def people(self, jid: str) -> dict[str, str]:
        return await self._store.people(jid)

    async def add(self, group: Group) -> None:
        await self._groups.register(group)

    async def update(self, group: Group) -> None:
        await self._groups.update(group)

    async def remove(self, folder: str) -> None:
        await self._groups.remove(folder)


@asynccontextmanager
async def _registered(settings: Settings) -> AsyncIterator[Registered]:
    if peer := await connect(control_socket(settings.home)):
        await peer.close()
        yield _Running(settings)
        return
    async with without_service(settings) as (store, groups):
        yield _Stopped(store, groups)


def _guarded(action: Callable[[Registered], Awaitable[int]]) -> int:
    async def run(settings: Settings) -> int:
        async with _registered(settings) as registered:
            return await action(registered)

    return guarded(run)
