"""Files and edits as WhatsApp's messages. Runs in the worker."""

from __future__ import annotations

import mimetypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neonize.proto.Neonize_pb2 import JID
from neonize.proto.waE2E.WAWebProtobufsE2E_pb2 import AudioMessage, DocumentMessage, ImageMessage, Message, VideoMessage
from neonize.utils.enum import MediaType

#: Bytes; a picture or a film beyond its limit is sent as a document.
LARGEST_FILE = 100 * 1024 * 1024
_LARGEST_IMAGE = 16 * 1024 * 1024
_LARGEST_VIDEO = 64 * 1024 * 1024
_IMAGES = ("image/jpeg", "image/png")
_VIDEOS = ("video/mp4", "video/3gpp")
_AUDIO = ("audio/ogg", "audio/mpeg", "audio/mp4", "audio/aac", "audio/amr")
_NAMES = {
    "audio/opus": "audio/ogg",
    "audio/x-m4a": "audio/mp4",
    "audio/mp4a-latm": "audio/mp4",
    "image/jpg": "image/jpeg",
}

Upload = Callable[[bytes, MediaType], Any]


def jid_of(user: str, server: str) -> JID:
    """neonize's form of an id."""
    return JID(User=user, Server=server, RawAgent=0, Device=0, Integrator=0, IsEmpty=False)


def file_message(upload: Upload, path: Path, caption: str) -> tuple[Message, bool]:
    """A file as a message, and whether the caption is in it."""
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path.name} is larger than {LARGEST_FILE // 1024 // 1024} MB, which is as much as is sent")
    data = path.read_bytes()
    guessed = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    media_type = _NAMES.get(guessed, guessed)
    if media_type in _IMAGES and len(data) <= _LARGEST_IMAGE:
        fields = _uploaded(upload(data, MediaType.MediaImage))
        return Message(imageMessage=ImageMessage(mimetype=media_type, caption=caption, **fields)), True
    if media_type in _VIDEOS and len(data) <= _LARGEST_VIDEO:
        fields = _uploaded(upload(data, MediaType.MediaVideo))
        return Message(videoMessage=VideoMessage(mimetype=media_type, caption=caption, **fields)), True
    if media_type in _AUDIO and len(data) <= _LARGEST_IMAGE:
        fields = _uploaded(upload(data, MediaType.MediaAudio))
        voice = media_type == "audio/ogg"
        spoken = AudioMessage(mimetype="audio/ogg; codecs=opus" if voice else media_type, PTT=voice, **fields)
        return Message(audioMessage=spoken), False
    fields = _uploaded(upload(data, MediaType.MediaDocument))
    document = DocumentMessage(mimetype=media_type, fileName=path.name, title=path.name, caption=caption, **fields)
    return Message(documentMessage=document), True


def _uploaded(response: Any) -> dict[str, Any]:
    return {
        "URL": response.url,
        "directPath": response.DirectPath,
        "mediaKey": response.MediaKey,
        "mediaKeyTimestamp": int(time.time()),
        "fileEncSHA256": response.FileEncSHA256,
        "fileSHA256": response.FileSHA256,
        "fileLength": response.FileLength,
    }
