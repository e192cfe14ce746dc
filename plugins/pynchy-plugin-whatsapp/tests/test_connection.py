"""The connection: how it begins, how it ends, and what its worker may see and leave."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest
from channel_bench import CHAT, Bench, connected, run, until
from whatsapp_protos import events
from whatsapp_side import WhatsAppSide

from pynchy.plugin import NewMessage, NotConnected
from pynchy_plugin_whatsapp.channel import WhatsAppTrouble


def test_without_a_session_it_says_what_to_run(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path, linked=False) as side:
            bench = Bench(side)
            with pytest.raises(WhatsAppTrouble, match="pynchy whatsapp login"):
                await bench.channel.connect()

    run(test)


def test_a_session_that_another_process_uses_is_left_alone(tmp_path: Path) -> None:
    async def test() -> None:
        async with connected(tmp_path) as bench:
            second = Bench(bench.side)
            with pytest.raises(WhatsAppTrouble, match="another process"):
                await second.channel.connect()
            assert bench.channel.is_connected()

    run(test)


def test_where_whatsapp_cannot_be_reached_it_says_so(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            await side.vanish()
            bench = Bench(side)
            with pytest.raises(WhatsAppTrouble, match="WhatsApp cannot be reached: dial tcp"):
                await bench.channel.connect()
            assert not bench.channel.is_connected()

    run(test)


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (events.LoggedOut(OnConnect=False, Reason=events.LOGGED_OUT), "pynchy whatsapp login"),
        (events.StreamReplaced(), "another program"),
        (events.TemporaryBan(Code=events.TemporaryBan.BLOCKED_BY_USERS, Expire=3600), "for 60 minutes"),
        (events.ClientOutdated(), "no longer takes this version"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_ends_the_connection_is_said_in_a_sentence(tmp_path: Path, event: Any, sentence: str) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            bench = Bench(side)
            await bench.channel.connect()
            side.happen(event, logged_out=isinstance(event, events.LoggedOut))
            await until(lambda: not bench.channel.is_connected(), "it still says that it is connected")
            with pytest.raises(NotConnected, match=sentence):
                await bench.channel.send_message(CHAT, "no")
            await bench.channel.disconnect()
            await until(lambda: not side.is_there, "its connection has not ended")
            side.greet = False
            connecting = asyncio.create_task(bench.channel.connect())
            await until(lambda: side.is_there or connecting.done(), "it does not connect")
            side.happen(event)
            with pytest.raises(WhatsAppTrouble, match=sentence):
                await connecting

    run(test)


def test_during_a_ban_nothing_is_tried(tmp_path: Path) -> None:
    async def test() -> None:
        async with connected(tmp_path) as bench:
            bench.side.happen(events.TemporaryBan(Code=events.TemporaryBan.BROADCAST_LIST, Expire=7200))
            await until(lambda: not bench.channel.is_connected(), "it still says that it is connected")
            await bench.channel.disconnect()
            with pytest.raises(WhatsAppTrouble, match="120 minutes"):
                await bench.channel.connect()
            assert bench.side.connections == 1

    run(test)


@pytest.mark.parametrize(
    "event",
    [
        events.Disconnected(status=True),
        events.KeepAliveTimeout(ErrorCount=1, LastSuccess=0),
        events.StreamError(Code="515"),
        events.ConnectFailure(Reason=events.SERVICE_UNAVAILABLE, Message="later"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_connection_that_is_lost_and_comes_back_is_told_truly(tmp_path: Path, event: Any) -> None:
    async def test() -> None:
        async with connected(tmp_path) as bench:
            bench.side.happen(event)
            await until(lambda: not bench.channel.is_connected(), "it still says that it is connected")
            with pytest.raises(NotConnected):
                await bench.channel.send_message(CHAT, "no")
            bench.side.happen(events.Connected(status=True))
            await until(bench.channel.is_connected, "it does not see that it is connected again")
            await bench.channel.send_message(CHAT, "yes")

    run(test)


def test_what_is_written_while_the_connection_is_cut_comes_once_the_library_has_connected_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with connected(tmp_path) as bench:
            await bench.side.write("before")
            bench.side.open_to_all.clear()
            bench.side.drop()
            await bench.side.write("meanwhile")
            await until(lambda: not bench.channel.is_connected(), "it still says that it is connected")
            bench.side.open_to_all.set()
            await until(bench.channel.is_connected, "it does not see that it is connected again")
            await until(  # the first may come again, under its id
                lambda: list({one.id: one.content for one in bench.came}.values()) == ["before", "meanwhile"],
                "a message is lost",
            )
            assert bench.side.connections == 2

    run(test)


def test_the_worker_sees_no_credential_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret")

    async def test() -> None:
        async with connected(tmp_path) as bench:
            assert bench.channel._link
            assert bench.channel._link._process
            environment = Path(f"/proc/{bench.channel._link._process.pid}/environ")
            if environment.exists():
                assert b"secret" not in environment.read_bytes()

    run(test)


def test_what_it_keeps_is_readable_by_the_user_alone(tmp_path: Path) -> None:
    async def test() -> None:
        async with connected(tmp_path) as bench:
            modes: dict[str, int] = {}

            async def look(message: NewMessage) -> None:  # while its file is there
                for path in bench.side.data.rglob("*"):
                    with contextlib.suppress(FileNotFoundError):  # a journal of the database's
                        modes[path.name] = path.stat().st_mode

            bench.storing = look
            bench.side.voice(b"OggS")
            await until(lambda: bench.came, "the voice note has not come")
            del modes["session.db"]
            assert [name for name in modes if name.endswith(".media")]
            assert not [name for name, mode in modes.items() if mode & 0o077]

    run(test)
