"""Text in, text out: how chat messages become a prompt, and what of an answer leaves the host."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from pynchy.store import StoredMessage
from pynchy.types import Channel

#: A block the agent keeps to itself; an unclosed one runs to the end.
_INTERNAL = re.compile(r"<internal>.*?(?:</internal>|\Z)", re.DOTALL | re.IGNORECASE)


def format_prompt(messages: Sequence[StoredMessage]) -> str:
    """The messages as the agent reads them, each with its sender and local time, escaped as XML."""
    lines = [
        f"<message sender={quoteattr(message.sender_name)} "
        f'time="{message.timestamp.astimezone().isoformat(timespec="seconds")}">'
        f"{escape(message.content)}</message>"
        for message in messages
    ]
    return "\n".join(["<messages>", *lines, "</messages>"])


def visible_text(answer: str | None) -> str:
    """An answer without its internal blocks; empty when nothing is left to say."""
    return _INTERNAL.sub("", answer or "").strip()


def outbound_text(channel: Channel, text: str, assistant_name: str) -> str:
    """The text as this channel shows it: prefixed with the assistant's name where others write there too."""
    return f"{assistant_name}: {text}" if getattr(channel, "prefix_assistant_name", True) else text
