"""The writer's thread: a write is whole or not there, and who was told that it is stored can rely on it."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from stored import column, damage, raw, rows, set_room

from pynchy import database as database_module
from pynchy.database import Database

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

Work = Callable[[sqlite3.Connection], Any]
ALL = "SELECT text FROM notes ORDER BY id"
#: Longer than the room that a test leaves.
HUGE = "x" * 1_000_000


def prepare(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE)")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "notes.db"


@pytest.fixture
async def db(path: Path) -> AsyncIterator[Database]:
    async with Database.open(path, prepare) as db:
        yield db


def note(text: str) -> Work:
    return lambda db: db.execute("INSERT INTO notes (text) VALUES (?)", (text,)).lastrowid


async def queue(db: Database, *works: Work) -> list[asyncio.Task[Any]]:
    """Callers that have asked for these writes, in this order, and wait."""
    callers = [asyncio.create_task(db.write(work)) for work in works]
    await asyncio.sleep(0)  # each has run until it waits
    return callers


@asynccontextmanager
async def busy_writer(db: Database) -> AsyncIterator[None]:
    """Meanwhile the writer is inside a write of its own, so what is queued now shares the commit after it."""
    begun, go = threading.Event(), threading.Event()

    def wait(_: sqlite3.Connection) -> None:
        begun.set()
        assert go.wait(50)

    waiting = asyncio.create_task(db.write(wait))
    try:
        assert await asyncio.to_thread(begun.wait, 50)
        yield
    finally:
        go.set()
    await waiting


async def outcomes(callers: list[asyncio.Task[Any]]) -> list[Any]:
    return await asyncio.wait_for(asyncio.gather(*callers, return_exceptions=True), 30)


async def together(db: Database, *works: Work) -> list[Any]:
    """What came of writes that share a commit: results and exceptions."""
    async with busy_writer(db):
        callers = await queue(db, *works)
    return await outcomes(callers)


def writers_and_readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("database-")]


# --- one write, all or nothing ------------------------------------------------------------------------------


async def test_a_write_returns_its_result_once_everybody_can_see_it(db: Database, path: Path) -> None:
    assert await db.write(note("a")) == 1
    assert column(path, ALL) == ["a"]
    assert await db.read(lambda db: db.execute(ALL).fetchall()) == [("a",)]


async def test_a_commit_waits_for_the_disk(db: Database) -> None:
    # No test can cut the power: these are the settings with which SQLite promises to survive that.
    settings = ("journal_mode", "synchronous")
    found = [await db.write(lambda db, name=name: db.execute(f"PRAGMA {name}").fetchone()[0]) for name in settings]
    assert found == ["wal", 2]


async def test_a_write_that_fails_undoes_itself_alone(db: Database, path: Path) -> None:
    def half(db: sqlite3.Connection) -> None:
        note("half of it")(db)
        raise ValueError("the other half")

    def twice(db: sqlite3.Connection) -> None:
        note("once")(db)
        note("once")(db)

    first, failed, second, doubled, third = await together(db, note("a"), half, note("b"), twice, note("c"))
    assert isinstance(failed, ValueError)
    assert isinstance(doubled, sqlite3.IntegrityError)
    assert (first, second, third) == (1, 2, 3)
    assert column(path, ALL) == ["a", "b", "c"]


async def test_writes_that_wait_share_a_commit_up_to_a_limit(db: Database, path: Path) -> None:
    statements: list[str] = []
    await db.write(lambda db: db.set_trace_callback(statements.append))
    limit = database_module._MOST_AT_ONCE
    async with busy_writer(db):
        callers = await queue(db, *(note(f"{number}") for number in range(limit + 1)))
        statements.clear()
    assert await outcomes(callers) == [*range(1, limit + 2)]
    assert limit > 100
    assert statements.count("COMMIT") == 3, "of the busy writer, of a full commit and of the one that was left"
    assert len(column(path, ALL)) == limit + 1


async def test_writes_happen_in_the_order_of_their_calls(db: Database, path: Path) -> None:
    texts = [f"{number}" for number in range(1000)]
    assert await asyncio.gather(*(db.write(note(text)) for text in texts)) == [*range(1, 1001)]
    assert column(path, ALL) == texts


async def test_a_read_sees_only_what_is_committed(db: Database) -> None:
    seen = threading.Event()

    def slowly(db: sqlite3.Connection) -> None:
        note("not yet")(db)
        assert seen.wait(50)

    (writing,) = await queue(db, slowly)
    try:
        assert await db.read(lambda db: db.execute(ALL).fetchall()) == []
    finally:
        seen.set()
    await writing
    assert await db.read(lambda db: db.execute(ALL).fetchall()) == [("not yet",)]


async def test_what_no_transaction_can_hold_is_done_between_those_of_others(db: Database, path: Path) -> None:
    def rewrite(connection: sqlite3.Connection) -> list[str]:
        assert not connection.in_transaction
        connection.execute("VACUUM")
        return [row[0] for row in connection.execute(ALL)]

    async with busy_writer(db):
        first = await queue(db, note("first"))
        alone = asyncio.create_task(db.alone(rewrite))
        await asyncio.sleep(0)
        second = await queue(db, note("second"))
    assert await alone == ["first"]
    await outcomes([*first, *second])
    assert column(path, ALL) == ["first", "second"]


async def test_what_is_done_alone_may_fail_and_the_writer_goes_on(db: Database, path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await db.alone(lambda connection: connection.execute("DELETE FROM missing"))
    await db.write(note("after"))
    assert column(path, ALL) == ["after"]


# --- callers that are cancelled -----------------------------------------------------------------------------


async def test_a_cancelled_caller_leaves_a_whole_write_and_its_neighbours_alone(db: Database, path: Path) -> None:
    def two(db: sqlite3.Connection) -> None:
        note("first half")(db)
        note("second half")(db)

    async with busy_writer(db):
        cancelled, neighbour = await queue(db, two, note("neighbour"))
        cancelled.cancel()
    result, neighbours = await outcomes([cancelled, neighbour])
    assert isinstance(result, asyncio.CancelledError)
    assert neighbours == 3
    assert column(path, ALL) == ["first half", "second half", "neighbour"]


async def test_a_caller_cancelled_in_the_middle_of_its_write_leaves_all_of_it(db: Database, path: Path) -> None:
    begun, go = threading.Event(), threading.Event()

    def two(db: sqlite3.Connection) -> None:
        note("first half")(db)
        begun.set()
        assert go.wait(50)
        note("second half")(db)

    (caller,) = await queue(db, two)
    assert await asyncio.to_thread(begun.wait, 50)
    caller.cancel()
    assert isinstance((await outcomes([caller]))[0], asyncio.CancelledError)
    assert column(path, ALL) == []
    go.set()
    await db.write(note("after"))
    assert column(path, ALL) == ["first half", "second half", "after"]


async def test_a_caller_cancelled_when_its_write_is_stored_and_not_yet_told(db: Database, path: Path) -> None:
    (caller,) = await queue(db, note("stored"))
    while not column(path, ALL):
        pass  # the loop stands still meanwhile, so nobody is told
    caller.cancel()
    assert isinstance((await outcomes([caller]))[0], asyncio.CancelledError)
    await db.write(note("after"))
    assert column(path, ALL) == ["stored", "after"]


async def test_a_cancelled_write_that_fails_disturbs_nobody(db: Database, path: Path) -> None:
    async with busy_writer(db):
        first, cancelled, second = await queue(db, note("a"), note("a"), note("b"))
        cancelled.cancel()
    await outcomes([first, cancelled, second])
    assert column(path, ALL) == ["a", "b"]


# --- a disk that is full, a file that is held ---------------------------------------------------------------


async def test_on_a_full_disk_everybody_of_the_commit_hears_of_it_and_nothing_is_stored(
    db: Database, path: Path
) -> None:
    await db.write(note("before"))
    await db.write(lambda db: set_room(db, 2))
    results = await together(db, note("a"), note(HUGE), note("b"))
    assert [type(result) for result in results] == [sqlite3.OperationalError] * 3
    assert {str(result) for result in results} == {"database or disk is full"}
    assert column(path, ALL) == ["before"]

    assert await db.write(note("small enough")) == 2, "the writer goes on"
    await db.write(lambda db: set_room(db, 10_000))
    assert await db.write(note(HUGE)) == 3
    assert column(path, ALL) == ["before", "small enough", HUGE]


async def test_on_a_full_disk_a_write_that_sqlite_undoes_alone_fails_alone(db: Database, path: Path) -> None:
    def many(db: sqlite3.Connection) -> None:
        # A statement of many rows has a journal of its own, so SQLite keeps what the transaction did before.
        db.execute(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)"
            " INSERT INTO notes (text) SELECT printf('%d%.1000c', i, 'x') FROM n"
        )

    await db.write(lambda db: set_room(db, 2))
    first, failed, second = await together(db, note("a"), many, note("b"))
    assert isinstance(failed, sqlite3.OperationalError)
    assert (first, second) == (1, 2)
    assert column(path, ALL) == ["a", "b"]


@contextmanager
def no_file_grows_beyond(size: int) -> Iterator[None]:
    """Meanwhile the system refuses what this process writes behind that many bytes of any file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A process that ignores the signal gets an error from its write; Python ignores it.
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_when_the_commit_itself_fails_everybody_hears_of_it_and_nothing_is_stored(
    db: Database, path: Path
) -> None:
    await db.write(note("before"))
    with no_file_grows_beyond(path.with_name("notes.db-wal").stat().st_size):
        results = await together(db, note("a"), lambda db: db.execute("INSERT INTO no_table VALUES (1)"), note("b"))
    assert [type(result) for result in results] == [sqlite3.OperationalError] * 3
    assert "no_table" in str(results[1]), "a write that failed by itself says why"
    assert column(path, ALL) == ["before"]
    assert await db.write(note("after")) == 2
    assert column(path, ALL) == ["before", "after"]
    assert damage(path) == []


async def test_a_commit_that_sqlite_refuses_is_undone_and_the_writer_goes_on(path: Path) -> None:
    def prepare_references(db: sqlite3.Connection) -> None:
        prepare(db)
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("CREATE TABLE links (note INTEGER REFERENCES notes (id) DEFERRABLE INITIALLY DEFERRED)")

    async with Database.open(path, prepare_references) as db:
        # Only the commit finds out that the link leads nowhere, and leaves the transaction open.
        results = await together(db, note("a"), lambda db: db.execute("INSERT INTO links VALUES (99)"))
        assert [type(result) for result in results] == [sqlite3.IntegrityError] * 2
        assert await db.write(note("b")) == 1
    assert column(path, ALL) == ["b"]
    assert damage(path) == []


async def test_a_write_waits_for_somebody_who_holds_the_file_even_if_its_caller_does_not(
    db: Database, path: Path
) -> None:
    with raw(path) as other:
        other.execute("BEGIN IMMEDIATE")
        cancelled, patient = await queue(db, note("cancelled"), note("patient"))
        cancelled.cancel()
        await asyncio.sleep(0)
        assert not patient.done()
        other.execute("ROLLBACK")
    await outcomes([cancelled, patient])
    assert column(path, ALL) == ["cancelled", "patient"]


async def test_a_file_that_is_held_too_long_is_an_error_and_the_next_write_succeeds(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_LOCK_PATIENCE", 0.0)
    async with Database.open(path, prepare) as db:
        with raw(path) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                await db.write(note("a"))
            assert await db.read(lambda db: db.execute(ALL).fetchall()) == [], "a reader does not wait"
            other.execute("ROLLBACK")
        await db.write(note("b"))
    assert column(path, ALL) == ["b"]


# --- closing ------------------------------------------------------------------------------------------------


async def test_closing_waits_for_what_was_queued_and_leaves_no_thread(path: Path) -> None:
    texts = [f"{number}" for number in range(600)]
    go = threading.Event()
    async with Database.open(path, prepare) as db:
        assert await db.read(lambda db: db.execute(ALL).fetchall()) == []
        assert len(writers_and_readers()) == 2
        waiting, *callers = await queue(db, lambda _: go.wait(50), *map(note, texts))
        asyncio.get_running_loop().call_soon(go.set)  # the loop comes to it when closing has begun
        assert not waiting.done()
    assert column(path, ALL) == texts
    assert await outcomes(callers) == [*range(1, 601)]
    assert writers_and_readers() == []


async def test_an_error_inside_closes_the_database_too(path: Path) -> None:
    async def fail_inside() -> None:
        async with Database.open(path, prepare) as db:
            await db.write(note("a"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_inside()
    assert column(path, ALL) == ["a"]
    assert writers_and_readers() == []
    assert [one.name for one in path.parent.iterdir()] == [path.name], "the last one to close tidies up"


async def test_a_preparation_that_fails_leaves_nothing_open(path: Path) -> None:
    def refuse(db: sqlite3.Connection) -> None:
        raise sqlite3.DatabaseError("not like this")

    with pytest.raises(sqlite3.DatabaseError, match="not like this"):
        async with Database.open(path, refuse):
            pytest.fail("it was opened")
    assert writers_and_readers() == []
    assert [one.name for one in path.parent.iterdir()] == [path.name]


# --- kill -9 ------------------------------------------------------------------------------------------------

#: Eight callers store rows of many sizes, and each row is printed once it is said to be stored.
WRITES_FOR_EVER = f"""
import asyncio, itertools, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_database import note, prepare
from pynchy.database import Database

async def main():
    async with Database.open(Path(sys.argv[1]), prepare) as db:
        async def caller(first):
            for number in itertools.count(first, 8):
                await db.write(note(f"{{number}} " + "x" * (number * 37 % 20_000)))
                print(number, flush=True)
        await asyncio.gather(*(caller(first) for first in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 2, 30, 500])
def test_a_process_that_is_killed_has_stored_what_it_was_told_is_stored(path: Path, lines: int) -> None:
    child = subprocess.Popen([sys.executable, "-c", WRITES_FOR_EVER, path], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout
        told = [int(child.stdout.readline()) for _ in range(lines)]
    finally:
        os.kill(child.pid, signal.SIGKILL)
        rest, _ = child.communicate()
    told += [int(line) for line in rest.splitlines()]
    stored = {int(text.split()[0]): text for text in column(path, ALL)}
    assert set(told) <= set(stored)
    assert all(text == f"{number} " + "x" * (number * 37 % 20_000) for number, text in stored.items())
    assert damage(path) == []
    assert rows(path, "SELECT count(*) FROM notes")[0][0] >= lines


async def test_no_cursor_leaves_the_writers_thread(path: Path) -> None:
    # Its end in another thread would reset a statement that is in use, which SQLite calls misuse.
    async with Database.open(path, prepare) as db:
        assert await db.write(lambda db: db.execute("SELECT 1")) is None


async def test_a_write_after_the_end_is_an_error_and_does_not_wait(path: Path) -> None:
    async with Database.open(path, prepare) as db:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        await db.write(note("a"))


async def test_a_read_that_failed_half_way_keeps_no_old_picture_for_the_next(path: Path) -> None:
    def half(db: sqlite3.Connection) -> None:
        cursor = db.execute("SELECT 1 UNION SELECT 2")
        next(cursor)
        raise ValueError(cursor)

    async with Database.open(path, prepare) as db:
        with pytest.raises(ValueError, match="Cursor") as kept:
            await db.read(half)
        await db.write(note("a"))
        assert await db.read(lambda db: db.execute(ALL).fetchall()) == [("a",)]
        assert kept


async def test_a_read_can_change_nothing(path: Path) -> None:
    async with Database.open(path, prepare) as db:
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await db.read(note("a"))
