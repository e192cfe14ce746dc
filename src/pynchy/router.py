"""Text in, text out: who is answered, how chat messages become a prompt, and what of an answer leaves the host."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from xml.sax.saxutils import escape, quoteattr
from zoneinfo import ZoneInfo

from pynchy.messages import KeptAttachment, Said, StoredMessage
from pynchy.types import Channel, Group
from pynchy.workspace import ATTACHMENTS_PATH

#: A block the agent keeps to itself; an unclosed one runs to the end.
_INTERNAL = re.compile(r"<internal>.*?(?:</internal>|\Z)", re.DOTALL | re.IGNORECASE)
#: A command, as `/status`, or `/status@name` where several programs listen to one chat.
_COMMAND = re.compile(r"/([A-Za-z][A-Za-z0-9_-]{0,31})(?:@\S+)?(?:\s+(.*))?", re.DOTALL)

#: A line that opens or closes a block of code.
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})([^`\n]*)$", re.MULTILINE)


# --- in -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Command:
    """A text that begins with `/word`: the word in lower case, and what follows it."""

    word: str
    rest: str = ""


def trigger_of(group: Group, default: str) -> str:
    """What a message to this group's agent begins with."""
    return group.trigger or default


def after_trigger(text: str, trigger: str) -> str | None:
    """What follows the trigger at the start of a text, in whatever case it is written; None where there is none."""
    text = text.lstrip()
    if text[: len(trigger)].casefold() != trigger.casefold():
        return None
    rest = text[len(trigger) :]
    # `@pynchybot` is not `@pynchy`.
    return None if rest[:1].isalnum() or rest[:1] == "_" else rest.lstrip(" \t,:")


def is_for_the_agent(group: Group, default_trigger: str, sender: str, content: str, is_from_me: bool) -> bool:
    """Whether a message asks for an answer; one that does not is context for the next that does."""
    if not is_from_me and group.senders is not None and sender not in group.senders:
        return False
    return (
        group.is_main
        or not group.needs_trigger
        or after_trigger(content, trigger_of(group, default_trigger)) is not None
    )


def command_in(text: str, trigger: str) -> Command | None:
    """The command that a message is, with the trigger before it or without; None where it is none."""
    words = after_trigger(text, trigger)
    match = _COMMAND.fullmatch((text if words is None else words).strip())
    return Command(match[1].lower(), (match[2] or "").strip()) if match else None


def may_command(group: Group, sender: str, is_from_me: bool) -> bool:
    """Whether this person may use commands here."""
    return is_from_me or group.commanders is None or sender in group.commanders


def format_prompt(
    messages: Sequence[StoredMessage],
    zone: ZoneInfo,
    said: Sequence[Said] = (),
    assistant: str = "",
    earlier: str = "",
) -> str:
    """The messages as the agent reads them, each with its sender and local time, escaped as XML.

    Those that are only context say so, and so do texts of the assistant's own that its conversation does not
    know. A message is named by its channel's id, by which others reply to it or put it right. A file that came with
    a message is named by where the agent finds it, and so is `earlier`, one with what was said before.
    """
    lines = [(message.timestamp, _message(message, zone)) for message in messages]
    lines += [(one.timestamp, _element(assistant, one.timestamp, zone, escape(one.text), False)) for one in said]
    if said:
        lines.sort(key=lambda line: line[0])
    before = [f'<earlier path="{earlier}"/>'] if earlier else []
    return "\n".join(["<messages>", *before, *(line for _, line in lines), "</messages>"])


def format_task(task_id: int, prompt: str, now: datetime, zone: ZoneInfo) -> str:
    """What a scheduled task asks, as the agent reads it."""
    return "\n".join(
        [f'<messages task="{task_id}">', _element("scheduled task", now, zone, escape(prompt), True), "</messages>"]
    )


def _message(message: StoredMessage, zone: ZoneInfo) -> str:
    quote = f"<quote>{escape(message.quote)}</quote>" if message.quote else ""
    text = quote + escape(message.content) + "".join(_attachment(one) for one in message.attachments)
    ids = {"id": message.message_id, "reply_to": message.reply_to, "edits": message.edits}
    return _element(message.sender_name, message.timestamp, zone, text, message.asks, ids)


def _element(
    sender: str,
    at: datetime,
    zone: ZoneInfo,
    inner: str,
    asks: bool,
    ids: Mapping[str, str | None] = MappingProxyType({}),
) -> str:
    when = at.astimezone(zone).isoformat(timespec="seconds")
    context = "" if asks else ' context="yes"'
    named = "".join(f" {name}={quoteattr(one)}" for name, one in ids.items() if one)
    return f'<message sender={quoteattr(sender)} time="{when}"{named}{context}>{inner}</message>'


def _attachment(one: KeptAttachment) -> str:
    # Its type and name are the sender's words: data, and never more.
    where = f'path="{ATTACHMENTS_PATH}/{one.file}"' if one.file else 'kept="no"'
    return f"<attachment {where} type={quoteattr(one.media_type)} name={quoteattr(one.name)}/>"


# --- out ----------------------------------------------------------------------------------------------------


def visible_text(answer: str | None) -> str:
    """An answer without its internal blocks; empty when nothing is left to say."""
    return _INTERNAL.sub("", answer or "").strip()


def next_part(channel: Channel, text: str, sent: int, assistant_name: str) -> tuple[str, int]:
    """What to send next of a text of which `sent` characters have been sent, and how many there will be then.

    A text longer than the channel's `max_message_length` is split, at the end of a paragraph, line or word where
    there is one in the second half of a part; a block of code that is split is closed and opened again. Where others
    write in a chat too, the first part begins with the assistant's name.
    """
    prefix = f"{assistant_name}: " if sent == 0 and getattr(channel, "prefix_assistant_name", True) else ""
    longest = getattr(channel, "max_message_length", None)
    rest = text[sent:]
    if not isinstance(longest, int) or longest < 1:
        return prefix + rest, len(text)
    if (opening := _open_block(text[:sent])) and len(opening) < longest // 4:
        prefix += f"{opening}\n"
    if len(prefix) + len(rest) <= longest:
        return prefix + rest, len(text)
    room = max(1, longest - len(prefix))
    end = _end_of_part(rest, room)
    closing = _closing(text[: sent + end])
    if closing and len(closing) < longest // 4:
        end = _end_of_part(rest, max(1, room - len(closing)))
        closing = _closing(text[: sent + end])
    else:
        closing = ""
    part = rest[:end]
    if closing:
        end += rest[end : end + 1] == "\n"  # what follows may be indented
    else:
        while end < len(rest) and rest[end].isspace():
            end += 1
    return prefix + part + closing, sent + end


def _end_of_part(rest: str, room: int) -> int:
    for separator in ("\n\n", "\n", " "):
        found = rest.rfind(separator, room // 2, room + 1)
        if found > 0:
            return found
    return room


def _open_block(text: str) -> str:
    """The line that opened the fenced block (as in CommonMark) in which a text ends; "" where it ends in none."""
    opening, marks = "", ""
    for line in _FENCE.finditer(text):
        if not opening:
            opening, marks = line[0].strip(), line[1]
        elif line[1].startswith(marks) and not line[2].strip():
            opening = ""
    return opening


def _closing(text: str) -> str:
    """What closes the block of code in which a text ends."""
    opening = _open_block(text)
    marks = _FENCE.match(opening)
    return f"\n{marks[1]}" if marks else ""
