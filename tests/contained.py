"""A real runner and SDK in a sandbox, for a host that is nothing but this file."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from support import bubblewrap_runtime

from pynchy.container_runner import AgentRun, Limits
from pynchy.home import make_private
from pynchy.plugin import ContainerRuntime
from pynchy.tunnel import Tunnel
from pynchy.types import Attachment, ContainerInput, ContainerOutput, RunSpec, VolumeMount
from pynchy.wire import Frame, FrameWriter
from pynchy.workspace import stage_runner

_OWNER = (60999, 60999) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
#: In the order in which an agent sees them; the last one is its own.
_FOLDERS = ("global", "attachments", "group")


class Host:
    """Keeps everything that the agent says, and lets it have what it asks for."""

    def __init__(self, model_url: str) -> None:
        self._client = httpx.AsyncClient(base_url=model_url, trust_env=False, timeout=30)
        self.transcripts: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        self.calls: list[tuple[str, Any]] = []
        self.files: list[tuple[str, Any, bytes]] = []
        #: What a tool's call is answered with once there is something in here.
        self.answers: asyncio.Queue[str] = asyncio.Queue()

    async def call_tool(self, plugin: str | None, name: str, arguments: Any, file: Attachment | None = None) -> Any:
        if file:
            self.files.append((file.name, arguments, file.data or b""))
            return f"{file.name} is on its way"
        self.calls.append((f"{plugin}.{name}" if plugin else name, arguments))
        return await self.answers.get()

    async def note_plugin_parts(self, servers: Mapping[str, str], hooks: Mapping[str, str]) -> None: ...

    async def note_acting(self, ids: tuple[int, ...]) -> None: ...

    async def append_transcript(self, session_id: str, subpath: str, entries: list[dict[str, Any]]) -> int:
        self.transcripts[session_id, subpath] += entries
        return 0

    async def load_transcript(
        self, session_id: str, subpath: str, after: int
    ) -> tuple[list[dict[str, Any]], int | None]:
        return self.transcripts[session_id, subpath], None

    async def transcript_subpaths(self, session_id: str) -> list[str]:
        return [subpath for session, subpath in self.transcripts if session == session_id and subpath]

    async def forward_model_request(self, frame: Frame, out: FrameWriter) -> None:
        headers = {"content-type": "application/json"}
        async with self._client.stream("POST", frame.fields["target"], content=frame.body, headers=headers) as answer:
            kind = [["content-type", answer.headers["content-type"]]]
            await out.send(Frame("http.response", {"id": frame.id, "status": answer.status_code, "headers": kind}))
            async for chunk in answer.aiter_bytes():
                await out.send(Frame("http.data", {"id": frame.id}, chunk))
        await out.send(Frame("http.end", {"id": frame.id}))

    async def connect(self, host: str, port: int, tunnel: Tunnel) -> None:
        raise AssertionError("nothing here needs the internet")

    async def unsolicited(self, output: ContainerOutput) -> None:
        raise AssertionError(f"nobody asked for {output}")

    async def close(self) -> None:
        await self._client.aclose()


class Agent:
    """An agent's folders below `home`, and its runs, one after the other."""

    def __init__(self, home: Path, host: Host) -> None:
        self.home = make_private(home)
        self.host = host
        self.runtime: ContainerRuntime = bubblewrap_runtime()
        self._runs: list[AgentRun] = []
        for name in _FOLDERS:
            folder = home / name
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755)
        os.chown(home / "group", *_OWNER)

    async def start(self, prompt: str, ids: tuple[int, ...] = (1,), **given: Any) -> AgentRun:
        """A run that has its first prompt; it ends with the test at the latest."""
        mounts = [VolumeMount(str(stage_runner(self.home)), "/opt/pynchy", readonly=True)]
        mounts += [VolumeMount(str(self.home / name), f"/workspace/{name}", name != "group") for name in _FOLDERS]
        spec = RunSpec(tuple(mounts), f"pynchy-test-{os.getpid()}-{len(self._runs)}", "", user=_OWNER)
        run = AgentRun(self.runtime, spec, self.host, Limits(answer=100))
        self._runs.append(run)
        await run.start(ContainerInput(prompt, "main", "terminal:main", **given), ids)
        return run

    async def close(self) -> None:
        for run in self._runs:
            await run.stop()


@asynccontextmanager
async def contained(home: Path, model_url: str) -> AsyncIterator[Agent]:
    """An agent that can be started, on bubblewrap; a skip where that does not run."""
    host = Host(model_url)
    agent = Agent(home, host)
    try:
        yield agent
    finally:
        await agent.close()
        await host.close()
