"""What Telegram tells of a message, as Pynchy takes it."""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from telegram import (
    Chat,
    Message,
    MessageEntity,
    MessageOriginChannel,
    MessageOriginChat,
    MessageOriginHiddenUser,
    MessageOriginUser,
    Update,
)

from pynchy.plugin import Attachment, NewMessage
from pynchy_plugin_telegram.addresses import Address
from pynchy_plugin_telegram.markdown import whole


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a message, still at Telegram's."""

    file_id: str
    name: str
    media_type: str
    size: int | None


#: What else a message can bring: its name and its type where nothing is told of them. An animation is a document too.
_FILES = (
    ("voice", "voice-{}.ogg", "audio/ogg"),
    ("audio", "audio-{}.mp3", "audio/mpeg"),
    ("video_note", "video-note-{}.mp4", "video/mp4"),
    ("video", "video-{}.mp4", "video/mp4"),
    ("animation", "animation-{}.mp4", "video/mp4"),
    ("document", "document-{}", "application/octet-stream"),
)


def message_of(update: Update) -> Message | None:
    """The message that an update is about."""
    message = update.message or update.edited_message or update.channel_post or update.edited_channel_post
    return message if isinstance(message, Message) else None


def address_of(message: Message) -> Address:
    """Where it was written; in groups without topics a thread is only a chain of replies."""
    return Address.of(message.chat.id, message.message_thread_id if message.is_topic_message else None)


def chat_name(chat: Chat | Any) -> str:
    """What a chat is called: its title, or the name of who it is with."""
    return one_line(chat.title or " ".join(filter(None, (chat.first_name, chat.last_name))) or chat.username or "")


def is_of_a_bot(message: Message) -> bool:
    """Whether a program wrote it; groups and channels write through bots of Telegram's own, and are none."""
    return message.sender_chat is None and message.from_user is not None and message.from_user.is_bot


def topic_name_of(message: Message) -> tuple[str, bool] | None:
    """What the message says of its topic's name, and whether that is its newest."""
    if message.forum_topic_created:
        return one_line(message.forum_topic_created.name), True
    if message.forum_topic_edited and message.forum_topic_edited.name:
        return one_line(message.forum_topic_edited.name), True
    above = message.reply_to_message
    if message.is_topic_message and above and above.forum_topic_created:
        return one_line(above.forum_topic_created.name), False
    return None


def read(message: Message, owners: frozenset[str], edited: bool) -> NewMessage | None:
    """The message without its file; None where nobody has said anything."""
    said = _said(message)
    has_file = file_of(message) is not None
    if edited and (not (message.text or message.caption) or said.startswith("/")):
        return None
    if not said and not has_file:
        return None
    at = message.edit_date if edited and message.edit_date else message.date
    sender, sender_name, is_a_person = _sender(message)
    number = str(message.message_id)
    return NewMessage(
        id=f"{number}+{int(at.timestamp())}" if edited else number,
        chat_jid=address_of(message).jid,
        sender=sender,
        sender_name=sender_name,
        content=said,
        timestamp=at.astimezone(UTC),
        is_from_me=is_a_person and sender in owners,
        reply_to=str(replied.message_id) if (replied := _replied_to(message)) else None,
        quote=_quote(message),
        edits=number if edited else None,
    )


def one_line(text: str) -> str:
    """Somebody's or something's name as one line of characters that can be printed."""
    return " ".join("".join(one if one.isprintable() else " " for one in whole(text)[:800]).split())[:200]


def _sender(message: Message) -> tuple[str, str, bool]:
    """Who wrote it, by number and by name, and whether that is a person."""
    if chat := message.sender_chat:
        signed = f" ({message.author_signature})" if message.author_signature else ""
        return str(chat.id), one_line(chat_name(chat) + signed), False
    if user := message.from_user:
        return str(user.id), one_line(user.full_name), True
    return str(message.chat.id), chat_name(message.chat), False


def _said(message: Message) -> str:
    text = _with_links(message.text or message.caption or "", message.entities or message.caption_entities)
    text = whole(text or _in_words(message))
    if (origin := message.forward_origin) and not message.is_automatic_forward:
        return f"[Forwarded from {_origin(origin)}]\n{text}".strip()
    return text


def _origin(origin: Any) -> str:
    match origin:
        case MessageOriginUser():
            return one_line(origin.sender_user.full_name)
        case MessageOriginHiddenUser():
            return one_line(origin.sender_user_name)
        case MessageOriginChat():
            return chat_name(origin.sender_chat)
        case MessageOriginChannel():
            return chat_name(origin.chat)
    return "somebody"


def _with_links(text: str, entities: Sequence[MessageEntity]) -> str:
    """The text with the addresses of its links after their words."""
    units = text.encode("utf-16-le", "surrogatepass")
    pieces: list[str] = []
    done = 0
    for entity in sorted(entities, key=lambda one: one.offset + one.length):
        end = 2 * (entity.offset + entity.length)
        words = units[2 * entity.offset : end].decode("utf-16-le", "surrogatepass")
        if entity.type == MessageEntity.TEXT_LINK and entity.url and entity.url.strip("/") != words.strip("/"):
            pieces += units[done:end].decode("utf-16-le", "surrogatepass"), f" ({entity.url})"
            done = end
    return "".join(pieces) + units[done:].decode("utf-16-le", "surrogatepass")


def _in_words(message: Message) -> str:
    """What was sent instead of a text."""
    if sticker := message.sticker:
        return sticker.emoji or "[A sticker]"
    if dice := message.dice:
        return f"{dice.emoji} {dice.value}"
    if venue := message.venue:
        return f"[Place: {one_line(venue.title)}, {one_line(venue.address)}, {_point(venue.location)}]"
    if location := message.location:
        return f"[Location: {_point(location)}]"
    if contact := message.contact:
        name = " ".join(filter(None, (contact.first_name, contact.last_name)))
        return f"[Contact: {one_line(name)}, {one_line(contact.phone_number)}]"
    if poll := message.poll:
        options = "".join(f"\n- {one_line(option.text)}" for option in poll.options)
        return f"[Poll: {one_line(poll.question)}]{options}"
    for kind in ("story", "game", "checklist", "paid_media", "invoice", "giveaway"):
        if getattr(message, kind):
            return f"[A {kind.replace('_', ' ')}, which cannot be read here]"
    return ""


def _point(location: Any) -> str:
    return f"{location.latitude}, {location.longitude}"


def _replied_to(message: Message) -> Message | None:
    """The message that it replies to; each message of a topic names the topic's beginning, which is no reply."""
    replied = message.reply_to_message
    if replied and message.is_topic_message and replied.message_id == message.message_thread_id:
        return None
    return replied


def _quote(message: Message) -> str | None:
    if message.quote:
        return whole(message.quote.text)
    replied = _replied_to(message)
    if replied is None:
        return None
    file = file_of(replied)
    return whole(replied.text or replied.caption or _in_words(replied) or (f"[{file.name}]" if file else "")) or None


def file_of(message: Message) -> RemoteFile | None:
    """The file that came with it; of a photo the largest."""
    number = message.message_id
    if message.photo:
        return _file(max(message.photo, key=lambda one: one.width * one.height), f"photo-{number}.jpg", "image/jpeg")
    for kind, name, media_type in _FILES:
        if media := getattr(message, kind):
            return _file(media, name.format(number), media_type)
    return None


def _file(media: Any, name: str, media_type: str) -> RemoteFile:
    named = one_line(getattr(media, "file_name", None) or "")
    guessed = mimetypes.guess_type(named)[0] if named else None
    told = whole(str(getattr(media, "mime_type", None) or ""))
    return RemoteFile(media.file_id, named or name, told or guessed or media_type, media.file_size)


def without_bytes(file: RemoteFile) -> Attachment:
    """The file by its name alone."""
    return Attachment(file.name, file.media_type)
