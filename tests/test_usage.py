"""What the model has cost, as rows, and what `pynchy usage` says of them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from stored import column, rows
from support import NOON_ZONE, pynchy

from pynchy.home import make_private
from pynchy.model_usage import Figures
from pynchy.schema import MIGRATIONS
from pynchy.store import Store
from pynchy.types import Group
from pynchy.usage import Total, usage_rows

pytestmark = pytest.mark.anyio

SONNET = Figures("claude-sonnet-4-5", 10, 20, 30, 40, 5)


def nobody(group: int, everyone: int) -> Iterable[tuple[str, str]]:
    """Nobody hears of it."""
    return ()


def everybody_hears(*texts: str) -> Callable[[int, int], Iterable[tuple[str, str]]]:
    """One chat hears these, with the sums of before."""
    return lambda group, everyone: [("main", f"{text} {group} {everyone}") for text in texts]


# --- the table ----------------------------------------------------------------------------------------------


async def test_requests_of_one_day_group_task_and_model_share_a_row(tmp_path: Path) -> None:
    path = tmp_path / "pynchy.db"
    async with Store.open(path) as store:
        for folder, task, day, cost in (
            *(("main", 0, "2025-06-01", 100), ("main", 0, "2025-06-01", 23), ("main", 7, "2025-06-01", 1)),
            *(("main", 0, "2025-06-02", 4), ("family", 0, "2025-06-02", None)),
        ):
            await store.usage.add(folder, task, day, SONNET, cost, nobody)
        assert await store.usage.totals("2025-06-01") == {"main": Total(124, 3)}
        assert await store.usage.totals("2025-06-02") == {"main": Total(4, 1), "family": Total(0, 1, 1)}
        assert await store.usage.totals("2025-06-03") == {}
    with closing(sqlite3.connect(path)) as db:
        found = usage_rows(db, "2025-06-01", "2025-06-02")
        assert [(row.day, row.folder, row.task_id, row.requests, row.micro_usd, row.unpriced) for row in found] == [
            ("2025-06-01", "main", 0, 2, 123, 0),
            ("2025-06-01", "main", 7, 1, 1, 0),
            ("2025-06-02", "family", 0, 1, 0, 1),
            ("2025-06-02", "main", 0, 1, 4, 0),
        ]
        first = found[0]
        assert (first.input_tokens, first.output_tokens, first.cache_read_tokens, first.cache_write_tokens) == (
            *(20, 40, 60, 80),
        )
        assert [row.micro_usd for row in usage_rows(db, "2025-06-02", "2025-06-02", "main")] == [4]


async def test_a_notice_is_stored_with_the_request_that_it_tells_of_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "pynchy.db"
    async with Store.open(path) as store:
        assert await store.usage.add("main", 0, "2025-06-01", SONNET, 100, nobody) is False
        assert await store.usage.add("family", 0, "2025-06-01", SONNET, 20, nobody) is False
        assert await store.usage.add("main", 0, "2025-06-01", SONNET, 5, everybody_hears("one", "two")) is True

        def fail(group: int, everyone: int) -> Iterable[tuple[str, str]]:
            yield "main", "never said"
            raise ValueError("never")

        with pytest.raises(ValueError, match="never"):
            await store.usage.add("main", 0, "2025-06-01", SONNET, 5, fail)
        assert (await store.usage.totals("2025-06-01"))["main"] == Total(105, 2)
    assert rows(path, "SELECT text, kind FROM outbox") == [("one 100 120", "notice"), ("two 100 120", "notice")]


async def test_an_endpoint_that_makes_up_names_of_models_fills_no_disk(tmp_path: Path) -> None:
    path = tmp_path / "pynchy.db"
    async with Store.open(path) as store:
        for number in range(60):
            await store.usage.add("main", 0, "2025-06-01", Figures(f"m{number}", 1), 1, nobody)
        await store.usage.add("main", 0, "2025-06-01", Figures("m3", 1), 1, nobody)
        assert await store.usage.totals("2025-06-01") == {"main": Total(61, 61)}
    assert column(path, "SELECT count(*) FROM usage") == [51]
    assert column(path, "SELECT requests FROM usage WHERE model IN ('(others)', 'm3') ORDER BY model") == [10, 2]


# --- `pynchy usage` -----------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home where it is noon."""
    monkeypatch.setenv("PYNCHY_TIME_ZONE", NOON_ZONE)
    return make_private(tmp_path / "home")


def day(ago: int) -> str:
    return (datetime.now(ZoneInfo(NOON_ZONE)) - timedelta(days=ago)).date().isoformat()


async def use(home: Path, *used: tuple[str, int, int, Figures, int | None]) -> None:
    """Groups `main` and `family`, the last with a ceiling, and what they have used so many days ago."""
    async with Store.open(home / "pynchy.db") as store:
        main, family = Group("terminal:main", "main", "main", is_main=True), Group("wa:1", "Family", "family")
        for group, limit in ((main, None), (family, 2.0)):
            await store.register_group(group, lambda *_: True)
            await store._db.write(
                lambda db, group=group, limit=limit: db.execute(
                    "UPDATE groups SET usd_a_day = ? WHERE jid = ?", (limit, group.jid)
                )
            )
        for folder, task, ago, figures, cost in used:
            await store.usage.add(folder, task, day(ago), figures, cost, nobody)


async def test_usage_is_a_table_with_totals_and_what_is_used_of_each_limit(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYNCHY_USD_A_DAY", "5")
    await use(
        home,
        ("main", 0, 8, SONNET, 9_000_000),
        ("main", 0, 1, SONNET, 400),
        ("main", 0, 0, Figures("claude-sonnet-4-5", 1_234_567, 20), 1_000_000),
        ("family", 12, 0, SONNET, 500_000),
    )
    done = pynchy("usage")
    assert (done.returncode, done.stderr) == (0, "")
    head, yesterday, family, main, total, _, in_all, of_family, of_all = done.stdout.splitlines()
    assert head.split() == [
        "day",
        "group",
        "task",
        "model",
        "requests",
        "input",
        "output",
        *("cache", "read", "cache", "write"),
        "cost",
    ]
    assert yesterday.split() == [day(1), "main", "-", "claude-sonnet-4-5", "1", "10", "20", "30", "40", "$0.0004"]
    assert family.split() == [day(0), "family", "12", "claude-sonnet-4-5", "1", "10", "20", "30", "40", "$0.50"]
    assert main.split() == [day(0), "main", "-", "claude-sonnet-4-5", "1", "1,234,567", "20", "0", "0", "$1.00"]
    assert total.split() == ["total", "3", "1,234,587", "60", "60", "80", "$1.50"]
    assert len({len(line) for line in (head, yesterday, family, main, total)}) == 1, "columns are aligned"
    assert in_all == "$1.50 in all, at the list prices of the model's API"
    assert of_family == "Today $0.50 of $2.00 of family's limit"
    assert of_all == "Today $1.50 of $5.00 of the limit of all groups"
    assert "$10.50 in all" in pynchy("usage", "--days", "9").stdout
    only = pynchy("usage", "--days", "1", "--group", "main").stdout
    assert "$1.00 in all" in only
    assert "family" not in only


async def test_usage_as_json_has_every_figure(home: Path) -> None:
    await use(home, ("main", 0, 0, SONNET, 400), ("family", 3, 1, Figures("other", 1), None))
    found: dict[str, Any] = json.loads(pynchy("usage", "--json").stdout)
    unknown, known = found["rows"]
    assert known == {
        "day": day(0),
        "folder": "main",
        "task_id": 0,
        "model": "claude-sonnet-4-5",
        "requests": 1,
        "input_tokens": 10,
        "output_tokens": 20,
        "cache_read_tokens": 30,
        "cache_write_tokens": 40,
        "unpriced": 0,
        "usd": 0.0004,
    }
    assert (unknown["day"], unknown["folder"], unknown["task_id"]) == (day(1), "family", 3)
    assert (unknown["unpriced"], unknown["usd"]) == (1, 0)
    assert (found["first_day"], found["last_day"], found["time_zone"]) == (day(6), day(0), NOON_ZONE)
    assert (found["usd"], found["today_usd"], found["today"]) == (0.0004, 0.0004, {"main": 0.0004})
    assert (found["usd_a_day"], found["usd_a_day_of"]) == (50.0, {"family": 2.0})


async def test_a_model_without_a_known_price_is_named_with_the_setting_that_gives_it_one(home: Path) -> None:
    await use(home, ("main", 0, 0, Figures("qwen\x1b[31m", 5), None), ("main", 0, 0, Figures("qwen\x1b[31m", 5), None))
    done = pynchy("usage").stdout
    assert "not known" in done
    assert "2 requests without a known price, counted as nothing: qwen\\x1b[31m. Set PYNCHY_MODEL_PRICE=" in done
    assert str(home / ".env") in done
    assert "\x1b" not in done


def test_before_anything_was_said_nothing_was_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYNCHY_USD_A_DAY", "off")
    done = pynchy("usage", "--days", "1")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"The model was asked nothing on {day(0)}.\n", "")
    assert json.loads(pynchy("usage", "--json").stdout)["rows"] == []
    assert list(home.iterdir()) == [], "and looking creates nothing"


def test_a_database_of_before_the_counting_is_left_as_it_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYNCHY_USD_A_DAY", "off")
    with closing(sqlite3.connect(home / "pynchy.db")) as db:
        db.executescript(f"{MIGRATIONS[0]}; PRAGMA user_version = 1;")
    done = pynchy("usage")
    assert done.stdout == f"The model was asked nothing from {day(6)} to {day(0)}.\n"
    assert column(home / "pynchy.db", "PRAGMA user_version") == [1]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--group", "famly"), "pynchy: there is no group 'famly'; there are: family, main.\n"),
        (("--days", "0"), "'0' is no number of days from 1 to 36500"),
        (("--days", "9" * 400), "is no number of days from 1 to 36500"),
    ],
)
async def test_what_cannot_be_shown_is_one_sentence(home: Path, args: tuple[str, ...], words: str) -> None:
    await use(home)
    done = pynchy("usage", *args)
    assert done.returncode != 0
    assert words in done.stderr
    assert done.stdout == ""


def test_a_file_that_is_no_database_is_named(home: Path) -> None:
    (home / "pynchy.db").write_text("this is no database, " * 100)
    done = pynchy("usage")
    assert done.returncode == 1
    assert done.stderr.startswith(f"pynchy: the database {home / 'pynchy.db'} cannot be read: ")
    assert len(done.stderr.splitlines()) == 1
