"""What goes through the worker: from Go into the spool and on to the channel, from the channel to WhatsApp."""

from __future__ import annotations

import json
import logging
import math
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pynchy_plugin_whatsapp import session, troubles
from pynchy_plugin_whatsapp.addresses import PEOPLE
from pynchy_plugin_whatsapp.client import MESSAGE, Client, decoded, events
from pynchy_plugin_whatsapp.contents import clean
from pynchy_plugin_whatsapp.messages import Reader
from pynchy_plugin_whatsapp.spool import Received, Spool

log = logging.getLogger("whatsapp")

# Seconds.
_QUIET_FOR = 0.2
_DRAIN_WITHIN = 1.2
#: What comes after linking, keys and names, takes a while.
_SETTLE = 10.0
#: Messages that the channel may have and not have stored.
_AHEAD = 500
#: How often work on one event may have ended the process before it is given up.
_TRIES = 3
_CALLS_AT_ONCE = 8
_DOWNLOADS_AT_ONCE = 3


class Relay:
    """Takes events from Go and calls from the channel. `say` writes one line to the channel."""

    def __init__(self, folder: Path, mode: str, number: str, say: Callable[[dict[str, Any]], None]) -> None:
        self._folder = folder
        self._mode = mode
        self._number = number
        self._say = say
        self.spool = Spool(folder)
        self.client = Client(self.on_event, self._on_qr, self._on_login)
        self._reader: Reader | None = None
        self._work = threading.Condition()
        self._with_channel: set[int] = set()
        self._latest = time.monotonic()
        self._ending = False
        # Of their own, so that files that come slowly do not hold up what is said.
        self._downloads = ThreadPoolExecutor(_DOWNLOADS_AT_ONCE, "download")
        self._calls = ThreadPoolExecutor(_CALLS_AT_ONCE, "call")

    # --- Go's side ------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Be connected until that is given up, and say why."""
        try:
            self.client.run()
            why = "the connection to WhatsApp has ended; it is connected anew"
        except Exception as error:
            why = f"WhatsApp cannot be reached: {str(error)[:300] or type(error).__name__}"
        if not self._ending:
            self._say({"is": "failed", "why": why})

    def on_event(self, code: int, event: bytes) -> None:
        """Called on Go's thread, one event after another."""
        if code != MESSAGE:
            self._latest = time.monotonic()
            self._on_other(code, event)
            return
        self._latest = math.inf  # until it is kept, however slow the disk is
        while True:
            try:
                self.spool.add(event)
                break
            except Exception as error:  # a full disk: what Go has queued waits, the rest is WhatsApp's to keep
                log.error("a message cannot be kept, which is tried again: %s", error)
                time.sleep(1)
        self._latest = time.monotonic()
        with self._work:
            self._work.notify()

    def _on_other(self, code: int, event: bytes) -> None:
        try:
            what = decoded(code, event)
            match what:
                case events.Device():
                    self._know(what)
                case events.Connected() | events.KeepAliveRestored():
                    self._say({"is": "state", "connected": True, "trouble": ""})
                    if isinstance(what, events.Connected):
                        self._on_connected()
                case events.JoinedGroup():
                    self._say_chat(what.GroupInfo.JID, what.GroupInfo.GroupName.Name)
                case events.GroupInfoEvent() if what.HasField("Name"):
                    self._say_chat(what.JID, what.Name.Name)
                case events.PairStatus():
                    if what.Status == events.PairStatus.ERROR:
                        self._say({"is": "failed", "why": f"the phone has refused to link: {what.Error[:200]}"})
                case _ if isinstance(what, troubles.FINAL):
                    seconds = troubles.ban_seconds(what) if isinstance(what, events.TemporaryBan) else 0
                    self._say({"is": "failed", "why": troubles.in_words(what), "seconds": seconds})
                case events.GroupInfoEvent():
                    pass
                case _:
                    self._say({"is": "state", "connected": False, "trouble": troubles.in_words(what)})
        except Exception as error:  # raised to Go it would be printed, and no more
            log.warning("an event of kind %s cannot be understood: %s", code, error)

    def _know(self, me: Any) -> None:
        with self._work:
            self._reader = Reader(me, self.client.phone_of, self.spool)
            self._work.notify()

    def _on_connected(self) -> None:
        if self._mode == "login":
            threading.Thread(target=self._settle, daemon=True).start()
        elif self._mode == "logout":
            threading.Thread(target=self._logout, daemon=True).start()

    def _settle(self) -> None:
        until = time.monotonic() + _SETTLE
        while (now := time.monotonic()) < until and now - self._latest < _SETTLE / 3:
            time.sleep(0.1)
        self._say({"is": "linked", "number": session.linked_number(self._folder) or "?"})

    def _logout(self) -> None:
        try:
            self.client.logout()
            self._say({"is": "done"})
        except Exception as error:
            self._say({"is": "failed", "why": f"WhatsApp has not unlinked this device: {error}"})

    def _on_qr(self, code: str) -> None:
        if self._mode != "login":  # the account was unlinked a moment ago
            self._say({"is": "failed", "why": session.NOT_LINKED})
        elif not self._number:
            self._say({"is": "qr", "code": code})
        elif self._number != "asked":
            number, self._number = self._number, "asked"
            threading.Thread(target=self._pair, args=(number,), daemon=True).start()

    def _pair(self, number: str) -> None:
        try:
            self._say({"is": "code", "code": self.client.pairing_code(number)})
        except Exception as error:
            self._say({"is": "failed", "why": f"WhatsApp gives no code for {number}: {error}"})

    def _on_login(self, said: str) -> None:
        if said != "success":
            why = "nobody has scanned the code in time" if said == "timeout" else f"the phone has not linked: {said}"
            self._say({"is": "failed", "why": why})

    def _say_chat(self, jid: Any, name: str) -> None:
        with self._work:
            reader = self._reader
        if reader and (address := reader.address(jid)) and (name := clean(name, 200)):
            self._say({"is": "chat", "jid": address, "name": name})

    # --- to the channel -------------------------------------------------------------------------------------

    def courier(self) -> None:
        """Hand over what is in the spool, in order, as long as the channel keeps up."""
        seq = 0
        while True:
            try:
                reader, found = self._next(seq)
                try:
                    self._hand_over(reader, found)
                except sqlite3.Error:
                    raise
                except Exception as error:
                    log.warning("a message cannot be understood, and is set aside: %s", error)
                    self.spool.set_aside(found.seq, str(error)[:500])
                seq = found.seq
            except sqlite3.Error as error:
                log.error("the spool cannot be used, which is tried again: %s", error)
                time.sleep(1)

    def _next(self, seq: int) -> tuple[Reader, Received]:
        """Wait for the first event after that one, and until the channel takes it."""
        with self._work:
            while True:
                reader, ahead = self._reader, len(self._with_channel)
                if reader and ahead < _AHEAD and (found := self.spool.after(seq)):
                    return reader, found
                self._work.wait()

    def _hand_over(self, reader: Reader, found: Received) -> None:
        seq = found.seq
        if found.reading >= _TRIES:
            raise RuntimeError("reading it has ended this process each time")
        with self.spool.during("reading", seq):
            message = reader.read(found.event)
        if message is None:
            self.spool.remove(seq)
            return
        message["chat_name"] = self._name_of(message)
        with self._work:
            self._with_channel.add(seq)
        self._say({"is": "message", "seq": seq, **message})

    def _name_of(self, message: dict[str, Any]) -> str:
        """What a person's chat is called; a group's name comes by itself."""
        if message["chat"].endswith("@g.us"):
            return ""
        known = self.client.contact_name(message["chat"])
        return known or ("" if message["from_me"] else message["sender_name"])

    def _stored(self, seq: int, why: str) -> None:
        try:
            if why:
                self.spool.set_aside(seq, why)
            else:
                self.spool.remove(seq)
            self._media(seq).unlink(missing_ok=True)
        except (sqlite3.Error, OSError) as error:  # it will come again, under the same id
            log.warning("a message that was stored cannot be removed: %s", error)
        with self._work:
            self._with_channel.discard(seq)
            self._work.notify()

    # --- from the channel -----------------------------------------------------------------------------------

    def take(self, line: bytes) -> None:
        """One line from the channel."""
        frame = json.loads(line)
        if "stored" in frame:
            self._stored(int(frame["stored"]), frame.get("why", ""))
        else:
            (self._downloads if frame["what"] == "download" else self._calls).submit(self._answer, frame)

    def _answer(self, frame: dict[str, Any]) -> None:
        reply: dict[str, Any] = {"is": "reply", "call": frame["call"]}
        try:
            reply["value"] = self._call(frame)
        except Exception as error:
            reply["error"] = str(error)[:500] or type(error).__name__
        self._say(reply)

    def _call(self, frame: dict[str, Any]) -> Any:
        client, reader = self.client, self._reader
        if reader is None:
            raise RuntimeError("WhatsApp is not connected")
        match frame["what"]:
            case "send":
                return self._sent(reader, frame["jid"], [client.send_text(frame["jid"], frame["text"])])
            case "edit":
                return self._sent(reader, frame["jid"], [client.edit(frame["jid"], frame["id"], frame["text"])])
            case "file":
                ids = client.send_file(frame["jid"], Path(frame["path"]), frame["caption"])
                return self._sent(reader, frame["jid"], ids)
            case "typing":
                return client.typing(frame["jid"], frame["on"], frame["visible"])
            case "read":
                return client.mark_read(frame["jid"], frame["sender"], frame["id"])
            case "groups":
                return [[reader.address(jid), clean(name, 200)] for jid, name in client.groups()]
            case "download":
                return self._download(frame["seq"], frame["largest"])
            case what:
                raise ValueError(f"there is no call {what!r}")

    def _sent(self, reader: Reader, chat: str, ids: list[str]) -> str:
        for message_id in ids:
            self.spool.remember(chat, message_id, f"{reader.number}@{PEOPLE}", ours=True)
        return ids[0]

    def _download(self, seq: int, largest: int) -> str:
        found = self.spool.get(seq)
        if found is None:
            raise ValueError("the message is gone")
        if found.fetching >= _TRIES:
            raise RuntimeError("fetching it has ended this process each time")
        path = self._media(seq)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with self.spool.during("fetching", seq):
            data = self.client.download(found.event)
        if len(data) > largest:
            raise ValueError(f"it has {len(data)} bytes, which is too much")
        path.write_bytes(data)
        return str(path)

    def _media(self, seq: int) -> Path:
        return self._folder / "media" / f"{seq}.media"

    # --- the end --------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Leave WhatsApp, and keep what Go has still to hand over."""
        self._ending = True
        closing = threading.Thread(target=self.client.close, daemon=True)
        closing.start()
        closing.join(_DRAIN_WITHIN)
        until = time.monotonic() + _DRAIN_WITHIN
        while (now := time.monotonic()) < until and now - self._latest < _QUIET_FOR:
            time.sleep(0.02)
