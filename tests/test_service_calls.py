"""Tasks, agents and people at the command line, as a person uses it: with a service, and as far as it goes without."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from stored import raw
from support import BUSY, RUNTIMES, pynchy
from test_cli import running_service

pytestmark = pytest.mark.bubblewrap

WATER = {"prompt": "Say what to water.", "kind": "cron", "schedule": "0 9 * * 6"}


@pytest.fixture(params=["running", "stopped"])
def garden(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A home with a group that has a task; says whether a service runs on it."""
    RUNTIMES["bubblewrap"]()
    monkeypatch.setenv("CONTAINER_RUNTIME", "bubblewrap")
    assert pynchy("groups", "add", "terminal:garden", "garden", "--time-zone", "Europe/Berlin").returncode == 0
    tool = f"/tool mcp__pynchy__schedule_task {json.dumps(WATER)}"
    assert pynchy("ask", "--demo", "--group", "garden", tool).stdout.startswith("Scheduled: Task 1")
    with running_service("--demo") if request.param == "running" else nullcontext():
        yield request.param


def status_with(words: str) -> str:
    """What `pynchy status` says, once it has these words or a minute has passed."""
    deadline = time.monotonic() + 60
    while words not in (said := pynchy("status").stdout) and time.monotonic() < deadline:
        pass
    return said


def test_tasks_are_listed_paused_resumed_and_cancelled(garden: str) -> None:
    task = "Task 1 of garden: Say what to water. (cron 0 9 * * 6 in Europe/Berlin, "
    assert pynchy("tasks", "list").stdout.startswith(f"{task}next ")
    assert pynchy("tasks", "pause", "1").stdout == f"{task}paused)\n"
    assert pynchy("tasks", "list", "--group", "garden").stdout == f"{task}paused)\n"
    assert pynchy("tasks", "list", "--group", "main").stdout == "There are none.\n"
    assert pynchy("tasks", "resume", "1").stdout.startswith(f"{task}next ")
    assert pynchy("tasks", "runs", "1").stdout == "There are none.\n"
    assert pynchy("tasks", "cancel", "1").stdout == f"{task}ended)\n"
    assert pynchy("tasks", "list").stdout == "There are none.\n"
    assert pynchy("tasks", "pause", "1").returncode == 1


def test_what_there_is_not_is_said_in_one_sentence(garden: str) -> None:
    for words, said in (
        (("tasks", "pause", "7"), "There is no task 7; `pynchy tasks list` lists those there are."),
        (("tasks", "list", "--group", "nope"), "There is no group 'nope'; there are: garden, main."),
        (("groups", "people", "nope"), "There is no group 'nope'; there are:"),
        (("groups", "remove", "nope"), "'nope' is no group."),
        (("groups", "remove", "main"), "'main' is the main chat, which stays."),
    ):
        done = pynchy(*words)
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert pynchy("tasks", "pause", "no").returncode == 2


def test_a_group_is_removed_with_its_tasks_and_its_people_are_listed_by_their_ids(garden: str, tmp_path: Path) -> None:
    with raw(tmp_path / "home/pynchy.db") as db:
        db.execute("UPDATE messages SET sender = '49@x', sender_name = 'Ada\x1b[2J'")
    assert pynchy("groups", "people", "garden").stdout == "49@x: Ada\\x1b[2J\n"
    assert pynchy("groups", "remove", "garden").stdout.startswith("garden is no group any more")
    assert pynchy("tasks", "list").stdout == "There are none.\n"
    assert "garden" not in pynchy("groups", "list").stdout.splitlines()[0]
    assert (tmp_path / "home/groups/garden").is_dir()


def test_an_agent_is_stopped_and_begins_anew_where_a_service_runs(garden: str) -> None:
    for words in (("stop", "garden"), ("clear", "garden"), ("status",)):
        done = pynchy(*words)
        if garden == "stopped":
            assert (done.returncode, done.stderr) == (1, "pynchy: No service runs here: `pynchy run` starts one.\n")
        else:
            assert (done.returncode, done.stderr) == (0, "")
    if garden == "stopped":
        return
    busy = [
        sys.executable,
        "-m",
        "pynchy",
        "ask",
        "--demo",
        "--group",
        "garden",
        f"/tool Bash {json.dumps({'command': BUSY})}",
    ]
    with subprocess.Popen(busy, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asking:
        assert "Agents: garden" in status_with("Agents: garden")
        assert pynchy("stop", "garden").stdout.startswith("Stopped.")
        assert asking.wait(timeout=60) == 1
    assert "Agents: none" in status_with("Agents: none")
