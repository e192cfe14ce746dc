"""A Docker engine that ends in the middle of an answer, and comes back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from soak.troubles import Engine
from support import BUSY, Chat, StartService, docker_runtime, missing, until

from pynchy.testing import ScriptedModel, Stall

pytestmark = [pytest.mark.anyio, pytest.mark.docker, pytest.mark.alone, pytest.mark.timeout(240)]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine that may be restarted, or a skip."""
    docker_runtime()
    engine = Engine.ours()
    if engine is None:
        missing("engine", "PYNCHY_TEST_ENGINE names no Docker engine that may be restarted")
    monkeypatch.setenv("PYNCHY_RETRY_PAUSE", "1")
    return engine


async def test_a_message_under_way_is_answered_when_the_engine_is_back(
    engine: Engine, start_service: StartService, model: ScriptedModel
) -> None:
    async with start_service(docker_runtime()) as service:
        chat = Chat(service)
        model.fail_next(Stall(), 1)
        saying = asyncio.create_task(chat.say("hello"))
        await until(lambda: model.requests)
        await engine.restart()
        assert await saying is None
        assert chat.texts.get_nowait() == "You said: hello"
        assert chat.texts.empty()
        prefix = service.container_prefix
    assert docker_runtime().list_running_containers(prefix) == []


async def test_a_tool_under_way_is_not_run_again_and_the_chat_is_told(
    engine: Engine, start_service: StartService, tmp_path: Path
) -> None:
    async with start_service(docker_runtime()) as service:
        chat = Chat(service)
        saying = asyncio.create_task(chat.say(f"/tool Bash {json.dumps({'command': f'echo once >>runs; {BUSY}'})}"))
        runs = tmp_path / "home/groups/main/runs"
        await until(runs.exists)
        await engine.restart()
        assert await saying is not None
        notice = chat.texts.get_nowait()
        assert notice.startswith("I could not answer: ")
        assert notice.endswith("I may have done a part of it already; look before you ask again.")
        assert runs.read_text() == "once\n"
        assert await chat.ask("still there?") == "You said: still there?"
