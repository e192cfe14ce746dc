"""How many messages a second become durable through the service, beside the commits of plain SQLite on that disk."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from benchmarks.disk import folder_on_disk
from benchmarks.stub import StubRuntime
from benchmarks.table import Row
from pynchy.app import Service
from pynchy.config import Settings
from pynchy.model_gateway import Upstream
from pynchy.plugin import PluginRegistry
from pynchy.types import NewMessage

ROUNDS = 7
SECONDS = 1.0
GROUPS = 50
_TEXT = "What is the weather going to be like tomorrow, and do I need a coat for the way to work? " * 2


async def measure() -> list[Row]:
    """Rows for one chat, and for many at once; each takes turns with the floor, so that all meet the same disk."""
    floors, one, many = [], [], []
    with folder_on_disk() as folder:
        settings = Settings(home=folder / "home")  # pyright: ignore[reportCallIssue]
        unused = Upstream("http://127.0.0.1:9")
        async with Service.start(settings, unused, PluginRegistry(), StubRuntime()) as service:
            for _ in range(ROUNDS):
                floors.append(_plain_sqlite(folder / "plain.db"))
                one.append(await _service(service, 1))
                many.append(await _service(service, GROUPS))
    floor, floor_is = median(floors), "plain SQLite, a commit for each, same disk"
    return [
        Row("durable messages, 1 group", median(one), floor, floor_is, unit="msgs/s", more_is_better=True),
        Row(f"durable messages, {GROUPS} groups at once", median(many), floor, floor_is, 0.5, "msgs/s", True),
    ]


async def _service(service: Service, chats: int) -> float:
    """Messages a second, each chat handing in the next once the last is durable.

    Nobody is registered for these chats, so no agent shares the machine.
    """
    count = 0
    began = time.perf_counter()

    async def deliver(jid: str) -> None:
        nonlocal count
        while time.perf_counter() - began < SECONDS:
            await service.on_message(_message(jid))
            count += 1

    await asyncio.gather(*(deliver(f"bench:{number}") for number in range(chats)))
    return count / (time.perf_counter() - began)


def _plain_sqlite(path: Path) -> float:
    """Commits a second of one row each, of the size that a message has, in a table without a further index."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, a, b, c, d, e, f, g)")
        count = 0
        began = time.perf_counter()
        while (taken := time.perf_counter() - began) < SECONDS:
            message = _message("bench:0")
            values = (message.chat_jid, message.id, message.sender, message.sender_name, message.content)
            db.execute("BEGIN IMMEDIATE")
            db.execute(
                "INSERT INTO rows (a, b, c, d, e, f, g) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*values, message.timestamp.isoformat(), False),
            )
            db.execute("COMMIT")
            count += 1
    return count / taken


_numbers = iter(range(2**63))


def _message(jid: str) -> NewMessage:
    return NewMessage(f"{next(_numbers):032d}", jid, "ada", "Ada", _TEXT, datetime.now(UTC))
