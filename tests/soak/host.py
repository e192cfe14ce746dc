"""The host that suffers: a real service whose channel is the pipe to the test, started as `python -m soak.host`.

The test says, line by line on stdin, what is said in the chats and what is to happen at which point of a
message's way; it hears, on stdout, what was taken in and what was sent. A SIGKILL loses none of those lines.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import support

from pynchy import fault_points, model_gateway
from pynchy.app import Service
from pynchy.cli.output import configure_logging
from pynchy.config import load_settings
from pynchy.model_gateway import Upstream
from pynchy.plugin import ContainerRuntime, OciRuntime, PluginRegistry
from pynchy.types import Group, NewMessage

PREFIX = "recording:"


def tell(**what: Any) -> None:
    """A line to the test, at once."""
    os.write(1, json.dumps(what).encode() + b"\n")


class RecordingChannel:
    """What is sent is written down outside; every `drop`-th send fails before it is."""

    name = "recording"
    prefix_assistant_name = False

    def __init__(self, drop: int = 0) -> None:
        self._drop = drop
        self._sends = 0

    async def connect(self) -> None:
        """It always is."""

    async def disconnect(self) -> None:
        """Never before the end."""

    def is_connected(self) -> bool:
        """Always."""
        return True

    def owns_jid(self, jid: str) -> bool:
        """The chats of the test."""
        return jid.startswith(PREFIX)

    async def send_message(self, jid: str, text: str) -> None:
        """Write it down."""
        self._sends += 1
        if self._drop and self._sends % self._drop == 0:
            raise ConnectionResetError("dropped")
        tell(sent=text, jid=jid)


class Trouble:
    """What is to happen at the next message that reaches a point: `victim` is killed there."""

    def __init__(self, runtime: ContainerRuntime) -> None:
        self._runtime = runtime
        self._point = self._victim = ""
        self.prefix = ""
        fault_points.observer = self._reached

    def arm(self, point: str, victim: str) -> None:
        """Kill `victim` when `point` is reached next."""
        self._point, self._victim = point, victim

    def _reached(self, point: str) -> None:
        if point != self._point:
            return
        self._point = ""
        if self._victim == "host":
            os.kill(os.getpid(), signal.SIGKILL)
        tell(killed=self._victim, found=kill(self._victim, self._runtime, self.prefix))


def kill(victim: str, runtime: ContainerRuntime, prefix: str) -> int:
    """Kill the containers, their clients, or the CLIs inside, of this process; returns how many there were."""
    engine = runtime.cli if isinstance(runtime, OciRuntime) else ""
    if victim == "container" and engine:
        names = runtime.list_running_containers(prefix)
        for name in names:
            subprocess.run([engine, "kill", name], capture_output=True)
        return len(names)
    clients = children([os.getpid()])
    if victim == "client":
        victims = clients
    elif engine:
        names = runtime.list_running_containers(prefix)
        columns = ["hpid", "comm"] if engine == "podman" else ["-eo", "pid,comm"]
        tops = [subprocess.run([engine, "top", name, *columns], capture_output=True, text=True) for name in names]
        rows = [line.split() for top in tops for line in top.stdout.splitlines()[1:]]
        victims = [int(pid) for pid, name in rows if name == "claude"]
    else:
        wanted = "claude" if victim == "cli" else "python"
        victims = [pid for pid in descendants(clients) if _name(pid).startswith(wanted)]
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return len(victims)


def children(parents: Iterable[int]) -> list[int]:
    """The processes that these have started and that still run."""
    wanted = set(parents)
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) in wanted and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def descendants(parents: Iterable[int]) -> list[int]:
    """These, their children, and theirs."""
    found = list(parents)
    generation = found
    while generation := children(generation):
        found += generation
    return found


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


async def main(config: dict[str, Any]) -> None:
    """Serve until stdin ends."""
    configure_logging("error")
    model_gateway._TIMEOUT = httpx.Timeout(config["patience"])
    runtime = support.RUNTIMES[config["runtime"]]()
    trouble = Trouble(runtime)
    lines = asyncio.StreamReader(limit=2**26)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    channel = RecordingChannel(config["drop"])
    upstream = Upstream(config["model"], ("x-api-key", support.CREDENTIAL))
    async with Service.start(load_settings(), upstream, PluginRegistry(), runtime, channels=[channel]) as service:
        trouble.prefix = service.container_prefix
        for number in range(config["groups"]):
            group = Group(f"{PREFIX}{number}", f"Group {number}", f"group-{number}", needs_trigger=False)
            await service.register_group(group)
        tell(ready=os.getpid(), prefix=service.container_prefix)
        while line := await lines.readline():
            command = json.loads(line)
            if "arm" in command:
                trouble.arm(command["arm"], command["victim"])
            elif "kill" in command:
                tell(killed=command["kill"], found=kill(command["kill"], runtime, trouble.prefix))
            else:
                await _take_in(service, **command)


async def _take_in(service: Service, id: str, jid: str, text: str) -> None:
    try:
        await service.on_message(NewMessage(id, jid, "ada", "Ada", text, datetime.now(UTC)))
    except sqlite3.Error as error:
        tell(refused=id, why=str(error))
    else:
        tell(acknowledged=id)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
