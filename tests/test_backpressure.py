"""The pipe between host and agent under load: nothing is lost, nobody else waits, and memory has a bound."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import json
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import pytest
from flood import BOTH_WAYS, ENTRIES, ENTRY, FLOOD, MIB, PAGE, ROUND, ROUNDS, SESSION, THINGS, upload
from stored import rows
from support import RogueRuntime, StartService

from pynchy import agent_wire, container_runner
from pynchy.agent_wire import AgentWire
from pynchy.app import Service
from pynchy.channels.terminal import terminal_jid
from pynchy.config import load_settings
from pynchy.loopback import Exchange, LoopbackServer, Request
from pynchy.model_gateway import Upstream
from pynchy.plugin import PluginRegistry
from pynchy.transcripts import Transcripts
from pynchy.types import Group, VolumeMount
from pynchy.wire import MAX_LINE

pytestmark = pytest.mark.anyio

#: What an agent may have outstanding, in a test that lets it have more.
_LITTLE = 4 * MIB
_STOPS_WITHIN = 20.0  # seconds; what holds a stop up would do so for longer
#: For what happens at once where it happens at all, in seconds.
_PATIENCE = 20.0
_FLOOD = Path(__file__).parent / "flood.py"


class FloodRuntime(RogueRuntime):
    """The agent of the group `loud` is of the given kind, those of all others answer."""

    def __init__(self, kind: str) -> None:
        super().__init__("answers")
        self.loud = kind

    def build_run_args(self, mounts: list[VolumeMount], container_name: str, image: str) -> list[str]:
        if "-loud-" in container_name:
            return [str(_FLOOD), self.loud]
        return super().build_run_args(mounts, container_name, image)


class Talk:
    """A chat, and everything that is sent to it."""

    def __init__(self, service: Service, jid: str) -> None:
        self._service = service
        self.jid = jid
        self._texts: asyncio.Queue[str] = asyncio.Queue()
        self.take = self._texts.put

    async def say(self, text: str = "hello") -> int:
        return await self._service.say(self.jid, text)

    async def hear(self) -> str:
        """The next text."""
        async with asyncio.timeout(_PATIENCE):
            return await self._texts.get()

    async def ask(self, text: str = "hello") -> str:
        """Say something and return its answer."""
        assert await self.settlement(await self.say(text)) is None
        return await self.hear()

    async def settlement(self, row_id: int) -> str | None:
        """Why a message was not answered."""
        async with asyncio.timeout(_PATIENCE):
            return await self._service.settlement(row_id)


@asynccontextmanager
async def talk(service: Service, folder: str) -> AsyncIterator[Talk]:
    """A chat of a group of its own."""
    jid = terminal_jid(folder)
    await service.register_group(Group(jid, folder, folder))
    chat = Talk(service, jid)
    with service.terminal.attached(jid, chat.take):
        yield chat


@asynccontextmanager
async def two_chats(starting: AbstractAsyncContextManager[Service]) -> AsyncIterator[tuple[Service, Talk, Talk]]:
    """A service, a chat whose agent is loud, and another."""
    async with starting as service, talk(service, "loud") as loud, talk(service, "quiet") as quiet:
        yield service, loud, quiet


@pytest.fixture
def signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where agents leave word, and are told what to do."""
    directory = tmp_path / "signs"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


async def comes(event: asyncio.Event) -> None:
    """Wait for something that happens here."""
    async with asyncio.timeout(_PATIENCE):
        await event.wait()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    async with asyncio.timeout(_PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


def _peak() -> int:
    """The most memory that this process has had, in bytes; on Linux, since `_forget_peak`."""
    if sys.platform == "linux":
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _forget_peak() -> None:
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak to what it is now


@contextmanager
def memory_grows_less_than(limit: int) -> Iterator[None]:
    """Hold the peak of this process meanwhile."""
    _forget_peak()
    before = _peak()
    yield
    grown = _peak() - before
    assert grown < limit, f"it grew by {grown / MIB:.0f} MiB, and {limit / MIB:.0f} are allowed"


@pytest.mark.parametrize("kind", ["logs", "transcripts", "small-logs", "small-cancellations", "small-transcripts"])
async def test_a_flood_takes_neither_memory_nor_the_turn_of_another(
    kind: str, start_service: StartService, signs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "transcripts":  # the small ones show that a frame counts for what it takes here, not for its bytes
        monkeypatch.setattr(agent_wire, "_MAX_HELD", _LITTLE)
    async with two_chats(start_service(FloodRuntime(f"floods-with-{kind}"))) as (service, loud, quiet):
        assert await quiet.ask() == "an answer"
        with memory_grows_less_than(FLOOD // 2):
            row_id = await loud.say()
            assert await loud.hear() == "it begins"
            for number in range(3):
                assert f"number {number}" in await quiet.ask(f"number {number}")
            assert await service._store.outcome(row_id) is None, "the flood is still under way"
            (signs / "stop").touch()
            assert await loud.settlement(row_id) is None
        sent = int(await loud.hear())
    assert kind.startswith("small-") or sent >= FLOOD


async def test_between_two_frames_others_have_their_turn_though_both_are_there() -> None:
    reader = asyncio.StreamReader(limit=2 * MAX_LINE)
    reader.feed_data(b'{"type":"http.cancel","id":1}\n' * 1000)
    reader.feed_eof()
    nobody: Any = None
    reading = asyncio.create_task(AgentWire("agent", nobody, nobody, nobody).read(reader))
    turns = 0
    while not reading.done():
        turns += 1
        await asyncio.sleep(0)
    await reading
    assert turns >= 1000


@pytest.mark.parametrize("what", THINGS)
async def test_a_frame_of_very_many_things_holds_up_nobody(
    what: str, start_service: StartService, signs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYNCHY_ATTEMPTS", "1")
    async with two_chats(start_service(FloodRuntime(f"sends-{what}"))) as (_, loud, quiet):
        assert await quiet.ask() == "an answer"
        with memory_grows_less_than(3 * FLOOD):  # what is parsed takes some thirty times what was sent
            row_id = await loud.say()
            assert await loud.hear() == "it begins"
            settled = asyncio.ensure_future(loud.settlement(row_id))
            while not settled.done():
                async with asyncio.timeout(3):
                    await quiet.ask("and you?")


async def test_an_agent_that_asks_and_never_listens_takes_no_memory(
    start_service: StartService, signs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = 0
    load = Transcripts.load

    async def counting(*args: Any) -> Any:
        nonlocal loaded
        page = await load(*args)
        loaded += 1
        return page

    monkeypatch.setattr(Transcripts, "load", counting)
    async with two_chats(start_service(FloodRuntime("asks-and-never-listens"))) as (_, loud, quiet):
        await loud.say()
        assert await loud.hear() == "it is stored"
        with memory_grows_less_than(ROUNDS * ROUND * PAGE // 2):
            for number in range(ROUNDS):
                (signs / f"ask-{number}").touch()
                try:
                    async with asyncio.timeout(2):
                        await until(functools.partial(lambda so_far: loaded >= so_far, (number + 1) * ROUND))
                except TimeoutError:
                    break  # it does no more for one that does not listen: that is one way to keep the bound
            assert await quiet.ask() == "an answer"
            await until(lambda: loaded > 0)


@pytest.fixture
async def store_takes(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """No store takes a transcript until this is set."""
    released = asyncio.Event()
    append = Transcripts.append
    numbers = itertools.count()

    async def append_slowly(store: Transcripts, *args: Any) -> int:
        number = next(numbers)
        await released.wait()
        for _ in range(100 - number):  # each is a little faster than the one before it
            await asyncio.sleep(0)
        return await append(store, *args)

    monkeypatch.setattr(Transcripts, "append", append_slowly)
    # Where a test fails, its service can stop all the same.
    asyncio.get_running_loop().call_later(2 * _PATIENCE, released.set)
    return released


@pytest.fixture
async def stops_reading(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when a host that lets agents have little outstanding reads no more of one for now."""
    stopped = asyncio.Event()

    class Room(asyncio.Event):
        async def wait(self) -> Literal[True]:
            stopped.set()
            return await super().wait()

    class Watched(AgentWire):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._room = Room()

    monkeypatch.setattr(agent_wire, "_MAX_HELD", _LITTLE)
    monkeypatch.setattr(container_runner, "AgentWire", Watched)
    return stopped


async def test_a_host_that_cannot_store_stops_reading_and_later_stores_everything_in_order(
    start_service: StartService, signs: Path, tmp_path: Path, store_takes: asyncio.Event, stops_reading: asyncio.Event
) -> None:
    async with two_chats(start_service(FloodRuntime("stores-a-transcript"))) as (service, loud, quiet):
        with memory_grows_less_than(ENTRIES * ENTRY // 2):
            row_id = await loud.say()
            await comes(stops_reading)
            assert await quiet.ask() == "an answer"
            assert await service._store.outcome(row_id) is None
            await until(lambda: bool((signs / "taken").read_text()))  # else it is just being written
            assert int((signs / "taken").read_text()) < 2 * _LITTLE
            store_takes.set()
            assert await loud.settlement(row_id) is None
        assert await loud.hear() == "stored"
    database = tmp_path / "home/pynchy.db"
    stored = rows(
        database,
        "SELECT id, json_extract(entry, '$.number'), length(entry) > ? FROM transcripts ORDER BY id",
        ENTRY,
    )
    assert [row[1:] for row in stored] == [(number, True) for number in range(ENTRIES)]
    assert rows(database, "SELECT session_id, session_end FROM groups WHERE folder = 'loud'") == [
        (SESSION, stored[-1][0])
    ]


async def test_a_service_stops_while_it_reads_no_more_of_an_agent(
    start_service: StartService, signs: Path, store_takes: asyncio.Event, stops_reading: asyncio.Event
) -> None:
    async with start_service(FloodRuntime("stores-a-transcript")) as service, talk(service, "loud") as loud:
        await loud.say()
        await comes(stops_reading)
        # A stop that waits for the store would never end; so that this test does.
        asyncio.get_running_loop().call_later(2 * _STOPS_WITHIN, store_takes.set)
        began = time.monotonic()
    assert time.monotonic() - began < _STOPS_WITHIN
    assert not _runs(signs)


async def test_a_service_stops_while_an_agent_floods_it(start_service: StartService, signs: Path) -> None:
    async with start_service(FloodRuntime("floods-with-logs")) as service, talk(service, "loud") as loud:
        await loud.say()
        assert await loud.hear() == "it begins"
        began = time.monotonic()
    assert time.monotonic() - began < _STOPS_WITHIN
    assert not _runs(signs)


@pytest.fixture
def left_behind(signs: Path) -> Iterator[Callable[[], int]]:
    """Tells which process an agent has left behind; it ends with the test."""

    def pid() -> int:
        return int((signs / "child").read_text())

    yield pid
    with suppress(ProcessLookupError):
        os.kill(pid(), signal.SIGKILL)


async def test_a_service_stops_though_something_that_the_agent_started_keeps_its_pipes(
    start_service: StartService, signs: Path, left_behind: Callable[[], int]
) -> None:
    async with start_service(FloodRuntime("leaves-a-child")) as service, talk(service, "loud") as loud:
        await loud.say()
        assert await loud.hear() == "I have a child"
        # A stop that waits for the child would take as long as it; so that this test does not.
        asyncio.get_running_loop().call_later(2 * _STOPS_WITHIN, os.kill, left_behind(), signal.SIGKILL)
        began = time.monotonic()
    assert time.monotonic() - began < _STOPS_WITHIN
    assert not _runs(signs)


def _runs(signs: Path) -> bool:
    """Whether the loud agent's process is still there."""
    try:
        os.kill(int((signs / "pid").read_text()), 0)
    except ProcessLookupError:
        return False
    return True


async def test_raw_chatter_between_two_messages_ends_the_agent_and_the_next_one_answers(
    start_service: StartService, signs: Path
) -> None:
    async with two_chats(start_service(FloodRuntime("chatters-between-messages"))) as (_, loud, quiet):
        with memory_grows_less_than(FLOOD // 2):
            assert await loud.ask() == "before the chatter"
            await until(lambda: not _runs(signs))
            assert await quiet.ask() == "an answer"
        assert await loud.ask() == "before the chatter"


# --- the model's side -----------------------------------------------------------------------------------------


class Api(LoopbackServer):
    """An upstream: `up` is answered with the digest of what was sent, `down` with much, and `slow` not at all.

    `down` sends half and waits until it may go on.
    """

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.data = upload()
        self.asked = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.sent = 0

    async def _answer(self, request: Request, exchange: Exchange) -> None:
        self.asked.set()
        if request.target.endswith("?up"):
            await exchange.reply(200, hashlib.sha256(request.body).hexdigest().encode())
        elif request.target.endswith("?slow"):
            await asyncio.Event().wait()
        await exchange.start(200, [("content-type", "text/event-stream")])
        while self.sent < len(self.data):
            if self.sent == len(self.data) // 2:
                await self.may_go_on.wait()
            await exchange.send(self.data[self.sent : self.sent + MIB])
            self.sent += MIB
        await exchange.end()


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with Api() as api:
        assert isinstance(api, Api)
        yield api


@asynccontextmanager
async def service_with(api: Api, kind: str) -> AsyncIterator[Service]:
    """A service whose loud agent is of this kind and whose model is that one."""
    upstream = Upstream(api.base_url)
    async with Service.start(load_settings(), upstream, PluginRegistry(), FloodRuntime(kind)) as service:
        yield service


async def test_a_word_to_the_chat_does_not_wait_for_much_that_goes_both_ways(api: Api, signs: Path) -> None:
    heard = 0
    answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    async def hear(text: str) -> None:
        nonlocal heard
        said = json.loads(text)
        if "number" not in said:
            answer.set_result(said)
            return
        heard += 1
        if said["number"] >= 4:
            api.may_go_on.set()  # so the first few were said while both directions were in use

    async with service_with(api, "talks-both-ways") as service, talk(service, "quiet") as quiet:
        jid = terminal_jid("loud")
        await service.register_group(Group(jid, "loud", "loud"))
        with service.terminal.attached(jid, hear):
            await service.say(jid, "hello")
            await until(lambda: bool(heard))
            assert await quiet.ask() == "an answer"
            async with asyncio.timeout(_PATIENCE):
                result = await answer
    digest = hashlib.sha256(api.data).hexdigest()
    assert len(api.data) == BOTH_WAYS
    assert (result["down"], result["up"]) == (digest, digest)
    assert heard == len(result["ahead"]) == BOTH_WAYS // MIB
    assert max(result["ahead"]) <= 1, "of the upload at most the piece that is being written goes first"


async def test_an_agent_that_does_not_take_the_models_answer_holds_up_nobody(api: Api, signs: Path) -> None:
    api.data *= 4  # more than the buffers of all the sockets and pipes on its way
    api.may_go_on.set()
    with memory_grows_less_than(BOTH_WAYS):
        async with two_chats(service_with(api, "asks-the-model-and-never-listens")) as (service, loud, quiet):
            row_id = await loud.say()
            await comes(api.asked)
            for number in range(5):
                assert await quiet.ask(f"number {number}")
            assert await service._store.outcome(row_id) is None
            began = time.monotonic()
        assert time.monotonic() - began < _STOPS_WITHIN
    assert not _runs(signs)
    assert 0 < api.sent < len(api.data)


async def test_a_model_that_is_slow_for_one_group_is_not_so_for_others(api: Api, signs: Path) -> None:
    async with two_chats(service_with(api, "asks-a-slow-model")) as (service, loud, quiet):
        row_id = await loud.say()
        await comes(api.asked)
        assert await quiet.ask() == "an answer"
        assert await service._store.outcome(row_id) is None
        assert await loud.hear() == "and meanwhile I can talk"
        began = time.monotonic()
    assert time.monotonic() - began < _STOPS_WITHIN
    assert not _runs(signs)


async def test_a_chat_that_takes_nothing_holds_up_neither_its_agent_nor_another_chat(
    start_service: StartService,
) -> None:
    async with start_service(RogueRuntime("answers")) as service, talk(service, "quiet") as quiet:
        jid = terminal_jid("stuck")
        await service.register_group(Group(jid, "stuck", "stuck"))
        taking = asyncio.Event()

        async def never_takes(text: str) -> None:
            taking.set()
            await asyncio.Event().wait()

        with service.terminal.attached(jid, never_takes):
            assert await service.settlement(await service.say(jid, "hello")) is None
            await comes(taking)
            assert await service.settlement(await service.say(jid, "and again")) is None
            assert await quiet.ask() == "an answer"
            began = time.monotonic()
    assert time.monotonic() - began < _STOPS_WITHIN
