"""Addresses of chats: `whatsapp:PHONE@s.whatsapp.net` for a person, `whatsapp:ID@g.us` for a group."""

from __future__ import annotations

import re

PREFIX = "whatsapp:"
PEOPLE = "s.whatsapp.net"
#: Hidden ids of people; an address has one only where no phone number is known for it.
HIDDEN = "lid"
GROUPS = "g.us"
#: What else WhatsApp calls the two kinds of people's ids.
SAME_AS = {"c.us": PEOPLE, "hosted": PEOPLE, "hosted.lid": HIDDEN}

_JID = r"(?:[0-9]{1,24}@(?:s\.whatsapp\.net|lid)|[0-9]{1,32}(?:-[0-9]{1,32})?@g\.us)"
_ADDRESS = re.compile(PREFIX + _JID, re.ASCII)
_BARE = re.compile(_JID, re.ASCII)


def is_address(text: object) -> bool:
    """Whether this is the address of a WhatsApp chat."""
    return isinstance(text, str) and _ADDRESS.fullmatch(text) is not None


def is_jid(text: str) -> bool:
    """Whether this is WhatsApp's own id of a person or a group, without a device."""
    return _BARE.fullmatch(text) is not None


def split(address: str) -> tuple[str, str]:
    """The user and the server of an address or of an id."""
    user, _, server = address.removeprefix(PREFIX).rpartition("@")
    return user, server
