"""At each named point of a message's way something is killed, and every message is answered exactly once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from soak.world import Account, World, world
from support import BUSY, until

from pynchy.fault_points import POINTS
from pynchy.plugin import ContainerRuntime
from pynchy.testing import ScriptedModel

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(400)]


async def no_container_is_left(runtime: ContainerRuntime, world: World) -> None:
    """After a stop, nothing of this home runs any more; an engine may still be clearing away what has ended."""
    await world.stop()
    await until(lambda: runtime.list_running_containers(world.prefix) == [])


async def test_a_host_killed_at_any_point_loses_nothing_and_repeats_nothing(
    runtime: ContainerRuntime, model: ScriptedModel, tmp_path: Path
) -> None:
    async with world(tmp_path / "home", model.base_url, runtime.name, PYNCHY_RETRY_PAUSE="0.01") as people:
        await people.start()
        for point in POINTS:
            if point == "spawned":
                people.command(kill="client")  # so that another has to be
            people.command(arm=point, victim="host")
            word = people.say(0)
            await people.died()
            await people.start()
            await people.hears(word)
        await people.settled(30)
        account = people.account()
        # Between a send and its record nobody can know: this one, and no other, is heard twice.
        assert account == Account(messages=len(POINTS), answered=len(POINTS), repeated=1)
        await no_container_is_left(runtime, people)


@pytest.mark.parametrize("victim", ["container", "client", "cli"])
async def test_an_agent_killed_at_any_point_is_replaced_and_every_message_is_answered_once(
    runtime: ContainerRuntime, victim: str, model: ScriptedModel, tmp_path: Path
) -> None:
    async with world(
        tmp_path / "home", model.base_url, runtime.name, PYNCHY_RETRY_PAUSE="0.01", PYNCHY_ATTEMPTS="10"
    ) as people:
        await people.start()
        await people.hears(people.say(0))
        for point in POINTS:
            if point == "spawned":
                people.command(kill="client")  # so that another has to be
            people.command(arm=point, victim=victim)
            await people.hears(people.say(0))
        await people.settled(30)
        assert people.account() == Account(messages=len(POINTS) + 1, answered=len(POINTS) + 1)
        assert len(people.killed) == len(POINTS) + 1
        assert all(found for found in people.killed[1:4]), "an agent that was warm is there to be killed"
        await no_container_is_left(runtime, people)


async def test_a_host_killed_while_a_tool_runs_says_so_and_does_not_run_it_again(
    runtime: ContainerRuntime, model: ScriptedModel, tmp_path: Path
) -> None:
    async with world(tmp_path / "home", model.base_url, runtime.name) as people:
        await people.start()
        command = json.dumps({"command": f"echo started >>count; {BUSY}"})
        counter = tmp_path / "home/groups/group-0/count"
        people.say(0, f"/tool Bash {command}")
        await people.until_there(counter)
        await people.kill()
        await people.start()
        await people.settled(30)
        account = people.account()
        assert (account.answered, account.failed, account.lost, account.repeated) == (0, 1, [], 0)
        assert people.heard[-1][1].endswith("I may have done a part of it already; look before you ask again.")
        assert counter.read_text() == "started\n"
        await no_container_is_left(runtime, people)
