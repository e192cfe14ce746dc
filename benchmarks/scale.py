"""A service with a long past beside one with a short past: its start, its memory, and a message's way to the agent.

The agents are stubs, so that a difference is the host's. Both files are in the machine's page cache.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from statistics import median

from benchmarks.disk import folder_on_disk
from benchmarks.history import fill
from benchmarks.startup import peak_megabytes
from benchmarks.stub import StubRuntime, with_stub_plugin
from benchmarks.table import Row
from pynchy.app import Service
from pynchy.channels.terminal import terminal_jid
from pynchy.config import Settings
from pynchy.control import connect
from pynchy.home import control_socket
from pynchy.model_gateway import Upstream
from pynchy.plugin import PluginRegistry

STARTS = 10
ANSWERS = 50
COLD_MESSAGES = 60
WARM_MESSAGES = 300
MOST_MEGABYTES = 100


@dataclass
class _Home:
    """A home, and what was measured of its service."""

    path: Path
    folders: list[str]
    ready: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)
    peak_later: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)


async def measure() -> list[Row]:
    """Rows of the long past beside the short one; they take turns, so that both meet the same machine."""
    with folder_on_disk() as folder:
        env = with_stub_plugin(folder / "plugin")
        long = _Home(folder / "long", await fill(folder / "long", 1_000, 1_000_000))
        short = _Home(folder / "short", await fill(folder / "short", 10, 100))
        for _ in range(STARTS):
            await _start(long, env)
            await _start(short, env)
        async with _service(long, idle_timeout=0.01) as of_long, _service(short, idle_timeout=0.01) as of_short:
            for one, other in zip(long.folders[:COLD_MESSAGES], cycle(short.folders), strict=False):
                long.cold.append(await _seconds_to_prompt(of_long, one))
                short.cold.append(await _seconds_to_prompt(of_short, other))
                await _nobody_runs(of_long, of_short)
        async with _service(long) as of_long, _service(short) as of_short:
            for _ in range(WARM_MESSAGES):
                long.warm.append(await _seconds_to_prompt(of_long, long.folders[0]))
                short.warm.append(await _seconds_to_prompt(of_short, short.folders[0]))
    what, floor_is = "1,000 groups with 1,000,000 messages", "10 groups with 100"
    return [
        # The first of each fills the caches, or starts the agent.
        Row(f"start to ready, {what}", median(long.ready[1:]), median(short.ready[1:]), floor_is, 1.2),
        _memory(f"peak memory when ready, {what}", long.peak, short.peak, floor_is),
        _memory(f"peak memory after {ANSWERS} answers, {what}", long.peak_later, short.peak_later, floor_is),
        Row(f"message -> prompt, warm agent, {what}", median(long.warm[1:]), median(short.warm[1:]), floor_is, 1.2),
        Row(f"message -> prompt, cold agent, {what}", median(long.cold), median(short.cold), floor_is, 1.2),
    ]


def _memory(what: str, value: list[float], floor: list[float], floor_is: str) -> Row:
    return Row(what, max(value), max(floor), floor_is, unit="MB", most=MOST_MEGABYTES)


# --- as a process of its own --------------------------------------------------------------------------------


async def _start(home: _Home, env: dict[str, str]) -> None:
    """Measure one run of `pynchy run`, which is asked in as many groups as there are, or in turns."""
    began = time.perf_counter()
    service = subprocess.Popen(
        [sys.executable, "-m", "pynchy", "run"],
        env={**env, "PYNCHY_HOME": str(home.path), "ANTHROPIC_API_KEY": "unused"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert service.stderr is not None
    for line in service.stderr:
        if "pynchy is ready" in line:
            break
    home.ready.append(time.perf_counter() - began)
    home.peak.append(peak_megabytes(service.pid))
    await asyncio.gather(*(_ask(home, folder) for folder, _ in zip(cycle(home.folders), range(ANSWERS), strict=False)))
    home.peak_later.append(peak_megabytes(service.pid))
    service.send_signal(signal.SIGTERM)
    service.communicate(timeout=30)


async def _ask(home: _Home, folder: str) -> None:
    peer = await connect(control_socket(home.path))
    assert peer is not None
    await peer.send(op="ask", group=folder, text="And now?")
    while event := await peer.receive():
        if event["event"] == "settled":
            assert event["error"] is None, event
            break
    else:
        raise AssertionError("the service has ended")
    await peer.close()


# --- in this process ----------------------------------------------------------------------------------------


@asynccontextmanager
async def _service(home: _Home, idle_timeout: float = 600) -> AsyncIterator[Service]:
    settings = Settings(home=home.path, idle_timeout=idle_timeout)  # pyright: ignore[reportCallIssue]
    unused = Upstream("http://127.0.0.1:9")
    async with Service.start(settings, unused, PluginRegistry(), StubRuntime()) as service:
        yield service


async def _seconds_to_prompt(service: Service, folder: str) -> float:
    jid = terminal_jid(folder)
    heard: asyncio.Queue[str] = asyncio.Queue()
    with service.terminal.attached(jid, heard.put):
        began = time.monotonic_ns()
        await service.say(jid, "And now?")
        prompted = int(await heard.get())
        await service.flush_outbox(jid)
    return (prompted - began) / 1e9


async def _nobody_runs(*services: Service) -> None:
    while any(service.groups_running for service in services):
        await asyncio.sleep(0.005)
