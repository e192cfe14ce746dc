"""`pynchy logs`: the service's log as a person reads it, of all groups or of one, and as it grows."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from pynchy.cli.output import complain, complain_of_system, tell, visible
from pynchy.home import database, pynchy_home
from pynchy.logs import log_files, log_folder
from pynchy.reading import reading

Event = dict[str, Any]
_Wanted = Callable[[Event], bool]

_BLOCK = 1 << 16  # bytes
_LOOK_EVERY = 0.2  # seconds
#: The name of a container ends so after its installation's; it has the first 40 characters of the folder.
_CONTAINER = re.compile(r"pynchy-[^-]+-(.+)-[0-9a-f]{8}")


def show(group: str | None, lines: int, follow: bool) -> int:
    """Print the last lines, of all groups or of the one in this folder; with `follow` until Ctrl-C."""
    home = pynchy_home()
    try:
        if group is not None and group not in (known := _folders(home)):
            return complain(f"There is no group {group!r}; there are: {', '.join(known) or 'none'}.")
        if not log_files(home):
            if not follow:
                return complain(f"There is no log in {log_folder(home)} yet: `pynchy run` writes it.")
            tell(f"There is no log in {log_folder(home)} yet; waiting for one.")
        return _show(home, lines, lambda event: group is None or about(event, group), follow)
    except sqlite3.Error as error:
        return complain(f"The groups are not known, for {database(home)} cannot be read: {error}.")
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        return complain_of_system(error)


def _show(home: Path, lines: int, wanted: _Wanted, follow: bool) -> int:
    reading = _Reading(home)
    for event in reversed(list(_last(home, reading.offset, lines, wanted))):
        print(in_words(event))
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):
        while follow:
            for line in reading.more():
                if wanted(event := parsed(line)):
                    print(in_words(event), flush=True)
            time.sleep(_LOOK_EVERY)
    return 0


def last_lines(home: Path, lines: int) -> list[str]:
    """The last so many lines of the log, readable, oldest first."""
    return [in_words(event) for event in _last(home, _Reading(home).offset, lines, lambda _: True)][::-1]


def about(event: Event, folder: str) -> bool:
    """Whether an event is about the group in this folder."""
    if "group" in event:
        return event["group"] == folder
    match = _CONTAINER.fullmatch(str(event.get("container")))
    return match is not None and match[1] == folder[:40]


def in_words(event: Event) -> str:
    """An event on one line, in local time, and what Python said of an error on the lines after it."""
    fields = dict(event)
    when, level, what = (fields.pop(name, "") for name in ("time", "level", "event"))
    exception = fields.pop("exception", None)
    line = f"{_local(str(when))}  {visible(str(level)):7}  {visible(str(what))}"
    line += "".join(f"  {visible(name)}={_value(value)}" for name, value in fields.items())
    return "\n".join([line, *(f"    {visible(one)}" for one in str(exception or "").splitlines())])


def parsed(line: bytes) -> Event:
    """The event of a line; of one that is broken, what can be read of it."""
    text = line.decode("utf-8", "replace")
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        event = None
    return event if isinstance(event, dict) else {"level": "?", "event": text}


def _local(when: str) -> str:
    try:
        return datetime.fromisoformat(when).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError):
        return visible(when) or "-"


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    plain = isinstance(value, str) and value and not re.search(r'[\s"=]', value)
    return visible(text if plain or not isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _folders(home: Path) -> list[str]:
    if not database(home).is_file():
        return []
    with reading(database(home)) as db:
        return [folder for (folder,) in db.execute("SELECT folder FROM groups ORDER BY folder")]


class _Reading:
    """How far the log has been read: `more` gives the whole lines that were written since."""

    def __init__(self, home: Path) -> None:
        """Everything that is there now counts as read."""
        self._home = home
        days = log_files(home)
        self._day = max(days, default=None)
        self.offset = 0
        if self._day:
            with days[self._day].open("rb") as file:
                self.offset = _end_of_lines(file)

    def more(self) -> Iterator[bytes]:
        for day, path in log_files(self._home).items():
            if self._day and day < self._day:
                continue
            if day != self._day:
                self._day, self.offset = day, 0
            yield from self._rest(path)

    def _rest(self, path: Path) -> Iterator[bytes]:
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            if path.stat().st_size < self.offset:
                self.offset = 0  # somebody has emptied it
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self.offset += len(line)
                yield line


def _last(home: Path, offset: int, lines: int, wanted: _Wanted) -> Iterator[Event]:
    """The last events that are wanted, latest first; of the last file only what is before the offset."""
    end: int | None = offset
    for path in reversed(log_files(home).values()):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            for line in _backward(file, end):
                if lines <= 0:
                    return
                if wanted(event := parsed(line)):
                    lines -= 1
                    yield event
        end = None


def _backward(file: BinaryIO, end: int | None) -> Iterator[bytes]:
    """The lines of a file before a place in it, latest first."""
    left = file.seek(0, 2) if end is None else end
    rest = b""
    while left:
        size = min(_BLOCK, left)
        left -= size
        file.seek(left)
        first, *others = (file.read(size) + rest).split(b"\n")
        yield from (line for line in reversed(others) if line)
        rest = first
    if rest:
        yield rest


def _end_of_lines(file: BinaryIO) -> int:
    """Where the last whole line ends."""
    size = file.seek(0, 2)
    left = size
    while left:
        start = max(0, left - _BLOCK)
        file.seek(start)
        if (found := file.read(left - start).rfind(b"\n")) >= 0:
            return start + found + 1
        left = start
    return 0
