"""The frames that cross the container wall, on the container's own stdin and stdout.

A frame is one line of JSON, `{"type": ...}`, at most 64 KiB long, and where it says `"bytes": N` then N raw
bytes, at most 64 KiB. A larger body travels as several frames of the same `type` and `id`, all but the last
with `"more": true`; frames of other streams may come between them, so that a long answer never holds up a
short one. Both sides run this very file. Standard library only.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

PROTOCOL_VERSION = 2
MAX_LINE = 64 * 1024
MAX_BYTES = 64 * 1024
#: One body, put together again. The largest legitimate one is a Messages API request (32 MB).
MAX_BODY = 48 * 1024 * 1024
#: One file that an agent sends to its chat, in bytes: 45 MB, which fit into one body.
MAX_FILE = 45 * 1000 * 1000
#: Bodies under way at once, and what they may hold together.
MAX_OPEN_STREAMS = 256
MAX_OPEN_BYTES = 128 * 1024 * 1024
#: What an agent may have asked of its host and not been answered yet, of each kind of frame.
MAX_CONCURRENT_CALLS = 32
_MAX_ID = 200
#: Objects and lists in one JSON body: each takes three bytes at least, and some eighty in memory.
_MAX_PARTS = 1_000_000
#: What one stream, and all together, may have queued before `FrameWriter.send` waits.
_QUEUE_BYTES = 1024 * 1024
_ALL_QUEUES_BYTES = 8 * 1024 * 1024


class WireError(Exception):
    """The other side broke the protocol; there is no way back into step with it."""


class StreamEnded(WireError):
    """The other side ended in the middle of something it was saying."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message across the wall: its type, its JSON fields, and a body of raw bytes.

    `fields` may hold an `id`, which ties the frames of one request or stream together.
    """

    type: str
    fields: dict[str, Any] = field(default_factory=dict)
    body: bytes = b""

    @property
    def id(self) -> int | str | None:
        """The stream this frame belongs to, None where it stands alone."""
        return self.fields.get("id")

    def json_body(self) -> Any:
        """The body parsed as JSON; WireError where it is none, or would take far more memory parsed."""
        if self.body.count(b"{") + self.body.count(b"[") > _MAX_PARTS:
            raise WireError(f"the body of a {self.type!r} frame has more parts than may cross")
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise WireError(f"the body of a {self.type!r} frame is not JSON: {error}") from None


def json_frame(frame_type: str, body: Any, **fields: Any) -> Frame:
    """A frame whose body is a JSON document, for what may be longer than a line."""
    return Frame(frame_type, fields, _json_bytes(body))


def _json_bytes(value: Any, separators: tuple[str, str] | None = None) -> bytes:
    # A text that was cut in the middle of an emoji holds half a surrogate pair; `json.loads` takes it back.
    return json.dumps(value, ensure_ascii=False, separators=separators).encode("utf-8", "surrogatepass")


def encode(frame: Frame) -> list[bytes]:
    """The frame as it travels: one piece, or several where the body is longer than 64 KiB."""
    pieces = []
    for start in range(0, max(1, len(frame.body)), MAX_BYTES):
        part = frame.body[start : start + MAX_BYTES]
        head: dict[str, Any] = {"type": frame.type, **frame.fields}
        if part:
            head["bytes"] = len(part)
        if start + MAX_BYTES < len(frame.body):
            head["more"] = True
        line = _json_bytes(head, (",", ":")) + b"\n"
        if len(line) > MAX_LINE:
            raise ValueError(f"the fields of a {frame.type!r} frame take {len(line)} bytes, more than a line may")
        pieces.append(line + part)
    return pieces


class ByteReader(Protocol):
    """The part of asyncio.StreamReader that is used here."""

    async def readuntil(self, separator: bytes = ..., /) -> bytes: ...
    async def readexactly(self, n: int, /) -> bytes: ...


async def read_frames(reader: ByteReader) -> AsyncIterator[Frame]:
    """Yield whole frames until the stream ends; WireError where it is not made of frames.

    The reader's own line limit must be at least 64 KiB. Memory is bounded whatever the other side sends.
    """
    open_bodies: dict[tuple[str, Any], bytearray] = {}
    held = 0
    while True:
        head = await _read_head(reader)
        if head is None:
            if open_bodies:
                raise StreamEnded("the stream ended between the pieces of a frame")
            return
        frame_type, size, more = head.pop("type"), head.pop("bytes", 0), head.pop("more", False)
        part = await _read_body(reader, size)
        key = (frame_type, head.get("id"))
        if more or key in open_bodies:
            body = open_bodies.setdefault(key, bytearray())
            body += part
            held += len(part)
            if len(body) > MAX_BODY or held > MAX_OPEN_BYTES or len(open_bodies) > MAX_OPEN_STREAMS:
                raise WireError(f"a {frame_type!r} body is larger than may cross")
            if more:
                continue
            del open_bodies[key]
            held -= len(body)
            part = bytes(body)
        yield Frame(frame_type, head, part)


async def _read_head(reader: ByteReader) -> dict[str, Any] | None:
    try:
        line = await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        if error.partial.strip():
            raise StreamEnded(f"the stream ended inside a frame: {_excerpt(error.partial)}") from None
        return None
    except asyncio.LimitOverrunError:
        raise WireError("a line longer than 64 KiB, which no frame has") from None
    if len(line) > MAX_LINE:
        raise WireError("a line longer than 64 KiB, which no frame has")
    try:
        head = json.loads(line)
    except (ValueError, RecursionError):
        raise WireError(f"not a frame: {_excerpt(line)}") from None
    if not isinstance(head, dict) or not isinstance(head.get("type"), str):
        raise WireError(f"not a frame: {_excerpt(line)}")
    frame_id = head.get("id")
    if not isinstance(frame_id, int | str | None) or len(str(frame_id)) > _MAX_ID:
        raise WireError(f"a frame id is a number or a string of at most {_MAX_ID} characters: {_excerpt(line)}")
    size = head.get("bytes", 0)
    if type(size) is not int or not 0 <= size <= MAX_BYTES or not isinstance(head.get("more", False), bool):
        raise WireError(f"a frame with an impossible size: {_excerpt(line)}")
    return head


async def _read_body(reader: ByteReader, size: int) -> bytes:
    try:
        return await reader.readexactly(size) if size else b""
    except asyncio.IncompleteReadError:
        raise StreamEnded("the stream ended inside a frame's body") from None


def _excerpt(data: bytes) -> str:
    return repr(data[:120].decode("utf-8", "replace"))


class ByteWriter(Protocol):
    """The part of asyncio.StreamWriter that is used here."""

    def write(self, data: bytes, /) -> None: ...
    async def drain(self) -> None: ...


class FrameWriter:
    """Writes frames to one pipe, taking a piece from each waiting stream in turn.

    `send` waits while its own stream has more than 1 MiB queued, or all together more than 8 (backpressure for
    whoever produces it); `send_nowait` never waits and is for the short frames a reader task answers with. `run`
    does the writing and ends when `close` was called and all is written, or when the pipe breaks.
    """

    def __init__(self, writer: ByteWriter) -> None:
        self._writer = writer
        self._streams: OrderedDict[Any, deque[bytes]] = OrderedDict()
        self._sizes: dict[Any, int] = {}
        self._size = 0
        self._wake = asyncio.Event()
        self._room: asyncio.Condition = asyncio.Condition()
        self._closing = False
        self.broken = False

    def send_nowait(self, frame: Frame) -> None:
        """Queue a frame; dropped silently where the pipe is already broken or closed."""
        if self.broken or self._closing:
            return
        stream = frame.id
        pieces = encode(frame)  # before anything is changed: it may raise
        queue = self._streams.setdefault(stream, deque())
        for piece in pieces:
            queue.append(piece)
            self._sizes[stream] = self._sizes.get(stream, 0) + len(piece)
            self._size += len(piece)
        self._wake.set()

    async def send(self, frame: Frame) -> None:
        """Queue a frame once its stream has room; ConnectionError where the pipe is broken or closed."""
        async with self._room:
            await self._room.wait_for(lambda: self.broken or self._has_room(frame.id))
        if self.broken or self._closing:
            raise ConnectionError("the other side of the wall is gone")
        self.send_nowait(frame)

    def _has_room(self, stream: Any) -> bool:
        return self._sizes.get(stream, 0) <= _QUEUE_BYTES and self._size <= _ALL_QUEUES_BYTES

    def close(self) -> None:
        """Let `run` end once what is queued has been written."""
        self._closing = True
        self._wake.set()

    async def run(self, on_end: Callable[[], None] | None = None) -> None:
        """Write until closed. Never raises for a broken pipe: `broken` says so."""
        try:
            while True:
                if not self._streams:
                    if self._closing:
                        return
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                stream, queue = self._streams.popitem(last=False)
                piece = queue.popleft()
                self._writer.write(piece)
                await self._writer.drain()
                await self._written(stream, queue, len(piece))
        except (ConnectionError, OSError, RuntimeError):
            pass  # the reader notices the end as well and says what it means
        finally:
            self.broken = True
            self._streams.clear()
            async with self._room:
                self._room.notify_all()
            if on_end:
                on_end()

    async def _written(self, stream: Any, queue: deque[bytes], size: int) -> None:
        left = self._sizes[stream] - size
        self._size -= size
        if queue:
            # Back to the end of the line; pieces that were queued meanwhile belong behind these.
            late = self._streams.pop(stream, None)
            if late:
                queue.extend(late)
            self._streams[stream] = queue
        if left:
            self._sizes[stream] = left
        else:
            del self._sizes[stream]
        if left <= _QUEUE_BYTES < left + size or self._size <= _ALL_QUEUES_BYTES < self._size + size:
            async with self._room:
                self._room.notify_all()
