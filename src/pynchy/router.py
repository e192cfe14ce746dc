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


def next_part(channel: Channel, text: str, sent: int, assistant_name: str) -> tuple[str, int]:
    """What to send next of a text of which `sent` characters have been sent, and how many there will be then.

    A text longer than the channel's `max_message_length` is split, at the end of a paragraph, line or word where
    there is one in the second half of a part. Where others write in a chat too, the first part begins with the
    assistant's name.
    """
    prefix = f"{assistant_name}: " if sent == 0 and getattr(channel, "prefix_assistant_name", True) else ""
    longest = getattr(channel, "max_message_length", None)
    rest = text[sent:]
    room = max(1, longest - len(prefix)) if isinstance(longest, int) and longest > 0 else len(rest)
    if len(rest) <= room:
        return prefix + rest, len(text)
    end = room
    for separator in ("\n\n", "\n", " "):
        found = rest.rfind(separator, room // 2, room + 1)
        if found > 0:
            end = found
            break
    part = rest[:end]
    while end < len(rest) and rest[end].isspace():
        end += 1
    return prefix + part, sent + end
