"""Commands that do something: what is being done ends, conversations begin anew, and nothing is lost on the way."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from loft import JID, database, loft, seen
from stored import rows
from support import RogueRuntime, until

from pynchy.container_runner import AgentRun
from pynchy.types import Group, VolumeMount

pytestmark = pytest.mark.anyio

GROUP = Group(JID, "Family", "family", needs_trigger=False)


async def state_is(tmp_path: Path, *states: str) -> None:
    """Wait until the messages are so, commands among them."""
    async with asyncio.timeout(30):
        while [state for (state,) in rows(database(tmp_path), "SELECT state FROM messages ORDER BY id")] != list(
            states
        ):
            await asyncio.sleep(0.01)


async def test_stop_ends_what_is_done_and_what_waits_and_the_next_message_is_answered(tmp_path: Path) -> None:
    runtime = RogueRuntime("never-answers")
    async with loft(GROUP, runtime) as channel:
        await channel.arrive("one")
        await state_is(tmp_path, "claimed")
        await channel.arrive("two")
        await channel.arrive("/stop")
        assert await channel.hear() == "Stopped."
        await state_is(tmp_path, "failed", "failed", "done")
        await channel.silence()
        runtime.kind = "echoes"
        await channel.arrive("three")
        assert seen(await channel.hear())[-1] == ("Ada", "three", False)
    assert rows(database(tmp_path), "SELECT text FROM outbox WHERE kind = 'notice'") == [("Stopped.",)]


async def test_stop_reaches_all_that_came_before_it_and_nothing_that_came_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end, end = asyncio.Event(), asyncio.Event(), AgentRun.stop

    async def slow_for_the_first(run: AgentRun) -> None:
        first = not begun.is_set()
        begun.set()
        await end(run)
        if first:
            await may_end.wait()

    monkeypatch.setattr(AgentRun, "stop", slow_for_the_first)
    runtime = RogueRuntime("never-answers")
    async with loft(GROUP, runtime) as channel:
        await channel.arrive("one")
        await state_is(tmp_path, "claimed")
        await channel.arrive("two")
        stopping = asyncio.ensure_future(channel.arrive("/stop"))
        await begun.wait()
        runtime.kind = "echoes"
        await channel.arrive("three")
        assert [text for _, text, context in seen(await channel.hear()) if not context] == ["three"]
        may_end.set()
        await stopping
        assert await channel.hear() == "Stopped."
        await state_is(tmp_path, "failed", "failed", "done", "done")


async def test_stop_says_where_a_part_may_have_been_done(tmp_path: Path) -> None:
    async with loft(GROUP, RogueRuntime("never-answers-after-a-tool")) as channel:
        await channel.arrive("one")
        async with asyncio.timeout(30):
            while not rows(database(tmp_path), "SELECT 1 FROM messages WHERE acted"):
                await asyncio.sleep(0.01)
        await channel.arrive("/stop")
        assert await channel.hear() == "Stopped. I may have done a part of it already; look before you ask again."
        await channel.silence()


async def test_stop_while_an_agent_is_only_starting_stops_it(tmp_path: Path) -> None:
    async with loft(GROUP, RogueRuntime("never-ready")) as channel:
        for _ in range(3):
            await channel.arrive("one")
            await channel.arrive("/stop")
            assert await channel.hear() == "Stopped."
        await channel.silence()
        assert channel.service
        service = channel.service
        await until(lambda: not service.groups_running or service._conversations._shifts)


async def test_stop_twice_at_once_is_one(tmp_path: Path) -> None:
    async with loft(GROUP, RogueRuntime("never-answers")) as channel:
        await channel.arrive("one")
        await state_is(tmp_path, "claimed")
        await asyncio.gather(channel.arrive("/stop"), channel.arrive("/stop"))
        heard = {await channel.hear(), await channel.hear()}
        assert heard <= {"Stopped.", "Nothing is being done here."}
        await channel.silence()


async def test_stop_by_one_chat_is_nothing_to_another(tmp_path: Path) -> None:
    other = Group("loft:2", "Work", "work", needs_trigger=False)
    async with loft(GROUP, RogueRuntime("never-answers")) as channel:
        assert channel.service
        await channel.service.register_group(other)
        await channel.arrive("one", jid="loft:2")
        await state_is(tmp_path, "claimed")
        await channel.arrive("/stop")
        assert await channel.hear() == "Nothing is being done here."
        await state_is(tmp_path, "claimed", "done")


class Remembering(RogueRuntime):
    """Counts the agents that were started."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.started = 0

    def build_run_args(self, mounts: list[VolumeMount], container_name: str, image: str) -> list[str]:
        self.started += 1
        return super().build_run_args(mounts, container_name, image)


async def test_clear_lets_the_next_message_have_a_new_agent_and_conversation(tmp_path: Path) -> None:
    runtime = Remembering("echoes")
    async with loft(GROUP, runtime) as channel:
        await channel.arrive("one")
        await channel.hear()
        await channel.arrive("two")
        await channel.hear()
        assert runtime.started == 1
        await channel.arrive("/clear")
        assert (await channel.hear()).startswith("The next message begins a new conversation.")
        await channel.arrive("three")
        await channel.hear()
        assert runtime.started == 2


async def test_clear_in_the_middle_of_an_answer_waits_for_it_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    runtime = Remembering("answers-when-told")
    async with loft(GROUP, runtime) as channel:
        await channel.arrive("one")
        async with asyncio.timeout(30):
            while not (tmp_path / "family.started").exists():
                await asyncio.sleep(0.01)
        await channel.arrive("/clear")
        await channel.hear()
        await channel.arrive("two")
        (tmp_path / "family.go").touch()
        assert [await channel.hear(), await channel.hear()] == ["an answer"] * 2
        assert runtime.started == 2
        assert channel.service


async def test_a_group_that_is_removed_in_the_middle_of_an_answer_hears_nothing_more(tmp_path: Path) -> None:
    async with loft(GROUP, RogueRuntime("never-answers")) as channel:
        await channel.arrive("one")
        await state_is(tmp_path, "claimed")
        assert channel.service
        await channel.service.remove_group("family")
        async with asyncio.timeout(30):
            while channel.service.groups_running:
                await asyncio.sleep(0.01)
        await channel.silence()
