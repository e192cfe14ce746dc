"""WhatsApp's servers and one phone, as far as tests need them: the other end of `fake_go.py`."""

import asyncio
import base64
import itertools
import json
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from whatsapp_protos import CODES, e2e, events

from pynchy.testing import FarSide
from pynchy_plugin_whatsapp import WhatsAppPlugin

ME = "4915100000001"
MY_LID = "99000000000001"
ADA = "4915100000002"
ADAS_LID = "99000000000002"
GROUP = "120363000000000001"


def jid(user: str, server: str = "s.whatsapp.net", device: int = 0) -> events.JID:
    return events.JID(User=user, Server=server, Device=device, RawAgent=0, Integrator=0, IsEmpty=not user)


NOBODY = jid("", "")
_numbers = itertools.count(1)


def message_event(message: e2e.Message, **fields: Any) -> events.Message:
    """An event as Go makes it; `fields` replace those of a private message from Ada."""
    source = events.MessageSource(
        Chat=fields.pop("chat", jid(ADA)),
        Sender=fields.pop("sender", jid(ADA)),
        IsFromMe=fields.pop("from_me", False),
        IsGroup=fields.pop("group", False),
        SenderAlt=fields.pop("sender_alt", NOBODY),
        RecipientAlt=fields.pop("recipient_alt", NOBODY),
        BroadcastListOwner=NOBODY,
    )
    info = events.MessageInfo(
        MessageSource=source,
        ID=fields.pop("id", None) or f"3EB0{next(_numbers):012X}",
        ServerID=0,
        Type="text",
        Pushname=fields.pop("name", "Ada"),
        Timestamp=fields.pop("timestamp", int(time.time() * 1000)),
        Category=fields.pop("category", ""),
        Multicast=False,
        MediaType="",
        Edit="",
    )
    assert not fields, fields
    return events.Message(
        Info=info,
        Message=message,
        IsEphemeral=False,
        IsViewOnce=False,
        IsViewOnceV2=False,
        IsViewOnceV2Extension=False,
        IsDocumentWithCaption=False,
        IsLottieSticker=False,
        IsEdit=False,
        UnavailableRequestID="",
        RetryCount=0,
    )


class WhatsAppSide(FarSide):
    """Keeps each message until it is acknowledged. `sent` are the texts and files that came, in order."""

    jid = f"whatsapp:{ADA}@s.whatsapp.net"

    def __init__(self, folder: Path, socket: Path) -> None:
        self.data = folder / "plugins" / "whatsapp"
        self.sent: list[tuple[str, e2e.Message]] = []
        self.typing: list[int] = []
        self.said: list[tuple[str, str]] = []
        self.files: dict[str, bytes] = {}
        self.groups: list[tuple[str, str]] = []
        self.phones: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.qr: list[str] = []
        self.scanned: set[str] = set()
        self.refuse: dict[str, str] = {}
        self.hang: set[str] = set()
        self.deadly: set[str] = set()
        self.acknowledge = "queued"
        self.greet = True
        self.pace = 0.0  # seconds that pass until Go hands over the next event
        self.open_to_all = asyncio.Event()  # cleared, whoever connects gets no answer
        self.open_to_all.set()
        self.connections = 0
        self.waiting: dict[int, bytes] = {}
        self._numbers = itertools.count(1)
        self._writers: set[asyncio.StreamWriter] = set()
        self._socket = socket
        self.worker = (str(Path(__file__).with_name("fake_go.py")), str(socket))
        self.plugin = type("Plugin", (WhatsAppPlugin,), {"worker": self.worker})()

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path, linked: bool = True) -> AsyncIterator["WhatsAppSide"]:
        with tempfile.TemporaryDirectory() as short:  # the path of a socket has at most 100 characters or so
            side = cls(folder, Path(short) / "wa")
            side.data.mkdir(parents=True, mode=0o700, exist_ok=True)
            if linked:
                side.link()
            server = await asyncio.start_unix_server(side._serve, side._socket, limit=2**28)
            try:
                yield side
            finally:
                server.close()
                side.open_to_all.set()
                side.drop()
                await server.wait_closed()

    def link(self) -> None:
        device = sqlite3.connect(self.data / "session.db")
        device.execute("CREATE TABLE IF NOT EXISTS whatsmeow_device (jid TEXT PRIMARY KEY, lid TEXT)")
        device.execute("INSERT OR IGNORE INTO whatsmeow_device VALUES (?, ?)", (f"{ME}:7@s.whatsapp.net", None))
        device.commit()
        device.close()

    @property
    def is_there(self) -> bool:
        """Whether somebody is connected who hears what happens."""
        return bool(self._writers)

    # --- what people do -------------------------------------------------------------------------------------

    async def write(self, text: str) -> None:
        self.deliver(message_event(e2e.Message(conversation=text)))

    def voice(self, data: bytes, **fields: Any) -> events.Message:
        """Ada sends a voice note."""
        path = f"/v/{len(self.files)}"
        self.files[path] = data
        note = e2e.AudioMessage(mimetype="audio/ogg; codecs=opus", PTT=True, directPath=path, fileLength=len(data))
        note.URL = "http://169.254.169.254/"  # where whatsmeow would look first
        event = message_event(e2e.Message(audioMessage=note), **fields)
        self.deliver(event)
        return event

    def deliver(self, event: Any) -> None:
        """A message comes; it is kept until it is acknowledged."""
        self.deliver_raw(event.SerializeToString())

    def deliver_raw(self, event: bytes) -> None:
        number = next(self._numbers)
        self.waiting[number] = event
        self._push({"code": CODES[events.Message], "event": _base64(event), "number": number})

    def happen(self, event: Any, **more: Any) -> None:
        """Something else happens: it is said to who is there, and forgotten."""
        self._push({"code": CODES[type(event)], "event": _base64(event.SerializePartialToString()), **more})

    def drop(self) -> None:
        """Cut the connections."""
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    def read(self) -> list[str]:
        shown: dict[str, str] = {}
        for message_id, message in self.sent:
            edit = message.editedMessage.message.protocolMessage
            if edit.key.ID:
                shown[edit.key.ID] = edit.editedMessage.conversation
            else:
                shown[message_id] = message.conversation
        return list(shown.values())

    async def vanish(self) -> None:
        self._socket.unlink(missing_ok=True)
        self.drop()

    # --- the servers ----------------------------------------------------------------------------------------

    def _push(self, frame: dict[str, Any]) -> None:
        for writer in self._writers:
            writer.write(json.dumps(frame).encode() + b"\n")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.open_to_all.wait()
        me = events.Device(
            JID=jid(ME, device=7),
            LID=jid(MY_LID, "lid", 7),
            Platform="",
            BussinessName="",
            PushName="Me",
            Initialized=True,
        )
        self._write(
            writer,
            me=_base64(me.SerializeToString()),
            jid=f"{ME}:7@s.whatsapp.net",
            qr=self.qr,
            acknowledge=self.acknowledge,
            pace=self.pace,
        )
        self.connections += 1
        try:
            while line := await reader.readline():
                frame = json.loads(line)
                if frame["do"] == "ready":
                    self._writers.add(writer)
                    if self.greet:
                        self._write(writer, code=3, event=_base64(events.Connected(status=True).SerializeToString()))
                    for number, event in self.waiting.items():
                        self._write(writer, code=CODES[events.Message], event=_base64(event), number=number)
                elif frame["do"] == "ack":
                    self.waiting.pop(frame["number"], None)
                elif frame["do"] not in self.hang:
                    answer = self._answer(frame)
                    self._write(writer, answer=frame["ask"], **answer)
        except (ConnectionError, json.JSONDecodeError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def _write(self, writer: asyncio.StreamWriter, **frame: Any) -> None:
        writer.write(json.dumps(frame).encode() + b"\n")

    def _answer(self, frame: dict[str, Any]) -> dict[str, Any]:
        if frame["do"] == "scan":
            return {"scanned": frame["code"] in self.scanned}
        if frame["do"] in self.deadly:
            return {"die": True}
        if error := self.refuse.get(frame["do"]):
            return {"error": error, "said": error}
        arguments = [base64.b64decode(one) for one in frame["arguments"]]
        match frame["do"]:
            case "typing" | "presence" | "read" | "logout" as what:
                self.said.append((what, str(frame["state"])))
                return {"said": ""}
            case what:
                return {"value": _base64(getattr(self, f"_{what}")(*arguments))}

    def _send(self, chat: bytes, message: bytes) -> bytes:
        message_id = f"3EB0FEED{len(self.sent):08X}"
        self.sent.append((message_id, e2e.Message.FromString(message)))
        self.said.append(("send", events.JID.FromString(chat).User))
        response = events.SendResponse(Timestamp=int(time.time()), ID=message_id, ServerID=0)
        return events.SendMessageReturnFunction(SendResponse=response).SerializePartialToString()

    def _upload(self, data: bytes, kind: bytes) -> bytes:
        path = f"/u/{len(self.files)}"
        self.files[path] = data
        response = events.UploadResponse(
            url=f"https://mmg.example{path}", DirectPath=path, Handle="", FileLength=len(data)
        )
        response.MediaKey = response.FileEncSHA256 = response.FileSHA256 = bytes(32)
        return events.UploadReturnFunction(UploadResponse=response).SerializePartialToString()

    def _download(self, message: bytes) -> bytes:
        content = e2e.Message.FromString(message)
        for _, value in content.ListFields():
            if getattr(value, "URL", ""):
                return events.DownloadReturnFunction(Error=f"asked {value.URL}").SerializePartialToString()
            if data := self.files.get(getattr(value, "directPath", "")):
                return events.DownloadReturnFunction(Binary=data).SerializePartialToString()
        return events.DownloadReturnFunction(Error="failed to download: 404").SerializePartialToString()

    def _groups(self) -> bytes:
        found = [
            events.GroupInfo(JID=jid(user, "g.us"), GroupName=events.GroupName(Name=name)) for user, name in self.groups
        ]
        return events.GetJoinedGroupsReturnFunction(Group=found).SerializePartialToString()

    def _contact(self, whose: bytes) -> bytes:
        name = self.names.get(events.JID.FromString(whose).User, "")
        info = events.ContactInfo(
            Found=bool(name), FirstName="", FullName=name, PushName="", BusinessName="", RedactedPhone=""
        )
        return events.ContactsGetContactReturnFunction(ContactInfo=info).SerializePartialToString()

    def _phone(self, lid: bytes) -> bytes:
        phone = self.phones.get(events.JID.FromString(lid).User, "")
        return events.GetJIDFromStoreReturnFunction(Jid=jid(phone) if phone else NOBODY).SerializePartialToString()

    def _pair(self, parameters: bytes) -> bytes:
        self.said.append(("pair", events.PairPhoneParams.FromString(parameters).phone))
        return events.PairPhoneReturnFunction(Code="ABCD-EFGH").SerializePartialToString()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
