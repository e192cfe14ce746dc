"""What came with a group's messages, or is too long to be part of one: files that its agent reads and never writes."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import structlog

from pynchy.messages import KeptAttachment
from pynchy.types import Attachment, Group
from pynchy.untrusted import printable
from pynchy.workspace import ATTACHMENTS_PATH, attachments_folder

log = structlog.get_logger(__name__)

_EXCERPT = 1000  # characters
_LONGEST_NAME = 80
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,60}/[A-Za-z0-9!#$&^_.+-]{1,60}")
#: Those that a model takes as images, by their media types (https://docs.anthropic.com/en/docs/build-with-claude/vision).
_IMAGES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})


def keep_all(home: Path, group: Group, attachments: Sequence[Attachment], limit: int) -> tuple[KeptAttachment, ...]:
    """Store what came with a message; OSError where the disk does not take it, and then nothing of it stays.

    What is larger than `limit` bytes, or is not there, is named and not kept.
    """
    folder = attachments_folder(home, group)
    kept: list[KeptAttachment] = []
    try:
        for one in attachments:
            kept.append(_keep(folder, one, limit))  # noqa: PERF401 - one by one, for what fails undoes those before
    except BaseException:
        discard(home, group, kept)
        raise
    return tuple(kept)


def discard(home: Path, group: Group, kept: Iterable[KeptAttachment]) -> None:
    """Remove what was stored for a message that is not."""
    for one in kept:
        if one.file:
            (home / "attachments" / group.folder / one.file).unlink(missing_ok=True)


def not_kept(attachments: Sequence[Attachment]) -> tuple[KeptAttachment, ...]:
    """What came with a message of a chat that nobody answers, by its names."""
    return tuple(
        KeptAttachment(printable(one.name[:200]), _media_type(one), len(one.data or b"")) for one in attachments
    )


def images(kept: Iterable[KeptAttachment]) -> list[str]:
    """The files among these that a model can look at."""
    return [one.file for one in kept if one.file and one.media_type in _IMAGES]


def attach_text(home: Path, group: Group, name: str, text: str) -> str:
    """Put a long text where the agent can read it, and return where that is."""
    path = attachments_folder(home, group) / name
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)
    return f"{ATTACHMENTS_PATH}/{name}"


def excerpt_of(text: str, path: str) -> str:
    """What a message says in the place of a long text that is in a file now."""
    return f"{text[:_EXCERPT]}\n[... The whole message has {len(text)} characters: it is the file {path}]"


def safe_name(name: str) -> str:
    """A file name of letters, digits, `.`, `_` and `-` that looks like this one and can be nothing but a name."""
    plain = unicodedata.normalize("NFKD", name.replace("\\", "/").rpartition("/")[2]).encode("ascii", "ignore").decode()
    plain = _UNSAFE.sub("_", plain).strip("._-")
    stem, dot, ending = plain.rpartition(".")
    if dot and 0 < len(ending) <= 10 and stem:
        return f"{stem[: _LONGEST_NAME - len(ending) - 1]}.{ending}"
    return plain[:_LONGEST_NAME] or "file"


def _keep(folder: Path, one: Attachment, limit: int) -> KeptAttachment:
    name, media_type = printable(one.name[:200]), _media_type(one)
    file = f"{uuid.uuid4().hex[:12]}-{safe_name(one.name)}"
    path = folder / file
    if one.data is not None:
        if len(one.data) > limit:
            return KeptAttachment(name, media_type, len(one.data))
        with path.open("xb") as target:
            target.write(one.data)
            _finish(target.fileno())
        return KeptAttachment(name, media_type, len(one.data), file)
    if one.path is None:
        return KeptAttachment(name, media_type, 0)
    try:
        source = one.path.open("rb")
    except OSError as error:
        log.warning("what came with a message cannot be read", path=str(one.path), error=str(error))
        return KeptAttachment(name, media_type, 0)
    with source:
        size = os.fstat(source.fileno()).st_size
        if size > limit:
            return KeptAttachment(name, media_type, size)
        try:
            with path.open("xb") as target:
                shutil.copyfileobj(source, target)
                _finish(target.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    return KeptAttachment(name, media_type, size, file)


def _finish(descriptor: int) -> None:
    os.fchmod(descriptor, 0o644)
    os.fsync(descriptor)  # the message that names it is durable, and so is this


def _media_type(one: Attachment) -> str:
    """A media type as RFC 6838 writes it; what a sender calls otherwise is bytes."""
    plain = str(one.media_type).partition(";")[0].strip().lower()
    return plain if _TYPE.fullmatch(plain) else "application/octet-stream"
