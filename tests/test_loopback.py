"""The HTTP server on loopback, spoken to through real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import h11
import httpx
import pytest

from pynchy import loopback
from pynchy.loopback import ClientGone, Exchange, LoopbackServer, Request

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


async def echo(request: Request, exchange: Exchange) -> None:
    await exchange.reply(200, f"{request.method} {request.target} {len(request.body)}".encode(), "text/plain")


class Client:
    """One connection, with h11 on this side too."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._connection = h11.Connection(h11.CLIENT)

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, server: LoopbackServer) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    async def send(self, method: str, target: str, body: bytes = b"") -> None:
        events = [
            h11.Request(method=method, target=target, headers=[("host", "x"), ("content-length", str(len(body)))]),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ]
        self.writer.write(b"".join(self._connection.send(event) or b"" for event in events))
        await self.writer.drain()

    async def receive(self) -> tuple[int, bytes]:
        status, body = 0, b""
        while True:
            event = self._connection.next_event()
            if event is h11.NEED_DATA:
                self._connection.receive_data(await self.reader.read(65536))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                self._connection.start_next_cycle()
                return status, body
            else:
                raise AssertionError(f"no answer but {event}")


async def test_two_requests_are_answered_on_one_connection() -> None:
    async with LoopbackServer(echo) as server, Client.of(server) as client:
        await client.send("GET", "/first")
        assert await client.receive() == (200, b"GET /first 0")
        await client.send("POST", "/second?with=query", b"body")
        assert await client.receive() == (200, b"POST /second?with=query 4")


async def test_a_request_arrives_whole_with_its_headers_in_lower_case() -> None:
    seen: list[Request] = []

    async def keep(request: Request, exchange: Exchange) -> None:
        seen.append(request)
        await exchange.reply(204, b"")

    async def body() -> AsyncIterator[bytes]:
        for number in range(100):
            yield bytes([number]) * 1000

    async with LoopbackServer(keep) as server, httpx.AsyncClient(trust_env=False) as client:
        answer = await client.put(server.base_url + "/a%20b?c=%2F", content=body(), headers={"X-Mixed": "Case"})
    assert answer.status_code == 204
    (request,) = seen
    assert (request.method, request.target) == ("PUT", "/a%20b?c=%2F")
    assert request.header("x-mixed") == "Case"
    assert request.header("absent") is None
    assert request.body == b"".join(bytes([number]) * 1000 for number in range(100))


async def test_an_answer_without_a_length_arrives_part_by_part() -> None:
    go_on = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        yield b"first"
        yield b""  # is no end
        await go_on.wait()
        yield b"second"

    async def handler(request: Request, exchange: Exchange) -> None:
        await exchange.start(200, [("content-type", "text/plain")])
        await exchange.stream(parts())
        await exchange.end()

    async with (
        LoopbackServer(handler) as server,
        httpx.AsyncClient(trust_env=False) as client,
        client.stream("GET", server.base_url) as answer,
    ):
        assert answer.headers["transfer-encoding"] == "chunked"
        received = []
        async for chunk in answer.aiter_raw():
            received.append(chunk)
            go_on.set()
    assert received == [b"first", b"second"]


@pytest.mark.parametrize("started", [False, True], ids=["before the answer", "in the middle of the answer"])
async def test_a_client_that_leaves_has_its_handler_cancelled(started: bool) -> None:
    running, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(request: Request, exchange: Exchange) -> None:
        if started:
            await exchange.start(200)
            await exchange.send(b"begun")
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with LoopbackServer(handler) as server, Client.of(server) as client:
        await client.send("GET", "/")
        await running.wait()
        client.writer.close()
        await cancelled.wait()


async def test_a_handler_that_goes_on_sending_learns_that_the_client_is_gone() -> None:
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def handler(request: Request, exchange: Exchange) -> None:
        await exchange.start(200)
        try:
            while True:
                await exchange.send(b"x" * 65536)
        except (ClientGone, asyncio.CancelledError) as end:
            ended.set_result(type(end).__name__)
            raise

    async with LoopbackServer(handler) as server, Client.of(server) as client:
        await client.send("GET", "/")
        await client.reader.read(100)
        client.writer.transport.abort()
        assert await ended in ("ClientGone", "CancelledError")


@pytest.mark.parametrize("started", [False, True], ids=["before the answer", "in the middle of the answer"])
async def test_a_handler_that_returns_without_end_cuts_the_connection(started: bool) -> None:
    async def handler(request: Request, exchange: Exchange) -> None:
        if started:
            await exchange.start(200)
            await exchange.send(b"the beginning")

    async with LoopbackServer(handler) as server, httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(server.base_url)


async def test_a_body_longer_than_allowed_is_refused_and_the_handler_never_sees_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loopback, "MAX_REQUEST_BYTES", 1000)
    async with LoopbackServer(echo) as server, httpx.AsyncClient(trust_env=False) as client:
        assert (await client.post(server.base_url, content=b"x" * 1000)).text == "POST / 1000"
        for size in (1001, 20_000_000):  # the second is far more than the sockets hold
            refused = await client.post(server.base_url, content=b"x" * size)
            assert refused.status_code == 413
            assert refused.json() == {"error": "request too large"}
        assert (await client.post(server.base_url, content=b"x")).status_code == 200, "others are served"


@pytest.mark.parametrize(
    "garbage",
    [
        b"hello there\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n",
        b"GET /" + b"x" * 200_000,
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf",
        b"",
    ],
    ids=["words", "tls", "no host", "length", "chunk", "long", "half", "nothing"],
)
async def test_a_client_that_speaks_no_http_is_hung_up_on_and_harms_nobody(garbage: bytes) -> None:
    async with LoopbackServer(echo) as server:
        async with Client.of(server) as client:
            client.writer.write(garbage)
            client.writer.write_eof()
            with contextlib.suppress(ConnectionResetError):  # where it had not read everything
                assert await client.reader.read() == b""
        async with Client.of(server) as client:
            await client.send("GET", "/after")
            assert await client.receive() == (200, b"GET /after 0")


async def test_requests_sent_ahead_are_answered_in_order() -> None:
    running: list[str] = []
    go_on = asyncio.Event()

    async def slow(request: Request, exchange: Exchange) -> None:
        running.append(request.target)
        await go_on.wait()
        await echo(request, exchange)

    async with LoopbackServer(slow) as server, Client.of(server) as client:
        head = b"POST /%d HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc"
        client.writer.write(head % 1 + head % 2)  # in one piece
        while not running:
            await asyncio.sleep(0)
        # While the first is being answered, one that the sockets alone cannot hold: the server has to read it.
        long = b"x" * 32_000_000
        client.writer.transport.set_write_buffer_limits(0)
        client.writer.write(b"POST /3 HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(long) + long)
        await client.writer.drain()
        assert running == ["/1"]
        go_on.set()
        answers = b""
        while answers.count(b"POST") < 3:
            answers += await client.reader.read(65536)
    assert running == ["/1", "/2", "/3"]
    assert answers.index(b"POST /1 3") < answers.index(b"POST /2 3") < answers.index(b"POST /3 32000000")


async def test_a_client_that_asks_first_is_told_to_go_on() -> None:
    async with LoopbackServer(echo) as server, Client.of(server) as client:
        client.writer.write(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n")
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        client.writer.write(b"body")
        assert (await client.reader.readuntil(b"POST / 4")).startswith(b"HTTP/1.1 200")


async def test_connection_close_is_honoured() -> None:
    async with LoopbackServer(echo) as server, Client.of(server) as client:
        client.writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert (await client.reader.read()).endswith(b"GET / 0")


@pytest.mark.parametrize("begun", [True, False], ids=["as its task begins", "before it has one"])
async def test_closing_hangs_up_on_a_client_that_has_just_come(begun: bool) -> None:
    come: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    class Closing(LoopbackServer):
        """Says that somebody comes before it does anything about it."""

        def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            come.put_nowait((reader, writer))
            if begun:
                super()._accept(reader, writer)

    async with Closing(echo) as server:
        client = socket.create_connection(("127.0.0.1", server.port))
        client.setblocking(False)
        ends = await come.get()
    if not begun:
        LoopbackServer._accept(server, *ends)
    with client, contextlib.suppress(ConnectionResetError):
        assert await asyncio.get_running_loop().sock_recv(client, 1) == b""


async def test_closing_does_not_wait_for_clients() -> None:
    running, flooding, cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handler(request: Request, exchange: Exchange) -> None:
        if request.target == "/":
            await echo(request, exchange)
        elif request.target == "/wait":
            running.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
        else:
            await exchange.start(200)
            flooding.set()
            await exchange.send(bytes(64 * 1024 * 1024))  # more than the sockets hold, and nobody reads

    async with contextlib.AsyncExitStack() as clients:
        async with LoopbackServer(handler) as server:
            idle, half, waiting, unread = [await clients.enter_async_context(Client.of(server)) for _ in range(4)]
            await idle.send("GET", "/")
            await idle.receive()
            half.writer.write(b"POST / HTTP/1.1\r\nhost: x\r\n")
            await waiting.send("GET", "/wait")
            await running.wait()
            await unread.send("GET", "/flood")
            await flooding.wait()
        assert cancelled.is_set()
        assert await idle.reader.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", server.port)
