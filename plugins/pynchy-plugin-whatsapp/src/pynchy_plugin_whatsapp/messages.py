"""An event of WhatsApp as a message for Pynchy: whose, in which chat, when. Runs in the worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from neonize.proto.Neonize_pb2 import JID, Device, MessageInfo
from neonize.proto.Neonize_pb2 import Message as MessageEvent

from pynchy_plugin_whatsapp.addresses import GROUPS, HIDDEN, PEOPLE, PREFIX, SAME_AS, is_address, is_jid
from pynchy_plugin_whatsapp.contents import clean, content_of
from pynchy_plugin_whatsapp.spool import Spool

#: The phone number behind a hidden id, None where nobody knows it.
PhoneOf = Callable[[JID], JID | None]


class Reader:
    """Reads events for one linked device, `me`."""

    def __init__(self, me: Device, phone_of: PhoneOf, spool: Spool) -> None:
        self._me = me
        self._phone_of = phone_of
        self._spool = spool
        self.number = me.JID.User
        self._own = {PEOPLE: me.JID.User, HIDDEN: me.LID.User}

    def read(self, event: bytes) -> dict[str, Any] | None:
        """The fields of a NewMessage, `file` for what can be fetched; None where nothing is said to a chat.

        ValueError where an event cannot be understood.
        """
        message = MessageEvent.FromString(event)
        info, source = message.Info, message.Info.MessageSource
        chat = self._chat(info)
        message_id = clean(info.ID, 128)
        if chat is None or not message_id or info.Category == "peer" or self._is_ours(info, chat, message_id):
            return None
        if (content := content_of(message.Message)) is None:
            return None
        sender = self._sender(info)
        if sender is None:
            return None
        edits = content.edits
        if edits:
            message_id = f"{edits}+{content.edited_at or message_id}"
            if self._spool.sender_of(chat, edits) != sender:
                edits = None  # nobody can put right what another has written
        else:
            self._spool.remember(chat, message_id, sender)
        return {
            "chat": chat,
            "id": message_id,
            "sender": sender,
            "sender_name": clean(info.Pushname, 100) or sender.partition("@")[0],
            "text": content.text,
            "at": _seconds(info.Timestamp),
            "from_me": source.IsFromMe,
            "reply_to": content.reply_to,
            "quote": content.quote,
            "edits": edits,
            "file": asdict(content.file) if content.file else None,
        }

    def address(self, jid: JID, other: JID | None = None) -> str | None:
        """The address of a person or a group; `other` is another id of the same, as far as WhatsApp says it."""
        bare = self._bare(jid, other)
        return PREFIX + bare if bare and is_address(PREFIX + bare) else None

    def _chat(self, info: MessageInfo) -> str | None:
        source = info.MessageSource
        return self.address(source.Chat, source.RecipientAlt if source.IsFromMe else source.SenderAlt)

    def _sender(self, info: MessageInfo) -> str | None:
        source = info.MessageSource
        if source.IsFromMe:
            return f"{self.number}@{PEOPLE}"
        bare = self._bare(source.Sender, source.SenderAlt)
        return bare if bare and is_jid(bare) and not bare.endswith(f"@{GROUPS}") else None

    def _bare(self, jid: JID, other: JID | None) -> str | None:
        server = SAME_AS.get(jid.Server, jid.Server)
        if server == GROUPS:
            return f"{jid.User}@{GROUPS}"
        if server not in (PEOPLE, HIDDEN):
            return None
        if jid.User and jid.User == self._own[server]:
            return f"{self.number}@{PEOPLE}"
        if server == HIDDEN:
            if other is not None and SAME_AS.get(other.Server, other.Server) == PEOPLE and other.User:
                return f"{other.User}@{PEOPLE}"
            known = self._phone_of(JID(User=jid.User, Server=HIDDEN, RawAgent=0, Device=0, Integrator=0))
            if known is not None and known.User and known.Server == PEOPLE:
                return f"{known.User}@{PEOPLE}"
        return f"{jid.User}@{server}"

    def _is_ours(self, info: MessageInfo, chat: str, message_id: str) -> bool:
        """Whether this device has sent it: what is typed on the phone comes from another device of the account."""
        source = info.MessageSource
        if not source.IsFromMe:
            return False
        device = self._me.JID.Device
        return (device != 0 and source.Sender.Device == device) or self._spool.is_ours(chat, message_id)


def _seconds(timestamp: int) -> float:
    """Seconds since 1970, of milliseconds as neonize gives them or of seconds."""
    seconds = timestamp / 1000 if abs(timestamp) > 100_000_000_000 else float(timestamp)
    if not 0 < seconds < 4_000_000_000:
        raise ValueError(f"a message has the impossible time {timestamp}")
    return seconds
