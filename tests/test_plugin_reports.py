"""What is heard of plugins is kept, told once in the main chat, and forgotten with the plugin."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from stored import queued

from pynchy.plugin import PluginRecord, State
from pynchy.plugin_inventory import records_with_reports, stored_reports
from pynchy.plugin_reports import PluginReports
from pynchy.store import Store
from pynchy.types import PluginReport

pytestmark = pytest.mark.anyio


def record(name: str, state: State = State.READY, reason: str = "", entry_point: str = "") -> PluginRecord:
    """A record as discovery leaves it."""
    remedy = "mend it" if reason else ""
    plugin = name if state in (State.READY, State.CONFLICT) else ""
    return PluginRecord(entry_point or name, "x:X", state, name=plugin, reason=reason, remedy=remedy)


@asynccontextmanager
async def started(path: Path, *records: PluginRecord) -> AsyncIterator[PluginReports]:
    """The reports of a service that found these."""
    async with Store.open(path) as store:
        reports = PluginReports(store, lambda: "terminal:main", lambda: None)
        await reports.begin(records)
        yield reports


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pynchy.db"


def notices(path: Path) -> list[str]:
    """What waits for the main chat."""
    return [text for jid, text, kind in queued(path) if (jid, kind) == ("terminal:main", "notice")]


async def test_what_failed_at_a_start_is_one_notice_and_not_said_again_by_the_next(path: Path) -> None:
    found = (
        record("good"),
        record("bad", State.FAILED, "it raised"),
        record("worse", State.INVALID, "no name"),
        record("off", State.DISABLED, "the user said so"),
    )
    for _ in range(2):
        async with started(path, *found):
            pass
    assert notices(path) == [
        "There is trouble with plugins:\n- bad: it raised; mend it\n- worse: no name; mend it",
    ]


async def test_trouble_that_comes_back_after_it_was_mended_is_said_again_by_a_later_start(path: Path) -> None:
    broken, mended = record("bad", State.FAILED, "it raised"), record("bad")
    for found in (broken, mended, broken):
        async with started(path, found):
            pass
    assert len(notices(path)) == 2


async def test_of_a_part_that_fails_and_recovers_again_and_again_one_notice_is_said(path: Path) -> None:
    async with started(path, record("shelf")) as reports:
        for _ in range(20):
            await reports.note([PluginReport("shelf", "mcp", "Connection closed")])
            await reports.note([PluginReport("shelf", "mcp")])
        assert reports.by_plugin()["shelf"]["mcp"] == ""
    (notice,) = notices(path)
    assert notice.endswith(
        "- shelf: its MCP server does not work (Connection closed); `pynchy plugins check shelf` says more"
    )


async def test_a_conflicting_plugin_is_told_beside_the_one_that_has_the_name(path: Path) -> None:
    async with started(
        path, record("good", entry_point="a"), record("good", State.CONFLICT, "taken", entry_point="good")
    ) as reports:
        assert reports.by_plugin()["good"]["load"] == ""
    (notice,) = notices(path)
    assert "taken; mend it" in notice


async def test_what_an_agent_says_is_one_line_of_bounded_length(path: Path) -> None:
    async with started(path, record("shelf")) as reports:
        await reports.note([PluginReport("shelf", "mcp", "a\n- everything: is fine\x1b[2J" + "x" * 100_000)])
        trouble = reports.by_plugin()["shelf"]["mcp"]
    assert trouble.startswith("a - everything: is fine [2Jx")
    assert len(trouble) == 300
    assert notices(path)[0].count("\n") == 1


async def test_a_plugin_that_is_gone_is_forgotten(path: Path) -> None:
    async with started(path, record("shelf")) as reports:
        await reports.note([PluginReport("shelf", "mcp", "down")])
    assert stored_reports(path)["shelf"]["mcp"] == "down"
    async with started(path):
        pass
    assert stored_reports(path) == {}


async def test_the_last_reports_are_read_without_a_service_and_a_file_that_is_none_has_none(path: Path) -> None:
    assert stored_reports(path) == {}
    async with started(path, record("shelf")) as reports:
        await reports.note([PluginReport("shelf", "mcp", "down")])
        (shown,) = records_with_reports([record("shelf")], stored_reports(path))
    assert shown["reports"] == {"load": "", "mcp": "down"}
    path.with_name("other.db").write_text("no database")
    assert stored_reports(path.with_name("other.db")) == {}
