"""Starting agents, one and ten at once, and their way to the internet, beside what it costs at least."""

from __future__ import annotations

import asyncio
import json
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from unittest.mock import patch

from aiohappyeyeballs import AddrInfoType

from benchmarks.table import Row
from pynchy.agent_setup import agent_owner
from pynchy.app import Service
from pynchy.channels.terminal import terminal_jid
from pynchy.config import Settings
from pynchy.container_runner import spawn
from pynchy.egress import Egress
from pynchy.model_gateway import Upstream
from pynchy.plugin import ContainerRuntime, PluginRegistry
from pynchy.runtime import agent_image
from pynchy.testing import ScriptedModel
from pynchy.types import ContainerInput, Group, RunSpec, VolumeMount
from pynchy.wire import PROTOCOL_VERSION, encode, json_frame
from pynchy.workspace import RUNNER_PATH, group_mounts, stage_runner

RUNS = 10
AT_ONCE = 10
_MEGABYTES = 100
#: Where the bench's server stands for the agent.
_ADDRESS = "93.184.216.34"

_CLIENT = """
import json, os, socket, sys, time
def connect():
    if len(sys.argv) > 1:
        return socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    proxy = os.environ["http_proxy"].rpartition(":")[2]
    connection = socket.create_connection(("127.0.0.1", int(proxy)))
    connection.sendall(b"CONNECT example.com:443 HTTP/1.1\\r\\nHost: example.com\\r\\n\\r\\n")
    while not connection.recv(4096).endswith(b"\\r\\n\\r\\n"):
        pass
    return connection
connection = connect()
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
trips = []
for _ in range(300):
    began = time.perf_counter()
    connection.sendall(b"x")
    connection.recv(1)
    trips.append(time.perf_counter() - began)
began, left = time.perf_counter(), MEGABYTES * 10**6
connection.sendall(b"!")
while left > 0:
    left -= len(connection.recv(1 << 20))
seconds = time.perf_counter() - began
openings = []
for _ in range(20):
    began = time.perf_counter()
    one = connect()
    one.sendall(b"x")
    one.recv(1)
    openings.append(time.perf_counter() - began)
    one.close()
print(json.dumps([sorted(trips)[150], seconds, sorted(openings)[10]]))
""".replace("MEGABYTES", str(_MEGABYTES))


async def measure(runtime: ContainerRuntime) -> list[Row]:
    """Rows for a runtime; what is compared takes turns."""
    bare, frames = [], []
    with tempfile.TemporaryDirectory(prefix="pynchy-bench-") as directory:
        home = Path(directory)
        home.chmod(0o755)
        nothing = home / "nothing"
        nothing.mkdir(mode=0o755)
        (nothing / "__main__.py").write_text("print('up', flush=True)\n")
        runner = stage_runner(home / "staged")
        (home / "staged").chmod(0o755)
        for _ in range(RUNS):
            bare.append(await _first_line(runtime, home, nothing, b""))
            frames.append(await _first_line(runtime, home, runner, _input()))
        began = time.perf_counter()
        await asyncio.gather(*(_first_line(runtime, home, nothing, b"") for _ in range(AT_ONCE)))
        ten_bare = time.perf_counter() - began
    name, floor = runtime.name, "container with python alone"
    rows = [Row(f"container start -> the agent's first frame, {name}", median(frames), median(bare), floor)]
    rows.append(Row(f"ten chats at once -> all answered, {name}", await _ten(runtime), ten_bare, f"ten times {floor}"))
    return rows + await _way_out(runtime)


def _input() -> bytes:
    frame = json_frame(
        "input", ContainerInput("hello", "bench", "x").to_dict(), id="input", ids=[1], version=PROTOCOL_VERSION
    )
    return b"".join(encode(frame))


async def _first_line(runtime: ContainerRuntime, home: Path, program: Path, given: bytes) -> float:
    """Seconds from the start of a container until its program has said a line."""
    settings = Settings(home=home)  # pyright: ignore[reportCallIssue]
    owner = agent_owner(settings)
    with tempfile.TemporaryDirectory(dir=home) as folder:
        group = Group("bench:1", "bench", "bench")
        mounts = [one for one in group_mounts(Path(folder), group, program, owner) if one.container_path != RUNNER_PATH]
        mounts.append(VolumeMount(str(program), RUNNER_PATH, readonly=True))
        spec = RunSpec(tuple(mounts), f"pynchy-bench-{uuid.uuid4().hex[:8]}", agent_image(), user=owner)
        began = time.perf_counter()
        process = await spawn(runtime, spec)
        assert process.stdin
        assert process.stdout
        process.stdin.write(given)
        line = await process.stdout.readline()
        seconds = time.perf_counter() - began
        assert line, "the container said nothing"
        process.stdin.close()
        reading = asyncio.ensure_future(process.stdout.read())
        try:
            async with asyncio.timeout(5):
                await process.wait()
        except TimeoutError:
            process.kill()
        await reading
        await asyncio.to_thread(runtime.stop, spec.container_name)  # type: ignore[attr-defined]
    return seconds


async def _ten(runtime: ContainerRuntime) -> float:
    """Seconds until ten chats, whose agents all have to start, have their answers."""
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(home=Path(home), MAX_CONCURRENT_CONTAINERS=AT_ONCE)  # pyright: ignore[reportCallIssue]
        async with (
            ScriptedModel() as model,
            Service.start(settings, Upstream(model.base_url), PluginRegistry(), runtime) as service,
        ):
            groups = [Group(terminal_jid(f"g{number}"), f"g{number}", f"g{number}") for number in range(AT_ONCE)]
            for group in groups:
                await service.register_group(group)
            began = time.perf_counter()
            rows = [await service.say(group.jid, "hello") for group in groups]
            errors = await asyncio.gather(*map(service.settlement, rows))
            assert errors == [None] * AT_ONCE, errors
            return time.perf_counter() - began


# --- the way out --------------------------------------------------------------------------------------------


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Repeat bytes; after a `!`, send the hundred megabytes."""
    while data := await reader.read(1):
        if data == b"!":
            for _ in range(_MEGABYTES * 10):
                writer.write(b"\0" * 100_000)
                await writer.drain()
        else:
            writer.write(data)
    writer.close()


async def _way_out(runtime: ContainerRuntime) -> list[Row]:
    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    direct = json.loads(
        (
            await asyncio.to_thread(subprocess.run, [sys.executable, "-c", _CLIENT, str(port)], capture_output=True)
        ).stdout
    )

    async def resolve(host: str, port: int) -> Sequence[AddrInfoType]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (_ADDRESS, port))]

    async def dial(addresses: Sequence[AddrInfoType]) -> socket.socket:
        connection = socket.socket()
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        return connection

    with patch("pynchy.app.Egress", partial(Egress, resolve=resolve, dial=dial)):
        proxied = json.loads(await _by_agent(runtime, f"python3 -c {shlex.quote(_CLIENT)}"))
    server.close()
    what = ("a byte there and back", f"{_MEGABYTES} MB down", "a connection and its first byte")
    return [
        Row(f"{one} by the proxy, {runtime.name}", value, floor, "directly, from the host")
        for one, value, floor in zip(what, proxied, direct, strict=True)
    ]


async def _by_agent(runtime: ContainerRuntime, command: str) -> str:
    """What a command of the agent's prints."""
    texts: asyncio.Queue[str] = asyncio.Queue()
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(home=Path(home))  # pyright: ignore[reportCallIssue]
        async with (
            ScriptedModel() as model,
            Service.start(settings, Upstream(model.base_url), PluginRegistry(), runtime) as service,
        ):
            jid = await service.group_jid("main")
            with service.terminal.attached(jid, texts.put):
                await service.say(jid, f"/tool Bash {json.dumps({'command': command})}")
                return await texts.get()
