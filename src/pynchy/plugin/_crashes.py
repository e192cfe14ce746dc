"""Which plugin was being loaded when a process died of it.

What cannot be caught (a segmentation fault, `os._exit`, an import without end) is remembered: before a plugin
is loaded its name is written to a file of this process in PYNCHY_HOME/loading, and afterwards taken out. A file
that names a plugin and that no process holds a lock on tells of a death, and stays until the plugin is
installed again or `pynchy plugins check` has loaded it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from time import monotonic, time_ns

from pynchy.plugin._registry import PluginRecord

#: An interruption from the keyboard counts as a death of a plugin that has been loading for so many seconds.
_PATIENCE = 5.0


class CrashLog:
    """This process's file of the directory, and what the others tell. Without a directory nothing is remembered."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._descriptor: int | None = None
        self._path = ""
        self._written = 0
        self._deaths: dict[str, Path] = {}

    @classmethod
    @contextmanager
    def open(cls, home: Path | None) -> Iterator[CrashLog]:
        """The log of a PYNCHY_HOME, which is made where it is missing; where it cannot be, there is no log."""
        log = cls(None if home is None else home / "loading")
        try:
            log._begin()
        except OSError:
            log._directory = None
        try:
            yield log
        finally:
            log._end()

    def died_of(self, entry_point: EntryPoint) -> bool:
        """Whether a process has died loading it since it was installed."""
        path = self._deaths.get(_key(entry_point))
        if path is None:
            return False
        with contextlib.suppress(OSError):
            if path.stat().st_mtime >= _installed_at(entry_point):
                return True
            path.unlink()
        return False

    def forget(self, entry_point: EntryPoint) -> None:
        """It has been loaded and nothing happened."""
        if path := self._deaths.pop(_key(entry_point), None):
            path.unlink(missing_ok=True)

    @contextmanager
    def loading(self, entry_point: EntryPoint) -> Iterator[None]:
        """Should this process end meanwhile, it ended because of this plugin."""
        self._write(_key(entry_point))
        began = monotonic()
        try:
            yield
        except KeyboardInterrupt:
            if monotonic() - began < _PATIENCE:
                self._write("")
            else:
                self._path = ""  # leave it: nobody would have waited so long for a plugin that works
            raise
        except BaseException:
            self._write("")
            raise
        self._write("")

    def _begin(self) -> None:
        if self._directory is None:
            return
        self._directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory.mkdir(mode=0o700, exist_ok=True)
        for path in self._directory.iterdir():
            with contextlib.suppress(OSError):
                self._look_at(path)
        while True:
            self._path = f"{self._directory}/{os.getpid()}-{time_ns()}"
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            if os.fstat(self._descriptor).st_nlink:
                return
            os.close(self._descriptor)  # another start has looked at it before it was locked, and removed it

    def _look_at(self, path: Path) -> None:
        with path.open(errors="replace") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # its process lives: BlockingIOError, which is an OSError
            if key := file.read(4096).strip():
                self._deaths[key] = path
            else:
                path.unlink()

    def _write(self, key: str) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                data = key.encode()
                os.pwrite(self._descriptor, data.ljust(self._written), 0)  # over what was there
                self._written = len(data)

    def _end(self) -> None:
        if self._descriptor is not None:
            if self._path:
                with contextlib.suppress(OSError):
                    Path(self._path).unlink()
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def watched(record: PluginRecord | None, home: Path) -> Iterator[None]:
    """Should this process end meanwhile, it ended because of this plugin: for calls that may run foreign code."""
    if record is None:
        yield
        return
    with CrashLog.open(home) as log, log.loading(EntryPoint(record.entry_point, record.target, "")):
        yield


def _key(entry_point: EntryPoint) -> str:
    return f"{entry_point.name} = {entry_point.value}"


def _installed_at(entry_point: EntryPoint) -> float:
    """When its distribution was last installed, by the time of its metadata; 0 where that cannot be seen."""
    path = getattr(entry_point.dist, "_path", None)
    try:
        return path.stat().st_mtime if path else 0.0
    except (OSError, AttributeError):
        return 0.0
