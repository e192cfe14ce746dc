"""The host's end of one agent's wire: what comes out of the container, and what is done about it.

Everything from inside is untrusted: a frame that is none is a WireError, and what a frame asks for is done for
the group whose pipe it came through, whatever it says.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import structlog

from pynchy.fault_points import reached
from pynchy.tunnel import MAX_TUNNELS, Tunnel
from pynchy.types import Attachment, ContainerOutput
from pynchy.untrusted import printable_line
from pynchy.wire import (
    MAX_CONCURRENT_CALLS,
    MAX_FILE,
    ByteReader,
    ByteWriter,
    Frame,
    FrameWriter,
    WireError,
    json_frame,
    read_frames,
)

log = structlog.get_logger(__name__)

#: What an agent has sent and the host has not dealt with yet, in bytes; above it nothing more is read.
_MAX_HELD = 64 * 1024 * 1024
_HELD_AT_LEAST = 16 * 1024  # of each frame
_MAX_LOGGED = 200  # lines of one agent
_MAX_ENTRIES = 10_000  # of a transcript, in one frame
_MAX_REASON = 600  # characters
_MAX_DOING = 400  # characters, of a tool's name and of what it is used for
_MAX_FILE_NAME = 200  # characters


class HostServices(Protocol):
    """What an agent may reach of the host. Every method acts for one group, the one the pipe belongs to."""

    async def call_tool(self, plugin: str | None, name: str, arguments: Any, file: Attachment | None = None) -> Any:
        """Do what a tool of a plugin's asks, or one of our own; PermissionError and ValueError are for the agent.

        A `file` has a printable name without a folder, and is as untrusted as the arguments, which are without the
        one that names it.
        """
        ...

    async def note_plugin_parts(self, servers: Mapping[str, str], hooks: Mapping[str, str]) -> None:
        """Take the troubles of MCP servers by name and of hooks by plugin; an empty one says that it works."""
        ...

    async def note_acting(self, ids: tuple[int, ...]) -> None:
        """Record that a tool is about to run for these messages."""
        ...

    async def append_transcript(self, session_id: str, subpath: str, entries: list[dict[str, Any]]) -> int:
        """Store transcript entries; returns up to where the transcript is stored now."""
        ...

    async def load_transcript(
        self, session_id: str, subpath: str, after: int
    ) -> tuple[list[dict[str, Any]], int | None]:
        """A page of transcript entries and where the next starts."""
        ...

    async def transcript_subpaths(self, session_id: str) -> list[str]:
        """The names of a session's sub-agent transcripts."""
        ...

    async def forward_model_request(self, frame: Frame, out: FrameWriter) -> None:
        """Answer a model request on the wire."""
        ...

    async def connect(self, host: str, port: int, tunnel: Tunnel) -> None:
        """Open a connection and pass its bytes, or say into the tunnel why not; returns at its end."""
        ...

    async def unsolicited(self, output: ContainerOutput) -> None:
        """Take an answer to no message: the end of something the agent started by itself."""
        ...


class AgentListener(Protocol):
    """Who hears what the agent says of its work."""

    def on_ready(self) -> None:
        """It is up."""
        ...

    def on_acting(self, ids: tuple[int, ...]) -> None:
        """A tool is about to run for these messages; WireError where they are not its own."""
        ...

    def on_doing(self, tool: str, detail: str) -> None:
        """It uses this tool, it says, for this; two empty texts: it has just answered. May come very often."""
        ...

    def on_result(self, output: ContainerOutput) -> None:
        """It has answered these messages, it says."""
        ...

    def on_broken(self, what: str) -> None:
        """It does not keep to the protocol."""
        ...

    def on_trouble(self, reason: str) -> None:
        """It is about to end, for this reason."""
        ...


class AgentWire:
    """Frames to and from one agent. `read` and `run` are tasks for the life of its pipes."""

    def __init__(self, container: str, services: HostServices, listener: AgentListener, writer: ByteWriter) -> None:
        self._container = container
        self._services = services
        self._listener = listener
        self.out = FrameWriter(writer)
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls: dict[Any, asyncio.Task[None]] = {}
        self._tunnels: dict[Any, Tunnel] = {}
        self._in_order: asyncio.Task[None] | None = None
        self._transcript_end: int | None = None
        self._loading = asyncio.Lock()
        self._logged = 0
        self._held = 0
        self._room = asyncio.Event()

    async def read(self, reader: ByteReader) -> None:
        """Act on every frame until the pipe ends; then wait until what was said before is stored."""
        async for frame in read_frames(reader):
            while self._held > _MAX_HELD:
                # What is waited for is the disk or the network, never this pipe's other direction.
                self._room.clear()
                await self._room.wait()
            self._receive(frame)
            await asyncio.sleep(0)  # whatever is in the buffer, other agents have their turn
        if self._in_order:
            await asyncio.wait([self._in_order])

    async def end(self) -> None:
        """Stop whatever is still being done for the agent."""
        tasks = [*self._tasks, *self._calls.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- frames from inside ---------------------------------------------------------------------------------

    def _receive(self, frame: Frame) -> None:
        match frame.type:
            case "ready":
                self._receive_ready(frame)
            case "trouble":
                plugin, text = str(frame.fields.get("plugin")), str(frame.fields.get("text"))
                self._note_parts({}, {plugin: text or "?"})
            case "accepted":
                reached("accepted")  # the answer is what counts; a run that ends without one leaves it open
            case "doing":
                self._listener.on_doing(*(_text(frame.fields.get(name))[:_MAX_DOING] for name in ("tool", "detail")))
            case "progress":
                self._start_call(frame, self._note_acting)
            case "result":
                self._receive_result(frame)
            case "session.append":
                self._append_transcript(frame)
            case "session.load":
                self._start_call(frame, self._load)
            case "request" | "file" | "session.subkeys":
                self._start_call(frame, self._reply)
            case "http.request":
                self._start_call(frame, self._forward)
            case "http.cancel":
                if task := self._calls.get(("http.request", frame.id)):
                    task.cancel()
            case "net.open":
                self._open_tunnel(frame)
            case "net.data" | "net.room" | "net.end" | "net.close":
                if tunnel := self._tunnels.get(frame.id):  # else it is over, and the agent does not know yet
                    tunnel.receive(frame)
            case "error":
                self._listener.on_trouble(f"it reported: {str(frame.fields.get('reason'))[:_MAX_REASON]}")
            case "log":
                self._log(str(frame.fields.get("text"))[:1000])
            case other:
                raise WireError(f"unknown frame {other[:40]!r}")

    def _log(self, text: str) -> None:
        self._logged += 1
        if self._logged <= _MAX_LOGGED:
            log.info("agent", container=self._container, text=text)

    def _receive_ready(self, frame: Frame) -> None:
        body = frame.json_body()
        servers = {str(one["name"]): _trouble(one) for one in body["mcp_servers"][:200] if one["status"] != "pending"}
        hooks = {str(plugin): str(text) for plugin, text in list(body.get("hooks", {}).items())[:200]}
        self._listener.on_ready()
        self._note_parts(servers, hooks)

    def _note_parts(self, servers: dict[str, str], hooks: dict[str, str]) -> None:
        self._spawn(lambda: self._services.note_plugin_parts(servers, hooks), 0)

    def _receive_result(self, frame: Frame) -> None:
        reached("result")
        body = frame.json_body()
        text, error, session = body["text"], body["error"], body["session_id"]
        if not all(value is None or isinstance(value, str) for value in (text, error, session)):
            raise WireError("a result whose text is no text")
        self._listener.on_doing("", "")
        output = ContainerOutput(_row_ids(body["ids"]), text, session, error)
        previous = self._in_order

        async def after_transcript() -> None:
            """What came before a result is stored before it, and what comes after it is not part of it."""
            if previous:
                await asyncio.wait([previous])
            if output.ids:
                self._listener.on_result(replace(output, transcript_end=self._transcript_end))
            else:
                await self._services.unsolicited(output)

        self._in_order = self._spawn(after_transcript, len(frame.body))

    def _append_transcript(self, frame: Frame) -> None:
        session, subpath = _session_key(frame.fields)
        entries = frame.json_body()
        if not isinstance(entries, list) or len(entries) > _MAX_ENTRIES:
            raise WireError(f"transcript entries that are no list of at most {_MAX_ENTRIES}")
        if not all(isinstance(entry, dict) for entry in entries):
            raise WireError("transcript entries that are no objects")
        previous = self._in_order

        async def append() -> None:
            if previous:
                await asyncio.wait([previous])
            try:
                self._transcript_end = await self._services.append_transcript(session, subpath, entries)
            except RecursionError:
                self._listener.on_broken("a transcript entry that is nested too deeply to be stored")

        self._in_order = self._spawn(append, len(frame.body))

    # --- calls, each answered in its own time ---------------------------------------------------------------

    def _start_call(self, frame: Frame, action: Callable[[Frame], Awaitable[None]]) -> None:
        key = (frame.type, frame.id)
        if key in self._calls or len(self._calls) >= MAX_CONCURRENT_CALLS:
            raise WireError("more calls at once than an agent may make")
        task = self._spawn(lambda: action(frame), len(frame.body))
        self._calls[key] = task
        task.add_done_callback(lambda _: self._calls.pop(key, None))

    def _open_tunnel(self, frame: Frame) -> None:
        host, port = frame.fields.get("host"), frame.fields.get("port")
        if frame.id is None or frame.id in self._tunnels or type(host) is not str or type(port) is not int:
            raise WireError("a connection without a destination or an id of its own")
        tunnel = Tunnel(frame.id, self.out)
        if len(self._tunnels) >= MAX_TUNNELS:
            tunnel.refuse(503, f"this agent has {MAX_TUNNELS} connections open already")
            return
        self._tunnels[frame.id] = tunnel
        task = self._spawn(lambda: self._services.connect(host, port, tunnel), 0)

        def done(_: asyncio.Task[None]) -> None:
            self._tunnels.pop(frame.id, None)
            tunnel.close()

        task.add_done_callback(done)

    async def _forward(self, frame: Frame) -> None:
        await self._services.forward_model_request(frame, self.out)

    async def _note_acting(self, frame: Frame) -> None:
        """Its reply lets the tool run: by then it is on record that one may have."""
        try:
            ids = _row_ids(frame.json_body()["ids"])
            self._listener.on_acting(ids)
            await self._services.note_acting(ids)
            answer, ok = "", True
        except (WireError, KeyError, TypeError) as error:
            answer, ok = f"not a turn of this agent: {error}", False
        except Exception as error:
            log.warning("could not record that an agent is about to act", container=self._container, error=str(error))
            answer, ok = "the host cannot record that a tool is about to run, so it must not", False
        await self.out.send(json_frame("reply", answer, id=frame.id, ok=ok))

    async def _load(self, frame: Frame) -> None:
        async with self._loading:  # a page is long, and the next is read only once this one is on its way
            await self._reply(frame)

    async def _reply(self, frame: Frame) -> None:
        try:
            reply = json_frame("reply", await self._call(frame), id=frame.id, ok=True)
        except (PermissionError, ValueError, TypeError, KeyError, WireError, RecursionError) as error:
            reply = json_frame("reply", str(error), id=frame.id, ok=False)
        except Exception:
            log.exception("a call from an agent failed", container=self._container)
            reply = json_frame("reply", "the host could not do it", id=frame.id, ok=False)
        await self.out.send(reply)

    async def _call(self, frame: Frame) -> Any:
        if frame.type == "file":
            return await self._call_with_file(frame)
        body = frame.json_body()
        if frame.type == "request":
            return await self._services.call_tool(*_tool(frame), body)
        session, subpath = _session_key(body)
        if frame.type == "session.subkeys":
            return await self._services.transcript_subpaths(session)
        entries, following = await self._services.load_transcript(session, subpath, _whole_number(body["after"]))
        return {"entries": entries, "next": following}

    async def _call_with_file(self, frame: Frame) -> Any:
        if len(frame.body) > MAX_FILE:
            raise ValueError(f"the file is larger than the {MAX_FILE // 1_000_000} MB that can be sent")
        name = printable_line(_text(frame.fields.get("file")).rpartition("/")[2], _MAX_FILE_NAME)
        name = name if name.strip(".") else "file"
        media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        arguments = json.loads(_text(frame.fields.get("arguments")))
        return await self._services.call_tool(*_tool(frame), arguments, Attachment(name, media_type, frame.body))

    def _spawn(self, action: Callable[[], Awaitable[None]], size: int) -> asyncio.Task[None]:
        size += _HELD_AT_LEAST
        self._held += size
        task = asyncio.get_running_loop().create_task(_run(action, self._container))
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._held -= size
            self._room.set()

        task.add_done_callback(done)
        return task


async def _run(action: Callable[[], Awaitable[None]], container: str) -> None:
    try:
        await action()
    except ConnectionError:
        pass  # the agent is gone; its end is reported by the reader
    except Exception:
        log.exception("a call from an agent failed", container=container)


def _tool(frame: Frame) -> tuple[str | None, str]:
    """The plugin whose tool is called, None for our own, and the tool's name."""
    plugin = frame.fields.get("plugin")
    return None if plugin is None else str(plugin), str(frame.fields.get("name"))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _trouble(server: Any) -> str:
    """Why an MCP server does not work, in the words of the agent's side."""
    if server["status"] == "connected":
        return ""
    return str(server.get("error") or server["status"])


def _row_ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(one) is int for one in value):
        raise WireError("ids that are none")
    return tuple(value)


def _whole_number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("not a row id")
    return value


def _session_key(fields: Any) -> tuple[str, str]:
    session, subpath = fields["session"], fields.get("subpath") or ""
    texts = isinstance(session, str) and isinstance(subpath, str) and (session + subpath).isascii()
    if not texts or len(session) > 100 or len(subpath) > 300:
        raise WireError("a session key that is none")
    return session, subpath
