"""A small HTTP/1.1 server on 127.0.0.1, used on both sides of the container wall.

Inside the container it takes the agent's model traffic, outside it is what the scripted model listens on.
The protocol itself is h11's; here are only the sockets, one task a connection, and what happens when the
client goes away before it has its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from dataclasses import dataclass

import h11

#: The Messages API takes 32 MB at most; a larger request is answered 413.
MAX_REQUEST_BYTES = 40 * 1024 * 1024
_READ_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its body read whole. `target` is path and query; header names are lower case."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """The first value of a header, or None; `name` in lower case."""
        return next((value for key, value in self.headers if key == name), None)


class ClientGone(ConnectionError):
    """The client closed its connection; there is nobody to answer."""


class Exchange:
    """The answer to one request: `start` once, `send` as often as there is something, then `end`.

    A handler that returns without `end` leaves the connection cut, which is how a failing upstream looks.
    """

    def __init__(self, connection: h11.Connection, writer: asyncio.StreamWriter) -> None:
        self._connection = connection
        self._writer = writer
        self.started = False
        self.ended = False

    async def start(self, status: int, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Send status and headers. Without a content-length the body is chunked."""
        self.started = True
        await self._write(h11.Response(status_code=status, headers=list(headers)))

    async def send(self, data: bytes) -> None:
        """Send a part of the body; returns once the socket has taken it."""
        if data:
            await self._write(h11.Data(data=data))

    async def end(self) -> None:
        """Finish the answer."""
        self.ended = True
        await self._write(h11.EndOfMessage())

    async def reply(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        """A whole answer at once."""
        await self.start(status, [("content-type", content_type), ("content-length", str(len(body)))])
        await self.send(body)
        await self.end()

    async def stream(self, parts: AsyncIterable[bytes]) -> None:
        """Send every part as it comes."""
        async for part in parts:
            await self.send(part)

    async def _write(self, event: h11.Event) -> None:
        data = self._connection.send(event)
        if data is None:
            return
        try:
            self._writer.write(data)
            await self._writer.drain()
        except (ConnectionError, OSError) as error:
            raise ClientGone(str(error)) from error


Handler = Callable[[Request, Exchange], Awaitable[None]]


class LoopbackServer:
    """Serves `handler` on 127.0.0.1 at a port the system chooses, until closed.

    A client that disconnects has its handler cancelled, so that whatever it was waiting for can be cancelled
    too. Use as an async context manager.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._closing = False
        self.port = 0

    @property
    def base_url(self) -> str:
        """`http://127.0.0.1:PORT`, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> LoopbackServer:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._closing = True
        self._server.close()
        serving = dict(self._tasks)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        for writer in serving.values():
            writer.transport.abort()  # a task that was cancelled before it began has not
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closing:  # it came just before
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks[task] = writer
        task.add_done_callback(self._tasks.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        try:
            while await self._one_exchange(connection, reader, writer):
                connection.start_next_cycle()
        except (ClientGone, ConnectionError, h11.RemoteProtocolError, h11.LocalProtocolError):
            pass  # a client that left or speaks no HTTP: closing is the answer
        except asyncio.CancelledError:
            writer.transport.abort()  # there is no waiting for a client that has stopped reading
            raise
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, OSError):
                await writer.wait_closed()

    async def _one_exchange(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Read one request and answer it; True when the connection can carry another."""
        head: h11.Request | None = None
        body = bytearray()
        size = 0
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    writer.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
                connection.receive_data(await reader.read(_READ_BYTES))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                size += len(event.data)
                if size <= MAX_REQUEST_BYTES:
                    body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:  # ConnectionClosed, or PAUSED by an upgrade that nobody offered
                return False
        assert head is not None
        exchange = Exchange(connection, writer)
        if size > MAX_REQUEST_BYTES:
            # Only now that all was read: closing on unread data is a reset, and the client sees no answer.
            await exchange.reply(413, b'{"error":"request too large"}')
            return connection.our_state is h11.DONE
        request = Request(
            head.method.decode("ascii"),
            head.target.decode("latin-1"),
            tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in head.headers),
            bytes(body),
        )
        await self._run_handler(request, exchange, connection, reader)
        return exchange.ended and connection.our_state is h11.DONE and connection.their_state is h11.DONE

    async def _run_handler(
        self, request: Request, exchange: Exchange, connection: h11.Connection, reader: asyncio.StreamReader
    ) -> None:
        loop = asyncio.get_running_loop()
        handling = loop.create_task(_as_coroutine(self._handler(request, exchange)))
        watching = loop.create_task(reader.read(_READ_BYTES))
        try:
            while not handling.done():
                await asyncio.wait({handling, watching}, return_when=asyncio.FIRST_COMPLETED)
                if watching.done() and not handling.done():
                    early = watching.result()
                    if not early:
                        raise ClientGone("the client closed its connection")
                    connection.receive_data(early)  # the next request, sent ahead
                    watching = loop.create_task(reader.read(_READ_BYTES))
            await handling
        finally:
            handling.cancel()
            if watching.done() and not watching.cancelled() and watching.exception() is None:
                connection.receive_data(watching.result())
            watching.cancel()
            await asyncio.gather(handling, watching, return_exceptions=True)


async def _as_coroutine(awaitable: Awaitable[None]) -> None:
    await awaitable
