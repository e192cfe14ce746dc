"""neonize's client, as far as the worker uses it.

Go runs the connection and puts each event into a queue of a hundred; one thread, that of `run`, takes them out and
calls `on_event` with the serialised bytes. WhatsApp is told that a message has arrived as soon as it is in that queue:
`on_event` has to keep it before it does anything else. Nothing is decoded here, so that nothing can be lost by it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
import types
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pynchy_plugin_whatsapp import session

# A mark that neonize puts on every message in a private chat unless told not to: WhatsApp then labels it as a bot's,
# and no client of WhatsApp's own sends it. The library reads this when it is loaded.
os.environ.setdefault("NEONIZE_BOT_TAG", "off")


def _prepare() -> None:
    """Make what neonize wants at its import harmless where it is missing."""
    found = find_spec("neonize")
    folders = [Path(folder) for folder in (found.submodule_search_locations if found else None) or ()]
    if not folders:
        raise ImportError("neonize is not installed: reinstall pynchy-plugin-whatsapp")
    if not any(any(folder.glob("neonize-*")) for folder in folders):
        # It would fetch one from the internet, unchecked.
        raise ImportError("neonize has no compiled library for this system: install its wheel for it")
    try:
        import magic  # noqa: F401
    except ImportError:
        # libmagic guesses types of files; every file that is sent from here says its own.
        sys.modules["magic"] = types.ModuleType("magic")


_prepare()

from neonize.builder import build_edit  # noqa: E402
from neonize.client import NewClient  # noqa: E402
from neonize.events import EVENT_TO_INT, INT_TO_EVENT, Event  # noqa: E402
from neonize.proto import Neonize_pb2 as events  # noqa: E402
from neonize.proto.waCompanionReg.WAWebProtobufsCompanionReg_pb2 import DeviceProps  # noqa: E402
from neonize.proto.waE2E.WAWebProtobufsE2E_pb2 import Message  # noqa: E402
from neonize.utils.enum import (  # noqa: E402
    ChatPresence,
    ChatPresenceMedia,
    ClientName,
    ClientType,
    Presence,
    ReceiptType,
)

from pynchy_plugin_whatsapp.addresses import split  # noqa: E402
from pynchy_plugin_whatsapp.contents import clean, fetchable  # noqa: E402
from pynchy_plugin_whatsapp.outgoing import file_message, jid_of  # noqa: E402

MESSAGE = EVENT_TO_INT[events.Message]
_SUBSCRIBED = (
    events.Message,
    events.Connected,
    events.Disconnected,
    events.KeepAliveTimeout,
    events.KeepAliveRestored,
    events.LoggedOut,
    events.StreamReplaced,
    events.TemporaryBan,
    events.ConnectFailure,
    events.ClientOutdated,
    events.StreamError,
    events.PairStatus,
    events.JoinedGroup,
    events.GroupInfoEvent,
)
_LONGEST_CAPTION = 1000
log = logging.getLogger("whatsapp")


class _Events(Event):
    """neonize's dispatcher, handing on bytes."""

    def __init__(self, client: NewClient, on_event: Callable[[int, bytes], None]) -> None:
        super().__init__(client)
        self._on_event = on_event
        for event in _SUBSCRIBED:
            self.list_func[EVENT_TO_INT[event]] = _unused

    def execute(self, uuid: int, binary: int, size: int, code: int) -> None:
        """What Go calls; what it raises nobody sees."""
        self._on_event(code, ctypes.string_at(binary, size))


def _unused(client: NewClient, event: Any) -> None:
    pass


class Client:
    """One connection. `on_event` gets each event's code and bytes, `on_qr` the text of each QR code."""

    def __init__(
        self, on_event: Callable[[int, bytes], None], on_qr: Callable[[str], None], on_login: Callable[[str], None]
    ) -> None:
        logging.getLogger("neonize.utils.ffmpeg").setLevel(logging.ERROR)  # films are not converted here
        logging.getLogger("neonize.utils.log").setLevel(logging.WARNING)  # how much Go is to say
        props = DeviceProps(os="Pynchy", platformType=DeviceProps.DESKTOP)
        self._client = NewClient(session.NAME, props=props, uuid="pynchy")
        self._client._stop_finalizer.detach()
        self._client.event = _Events(self._client, on_event)
        self._client.event.qr(lambda _, code: on_qr(code.decode()))
        vars(self._client)["_NewClient__onLoginStatus"] = lambda _, said: on_login(ctypes.string_at(said).decode())
        self._started = threading.Event()

    def run(self) -> None:
        """Connect, and return when the connection is given up; RuntimeError says why."""
        self._started.set()
        self._client.connect()

    def close(self) -> None:
        """End the connection; what is in Go's queue is still handed over."""
        if self._started.is_set():
            self._client.disconnect()

    def send_text(self, address: str, text: str) -> str:
        """Send a text; returns its id."""
        return self._send(address, Message(conversation=text))

    def send_file(self, address: str, path: Path, caption: str) -> list[str]:
        """Send a file; returns the ids of what was sent: a caption that it cannot have follows as a text."""
        short = caption if len(caption) <= _LONGEST_CAPTION else ""
        message, has_caption = file_message(self._client.upload, path, short)
        sent = [self._send(address, message)]
        if caption and not (short and has_caption):
            sent.append(self._send(address, Message(conversation=caption)))
        return sent

    def edit(self, address: str, message_id: str, text: str) -> str:
        """Put another text in the place of one; returns the id of the edit."""
        jid = jid_of(*split(address))
        return self._send(address, build_edit(jid, message_id, Message(conversation=text)))

    def _send(self, address: str, message: Message) -> str:
        # Not a bare text: neonize would look for mentions in it, and ask WhatsApp about the groups among them.
        return self._client.send_message(jid_of(*split(address)), message).ID

    def typing(self, address: str, on: bool, visible: bool) -> None:
        """Show that somebody is typing; `visible` shows the account as online, which others see it by."""
        if visible and on:
            self._client.send_presence(Presence.AVAILABLE)
        state = ChatPresence.CHAT_PRESENCE_COMPOSING if on else ChatPresence.CHAT_PRESENCE_PAUSED
        self._client.send_chat_presence(jid_of(*split(address)), state, ChatPresenceMedia.CHAT_PRESENCE_MEDIA_TEXT)

    def mark_read(self, address: str, sender: str, message_id: str) -> None:
        """Show a message as read."""
        chat, whose = jid_of(*split(address)), jid_of(*split(sender))
        self._client.mark_read(message_id, chat=chat, sender=whose, receipt=ReceiptType.READ)

    def download(self, event: bytes) -> bytes:
        """The file of a message."""
        return self._client.download_any(fetchable(events.Message.FromString(event).Message)) or b""

    def phone_of(self, jid: events.JID) -> events.JID | None:
        """The phone number behind a hidden id, as far as this device has heard of it."""
        try:
            return self._client.get_pn_from_lid(jid)
        except Exception as error:
            log.warning("no phone number is known for %s: %s", jid.User, error)
            return None

    def contact_name(self, address: str) -> str:
        """What the account's address book calls somebody, or else he himself."""
        try:
            found = self._client.contact.get_contact(jid_of(*split(address)))
        except Exception as error:
            log.warning("no name is known for %s: %s", address, error)
            return ""
        return clean(found.FullName or found.BusinessName or found.PushName, 200)

    def groups(self) -> list[tuple[events.JID, str]]:
        """The groups that the account is in."""
        return [(group.JID, group.GroupName.Name) for group in self._client.get_joined_groups()]

    def pairing_code(self, number: str) -> str:
        """A code to type on the phone with that number instead of scanning; after the first QR code."""
        return self._client.PairPhone(number, True, ClientName.LINUX, ClientType.CHROME)

    def logout(self) -> None:
        """Unlink this device."""
        self._client.logout()


def decoded(code: int, event: bytes) -> Any:
    """An event other than a message."""
    return INT_TO_EVENT[code].FromString(event)
