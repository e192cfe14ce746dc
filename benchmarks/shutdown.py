"""How long a clean shutdown takes while twenty real agents are in the middle of their work, beside one."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from benchmarks.disk import folder_on_disk
from benchmarks.table import Row
from pynchy.app import Service
from pynchy.channels.terminal import terminal_jid
from pynchy.config import Settings
from pynchy.model_gateway import Upstream
from pynchy.plugin import ContainerRuntime, PluginRegistry
from pynchy.testing import ScriptedModel
from pynchy.types import Group

AGENTS = 20
_LONGEST = 10.0  # seconds
#: Does not end by itself, and says that it has begun.
_BUSY = json.dumps({"command": "touch began; python3 -c 'import time; time.sleep(600)'", "timeout": 600_000})


async def measure(runtime: ContainerRuntime) -> list[Row]:
    """From the request to stop until nothing of any agent is left, which is looked at."""
    one, many = await _stop(runtime, 1), await _stop(runtime, AGENTS)
    return [
        Row(
            f"clean shutdown with {AGENTS} busy agents, {runtime.name}",
            many,
            one,
            "with one busy agent",
            most=_LONGEST,
        )
    ]


async def _stop(runtime: ContainerRuntime, agents: int) -> float:
    with folder_on_disk() as home:
        settings = Settings(home=home, MAX_CONCURRENT_CONTAINERS=agents)  # pyright: ignore[reportCallIssue]
        async with ScriptedModel() as model:
            async with Service.start(settings, Upstream(model.base_url), PluginRegistry(), runtime) as service:
                for number in range(agents):
                    jid = terminal_jid(f"busy-{number}")
                    await service.register_group(Group(jid, jid, f"busy-{number}"))
                    await service.say(jid, f"/tool Bash {_BUSY}")
                await _all_began(home, agents)
                prefix = service.container_prefix
                began = time.perf_counter()
            took = time.perf_counter() - began
        if left := runtime.list_running_containers(prefix):
            raise RuntimeError(f"a clean shutdown left {left}")
        return took


async def _all_began(home: Path, agents: int) -> None:
    while len(list(home.glob("groups/*/began"))) < agents:
        await asyncio.sleep(0.05)
