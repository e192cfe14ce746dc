"""`pynchy groups`: the registered chats and the plugins each has, through the running service or without one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

from pynchy.app import AlreadyRunning, CannotStart, home_lock
from pynchy.cli.output import complain, complain_of_system
from pynchy.config import Settings, SettingsError, load_settings
from pynchy.control import ControlError, ask, connect
from pynchy.home import control_socket
from pynchy.plugin import State, discover_plugins
from pynchy.store import Store, StoreError
from pynchy.types import Group, valid_folder

_PLUGINS_FOR_ALL = "all"


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

    async def set_plugins(self, group: Group, plugins: tuple[str, ...] | None) -> None:
        """Give a group these plugins, or with None all."""
        ...


def show() -> int:
    """Print the groups, and the chats that could become one."""

    async def action(registered: Registered) -> int:
        groups = await registered.groups()
        for group in groups:
            plugins = "all plugins" if group.plugins is None else ", ".join(group.plugins) or "no plugins"
            print(f"{group.folder}{' (main)' if group.is_main else ''}: {group.name}, {group.jid}, {plugins}")
        known = {group.jid for group in groups}
        for jid, name in sorted((await registered.chats()).items()):
            if jid not in known:
                print(f"not registered: {name}, {jid}")
        return 0

    return _guarded(action)


def add(jid: str, folder: str, name: str | None, plugins: str | None) -> int:
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
        await registered.add(Group(jid, called, folder, plugins=_plugins(plugins)))
        print(f"{folder} is the group of {jid}.")
        return 0

    return _guarded(action)


def set_plugins(folder: str, plugins: str) -> int:
    """Say which plugins a group has."""

    async def action(registered: Registered) -> int:
        groups = {group.folder: group for group in await registered.groups()}
        if folder not in groups:
            return complain(f"There is no group {folder!r}; there are: {', '.join(sorted(groups)) or 'none'}.")
        chosen = _plugins(plugins)
        await registered.set_plugins(groups[folder], chosen)
        print(f"{folder} has {'all plugins' if chosen is None else ', '.join(chosen) or 'no plugins'}.")
        return 0

    return _guarded(action)


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
        found = (await self._ask(op="groups"))["groups"]
        return [Group(**{**one, "plugins": None if one["plugins"] is None else tuple(one["plugins"])}) for one in found]

    async def chats(self) -> dict[str, str]:
        return (await self._ask(op="groups"))["chats"]

    async def add(self, group: Group) -> None:
        await self._ask(op="add-group", jid=group.jid, name=group.name, folder=group.folder, plugins=group.plugins)

    async def set_plugins(self, group: Group, plugins: tuple[str, ...] | None) -> None:
        await self._ask(op="group-plugins", folder=group.folder, plugins=plugins)


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

    async def set_plugins(self, group: Group, plugins: tuple[str, ...] | None) -> None:
        await self._store.set_group_plugins(group.jid, plugins)


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
