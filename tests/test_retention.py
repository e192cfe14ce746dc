"""What is kept no longer than the settings say: when that is looked at, and what leaves the disk."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from stored import column, damage, queued, raw
from structlog.testing import capture_logs

from pynchy.config import Settings
from pynchy.retention import Retention, remove_files
from pynchy.store import Store
from pynchy.types import Group

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
CUTOFF = NOW - timedelta(days=30)
OLD, NEW = CUTOFF - timedelta(days=1), CUTOFF + timedelta(days=1)
GROUP = Group("x:1", "One", "one")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


@pytest.fixture
async def store(home: Path) -> AsyncIterator[Store]:
    async with Store.open(home / "pynchy.db") as store:
        await store.register_group(GROUP, lambda *_: True)
        yield store


def settings(home: Path, days: int = 30) -> Settings:
    return Settings(home=home, keep_days=days)  # pyright: ignore[reportCallIssue] - aliases come from the environment


def file(path: Path, at: datetime) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(path.name)
    os.utime(path, (at.timestamp(), at.timestamp()))
    return path


def say(db: sqlite3.Connection, content: str, at: datetime, state: str = "done", attachments: str = "[]") -> None:
    db.execute(
        "INSERT INTO messages (chat_jid, message_id, sender, sender_name, content, timestamp, is_from_me, state,"
        " attachments) VALUES ('x:1', ?, 'ada@x', 'Ada', ?, ?, 0, ?, ?)",
        (content, content, at.isoformat(), state, attachments),
    )


class Clock:
    """A clock that stands still, and whose waits end when the test says so."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now
        self.waits: list[float] = []
        self._waiting = asyncio.Semaphore(0)
        self._go = asyncio.Semaphore(0)

    def __call__(self) -> datetime:
        return self.now

    async def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self._waiting.release()
        await self._go.acquire()

    async def until_it_waits(self) -> None:
        await asyncio.wait_for(self._waiting.acquire(), 20)

    async def passes(self, time: timedelta) -> None:
        """Let the wait end, so much later, and return at the next one."""
        self.now += time
        self._go.release()
        await self.until_it_waits()


# --- when ---------------------------------------------------------------------------------------------------


async def test_it_is_done_at_the_start_and_once_a_day_whatever_the_clock_does(home: Path, store: Store) -> None:
    clock = Clock()
    retention = Retention(store, home, settings(home), clock=clock, wait=clock.wait)
    path = home / "pynchy.db"

    def contents() -> list[str]:
        return column(path, "SELECT content FROM messages ORDER BY id")

    def say_something_old(content: str) -> None:
        with raw(path) as db:
            say(db, content, clock.now - timedelta(days=31))

    say_something_old("before the start")
    running = asyncio.create_task(retention.run())
    try:
        await clock.until_it_waits()
        assert contents() == []
        say_something_old("first")
        for _ in range(23):
            await clock.passes(timedelta(hours=1))
        assert contents() == ["first"]
        await clock.passes(timedelta(hours=1))
        assert contents() == []

        say_something_old("before a suspended machine wakes up")
        await clock.passes(timedelta(days=3))
        assert contents() == []

        clock.now -= timedelta(days=400)
        say_something_old("after the clock was set back")
        await clock.passes(timedelta(0))
        assert contents() == []
        assert set(clock.waits) == {3600.0}
    finally:
        running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_what_fails_is_logged_and_tried_again_at_the_next_look_while_all_else_is_done(
    home: Path, store: Store
) -> None:
    clock = Clock()
    path = home / "pynchy.db"
    old_log = file(home / "logs/2026-01-01.jsonl", OLD)
    with raw(path) as db:
        say(db, "old", OLD)
        db.execute("CREATE TRIGGER broken BEFORE DELETE ON messages BEGIN SELECT RAISE(ABORT, 'broken disk'); END")
    retention = Retention(store, home, settings(home), clock=clock, wait=clock.wait)
    with capture_logs() as lines:
        running = asyncio.create_task(retention.run())
        await clock.until_it_waits()
        assert [line["error"] for line in lines] == ["broken disk"]
        assert not old_log.exists()
        assert column(path, "SELECT content FROM messages") == ["old"]
        with raw(path) as db:
            db.execute("DROP TRIGGER broken")
        await clock.passes(timedelta(hours=1))
        assert column(path, "SELECT content FROM messages") == []
        running.cancel()


async def test_a_conversation_that_could_not_be_ended_for_a_message_is_ended_within_the_hour(
    home: Path, store: Store
) -> None:
    clock = Clock()
    path = home / "pynchy.db"
    ended: list[str] = []
    with raw(path) as db:
        db.execute(
            "INSERT INTO transcripts (folder, session_id, subpath, entry, at) VALUES ('one', 'long', '', '{}', ?)",
            (OLD.isoformat(),),
        )
        db.execute("UPDATE groups SET session_id = 'long'")
        say(db, "question", NOW, "pending")
    retention = Retention(store, home, settings(home), ended.append, clock, clock.wait)
    running = asyncio.create_task(retention.run())
    await clock.until_it_waits()
    assert await store.session(GROUP.jid) == ("long", 0)
    assert column(path, "SELECT count(*) FROM transcripts") == [1]
    assert ended == queued(path) == []
    with raw(path) as db:
        db.execute("UPDATE messages SET state = 'done'")
    await clock.passes(timedelta(hours=1))
    running.cancel()
    assert await store.resume(GROUP.jid) is None
    assert column(path, "SELECT count(*) FROM transcripts") == [0]
    assert ended == [GROUP.jid]
    ((_, text, kind),) = queued(path)
    assert kind == "notice"
    assert "more than 30 days ago" in text


async def test_what_one_service_began_to_remove_the_next_one_removes(home: Path) -> None:
    path = home / "pynchy.db"
    async with Store.open(path) as store:
        await store.register_group(GROUP, lambda *_: True)
        with raw(path) as db:
            db.execute("BEGIN")
            for number in range(5000):
                say(db, f"secretword {number}", OLD)
            say(db, "kept", NEW)
            db.execute("COMMIT")
        going = asyncio.create_task(Retention(store, home, settings(home), clock=Clock()).remove())
        while column(path, "SELECT count(*) FROM messages") == [5001]:
            await asyncio.sleep(0)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
    left = column(path, "SELECT count(*) FROM messages")[0]
    assert 1 < left < 5001
    async with Store.open(path) as store:
        assert await Retention(store, home, settings(home), clock=Clock()).remove()
        assert column(path, "SELECT content FROM messages") == ["kept"]
        files = b"".join(one.read_bytes() for one in home.glob("pynchy.db*"))
        assert b"secretword" not in files
        assert b"kept" in files
    assert damage(path) == []


async def test_two_services_rooms_at_once_do_it_once(home: Path, store: Store) -> None:
    path = home / "pynchy.db"
    with raw(path) as db:
        db.execute("BEGIN")
        for number in range(2000):
            say(db, f"old {number}", OLD)
        db.execute("COMMIT")
    for number in range(50):
        file(home / f"attachments/one/{number}", OLD)
    two = [Retention(store, home, settings(home), clock=Clock()) for _ in range(2)]
    assert await asyncio.gather(*(one.remove() for one in two)) == [True, True]
    assert column(path, "SELECT count(*) FROM messages") == [0]
    assert list((home / "attachments/one").iterdir()) == []
    assert damage(path) == []


# --- what ---------------------------------------------------------------------------------------------------


async def test_with_zero_days_nothing_is_removed_but_what_was_sent(home: Path, store: Store) -> None:
    with raw(home / "pynchy.db") as db:
        say(db, "old", OLD)
    old_log = file(home / "logs/2000-01-01.jsonl", OLD)
    attachment = file(home / "attachments/one/a.png", OLD)
    sent = file(home / "sent/one/0123/x.pdf", OLD)
    assert await Retention(store, home, settings(home, 0), clock=Clock()).remove()
    assert column(home / "pynchy.db", "SELECT content FROM messages") == ["old"]
    assert old_log.exists()
    assert attachment.exists()
    assert not sent.exists()


async def test_files_go_once_they_are_old_and_nothing_waits_for_them(home: Path, store: Store) -> None:
    with raw(home / "pynchy.db") as db:
        say(db, "asks", OLD, "pending", json.dumps([{"file": "needed.png"}]))
        db.execute(
            "INSERT INTO outbox (chat_jid, text, kind, created_at, file)"
            " VALUES ('x:1', '', 'message', ?, 'one/waits/x.pdf')",
            (OLD.isoformat(),),
        )
    stay = [
        file(home / "attachments/one/new.png", NEW),
        file(home / "attachments/one/needed.png", OLD),
        file(home / "sent/one/today/x.pdf", NOW - timedelta(hours=23)),
        file(home / "sent/one/waits/x.pdf", OLD),
        file(home / f"logs/{CUTOFF.date()}.jsonl", OLD),
        file(home / "groups/one/notes.md", OLD),
        file(home / "attachments/loose", NEW),
    ]
    go = [
        file(home / "attachments/one/old.png", OLD),
        file(home / "attachments/no-group/needed.png", OLD),
        file(home / "sent/one/yesterday/x.pdf", NOW - timedelta(hours=25)),
        file(home / f"logs/{(CUTOFF - timedelta(days=1)).date()}.jsonl", OLD),
    ]
    assert await Retention(store, home, settings(home), clock=Clock()).remove()
    assert [path for path in stay if not path.exists()] == []
    assert [path for path in go if path.exists()] == []
    assert not (home / "sent/one/yesterday").exists()
    assert (home / "attachments/no-group").is_dir(), "an agent may have a group's folder before it"


def test_no_link_is_followed_and_an_old_one_is_removed_itself(tmp_path: Path) -> None:
    elsewhere = [file(tmp_path / "elsewhere/one/a", OLD), file(tmp_path / "elsewhere/b", OLD)]
    top = tmp_path / "attachments"
    file(top / "one/x", OLD)
    for link, target in (("to-file", elsewhere[1]), ("to-folder", elsewhere[0].parent), ("to-nothing", "nowhere")):
        (top / "one" / link).symlink_to(target)
        os.utime(top / "one" / link, (OLD.timestamp(), OLD.timestamp()), follow_symlinks=False)
    (top / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert remove_files(top, CUTOFF, ())
    assert list((top / "one").iterdir()) == []
    assert (top / "linked").is_symlink()
    assert all(path.exists() for path in elsewhere)


def test_a_folder_that_is_a_link_is_left_alone_with_a_warning(tmp_path: Path) -> None:
    kept = file(tmp_path / "elsewhere/one/a", OLD)
    (tmp_path / "attachments").symlink_to(tmp_path / "elsewhere")
    with capture_logs() as lines:
        assert not remove_files(tmp_path / "attachments", CUTOFF, ())
    assert kept.exists()
    assert "their folder is a link" in lines[0]["event"]


def test_where_there_are_no_files_there_is_nothing_to_do(tmp_path: Path) -> None:
    assert remove_files(tmp_path / "attachments", CUTOFF, ())
    assert not (tmp_path / "attachments").exists()
