"""One SQLite file: writes in a thread of their own, as many to a commit as are waiting, and reads beside them.

A commit costs one wait for the disk, however many writes it holds, so what many chats store at the same moment
is durable after one such wait. Each write is all or nothing by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

_Result = TypeVar("_Result")

#: Writes in one commit; a bound, so that the first of them does not wait for an endless stream of others.
_MOST_AT_ONCE = 256
#: Somebody who looks at the file with a tool of their own may hold it for so long, in seconds.
_LOCK_PATIENCE = 5.0


@dataclass(slots=True)
class _Write:
    work: Callable[[sqlite3.Connection], Any]
    done: asyncio.Future[Any]
    alone: bool = False
    result: Any = None
    error: Exception | None = None


class Database:
    """An open database. `write` returns once the change survives a power cut, `read` sees what is committed.

    A caller that is cancelled leaves its write behind, to be carried out: whole, or not at all.
    """

    def __init__(self, writer: sqlite3.Connection, reader: sqlite3.Connection) -> None:
        self._writer = writer
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="database-writer", daemon=True)
        self._closing = False
        self._reading = ThreadPoolExecutor(1, "database-reader")

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, prepare: Callable[[sqlite3.Connection], None]) -> AsyncIterator[Database]:
        """Open or create the file and have `prepare` bring it up to date. Raises what SQLite raises."""

        def connect() -> tuple[sqlite3.Connection, sqlite3.Connection]:
            writer = _connect(path)
            try:
                writer.execute("PRAGMA journal_mode = WAL")
                writer.execute("PRAGMA synchronous = FULL")  # a committed row survives a power cut
                prepare(writer)
                reader = _connect(path)
                reader.execute("PRAGMA query_only = ON")
                return writer, reader
            except BaseException:
                writer.close()
                raise

        database = cls(*await asyncio.to_thread(connect))
        database._thread.start()
        try:
            yield database
        finally:
            database._closing = True
            await asyncio.shield(asyncio.to_thread(database._close))

    def _close(self) -> None:
        self._waiting.put(None)
        self._thread.join()
        self._reading.shutdown()
        self._reader.close()
        self._writer.close()

    async def write(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Have `work` change the database; returns its result once that is durable, raises what it raised."""
        return await self._queue(_Write(work, self._loop.create_future()))

    async def alone(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Have `work` do what no transaction can hold, as VACUUM; every write behind it waits meanwhile."""
        return await self._queue(_Write(work, self._loop.create_future(), alone=True))

    async def _queue(self, job: _Write) -> Any:
        if self._closing:
            raise RuntimeError("the database is closed")
        self._waiting.put(job)
        return await job.done

    async def read(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Have `work` look at what is committed; it must change nothing."""
        return await self._loop.run_in_executor(self._reading, self._look, work)

    def _look(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        # A transaction of its own, so that a cursor somebody still holds cannot keep an old picture in place.
        self._reader.execute("BEGIN")
        try:
            return work(self._reader)
        finally:
            self._reader.execute("ROLLBACK")

    # --- in the writer's thread -----------------------------------------------------------------------------

    def _write_all(self) -> None:
        while job := self._waiting.get():
            batch = [job]
            last = False
            while len(batch) < _MOST_AT_ONCE and not batch[-1].alone:
                try:
                    following = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    last = True
                    break
                batch.append(following)
            self._commit([one for one in batch if not one.alone])
            if batch[-1].alone:
                self._carry_out_alone(batch[-1])
            # The loop may be gone, and with it whoever waited.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_tell, batch)
            if last:
                return

    def _commit(self, batch: list[_Write]) -> None:
        db = self._writer
        try:
            db.execute("BEGIN IMMEDIATE")
            for job in batch:
                _carry_out(db, job)
            db.execute("COMMIT")
        except Exception as error:
            # The disk is full or broken: nothing of this commit is stored, and everybody must know.
            for job in batch:
                job.error = job.error or error
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")

    def _carry_out_alone(self, job: _Write) -> None:
        try:
            result = job.work(self._writer)
            job.result = None if isinstance(result, sqlite3.Cursor) else result
        except Exception as error:
            traceback.clear_frames(error.__traceback__)
            job.error = error


def as_text(text: str) -> str:
    """SQLite's text is UTF-8: a question mark takes the place of half a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def as_key(text: str) -> str:
    """A name by which something is known again: two that differ stay different."""
    return text.encode("utf-8", "backslashreplace").decode()


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_LOCK_PATIENCE, isolation_level=None, check_same_thread=False)


def _carry_out(db: sqlite3.Connection, job: _Write) -> None:
    """One write of a commit; its failure undoes it alone, unless SQLite had to undo the whole commit."""
    db.execute("SAVEPOINT one")
    try:
        result = job.work(db)
        # No cursor leaves this thread, in a result or in the frames of an error: to let go of one elsewhere
        # would reset a statement that is being used here.
        job.result = None if isinstance(result, sqlite3.Cursor) else result
        del result
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        job.error = error
        if not db.in_transaction:
            raise
        db.execute("ROLLBACK TO one")
    db.execute("RELEASE one")


def _tell(batch: list[_Write]) -> None:
    for job in batch:
        if job.done.done():
            continue  # the caller was cancelled
        if job.error:
            job.done.set_exception(job.error)
        else:
            job.done.set_result(job.result)
