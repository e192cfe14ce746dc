"""Pictures that came with messages, as the model's API takes them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from agent_runner.files import Unreadable, read_whole
from agent_runner.options import WORKSPACE

#: So many go with one prompt, and so large may they be, one and together, in bytes; the rest stay files.
MOST_IMAGES = 20
MOST_BYTES = 20_000_000
MOST_TOGETHER = 30_000_000

Block = dict[str, Any]


def image_blocks(paths: Sequence[str]) -> list[Block]:
    """The content blocks of these pictures, by their paths below the attachments' folder. Reads the disk.

    In the place of one that is none, or cannot be had, is a text that says so.
    """
    blocks: list[Block] = []
    left = MOST_TOGETHER
    for path in paths[:MOST_IMAGES]:
        try:
            data = read_whole(WORKSPACE / "attachments" / path, MOST_BYTES)
            if len(data) > left:
                raise Unreadable(f"together with the others {path} is too large")
            blocks.append(_block(path, data))
            left -= len(data)
        except Unreadable as problem:
            blocks.append(_text(f"[A picture is not shown: {problem}]"))
    if more := paths[MOST_IMAGES:]:
        blocks.append(_text(f"[{len(more)} more pictures are not shown: at most {MOST_IMAGES} are. They are files]"))
    return blocks


def _block(path: str, data: bytes) -> Block:
    media_type = _media_type(data)
    if media_type is None:
        raise Unreadable(f"{path} is neither PNG, JPEG, GIF nor WebP, whatever it is called")
    encoded = base64.b64encode(data).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": encoded}}


def _text(text: str) -> Block:
    return {"type": "text", "text": text}


def _media_type(data: bytes) -> str | None:
    """What the file begins with says it is; its name is whatever the sender liked."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    return None
