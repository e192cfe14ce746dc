"""`pynchy backup` and `pynchy restore`: the whole PYNCHY_HOME as one file, also while a service runs on it.

Agents write into the home meanwhile, and what they have in their folders is theirs to choose: no link is
followed, nothing but directories, links and ordinary files is read, and what changes or vanishes is no failure.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import sqlite3
import stat
import sys
import tarfile
import tempfile
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pynchy.cli.output import complain, complain_of_system, tell, visible
from pynchy.home import database, pynchy_home
from pynchy.reading import reading
from pynchy.schema import NewerSchema, migrate

_DATABASE = database(Path()).name
#: Made anew at each start, or of no use to another one.
_PASSING = frozenset({"runner", "skills", "loading", "service.lock"})
_PASSING_PREFIXES = ("smoke-",)
#: Beside a database in SQLite's WAL mode; what is in the first is in its copy.
_BESIDE_DATABASES = ("-wal", "-shm", "-journal")
_SQLITE = b"SQLite format 3\0"
#: Below so many folders from here everything is an agent's: nothing there is opened as a database.
_OF_AGENTS = {"groups": 2, "plugin-data": 3}
#: An agent can make a file of any size that takes no room; what claims so many bytes more than it has is left out.
_MOST_HOLES = 4 * 1024**3
#: Nor must a path be too long to be made again elsewhere, or a tree too deep to be walked: bytes, and folders.
_LONGEST_PATH, _DEEPEST = 2000, 200

#: Nothing is waited for, and no link followed.
_NO_LINK = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_Note = Callable[[str], None]


class BackupError(Exception):
    """It cannot be done; one sentence says why and what to do."""


def backup(target: str) -> int:
    """Write the home into a file that is there whole or not at all; `-` is stdout."""

    def action(home: Path) -> None:
        if not (home / _DATABASE).is_file():
            raise BackupError(f"There is nothing to back up: {home} has no {_DATABASE}.")
        if target == "-":
            if sys.stdout.isatty():
                raise BackupError("A backup is not for a terminal: name a file, or send it into a pipe.")
            with tempfile.TemporaryDirectory(prefix="pynchy-") as scratch:
                write_archive(home, sys.stdout.buffer, Path(scratch), tell)
            return
        file = Path(target).absolute()
        if os.path.lexists(file):
            raise BackupError(f"{file} is there already: choose another name.")
        if file.resolve().is_relative_to(home.resolve()):
            raise BackupError(f"{file} lies in {home} itself: choose a place outside.")
        with tempfile.TemporaryDirectory(prefix=".pynchy-backup-", dir=file.parent) as scratch:
            handle, name = tempfile.mkstemp(dir=scratch)
            with os.fdopen(handle, "wb") as stream:
                write_archive(home, stream, Path(scratch), tell)
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).rename(file)
        tell(f"{file} holds everything, the credentials too: keep it where nobody else reads it.")

    return _guarded(action)


def restore(source: str) -> int:
    """Make a home of a backup, whole or not at all, where there is none or an empty one; `-` is stdin."""

    def action(home: Path) -> None:
        home = home.resolve()
        if home.exists() and (not home.is_dir() or any(home.iterdir())):
            raise BackupError(
                f"{home} is not empty: move it away (stop its service first), or set another PYNCHY_HOME."
            )
        home.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".pynchy-restore-", dir=home.parent))
        try:
            with _opened(source) as stream:
                read_archive(stream, scratch)
            _adopt(scratch / _DATABASE)
            scratch.chmod(0o700)
            try:
                scratch.rename(home)  # which fails where somebody has begun to use it meanwhile
            except OSError as error:
                raise BackupError(
                    f"{home} cannot be replaced ({error.strerror}): is it a mount point, or in use? "
                    "Set PYNCHY_HOME to a directory inside it, or to another."
                ) from None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        print(f"{home} is restored; `pynchy doctor` says what this machine still lacks.")

    return _guarded(action)


def _guarded(action: Callable[[Path], None]) -> int:
    try:
        action(pynchy_home())
    except BackupError as error:
        return complain(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        return complain_of_system(error)
    return 0


# --- writing ------------------------------------------------------------------------------------------------


def write_archive(home: Path, stream: IO[bytes], scratch: Path, note: _Note) -> None:
    """Write a home as a compressed tar. Databases are copied into `scratch` first; `note` hears what is left out.

    BackupError where the database cannot be copied.
    """
    with (
        gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=6, mtime=0, filename="") as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        try:
            writing = _Writing(archive, home, scratch, note)
            writing.add_database(Path(_DATABASE))
        except sqlite3.Error as error:
            raise BackupError(f"The database {home / _DATABASE} cannot be copied: {error}.") from None
        descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            writing.add_folder(Path(), descriptor)
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class _Writing:
    """An archive, and what is to go into it. Paths are relative to the home, descriptors those of open directories."""

    archive: tarfile.TarFile
    home: Path
    scratch: Path
    note: _Note

    def add_folder(self, here: Path, folder: int) -> None:
        """Add what is in a directory."""
        if len(os.fsencode(here)) > _LONGEST_PATH or len(here.parts) >= _DEEPEST:
            words = f"{visible(str(here)[:100])}... is left out from {len(here.parts)} folders down: it is too deep."
            self.note(words)
            return
        for name in sorted(os.listdir(folder)):
            if not here.parts and (name == _DATABASE or _passing(name)):
                continue
            try:
                self._add(here / name, folder)
            except FileNotFoundError:
                pass  # it has gone since
            except OSError as error:
                if error.filename is None:
                    raise  # it is the backup that cannot be written
                self.note(f"{visible(str(here / name))} is left out: {error.strerror}.")

    def _add(self, path: Path, folder: int) -> None:
        """Add what has a name in a directory. It may be something else by the next step."""
        theirs = _of_agents(path)
        if not theirs and path.name.endswith(_BESIDE_DATABASES) and _has_database(self.home / path):
            return
        status = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            member = _member(path, status)
            member.type, member.linkname = tarfile.SYMTYPE, os.readlink(path.name, dir_fd=folder)
            self.archive.addfile(member)
            if not theirs:
                self.note(f"{visible(str(path))} is a link, and what it leads to is not in the backup.")
        elif stat.S_ISDIR(status.st_mode):
            descriptor = os.open(path.name, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK, dir_fd=folder)
            try:
                self.archive.addfile(_member(path, os.fstat(descriptor)))
                self.add_folder(path, descriptor)
            finally:
                os.close(descriptor)
        elif stat.S_ISREG(status.st_mode):
            descriptor = os.open(path.name, os.O_RDONLY | _NO_LINK, dir_fd=folder)
            with os.fdopen(descriptor, "rb") as file:
                self._add_file(path, file)

    def _add_file(self, path: Path, file: io.BufferedReader) -> None:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            return
        if status.st_size - 512 * status.st_blocks > _MOST_HOLES:
            self.note(
                f"{visible(str(path))} is left out: it claims {status.st_size} bytes, and most of them are not there."
            )
            return
        if not _of_agents(path) and file.peek(len(_SQLITE)).startswith(_SQLITE):
            try:
                self.add_database(path)
            except sqlite3.Error:
                pass  # only something that looks like one, then
            else:
                return
        self.archive.addfile(_member(path, status), _Steady(file))

    def add_database(self, path: Path) -> None:
        """Add a database as it is between two of its transactions; sqlite3.Error where it is none."""
        live_path, copy = self.home / path, self.scratch / "database"
        try:
            with (
                reading(live_path) as live,
                closing(sqlite3.connect(copy)) as still,
            ):
                still.execute("PRAGMA synchronous = OFF")
                live.backup(still)
            with copy.open("rb") as file:
                member = _member(path, live_path.stat())
                member.size = os.fstat(file.fileno()).st_size
                self.archive.addfile(member, file)
        finally:
            copy.unlink(missing_ok=True)


class _Steady(io.RawIOBase):
    """A file of the size that it had: zeros take the place of what was cut off or cannot be read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        """Exactly so many bytes."""
        try:
            data = self._file.read(size)
        except OSError:
            data = b""
        return data.ljust(size, b"\0")


def _member(path: Path, status: os.stat_result) -> tarfile.TarInfo:
    member = tarfile.TarInfo(str(path))
    member.mode = stat.S_IMODE(status.st_mode)
    member.uid, member.gid = status.st_uid, status.st_gid
    member.mtime = int(status.st_mtime)
    if stat.S_ISDIR(status.st_mode):
        member.type = tarfile.DIRTYPE
    elif stat.S_ISREG(status.st_mode):
        member.size = status.st_size
    return member


def _of_agents(path: Path) -> bool:
    return len(path.parts) > _OF_AGENTS.get(path.parts[0], len(path.parts))


def _passing(name: str) -> bool:
    return name in _PASSING or name.startswith(_PASSING_PREFIXES)


def _has_database(path: Path) -> bool:
    return path.with_name(path.name.rpartition("-")[0]).is_file()


# --- reading ------------------------------------------------------------------------------------------------


@contextmanager
def _opened(source: str) -> Iterator[IO[bytes]]:
    if source == "-":
        yield sys.stdin.buffer
    else:
        with Path(source).open("rb") as file:
            yield file


def read_archive(stream: IO[bytes], folder: Path) -> None:
    """Lay out a backup in an empty directory; BackupError for what is none, or holds what no backup of ours does.

    Owners are kept where this is root. Links come last, so that nothing is written through one.
    """
    as_root = os.geteuid() == 0
    late: list[tarfile.TarInfo] = []
    try:
        with gzip.GzipFile(fileobj=stream, mode="rb") as compressed:
            with tarfile.open(fileobj=compressed, mode="r|") as archive:
                for member in archive:
                    path = folder / _safe(member)
                    if member.isdir():
                        path.mkdir(mode=0o700)
                        late.append(member)
                    elif member.issym():
                        late.append(member)
                    else:
                        content = archive.extractfile(member)
                        assert content is not None
                        with path.open("xb") as file:
                            shutil.copyfileobj(content, file, 1 << 20)
                        _dress(path, member, as_root)
            while compressed.read(1 << 20):
                pass  # the checksum comes at the end
        for member in reversed(late):  # what is in a directory comes after it
            path = folder / member.name
            if member.issym():
                path.symlink_to(member.linkname)
            _dress(path, member, as_root)
    except (tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise BackupError(f"This is no backup, or a damaged one: {error}.") from None
    except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
        name = os.path.relpath(os.fsdecode(error.filename), folder)
        raise BackupError(f"This is no backup of pynchy: {visible(name)} does not fit into it.") from None


def _safe(member: tarfile.TarInfo) -> str:
    """The member's name; BackupError for one that leads elsewhere, or is of a kind that no backup has."""
    parts = member.name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in member.name:
        raise BackupError(f"This is no backup of pynchy: it has a file {visible(member.name)!r}.")
    if not (member.isdir() or member.issym() or member.type in tarfile.REGULAR_TYPES):
        raise BackupError(f"This is no backup of pynchy: {visible(member.name)} is neither file, folder nor link.")
    return member.name


def _dress(path: Path, member: tarfile.TarInfo, as_root: bool) -> None:
    """Give a file its owner, mode and time. No program runs as somebody else for having been in a backup."""
    if as_root:
        os.chown(path, member.uid, member.gid, follow_symlinks=False)
    if not member.issym():
        path.chmod(member.mode & 0o777)
        with suppress(OSError, OverflowError):  # another file system may know no such time
            os.utime(path, (member.mtime, member.mtime))


def _adopt(path: Path) -> None:
    """Bring the database up to date, and give it an id of its own: the original may still run on this machine.

    By the old one its service would take the containers of the other for its own, and end them.
    """
    if not path.is_file() or path.is_symlink():
        raise BackupError(f"This is no backup of pynchy: it has no {_DATABASE}.")
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            migrate(db)
            damage: list[Any] = [row for row in db.execute("PRAGMA quick_check") if row != ("ok",)]
            db.execute("UPDATE meta SET value = ? WHERE key = 'installation_id'", (uuid.uuid4().hex[:12],))
    except NewerSchema:
        raise BackupError("The backup was made by a newer pynchy; upgrade pynchy, and restore it then.") from None
    except sqlite3.Error as error:
        raise BackupError(f"The backup's database cannot be used: {error}.") from None
    if damage:
        raise BackupError(f"The backup's database is damaged: {damage[0][0]}.")
