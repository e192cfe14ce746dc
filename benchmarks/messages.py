"""Message to reply, cold and warm, beside the bare SDK in the same container."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
import uuid
from pathlib import Path
from statistics import median

from benchmarks.table import Row
from pynchy.agent_plugins import plugin_parts
from pynchy.agent_setup import agent_owner
from pynchy.app import Service
from pynchy.config import Settings
from pynchy.container_runner import CLIENT_VARIABLES
from pynchy.model_gateway import Upstream
from pynchy.plugin import ContainerRuntime, OciRuntime, PluginRegistry
from pynchy.runtime import agent_image
from pynchy.testing import ScriptedModel
from pynchy.types import Group, RunSpec, VolumeMount
from pynchy.workspace import RUNNER_PATH, group_mounts

COLD_RUNS = 8
WARM_QUERIES = 40
_FLOOR = Path(__file__).parent / "floor"


async def measure(runtime: ContainerRuntime, plugins: PluginRegistry, label: str) -> list[Row]:
    """Cold and warm rows for a runtime; floor and service take turns, so that both meet the same machine."""
    floors_cold, floors_warm, cold, warm = [], [], [], []
    async with ScriptedModel() as model:
        for _ in range(COLD_RUNS):
            first, further = await _floor(runtime, plugins, model)
            floors_cold.append(first)
            floors_warm += further
            first, further = await service(runtime, plugins, model)
            cold.append(first)
            warm += further
    return [
        Row(f"cold message -> reply, {label}", median(cold), median(floors_cold), "bare SDK, same container", 1.1),
        Row(f"warm message -> reply, {label}", median(warm), median(floors_warm), "bare SDK's own query", 1.5),
    ]


async def service(
    runtime: ContainerRuntime, plugins: PluginRegistry, model: ScriptedModel
) -> tuple[float, list[float]]:
    """Channel in to channel out, on a fresh home: the first message, then the further ones."""
    texts: asyncio.Queue[str] = asyncio.Queue()
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(home=Path(home))  # pyright: ignore[reportCallIssue]
        async with Service.start(settings, Upstream(model.base_url), plugins, runtime) as service:
            jid = await service.group_jid("main")
            with service.terminal.attached(jid, texts.put):

                async def once() -> float:
                    began = time.perf_counter()
                    await service.say(jid, "hello")
                    await texts.get()
                    return time.perf_counter() - began

                return await once(), [await once() for _ in range(WARM_QUERIES // COLD_RUNS)]


async def _floor(runtime: ContainerRuntime, plugins: PluginRegistry, model: ScriptedModel) -> tuple[float, list[float]]:
    """The bare SDK in the same container, but with the host's network in the wire's place."""
    settings = Settings()  # pyright: ignore[reportCallIssue]
    owner = agent_owner(settings)
    with tempfile.TemporaryDirectory() as home:
        group = Group("terminal:main", "main", "main")
        parts = plugin_parts(plugins, Path(home), group, owner)
        servers = {
            name: {
                "command": server["command"],
                "args": server["args"],
                "env": {"PYTHONPATH": f"/workspace/plugins/{name}:/opt/rooms"},
            }
            for name, server in parts.mcp_servers.items()
        }
        mounts = (*group_mounts(Path(home), group, _FLOOR, owner), *parts.mounts)
        rooms = VolumeMount(str(Path(__file__).parents[1] / "src"), "/opt/rooms", readonly=True)
        spec = RunSpec(
            mounts=(*mounts, rooms),
            container_name=f"pynchy-bench-{uuid.uuid4().hex[:8]}",
            image=agent_image(),
            env={
                "BENCH_MODEL": model.base_url,
                "BENCH_QUERIES": str(WARM_QUERIES // COLD_RUNS),
                "BENCH_SERVERS": json.dumps(servers),
                **({"IS_SANDBOX": "1"} if owner[0] == 0 else {}),
            },
            user=owner,
        )
        assert any(mount.container_path == RUNNER_PATH for mount in spec.mounts)
        arguments = runtime.run_args(spec)  # type: ignore[attr-defined]
        arguments = [argument for argument in arguments if argument != "--unshare-net"]
        if isinstance(runtime, OciRuntime):
            arguments[arguments.index("--network") + 1] = "host"
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            runtime.cli,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={name: os.environ[name] for name in CLIENT_VARIABLES if name in os.environ},
        )
        assert process.stdout is not None
        assert (await process.stdout.readline()).strip() == b"answered"
        first = time.perf_counter() - began
        further = json.loads(await process.stdout.readline())
        await process.wait()
    return first, further
