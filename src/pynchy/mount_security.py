"""The allowlist for extra mounts: which folders of this machine a group's agent may see beside its own.

`mounts.toml` in PYNCHY_HOME names the folders beneath which something may be mounted; without it, nothing may. What a
group asks for is judged anew at each start of its agent, by where it really is and not by what it is called, and a
check that cannot be made is a refusal.
"""

from __future__ import annotations

import errno
import os
import pwd
import re
import stat
import sys
import time
import tomllib
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from itertools import chain, combinations, count, islice
from pathlib import Path
from typing import Any, NoReturn

from pynchy.agent_environment import AgentEnvironment
from pynchy.blocked_names import BlockedNames
from pynchy.home import container_dir
from pynchy.places import Identity, Place, absolute, existing, follow, identity, moved_by_others, shown
from pynchy.types import ExtraMount, Group, VolumeMount

ALLOWLIST = "mounts.toml"
EXTRA_PATH = "/workspace/extra"

_MOST_BYTES = 64 * 1024
_MOST_MOUNTS = 32
#: What is looked through beneath all the folders of a group, and how long that may take, in seconds.
_MOST_ENTRIES = 200_000
_MOST_LEVELS = 50
_CHECKED_WITHIN = 10.0

_WRITE = ("none", "main", "all")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

#: Folders of the system, where it has them: no root is one, lies in one or has one in it.
_SYSTEM = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr"),
    *("/var/log", "/var/spool", "/System", "/Library", "/Applications"),
)

_CHANGING = ("it changes while it is checked", "try again when nothing moves it")


class MountRefused(ValueError):
    """A group's agent may not have what it is set to have: which folder, why, and what to do, in one sentence."""


def extra_mounts(
    home: Path, group: Group, everyone: Collection[Group], owner: tuple[int, int] | None = None
) -> tuple[VolumeMount, ...]:
    """The mounts of a group beside those that every agent has, or MountRefused; reads the disk, for seconds at worst.

    `everyone` are all groups, `owner` is whom agents run as, None for this user. What is returned is where a folder
    is, without links. Between that and its mounting only this user, or root, can put another into its place.
    """
    if not group.mounts:
        return ()
    if len(group.mounts) > _MOST_MOUNTS:
        raise MountRefused(f"a group can have {_MOST_MOUNTS} extra mounts, and this has {len(group.mounts)}; drop some")
    allowlist = _Allowlist.read(home)
    survey = _Survey(allowlist.names)
    writable = list(_writable([group, *(one for one in everyone if one.jid != group.jid)]))
    changed = {folder.chain[-1] for folder in (*existing([home]), *(folder for _, folder in writable))}
    places = [(mount, _place_of(mount)) for mount in group.mounts]
    _check_apart(places)
    for mount, place in places:
        _check_names(mount, place, allowlist.names)
        _check_way(mount, place, owner)
        _check_neighbours(mount, place, home, writable)
        allowlist.check(mount, place, group, changed, _other_agent(owner))
        if not mount.readonly:
            _check_programs(mount, place)
        survey.check(mount, place)
    for mount, place in places:
        if _place_of(mount) != place:
            _refuse(mount, *_CHANGING)
    names = _names_inside(place.path.name for _, place in places)
    return tuple(
        VolumeMount(str(place.path), f"{EXTRA_PATH}/{name}", mount.readonly)
        for (mount, place), name in zip(places, names, strict=True)
    )


def _names_inside(names: Iterable[str]) -> list[str]:
    """What folders with these names are called in the container."""
    given: list[str] = []
    for name in names:
        safe = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", name))[:60].lstrip(".-") or "folder"
        numbered = (f"{safe}-{number}" for number in count(2))
        given.append(next(one for one in chain((safe,), numbered) if one not in given))
    return given


def _refuse(mount: ExtraMount, why: str, remedy: str) -> NoReturn:
    raise MountRefused(f"{shown(mount.host_path)} cannot be mounted: {why}; {remedy}") from None


def _place_of(mount: ExtraMount) -> Place:
    try:
        place = follow(absolute(mount.host_path))
        absolute(str(place.path))  # a link can lead to a name that nobody would write
    except FileNotFoundError:
        _refuse(mount, "it does not exist", "create it, or take it off the group's mounts")
    except OSError as error:
        _refuse(mount, f"it cannot be looked up ({error.strerror})", "correct the path")
    except ValueError as error:
        _refuse(mount, str(error), "correct the path, or rename the folder")
    if not stat.S_ISDIR(place.status.st_mode):
        _refuse(mount, "it is no folder", "name the folder that it lies in")
    return place


# --- what may be, whoever asks ------------------------------------------------------------------------------


def _check_names(mount: ExtraMount, place: Place, names: BlockedNames) -> None:
    for path in (absolute(mount.host_path), place.path):
        for above, part in zip(path.parts, path.parts[1:], strict=False):
            if names.blocked(above, part):
                _refuse(mount, f"{shown(part)} is a name that stands for secrets", "mount another folder")


def _check_way(mount: ExtraMount, place: Place, owner: tuple[int, int] | None) -> None:
    """Nobody else may put another folder into its place, and the agent must have some use of it."""
    uid, gid = owner or (os.geteuid(), os.getegid())
    if why := moved_by_others(place, _other_agent(owner)):
        _refuse(mount, why, "let nobody else write there, or mount another folder")
    mode, shift = place.status.st_mode, 6 if place.status.st_uid == uid else 3 if place.status.st_gid == gid else 0
    needed = 0o5 if mount.readonly else 0o7
    if uid and (mode >> shift) & needed != needed:
        what = "read" if mount.readonly else "write"
        _refuse(mount, f"agents run as uid {uid}, which may not {what} it", "let them, with `chown` or `chmod`")


def _other_agent(owner: tuple[int, int] | None) -> tuple[int, int] | None:
    """Whom agents run as, where that is another user."""
    return owner if owner and owner[0] != os.geteuid() else None


def _writable(groups: Iterable[Group]) -> Iterator[tuple[Group, Place]]:
    """Every folder that the agents of these groups can write, as far as it is there."""
    for group in groups:
        for mount in group.mounts:
            if not mount.readonly:
                try:
                    yield group, follow(absolute(mount.host_path))
                except (OSError, ValueError):
                    continue


def _check_neighbours(mount: ExtraMount, place: Place, home: Path, writable: Collection[tuple[Group, Place]]) -> None:
    """It has nothing in common with Pynchy's home, and does not depend on a name that an agent can change."""
    if any(place.overlaps(own) or own.chain[-1] in place.passed for own in existing([home])):
        _refuse(mount, "Pynchy keeps its own things there", "mount a folder apart from PYNCHY_HOME")
    for group, other in writable:
        if other.chain[-1] != place.chain[-1] and (other.chain[-1] in place.passed or other.within(place)):
            _refuse(
                mount,
                f"it has in it or lies in {shown(other.path)}, which the agent of {group.folder} can write",
                "mount the very same folder, or one apart from it",
            )


def _check_programs(mount: ExtraMount, place: Place) -> None:
    """No agent writes what this user, or another group's agent, runs."""
    own = [Path(__file__).parent, container_dir(), AgentEnvironment().path, sys.prefix, sys.base_prefix]
    if any(place.overlaps(one) for one in existing(path for path in (*own, *sys.path) if Path(path).is_absolute())):
        _refuse(mount, "programs of Pynchy's or its plugins' lie there", "mount it read-only")


def _check_apart(places: Iterable[tuple[ExtraMount, Place]]) -> None:
    for (mount, place), (other, another) in combinations(places, 2):
        if place.overlaps(another):
            _refuse(mount, f"it overlaps with {shown(other.host_path)}", "mount one of the two")


# --- the allowlist ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Root:
    """A folder beneath which something may be mounted, and by whom for writing."""

    place: Place
    write: str

    def allows(self, mount: ExtraMount, group: Group) -> bool:
        """Whether a group may have it the way that it asks for."""
        return mount.readonly or self.write == "all" or (self.write == "main" and group.is_main)


@dataclass(frozen=True, slots=True)
class _Allowlist:
    """What `mounts.toml` says."""

    file: Path
    roots: tuple[_Root, ...]
    names: BlockedNames

    @classmethod
    def read(cls, home: Path) -> _Allowlist:
        """Read it; MountRefused where anything at all is wrong with it, for then it allows nothing."""
        file = home / ALLOWLIST
        try:
            tables = _tables(file)
            blocked, roots = tables.pop("blocked", []), tables.pop("root", [])
            _check_keys(tables, "`blocked` and `[[root]]`")
            if not _are(blocked, str) or not all(0 < len(name) <= 200 and name.count("/") < 2 for name in blocked):
                raise ValueError('`blocked` is no list of names, as in ["*.kdbx"]')
            if not _are(roots, dict):
                raise ValueError("a root is written as `[[root]]`")
            return cls(file, tuple(one for table in roots for one in _root(table)), BlockedNames(blocked))
        except MountRefused:
            raise
        except RecursionError:
            why = "it has too many brackets in brackets"
        except (ValueError, OSError, re.error) as error:
            why = getattr(error, "strerror", None) or str(error)
        raise MountRefused(f"nothing can be mounted, for {file} is not as it must be: {shown(why)}; correct it")

    def check(
        self, mount: ExtraMount, place: Place, group: Group, changed: Set[Identity], agent: tuple[int, int] | None
    ) -> None:
        """MountRefused where no root has this folder in it, or where the nearest, or one in it, lets it not be written.

        A root that others can move counts for nothing; `changed` are the folders in which agents can.
        """
        around = [
            root
            for root in self.roots
            if place.path.is_relative_to(root.place.path)
            and not root.place.passed & changed
            and not moved_by_others(root.place, agent)
        ]
        if not around:
            _refuse(
                mount, f"no root of {self.file} has it in it", "add a `[[root]]` with it or a folder above as `path`"
            )
        depth = max(len(root.place.chain) for root in around)
        beneath = (root for root in self.roots if root.place.within(place))
        for root in (*(root for root in around if len(root.place.chain) == depth), *beneath):
            if not root.allows(mount, group):
                _refuse(
                    mount,
                    f'the root {shown(root.place.path)} has `write = "{root.write}"` in {self.file}',
                    "mount it read-only, or change that",
                )


def _tables(file: Path) -> dict[str, Any]:
    """What a file of TOML has, that only its owner can write; ValueError, OSError."""
    try:
        # Not followed, for what a link leads to can be another's; not waited for, should it be a pipe.
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise MountRefused(
            f"nothing can be mounted, for there is no {file}; write `[[root]]` into it, and on the next line which "
            'folder may be, as in `path = "~/Documents"`'
        ) from None
    except OSError as error:
        raise ValueError(
            "it is no regular file" if error.errno in (errno.ELOOP, errno.ENXIO) else error.strerror
        ) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        if status.st_uid not in (0, os.geteuid()):
            raise ValueError(f"it belongs to another user, uid {status.st_uid}")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ValueError("others than its owner can write it, until `chmod go-w`")
        data = os.read(descriptor, _MOST_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES} bytes")
    return tomllib.loads(data.decode())


def _check_keys(left: Mapping[str, object], known: str) -> None:
    if left:
        raise ValueError(f"it has {', '.join(map(repr, sorted(left)))}, and there are {known} alone")


def _are(values: object, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(one, kind) for one in values)


def _root(table: dict[str, Any]) -> Iterator[_Root]:
    """A root, if its folder is there; ValueError."""
    path, write = table.pop("path", None), table.pop("write", "none")
    _check_keys(table, "`path` and `write` in a root")
    if not isinstance(path, str):
        raise ValueError("a root has no `path` that is a text")
    if write not in _WRITE:
        raise ValueError(f"the root {path} has a `write` that is none of {', '.join(map(repr, _WRITE))}")
    try:
        given = absolute(path)
    except ValueError as error:
        raise ValueError(f"the root {path} cannot be: {error}") from None
    for place in existing([given]):
        if why := _too_wide(place):
            raise ValueError(f"the root {path} is too wide, {why}: name a folder in it that may be seen")
        if not stat.S_ISDIR(place.status.st_mode):
            raise ValueError(f"the root {path} is no folder")
        yield _Root(place, write)


def _too_wide(place: Place) -> str:
    """Why a folder holds too much to be a root; an empty string where it does not."""
    if len(place.chain) < 3:
        return "for it holds parts of the whole machine"
    if any(one.within(place) for one in existing(_homes())):
        return "for a home is in it"
    if any(one.overlaps(place) for one in existing(_SYSTEM)):
        return "for it is the system's"
    return ""


def _homes() -> Iterator[Path]:
    try:
        yield Path.home()
        yield Path(pwd.getpwuid(os.geteuid()).pw_dir)
    except (RuntimeError, KeyError):  # a user without a home
        return


# --- what lies beneath --------------------------------------------------------------------------------------


class _Survey:
    """A look at everything beneath the folders of one group, within bounds and without following a link."""

    def __init__(self, names: BlockedNames) -> None:
        self._names = names
        self._left = _MOST_ENTRIES
        self._until = time.monotonic() + _CHECKED_WITHIN

    def check(self, mount: ExtraMount, place: Place) -> None:
        """MountRefused where there is something that no agent may see, or that cannot be looked at."""
        try:
            folder = os.open(place.path, _FOLDER)
            try:
                if identity(os.fstat(folder)) != place.chain[-1]:
                    _refuse(mount, *_CHANGING)
                self._look(mount, place.path, folder, place.status.st_dev, _MOST_LEVELS)
            finally:
                os.close(folder)
        except OSError as error:
            _refuse(mount, f"it cannot be looked through ({error.strerror})", "see who may read it, and try again")

    def _look(self, mount: ExtraMount, where: Path, folder: int, device: int, levels: int) -> None:
        # An agent may be at work in it: what was a folder a moment ago can be a link now, and a path would follow it.
        with os.scandir(folder) as entries:
            found = list(islice(entries, self._left + 1))
        self._left -= len(found)
        if self._left < 0 or not levels or time.monotonic() > self._until:
            _refuse(mount, "there is too much in it to be checked", "mount a smaller folder")
        for entry in found:
            path = where / entry.name
            if self._names.blocked(where.name, entry.name):
                _refuse(
                    mount, f"{shown(path)} has a name that stands for secrets", "move it away, or mount another folder"
                )
            if entry.is_dir(follow_symlinks=False):
                self._enter(mount, path, folder, device, levels - 1)
            elif not entry.is_file(follow_symlinks=False) and not entry.is_symlink():
                _refuse(
                    mount, f"{shown(path)} is a socket, a pipe or a device", "move it away, or mount another folder"
                )

    def _enter(self, mount: ExtraMount, path: Path, above: int, device: int, levels: int) -> None:
        try:
            folder = os.open(path.name, _FOLDER, dir_fd=above)
        except FileNotFoundError:
            return  # it has just been removed
        try:
            if os.fstat(folder).st_dev != device:
                # Not every engine makes what is mounted beneath a mount read-only, too.
                _refuse(mount, f"{shown(path)} is another file system", "mount a folder that has none in it")
            self._look(mount, path, folder, device, levels)
        finally:
            os.close(folder)
