"""One TCP connection across the container wall, as `net.*` frames: each side sends only what the other has room for.

    agent -> host    net.open (host, port)                  host -> agent    net.opened, net.refused (status; why)
    both ways        net.data, net.room (how many more bytes may be sent), net.end (of one direction), net.close

The host opens the connection, the runner serves it to the agent as a proxy. Both run this very file.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from pynchy.wire import MAX_BYTES, Frame, FrameWriter, WireError

#: What may be under way in each direction of one connection, in bytes.
WINDOW = 256 * 1024
#: Connections of one agent at once.
MAX_TUNNELS = 64


class TunnelRefused(Exception):
    """The host does not open this connection; `status` is what an HTTP proxy answers then."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class ByteStream(Protocol):
    """The part of asyncio.StreamReader that is read from."""

    async def read(self, n: int = ..., /) -> bytes: ...


class ByteSink(Protocol):
    """The part of asyncio.StreamWriter that is written to."""

    def write(self, data: bytes, /) -> None: ...
    def write_eof(self) -> None: ...
    def can_write_eof(self) -> bool: ...
    async def drain(self) -> None: ...


class Tunnel:
    """One end of a connection. `receive` takes its frames and never waits; the rest is for one task each.

    `read`, `write` and `relay` raise ConnectionError once the connection is closed.
    """

    def __init__(self, stream_id: int | str | None, out: FrameWriter) -> None:
        self._id = stream_id
        self._out = out
        self._answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._incoming: deque[bytes] = deque()
        self._held = 0
        self._owed = 0
        self._room = WINDOW
        self._ended = False
        self._has_said_end = False
        self._closed = False
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()

    # --- frames ---------------------------------------------------------------------------------------------

    def receive(self, frame: Frame) -> None:
        """Take a frame from the other side; WireError where it sends more than there was room for."""
        if self._closed:
            return  # it crossed with our own word that this is over
        match frame.type:
            case "net.data":
                self._held += len(frame.body)
                if self._held > WINDOW or self._ended:
                    raise WireError("more bytes of a connection than there was room for")
                self._incoming.append(frame.body)
                self._readable.set()
            case "net.room":
                more = frame.fields.get("room")
                if type(more) is not int or not 0 < more <= WINDOW - self._room:
                    raise WireError("room on a connection that nobody has taken")
                self._room += more
                self._writable.set()
            case "net.end":
                self._ended = True
                self._readable.set()
            case "net.opened":
                if not self._answer.done():
                    self._answer.set_result(None)
            case "net.refused":
                if not self._answer.done():
                    status = frame.fields.get("status")
                    self._answer.set_exception(TunnelRefused(int(status or 502), frame.body.decode("utf-8", "replace")))
            case "net.close":
                self._set_closed()
            case other:
                raise WireError(f"unknown frame {other[:40]!r}")

    # --- opening --------------------------------------------------------------------------------------------

    async def open(self, host: str, port: int) -> None:
        """Have the host connect; TunnelRefused where it does not."""
        self._say("net.open", host=host, port=port)
        await self._answer

    def opened(self) -> None:
        """Say that the connection is there."""
        self._say("net.opened")

    def refuse(self, status: int, reason: str) -> None:
        """Say that there is none, and why."""
        self._closed = True
        self._out.send_nowait(Frame("net.refused", {"id": self._id, "status": status}, reason.encode()))

    def close(self) -> None:
        """End both directions at once, unless they have ended by themselves; safe to repeat."""
        if self._closed:
            return
        if not (self._has_said_end and self._ended):
            self._say("net.close")  # which would take from the other side what it has not read yet
        self._set_closed()

    def _set_closed(self) -> None:
        self._closed = True
        self._incoming.clear()
        if not self._answer.done():
            self._answer.set_exception(TunnelRefused(502, "the connection was closed"))
        if not self._answer.cancelled():
            self._answer.exception()  # nobody may be waiting for it
        self._readable.set()
        self._writable.set()

    def _say(self, kind: str, **fields: object) -> None:
        self._out.send_nowait(Frame(kind, {"id": self._id, **fields}))

    # --- bytes ----------------------------------------------------------------------------------------------

    async def read(self) -> bytes:
        """The next bytes from the other side, empty at their end."""
        while not self._incoming:
            if self._closed:
                raise ConnectionResetError("the connection was closed")
            if self._ended:
                return b""
            self._readable.clear()
            await self._readable.wait()
        data = self._incoming.popleft()
        self._held -= len(data)
        self._owed += len(data)
        if self._owed >= WINDOW // 2:
            self._say("net.room", room=self._owed)
            self._owed = 0
        return data

    async def write(self, data: bytes) -> None:
        """Send bytes, as the other side has room for them."""
        view = memoryview(data)
        while view:
            while not self._room and not self._closed:
                self._writable.clear()
                await self._writable.wait()
            if self._closed:
                raise ConnectionResetError("the connection was closed")
            piece = view[: min(self._room, MAX_BYTES)]
            self._room -= len(piece)
            await self._out.send(Frame("net.data", {"id": self._id}, bytes(piece)))
            view = view[len(piece) :]

    def write_end(self) -> None:
        """Say that no more bytes come from this side."""
        if not self._closed and not self._has_said_end:
            self._has_said_end = True
            self._say("net.end")

    async def relay(self, reader: ByteStream, writer: ByteSink) -> None:
        """Pass bytes both ways until both directions have ended; ConnectionError where it breaks off."""

        async def outwards() -> None:
            while data := await reader.read(MAX_BYTES):
                await self.write(data)
            self.write_end()

        async def inwards() -> None:
            while data := await self.read():
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()

        tasks = [asyncio.ensure_future(outwards()), asyncio.ensure_future(inwards())]
        try:
            await asyncio.gather(*tasks)
        except OSError as error:
            raise ConnectionResetError(str(error)) from None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
