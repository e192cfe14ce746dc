"""One run of one agent: spawn its container, give it messages, take its answers, time out, stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from pynchy.agent_wire import AgentWire, HostServices
from pynchy.fault_points import reached
from pynchy.home import pynchy_home
from pynchy.plugin import ContainerRuntime, RuntimeUnavailable
from pynchy.types import ContainerInput, ContainerOutput, RunSpec
from pynchy.untrusted import printable_line
from pynchy.wire import MAX_LINE, PROTOCOL_VERSION, Frame, StreamEnded, WireError, json_frame

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
    # Podman's: without them what is checked and what is run could be two set-ups.
    "CONTAINER_HOST",
    "CONTAINER_CONNECTION",
    "CONTAINER_SSHKEY",
    "CONTAINERS_CONF",
    "CONTAINERS_STORAGE_CONF",
    "STORAGE_DRIVER",
)
_STDERR_KEPT = 4000  # bytes, the last ones
_MAX_REASON = 600  # characters
_MAX_DOING = 120  # characters
_MOST_IMAGES = 200  # are named in the line of a frame; it is fewer that the model sees


class AgentFailed(Exception):
    """The agent gave no answer.

    `reported`: its own runner said why, so that the container did start. `hopeless`: it would fail in the same way
    again.
    """

    def __init__(self, reason: str, *, reported: bool = False, hopeless: bool = False) -> None:
        super().__init__(reason)
        self.reported = reported
        self.hopeless = hopeless


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take, in seconds."""

    start: float = 120
    answer: float = 1800
    close: float = 3


class AgentRun:
    """A running agent: `start` it, `send` it more, take each `result`, then `stop` it.

    After a failure it can only be stopped, and `stop` leaves no process behind.
    """

    def __init__(self, runtime: ContainerRuntime, spec: RunSpec, services: HostServices, limits: Limits) -> None:
        self._runtime = runtime
        self._spec = spec
        self._services = services
        self._limits = limits
        self._process: asyncio.subprocess.Process | None = None
        self._attempted = False
        self._wire: AgentWire | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._ready = asyncio.Event()
        self._over = asyncio.Event()
        self._failure: str | None = None
        self._reported = False
        self._batches: deque[tuple[int, ...]] = deque()
        self._results: asyncio.Queue[ContainerOutput | None] = asyncio.Queue()
        self._stderr = bytearray()
        #: The messages for which a tool may have run.
        self.acted: set[int] = set()
        #: What it says it is doing, "" between two answers: one printable line, and no more than its word.
        self.doing = ""

    @property
    def name(self) -> str:
        """The container's name."""
        return self._spec.container_name

    @property
    def alive(self) -> bool:
        """Whether it can take another message."""
        return self._process is not None and not self._over.is_set()

    @property
    def unanswered(self) -> tuple[int, ...]:
        """The messages that it has and has not answered, in order."""
        return tuple(row_id for batch in self._batches for row_id in batch)

    # --- what the host does with it -------------------------------------------------------------------------

    async def start(self, given: ContainerInput, ids: tuple[int, ...]) -> None:
        """Start the container with its first messages; AgentFailed where that cannot be done."""
        self._attempted = True
        self._batches.append(ids)
        try:
            self._process = await spawn(self._runtime, self._spec)
        except (OSError, RuntimeUnavailable) as error:
            self._end(f"its container could not be started: {error}")
            raise AgentFailed(f"its container could not be started: {error}") from None
        reached("spawned")
        assert self._process.stdin is not None
        self._wire = AgentWire(self.name, self._services, self, self._process.stdin)
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._wire.out.run()),
            loop.create_task(self._keep_stderr()),
            loop.create_task(self._read(self._wire)),
        ]
        self._wire.out.send_nowait(
            json_frame("input", given.to_dict(), id="input", ids=list(ids), version=PROTOCOL_VERSION)
        )

    def send(self, prompt: str, ids: tuple[int, ...], images: Sequence[str] = ()) -> None:
        """Give it more messages. It holds them while it is answering, then answers all it holds at once.

        A prompt that is `/compact`, with or without instructions behind it, is answered by itself. `images` are
        paths below the attachments' folder.
        """
        assert self._wire is not None
        self._batches.append(ids)
        head = {"id": f"message-{ids[0]}", "ids": list(ids), "images": list(images[:_MOST_IMAGES])}
        self._wire.out.send_nowait(Frame("message", head, prompt.encode()))

    async def result(self) -> ContainerOutput:
        """Its next answer; AgentFailed where it ends, or takes too long, without one."""
        try:
            async with asyncio.timeout(self._limits.answer):
                await self._first_sign_of_life()
                output = await self._results.get()
        except TimeoutError:
            await self.stop()
            raise AgentFailed(f"it gave no answer within {self._limits.answer:g} s") from None
        if output is None:
            self._results.put_nowait(None)  # every further call fails as well
            raise AgentFailed((self._failure or "it ended")[:_MAX_REASON], reported=self._reported)
        return output

    async def interrupt(self) -> None:
        """Ask the agent to stop what it is doing; its answer then says `interrupted`."""
        if self._wire:
            self._wire.out.send_nowait(Frame("interrupt"))

    async def stop(self) -> None:
        """End the agent and everything in its container. Returns when nothing of it is left; safe to repeat.

        It is asked to interrupt its work and to close, and has a few seconds for that. Then the runtime's
        client is killed (the engine's own `kill` hangs on a client whose stdout nobody reads), then the
        container, and then the runtime looks whether it is gone.
        """
        if not self._attempted:
            return
        if self._wire and not self._over.is_set():
            if self._batches:
                await self.interrupt()
            self._wire.out.send_nowait(Frame("close"))
            self._wire.out.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.close):
                    await self._over.wait()
        await self._kill()

    async def _kill(self) -> None:
        process = self._process
        ended_by_itself = process is not None and process.returncode == 0 and self._over.is_set()
        if process and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            # Not `wait()`: it waits for the pipes too, and something else may still hold those.
            while process.returncode is None:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        end_container = getattr(self._runtime, "stop", None)
        if end_container and not ended_by_itself:
            try:
                await asyncio.to_thread(end_container, self.name)
            except RuntimeUnavailable as error:
                log.warning("could not make sure that a container is gone", container=self.name, error=str(error))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._wire:
            await self._wire.end()
        if process:
            # There is no public way to let go of a pipe that somebody else still holds.
            process._transport.close()  # pyright: ignore[reportAttributeAccessIssue]
        self._end("it was stopped")

    async def _first_sign_of_life(self) -> None:
        waits = {asyncio.ensure_future(self._ready.wait()), asyncio.ensure_future(self._over.wait())}
        try:
            done, _ = await asyncio.wait(waits, timeout=self._limits.start, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not done:
            await self.stop()
            raise AgentFailed(f"it was not ready within {self._limits.start:g} s")

    # --- what the agent says (AgentListener) ----------------------------------------------------------------

    def on_ready(self) -> None:
        """It is up."""
        self._ready.set()

    def on_acting(self, ids: tuple[int, ...]) -> None:
        """A tool is about to run for these messages; WireError where they are not its own."""
        if not ids or not set(ids) <= set(self.unanswered):
            raise WireError("messages that it was not given")
        self.acted.update(ids)

    def on_doing(self, tool: str, detail: str) -> None:
        """It uses this tool, it says, for this; or none any more."""
        self.doing = printable_line(f"{tool}: {detail}" if detail else tool, _MAX_DOING)

    def on_result(self, output: ContainerOutput) -> None:
        """Take an answer, if it is one to the oldest messages that it has, whole batches of them."""
        left = output.ids
        answered = 0
        for batch in self._batches:
            if not left or left[: len(batch)] != batch:
                break
            left = left[len(batch) :]
            answered += 1
        if left:
            self.on_broken("a result for messages that were not asked")
            return
        for _ in range(answered):
            self._batches.popleft()
        self._ready.set()  # it may have been interrupted before it was
        self._results.put_nowait(output)

    def on_trouble(self, reason: str) -> None:
        """It is about to end, for this reason."""
        self._failure = self._failure or reason
        self._reported = True

    def on_broken(self, what: str) -> None:
        """The agent does not keep to the protocol: there is no way back into step with it."""
        self._failure = self._failure or f"it broke the protocol: {what}"
        log.warning("an agent broke the protocol", container=self.name, error=what[:_MAX_REASON])
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    # --- the process ----------------------------------------------------------------------------------------

    async def _read(self, wire: AgentWire) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        stdout = self._process.stdout
        try:
            await wire.read(stdout)
        except StreamEnded:
            pass  # how its process ended says more
        except Exception as error:  # whatever it sent, its run must end
            self.on_broken(str(error) or type(error).__name__)
            # Unread output can hold up the runtime: keep the pipe empty until it closes.
            while await stdout.read(1 << 20):
                pass
        code = await self._process.wait()
        await asyncio.sleep(0)  # lets the last of stderr arrive
        self._end(await self._exit_reason(code))

    async def _exit_reason(self, code: int) -> str:
        if self._failure:
            return self._failure
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
        self.doing = ""
        if self._wire:
            self._wire.out.close()
        if not self._over.is_set():
            self._over.set()
            self._results.put_nowait(None)

    async def _keep_stderr(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        while data := await self._process.stderr.read(8192):
            self._stderr += data
            del self._stderr[:-_STDERR_KEPT]
            log.debug("agent stderr", container=self.name, text=data.decode("utf-8", "replace")[:2000])


async def spawn(runtime: ContainerRuntime, spec: RunSpec) -> asyncio.subprocess.Process:
    """Start a container, at the end of pipes; OSError and RuntimeUnavailable where that cannot be done."""
    home = pynchy_home()
    return await asyncio.create_subprocess_exec(
        runtime.cli,
        *_run_args(runtime, spec),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=2 * MAX_LINE,
        env={name: os.environ[name] for name in CLIENT_VARIABLES if name in os.environ},
        cwd=home if home.is_dir() else "/",  # Podman leaves a file there when an agent runs out of memory
        start_new_session=True,  # a Ctrl-C at the terminal is for us alone
    )


def _run_args(runtime: ContainerRuntime, spec: RunSpec) -> list[str]:
    """The arguments that follow the runtime's `cli`. One of the plan's five members alone gets what those can carry."""
    with_limits: Callable[[RunSpec], list[str]] | None = getattr(runtime, "run_args", None)
    if with_limits:
        return with_limits(spec)
    return runtime.build_run_args(list(spec.mounts), spec.container_name, spec.image)
