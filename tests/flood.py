"""An agent that sends more than anybody asked for, or does not read, in the place of a container.

Started as `python flood.py KIND`. What it tells the test goes to its chat, and what the test tells it is a file that
appears in TMPDIR.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rogue import OUTPUT, read_frame, ready, result, send

from pynchy.wire import MAX_BYTES, MAX_LINE, Frame, FrameWriter, encode, json_frame, read_frames

MIB = 1024 * 1024
#: What an agent that floods sends at least, if it may go on for so long.
FLOOD = 50 * MIB
#: Each way, of an agent that sends and receives at once.
BOTH_WAYS = 20 * MIB
SESSION = "5a1efb2e-eae2-40e6-bfea-50b4ec022edb"
#: The transcript of an agent that stores one: so many entries, each so long.
ENTRIES = 40
ENTRY = MIB
#: The page of a transcript that an agent asks for and never takes, and how many of them it asks for, how often.
PAGE = 2 * MIB
ROUND = 8
ROUNDS = 12
#: Transcripts that take few bytes and much of everything else: many entries, and one with much in it.
THINGS = {
    "a-million-entries": lambda: b"[" + b"{}," * 999_999 + b"{}]",
    "an-entry-of-millions": lambda: b'[{"a":[' + b"[]," * 14_000_000 + b"[]]}]",
}


def say(text: str) -> None:
    """Send a text to the chat."""
    send("request", {"text": text}, id="say", name="send_message")


def told(what: str) -> bool:
    """Whether the test has told us."""
    return (Path(os.environ["TMPDIR"]) / what).exists()


def upload() -> bytes:
    """What is sent to the model: every part of it differs from every other, so that none can take its place."""
    return b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(BOTH_WAYS // 32))


def pieces(kind: str) -> Iterator[bytes]:
    """What a flood is made of."""
    if kind == "logs":
        yield from itertools.repeat(b"".join(encode(Frame("log", {"text": "x" * 60_000}))))
    if kind == "small-logs":
        yield from itertools.repeat(b'{"type":"log","text":"x"}\n' * 1000)
    if kind == "small-cancellations":
        yield from itertools.repeat(b'{"type":"http.cancel","id":1}\n' * 1000)
    if kind == "transcripts":
        for number in itertools.count():
            yield append([{"uuid": str(number), "text": "x" * (MIB // 2)}])
    if kind == "small-transcripts":
        yield from itertools.repeat(append([{}]) * 100)


def append(entries: list[dict[str, Any]]) -> bytes:
    """The frames that add to our transcript."""
    return b"".join(encode(json_frame("session.append", entries, session=SESSION)))


def flood(kind: str, ids: list[int]) -> None:
    """Send much, and go on until the test says stop; the answer is how much it was."""
    say("it begins")
    sent = 0
    least = 0 if kind.startswith("small-") else FLOOD
    for piece in pieces(kind):
        sent += len(piece)
        OUTPUT.write(piece)
        if sent >= least and told("stop"):
            break
    result(ids, str(sent))


def store_a_transcript(ids: list[int]) -> None:
    """Say after each part how much was taken, in a file, then answer."""
    taken = Path(os.environ["TMPDIR"]) / "taken"
    for number in range(ENTRIES):
        OUTPUT.write(append([{"uuid": str(number), "number": number, "text": "x" * ENTRY}]))
        OUTPUT.flush()
        taken.write_text(str((number + 1) * ENTRY))
    send("result", {"ids": ids, "text": "stored", "session_id": SESSION, "error": None})


def ask_and_never_listen() -> None:
    """Ask for page after page of a transcript, and read none."""
    OUTPUT.write(append([{"text": "x" * PAGE}]))
    say("it is stored")
    for number in range(ROUNDS):
        while not told(f"ask-{number}"):
            time.sleep(0.01)
        for call in range(number * ROUND, (number + 1) * ROUND):
            send("session.load", {"session": SESSION, "after": 0}, id=call)
    time.sleep(600)


def ask_the_model(target: str) -> None:
    """Send a request for the model."""
    send("http.request", id=1, method="POST", target=target, headers=[])


def leave_a_child() -> None:
    """Start something that has our pipes too."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    (Path(os.environ["TMPDIR"]) / "child").write_text(str(child.pid))
    say("I have a child")


async def send_and_receive(ids: list[int]) -> None:
    """Both at once, as fast as it goes, with a word to the chat for each MiB received; the answer is how that went."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=2 * MAX_LINE)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sys.stdout)
    transport.set_write_buffer_limits(0)  # so that a frame waits in the writer, where a short one can pass
    pipe = Pipe(asyncio.StreamWriter(transport, protocol, None, loop))
    out = FrameWriter(pipe)
    writing = loop.create_task(out.run())
    talking = Talking(out, pipe)
    out.send_nowait(Frame("http.request", _to_model("down", 1)))
    async for frame in read_frames(reader):
        if frame.type == "http.failed":
            raise SystemExit(frame.body.decode())
        if frame.type == "close":
            break
        if talking.hears(frame):
            text = json.dumps({"down": talking.down.hexdigest(), "up": talking.up.decode(), "ahead": talking.ahead})
            body = {"ids": ids, "text": text, "session_id": None, "error": None}
            out.send_nowait(json_frame("result", body))
    out.close()
    await writing


def _to_model(what: str, stream: int) -> dict[str, Any]:
    return {"id": stream, "method": "POST", "target": f"/v1/messages?{what}", "headers": []}


class Pipe:
    """The one to the host, and how many pieces of an upload have gone through it: so far, and before each word."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.uploaded = 0
        self.before: dict[Any, int] = {}

    def write(self, data: bytes, /) -> None:
        head = json.loads(data.partition(b"\n")[0])
        if head["type"] == "http.request":
            self.uploaded += 1
        elif head["type"] == "request":
            self.before[head["id"]] = self.uploaded
        self._writer.write(data)

    async def drain(self) -> None:
        await self._writer.drain()


class Talking:
    """One request whose answer is long, one that is long itself, and words in between."""

    def __init__(self, out: FrameWriter, pipe: Pipe) -> None:
        self.down = hashlib.sha256()
        self.up = b""
        #: How many pieces of the upload went ahead of each word that has its reply, while it waited for its turn.
        self.ahead: list[int] = []
        self._out = out
        self._pipe = pipe
        self._received = 0
        self._said: dict[Any, int] = {}
        self._ended: set[Any] = set()
        data = upload()
        self._parts = [data[start : start + MAX_BYTES] for start in range(0, len(data), MAX_BYTES)]

    def hears(self, frame: Frame) -> bool:
        """Take a frame; True once everything has been answered."""
        if frame.type == "reply":
            assert frame.fields["ok"], frame.body
            self.ahead.append(self._pipe.before[frame.id] - self._said[frame.id])
            if len(self.ahead) == 3:  # the last piece: so far, both directions were in use
                self._out.send_nowait(Frame("http.request", _to_model("up", 2), self._parts[-1]))
        if frame.type == "http.end":
            self._ended.add(frame.id)
        if frame.type == "http.data" and frame.id == 2:
            self.up += frame.body
        if frame.type == "http.data" and frame.id == 1:
            if not self._received:
                for part in self._parts[:-1]:
                    self._out.send_nowait(Frame("http.request", {**_to_model("up", 2), "more": True}, part))
            before = self._received // MIB
            self._received += len(frame.body)
            self.down.update(frame.body)
            if self._received // MIB > before:
                self._say()
        return self._ended == {1, 2} and len(self.ahead) == len(self._said)

    def _say(self) -> None:
        name = f"word-{len(self._said)}"
        self._said[name] = self._pipe.uploaded
        text = json.dumps({"number": len(self._said)})
        self._out.send_nowait(json_frame("request", {"text": text}, id=name, name="send_message"))


def main(kind: str) -> None:
    """Be an agent of this kind."""
    first = read_frame()
    assert first is not None
    ids = first[0]["ids"]
    (Path(os.environ["TMPDIR"]) / "pid").write_text(str(os.getpid()))
    ready()
    if kind.startswith("floods-with-"):
        flood(kind.removeprefix("floods-with-"), ids)
    if kind == "stores-a-transcript":
        store_a_transcript(ids)
    if kind == "asks-and-never-listens":
        ask_and_never_listen()
    if kind == "asks-the-model-and-never-listens":
        ask_the_model("/v1/messages?down")
        time.sleep(600)
    if kind == "asks-a-slow-model":
        ask_the_model("/v1/messages?slow")
        say("and meanwhile I can talk")
    if kind.startswith("sends-"):
        transcript = THINGS[kind.removeprefix("sends-")]()
        say("it begins")
        OUTPUT.write(b"".join(encode(Frame("session.append", {"session": SESSION}, transcript))))
        result(ids)
    if kind == "leaves-a-child":
        leave_a_child()
        time.sleep(600)
    if kind == "chatters-between-messages":
        result(ids, "before the chatter")
        for _ in range(FLOOD // MIB):
            OUTPUT.write(b"Loading the world ...\n" * (MIB // 22))
    if kind == "talks-both-ways":
        asyncio.run(send_and_receive(ids))
    while frame := read_frame():
        if frame[0]["type"] == "close":
            return


if __name__ == "__main__":
    main(sys.argv[1])
