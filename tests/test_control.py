"""The door to a running service: what goes through it, who may open it, and that it never gets stuck."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pynchy import __version__, control
from pynchy.channels.terminal import TerminalChannel, terminal_jid
from pynchy.control import ControlError, ControlServer, Peer, ask, connect, group_from
from pynchy.schedule import Schedule
from pynchy.tasks import Task
from pynchy.types import Group, NotConnected

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

JID = terminal_jid("main")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


_THEN = datetime(2026, 3, 1, 9, tzinfo=UTC)
TASK = Task(
    7, "main", "water the plants", Schedule("interval", "3600"), _THEN, "group", "once", "active", _THEN, 0, _THEN
)


class Behind:
    """A service with one group, `main`. What is in `outgoing` goes out when it is flushed."""

    demo = True

    def __init__(self) -> None:
        self.terminal = TerminalChannel()
        self.groups = {JID: Group(JID, "main", "main", is_main=True)}
        self.said: asyncio.Queue[str] = asyncio.Queue()
        self.outgoing: list[str] = []
        self.done: list[tuple[str, str]] = []
        #: The settlement of each message, in order; the tests set them.
        self.settled: list[asyncio.Future[str | None]] = []

    async def group_jid(self, folder: str) -> str:
        if folder != "main":
            raise ControlError(f"There is no group {folder!r}; there are: main.")
        return JID

    async def say(self, jid: str, text: str) -> int:
        assert jid == JID
        if not text:
            raise ControlError("The message is empty.")
        self.settled.append(asyncio.get_running_loop().create_future())
        self.said.put_nowait(text)
        return len(self.settled) - 1

    async def settlement(self, row_id: int) -> str | None:
        return await self.settled[row_id]

    async def flush_outbox(self, jid: str) -> None:
        while self.outgoing:
            try:
                await self.terminal.send_message(JID, self.outgoing[0])
            except NotConnected:
                return
            del self.outgoing[0]

    def plugin_records(self) -> list[dict[str, Any]]:
        return [{"name": "hello", "state": "ready"}]

    async def status(self) -> list[str]:
        return ["Agents: none"]

    def registered_groups(self) -> dict[str, Group]:
        return self.groups

    async def known_chats(self) -> dict[str, str]:
        return {"pigeon:loft": "The loft"}

    async def register_group(self, group: Group) -> None:
        if not group.folder:
            raise ValueError("a folder needs a name")
        self.groups[group.jid] = group

    async def update_group(self, group: Group) -> None:
        self.groups[group.jid] = group

    async def remove_group(self, folder: str) -> None:
        if folder == "main":
            raise ValueError("the main chat stays")
        self.groups = {jid: group for jid, group in self.groups.items() if group.folder != folder}

    def group(self, jid: str) -> Group | None:
        return self.groups.get(jid)

    async def people(self, folder: str) -> dict[str, str]:
        return {"ada@x": "Ada"}

    async def stop_agents(self, group: Group) -> str | None:
        self.done.append(("stop", group.folder))
        return None

    async def begin_anew(self, group: Group) -> None:
        self.done.append(("clear", group.folder))

    async def tasks(self, folder: str | None) -> list[str]:
        return [f"a task of {folder}"]

    async def task(self, task_id: int) -> Task:
        if task_id != TASK.id:
            raise ControlError(f"There is no task {task_id}.")
        return TASK

    async def change_task(self, action: str, task: Task) -> Task:
        if action != "pause":
            raise ValueError(f"a task cannot be {action!r}")
        return replace(task, state="paused")

    async def task_runs(self, task: Task) -> list[str]:
        return ["yesterday: done"]

    def zone_of(self, folder: str) -> ZoneInfo:
        return ZoneInfo("UTC")


@pytest.fixture
def door() -> Iterator[Path]:
    """A path short enough for a socket, wherever the tests run."""
    directory = Path(tempfile.mkdtemp(prefix="pynchy-"))
    yield directory / "control.sock"
    shutil.rmtree(directory)


@pytest.fixture
def service() -> Behind:
    return Behind()


@pytest.fixture
async def server(door: Path, service: Behind) -> AsyncIterator[ControlServer]:
    """A server that listens meanwhile."""
    server = ControlServer(door, service)
    async with server.listening():
        yield server


@asynccontextmanager
async def visitor(door: Path, **request: Any) -> AsyncIterator[Peer]:
    """A client that has sent this request."""
    peer = await connect(door)
    assert peer is not None
    async with peer:
        if request:
            await peer.send(**request)
        yield peer


@asynccontextmanager
async def both_ends(limit: int = 2**16) -> AsyncIterator[tuple[Peer, Peer, asyncio.StreamWriter]]:
    """Two peers that are connected, and the raw writer of the first."""
    left, right = socket.socketpair()
    streams = [await asyncio.open_unix_connection(sock=end, limit=limit) for end in (left, right)]
    peers = [Peer(*stream) for stream in streams]
    try:
        yield peers[0], peers[1], streams[0][1]
    finally:
        for peer in peers:
            await peer.close()


# --- lines of JSON ------------------------------------------------------------------------------------------


@given(st.lists(st.dictionaries(st.text(), json_values, max_size=4), max_size=4))
async def test_messages_arrive_as_they_were_sent_and_then_the_end(messages: list[dict[str, Any]]) -> None:
    async with both_ends() as (one, other, _):
        for message in messages:
            await one.send(**message)
        await one.close()
        for message in messages:
            assert await other.receive() == message
        assert await other.receive() is None


async def test_a_long_text_arrives_whole() -> None:
    text = "é\n🦔" * 300_000
    async with both_ends(limit=control._MAX_LINE * 2) as (one, other, _):
        sending = asyncio.create_task(one.send(text=text))
        assert await other.receive() == {"text": text}
        await sending


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"hello\n", "not JSON"),
        (b"\n", "not JSON"),
        (b"\xff\xfe\xfd\n", "not JSON"),
        (b'{"op": \n', "not JSON"),
        (b"[" * 50_000 + b"\n", "not JSON"),
        (b"[]\n", "no JSON object"),
        (b'"hello"\n', "no JSON object"),
        (b"null\n", "no JSON object"),
        (b"x" * 70_000 + b"\n", "longer than"),
        (b"x" * 200_000, "longer than"),
    ],
    ids=lambda value: str(value[:12]),
)
async def test_what_is_no_message_is_an_error_that_says_so(line: bytes, reason: str) -> None:
    async with both_ends() as (_, other, raw):
        raw.write(line)
        with pytest.raises(ControlError, match=reason):
            await other.receive()


async def test_a_message_that_was_cut_off_is_the_end() -> None:
    async with both_ends() as (one, other, raw):
        raw.write(b'{"op": "hel')
        await one.close()
        assert await other.receive() is None


async def test_sending_to_a_side_that_is_gone_is_a_connection_error() -> None:
    async with both_ends() as (one, other, _):
        await other.close()
        assert await one.receive() is None
        with pytest.raises(ConnectionError):
            await asyncio.gather(*(one.send(text="x" * 100_000) for _ in range(100)))
        await one.close()
        with pytest.raises(ConnectionError):
            await one.send(text="after my own end")


# --- operations ---------------------------------------------------------------------------------------------


async def test_hello_says_who_is_there(server: ControlServer, door: Path) -> None:
    async with visitor(door, op="hello") as peer:
        hello = {"event": "hello", "demo": True, "pid": os.getpid(), "version": __version__}
        assert await peer.receive() == hello


async def test_plugins_gives_the_records(server: ControlServer, door: Path) -> None:
    async with visitor(door, op="plugins") as peer:
        assert await peer.receive() == {"event": "plugins", "records": [{"name": "hello", "state": "ready"}]}


@pytest.mark.parametrize("request_", [{"op": "dance"}, {"op": None}, {"op": ["hello"]}, {"op": {}}, {"hello": 1}])
async def test_an_operation_that_does_not_exist_is_an_error_that_names_it(
    server: ControlServer, door: Path, request_: dict[str, Any]
) -> None:
    async with visitor(door, **request_) as peer:
        answer = await peer.receive()
        assert answer is not None
        assert answer["event"] == "error"
        assert f"no operation {request_.get('op')!r}" in answer["message"]


async def test_garbage_is_answered_with_an_error_and_others_are_served(
    door: Path, service: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_MAX_LINE", 1000)
    async with ControlServer(door, service).listening():
        for garbage in (b"hello\n", b"x" * 5000 + b"\n", b"[" * 900 + b"\n"):
            reader, writer = await asyncio.open_unix_connection(str(door))
            writer.write(garbage)
            assert (await reader.readline()).startswith(b'{"event": "error", "message": "a message ')
            writer.close()
        async with visitor(door, op="hello") as peer:
            assert await peer.receive() is not None


async def test_after_a_line_that_is_no_message_the_connection_ends(server: ControlServer, door: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(str(door))
    writer.write(b"hello\n")
    assert (await reader.read()).startswith(b'{"event": "error"')
    writer.close()


@pytest.mark.parametrize("op", ["ask", "chat"])
async def test_a_group_that_does_not_exist_is_an_error_that_lists_those_that_do(
    server: ControlServer, door: Path, op: str
) -> None:
    async with visitor(door, op=op, group="family", text="hi") as peer:
        assert await peer.receive() == {
            "event": "error",
            "message": "There is no group 'family'; there are: main.",
        }


# --- ask ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, "the agent failed"])
async def test_ask_shows_what_waited_then_the_answer_then_how_it_ended(
    server: ControlServer, door: Path, service: Behind, error: str | None
) -> None:
    service.outgoing.append("from yesterday")
    async with visitor(door, op="ask", group="main", text="hello") as peer:
        assert await peer.receive() == {"event": "text", "text": "from yesterday", "earlier": True}
        assert await service.said.get() == "hello"
        await service.terminal.send_message(JID, "on my way")
        assert await peer.receive() == {"event": "text", "text": "on my way", "earlier": False}
        service.outgoing.append("the answer")
        service.settled[0].set_result(error)
        assert await peer.receive() == {"event": "text", "text": "the answer", "earlier": False}
        assert await peer.receive() == {"event": "settled", "error": error}
        assert not service.terminal.is_connected()


async def test_a_connection_carries_one_operation_after_the_other_whatever_becomes_of_each(
    server: ControlServer, door: Path, service: Behind
) -> None:
    async with visitor(door, op="ask", group="main", text="") as peer:
        assert await peer.receive() == {"event": "error", "message": "The message is empty."}
        for number, text in enumerate(("one", "two")):
            await peer.send(op="ask", group="main", text=text)
            assert await service.said.get() == text
            service.settled[number].set_result(None)
            assert await peer.receive() == {"event": "settled", "error": None}


async def test_what_comes_before_the_answer_is_refused_and_the_next_question_is_not(
    server: ControlServer, door: Path, service: Behind
) -> None:
    async with visitor(door, op="ask", group="main", text="one") as peer:
        assert await service.said.get() == "one"
        await peer.send(op="ask", group="main", text="too early")
        answer = await peer.receive()
        assert answer is not None
        assert "before the answer" in answer["message"]
        await peer.send(op="ask", group="main", text="two")
        assert await service.said.get() == "two"
        service.settled[1].set_result(None)
        assert await peer.receive() == {"event": "settled", "error": None}


async def test_an_empty_question_is_refused(server: ControlServer, door: Path, service: Behind) -> None:
    async with visitor(door, op="ask", group="main", text="") as peer:
        assert await peer.receive() == {"event": "error", "message": "The message is empty."}
    assert service.said.empty()


async def test_who_leaves_before_the_answer_is_forgotten_and_the_message_is_not(
    server: ControlServer, door: Path, service: Behind
) -> None:
    async with visitor(door, op="ask", group="main", text="hello"):
        await service.said.get()
        assert service.terminal.is_connected()
    await server.unused()
    assert not service.terminal.is_connected()
    assert service.settled[0].cancelled(), "nobody waits for the settlement any more"
    with pytest.raises(NotConnected):
        await service.terminal.send_message(JID, "the answer")


# --- chat ---------------------------------------------------------------------------------------------------


async def test_a_chat_goes_both_ways_for_as_long_as_it_is_open(
    server: ControlServer, door: Path, service: Behind
) -> None:
    service.outgoing.append("from yesterday")
    async with visitor(door, op="chat", group="main") as peer:
        assert await peer.receive() == {"event": "text", "text": "from yesterday"}
        for number in range(3):
            await peer.send(say=f"line {number}")
            assert await service.said.get() == f"line {number}"
            await service.terminal.send_message(JID, f"answer {number}")
            assert await peer.receive() == {"event": "text", "text": f"answer {number}"}
    await server.unused()
    assert not service.terminal.is_connected()


@pytest.mark.parametrize("line", [{"say": ""}, {"something": "else"}])
async def test_a_line_that_is_refused_does_not_end_the_chat(
    server: ControlServer, door: Path, service: Behind, line: dict[str, Any]
) -> None:
    async with visitor(door, op="chat", group="main") as peer:
        await peer.send(**line)
        assert await peer.receive() == {"event": "refused", "message": "The message is empty."}
        await peer.send(say="hello")
        assert await service.said.get() == "hello"


async def test_every_terminal_sees_what_is_said_and_one_that_left_is_not_missed(
    server: ControlServer, door: Path, service: Behind
) -> None:
    async with visitor(door, op="chat", group="main") as one:
        async with visitor(door, op="chat", group="main") as two:
            for peer in (one, two):
                await peer.send(say="I am here")
                await service.said.get()
            await service.terminal.send_message(JID, "both")
            assert [await peer.receive() for peer in (one, two)] == [{"event": "text", "text": "both"}] * 2
        await service.terminal.send_message(JID, "one")
        assert await one.receive() == {"event": "text", "text": "one"}


# --- the socket ---------------------------------------------------------------------------------------------


async def test_only_the_owner_can_open_it_and_it_is_gone_at_the_end(door: Path, service: Behind) -> None:
    mask = os.umask(0)
    try:
        async with ControlServer(door, service).listening():
            assert stat.S_ISSOCK(door.stat().st_mode)
            assert stat.S_IMODE(door.stat().st_mode) == 0o600
            assert os.umask(0) == 0, "the mask of the process is as it was"
        assert not door.exists()
    finally:
        os.umask(mask)


@pytest.mark.parametrize("left", ["socket", "file"])
async def test_what_was_left_in_its_place_is_replaced(door: Path, service: Behind, left: str) -> None:
    if left == "socket":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(door))
    else:
        door.touch()
    assert door.exists()
    assert await connect(door) is None
    async with ControlServer(door, service).listening(), visitor(door, op="hello") as peer:
        assert await peer.receive() is not None
    assert not door.exists()


async def test_where_nobody_listens_there_is_nobody(door: Path) -> None:
    assert await connect(door) is None
    assert await connect(door.parent / "missing" / "control.sock") is None
    door.write_text("a file")
    assert await connect(door) is None
    assert await connect(door / "control.sock") is None


async def test_what_cannot_be_opened_is_an_error_that_names_it(door: Path) -> None:
    door.symlink_to(door)
    with pytest.raises(ControlError, match=r"cannot open .*/control\.sock: Too many levels"):
        await connect(door)


async def test_a_path_too_long_for_a_socket_is_an_error_that_says_what_to_do(tmp_path: Path, service: Behind) -> None:
    path = tmp_path / ("x" * 100) / "control.sock"
    with pytest.raises(ControlError, match="too long for a socket: set PYNCHY_HOME"):
        await connect(path)
    with pytest.raises(ControlError, match="too long for a socket: set PYNCHY_HOME"):
        async with ControlServer(path, service).listening():
            pytest.fail("it listens")


async def test_the_longest_path_that_may_be_works(service: Behind, door: Path) -> None:
    path = door.parent / ("x" * (103 - len(os.fsencode(door.parent)) - 1))
    async with ControlServer(path, service).listening(), visitor(path, op="hello") as peer:
        assert await peer.receive() is not None
    with pytest.raises(ControlError):
        await connect(path.with_name(path.name + "x"))


# --- the end ------------------------------------------------------------------------------------------------


async def test_it_is_unused_once_nobody_is_connected(server: ControlServer, door: Path, service: Behind) -> None:
    await server.unused()
    async with visitor(door, op="chat", group="main") as peer:
        await peer.send(say="hello")
        await service.said.get()
        waiting = asyncio.create_task(server.unused())
        await peer.send(say="still here")
        await service.said.get()
        assert not waiting.done()
    await waiting


async def test_at_the_end_every_visitor_is_told_by_the_closing(door: Path, service: Behind) -> None:
    async with ControlServer(door, service).listening():
        chat = await connect(door)
        silent = await connect(door)
        assert chat is not None
        assert silent is not None
        await chat.send(op="chat", group="main")
        await chat.send(say="hello")
        await service.said.get()
    assert await chat.receive() is None
    assert await silent.receive() is None
    assert not service.terminal.is_connected()
    for peer in (chat, silent):
        await peer.close()
    assert await connect(door) is None


async def test_the_end_does_not_wait_for_a_terminal_that_has_stopped_reading(door: Path, service: Behind) -> None:
    with socket.socket(socket.AF_UNIX) as stopped:  # nobody reads from it, as after Ctrl-Z
        async with ControlServer(door, service).listening():
            stopped.connect(str(door))
            stopped.send(b'{"op": "chat", "group": "main"}\n{"say": "hello"}\n')
            await service.said.get()
            showing = asyncio.create_task(service.terminal.send_message(JID, "x" * 20_000_000))
            for _ in range(50):
                await asyncio.sleep(0)
            assert not showing.done()
        with pytest.raises(NotConnected):
            await showing


async def test_groups_are_listed_added_and_given_plugins(door: Path) -> None:
    async def asked(**request: Any) -> dict[str, Any]:
        answer = await ask(door, **request)
        assert answer
        return answer

    async with ControlServer(door, Behind()).listening():
        new = Group("pigeon:loft", "Loft", "loft", plugins=("hello",), network="none", memory_bytes=10**9)
        assert await asked(op="add-group", group=asdict(new)) == {"event": "done"}
        listed = await asked(op="groups")
        assert listed["chats"] == {"pigeon:loft": "The loft"}
        assert group_from(listed["groups"][1]) == new
        changed = replace(new, plugins=None, network="example.com", cpus=1.5)
        assert await asked(op="set-group", group=asdict(changed)) == {"event": "done"}
        assert group_from((await asked(op="groups"))["groups"][1]) == changed
        refused = await asked(op="add-group", group=asdict(replace(new, folder="")))
        assert refused == {"event": "error", "message": "a folder needs a name."}


@pytest.mark.parametrize("group", [None, [], {}, {"jid": "x"}, {"plugins": 3}, {"plugins": None, "colour": "red"}])
async def test_what_is_no_group_is_refused(group: Any, door: Path) -> None:
    async with ControlServer(door, Behind()).listening():
        for operation in ("add-group", "set-group"):
            answer = await ask(door, op=operation, group=group)
            assert answer == {
                "event": "error",
                "message": "that is no group; this is of another version than the service.",
            }


_OPERATIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"op": "people", "group": "main"}, {"event": "people", "people": {"ada@x": "Ada"}}),
    ({"op": "stop", "group": "main"}, {"event": "lines", "lines": ["Nothing is being done there."]}),
    (
        {"op": "clear", "group": "main"},
        {"event": "lines", "lines": ["The next message begins a new conversation."]},
    ),
    ({"op": "tasks", "group": None}, {"event": "lines", "lines": ["a task of None"]}),
    ({"op": "tasks", "group": "main"}, {"event": "lines", "lines": ["a task of main"]}),
    ({"op": "task", "action": "runs", "id": 7}, {"event": "lines", "lines": ["yesterday: done"]}),
    (
        {"op": "task", "action": "pause", "id": 7},
        {"event": "lines", "lines": ["Task 7 of main: water the plants (every 1 h, paused)"]},
    ),
    ({"op": "task", "action": "eat", "id": 7}, {"event": "error", "message": "a task cannot be 'eat'."}),
    ({"op": "task", "action": "pause", "id": 8}, {"event": "error", "message": "There is no task 8."}),
    ({"op": "remove-group", "group": "main"}, {"event": "error", "message": "the main chat stays."}),
    ({"op": "remove-group", "group": "loft"}, {"event": "done"}),
]


@pytest.mark.parametrize(("request_", "answer"), _OPERATIONS)
async def test_agents_and_tasks_are_seen_and_changed_through_the_door(
    request_: dict[str, Any], answer: dict[str, Any], door: Path
) -> None:
    async with ControlServer(door, Behind()).listening():
        assert await ask(door, **request_) == answer


@pytest.mark.parametrize("number", [None, "7", 7.0, True, 0, -1, 2**63])
async def test_what_is_no_number_of_a_task_is_refused(number: Any, door: Path) -> None:
    async with ControlServer(door, Behind()).listening():
        answer = await ask(door, op="task", action="pause", id=number)
        assert answer
        assert answer["message"].startswith("A task is named by its number")
