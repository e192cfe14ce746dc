"""The door to a running service: a UNIX socket in PYNCHY_HOME that only its owner can open.

A connection carries operations, one after the other. Both sides send lines of JSON; the client names an operation,
and the next one once it has the answer. The command line is the client.

    hello                  -> {"event": "hello", "demo", "pid", "version"}
    ask {group, text}      -> text events and notes, then {"event": "settled", "error"}
    chat {group}           -> text events and notes for as long as the client stays; its lines {"say": TEXT} go in
    status                 -> {"event": "lines", "lines"}
    plugins                -> {"event": "plugins", "records"}
    groups                 -> {"event": "groups", "groups", "chats"}
    people {group}         -> {"event": "people", "people"}
    add-group {group}, set-group {group}, remove-group {group}
                           -> {"event": "done"}
    stop {group}, clear {group}
                           -> {"event": "lines", "lines"}
    tasks {group}          -> {"event": "lines", "lines"}, of all where the group is null
    task {action, id}      -> {"event": "lines", "lines"}; the actions are pause, resume, cancel and runs

Where an operation cannot be done the answer is {"event": "error", "message"}; so it is where a line is no
JSON object, and then the connection ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import structlog

from pynchy import __version__
from pynchy.channels.terminal import TerminalChannel
from pynchy.tasks import Task
from pynchy.types import ExtraMount, Group

log = structlog.get_logger(__name__)

_MAX_LINE = 4 * 1024 * 1024
#: sockaddr_un holds 108 bytes on Linux and 104 on macOS, with the final zero.
_MAX_PATH = 103


class ControlError(Exception):
    """The door cannot be opened, or what was asked through it cannot be done; one sentence says why."""


class Peer:
    """One end of a connection: lines of JSON each way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, **message: Any) -> None:
        """Send one message; ConnectionError where the other side is gone."""
        if self._writer.is_closing():
            raise ConnectionResetError("the other side has closed")
        self._writer.write(json.dumps(message).encode() + b"\n")
        await self._writer.drain()
        if self._writer.is_closing():  # a connection that was aborted meanwhile ends the waiting without an error
            raise ConnectionResetError("the connection was closed before all was sent")

    async def receive(self) -> dict[str, Any] | None:
        """The next message, None at the end; ControlError for what is none."""
        try:
            line = await self._reader.readline()
        except ConnectionError:
            return None
        except ValueError:
            raise ControlError(f"a message longer than {_MAX_LINE} bytes") from None
        if not line.endswith(b"\n"):
            return None
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise ControlError("a message that is not JSON") from None
        if not isinstance(message, dict):
            raise ControlError("a message that is no JSON object")
        return message

    async def ask(self, **request: Any) -> dict[str, Any] | None:
        """Send an operation that has one answer, and return that; None at the end."""
        await self.send(**request)
        return await self.receive()

    def abort(self) -> None:
        """Close the connection at once, whatever has not been sent."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Close the connection once the other side has taken what was sent."""
        self._writer.close()
        with contextlib.suppress(ConnectionError, OSError):
            await self._writer.wait_closed()

    async def __aenter__(self) -> Peer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Behind(Protocol):
    """The service behind the door."""

    demo: bool
    terminal: TerminalChannel

    async def group_jid(self, folder: str) -> str:
        """The chat of a group by its folder; ControlError that lists the groups where there is none."""
        ...

    async def say(self, jid: str, text: str) -> int:
        """Store a message from the terminal and return its row id; ControlError where it is empty."""
        ...

    async def settlement(self, row_id: int) -> str | None:
        """Wait until a message is done or failed: None, or why it failed."""
        ...

    async def flush_outbox(self, jid: str) -> None:
        """Send everything that can be sent to a chat now."""
        ...

    def plugin_records(self) -> list[dict[str, Any]]:
        """What discovery found."""
        ...

    async def status(self) -> list[str]:
        """How the service is, in lines of text."""
        ...

    async def people(self, folder: str) -> dict[str, str]:
        """Who has written in a group's chat: what each is called, by their ids; ControlError."""
        ...

    def group(self, jid: str) -> Group | None:
        """The group of a chat."""
        ...

    async def remove_group(self, folder: str) -> None:
        """Answer a chat no longer; ValueError where that cannot be."""
        ...

    async def stop_agents(self, group: Group) -> str | None:
        """End what a group's agents do; what to say of it, None where nothing was to be ended."""
        ...

    async def begin_anew(self, group: Group) -> None:
        """Let a group's next message begin a new conversation."""
        ...

    async def tasks(self, folder: str | None) -> list[str]:
        """The scheduled tasks of one group or of all, a line each."""
        ...

    async def task(self, task_id: int) -> Task:
        """A task by its number; ControlError where there is none."""
        ...

    async def change_task(self, action: str, task: Task) -> Task:
        """Pause, resume or cancel a task; ValueError where that cannot be."""
        ...

    async def task_runs(self, task: Task) -> list[str]:
        """What became of a task's latest runs, a line each."""
        ...

    def zone_of(self, folder: str) -> ZoneInfo:
        """Where the people of a group are."""
        ...

    def registered_groups(self) -> Mapping[str, Group]:
        """Every group by its jid."""
        ...

    async def known_chats(self) -> dict[str, str]:
        """The names of the chats that channels have seen, by jid."""
        ...

    async def register_group(self, group: Group) -> None:
        """Answer a chat from now on; ValueError where it cannot be a group."""
        ...

    async def update_group(self, group: Group) -> None:
        """Give a group other settings; ValueError where one cannot be."""
        ...


class ControlServer:
    """Serves the socket at `path` for a service."""

    def __init__(self, path: Path, service: Behind) -> None:
        self._path = path
        self._service = service
        self._tasks: set[asyncio.Task[None]] = set()
        self._free = asyncio.Event()
        self._free.set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen; at the end every connection is closed and the socket is gone."""
        check_path(self._path)
        self._path.unlink(missing_ok=True)  # left by a service that was killed; its lock is ours now
        mask = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(self._accept, str(self._path), limit=_MAX_LINE)
        finally:
            os.umask(mask)
        try:
            yield
        finally:
            server.close()
            self._path.unlink(missing_ok=True)
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def unused(self) -> None:
        """Return once nobody is connected."""
        await self._free.wait()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(Peer(reader, writer)))
        self._tasks.add(task)
        self._free.clear()
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self._free.set()

    async def _serve(self, peer: Peer) -> None:
        try:
            while (request := await peer.receive()) is not None:
                try:
                    await self._operation(request)(peer, request)
                except ControlError as error:
                    await peer.send(event="error", message=str(error))
        except ControlError as error:
            with contextlib.suppress(ConnectionError):
                await peer.send(event="error", message=str(error))
        except ConnectionError:
            pass
        except asyncio.CancelledError:
            peer.abort()  # the service ends, and does not wait for a terminal that has stopped reading
            raise
        except Exception:
            log.exception("an operation through the control socket failed")
        finally:
            await peer.close()

    def _operation(self, request: dict[str, Any]) -> Callable[[Peer, dict[str, Any]], Awaitable[None]]:
        operations = {
            "hello": self._hello,
            "ask": self._ask,
            "chat": self._chat,
            "status": self._status,
            "plugins": self._plugins,
            "groups": self._groups,
            "add-group": self._add_group,
            "set-group": self._set_group,
            "remove-group": self._remove_group,
            "people": self._people,
            "stop": self._stop,
            "clear": self._clear,
            "tasks": self._tasks_of,
            "task": self._task,
        }
        name = request.get("op")
        if not isinstance(name, str) or name not in operations:
            raise ControlError(f"this service knows no operation {name!r}; is it of another version?")
        return operations[name]

    async def _hello(self, peer: Peer, request: dict[str, Any]) -> None:
        await peer.send(event="hello", demo=self._service.demo, pid=os.getpid(), version=__version__)

    async def _status(self, peer: Peer, request: dict[str, Any]) -> None:
        await peer.send(event="lines", lines=await self._service.status())

    async def _people(self, peer: Peer, request: dict[str, Any]) -> None:
        await peer.send(event="people", people=await self._service.people(str(request.get("group"))))

    async def _stop(self, peer: Peer, request: dict[str, Any]) -> None:
        said = await self._service.stop_agents(await self._group(request))
        await peer.send(event="lines", lines=[said or "Nothing is being done there."])

    async def _clear(self, peer: Peer, request: dict[str, Any]) -> None:
        await self._service.begin_anew(await self._group(request))
        await peer.send(event="lines", lines=["The next message begins a new conversation."])

    async def _tasks_of(self, peer: Peer, request: dict[str, Any]) -> None:
        folder = None if request.get("group") is None else (await self._group(request)).folder
        await peer.send(event="lines", lines=await self._service.tasks(folder))

    async def _task(self, peer: Peer, request: dict[str, Any]) -> None:
        number = request.get("id")
        if type(number) is not int or not 0 < number < 2**62:
            raise ControlError("A task is named by its number; `pynchy tasks list` lists them.")
        task = await self._service.task(number)
        if request.get("action") == "runs":
            lines = await self._service.task_runs(task)
        else:
            try:
                changed = await self._service.change_task(str(request.get("action")), task)
            except ValueError as error:
                raise ControlError(f"{error}.") from None
            lines = [changed.in_words(self._service.zone_of(changed.folder), True)]
        await peer.send(event="lines", lines=lines)

    async def _group(self, request: dict[str, Any]) -> Group:
        group = self._service.group(await self._service.group_jid(str(request.get("group"))))
        assert group
        return group

    async def _plugins(self, peer: Peer, request: dict[str, Any]) -> None:
        await peer.send(event="plugins", records=self._service.plugin_records())

    async def _groups(self, peer: Peer, request: dict[str, Any]) -> None:
        groups = [asdict(group) for group in self._service.registered_groups().values()]
        await peer.send(event="groups", groups=groups, chats=await self._service.known_chats())

    async def _add_group(self, peer: Peer, request: dict[str, Any]) -> None:
        await self._change_group(peer, request, self._service.register_group)

    async def _set_group(self, peer: Peer, request: dict[str, Any]) -> None:
        await self._change_group(peer, request, self._service.update_group)

    async def _remove_group(self, peer: Peer, request: dict[str, Any]) -> None:
        try:
            await self._service.remove_group(str(request.get("group")))
        except ValueError as error:
            raise ControlError(f"{error}.") from None
        await peer.send(event="done")

    async def _change_group(
        self, peer: Peer, request: dict[str, Any], change: Callable[[Group], Awaitable[None]]
    ) -> None:
        try:
            await change(group_from(request.get("group")))
        except ValueError as error:
            raise ControlError(f"{error}.") from None
        await peer.send(event="done")

    async def _ask(self, peer: Peer, request: dict[str, Any]) -> None:
        jid = await self._service.group_jid(str(request.get("group")))
        earlier = True

        async def show(text: str) -> None:
            await peer.send(event="text", text=text, earlier=earlier)

        with self._service.terminal.attached(jid, show, partial(_show_note, peer)):
            await self._service.flush_outbox(jid)  # what waited for a terminal is not part of this answer
            earlier = False
            row_id = await self._service.say(jid, str(request.get("text")))
            settling = asyncio.ensure_future(self._service.settlement(row_id))
            leaving = asyncio.ensure_future(peer.receive())
            try:
                await asyncio.wait({settling, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if settling.done():
                    await self._service.flush_outbox(jid)
            finally:
                settling.cancel()
                leaving.cancel()
                await asyncio.gather(settling, leaving, return_exceptions=True)
        if not settling.cancelled():
            await peer.send(event="settled", error=settling.result())
        elif leaving.result() is not None:
            raise ControlError("This came before the answer to the last message; wait for that.")

    async def _chat(self, peer: Peer, request: dict[str, Any]) -> None:
        jid = await self._service.group_jid(str(request.get("group")))

        async def show(text: str) -> None:
            await peer.send(event="text", text=text)

        with self._service.terminal.attached(jid, show, partial(_show_note, peer)):
            await self._service.flush_outbox(jid)
            while (line := await peer.receive()) is not None:
                try:
                    await self._service.say(jid, str(line.get("say", "")))
                except ControlError as error:
                    await peer.send(event="refused", message=str(error))


async def _show_note(peer: Peer, text: str) -> None:
    await peer.send(event="note", text=text)


#: The fields of a group that JSON makes lists of.
_LISTS = ("senders", "commanders", "plugins")


def group_from(fields: Any) -> Group:
    """A group as `asdict` has made it and JSON has carried it; ValueError where it is none."""
    try:
        lists = {name: None if (one := fields[name]) is None else tuple(map(str, one)) for name in _LISTS}
        mounts = tuple(ExtraMount(**one) for one in fields["mounts"])
        return Group(**{**fields, **lists, "mounts": mounts})
    except (TypeError, KeyError):
        raise ValueError("that is no group; this is of another version than the service") from None


async def connect(path: Path) -> Peer | None:
    """Connect to the service at `path`; None where none listens."""
    check_path(path)
    try:
        reader, writer = await asyncio.open_unix_connection(str(path), limit=_MAX_LINE)
    except (FileNotFoundError, NotADirectoryError, ConnectionError):
        return None
    except OSError as error:
        raise ControlError(f"cannot open {path}: {error.strerror or error}") from None
    return Peer(reader, writer)


async def ask(path: Path, **request: Any) -> dict[str, Any] | None:
    """One operation that has one answer; None where no service listens, or it ends without answering."""
    peer = await connect(path)
    if peer is None:
        return None
    async with peer:
        return await peer.ask(**request)


def check_path(path: Path) -> None:
    """Raise ControlError where the path is longer than a socket's may be."""
    if len(os.fsencode(path)) > _MAX_PATH:
        raise ControlError(f"the path {path} is too long for a socket: set PYNCHY_HOME to a shorter one")
