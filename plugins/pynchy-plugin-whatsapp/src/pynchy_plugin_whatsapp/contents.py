"""What a WhatsApp message says: its text, its file, what it answers. Runs in the worker."""

from __future__ import annotations

import mimetypes
import re
from dataclasses import dataclass
from typing import Any

from neonize.proto.waE2E.WAWebProtobufsE2E_pb2 import ContextInfo, Message

_LONGEST_TEXT = 1_000_000
_LONGEST_QUOTE = 4_000
_DEEPEST = 12
#: Wrappers of what appears in the status of a person or a group, which is no chat.
_STATUS = {"groupStatusMessage", "groupStatusMessageV2", "statusMentionMessage", "groupStatusMentionMessage"}
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u2028\u2029]")
_MEDIA_TYPE = re.compile(r"[a-z0-9][\w.+-]*/[a-z0-9][\w.+-]*", re.ASCII | re.IGNORECASE)
_PHONE = re.compile(r"^(?:item\d+\.)?TEL[^:\r\n]*:([^\r\n]*)", re.MULTILINE | re.IGNORECASE)
_POLLS = ("pollCreationMessage", "pollCreationMessageV2", "pollCreationMessageV3", "pollCreationMessageV5")
#: Files by their field: the name without its extension, and the media type where none is given.
_FILES: dict[Any, tuple[str, str]] = {
    "imageMessage": ("image", "image/jpeg"),
    "videoMessage": ("video", "video/mp4"),
    "ptvMessage": ("video-note", "video/mp4"),
    "audioMessage": ("audio", "audio/ogg"),
    "stickerMessage": ("sticker", "image/webp"),
    "documentMessage": ("document", "application/octet-stream"),
}
_EXTENSIONS = {"audio/ogg": ".ogg", "image/webp": ".webp", "image/jpeg": ".jpg", "application/octet-stream": ""}


@dataclass(frozen=True, slots=True)
class File:
    """A file that has to be fetched: `size` is what the sender says."""

    name: str
    media_type: str
    size: int


@dataclass(frozen=True, slots=True)
class Content:
    """What a message says. `edits` is the id of the message that it puts right."""

    text: str
    file: File | None = None
    reply_to: str | None = None
    quote: str | None = None
    edits: str | None = None
    edited_at: int = 0


def content_of(message: Message) -> Content | None:
    """What is said; None where nothing is: reactions, votes, deletions, keys."""
    message = unwrapped(message)
    if message.HasField("protocolMessage"):
        protocol = message.protocolMessage
        if protocol.type != protocol.MESSAGE_EDIT or not protocol.key.ID:
            return None
        new = unwrapped(protocol.editedMessage)
        if (text := text_of(new)) is None:
            return None
        reply_to, quote = _answers(new)
        return Content(text, None, reply_to, quote, clean(protocol.key.ID, 128), protocol.timestampMS)
    text, file = text_of(message), file_of(message)
    if text is None and file is None:
        return None
    reply_to, quote = _answers(message)
    return Content(text or "", file, reply_to, quote)


def unwrapped(message: Message) -> Message:
    """The message inside of wrappers such as those of disappearing messages."""
    for _ in range(_DEEPEST):
        if message.HasField("deviceSentMessage") and message.deviceSentMessage.HasField("message"):
            message = message.deviceSentMessage.message
            continue
        wrapper = next((field for field, _ in message.ListFields() if _wraps(field)), None)
        if wrapper is None:
            return message
        if wrapper.name in _STATUS:
            break
        message = getattr(message, wrapper.name).message
    return Message()


def _wraps(field: Any) -> bool:
    return field.message_type is not None and field.message_type.name == "FutureProofMessage"


def text_of(message: Message) -> str | None:
    """The text of an unwrapped message, or of what has none a few words in brackets."""
    text = _words(message)
    return None if text is None else clean_text(text)


def _words(message: Message) -> str | None:
    if message.HasField("conversation"):
        return message.conversation
    if message.HasField("extendedTextMessage"):
        return message.extendedTextMessage.text
    for name in ("imageMessage", "videoMessage", "ptvMessage", "documentMessage"):
        if message.HasField(name):
            return getattr(message, name).caption
    if message.HasField("contactMessage"):
        return _contact(message.contactMessage)
    if message.HasField("contactsArrayMessage"):
        return "\n".join(_contact(one) for one in message.contactsArrayMessage.contacts[:50])
    if message.HasField("locationMessage") or message.HasField("liveLocationMessage"):
        return _location(message)
    for name in _POLLS:
        if message.HasField(name):
            poll = getattr(message, name)
            return f"[poll] {poll.name}: " + " / ".join(option.optionName for option in poll.options[:50])
    if message.HasField("eventMessage"):
        event = message.eventMessage
        return f"[event] {event.name}\n{event.description}".strip()
    if message.HasField("groupInviteMessage"):
        return f"[invitation to the group {message.groupInviteMessage.groupName}] {message.groupInviteMessage.caption}"
    return _of_businesses(message)


def _of_businesses(message: Message) -> str | None:
    if message.HasField("buttonsMessage"):
        return message.buttonsMessage.contentText
    if message.HasField("interactiveMessage"):
        return message.interactiveMessage.body.text
    if message.HasField("templateMessage"):
        return message.templateMessage.hydratedTemplate.hydratedContentText
    if message.HasField("listMessage"):
        return f"{message.listMessage.title}\n{message.listMessage.description}".strip()
    if message.HasField("buttonsResponseMessage"):
        return message.buttonsResponseMessage.selectedDisplayText
    if message.HasField("templateButtonReplyMessage"):
        return message.templateButtonReplyMessage.selectedDisplayText
    if message.HasField("listResponseMessage"):
        return message.listResponseMessage.title
    return None


def _contact(contact: Any) -> str:
    numbers = ", ".join(number.strip() for number in _PHONE.findall(contact.vcard[:10_000])[:5])
    return f"[contact] {contact.displayName}" + (f", {numbers}" if numbers else "")


def _location(message: Message) -> str:
    if message.HasField("liveLocationMessage"):
        live = message.liveLocationMessage
        return f"[live location] {live.degreesLatitude:.6f}, {live.degreesLongitude:.6f} {live.caption}".strip()
    place = message.locationMessage
    parts = [place.name, place.address, f"{place.degreesLatitude:.6f}, {place.degreesLongitude:.6f}", place.comment]
    return "[location] " + ", ".join(part for part in parts if part)


def file_of(message: Message) -> File | None:
    """The file of an unwrapped message."""
    for field, (name, default) in _FILES.items():
        if not message.HasField(field):
            continue
        media = getattr(message, field)
        media_type = media.mimetype.partition(";")[0].strip().lower()
        if not _MEDIA_TYPE.fullmatch(media_type) or len(media_type) > 100:
            media_type = default
        if field == "audioMessage" and media.PTT:
            name = "voice-note"
        if field == "documentMessage" and (given := clean(media.fileName.replace("/", "_"), 200).lstrip(".")):
            return File(given, media_type, media.fileLength)
        extension = _EXTENSIONS.get(media_type)
        if extension is None:
            extension = mimetypes.guess_extension(media_type) or ""
        return File(name + extension, media_type, media.fileLength)
    return None


def fetchable(message: Message) -> Message:
    """A message that has only what its file can be fetched by: where on WhatsApp's servers it is, and its key.

    The sender's own URL is left out, and a path that would lead to another server refused: whoever writes a message
    must not choose what this machine asks for.
    """
    message = unwrapped(message)
    for field in _FILES:
        if not message.HasField(field):
            continue
        media = type(getattr(message, field))()
        media.CopyFrom(getattr(message, field))
        if not media.directPath.startswith("/") or media.directPath.startswith("//"):
            raise ValueError("the file is not on WhatsApp's servers")
        media.ClearField("URL")
        media.ClearField("contextInfo")
        # neonize fetches films, and does not know that there are round ones.
        return Message(**{"videoMessage" if field == "ptvMessage" else field: media})
    raise ValueError("there is no file")


def _answers(message: Message) -> tuple[str | None, str | None]:
    """The id of the message that this one answers, and what that one says."""
    for field, value in message.ListFields():
        if field.message_type is None or "contextInfo" not in field.message_type.fields_by_name:
            continue
        context = value.contextInfo
        if isinstance(context, ContextInfo) and context.stanzaID:
            quoted = unwrapped(context.quotedMessage)
            said = text_of(quoted)
            if not said and (file := file_of(quoted)):
                said = f"[{file.name}]"
            return clean(context.stanzaID, 128), said[:_LONGEST_QUOTE] if said else None
    return None, None


def clean(text: str, longest: int) -> str:
    """A name or an id on one line."""
    return " ".join(_CONTROLS.sub(" ", text[: 4 * longest]).replace("\n", " ").split())[:longest].strip()


def clean_text(text: str) -> str:
    """A text without control characters but for line ends and tabs."""
    return _CONTROLS.sub("", text[:_LONGEST_TEXT].replace("\r\n", "\n"))
