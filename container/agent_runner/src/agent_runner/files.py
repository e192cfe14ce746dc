"""Reading what may be anything: a file, or a pipe nobody writes to, a device without an end, a thing too large."""

from __future__ import annotations

import os
import stat
from pathlib import Path


class Unreadable(Exception):
    """There is nothing to be had from a path; the text says why, in words for the agent."""


def read_whole(path: Path, most: int) -> bytes:
    """A regular file of at most so many bytes; Unreadable for everything else."""
    data = read_start(path, most + 1)
    if len(data) > most:
        raise Unreadable(f"{path} is larger than {most // 1_000_000} MB, which is too large")
    return data


def read_start(path: Path, most: int) -> bytes:
    """The first bytes of a regular file, up to so many; Unreadable for everything else. Waits for nobody."""
    try:
        # Without O_NONBLOCK, opening a pipe would wait for whoever is to write into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Unreadable(f"{path} is no file: it is a folder, a pipe or a device")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(most) or b""
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise Unreadable(f"there is no file {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise Unreadable(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
