"""`pynchy usage`: what the model has taken and cost, read from the database without changing it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from pynchy.cli.output import complain, visible
from pynchy.config import Settings, SettingsError, load_settings
from pynchy.costs import in_usd, local_day
from pynchy.home import database
from pynchy.reading import reading
from pynchy.usage import Total, UsageRow, totals, usage_rows

#: The first schema that has the table.
_SINCE_VERSION = 5
_HEAD = ("day", "group", "task", "model", "requests", "input", "output", "cache read", "cache write", "cost")
_LEFT = 4  # columns of words; the others are numbers


@dataclass(frozen=True, slots=True)
class _Report:
    """What was used in some days, what was spent today by each group, and what each may spend (US dollars)."""

    first: str
    last: str
    rows: Sequence[UsageRow]
    today: dict[str, Total]
    ceilings: dict[str, float | None]


class _UnknownGroup(Exception):
    """There is no such group; the message says which there are."""


def show(days: int, group: str | None, as_json: bool) -> int:
    """Print what was used in the last `days`, today included, by all groups or by the one in this folder."""
    try:
        settings = load_settings()
        report = _read(settings, days, group)
    except SettingsError as error:
        return complain(str(error))
    except _UnknownGroup as error:
        return complain(f"{error}.")
    except sqlite3.Error as error:
        return complain(f"the database {database(load_settings().home)} cannot be read: {error}.")
    if as_json:
        print(json.dumps(_as_json(settings, report), indent=2))
    else:
        print("\n".join(_in_words(settings, report, group)))
    return 0


def _read(settings: Settings, days: int, group: str | None) -> _Report:
    last = local_day(datetime.now(UTC), ZoneInfo(settings.time_zone))
    first = last - timedelta(days=days - 1)
    period = (first.isoformat(), last.isoformat())
    if not database(settings.home).is_file():
        if group is not None:
            raise _UnknownGroup(f"there is no group {group!r}: nothing has been said yet")
        return _Report(*period, [], {}, {})
    with reading(database(settings.home)) as db:
        db.execute("BEGIN")  # one picture for all of it
        if db.execute("PRAGMA user_version").fetchone()[0] < _SINCE_VERSION:
            return _Report(*period, [], {}, {})
        ceilings = dict(db.execute("SELECT folder, usd_a_day FROM groups ORDER BY folder").fetchall())
        rows = usage_rows(db, *period, group)
        if group is not None and group not in ceilings and not rows:
            raise _UnknownGroup(f"there is no group {group!r}; there are: {', '.join(ceilings) or 'none'}")
        return _Report(*period, rows, totals(db, period[1]), ceilings)


def _as_json(settings: Settings, report: _Report) -> dict[str, Any]:
    def usd(total: Total) -> float:
        return total.micro_usd / 10**6

    return {
        "time_zone": settings.time_zone,
        "first_day": report.first,
        "last_day": report.last,
        "rows": [{**_without_micro(row), "usd": row.micro_usd / 10**6} for row in report.rows],
        "usd": usd(_sum(report.rows)),
        "today": {folder: usd(total) for folder, total in report.today.items()},
        "today_usd": usd(sum(report.today.values(), Total())),
        "usd_a_day": settings.usd_a_day,
        "usd_a_day_of": {folder: limit for folder, limit in report.ceilings.items() if limit is not None},
    }


def _without_micro(row: UsageRow) -> dict[str, Any]:
    return {name: value for name, value in asdict(row).items() if name != "micro_usd"}


def _in_words(settings: Settings, report: _Report, group: str | None) -> Iterator[str]:
    if not report.rows:
        days = f"on {report.last}" if report.first == report.last else f"from {report.first} to {report.last}"
        yield f"The model was asked nothing {days}."
    else:
        yield from _table(report.rows)
        yield ""
        yield f"{in_usd(_sum(report.rows).micro_usd)} in all, at the list prices of the model's API"
    yield from _limits(settings, report, group)
    if unpriced := sorted({row.model for row in report.rows if row.unpriced}):
        count = sum(row.unpriced for row in report.rows)
        yield (
            f"{count} request{'' if count == 1 else 's'} without a known price, counted as nothing: "
            f"{', '.join(map(visible, unpriced))}. Set PYNCHY_MODEL_PRICE=INPUT/OUTPUT, in US dollars for a million "
            f"tokens, in {settings.home / '.env'}: it counts from the next start on."
        )


def _limits(settings: Settings, report: _Report, group: str | None) -> Iterator[str]:
    """How much of today's ceilings is used, where there are any."""
    for folder, limit in report.ceilings.items():
        if limit is not None and group in (None, folder):
            yield f"Today {_used(report.today.get(folder, Total()), limit)} of {folder}'s limit"
    if settings.usd_a_day is not None:
        yield f"Today {_used(sum(report.today.values(), Total()), settings.usd_a_day)} of the limit of all groups"


def _used(total: Total, limit: float) -> str:
    return f"{in_usd(total.micro_usd)} of {in_usd(round(limit * 10**6))}"


def _sum(rows: Sequence[UsageRow]) -> Total:
    return sum((Total(row.micro_usd, row.requests, row.unpriced) for row in rows), Total())


def _table(rows: Sequence[UsageRow]) -> Iterator[str]:
    lines = [_HEAD, *map(_cells, rows)]
    if len(rows) > 1:
        lines.append(_total_cells(rows))
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    for line in lines:
        cells = [
            cell.ljust(width) if column < _LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _cells(row: UsageRow) -> tuple[str, ...]:
    task = str(row.task_id) if row.task_id else "-"
    cost = in_usd(row.micro_usd) if row.unpriced < row.requests else "not known"
    return (row.day, row.folder, task, visible(row.model), *_numbers([row]), cost)


def _total_cells(rows: Sequence[UsageRow]) -> tuple[str, ...]:
    return ("total", "", "", "", *_numbers(rows), in_usd(_sum(rows).micro_usd))


def _numbers(rows: Sequence[UsageRow]) -> Iterator[str]:
    for name in ("requests", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"):
        yield f"{sum(getattr(row, name) for row in rows):,}"
