"""An agent that misbehaves, started in the place of a container: `python rogue.py KIND`.

It reads the wire by hand and writes it as it pleases.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from pynchy.wire import Frame, encode

INPUT = sys.stdin.buffer
OUTPUT = sys.stdout.buffer


def read_frame() -> tuple[dict[str, Any], bytes] | None:
    """The next frame from the host."""
    body = b""
    while line := INPUT.readline():
        head = json.loads(line)
        body += INPUT.read(head.get("bytes", 0))
        if not head.get("more"):
            return head, body
    return None


def send(frame_type: str, body: Any = None, **fields: Any) -> None:
    """A frame to the host."""
    data = b"" if body is None else json.dumps(body).encode()
    OUTPUT.writelines(encode(Frame(frame_type, fields, data)))
    OUTPUT.flush()


def ready() -> None:
    """What an agent says once it is up."""
    send("ready", {"mcp_servers": []}, session="5a1efb2e-eae2-40e6-bfea-50b4ec022edb")


def result(ids: list[int], text: Any = "an answer") -> None:
    """An answer to these messages."""
    send("result", {"ids": ids, "text": text, "session_id": None, "error": None}, id="r")


def ask_to_act(ids: list[int]) -> str:
    """Say that a tool is about to run; returns what the host answers."""
    send("progress", {"ids": ids, "tool": "Bash"}, id=77)
    while (frame := read_frame()) and frame[0]["type"] != "reply":
        pass
    assert frame is not None
    return frame[1].decode()


def main(kind: str) -> None:
    """Be an agent of this kind."""
    if kind == "exits-before-ready":
        sys.exit("could not find its own feet")
    first = read_frame()
    assert first is not None
    ids = first[0]["ids"]
    if kind == "fails-the-first-time":
        sign = Path(os.environ["TMPDIR"]) / "failed"
        if not sign.exists():
            sign.touch()
            sys.exit("not today")
    if kind == "never-ready":
        time.sleep(600)
    ready()
    if kind == "exits-mid-answer":
        sys.exit(3)
    if kind == "exits-after-a-tool":
        ask_to_act(ids)
        sys.exit(3)
    if kind == "repeats-the-reply-to-progress":
        result(ids, ask_to_act(ids))
    if kind == "acts-for-others":
        result(ids, ask_to_act([*ids, ids[0] + 1]))
    if kind == "never-answers-after-a-tool":
        ask_to_act(ids)
        time.sleep(600)
    if kind == "answers-half":
        result(ids[:1])
        time.sleep(600)
    if kind == "answers-two-batches-at-once":
        following = read_frame()
        assert following is not None
        result([*ids, *following[0]["ids"]])
        time.sleep(600)
    if kind == "never-answers":
        time.sleep(600)
    if kind == "writes-garbage":
        OUTPUT.write(b"Traceback (most recent call last):\n" * 10_000)
        OUTPUT.flush()
        time.sleep(600)
    if kind == "writes-an-endless-line":
        for _ in range(100):
            OUTPUT.write(b"x" * 1_000_000)
        OUTPUT.flush()
        time.sleep(600)
    if kind == "answers-for-others":
        result([ids[0] + 1])
        time.sleep(600)
    if kind == "sends-a-wrong-type":
        result(ids, {"not": "text"})
        time.sleep(600)
    if kind == "asks-for-the-moon":
        send("request", {"text": "hi", "jid": "terminal:other"}, id=1, name="send_message")
        send("request", {}, id=2, name="format_disk")
        send("http.request", id=3, method="GET", target="/v1/files", headers=[])
        answers = []
        while len(answers) < 3:
            frame = read_frame()
            assert frame is not None
            if frame[0]["type"] in ("reply", "http.data"):
                answers.append(frame[1].decode())
        result(ids, "\n".join(sorted(answers)))
    if kind == "does-strange-things":
        send("doing", tool="Bash\n\x1b[2J", detail="\u202e\ud800 rm\t -rf\r\n/" + "x" * 50_000)
        result(ids, ask_to_act(ids))
    if kind == "exits-while-doing":
        send("doing", tool="Bash", detail="look for tulips")
        sys.exit(3)
    if kind == "floods-with-doing":
        for number in range(20_000):
            send("doing", tool="Bash", detail=f"thing {number} " + "x" * 1000)
        result(ids, "done")
    if kind == "floods":
        for number in range(20_000):
            send("log", text=f"line {number} " + "x" * 1000)
        result(ids, "done")
    if kind in ("answers", "fails-the-first-time", "names-the-pictures"):
        result(ids)
    if kind == "echoes":
        result(ids, json.loads(first[1])["prompt"])
    if kind == "answers-when-told":
        folder = Path(os.environ["TMPDIR"]) / json.loads(first[1])["group_folder"]
        folder.with_suffix(".started").touch()
        while not folder.with_suffix(".go").exists():
            time.sleep(0.01)
        result(ids)
    while frame := read_frame():
        if frame[0]["type"] == "message":
            said = str(len(frame[0]["images"])) if kind == "names-the-pictures" else frame[1].decode()
            result(frame[0]["ids"], said)
        elif frame[0]["type"] == "close":
            return


if __name__ == "__main__":
    main(sys.argv[1])
