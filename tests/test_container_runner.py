"""One run of one agent, against agents that keep to the wire and agents that do not."""

from __future__ import annotations

import resource
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support import Chat, RogueRuntime, StartService

from pynchy.container_runner import AgentFailed, AgentRun, Limits
from pynchy.plugin import RuntimeUnavailable
from pynchy.types import ContainerInput, ContainerOutput, RunSpec

pytestmark = pytest.mark.anyio


class NoHost:
    """A host that nothing may be asked of."""

    async def _refuse(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("the agent reached the host")

    call_tool = note_acting = append_transcript = load_transcript = transcript_subpaths = _refuse
    forward_model_request = unsolicited = connect = _refuse

    async def note_plugin_parts(self, servers: Mapping[str, str], hooks: Mapping[str, str]) -> None:
        """It may tell of its servers."""


_PATIENT = Limits(start=20, answer=20, close=1)


def agent(kind: str, limits: Limits = _PATIENT) -> AgentRun:
    """A run of a rogue agent."""
    spec = RunSpec((), "pynchy-test", "no-image")
    return AgentRun(RogueRuntime(kind), spec, NoHost(), limits)


@pytest.fixture
def given() -> ContainerInput:
    """Any first message."""
    return ContainerInput(prompt="hello", group_folder="main", chat_jid="terminal:main")


async def answer(run: AgentRun, given: ContainerInput, ids: tuple[int, ...] = (1,)) -> ContainerOutput:
    """Start the agent and return its first answer."""
    await run.start(given, ids)
    return await run.result()


async def test_an_answer_comes_back_with_its_ids_and_the_agent_can_go_on(given: ContainerInput) -> None:
    run = agent("answers")
    output = await answer(run, given, (7, 8))
    assert (output.ids, output.text) == ((7, 8), "an answer")
    long_text = "ä" * 500_000
    run.send(long_text, (9,))
    assert (await run.result()).text == long_text
    assert run.alive
    await run.stop()
    assert not run.alive


async def test_several_batches_may_be_answered_at_once_and_the_rest_stays_unanswered(given: ContainerInput) -> None:
    run = agent("answers-two-batches-at-once")
    await run.start(given, (1,))
    run.send("second", (2, 3))
    run.send("third", (4,))
    assert (await run.result()).ids == (1, 2, 3)
    assert run.unanswered == (4,)
    await run.stop()


async def test_half_a_batch_cannot_be_answered(given: ContainerInput) -> None:
    run = agent("answers-half")
    with pytest.raises(AgentFailed, match="a result for messages that were not asked"):
        await answer(run, given, (1, 2))
    await run.stop()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("exits-before-ready", "exit code 1 before it was ready: could not find its own feet"),
        ("exits-mid-answer", "ended with exit code 3"),
        ("writes-garbage", "broke the protocol: not a frame"),
        ("writes-an-endless-line", "broke the protocol: a line longer than 64 KiB"),
        ("answers-for-others", "a result for messages that were not asked"),
        ("sends-a-wrong-type", "a result whose text is no text"),
    ],
)
async def test_an_agent_that_fails_is_ended_and_the_reason_says_how(
    kind: str, words: str, given: ContainerInput
) -> None:
    run = agent(kind)
    with pytest.raises(AgentFailed, match=words):
        await answer(run, given)
    assert not run.alive
    await run.stop()


async def test_an_endless_line_takes_no_memory(given: ContainerInput) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = agent("writes-an-endless-line")
    with pytest.raises(AgentFailed):
        await answer(run, given)
    await run.stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # KiB, of 100,000 sent


async def test_a_tool_runs_only_once_the_host_has_it_on_record(given: ContainerInput) -> None:
    class Recording(NoHost):
        async def note_acting(self, ids: tuple[int, ...]) -> None:
            assert run.acted == {1}
            noted.append(ids)

    noted: list[tuple[int, ...]] = []
    run = AgentRun(RogueRuntime("exits-after-a-tool"), RunSpec((), "x", "no-image"), Recording(), _PATIENT)
    with pytest.raises(AgentFailed, match="exit code 3"):
        await answer(run, given)
    assert noted == [(1,)]
    await run.stop()


async def test_a_tool_does_not_run_where_the_host_cannot_record_it(given: ContainerInput) -> None:
    class Full(NoHost):
        async def note_acting(self, ids: tuple[int, ...]) -> None:
            raise sqlite3.OperationalError("database or disk is full")

    run = AgentRun(RogueRuntime("repeats-the-reply-to-progress"), RunSpec((), "x", "no-image"), Full(), _PATIENT)
    assert (await answer(run, given)).text == '"the host cannot record that a tool is about to run, so it must not"'
    await run.stop()


async def test_nobody_acts_for_messages_of_another(given: ContainerInput) -> None:
    run = agent("acts-for-others")
    assert "messages that it was not given" in ((await answer(run, given)).text or "")
    assert not run.acted
    await run.stop()


async def test_an_agent_that_is_never_ready_is_given_up_after_the_start_limit(given: ContainerInput) -> None:
    run = agent("never-ready", Limits(start=0.3, answer=60, close=1))
    began = time.monotonic()
    with pytest.raises(AgentFailed, match="not ready within"):
        await answer(run, given)
    assert time.monotonic() - began < 20
    assert not run.alive


async def test_an_agent_that_never_answers_is_given_up_after_the_hard_limit(given: ContainerInput) -> None:
    run = agent("never-answers", Limits(start=20, answer=1, close=1))
    with pytest.raises(AgentFailed, match="no answer within 1 s"):
        await answer(run, given)
    assert not run.alive


@pytest.mark.parametrize("kind", ["floods", "floods-with-doing"])
async def test_a_flood_of_frames_is_drained(kind: str, given: ContainerInput) -> None:
    run = agent(kind)
    assert (await answer(run, given)).text == "done"
    await run.stop()


async def test_what_an_agent_says_it_is_doing_is_one_short_line_until_it_has_answered(given: ContainerInput) -> None:
    class Looking(NoHost):
        async def note_acting(self, ids: tuple[int, ...]) -> None:
            seen.append(run.doing)

    seen: list[str] = []
    run = AgentRun(RogueRuntime("does-strange-things"), RunSpec((), "x", "no-image"), Looking(), _PATIENT)
    await answer(run, given)
    assert run.doing == ""
    (doing,) = seen
    assert doing.startswith("Bash [2J: rm -rf /xxx")
    assert len(doing) == 120
    await run.stop()


async def test_an_agent_that_has_ended_does_nothing(given: ContainerInput) -> None:
    run = agent("exits-while-doing")
    with pytest.raises(AgentFailed, match="exit code 3"):
        await answer(run, given)
    assert run.doing == ""
    await run.stop()


async def test_more_pictures_than_a_line_can_name_do_not_break_the_wire(given: ContainerInput) -> None:
    run = agent("names-the-pictures")
    await answer(run, given)
    run.send("look", (2,), [f"{number}-{'x' * 100}.png" for number in range(1000)])
    assert (await run.result()).text == "200"
    await run.stop()


async def test_a_runtime_that_cannot_be_started_is_a_failure_not_a_crash(given: ContainerInput) -> None:
    run = agent("answers")
    run._runtime.cli = "/nonexistent/runtime"
    with pytest.raises(AgentFailed, match="could not be started"):
        await answer(run, given)
    await run.stop()


async def test_a_missing_image_is_named_with_the_command_that_builds_it(given: ContainerInput) -> None:
    class WithoutImage(RogueRuntime):
        def check_image(self, image: str) -> None:
            raise RuntimeUnavailable(f"the agent image {image} is missing", "build it with `pynchy image build`")

    run = AgentRun(WithoutImage("exits-before-ready"), RunSpec((), "x", "no-image"), NoHost(), Limits())
    with pytest.raises(AgentFailed, match="no-image is missing; build it with `pynchy image build`"):
        await answer(run, given)
    await run.stop()


# --- the same through the whole host --------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two attempts, and no time between them."""
    monkeypatch.setenv("PYNCHY_ATTEMPTS", "2")
    monkeypatch.setenv("PYNCHY_RETRY_PAUSE", "0.01")


@pytest.mark.usefixtures("impatient")
async def test_a_failure_becomes_a_notice_in_the_chat_and_the_message_is_failed(
    start_service: StartService, tmp_path: Path
) -> None:
    async with start_service(RogueRuntime("writes-garbage")) as service:
        chat = Chat(service)
        error = await chat.say("hello")
        notice = chat.texts.get_nowait()
    assert error is not None
    assert "broke the protocol" in error
    assert notice.startswith("I could not answer: it broke the protocol")
    assert notice.endswith("I tried 2 times, and nothing was done. Send it again to have me try again.")
    with sqlite3.connect(tmp_path / "home/pynchy.db") as db:
        assert db.execute("SELECT content, state, attempts FROM messages").fetchall() == [("hello", "failed", 1)]


@pytest.mark.usefixtures("impatient")
async def test_after_a_tool_ran_nothing_is_repeated_and_the_notice_says_so(
    start_service: StartService, tmp_path: Path
) -> None:
    async with start_service(RogueRuntime("exits-after-a-tool")) as service:
        chat = Chat(service)
        await chat.say("hello")
        assert chat.texts.get_nowait().endswith("look before you ask again.")
    with sqlite3.connect(tmp_path / "home/pynchy.db") as db:
        assert db.execute("SELECT state, attempts, acted FROM messages").fetchall() == [("failed", 0, 1)]


async def test_what_an_agent_may_not_ask_is_refused_and_changes_nothing(
    start_service: StartService, tmp_path: Path
) -> None:
    async with start_service(RogueRuntime("asks-for-the-moon")) as service:
        answers = (await Chat(service).ask("hello")).splitlines()
    assert answers == [
        "\"data must not contain {'jid'} properties\"",
        "\"there is no tool 'format_disk'\"",
        '{"type": "error", "error": {"type": "not_found_error", '
        '"message": "GET /v1/files does not leave this container"}}',
    ]
    with sqlite3.connect(tmp_path / "home/pynchy.db") as db:
        assert db.execute("SELECT DISTINCT chat_jid FROM outbox").fetchall() == [("terminal:main",)]


async def test_a_message_under_way_at_shutdown_is_answered_by_the_next_start(start_service: StartService) -> None:
    async with start_service(RogueRuntime("never-answers")) as service:
        row_id = await service.say(await service.group_jid("main"), "do not lose me")
    async with start_service(RogueRuntime("answers")) as service:
        assert await service.settlement(row_id) is None
