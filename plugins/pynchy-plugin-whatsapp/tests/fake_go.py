"""The worker, with the functions of the Go library replaced: `python fake_go.py SOCKET FOLDER MODE [NUMBER]`.

Everything else is real: neonize's client, its ctypes callbacks, the worker. As in Go, events wait in a queue of a
hundred, the far side is told that a message has arrived as soon as it is in there, and one thread, the one that called
`Neonize`, hands them to Python.
"""

import base64
import contextlib
import ctypes
import itertools
import json
import os
import queue
import socket
import sqlite3
import sys
import threading
import time
from pathlib import Path
from typing import Any

import neonize.client
from neonize.proto import Neonize_pb2 as events

from pynchy_plugin_whatsapp import session, worker

_DEVICE = "CREATE TABLE IF NOT EXISTS whatsmeow_device (jid TEXT PRIMARY KEY, lid TEXT)"


class FakeGo:
    """Stands for `neonize._binder.gocode`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._queue: queue.Queue[tuple[int, bytes, int]] = queue.Queue(100)
        self._ending = threading.Event()
        self._sock: socket.socket | None = None
        self._writing = threading.Lock()
        self._answers: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._numbers = itertools.count(1)
        self._early = True
        self._closed = False

    def Neonize(self, db: bytes, uuid: bytes, *rest: Any) -> bytes:
        _, _, _, _, qr, login, event, log, subscribed, size, *_ = rest
        wanted = {0, *bytes(subscribed[:size])}
        _from_a_foreign_thread(log)
        try:
            lines, hello = self._dial()
        except OSError as error:
            return f"dial tcp: {error}".encode()
        self._early = hello["acknowledge"] == "queued"
        threading.Thread(target=self._hear, args=(lines,), daemon=True).start()
        if not self._linked(db) and not self._pair(db, uuid, hello, qr, login):
            time.sleep(3600)  # as Go does: it waits for an id that never comes
        me = base64.b64decode(hello["me"])
        event(uuid, me, len(me), 0)
        self._tell({"do": "ready"})
        while not self._ending.is_set():
            try:
                code, raw, number = self._queue.get(timeout=0.02)
            except queue.Empty:
                continue
            time.sleep(hello["pace"])
            if code in wanted:
                buffer = ctypes.create_string_buffer(raw, len(raw))
                event(uuid, ctypes.addressof(buffer), len(raw), code)
            if number and not self._early:
                self._tell({"do": "ack", "number": number})
        return b""

    def _dial(self) -> tuple[Any, dict[str, Any]]:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self._path)
        self._sock = sock
        lines = sock.makefile("rb")
        return lines, json.loads(lines.readline())

    def _linked(self, db: bytes) -> bool:
        with sqlite3.connect(db.decode()) as device:
            device.execute(_DEVICE)
            return device.execute("SELECT 1 FROM whatsmeow_device").fetchone() is not None

    def _pair(self, db: bytes, uuid: bytes, hello: dict[str, Any], qr: Any, login: Any) -> bool:
        for code in hello["qr"]:
            qr(ctypes.create_string_buffer(uuid), ctypes.create_string_buffer(code.encode()))
            if self._ask({"do": "scan", "code": code})["scanned"]:
                with sqlite3.connect(db.decode()) as device:
                    device.execute("INSERT INTO whatsmeow_device (jid) VALUES (?)", (hello["jid"],))
                login(ctypes.create_string_buffer(uuid), ctypes.create_string_buffer(b"success"))
                return True
        login(ctypes.create_string_buffer(uuid), ctypes.create_string_buffer(b"timeout"))
        return False

    def _hear(self, lines: Any) -> None:
        with contextlib.suppress(OSError):
            for line in lines:
                frame = json.loads(line)
                if "answer" in frame:
                    self._answers[frame["answer"]].put(frame)
                    continue
                if frame.get("logged_out"):
                    with sqlite3.connect(session.NAME) as device:
                        device.execute("DELETE FROM whatsmeow_device")
                number = frame.get("number", 0)
                self._queue.put((frame["code"], base64.b64decode(frame["event"]), number))
                if number and self._early:
                    self._tell({"do": "ack", "number": number})
        lost = "websocket disconnected before info query returned"
        for answer in list(self._answers.values()):
            answer.put({"error": lost, "said": lost})
        self._queue.put((12, events.Disconnected(status=True).SerializeToString(), 0))
        while not self._closed:  # it connects again by itself
            time.sleep(0.2)
            try:
                again, _ = self._dial()
            except OSError:
                continue
            self._tell({"do": "ready"})
            self._hear(again)
            return

    def _tell(self, frame: dict[str, Any]) -> None:
        with self._writing:
            try:
                assert self._sock
                self._sock.sendall(json.dumps(frame).encode() + b"\n")
            except OSError:
                if number := frame.get("ask"):
                    self._answers[number].put({"error": "websocket not connected", "said": "websocket not connected"})

    def _ask(self, frame: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        answer = self._answers[number] = queue.Queue()
        self._tell({**frame, "ask": number})
        try:
            return answer.get()
        finally:
            del self._answers[number]

    def _ask_for(self, what: Any, function: str, *arguments: bytes) -> bytes:
        asked = [base64.b64encode(one).decode() for one in arguments]
        answer = self._ask({"do": function, "arguments": asked})
        if answer.get("die"):
            os._exit(7)  # what a fault in Go comes to
        if error := answer.get("error"):
            return what(Error=error).SerializePartialToString()
        return base64.b64decode(answer["value"])

    # --- what Python calls ----------------------------------------------------------------------------------

    def Disconnect(self, uuid: bytes) -> None:
        self._closed = True
        if self._sock:
            self._sock.shutdown(socket.SHUT_RDWR)

    def Stop(self, uuid: bytes) -> bytes:
        self._ending.set()
        return b""

    def SendMessage(self, uuid: bytes, jid: bytes, _: int, message: bytes, size: int) -> bytes:
        return self._ask_for(events.SendMessageReturnFunction, "send", jid, message)

    def Upload(self, uuid: bytes, data: bytes, size: int, kind: int) -> bytes:
        return self._ask_for(events.UploadReturnFunction, "upload", data, str(kind).encode())

    def DownloadAny(self, uuid: bytes, message: bytes, size: int) -> bytes:
        return self._ask_for(events.DownloadReturnFunction, "download", message)

    def GetJoinedGroups(self, uuid: bytes) -> bytes:
        return self._ask_for(events.GetJoinedGroupsReturnFunction, "groups")

    def GetContact(self, uuid: bytes, jid: bytes, size: int) -> bytes:
        return self._ask_for(events.ContactsGetContactReturnFunction, "contact", jid)

    def GetPNFromLID(self, uuid: bytes, jid: bytes, size: int) -> bytes:
        return self._ask_for(events.GetJIDFromStoreReturnFunction, "phone", jid)

    def PairPhone(self, uuid: bytes, parameters: bytes, size: int) -> bytes:
        return self._ask_for(events.PairPhoneReturnFunction, "pair", parameters)

    def SendChatPresence(self, uuid: bytes, jid: bytes, size: int, state: int, media: int) -> bytes:
        return self._ask({"do": "typing", "arguments": [base64.b64encode(jid).decode()], "state": state})[
            "said"
        ].encode()

    def SendPresence(self, uuid: bytes, presence: bytes) -> bytes:
        return self._said("presence", presence.decode())

    def MarkRead(self, uuid: bytes, ids: bytes, *rest: Any) -> bytes:
        return self._said("read", ids.decode())

    def Logout(self, uuid: bytes) -> bytes:
        said = self._said("logout", "")
        if not said:
            with sqlite3.connect(session.NAME) as device:
                device.execute("DELETE FROM whatsmeow_device")
        return said

    def _said(self, what: str, state: object) -> bytes:
        return self._ask({"do": what, "arguments": [], "state": state})["said"].encode()


def _from_a_foreign_thread(log: Any) -> None:
    """Call back from a thread that Python has not made, as Go does with its log."""
    entry = events.LogEntry(Message="hello from elsewhere", Level="WARN", Name="Client").SerializePartialToString()
    routine = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)

    def call(_: Any) -> None:
        log(ctypes.cast(ctypes.c_char_p(entry), ctypes.c_void_p), len(entry))

    started, thread, system = routine(call), ctypes.c_ulong(), ctypes.CDLL(None)
    system.pthread_create(ctypes.byref(thread), None, started, None)
    system.pthread_join(thread, None)


if __name__ == "__main__":
    _, path, *sys.argv[1:] = sys.argv
    neonize.client.gocode = FakeGo(path)  # pyright: ignore[reportAttributeAccessIssue]
    assert Path(sys.argv[1]).is_dir()
    worker.main()
