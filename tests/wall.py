"""Both ends of a wire without a container between: the runner's link, and the host's with what it offers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from agent_runner.host_link import HostLink
from pynchy.agent_wire import AgentWire
from pynchy.wire import MAX_LINE, FrameWriter, read_frames


class Listener:
    """Keeps what the wire says of its agent."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        self.doings: list[tuple[str, str]] = []

    def on_broken(self, what: str) -> None:
        self.broken.append(what)

    def on_doing(self, tool: str, detail: str) -> None:
        self.doings.append((tool, detail))


@asynccontextmanager
async def wall(services: Any, listener: Listener | None = None) -> AsyncIterator[tuple[HostLink, AgentWire]]:
    """A runner's link whose requests `services` answers."""
    inside, outside = socket.socketpair()
    inner_reader, inner_writer = await asyncio.open_connection(sock=inside, limit=2 * MAX_LINE)
    outer_reader, outer_writer = await asyncio.open_connection(sock=outside, limit=2 * MAX_LINE)
    frames = FrameWriter(inner_writer)
    link = HostLink(frames)
    wire = AgentWire("test", services, cast("Any", listener or Listener()), outer_writer)

    async def listen() -> None:
        async for frame in read_frames(inner_reader):
            assert link.deliver(frame), frame

    tasks = [asyncio.ensure_future(one) for one in (frames.run(), wire.out.run(), wire.read(outer_reader), listen())]
    try:
        yield link, wire
    finally:
        await wire.end()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in (inner_writer, outer_writer):
            writer.transport.abort()
        assert not any(
            isinstance(task.exception(), AssertionError) for task in tasks if task.done() and not task.cancelled()
        )


class Nowhere:
    """A pipe that takes everything."""

    def write(self, data: bytes, /) -> None: ...

    async def drain(self) -> None: ...
