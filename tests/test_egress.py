"""A connection across the wall: what passes, what is refused, what is counted, and what nobody can make the host do."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from internet import PUBLIC, Internet
from support import count_from_noon, own_addresses, until
from wall import Nowhere, wall

from agent_runner.host_link import HostLink
from agent_runner.network_proxy import network_proxy
from pynchy import egress as egress_room
from pynchy.destinations import Destination
from pynchy.egress import Egress
from pynchy.store import Store
from pynchy.tunnel import MAX_TUNNELS, WINDOW, Tunnel, TunnelRefused
from pynchy.types import Group
from pynchy.wire import Frame, FrameWriter, WireError

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class World:
    """A store, an internet, a group, and the host's way out."""

    def __init__(self, store: Store, bytes_a_day: int) -> None:
        self.internet = Internet()
        self.group = Group("x:1", "x", "family")
        self.store = store
        self.egress = Egress(store.destinations, bytes_a_day, self.internet.resolve, self.internet.dial)

    async def connect(self, host: str, port: int, tunnel: Tunnel) -> None:
        """As the host's services do it."""
        await self.egress.serve(self.group, host, port, tunnel)

    async def counted(self, most: int) -> list[Destination]:
        """The destinations, once there are so many connections and refusals."""
        async with asyncio.timeout(10):
            while True:
                rows = list(await self.store.destinations.today())
                if sum(row.connections + row.refusals for row in rows) >= most:
                    return rows
                await asyncio.sleep(0.005)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A world with 64 MiB a day."""
    count_from_noon(monkeypatch)
    async with Store.open(tmp_path / "pynchy.db") as store:
        world = World(store, 64 * 1024**2)
        yield world
        world.egress.close()


@pytest.fixture
async def link(world: World) -> AsyncIterator[HostLink]:
    """The runner's end."""
    async with wall(world) as (link, _):
        yield link


@asynccontextmanager
async def standing(world: World, serve: Serve, port: int = 80) -> AsyncIterator[None]:
    """A server at example.com."""
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        world.internet.stands_at(PUBLIC, port, server)
        yield


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back, and then the end."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


# --- bytes --------------------------------------------------------------------------------------------------


async def test_ten_megabytes_pass_each_way_as_they_were(world: World, link: HostLink) -> None:
    sent = os.urandom(10 * 1024**2)
    digest = hashlib.sha256()
    async with standing(world, echo), link.tunnel() as tunnel:
        await tunnel.open("example.com", 80)

        async def send() -> None:
            await tunnel.write(sent)
            tunnel.write_end()

        sending = asyncio.ensure_future(send())
        while data := await tunnel.read():
            digest.update(data)
        await sending
    assert digest.digest() == hashlib.sha256(sent).digest()
    (row,) = await world.counted(1)
    assert (row.sent, row.received, row.connections) == (len(sent), len(sent), 1)


async def test_who_does_not_read_holds_up_only_himself(world: World, link: HostLink) -> None:
    written = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
                written += 65536

    async with standing(world, pour), standing(world, echo, 81), link.tunnel() as lazy, link.tunnel() as busy:
        await lazy.open("example.com", 80)
        await busy.open("example.com", 81)
        for _ in range(50):
            await busy.write(b"ping")
            assert await busy.read() == b"ping"
        before = -1
        while before != written:  # until the sockets between are full
            before = written
            for _ in range(20):
                await busy.write(b"ping")
                assert await busy.read() == b"ping"
        assert lazy._held <= WINDOW
        left = written + 2 * WINDOW
        while left > 0:
            left -= len(await lazy.read())


async def test_each_direction_ends_by_itself(world: World, link: HostLink) -> None:
    async def after_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = await reader.read()
        writer.write(b"all of " + question)
        writer.close()

    async with standing(world, after_the_end), link.tunnel() as tunnel:
        await tunnel.open("example.com", 80)
        await tunnel.write(b"it")
        tunnel.write_end()
        assert await tunnel.read() == b"all of it"
        assert await tunnel.read() == b""


async def test_a_program_that_goes_away_ends_the_connection_outside(world: World, link: HostLink) -> None:
    gone = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        gone.set()
        writer.close()

    async with standing(world, wait):
        async with link.tunnel() as tunnel:
            await tunnel.open("example.com", 80)
        async with asyncio.timeout(10):
            await gone.wait()


async def test_a_server_that_breaks_off_ends_the_connection_inside(world: World, link: HostLink) -> None:
    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with standing(world, break_off), link.tunnel() as tunnel:
        await tunnel.open("example.com", 80)
        with pytest.raises(ConnectionError):  # noqa: PT012 - an end would be an end of the data
            while await tunnel.read():
                pass
            raise ConnectionResetError


async def test_a_connection_on_which_nothing_moves_is_closed(
    world: World, link: HostLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress_room, "_IDLE_FOR", 0.05)

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with standing(world, wait), link.tunnel() as tunnel:
        await tunnel.open("example.com", 80)
        with pytest.raises(ConnectionError):
            await tunnel.read()


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "port", "status", "words"),
    [
        ("127.0.0.1", 80, 403, "127.0.0.1 is no public address"),
        ("2130706433", 80, 403, "is no public address"),
        ("0x7f000001", 80, 403, "is no public address"),
        ("127.1", 80, 403, "is no public address"),
        ("0", 80, 403, "is no public address"),
        ("[::1]", 80, 403, "is no public address"),
        ("::ffff:127.0.0.1", 80, 403, "is no public address"),
        ("169.254.169.254", 80, 403, "is no public address"),
        ("rebound.example", 80, 403, "is no public address"),
        ("nowhere.example", 80, 502, "the name nowhere.example cannot be resolved"),
        ("deaf.example", 80, 502, "deaf.example:80 cannot be reached: connection refused"),
        ("a b", 80, 400, "is no host name"),
        ("", 80, 400, "is no host name"),
        ("x" * 100_000, 80, 400, "is no host name"),
        ("example.com\r\nHost: evil", 80, 400, "is no host name"),
        ("example.com", 0, 400, "0 is no port"),
        ("example.com", 70000, 400, "70000 is no port"),
        ("example.com", -1, 400, "-1 is no port"),
    ],
)
async def test_what_no_policy_opens_is_refused_with_the_reason(
    host: str, port: int, status: int, words: str, world: World, link: HostLink
) -> None:
    world.internet.addresses |= {"rebound.example": ["192.168.0.1", "::1"], "deaf.example": ["1.1.1.1"]}
    async with link.tunnel() as tunnel:
        with pytest.raises(TunnelRefused, match=words.replace("[", r"\[")) as refused:
            await tunnel.open(host[:30_000], port)
    assert refused.value.status == status
    assert all(address == "1.1.1.1" for address, _ in world.internet.dialled)


async def test_of_a_names_addresses_only_the_public_ones_are_tried(world: World, link: HostLink) -> None:
    world.internet.addresses["mixed.example"] = ["127.0.0.1", "10.0.0.1", PUBLIC]
    async with standing(world, echo), link.tunnel() as tunnel:
        await tunnel.open("mixed.example", 80)
    assert world.internet.dialled == [(PUBLIC, 80)]


async def test_the_machines_own_address_is_refused_even_where_it_is_public(
    world: World, link: HostLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress_room, "forbidden", lambda address: False)
    for address in [*own_addresses(), "127.0.0.1"]:
        async with link.tunnel() as tunnel:
            with pytest.raises(TunnelRefused, match="is no public address"):
                await tunnel.open(address, 80)


async def test_a_policy_that_changes_binds_the_next_connection(world: World, link: HostLink) -> None:
    async with standing(world, echo):
        async with link.tunnel() as tunnel:
            await tunnel.open("example.com", 80)
        world.group = Group("x:1", "x", "family", network="none")
        async with link.tunnel() as tunnel:
            with pytest.raises(TunnelRefused, match="policy allows no connection"):
                await tunnel.open("example.com", 80)


async def test_slow_names_are_given_up_and_hold_up_nobody(
    world: World, link: HostLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress_room, "_RESOLVE_WITHIN", 0.1)
    plain = world.internet.resolve

    async def resolve(host: str, port: int) -> Any:
        if host == "slow.example":
            await asyncio.Event().wait()
        return await plain(host, port)

    world.egress._resolve = resolve
    async with standing(world, echo), link.tunnel() as slow, link.tunnel() as tunnel:
        opening = asyncio.ensure_future(slow.open("slow.example", 80))
        await tunnel.open("example.com", 80)
        with pytest.raises(TunnelRefused, match="was not resolved within"):
            await opening


async def test_the_systems_resolver_is_asked_where_nobody_else_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    egress = Egress(world.store.destinations, 10**6, dial=world.internet.dial)
    world.egress.close()
    world.egress = egress
    async with wall(world) as (link, _):
        for host in ("localhost", "127.0.0.1"):
            async with link.tunnel() as tunnel:
                with pytest.raises(TunnelRefused, match="is no public address"):
                    await tunnel.open(host, 80)
        async with link.tunnel() as tunnel:
            with pytest.raises(TunnelRefused, match=r"the name nowhere\.invalid cannot be resolved"):
                await tunnel.open("nowhere.invalid", 80)
    assert world.internet.dialled == []


async def test_who_gives_up_while_a_connection_is_made_leaves_nothing_behind(world: World) -> None:
    world.egress._resolve = lambda host, port: asyncio.Event().wait()  # type: ignore[assignment, return-value]
    async with wall(world) as (link, wire):

        async def connect() -> None:
            async with link.tunnel() as tunnel:
                await tunnel.open("slow.example", 80)

        opening = asyncio.ensure_future(connect())
        await until(lambda: wire._tunnels)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert link._tunnels == {}


# --- limits -------------------------------------------------------------------------------------------------


async def test_a_day_has_only_so_many_bytes_and_the_next_has_as_many_again(
    world: World, link: HostLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.egress, "_bytes_a_day", 100_000)
    async with standing(world, echo):
        async with link.tunnel() as tunnel:
            await tunnel.open("example.com", 80)
            with pytest.raises(ConnectionError):  # noqa: PT012
                await tunnel.write(b"x" * 200_000)
                while await tunnel.read():
                    pass
                raise ConnectionResetError
        async with link.tunnel() as tunnel:
            with pytest.raises(TunnelRefused, match="has used up what it may send and receive in a day") as refused:
                await tunnel.open("example.com", 80)
        assert refused.value.status == 429
        monkeypatch.setattr(egress_room, "_today", lambda: "2999-01-01")
        async with link.tunnel() as tunnel:
            await tunnel.open("example.com", 80)


async def test_what_was_used_before_a_restart_counts(world: World) -> None:
    await world.store.destinations.note("family", "example.com", 80, 70 * 1024**2, 0)
    await world.egress.begin()
    async with wall(world) as (link, _), link.tunnel() as tunnel:
        with pytest.raises(TunnelRefused, match="used up"):
            await tunnel.open("example.com", 80)


async def test_more_connections_than_there_may_be_wait_inside_and_are_refused_outside(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    monkeypatch.setattr(egress_room, "_BURST", 1000)
    async with standing(world, wait), wall(world) as (link, wire):
        held = [link.tunnel() for _ in range(MAX_TUNNELS)]
        for one in held:
            await (await one.__aenter__()).open("example.com", 80)
        waiting = asyncio.ensure_future(link.tunnel().__aenter__())
        frames: list[Frame] = []
        monkeypatch.setattr(wire.out, "send_nowait", frames.append)
        wire._open_tunnel(Frame("net.open", {"id": "one-more", "host": "example.com", "port": 80}))
        assert frames[0].fields["status"] == 503
        monkeypatch.undo()
        assert not waiting.done()
        await held[0].__aexit__(None, None, None)
        await waiting
        for one in held[1:]:
            await one.__aexit__(None, None, None)


async def test_who_asks_again_and_again_is_slowed_down(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("pynchy.turns.asyncio.sleep", sleep)
    for _ in range(egress_room._BURST + 100):
        await world.egress._turns.wait("family")
    assert 50 < len(slept) <= 101
    assert slept[-1] > 2
    await world.egress._turns.wait("others")
    assert len(slept) <= 101


@pytest.mark.parametrize(
    "frames",
    [
        [Frame("net.data", {"id": 1}, b"x" * 60_000)] * 6,
        [Frame("net.room", {"id": 1, "room": 1})],
        [Frame("net.room", {"id": 1, "room": -5})],
        [Frame("net.room", {"id": 1, "room": "many"})],
        [Frame("net.room", {"id": 1})],
        [Frame("net.end", {"id": 1}), Frame("net.data", {"id": 1}, b"after the end")],
    ],
)
async def test_an_agent_that_does_not_keep_to_its_room_is_ended(frames: list[Frame], world: World) -> None:
    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async with wall(world) as (_, wire):
        opening = Frame("net.open", {"id": 1, "host": "slow.example", "port": 80})
        world.egress._resolve = lambda host, port: asyncio.Event().wait()  # type: ignore[assignment, return-value]
        wire._receive(opening)
        with pytest.raises(WireError):  # noqa: PT012 - which of them breaks it is up to the case
            for frame in frames:
                wire._receive(frame)
        with pytest.raises(WireError, match="a connection without a destination"):
            wire._receive(opening)


@pytest.mark.parametrize("fields", [{}, {"host": 1, "port": 80}, {"host": "x"}, {"host": "x", "port": "80"}])
async def test_an_agent_that_asks_for_no_destination_is_ended(fields: dict[str, Any], world: World) -> None:
    async with wall(world) as (_, wire):
        with pytest.raises(WireError):
            wire._receive(Frame("net.open", {"id": 7, **fields}))


async def test_frames_of_a_connection_that_is_over_are_passed_over(world: World) -> None:
    async with wall(world) as (_, wire):
        for kind in ("net.data", "net.end", "net.close", "net.room"):
            wire._receive(Frame(kind, {"id": 99}, b"late"))


# --- what is kept -------------------------------------------------------------------------------------------


async def test_destinations_are_counted_by_group_and_day(world: World, link: HostLink) -> None:
    async with standing(world, echo):
        for host in ("example.com", "example.com", "127.0.0.1"):
            async with link.tunnel() as tunnel:
                try:
                    await tunnel.open(host, 80)
                    await tunnel.write(b"12345")
                    assert await tunnel.read() == b"12345"
                    tunnel.write_end()
                    assert await tunnel.read() == b""
                except TunnelRefused:
                    pass
    refused = "127.0.0.1 is no public address of the internet, and no policy opens another"
    assert sorted(await world.counted(3), key=lambda row: row.host) == [
        Destination("family", "127.0.0.1", 80, 0, 1, 0, 0, refused),
        Destination("family", "example.com", 80, 2, 0, 10, 10, ""),
    ]
    assert await world.store.destinations.bytes_today() == {"family": 20}
    assert await world.store.destinations.today("others") == []


async def test_an_agent_cannot_fill_the_disk_with_names(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pynchy.destinations._MOST_A_DAY", 5)
    for number in range(20):
        await world.store.destinations.note("family", f"h{number}.example", 443, 1, 1)
    await world.store.destinations.note("family", "h0.example", 443, 1, 1)
    rows = await world.counted(21)
    assert {row.host for row in rows} == {f"h{number}.example" for number in range(5)} | {"(others)"}
    assert next(row for row in rows if row.host == "(others)").connections == 15
    assert next(row for row in rows if row.host == "h0.example").connections == 2


# --- the proxy inside ---------------------------------------------------------------------------------------


async def ask_proxy(link: HostLink, data: bytes, *, end: bool = True) -> bytes:
    """Send bytes to the proxy and return everything that it answers."""
    async with network_proxy(link) as environment:
        port = int(environment["http_proxy"].rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        if end:
            writer.write_eof()
        async with asyncio.timeout(20):
            answer = await reader.read()
        writer.close()
        return answer


async def repeat_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that answers with what it was asked."""
    head = await reader.readuntil(b"\r\n\r\n")
    body = b""
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            body = await reader.readexactly(int(line.partition(b":")[2]))
    if b"chunked" in head.lower():
        body = await reader.readuntil(b"0\r\n\r\n")
    answer = head + body
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
    await writer.drain()
    writer.close()


async def test_a_plain_request_is_repeated_to_its_server_and_names_no_proxy(world: World, link: HostLink) -> None:
    request = (
        b"POST http://example.com/a?b=c HTTP/1.1\r\nHost: example.com\r\nProxy-Connection: keep-alive\r\n"
        b"Proxy-Authorization: Basic c2VjcmV0\r\nX-Own: 1\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n"
        b"Content-Length: 5\r\n\r\nhello"
    )
    async with standing(world, repeat_request):
        answer = await ask_proxy(link, request)
    head, _, asked = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert asked.startswith(b"POST /a?b=c HTTP/1.1\r\n")
    assert asked.endswith(b"hello")
    lowered = asked.lower()
    assert b"x-own: 1" in lowered
    assert not any(word in lowered for word in (b"proxy", b"x-hop", b"keep-alive"))


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        (b"http://example.com", b"/"),
        (b"http://example.com?q=1", b"/?q=1"),
        (b"HTTP://example.com?q=/1", b"/?q=/1"),
        (b"http://example.com/#x", b"/#x"),
    ],
)
async def test_a_target_without_a_path_asks_for_the_root(
    target: bytes, asked: bytes, world: World, link: HostLink
) -> None:
    async with standing(world, repeat_request):
        answer = await ask_proxy(link, b"GET " + target + b" HTTP/1.1\r\nHost: example.com\r\n\r\n")
    assert b"\r\n\r\nGET " + asked + b" HTTP/1.1\r\n" in answer


async def test_requests_follow_each_other_on_one_connection(world: World, link: HostLink) -> None:
    one = b"GET http://example.com/%d HTTP/1.1\r\nHost: example.com\r\n\r\n"
    async with standing(world, repeat_request):
        answer = await ask_proxy(link, one % 1 + one % 2)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.index(b"GET /1 ") < answer.index(b"GET /2 ")


async def test_a_chunked_upload_and_an_expectation_pass(world: World, link: HostLink) -> None:
    request = (
        b"PUT http://example.com/ HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n"
        b"Expect: 100-continue\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    )
    async with standing(world, repeat_request):
        answer = await ask_proxy(link, request)
    assert b"hello" in answer
    assert answer.count(b"HTTP/1.1 200 OK") == 1


async def test_bytes_sent_together_with_connect_are_not_lost(world: World, link: HostLink) -> None:
    async with standing(world, echo, 443):
        answer = await ask_proxy(link, b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\nearly bytes")
    assert answer == b"HTTP/1.1 200 Connection established\r\n\r\nearly bytes"


@pytest.mark.parametrize(
    ("request_line", "answer"),
    [
        (b"GET / HTTP/1.1", b"HTTP/1.1 400 this is a proxy"),
        (b"GET https://example.com/ HTTP/1.1", b"HTTP/1.1 400 this is a proxy"),
        (b"GET ftp://example.com/ HTTP/1.1", b"HTTP/1.1 400 this is a proxy"),
        (b"GET http:// HTTP/1.1", b"HTTP/1.1 400 "),
        (b"GET http://[::1/ HTTP/1.1", b"HTTP/1.1 400 "),
        (b"GET http://example.com:x/ HTTP/1.1", b"HTTP/1.1 400 "),
        (b"CONNECT example.com HTTP/1.1", b"HTTP/1.1 400 "),
        (b"CONNECT example.com:99999 HTTP/1.1", b"HTTP/1.1 400 "),
        (b"CONNECT 127.0.0.1:22 HTTP/1.1", b"HTTP/1.1 403 127.0.0.1 is no public address"),
        (b"CONNECT user@example.com:443 HTTP/1.1", b"HTTP/1.1 502 "),
        (b"complete nonsense", b"HTTP/1.1 400 "),
    ],
)
async def test_what_a_proxy_cannot_do_is_answered_with_the_reason(
    request_line: bytes, answer: bytes, world: World, link: HostLink
) -> None:
    got = await ask_proxy(link, request_line + b"\r\nHost: x\r\n\r\n")
    assert got.startswith(answer)
    assert got.endswith(b"\n")


async def test_heads_that_never_end_are_given_up(world: World, link: HostLink) -> None:
    with contextlib.suppress(ConnectionError):  # it hangs up on what it has not read
        got = await ask_proxy(link, b"GET http://example.com/ HTTP/1.1\r\nX: " + b"y" * 200_000)
        assert got.startswith(b"HTTP/1.1 400")


async def test_calls_beyond_what_the_host_takes_at_once_wait_inside() -> None:
    writer = FrameWriter(Nowhere())
    link = HostLink(writer)
    asked = [asyncio.ensure_future(link.request("request", {"n": number})) for number in range(100)]
    await until(lambda: len(link._replies) == 32)
    for _ in range(100):
        request_id = next(iter(link._replies))
        link.deliver(Frame("reply", {"id": request_id, "ok": True}, b'"yes"'))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert await asyncio.gather(*asked) == ["yes"] * 100
