"""Which files may be heard: those of the chat, in the container's own places."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

#: Below the workspace: the chat's own folder, what came with its messages, the user's folders.
_PLACES = ("group", "attachments", "extra")
_MOST_BYTES = 1 << 30


class Refused(Exception):
    """A recording that cannot be transcribed; the message is a sentence for the agent."""


def open_recording(path: str, workspace: Path) -> BinaryIO:
    """Open the file that a path means, where it is one that may be heard; a relative one is below the chat's folder."""
    shown = shorten(path)
    try:
        meant = workspace / _PLACES[0] / path
        real = Path(os.path.realpath(meant))
        if not path.strip() or "\0" in path:
            raise Refused(
                "the path is empty or holds a NUL: name an audio file, such as one under /workspace/attachments"
            )
        if not any(root == real or root in real.parents for root in _roots(workspace)):
            through = "is a link that leads" if _lies_in(meant, workspace) else "is"
            raise Refused(f"{shown} {through} outside of {_names()}: only files there can be heard")
        # Not blocking, for a fifo's other end may never be opened.
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Refused(f"there is no file {shown}: look at what is under {_names()}") from None
    except PermissionError:
        raise Refused(f"{shown} may not be read: make it readable") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it cannot be a path"
        raise Refused(f"{shown} cannot be opened ({why}): name an audio file by its path") from None
    if problem := _problem(os.fstat(descriptor)):
        os.close(descriptor)
        raise Refused(f"{shown} {problem}")
    return os.fdopen(descriptor, "rb")


def _problem(status: os.stat_result) -> str:
    if stat.S_ISDIR(status.st_mode):
        return "is a folder: name one audio file in it"
    if not stat.S_ISREG(status.st_mode):
        return "is not an ordinary file: name an audio file"
    if status.st_size == 0:
        return "is empty: it may still be on its way, or was never saved"
    if status.st_size > _MOST_BYTES:
        return f"has {status.st_size / 1e9:.1f} GB, and {_MOST_BYTES / 1e9:.1f} GB can be read: cut it into pieces"
    return ""


def shorten(path: str) -> str:
    """The path for an error, on one line that can be printed."""
    text = path if len(path) <= 200 else f"{path[:200]}..."
    return ascii(text) if not text.isprintable() else f"'{text}'"


def _roots(workspace: Path) -> list[Path]:
    return [Path(os.path.realpath(workspace / name)) for name in _PLACES]


def _lies_in(path: Path, workspace: Path) -> bool:
    written = Path(os.path.abspath(path))  # noqa: PTH100 - it must not follow links
    return any(workspace / name in written.parents for name in _PLACES)


def _names() -> str:
    return ", ".join(f"/workspace/{name}" for name in _PLACES[:-1]) + f" and /workspace/{_PLACES[-1]}"
