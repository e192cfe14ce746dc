"""What `/status` and `pynchy status` say."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from support import RogueRuntime, StartService, pynchy

from pynchy.destinations import Destination
from pynchy.plugin import PluginRegistry
from pynchy.status import Status
from pynchy.types import Group, NewMessage, PluginReport

MAIN = Group("terminal:main", "main", "main", is_main=True)
FAILED = ("wa:1", datetime(2026, 3, 1, 12, tzinfo=UTC), "it ended")
FAMILY = Group("wa:1", "Family", "family", network="example.com")


def test_each_subject_has_a_line_and_each_destination_its_counts() -> None:
    seen = [
        Destination("family", "example.com", 443, 1, 0, 999, 12_345_678, ""),
        Destination("family", "::1", 80, 0, 3, 0, 0, "no public address"),
        Destination("main", "(others)", 0, 2, 1, 1000, 5_000_000_000, ""),
        Destination("gone", "example.com", 443, 1, 0, 1, 1, ""),
    ]
    running, waiting = frozenset({MAIN.jid}), frozenset({FAMILY.jid, MAIN.jid})
    assert Status(
        "docker", [MAIN, FAMILY], running, waiting, 5, seen, ["voice: broken"], FAILED, ["$1"], [3]
    ).lines() == [
        "Agents: main (at most 5 at once), in docker",
        "Waiting: family",
        "Tasks at work: 3",
        "$1",
        f"Last message without an answer in family, {FAILED[1].astimezone():%Y-%m-%d %H:%M}: it ended",
        "Network of main: public",
        "  (others): 2 connections today, 1.0 kB sent, 5.0 GB received, 1 refused",
        "Network of family: example.com",
        "  example.com:443: 1 connection today, 999 bytes sent, 12.3 MB received",
        "  [::1]:80: 3 refused (no public address)",
        "Plugin voice: broken",
    ]


def test_many_groups_are_counted_and_nobody_else_is_named() -> None:
    groups = [Group(f"x:{number}", "x", f"g{number:02}") for number in range(13)]
    jids = frozenset(group.jid for group in groups)
    first = Status("docker", groups, jids, frozenset(), 20, []).lines()[0]
    assert first.startswith("Agents: g00, g01, ")
    assert first.endswith("g09 and 3 more (at most 20 at once), in docker")
    assert Status("docker", groups[:1], jids, jids, 20, []).lines() == [
        "Agents: g00 (at most 20 at once), in docker",
        "Network: public",
    ]


@pytest.mark.anyio
async def test_a_chat_hears_of_itself_alone_and_main_of_all_and_no_agent_is_started(
    start_service: StartService,
) -> None:
    async with start_service(RogueRuntime("answers"), PluginRegistry()) as service:
        await service.register_group(Group("terminal:family", "Family", "family", needs_trigger=False))
        await service.reports.note([PluginReport("voice", "mcp", "Connection closed")])
        said = {}
        for folder in ("main", "family"):
            jid = await service.group_jid(folder)
            texts: list[str] = []

            async def show(text: str, texts: list[str] = texts) -> None:
                texts.append(text)

            with service.terminal.attached(jid, show):
                await service.flush_outbox(jid)
                texts.clear()
                row_id = await service.say(jid, "/status")
                assert await service.settlement(row_id) is None
                await service.flush_outbox(jid)
            said[folder] = texts
        assert not service.groups_running
        again = NewMessage("same", "terminal:main", "u", "u", "/status", datetime.now(UTC))
        assert await service.on_message(again) is not None
        assert await service.on_message(again) is None  # a redelivery is answered once
    assert said["family"] == ["Agents: none (at most 5 at once), in rogue\nModel: $0.00 today\nNetwork: public"]
    assert said["main"][0].splitlines() == [
        "Agents: none (at most 5 at once), in rogue",
        "Model: $0.00 of $50.00 today",
        "Network of main: public",
        "Network of family: public",
        "Plugin voice: its MCP server does not work (Connection closed); `pynchy plugins check voice` says more",
    ]


def test_without_a_service_it_says_so() -> None:
    done = pynchy("status")
    assert (done.returncode, done.stderr.strip()) == (1, "pynchy: No service runs here: `pynchy run` starts one.")
