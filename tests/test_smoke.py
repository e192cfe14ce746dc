"""`pynchy smoke`: what it finds where everything works, and where something does not."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import CREDENTIAL, RUNTIMES, pynchy

from pynchy.testing import ScriptedModel

pytestmark = [pytest.mark.anyio, pytest.mark.bubblewrap]

STEPS = ["credential", "runtime", "service", "message", "wire", "model", "tool", "outbox", "stop"]


@pytest.fixture(autouse=True)
def quickest_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it checks does not depend on which."""
    RUNTIMES["bubblewrap"]()
    monkeypatch.setenv("CONTAINER_RUNTIME", "bubblewrap")


@pytest.fixture(autouse=True)
def home(short_path: Path) -> Path:
    """Where there is room for the socket of another home inside."""
    return short_path / "home"


@contextmanager
def ending(service: subprocess.Popen[str]) -> Iterator[None]:
    """However the test ends, the service does."""
    try:
        yield
    finally:
        service.terminate()


def table(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """How each step went, `ok` or why it failed; there is nothing like a traceback."""
    assert "Traceback" not in done.stdout + done.stderr
    found = {}
    for line in done.stdout.splitlines():
        if match := re.fullmatch(r"(\w+) +(ok|FAILED)(?: +\d+\.\d s)?(?: +(.*))?", line):
            found[match[1]] = "ok" if match[2] == "ok" else match[3]
    return found


def test_with_everything_in_place_each_step_is_ok_and_nothing_is_left(home: Path) -> None:
    done = pynchy("smoke", "--demo")
    assert (done.returncode, table(done)) == (0, dict.fromkeys(STEPS, "ok"))
    assert done.stderr == "A scripted model answers one message; nothing is spent.\n"
    assert list(home.iterdir()) == []


def test_it_works_beside_a_service_and_leaves_it_alone() -> None:
    command = [sys.executable, "-m", "pynchy", "run", "--demo"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as service, ending(service):
        assert service.stderr is not None
        assert any("is ready" in line for line in service.stderr)
        assert pynchy("ask", "--demo", "one").stdout == "You said: one\n"
        done = pynchy("smoke", "--demo")
        assert (done.returncode, table(done)) == (0, dict.fromkeys(STEPS, "ok"))
        assert pynchy("ask", "--demo", "two").stdout == "You said: two\n"
        service.send_signal(signal.SIGTERM)
        service.communicate(timeout=30)
    assert service.returncode == 0


def test_without_a_credential_it_says_where_one_goes_and_tries_nothing(home: Path) -> None:
    done = pynchy("smoke")
    assert done.returncode == 1
    assert table(done) == {"credential": f"none: set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN in {home / '.env'}"}
    assert "This sends one message to the real model, which costs some cents." in done.stderr


def test_without_a_runtime_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYNCHY_AGENT_ENV", "/nowhere")
    done = pynchy("smoke", "--demo")
    assert (done.returncode, list(table(done))) == (1, ["credential", "runtime"])
    assert "the agent's environment is missing" in table(done)["runtime"]


async def test_a_model_that_runs_no_tool_is_found_out(model: ScriptedModel) -> None:
    # The scripted model repeats what it is asked to do.
    env = {"ANTHROPIC_BASE_URL": model.base_url, "ANTHROPIC_API_KEY": CREDENTIAL}
    done = await asyncio.to_thread(pynchy, "smoke", env=env)
    assert (done.returncode, table(done)) == (1, {**dict.fromkeys(STEPS, "ok"), "tool": "no trace of it"})
    assert re.fullmatch(r"model requests: \d+, \d+ tokens in, \d+ out: \$\d\.\d+", done.stdout.splitlines()[-1])
    assert CREDENTIAL not in done.stdout + done.stderr
    assert model.requests[-1].header("x-api-key") == CREDENTIAL


async def test_a_credential_that_is_refused_is_said_with_the_place_for_another(
    model: ScriptedModel, home: Path
) -> None:
    model.require_key("another")
    home.mkdir()
    (home / ".env").write_text(f"ANTHROPIC_API_KEY={CREDENTIAL}\nANTHROPIC_BASE_URL={model.base_url}\n")
    done = await asyncio.to_thread(pynchy, "smoke", env={"PYNCHY_RETRY_PAUSE": "0.01"})
    found = table(done)
    assert done.returncode == 1
    assert "does not accept my credential (HTTP 401)" in found["message"]
    assert str(home / ".env") in found["message"]
    assert (found["model"], found["tool"]) == ("no trace of it", "no trace of it")
    assert (found["outbox"], found["stop"]) == ("ok", "ok")  # for that was told in the chat
    assert CREDENTIAL not in done.stdout + done.stderr
    assert [path.name for path in home.iterdir()] == [".env"]


def test_a_setting_that_cannot_be_used_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_CONCURRENT_CONTAINERS", "many")
    done = pynchy("smoke", "--demo")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
