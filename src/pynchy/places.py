"""Where a path really leads, links included, and who else could make it lead somewhere else."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pynchy.untrusted import printable

_MOST_LINKS = 40  # on the way to one folder, as Linux has it

Identity = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path leads. Two are equal where they are the same folder in the same place.

    `chain` are the folders from `/` to itself, `passed` those in which a name was looked up, also on the way through
    links. `steps` are all of these names, as they were found.
    """

    path: Path
    chain: tuple[Identity, ...]
    passed: frozenset[Identity] = field(compare=False)
    steps: tuple[tuple[Path, os.stat_result], ...] = field(compare=False)
    status: os.stat_result = field(compare=False)

    def within(self, other: Place) -> bool:
        """Whether it is the other, or lies in it: by what they are, for a folder can have names in two cases."""
        return other.chain[-1] in self.chain

    def overlaps(self, other: Place) -> bool:
        """Whether one of them lies in the other."""
        return self.within(other) or other.within(self)


def identity(status: os.stat_result) -> Identity:
    """Which file or folder it is, whatever it is called."""
    return status.st_dev, status.st_ino


def follow(path: Path) -> Place:
    """Go an absolute path, links included, step by step, for each of them to be judged; OSError."""
    top = Path("/").lstat()
    way, steps, passed = [(Path("/"), top)], [(Path("/"), top)], set[Identity]()
    names, links = [*reversed(path.parts[1:])], 0
    while names:
        (here, status), name = way[-1], names.pop()
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(here))
        passed.add(identity(status))
        if name == "..":
            del way[max(1, len(way) - 1) :]
            continue
        step = here / name, (here / name).lstat()
        steps.append(step)
        if not stat.S_ISLNK(step[1].st_mode):
            way.append(step)
            continue
        if (links := links + 1) > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = step[0].readlink()
        if target.is_absolute():
            del way[1:]
        names += reversed(target.parts[1:] if target.is_absolute() else target.parts)
    path, status = way[-1]
    return Place(path, tuple(identity(one) for _, one in way), frozenset(passed), tuple(steps), status)


def absolute(text: str) -> Path:
    """The path that a person has written, made absolute; ValueError."""
    if any(unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp") for one in text):
        raise ValueError("its name has a character that cannot be seen")
    try:
        path = Path(text).expanduser() if text == "~" or text.startswith("~/") else Path(text)
    except RuntimeError:
        raise ValueError("nobody knows where `~` is") from None
    if not path.is_absolute():
        raise ValueError("a path begins with `/` or `~/`")
    return path


def existing(paths: Iterable[str | Path]) -> Iterator[Place]:
    """Where these paths lead, without those that lead nowhere: nothing lies in what is not there."""
    for path in paths:
        try:
            yield follow(Path(path))
        except OSError:
            continue


def moved_by_others(place: Place, agent: tuple[int, int] | None = None) -> str:
    """Which step of the way another user than root can change, and how; an empty string where there is none.

    The folder itself may be the agent's, where that is another user: where it is does not depend on that.
    """
    for path, status in place.steps:
        uid, gid = agent if agent and path == place.path else (0, 0)
        if status.st_uid not in (0, os.geteuid(), uid):
            return f"{shown(path)} belongs to another user, uid {status.st_uid}"
        if stat.S_ISLNK(status.st_mode) or status.st_mode & stat.S_ISVTX:
            continue
        if status.st_mode & stat.S_IWOTH:
            return f"everyone can write {shown(path)}"
        if status.st_mode & stat.S_IWGRP and status.st_gid not in (0, gid, _private_group()):
            return f"the group with gid {status.st_gid} can write {shown(path)}"
    return ""


def _private_group() -> int:
    """The group that is this user's alone: a system that makes one for each user names it after them. Else root's."""
    try:
        named_alike = grp.getgrgid(os.getegid()).gr_name == pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return 0
    return os.getegid() if named_alike else 0


def shown(text: object) -> str:
    """A name as a sentence may hold it: an agent can have chosen it."""
    return printable(str(text), "?")[:300]
