"""The frames across the wall: what is sent arrives, short goes before long, and garbage is refused."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pynchy import wire
from pynchy.wire import (
    MAX_BODY,
    MAX_BYTES,
    MAX_LINE,
    Frame,
    FrameWriter,
    StreamEnded,
    WireError,
    encode,
    json_frame,
    read_frames,
)

pytestmark = pytest.mark.anyio

_MIB = 1024 * 1024
_RESERVED = {"type", "bytes", "more", "id"}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
ids = st.none() | st.integers(-5, 5) | st.sampled_from(["input", "a", "1"])
bodies = st.binary(max_size=300) | st.builds(
    lambda size, seed: (seed * (size // len(seed) + 1))[:size],
    st.sampled_from([MAX_BYTES - 1, MAX_BYTES, MAX_BYTES + 1, 2 * MAX_BYTES, 3 * MAX_BYTES + 7]),
    st.binary(min_size=1, max_size=40),
)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    fields = draw(st.dictionaries(st.text().filter(lambda key: key not in _RESERVED), json_values, max_size=3))
    stream = draw(ids)
    return Frame(draw(st.text()), fields if stream is None else {**fields, "id": stream}, draw(bodies))


def a_reader() -> asyncio.StreamReader:
    """A reader as both sides of the wall make theirs."""
    return asyncio.StreamReader(limit=2 * MAX_LINE)


async def read_all(data: bytes, cuts: Iterable[int] = ()) -> list[Frame]:
    """What a reader makes of `data` when it arrives in pieces that end at `cuts`."""
    reader = a_reader()

    async def feed() -> None:
        start = 0
        for cut in [*sorted(cuts), len(data)]:
            reader.feed_data(data[start:cut])
            start = cut
            await asyncio.sleep(0)  # the reader sees this piece by itself
        reader.feed_eof()

    feeding = asyncio.create_task(feed())
    try:
        return [frame async for frame in read_frames(reader)]
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)


async def until_all_wait() -> None:
    """Let every task go on until nothing but this one can."""
    for _ in range(50):
        await asyncio.sleep(0)


class Gate:
    """A pipe that takes as many pieces as it was allowed to, and keeps them."""

    def __init__(self, allowed: int = 0) -> None:
        self.taken = bytearray()
        self._allowed = asyncio.Semaphore(allowed)

    def allow(self, pieces: int) -> None:
        for _ in range(pieces):
            self._allowed.release()

    def write(self, data: bytes) -> None:
        self.taken += data

    async def drain(self) -> None:
        await self._allowed.acquire()


@asynccontextmanager
async def writing(gate: Gate) -> AsyncIterator[tuple[FrameWriter, asyncio.Task[None]]]:
    """A frame writer at work on this pipe."""
    writer = FrameWriter(gate)
    task = asyncio.create_task(writer.run())
    try:
        yield writer, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# --- there and back -----------------------------------------------------------------------------------------


@given(st.lists(frames(), max_size=5), st.lists(st.integers(0, 2**20), max_size=30))
@settings(max_examples=150)
async def test_frames_arrive_as_they_were_wherever_the_stream_is_cut(sent: list[Frame], cuts: list[int]) -> None:
    stream = b"".join(piece for frame in sent for piece in encode(frame))
    assert await read_all(stream, [cut % (len(stream) + 1) for cut in cuts]) == sent


@given(frames())
@settings(max_examples=40)
async def test_a_stream_that_arrives_byte_by_byte_is_read(frame: Frame) -> None:
    small = Frame(frame.type, frame.fields, frame.body[:200])
    stream = b"".join(encode(small))
    assert await read_all(stream, range(len(stream))) == [small]


@given(st.lists(frames(), max_size=12))
@settings(max_examples=60)
async def test_each_stream_arrives_in_order_however_the_streams_are_interleaved(sent: list[Frame]) -> None:
    gate = Gate(allowed=1000)
    async with writing(gate) as (writer, task):
        for frame in sent:
            writer.send_nowait(frame)
        writer.close()
        await task
    assert by_stream(await read_all(bytes(gate.taken))) == by_stream(sent)


def by_stream(arrived: list[Frame]) -> dict[object, list[Frame]]:
    streams: dict[object, list[Frame]] = defaultdict(list)
    for frame in arrived:
        streams[frame.id].append(frame)
    return streams


async def test_a_long_body_is_split_into_pieces_of_64_kib_and_joined_again() -> None:
    body = os.urandom(5 * MAX_BYTES + 17)
    pieces = encode(Frame("http.data", {"id": 7}, body))
    heads = [json.loads(piece.partition(b"\n")[0]) for piece in pieces]
    assert [head["bytes"] for head in heads] == [MAX_BYTES] * 5 + [17]
    assert [head.get("more", False) for head in heads] == [True] * 5 + [False]
    assert await read_all(b"".join(pieces)) == [Frame("http.data", {"id": 7}, body)]


@given(json_values | st.text(st.characters()))
async def test_a_json_body_survives_even_with_half_a_surrogate_pair_in_it(value: object) -> None:
    (frame,) = await read_all(b"".join(encode(json_frame("result", value, id=1, note=value))))
    assert frame.json_body() == value
    assert frame.fields["note"] == value


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 200_000], ids=["empty", "cut", "binary", "deep"])
async def test_a_body_that_is_not_json_is_a_wire_error(body: bytes) -> None:
    with pytest.raises(WireError, match="the body of a 'result' frame is not JSON"):
        Frame("result", {}, body).json_body()


# --- what a writer promises ---------------------------------------------------------------------------------


async def test_a_short_frame_overtakes_a_long_one_of_another_stream() -> None:
    long, short = Frame("reply", {"id": 1}, b"x" * (5 * _MIB)), Frame("http.data", {"id": 2}, b"quick")
    gate = Gate()
    async with writing(gate) as (writer, task):
        writer.send_nowait(long)
        gate.allow(3)
        await until_all_wait()
        writer.send_nowait(short)
        before = len(gate.taken)
        gate.allow(10**4)
        writer.close()
        await task
    assert await read_all(bytes(gate.taken)) == [short, long]
    assert gate.taken.index(b"quick") - before < 2 * MAX_BYTES, "it waited for more than the piece under way"


async def test_three_long_streams_take_turns() -> None:
    gate = Gate(allowed=10**4)
    sent = [Frame("http.data", {"id": number}, bytes([number]) * (4 * MAX_BYTES)) for number in (1, 2, 3)]
    async with writing(gate) as (writer, task):
        for frame in sent:
            writer.send_nowait(frame)
        writer.close()
        await task
    order, rest = [], bytes(gate.taken)
    while rest:
        line, _, rest = rest.partition(b"\n")
        head = json.loads(line)
        order.append(head["id"])
        rest = rest[head["bytes"] :]
    assert order == [1, 2, 3] * 4


async def test_send_waits_while_its_stream_has_more_than_a_mebibyte_queued_and_wakes_at_it() -> None:
    gate, first = Gate(), Frame("http.data", {"id": 1}, b"x" * (2 * _MIB))
    queued = sum(map(len, encode(first)))
    async with writing(gate) as (writer, _):
        await writer.send(first)
        second = asyncio.create_task(writer.send(Frame("http.data", {"id": 1}, b"second")))
        await until_all_wait()
        while queued > _MIB:
            assert not second.done(), f"sent although {queued} bytes were queued"
            offered = len(gate.taken)  # the pipe takes it with the next permission
            gate.allow(1)
            await until_all_wait()
            queued = sum(map(len, encode(first))) - offered
        assert second.done(), f"still waiting although only {queued} bytes were queued"


async def test_a_full_stream_holds_up_no_other() -> None:
    async with writing(Gate()) as (writer, _):
        await writer.send(Frame("http.data", {"id": 1}, b"x" * (2 * _MIB)))
        waiting = asyncio.create_task(writer.send(Frame("http.data", {"id": 1}, b"more")))
        async with asyncio.timeout(10):
            await writer.send(Frame("reply", {"id": 2}, b"short"))
        assert not waiting.done()
        waiting.cancel()


async def test_send_nowait_never_waits_and_keeps_the_order_of_its_stream() -> None:
    gate = Gate()
    sent = [Frame("http.data", {"id": 1, "number": number}, b"x" * _MIB) for number in range(4)]
    async with writing(gate) as (writer, task):
        for frame in sent:
            writer.send_nowait(frame)
            gate.allow(1)
            await until_all_wait()
        gate.allow(10**4)
        writer.close()
        await task
    assert await read_all(bytes(gate.taken)) == sent


async def test_close_writes_all_that_is_queued_and_drops_what_comes_after() -> None:
    gate = Gate()
    sent = [Frame("http.data", {"id": number % 5}, os.urandom(100_000)) for number in range(20)]
    async with writing(gate) as (writer, task):
        for frame in sent:
            writer.send_nowait(frame)
        writer.close()
        writer.send_nowait(Frame("late"))
        await until_all_wait()
        assert not task.done()
        gate.allow(10**4)
        await task
        with pytest.raises(ConnectionError):
            await writer.send(Frame("later"))
    assert by_stream(await read_all(bytes(gate.taken))) == by_stream(sent)


async def test_a_writer_that_has_nothing_to_do_ends_when_it_is_closed() -> None:
    async with writing(Gate()) as (writer, task):
        await until_all_wait()
        writer.close()
        async with asyncio.timeout(10):
            await task


async def test_fields_longer_than_a_line_are_refused_and_do_the_writer_no_harm() -> None:
    gate = Gate(allowed=100)
    async with writing(gate) as (writer, task):
        await until_all_wait()
        with pytest.raises(ValueError, match="more than a line may"):
            writer.send_nowait(Frame("http.request", {"id": 1, "target": "x" * MAX_LINE}))
        writer.send_nowait(Frame("log", {"id": 1}))
        writer.close()
        await task
    assert await read_all(bytes(gate.taken)) == [Frame("log", {"id": 1})]


async def test_a_broken_pipe_ends_the_writer_and_everyone_who_waits_for_it() -> None:
    ours, theirs = socket.socketpair()
    _, stream = await asyncio.open_connection(sock=ours)
    writer, ended = FrameWriter(stream), []
    task = asyncio.create_task(writer.run(lambda: ended.append(True)))
    await writer.send(Frame("http.data", {"id": 1}, b"x" * (8 * _MIB)))
    waiting = [asyncio.create_task(writer.send(Frame("http.data", {"id": 1}, b"more"))) for _ in range(3)]
    await until_all_wait()
    assert not writer.broken
    assert not any(one.done() for one in waiting)
    theirs.close()
    async with asyncio.timeout(10):
        await task  # does not raise
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [ConnectionError] * 3
    assert writer.broken
    assert ended == [True]
    with pytest.raises(ConnectionError):
        await writer.send(Frame("http.data", {"id": 2}))
    writer.send_nowait(Frame("dropped"))
    stream.close()


async def test_cancelling_the_writer_frees_who_waits_for_it() -> None:
    async with writing(Gate()) as (writer, task):
        await writer.send(Frame("http.data", {"id": 1}, b"x" * (2 * _MIB)))
        waiting = asyncio.create_task(writer.send(Frame("http.data", {"id": 1}, b"more")))
        await until_all_wait()
        task.cancel()
        async with asyncio.timeout(10):
            with pytest.raises(ConnectionError):
                await waiting


# --- what a reader refuses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"hello\n",
        b"{}\n",
        b"[]\n",
        b"null\n",
        b'"type"\n',
        b'{"type": 1}\n',
        b'{"type": null}\n',
        b'{"type": "x"\n',
        b"\xff\xfe\xfd\n",
        b'{"type": "\xff"}\n',
        b'{"type": "x", "id": 1.5}\n',
        b'{"type": "x", "id": []}\n',
        b'{"type": "x", "id": {}}\n',
        b'{"type": "x", "id": ' + b"9" * 5000 + b"}\n",
        b'{"type": ' * 6000 + b"\n",
        b"[" * 60_000 + b"\n",
        b'{"type": "x", "a": ' + b"[" * 30_000 + b"]" * 30_000 + b"}\n",
    ],
    ids=lambda line: line[:30].decode("latin-1"),
)
async def test_a_line_that_is_no_frame_is_refused(line: bytes) -> None:
    with pytest.raises(WireError):
        await read_all(b'{"type":"fine"}\n' + line + b'{"type":"fine"}\n')


@pytest.mark.parametrize("size", ["-1", "65537", "1" + "0" * 30, "true", '"1"', "1.0", "1e3", "null", "[]", "NaN"])
async def test_an_impossible_size_is_refused(size: str) -> None:
    with pytest.raises(WireError, match="impossible size"):
        await read_all(f'{{"type":"x","bytes":{size}}}\n'.encode() + b"x" * 70_000)


@pytest.mark.parametrize("more", ["1", '"yes"', "null", "[]"])
async def test_more_is_true_or_false(more: str) -> None:
    with pytest.raises(WireError):
        await read_all(f'{{"type":"x","more":{more}}}\n'.encode())


@pytest.mark.parametrize("kept", [1, 5, 14])
async def test_a_stream_that_ends_inside_a_head_is_an_error(kept: int) -> None:
    with pytest.raises(WireError, match="ended inside a frame"):
        await read_all(b'{"type":"fine"}\n' + b'{"type":"cut"}\n'[:kept])


async def test_a_stream_that_ends_inside_a_body_is_an_error() -> None:
    with pytest.raises(WireError, match="ended inside a frame's body"):
        await read_all(b"".join(encode(Frame("x", {}, b"0123456789")))[:-1])


async def test_a_body_whose_last_piece_never_came_is_not_given_out() -> None:
    pieces = encode(Frame("http.data", {"id": 1}, b"x" * (3 * MAX_BYTES)))
    reader = a_reader()
    reader.feed_data(b'{"type":"fine"}\n' + b"".join(pieces[:2]))
    reader.feed_eof()
    frames = read_frames(reader)
    assert await anext(frames) == Frame("fine")
    with pytest.raises(StreamEnded, match="between the pieces"):
        await anext(frames)


async def test_a_line_a_little_longer_than_64_kib_is_refused_though_the_reader_could_hold_it() -> None:
    line = b'{"type":"x","pad":"' + b"p" * MAX_LINE + b'"}\n'
    with pytest.raises(WireError, match="longer than 64 KiB"):
        await read_all(line)


async def test_a_line_that_never_ends_is_refused_before_it_takes_memory() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    reader, stream = await asyncio.open_connection(sock=ours, limit=2 * MAX_LINE)
    taken = 0

    async def endless() -> None:
        nonlocal taken
        for _ in range(100 * _MIB // MAX_BYTES):
            await asyncio.get_running_loop().sock_sendall(theirs, b"x" * MAX_BYTES)
            taken += MAX_BYTES

    sending = asyncio.create_task(endless())
    async with asyncio.timeout(20):
        with pytest.raises(WireError, match="longer than 64 KiB"):
            await anext(read_frames(reader))
    assert taken < 4 * _MIB, f"{taken} of 104857600 bytes were let in"
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    theirs.close()
    stream.close()


async def test_a_body_larger_than_may_cross_is_refused_when_it_gets_there() -> None:
    piece = encode(Frame("x", {"id": 1}, b"x" * (2 * MAX_BYTES)))[0]
    fitting = MAX_BODY // MAX_BYTES
    reader = a_reader()
    reader.feed_data(piece * fitting)
    reading = asyncio.ensure_future(anext(read_frames(reader)))
    await until_all_wait()
    assert not reading.done(), "a body of the largest size is allowed"
    reader.feed_data(piece)
    with pytest.raises(WireError, match="larger than may cross"):
        await reading


async def test_the_largest_body_that_may_cross_does() -> None:
    frame = Frame("http.request", {"id": 1}, bytes(MAX_BODY))
    assert await read_all(b"".join(encode(frame))) == [frame]


async def test_bodies_under_way_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_OPEN_BYTES", 10 * MAX_BYTES)
    starts = [encode(Frame("x", {"id": number}, b"x" * (2 * MAX_BYTES))) for number in range(11)]
    whole = b"".join(first + last for first, last in starts)
    assert len(await read_all(whole)) == 11, "one after the other they may cross"
    with pytest.raises(WireError, match="larger than may cross"):
        await read_all(b"".join(first for first, _ in starts))


async def test_streams_under_way_are_bounded_in_number_even_if_they_are_empty() -> None:
    starts = [b'{"type":"x","id":%d,"more":true}\n' % number for number in range(wire.MAX_OPEN_STREAMS + 1)]
    with pytest.raises(StreamEnded):
        await read_all(b"".join(starts[:-1]))
    with pytest.raises(WireError, match="larger than may cross"):
        await read_all(b"".join(starts))


heads = st.builds(
    lambda fields: json.dumps(fields).encode() + b"\n",
    st.fixed_dictionaries(
        {"type": st.text(max_size=3) | json_values},
        optional={
            "id": ids | json_values,
            "bytes": st.integers(-2, 40) | json_values,
            "more": st.booleans() | json_values,
        },
    ),
)


@given(st.lists(st.binary(max_size=200) | heads | st.just(b"\n") | st.just(b"{"), max_size=12))
@settings(max_examples=500)
async def test_arbitrary_bytes_are_frames_or_a_wire_error_and_nothing_else(parts: list[bytes]) -> None:
    try:
        received = await read_all(b"".join(parts))
    except WireError:
        return
    # What was taken for frames can be written and read again.
    assert await read_all(b"".join(piece for frame in received for piece in encode(frame))) == received
