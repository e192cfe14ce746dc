"""What is older than it may become is removed at the start and once a day: from the database, and from the disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import stat
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import structlog

from pynchy import logs
from pynchy.config import Settings
from pynchy.store import Store

log = structlog.get_logger(__name__)

_DAY = timedelta(days=1)
#: The clock is looked at so often, in seconds: a suspended machine's timers stop.
_LOOK_EVERY = 3600.0
#: A file that was sent is of no use any more, and an agent may send no end of them.
_SENT_KEPT_FOR = _DAY


class Retention:
    """Removes what is older than the settings' `keep_days`, at the start and once a day.

    `ended` is told of each chat whose conversation was ended, so that an agent that still has it ends as well and
    the notice is sent. `clock` is aware; `wait` takes seconds.
    """

    def __init__(
        self,
        store: Store,
        home: Path,
        settings: Settings,
        ended: Callable[[str], None] = lambda jid: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._removals = store.removals
        self._tasks = store.tasks
        self._home = home
        self._days = settings.keep_days
        self._ended = ended
        self._clock = clock
        self._wait = wait

    async def run(self) -> None:
        """Do so until cancelled. What did not succeed is tried again at the next look at the clock."""
        last: datetime | None = None
        while True:
            now = self._clock()
            if last is None or not last <= now < last + _DAY:  # the clock may have been set back
                last = now if await self.remove() else None
            await self._wait(_LOOK_EVERY)

    async def remove(self) -> bool:
        """Remove what is too old now; whether that was all."""
        now = self._clock()
        steps: list[Callable[[], Awaitable[bool]]] = [partial(self._sent, now)]
        if self._days:
            before = now - timedelta(days=self._days)
            steps += [
                partial(self._conversations, before),
                partial(self._rows, before, now),
                partial(self._old_tasks, before),
                partial(self._attachments, before),
                partial(self._logs, before),
            ]
        steps.append(self._traces)
        return all([await self._guarded(step) for step in steps])

    async def _guarded(self, step: Callable[[], Awaitable[bool]]) -> bool:
        try:
            return await step()
        except (sqlite3.Error, OSError) as error:
            log.warning("could not remove all that is too old; trying again in an hour", error=str(error))
        except Exception:
            log.exception("removing what is too old failed; trying again in an hour")
        return False

    async def _conversations(self, before: datetime) -> bool:
        days = "a day" if self._days == 1 else f"{self._days} days"
        notice = (
            f"This conversation began more than {days} ago, which is as long as I keep one. I have ended it: your "
            "next message begins a new one."
        )
        ended, all_of_them = await self._removals.end_conversations(before, notice)
        for jid in ended:
            self._ended(jid)
        return all_of_them

    async def _rows(self, before: datetime, now: datetime) -> bool:
        if removed := await self._removals.remove(before, now):
            log.info("removed what was said too long ago", rows=removed)
        return True

    async def _old_tasks(self, before: datetime) -> bool:
        if await self._removals.expect_traces(before):
            await self._tasks.forget_before(before)
        return True

    async def _attachments(self, before: datetime) -> bool:
        in_use, _ = await self._removals.files_in_use()
        return await asyncio.to_thread(remove_files, self._home / "attachments", before, in_use)

    async def _sent(self, now: datetime) -> bool:
        _, in_use = await self._removals.files_in_use()
        return await asyncio.to_thread(remove_files, self._home / "sent", now - _SENT_KEPT_FOR, in_use)

    async def _logs(self, before: datetime) -> bool:
        await asyncio.to_thread(logs.remove_before, self._home, before.date())
        return True

    async def _traces(self) -> bool:
        await self._removals.erase_traces()
        return True


def remove_files(top: Path, before: datetime, in_use: Collection[str]) -> bool:
    """Remove the files in the groups' folders below `top` that were last changed before this; whether all could be.

    `in_use` are paths below `top`. No link is followed: one that is old is removed itself. A folder that this
    leaves empty goes too, but never a group's own, which its agent may have before it.
    """
    succeeded = True
    if not top.is_dir():
        return succeeded
    if top.is_symlink():
        log.warning("files that are too old are not removed: their folder is a link", path=str(top))
        return False
    for folder, folders, names, descriptor in os.fwalk(top, topdown=False, follow_symlinks=False):
        path = Path(folder).relative_to(top)
        gone = 0
        for name in (*names, *folders):
            try:
                found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    continue
                if found.st_mtime < before.timestamp() and (path / name).as_posix() not in in_use:
                    os.unlink(name, dir_fd=descriptor)
                    gone += 1
            except FileNotFoundError:
                pass  # a folder that was just left empty, or somebody else was first
            except OSError as error:
                succeeded = False
                log.warning("a file that is too old cannot be removed", path=str(path / name), error=error.strerror)
        if gone and len(path.parts) > 1:
            with contextlib.suppress(OSError):  # it is not empty
                Path(folder).rmdir()
    return succeeded
