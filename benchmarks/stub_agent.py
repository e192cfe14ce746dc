"""The least that an agent can be, in a container's place: `python -IS stub_agent.py SECONDS`.

It resumes its conversation as a real one does, takes SECONDS for each answer, and answers with the moment
(`time.monotonic_ns`, one clock for all processes) at which it had what it needs to work: its prompt, and at the
start its conversation. Imports next to nothing, so that what is measured is the host.
"""

import json
import sys
import time

INPUT = sys.stdin.buffer
OUTPUT = sys.stdout.buffer


def read_frame() -> tuple[dict[str, object], bytes] | None:
    """The next frame from the host, put together from its pieces."""
    body = b""
    while line := INPUT.readline():
        head = json.loads(line)
        body += INPUT.read(head.get("bytes", 0))
        if not head.get("more"):
            return head, body
    return None


def send(frame_type: str, body: object, **fields: object) -> None:
    """A frame to the host."""
    data = json.dumps(body).encode()
    OUTPUT.write(json.dumps({"type": frame_type, **fields, "bytes": len(data)}).encode() + b"\n" + data)
    OUTPUT.flush()


def load_conversation(session: str) -> None:
    """Have the host send the transcript, to its end."""
    after = 0
    while after is not None:
        send("session.load", {"session": session, "subpath": None, "after": after}, id=1)
        reply = read_frame()
        assert reply is not None
        after = json.loads(reply[1])["next"]


def main(seconds: float) -> None:
    """Answer until closed."""
    session = None
    while frame := read_frame():
        head, body = frame
        if head["type"] == "close":
            return
        if head["type"] == "input":
            session = json.loads(body)["session_id"]
            if session:
                load_conversation(session)
        elif head["type"] != "message":
            continue
        received = time.monotonic_ns()
        if head["type"] == "input":
            send("ready", {"mcp_servers": []}, session=session)
        time.sleep(seconds)
        send("result", {"ids": head["ids"], "text": str(received), "session_id": session, "error": None}, id="result")


if __name__ == "__main__":
    main(float(sys.argv[1]))
