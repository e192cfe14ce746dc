"""The service as a whole: places, idling, shutdown, and what an earlier service left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from soak.troubles import Disk
from support import BUSY, Chat, RogueRuntime, StartService, docker_runtime, pynchy

from pynchy.agent_plugins import AgentPlugins, plugin_parts
from pynchy.app import Service
from pynchy.channels.terminal import terminal_jid
from pynchy.control import ControlError
from pynchy.runtime import DockerRuntime
from pynchy.starting import AlreadyRunning
from pynchy.types import Group, NewMessage

pytestmark = pytest.mark.anyio


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process does; the test's own time limit ends it."""
    while not condition():
        await asyncio.sleep(0.01)


async def groups(service: Service, *folders: str) -> list[str]:
    """Register groups in the terminal; returns their chats."""
    for folder in folders:
        await service.register_group(Group(terminal_jid(folder), folder, folder))
    return [terminal_jid(folder) for folder in folders]


def signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where agents say that they started, and are told to answer."""
    directory = tmp_path / "signs"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


async def test_no_more_agents_run_at_once_than_the_limit_and_each_gets_its_turn(
    start_service: StartService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_CONCURRENT_CONTAINERS", "2")
    sign = signs(tmp_path, monkeypatch)
    async with start_service(RogueRuntime("answers-when-told")) as service:
        jids = await groups(service, "a", "b", "c")
        rows = [await service.say(jid, "hello") for jid in jids]
        await until(lambda: (sign / "a.started").exists() and (sign / "b.started").exists())
        assert sorted(service.groups_running) == jids[:2]
        (sign / "a.go").touch()
        await until(lambda: (sign / "c.started").exists())  # a is idle now, and gave up its place at once
        assert sorted(service.groups_running) == jids[1:]
        (sign / "b.go").touch()
        (sign / "c.go").touch()
        for row in rows:
            assert await service.settlement(row) is None


async def test_an_idle_agent_closes_and_the_next_message_starts_another(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYNCHY_IDLE_TIMEOUT", "0.05")
    async with start_service(RogueRuntime("answers")) as service:
        for _ in range(2):
            assert await Chat(service).ask("hello") == "an answer"
            await until(lambda: not service.groups_running)


async def test_messages_of_a_run_are_answered_after_it_by_the_same_agent(
    start_service: StartService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = signs(tmp_path, monkeypatch)
    async with start_service(RogueRuntime("answers-when-told")) as service:
        (jid,) = await groups(service, "a")
        texts: asyncio.Queue[str] = asyncio.Queue()
        with service.terminal.attached(jid, texts.put):
            await service.say(jid, "first")
            await until(lambda: (sign / "a.started").exists())
            await service.say(jid, "second")
            await service.say(jid, "third & last")
            (sign / "a.go").touch()
            assert await texts.get() == "an answer"
            both = await texts.get()
    assert both.index("second") < both.index("third &amp; last")


async def test_a_long_run_in_one_group_delays_no_other(
    start_service: StartService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = signs(tmp_path, monkeypatch)
    async with start_service(RogueRuntime("answers-when-told")) as service:
        long, other = await groups(service, "long", "other")
        row = await service.say(long, "take your time")
        await until(lambda: (sign / "long.started").exists())
        for _ in range(3):
            (sign / "other.go").touch()
            assert await service.settlement(await service.say(other, "quick")) is None
        assert service.groups_running.count(long) == 1
        (sign / "long.go").touch()
        assert await service.settlement(row) is None


async def test_a_group_that_goes_on_talking_leaves_its_place_to_one_that_waits(
    start_service: StartService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_CONCURRENT_CONTAINERS", "1")
    sign = signs(tmp_path, monkeypatch)
    async with start_service(RogueRuntime("answers-when-told")) as service:
        chatty, patient = await groups(service, "chatty", "patient")
        first = await service.say(chatty, "first")
        await until(lambda: (sign / "chatty.started").exists())
        waiting = await service.say(patient, "when you have time")
        more = await service.say(chatty, "and another thing")
        (sign / "patient.go").touch()
        (sign / "chatty.go").touch()
        assert await service.settlement(first) is None
        assert await service.settlement(waiting) is None
        assert await service.settlement(more) is None
    with sqlite3.connect(tmp_path / "home/pynchy.db") as db:
        answered = [row[0] for row in db.execute("SELECT chat_jid FROM outbox ORDER BY id")]
    assert answered == [chatty, patient, chatty]


async def test_an_agent_that_dies_before_it_answers_is_replaced_and_nobody_notices(
    start_service: StartService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signs(tmp_path, monkeypatch)
    monkeypatch.setenv("PYNCHY_RETRY_PAUSE", "0.01")
    async with start_service(RogueRuntime("fails-the-first-time")) as service:
        assert await Chat(service).ask("hello") == "an answer"
    with sqlite3.connect(tmp_path / "home/pynchy.db") as db:
        assert db.execute("SELECT state, attempts FROM messages").fetchall() == [("done", 1)]


async def test_a_group_cannot_take_the_folder_of_another(start_service: StartService) -> None:
    async with start_service(RogueRuntime("answers")) as service:
        await service.register_group(Group("terminal:a", "a", "shared"))
        with pytest.raises(ValueError, match="belongs to another chat"):
            await service.register_group(Group("terminal:b", "b", "shared"))


async def test_a_message_that_cannot_be_stored_is_refused_with_the_reason(
    start_service: StartService, tmp_path: Path
) -> None:
    async with start_service(RogueRuntime("answers")) as service:
        with sqlite3.connect(tmp_path / "home/pynchy.db") as db:
            db.execute("CREATE TRIGGER full BEFORE INSERT ON messages BEGIN SELECT RAISE(ABORT, 'no room'); END")
        with pytest.raises(ControlError, match=r"could not be stored \(no room\): make room, and send it again"):
            await Chat(service).say("hello")


async def test_a_service_that_stops_while_the_disk_is_full_loses_nothing(
    start_service: StartService, tmp_path: Path
) -> None:
    with Disk.mounted(tmp_path / "home") as disk, ExitStack() as filling:
        async with start_service(RogueRuntime("never-answers")) as service:
            row = await service.say(await service.group_jid("main"), "hello")
            await until(lambda: bool(service.groups_running))
            filling.enter_context(disk.full())
        filling.close()
        async with start_service(RogueRuntime("answers")) as service:
            assert await service.settlement(row) is None


async def test_what_breaks_in_our_own_code_is_tried_again_and_then_said(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYNCHY_RETRY_PAUSE", "0.01")
    broken = 2

    def breaking(*given: Any) -> AgentPlugins:
        nonlocal broken
        broken -= 1
        if broken >= 0:
            raise ZeroDivisionError("half a plugin")
        return plugin_parts(*given)

    monkeypatch.setattr("pynchy.agent_setup.plugin_parts", breaking)
    async with start_service(RogueRuntime("answers")) as service:
        chat = Chat(service)
        assert await chat.ask("hello") == "an answer"
        broken = 1000
    async with start_service(RogueRuntime("answers")) as service:
        chat = Chat(service)
        assert await chat.say("hello") is not None
        notice = chat.texts.get_nowait()
    assert notice.startswith("I could not answer: something went wrong in here (ZeroDivisionError: half a plugin).")


@pytest.mark.docker
async def test_containers_that_nobody_uses_are_removed_while_the_service_runs_and_no_others(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pynchy.orphans._REAP_EVERY", 0.1)
    docker = docker_runtime()
    async with start_service(docker) as service:
        chat, prefix = Chat(service), service.container_prefix
        await chat.ask("hello")
        in_use = docker.list_running_containers(prefix)
        assert len(in_use) == 1
        # The engine refuses to start what is removed between its making and its start.
        making, look = threading.Lock(), docker.list_running_containers

        def look_when_made(prefix: str) -> list[str]:
            with making:
                return look(prefix)

        def leave() -> None:
            image = ("--entrypoint", "sleep", "pynchy-agent:latest", "300")
            with making:
                docker.command("run", "--rm", "-d", "--name", f"{prefix}left-running", *image)
                docker.command("create", "--name", f"{prefix}never-started", *image)
                assert len(look(prefix)) == 3

        monkeypatch.setattr(docker, "list_running_containers", look_when_made)
        await asyncio.to_thread(leave)
        while await asyncio.to_thread(docker.list_running_containers, prefix) != in_use:
            await asyncio.sleep(0.05)
        assert await chat.ask("still there?") == "You said: still there?"
        assert docker.list_running_containers(prefix) == in_use


async def test_the_same_message_twice_is_answered_once(start_service: StartService) -> None:
    async with start_service(RogueRuntime("answers")) as service:
        jid = await service.group_jid("main")
        message = NewMessage("id-1", jid, "ada", "Ada", "hello", datetime.now(UTC))
        row = await service.on_message(message)
        assert row is not None
        assert await service.settlement(row) is None
        assert await service.on_message(message) is None


async def test_a_reply_waits_until_somebody_is_at_the_terminal(start_service: StartService) -> None:
    async with start_service(RogueRuntime("answers")) as service:
        row = await service.say(await service.group_jid("main"), "hello")
        await service.settlement(row)
    async with start_service(RogueRuntime("answers")) as service:
        texts: asyncio.Queue[str] = asyncio.Queue()
        jid = await service.group_jid("main")
        with service.terminal.attached(jid, texts.put):
            await service.flush_outbox(jid)
            assert texts.get_nowait() == "an answer"


async def test_one_home_has_one_service(start_service: StartService) -> None:
    async with start_service(RogueRuntime("answers")):
        with pytest.raises(AlreadyRunning, match=f"process {os.getpid()}"):
            async with start_service(RogueRuntime("answers")):
                pass


async def test_the_home_is_closed_to_everybody_else(start_service: StartService, tmp_path: Path) -> None:
    async with start_service(RogueRuntime("answers")) as service:
        await Chat(service).ask("hello")
        assert (tmp_path / "home").stat().st_mode & 0o077 == 0
        assert (tmp_path / "home/control.sock").stat().st_mode & 0o777 == 0o600


@pytest.mark.docker
def test_a_container_of_a_service_that_was_killed_is_removed_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = docker_runtime()
    monkeypatch.setenv("CONTAINER_RUNTIME", "docker")
    foreign = f"pynchy-ffffffffffff-{os.getpid()}"
    docker.command(
        "run", "--rm", "-d", "--name", foreign, "--entrypoint", "sleep", "pynchy-agent:latest", "300", timeout=60
    )
    try:
        # One message to learn the installation's id, then a busy container is left behind.
        busy = subprocess.Popen(
            [sys.executable, "-m", "pynchy", "ask", "--demo", f"/tool Bash {json.dumps({'command': BUSY})}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def ours() -> list[str]:
            with suppress(sqlite3.Error), sqlite3.connect(f"file:{tmp_path}/home/pynchy.db?mode=ro", uri=True) as db:
                for (installation,) in db.execute("SELECT value FROM meta WHERE key = 'installation_id'"):
                    return docker.list_running_containers(f"pynchy-{installation}-")
            return []

        try:
            asyncio.run(asyncio.wait_for(until(lambda: bool(ours())), 60))
            (left,) = ours()
        finally:
            busy.send_signal(signal.SIGKILL)
            busy.wait()
        assert pynchy("ask", "--demo", "--group", "none", "x").returncode == 1  # starts a service, and ends
        assert left not in docker.list_running_containers()
        assert foreign in docker.list_running_containers()
    finally:
        with suppress(Exception):
            docker.stop(foreign)


# --- an engine that is ill ----------------------------------------------------------------------------------


@pytest.fixture
def sick_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], DockerRuntime]:
    """A Docker whose program runs these lines of shell."""

    def sick(lines: str) -> DockerRuntime:
        directory = tmp_path / "sick"
        directory.mkdir()
        info = '{"ServerVersion": "28.0.0", "Architecture": "x86_64"}'
        (directory / "docker").write_text(f"#!/bin/sh\n[ $1 != info ] || {{ echo '{info}'; exit; }}\n{lines}\n")
        (directory / "docker").chmod(0o755)
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
        monkeypatch.setenv("PYNCHY_RETRY_PAUSE", "0.01")
        monkeypatch.setenv("PYNCHY_ATTEMPTS", "2")
        monkeypatch.setattr("pynchy.plugin._oci._ANSWERS_WITHIN", 0.3)
        return DockerRuntime()

    return sick


async def test_an_engine_that_hangs_ends_in_a_notice(
    sick_docker: Callable[[str], DockerRuntime], start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYNCHY_START_TIMEOUT", "0.5")
    async with start_service(sick_docker("exec sleep 300")) as service:
        chat = Chat(service)
        assert await chat.say("hello") == "it was not ready within 0.5 s"
        assert chat.texts.get_nowait() == (
            "I could not answer: it was not ready within 0.5 s. I tried 2 times, and nothing was done. "
            "Send it again to have me try again."
        )


async def test_an_engine_that_starts_nothing_says_why(
    sick_docker: Callable[[str], DockerRuntime], start_service: StartService
) -> None:
    runtime = sick_docker("echo 'docker: Error response from daemon: invalid mount config.' >&2; exit 125")
    async with start_service(runtime) as service:
        error = await Chat(service).say("hello")
    assert error is not None
    assert "docker: Error response from daemon: invalid mount config." in error
