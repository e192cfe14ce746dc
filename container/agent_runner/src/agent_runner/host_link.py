"""The runner's end of the wire: frames in, frames out, and who waits for which answer."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pynchy.tunnel import MAX_TUNNELS, Tunnel
from pynchy.wire import MAX_CONCURRENT_CALLS, MAX_LINE, Frame, FrameWriter, json_frame, read_frames

_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38


class HostRefused(Exception):
    """The host answered a request with an error, which this is the text of."""


def claim_pipes() -> tuple[int, int]:
    """Take stdin and stdout for the wire alone; returns the two descriptors.

    Runs before anything else does: whatever is started later finds /dev/null and stderr in their place, and
    no other process of the container may look into this one's descriptors, nor gain rights by what it starts
    (prctl(2), PR_SET_DUMPABLE and PR_SET_NO_NEW_PRIVS).
    """
    read_fd, write_fd = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # not every engine can be asked for it
    return read_fd, write_fd


class HostLink:
    """Frames to and from the host. `incoming` holds the frames that nobody in here waits for."""

    def __init__(self, writer: FrameWriter) -> None:
        self._writer = writer
        self._ids = itertools.count(1)
        self._replies: dict[int, asyncio.Future[Frame]] = {}
        self._streams: dict[int, asyncio.Queue[Frame]] = {}
        self._tunnels: dict[int, Tunnel] = {}
        # The host ends an agent that asks for more at once: whoever comes later waits in here.
        self._calls = asyncio.Semaphore(MAX_CONCURRENT_CALLS)
        self._connections = asyncio.Semaphore(MAX_TUNNELS)
        self._file = asyncio.Lock()  # bodies under way may not take more than a few of them together

    def send(self, frame: Frame) -> None:
        """Queue a frame for the host without waiting."""
        self._writer.send_nowait(frame)

    async def send_large(self, frame: Frame) -> None:
        """Queue a frame once earlier ones of its stream have left."""
        await self._writer.send(frame)

    async def request(self, frame_type: str, body: Any, **fields: Any) -> Any:
        """Ask the host and return its answer; HostRefused where it says no."""
        return await self._ask(json_frame(frame_type, body, **fields))

    async def hand_over(self, data: bytes, **fields: Any) -> Any:
        """Give the host a file and return its answer; HostRefused where it says no."""
        async with self._file:
            return await self._ask(Frame("file", fields, data))

    async def _ask(self, frame: Frame) -> Any:
        async with self._calls:
            request_id = next(self._ids)
            future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
            self._replies[request_id] = future
            try:
                self.send(Frame(frame.type, {**frame.fields, "id": request_id}, frame.body))
                reply = await future
            finally:
                del self._replies[request_id]
        answer = reply.json_body()
        if not reply.fields.get("ok"):
            raise HostRefused(str(answer))
        return answer

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[tuple[int, asyncio.Queue[Frame]]]:
        """A fresh id, and the queue that receives every frame the host sends with it."""
        async with self._calls:
            stream_id = next(self._ids)
            queue: asyncio.Queue[Frame] = asyncio.Queue()
            self._streams[stream_id] = queue
            try:
                yield stream_id, queue
            finally:
                del self._streams[stream_id]

    @asynccontextmanager
    async def tunnel(self) -> AsyncIterator[Tunnel]:
        """A connection that is to be opened by the host; it is closed at the end."""
        async with self._connections:
            stream_id = next(self._ids)
            tunnel = self._tunnels[stream_id] = Tunnel(stream_id, self._writer)
            try:
                yield tunnel
            finally:
                tunnel.close()
                del self._tunnels[stream_id]

    def deliver(self, frame: Frame) -> bool:
        """Hand a frame to whoever waits for it; False where nobody does."""
        stream_id = frame.fields.get("id")
        if frame.type == "reply":
            future = self._replies.get(stream_id) if isinstance(stream_id, int) else None
            if future and not future.done():
                future.set_result(frame)
            return True
        if frame.type.startswith("http."):
            if isinstance(stream_id, int) and stream_id in self._streams:
                self._streams[stream_id].put_nowait(frame)
            return True
        if frame.type.startswith("net."):
            if isinstance(stream_id, int) and (tunnel := self._tunnels.get(stream_id)):
                tunnel.receive(frame)
            return True
        return False


@asynccontextmanager
async def open_link(read_fd: int, write_fd: int) -> AsyncIterator[tuple[HostLink, AsyncIterator[Frame]]]:
    """Connect to the pipes. On leaving, everything queued has been written, or the host is gone."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=2 * MAX_LINE)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_fd, "rb", 0))
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(write_fd, "wb", 0))
    transport.set_write_buffer_limits(0)  # so that drain() means: the host's pipe has it
    frames = FrameWriter(asyncio.StreamWriter(transport, protocol, None, loop))
    writing = loop.create_task(frames.run())
    try:
        yield HostLink(frames), read_frames(reader)
    finally:
        frames.close()
        await asyncio.wait([writing], timeout=5)
        transport.close()
