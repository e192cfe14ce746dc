"""What a channel leaves in the process that it ran in: threads, child processes, open files and sockets."""

from __future__ import annotations

import contextlib
import fnmatch
import gc
import os
import subprocess
import threading
import time
import warnings
from pathlib import Path
from types import TracebackType

from pynchy.testing._outcome import fail


class Leftovers:
    """Fails at its end where something has been left since its beginning, or of files, since `warmed_up`.

    `may_stay` names threads as `fnmatch` has it. Threads of other languages are not seen. What ends by itself may take
    `within` seconds.
    """

    def __init__(self, may_stay: frozenset[str], within: float) -> None:
        self._may_stay = may_stay
        self._within = within
        self._files: dict[str, str] = {}
        self._recording = warnings.catch_warnings(record=True)

    def __enter__(self) -> Leftovers:
        self._threads = set(threading.enumerate())
        self._processes = _children()
        gc.collect()  # what others have left is not the channel's
        self._warnings = self._recording.__enter__()
        warnings.simplefilter("always", ResourceWarning)
        self.warmed_up()
        return self

    def warmed_up(self) -> None:
        """What is open now may stay so."""
        self._files = _open_files()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        deadline = time.monotonic() + self._within
        while (left := self._left()) and kind is None and time.monotonic() < deadline:
            time.sleep(0.02)
        gc.collect()
        unclosed = [str(one.message) for one in self._warnings or () if issubclass(one.category, ResourceWarning)]
        self._recording.__exit__(kind, error, at)
        if kind is None and (left := left or unclosed):
            fail(f"after disconnect() there is still {', '.join(left)}: end and close it there")

    def _left(self) -> list[str]:
        threads = [
            f"the thread {one.name!r}"
            for one in set(threading.enumerate()) - self._threads
            if not any(fnmatch.fnmatchcase(one.name, name) for name in ("Dummy-*", *self._may_stay))
        ]
        processes = [f"the process {name}" for name in _children() - self._processes]
        files = _open_files()
        more = len(files) - len(self._files)
        new = [f"the open file {name}" for number, name in files.items() if self._files.get(number) != name]
        return sorted({*threads, *processes, *(new[:more] if more > 0 else [])})


def _open_files() -> dict[str, str]:
    """This process's descriptors, and what each is as far as the system tells."""
    found: dict[str, str] = {}
    for path in Path("/dev/fd").iterdir():
        with contextlib.suppress(OSError):  # the folder's own is closed again
            os.fstat(int(path.name))
            found[path.name] = str(path.readlink()) if path.is_symlink() else path.name
    return found


def _children() -> set[str]:
    """The child processes of this one, each with its id and name."""
    if not Path("/proc/self/stat").exists():
        listing = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid=,comm="], capture_output=True, text=True, check=True
        ).stdout
        rows = [line.split(maxsplit=2) for line in listing.splitlines()]
        return {f"{row[0]} ({row[2]})" for row in rows if row[1] == str(os.getpid()) and Path(row[2]).name != "ps"}
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = path.read_text(errors="replace").rpartition(")")
            if rest.split()[1] == str(os.getpid()):
                found.add(f"{name})")
    return found
