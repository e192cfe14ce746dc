"""What the model has cost: a row for each day, group, task and model."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pynchy.database import Database
from pynchy.model_usage import Figures
from pynchy.outgoing import enqueue

#: An endpoint may call its models what it is asked for: so many of one group and day have rows, the others share them.
_MOST_MODELS = 50
_OTHERS = "(others)"


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What one group took of one model on one day, for a task, or with task 0 for the chat itself.

    Of the `requests`, `unpriced` have no known price and are not in `micro_usd`.
    """

    day: str
    folder: str
    task_id: int
    model: str
    requests: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    micro_usd: int
    unpriced: int


@dataclass(frozen=True, slots=True)
class Total:
    """What requests have cost together, in millionths of a US dollar, and how many have no known price."""

    micro_usd: int = 0
    requests: int = 0
    unpriced: int = 0

    def __add__(self, other: Total) -> Total:
        return Total(self.micro_usd + other.micro_usd, self.requests + other.requests, self.unpriced + other.unpriced)


#: Given what the group and all groups had spent that day before: the chats to be told of it, and the texts.
Notices = Callable[[int, int], Iterable[tuple[str, str]]]


class Usage:
    """The table of usage."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(
        self, folder: str, task_id: int, day: str, figures: Figures, micro_usd: int | None, notices: Notices
    ) -> bool:
        """Count a request, `micro_usd` None where its price is not known; whether a notice was queued with it."""

        def add(db: sqlite3.Connection) -> bool:
            group, everyone = _spent(db, day, folder), _spent(db, day, None)
            db.execute(
                "INSERT INTO usage VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (day, folder, task_id, model) DO UPDATE SET requests = requests + 1,"
                " input_tokens = input_tokens + excluded.input_tokens,"
                " output_tokens = output_tokens + excluded.output_tokens,"
                " cache_read_tokens = cache_read_tokens + excluded.cache_read_tokens,"
                " cache_write_tokens = cache_write_tokens + excluded.cache_write_tokens,"
                " micro_usd = micro_usd + excluded.micro_usd, unpriced = unpriced + excluded.unpriced",
                (
                    *(folder, task_id, day, _row_of(db, day, folder, figures.model)),
                    *(figures.input_tokens, figures.output_tokens),
                    *(figures.cache_read_tokens, figures.cache_write_tokens),
                    *(micro_usd or 0, micro_usd is None),
                ),
            )
            told = [enqueue(db, jid, text, "notice") for jid, text in notices(group, everyone)]
            return bool(told)

        return await self._db.write(add)

    async def totals(self, day: str) -> dict[str, Total]:
        """What each group has spent on a day, by folder."""
        return await self._db.read(lambda db: totals(db, day))


def totals(db: sqlite3.Connection, day: str) -> dict[str, Total]:
    """What each group has spent on a day, by folder."""
    found = db.execute(
        "SELECT folder, sum(micro_usd), sum(requests), sum(unpriced) FROM usage WHERE day = ? GROUP BY folder", (day,)
    )
    return {folder: Total(*counts) for folder, *counts in found}


def usage_rows(db: sqlite3.Connection, first: str, last: str, folder: str | None = None) -> list[UsageRow]:
    """The rows of these days, the first and the last included, of one group or of all."""
    found = db.execute(
        "SELECT day, folder, task_id, model, requests, input_tokens, output_tokens, cache_read_tokens,"
        " cache_write_tokens, micro_usd, unpriced FROM usage WHERE day BETWEEN ? AND ? AND (? IS NULL OR folder = ?)"
        " ORDER BY day, folder, task_id, model",
        (first, last, folder, folder),
    )
    return [UsageRow(*row) for row in found]


def _spent(db: sqlite3.Connection, day: str, folder: str | None) -> int:
    (micro_usd,) = db.execute(
        "SELECT coalesce(sum(micro_usd), 0) FROM usage WHERE day = ? AND (? IS NULL OR folder = ?)",
        (day, folder, folder),
    ).fetchone()
    return micro_usd


def _row_of(db: sqlite3.Connection, day: str, folder: str, model: str) -> str:
    """The model by which a request is counted."""
    models = {name for (name,) in db.execute("SELECT model FROM usage WHERE day = ? AND folder = ?", (day, folder))}
    return model if model in models or len(models) < _MOST_MODELS else _OTHERS
