"""`pynchy groups`: the registered chats and what each may have, through the running service or without one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, TypeVar

from pynchy.app import AlreadyRunning, CannotStart, home_lock
from pynchy.cli.output import complain, complain_of_system
from pynchy.config import Settings, SettingsError, load_settings
from pynchy.control import ControlError, ask, connect, group_from
from pynchy.group_limits import LEAST_MEMORY, LEAST_PIDS, as_bytes
from pynchy.home import control_socket
from pynchy.network_policy import NetworkPolicy
from pynchy.plugin import State, discover_plugins
from pynchy.store import Store, StoreError
from pynchy.types import Group, valid_folder

_PLUGINS_FOR_ALL = "all"
#: Instead of a limit: the one of the settings.
_DEFAULT = "default"


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


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was asked for on the command line, as it was written; None leaves a setting as it is."""

    plugins: str | None = None
    network: str | None = None
    memory: str | None = None
    cpus: str | None = None
    pids: str | None = None

    def applied_to(self, group: Group) -> Group:
        """The group with these settings; ValueError for one that cannot be."""
        if self.plugins is not None:
            group = replace(group, plugins=_plugins(self.plugins))
        if self.network is not None:
            group = replace(group, network=str(NetworkPolicy.parse(self.network)))
        if self.memory is not None:
            group = replace(group, memory_bytes=_limit("--memory", self.memory, as_bytes, LEAST_MEMORY, "256m"))
        if self.cpus is not None:
            group = replace(group, cpus=_limit("--cpus", self.cpus, float, 0.01, "0.01"))
        if self.pids is not None:
            group = replace(group, pids=_limit("--pids", self.pids, int, LEAST_PIDS, str(LEAST_PIDS)))
        return group


_Number = TypeVar("_Number", int, float)


def _limit(option: str, text: str, read: Callable[[str], _Number], least: _Number, in_words: str) -> _Number | None:
    if text.strip().lower() == _DEFAULT:
        return None
    try:
        value = read(text)
    except ValueError:
        value = least - 1
    if not least <= value < 2**50:
        raise ValueError(f"{option} {text!r} cannot be: write a number from {in_words} on, or `{_DEFAULT}`")
    return value


def show() -> int:
    """Print the groups, and the chats that could become one."""

    async def action(registered: Registered) -> int:
        groups = await registered.groups()
        for group in groups:
            print(f"{group.folder}{' (main)' if group.is_main else ''}: {group.name}, {group.jid}, {_in_words(group)}")
        known = {group.jid for group in groups}
        for jid, name in sorted((await registered.chats()).items()):
            if jid not in known:
                print(f"not registered: {name}, {jid}")
        return 0

    return _guarded(action)


def add(jid: str, folder: str, name: str | None, wishes: Wishes) -> int:
    """Register a chat as a group with a folder."""

    async def action(registered: Registered) -> int:
        if not valid_folder(folder):
            return complain(f"{folder!r} cannot be a folder: use lower-case letters, digits, `-` and `_`.")
        if not jid.strip():
            return complain("A chat needs an address; `pynchy groups list` shows those that channels have seen.")
        for group in await registered.groups():
            if group.jid == jid:
                return complain(f"The chat {jid} is the group {group.folder!r} already.")
        called = name or (await registered.chats()).get(jid) or folder
        await registered.add(wishes.applied_to(Group(jid, called, folder)))
        print(f"{folder} is the group of {jid}.")
        return 0

    return _guarded(action)


def change(folder: str, wishes: Wishes) -> int:
    """Say what a group's agent has and may do."""

    async def action(registered: Registered) -> int:
        groups = {group.folder: group for group in await registered.groups()}
        if folder not in groups:
            return complain(f"There is no group {folder!r}; there are: {', '.join(sorted(groups)) or 'none'}.")
        changed = wishes.applied_to(groups[folder])
        await registered.update(changed)
        print(f"{folder} has {_in_words(changed)}.")
        return 0

    return _guarded(action)


def _in_words(group: Group) -> str:
    plugins = "all plugins" if group.plugins is None else ", ".join(group.plugins) or "no plugins"
    limits = [
        *([f"memory {group.memory_bytes // 1024**2} MiB"] if group.memory_bytes else []),
        *([f"cpus {group.cpus:g}"] if group.cpus else []),
        *([f"pids {group.pids}"] if group.pids else []),
    ]
    return ", ".join([plugins, f"network {group.network}", *limits])


def _plugins(text: str | None) -> tuple[str, ...] | None:
    """`all`, or names with commas between them, each of an installed plugin; ValueError where one is not."""
    if text is None or text.strip() == _PLUGINS_FOR_ALL:
        return None
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    installed = {record.name for record in discover_plugins().records if record.state is State.READY}
    if unknown := sorted(set(names) - installed):
        raise ValueError(f"No plugin is called {', '.join(unknown)}; there are: {', '.join(sorted(installed))}")
    return names


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


class _Stopped:
    """Reads and writes the database itself, where no service does."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def groups(self) -> list[Group]:
        return list((await self._store.groups()).values())

    async def chats(self) -> dict[str, str]:
        return await self._store.chats()

    async def add(self, group: Group) -> None:
        await self._store.register_group(group)

    async def update(self, group: Group) -> None:
        await self._store.update_group(group)


@asynccontextmanager
async def _registered(settings: Settings) -> AsyncIterator[Registered]:
    if peer := await connect(control_socket(settings.home)):
        await peer.close()
        yield _Running(settings)
        return
    with home_lock(settings.home):
        async with Store.open(settings.home / "pynchy.db") as store:
            yield _Stopped(store)


def _guarded(action: Callable[[Registered], Awaitable[int]]) -> int:
    async def run() -> int:
        async with _registered(load_settings()) as registered:
            return await action(registered)

    try:
        return asyncio.run(run())
    except AlreadyRunning:
        return complain("The service is just starting or stopping; try again in a moment.")
    except (CannotStart, ControlError, SettingsError, StoreError) as error:
        return complain(str(error))
    except ValueError as error:
        return complain(f"{error}.")
    except OSError as error:
        return complain_of_system(error)
