"""The random runs of `make soak`, short: hosts that are killed, and everything else going wrong at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from soak.runs import everything_fails, hosts_killed
from support import RUNTIMES

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]


@pytest.mark.bubblewrap
async def test_hosts_killed_at_random_answer_every_message_once(tmp_path: Path) -> None:
    RUNTIMES["bubblewrap"]()
    report = await hosts_killed(tmp_path / "home", "bubblewrap", messages=24, kills=4, groups=4, seed=7)
    account = report.account
    assert (account.messages, account.answered) == (24, 24)
    assert (account.lost, account.wrong) == ([], [])
    assert account.repeated <= report.kills


@pytest.mark.alone  # it restarts the engine where it may
@pytest.mark.docker
async def test_whatever_fails_every_message_ends_in_one_answer_or_one_notice(tmp_path: Path) -> None:
    RUNTIMES["docker"]()
    report = await everything_fails(tmp_path / "home", "docker", messages=24, troubles=5, groups=4, seed=7)
    account = report.account
    assert (account.lost, account.wrong) == ([], [])
    assert account.answered + account.failed == account.messages == 24
    assert account.repeated <= report.kills
    assert all(report.troubles.values()), "each trouble came at least once"
