"""Two random runs: hosts that are killed, and everything else that goes wrong. Each ends in an account."""

from __future__ import annotations

import asyncio
import random
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pynchy.testing import ScriptedModel
from soak.troubles import Clock, Disk, Engine, unreliable
from soak.world import Account, World, world

#: Whatever happened, everything is settled within this time after it has stopped, in seconds.
_SETTLES_WITHIN = 300.0


@dataclass
class Report:
    """What was done, and what came of it."""

    account: Account
    kills: int
    troubles: dict[str, int]
    starts: int


async def hosts_killed(home: Path, runtime: str, messages: int, kills: int, groups: int, seed: int) -> Report:
    """Kill the host at random moments while people talk; at the end all must have been answered once."""
    chance = random.Random(seed)
    async with ScriptedModel() as model, world(home, model.base_url, runtime, groups) as people:
        for kill in range(kills):
            await people.start()
            talking = asyncio.create_task(
                _talk(people, chance, messages * kill // kills, messages * (kill + 1) // kills)
            )
            # From the start of a host to well into the answers of a warm agent.
            await asyncio.sleep(chance.uniform(0, 6))
            await people.kill()
            await talking
        await people.start()
        await people.settled(_SETTLES_WITHIN)
        await people.stop()
        return Report(people.account(), kills, {}, people.starts)


async def everything_fails(home: Path, runtime: str, messages: int, troubles: int, groups: int, seed: int) -> Report:
    """Let one thing after the other go wrong while people talk to a model and through a channel that both fail."""
    chance = random.Random(seed)
    done: dict[str, int] = dict.fromkeys(("containers", "clock", "disk", "host"), 0)
    with ExitStack() as stack:
        disk = stack.enter_context(Disk.mounted(home))
        clock = Clock(home.parent)
        engine = Engine.ours() if runtime == "docker" else None
        if engine:
            done["engine"] = 0
        model = ScriptedModel()
        patient = {"PYNCHY_RETRY_PAUSE": "1", "PYNCHY_ATTEMPTS": "4"}
        async with model, world(home, model.base_url, runtime, groups, **clock.environment, **patient) as people:
            unreliable(model, seed)
            await people.start(drop=10, patience=2)
            names = list(done)
            quick = [name for name in names if name != "engine"]  # a restart takes so long that it is rare
            for number in range(troubles):
                talking = asyncio.create_task(
                    _talk(people, chance, messages * number // troubles, messages * (number + 1) // troubles)
                )
                await asyncio.sleep(chance.uniform(0.5, 4))
                # Each kind comes up, and then by chance.
                name = names[number] if number < len(names) else chance.choice(quick * 8 + names)
                done[name] += 1
                if name == "containers":
                    people.command(kill="container")
                elif name == "clock":
                    clock.jump(chance.choice([-1, 0, 1]) if done[name] > 2 else (1, -1)[done[name] - 1])
                elif name == "disk":
                    with disk.full():
                        await asyncio.sleep(chance.uniform(0.5, 4))
                elif name == "host":
                    await people.kill()
                elif engine:
                    await engine.restart()
                await talking
                while not people.alive:
                    await people.start(drop=10, patience=2)
            model.succeed()
            await people.settled(_SETTLES_WITHIN)
            await people.stop()
            return Report(people.account(), done["host"], done, people.starts)


async def _talk(people: World, chance: random.Random, first: int, last: int) -> None:
    for _ in range(first, last):
        people.say(chance.randrange(people.groups))
        await asyncio.sleep(chance.uniform(0, 0.2))
