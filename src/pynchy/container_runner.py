"""One run of one agent: spawn its container, speak the wire, time out, stop.

Everything from inside is untrusted: a frame that is none ends the run, and what a frame asks for is done for
the group whose pipe it came through, whatever it says.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from pynchy.plugin import ContainerRuntime, RuntimeUnavailable
from pynchy.types import ContainerInput, ContainerOutput, RunSpec
from pynchy.wire import MAX_LINE, PROTOCOL_VERSION, Frame, FrameWriter, WireError, json_frame, read_frames

log = structlog.get_logger(__name__)

#: What the runtime's own command line may see of our environment. It must never see a credential: inside a
#: sandbox its first process's environment can be read.
CLIENT_VARIABLES = (
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "DBUS_SESSION_BUS_ADDRESS",
    "DOCKER_HOST",
    "DOCKER_CONTEXT",
    "DOCKER_CONFIG",
    "DOCKER_CERT_PATH",
    "DOCKER_TLS_VERIFY",
    "CONTAINER_HOST",
)
_MAX_CONCURRENT_CALLS = 32
_STDERR_KEPT = 4000  # bytes, the last ones
_MAX_REASON = 600


class AgentFailed(Exception):
    """The agent gave no answer. `tools_used`: it may have acted already, so repeating could act twice."""

    def __init__(self, reason: str, tools_used: bool = False) -> None:
        super().__init__(reason)
        self.tools_used = tools_used


class HostServices(Protocol):
    """What an agent may reach of the host. Every method acts for one group, the one the pipe belongs to."""

    async def call_tool(self, name: str, arguments: Any) -> Any:
        """Do what a host tool asks; raise PermissionError or ValueError with the words for the agent."""
        ...

    async def append_transcript(self, session_id: str, subpath: str, entries: list[dict[str, Any]]) -> None:
        """Store transcript entries."""
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

    async def unsolicited(self, output: ContainerOutput) -> None:
        """Take an answer to no message: the end of something the agent started by itself."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take, in seconds."""

    start: float = 120
    answer: float = 1800
    close: float = 5


class AgentRun:
    """A running agent. `start` it, `answer` messages one batch at a time, `close` or `kill` it.

    After a failure it cannot be used again, and `kill` has left no process behind.
    """

    def __init__(self, runtime: ContainerRuntime, spec: RunSpec, services: HostServices, limits: Limits) -> None:
        self._runtime = runtime
        self._spec = spec
        self._services = services
        self._limits = limits
        self._process: asyncio.subprocess.Process | None = None
        self._attempted = False
        self._out: FrameWriter | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._calls: dict[Any, asyncio.Task[Any]] = {}
        self._ready = asyncio.Event()
        self._over = asyncio.Event()
        self._failure: str | None = None
        self._answer: asyncio.Future[ContainerOutput] | None = None
        self._awaited: tuple[int, ...] = ()
        self._stderr = bytearray()
        self._appended: asyncio.Task[None] | None = None
        #: Whether a tool has run for the messages being answered; what the agent says of its servers.
        self.tools_used = False
        self.mcp_servers: list[dict[str, str]] = []

    @property
    def name(self) -> str:
        """The container's name."""
        return self._spec.container_name

    @property
    def alive(self) -> bool:
        """Whether it can take another message."""
        return self._process is not None and not self._over.is_set()

    # --- what the host does with it -------------------------------------------------------------------------

    async def start(self, given: ContainerInput, ids: tuple[int, ...]) -> ContainerOutput:
        """Start the container with its first messages and return the answer; AgentFailed where there is none."""
        self._attempted = True
        try:
            self._process = await asyncio.create_subprocess_exec(
                self._runtime.cli,
                *_run_args(self._runtime, self._spec),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=2 * MAX_LINE,
                env={name: os.environ[name] for name in CLIENT_VARIABLES if name in os.environ},
                start_new_session=True,  # a Ctrl-C at the terminal is for us alone
            )
        except (OSError, RuntimeUnavailable) as error:
            self._over.set()
            raise AgentFailed(f"its container could not be started: {error}") from None
        assert self._process.stdin is not None
        self._out = FrameWriter(self._process.stdin)
        self._spawn(self._out.run())
        self._spawn(self._keep_stderr())
        self._spawn(self._read())
        first = json_frame("input", given.to_dict(), id="input", ids=list(ids), version=PROTOCOL_VERSION)
        return await self._exchange(first, ids, first=True)

    async def answer(self, prompt: str, ids: tuple[int, ...]) -> ContainerOutput:
        """Send further messages and return the answer; AgentFailed where there is none."""
        frame = Frame("message", {"id": f"message-{ids[0]}", "ids": list(ids)}, prompt.encode())
        return await self._exchange(frame, ids, first=False)

    async def interrupt(self) -> None:
        """Ask the agent to stop what it is doing; its answer then says `interrupted`."""
        if self._out:
            self._out.send_nowait(Frame("interrupt"))

    async def close(self) -> None:
        """Let the agent end by itself, within a few seconds; then make sure that it has."""
        if self._out and self.alive:
            self._out.send_nowait(Frame("close"))
            self._out.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.close):
                    await self._over.wait()
        await self.kill()

    async def kill(self) -> None:
        """End the container and everything in it. Returns when nothing of it is left; safe to repeat."""
        if not self._attempted:
            return
        process = self._process
        ended_by_itself = process is not None and process.returncode == 0 and self._over.is_set()
        if process and process.returncode is None:
            # The client first: a client whose stdout nobody reads makes the engine's own `kill` hang.
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        stop = getattr(self._runtime, "stop", None)
        if stop and not ended_by_itself:
            try:
                await asyncio.to_thread(stop, self.name)
            except RuntimeUnavailable as error:
                log.warning("could not make sure that a container is gone", container=self.name, error=str(error))
        for task in [*self._tasks, *self._calls.values()]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._calls.values(), return_exceptions=True)
        self._end("it was stopped")

    # --- one exchange ---------------------------------------------------------------------------------------

    async def _exchange(self, frame: Frame, ids: tuple[int, ...], first: bool) -> ContainerOutput:
        assert self._out is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._awaited = ids
        self.tools_used = False
        self._out.send_nowait(frame)
        if self._over.is_set():
            self._end(self._failure or "it ended")
        try:
            async with asyncio.timeout(self._limits.answer):
                if first:
                    await self._first_sign_of_life()
                return await self._answer
        except TimeoutError:
            used = self.tools_used
            await self.kill()
            raise AgentFailed(f"it gave no answer within {self._limits.answer:.0f} s", used) from None
        finally:
            self._answer = None

    async def _first_sign_of_life(self) -> None:
        assert self._answer is not None
        ready = asyncio.ensure_future(self._ready.wait())
        done, _ = await asyncio.wait(
            {ready, self._answer}, timeout=self._limits.start, return_when=asyncio.FIRST_COMPLETED
        )
        ready.cancel()
        if not done:
            await self.kill()
            raise AgentFailed(f"it was not ready within {self._limits.start:.0f} s")

    # --- the pipes ------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        stdout = self._process.stdout
        reason = None
        try:
            async for frame in read_frames(stdout):
                self._receive(frame)
        except (WireError, KeyError, TypeError, ValueError) as error:
            reason = f"it broke the protocol: {error}"
            log.warning("an agent broke the protocol", container=self.name, error=str(error)[:_MAX_REASON])
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            # Unread output can hold up the runtime: keep the pipe empty until it closes.
            while await stdout.read(1 << 20):
                pass
        code = await self._process.wait()
        if self._appended:
            await asyncio.wait([self._appended], timeout=5)
        await asyncio.sleep(0)  # lets the last of stderr arrive
        self._end(reason or await self._exit_reason(code))

    async def _exit_reason(self, code: int) -> str:
        if not self._ready.is_set() and (check := getattr(self._runtime, "check_image", None)):
            try:
                await asyncio.to_thread(check, self._spec.image)
            except RuntimeUnavailable as error:
                return str(error)
        words = f"its process ended with exit code {code}"
        if not self._ready.is_set():
            words += " before it was ready"
        last = self._stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        return f"{words}: {last[0][:300]}" if last else words

    def _end(self, reason: str) -> None:
        self._failure = self._failure or reason
        self._over.set()
        if self._out:
            self._out.close()
        if self._answer and not self._answer.done():
            self._answer.set_exception(AgentFailed(self._failure[:_MAX_REASON], self.tools_used))
            # Whoever waited may have been cancelled; then nobody will ever look.
            self._answer.exception()

    async def _keep_stderr(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        while data := await self._process.stderr.read(8192):
            self._stderr += data
            del self._stderr[:-_STDERR_KEPT]
            log.debug("agent stderr", container=self.name, text=data.decode("utf-8", "replace")[:2000])

    # --- frames from inside ---------------------------------------------------------------------------------

    def _receive(self, frame: Frame) -> None:
        """Act on a frame without waiting for anything: the pipe must always be read."""
        match frame.type:
            case "ready":
                self.mcp_servers = [
                    {"name": str(one["name"])[:100], "status": str(one["status"])[:100]}
                    for one in frame.json_body()["mcp_servers"][:200]
                ]
                self._ready.set()
            case "accepted":
                pass  # the answer is what counts; a run that ends without one leaves its messages open
            case "progress":
                self.tools_used = True
            case "result":
                self._receive_result(frame)
            case "session.append":
                self._append_transcript(frame)
            case "request" | "session.load" | "session.subkeys":
                self._start_call(frame, self._reply(frame))
            case "http.request":
                assert self._out is not None
                self._start_call(frame, self._services.forward_model_request(frame, self._out))
            case "http.cancel":
                if task := self._calls.get(("http.request", frame.id)):
                    task.cancel()
            case "error":
                self._failure = f"it reported: {str(frame.fields.get('reason'))[:_MAX_REASON]}"
            case "log":
                log.info("agent", container=self.name, text=str(frame.fields.get("text"))[:1000])
            case other:
                raise WireError(f"unknown frame {other[:40]!r}")

    def _receive_result(self, frame: Frame) -> None:
        body = frame.json_body()
        text, error, session = body["text"], body["error"], body["session_id"]
        if not all(value is None or isinstance(value, str) for value in (text, error, session)):
            raise WireError("a result whose text is no text")
        ids = tuple(body["ids"])
        output = ContainerOutput(ids, text, session, error, bool(body["tools_used"]) or self.tools_used)
        if not ids:
            self._spawn(self._after_transcript(self._services.unsolicited(output)))
        elif ids != self._awaited or self._answer is None:
            raise WireError("a result for messages that were not asked")
        else:
            self._spawn(self._after_transcript(self._settle(self._answer, output)))

    async def _after_transcript(self, action: Awaitable[None]) -> None:
        """Transcript entries that came before a result are stored before it."""
        if self._appended:
            await asyncio.wait([self._appended])
        await action

    @staticmethod
    async def _settle(answer: asyncio.Future[ContainerOutput], output: ContainerOutput) -> None:
        if not answer.done():
            answer.set_result(output)

    def _append_transcript(self, frame: Frame) -> None:
        session, subpath = _session_key(frame.fields)
        entries = frame.json_body()
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise WireError("transcript entries that are no objects")
        previous = self._appended

        async def append() -> None:
            if previous:
                await asyncio.wait([previous])
            await self._services.append_transcript(session, subpath, entries)

        self._appended = self._spawn(append())

    def _start_call(self, frame: Frame, action: Awaitable[None]) -> None:
        key = (frame.type, frame.id)
        if key in self._calls or len(self._calls) >= _MAX_CONCURRENT_CALLS:
            if asyncio.iscoroutine(action):
                action.close()
            raise WireError("more calls at once than an agent may make")
        task = asyncio.get_running_loop().create_task(_run(action, self.name))
        self._calls[key] = task
        task.add_done_callback(lambda _: self._calls.pop(key, None))

    async def _reply(self, frame: Frame) -> None:
        assert self._out is not None
        try:
            answer, ok = await self._call(frame), True
        except (PermissionError, ValueError, TypeError, KeyError) as error:
            answer, ok = str(error), False
        await self._out.send(json_frame("reply", answer, id=frame.id, ok=ok))

    async def _call(self, frame: Frame) -> Any:
        body = frame.json_body()
        if frame.type == "request":
            return await self._services.call_tool(str(frame.fields.get("name")), body)
        session, subpath = _session_key(body)
        if frame.type == "session.subkeys":
            return await self._services.transcript_subpaths(session)
        entries, following = await self._services.load_transcript(session, subpath, int(body["after"]))
        return {"entries": entries, "next": following}

    def _spawn(self, action: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(_run(action, self.name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _run(action: Awaitable[None], container: str) -> None:
    try:
        await action
    except ConnectionError:
        pass  # the agent is gone; its end is reported by the reader
    except Exception:
        log.exception("a call from an agent failed", container=container)


def _session_key(fields: dict[str, Any]) -> tuple[str, str]:
    session, subpath = fields["session"], fields.get("subpath") or ""
    if not isinstance(session, str) or not isinstance(subpath, str) or len(session) > 100 or len(subpath) > 300:
        raise WireError("a session key that is none")
    return session, subpath


def _run_args(runtime: ContainerRuntime, spec: RunSpec) -> list[str]:
    """A runtime of the plan's five members alone gets what those can carry."""
    run_args: Callable[[RunSpec], list[str]] | None = getattr(runtime, "run_args", None)
    if run_args:
        return run_args(spec)
    return runtime.build_run_args(list(spec.mounts), spec.container_name, spec.image)
