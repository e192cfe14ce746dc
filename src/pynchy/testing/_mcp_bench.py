"""Where McpConformance has its servers: laid out and started as in the container, and none left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import Distribution, PackageNotFoundError, distribution, entry_points
from pathlib import Path
from typing import Any, Literal

import anyio
from mcp import Client
from mcp.client._transport import TransportStreams
from mcp.shared.message import SessionMessage
from mcp_types import Tool, jsonrpc_message_adapter
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import ValidationError

from pynchy.agent_plugins import server_mounts
from pynchy.home import container_dir
from pynchy.plugin import GROUP, InvalidPlugin, McpPlugin
from pynchy.plugin._validation import check_server_spec, own_packages
from pynchy.plugin_packages import EXTRA
from pynchy.testing._outcome import fail, innermost
from pynchy.workspace import ATTACHMENTS_PATH, DATA_PATH, GLOBAL_PATH, GROUP_PATH, PLUGINS_PATH, stage_runner

#: Seconds: what the agent's SDK allows for a start, and how long an answer and an end may take.
STARTS_WITHIN = 30.0
ANSWERS_WITHIN = 60.0
ENDS_WITHIN = 20.0

_LONGEST_LINE = 64 << 20  # bytes
Mode = Literal["auto", "legacy"]


@dataclass
class Server:
    """One that runs, with a client that has shaken hands with it. `noise` is what it has said that is no protocol."""

    process: asyncio.subprocess.Process
    client: Client
    noise: list[str]
    errors: Path = field(repr=False)

    async def tools(self) -> list[Tool]:
        """What it offers, every page of it."""
        found: list[Tool] = []
        cursor: str | None = None
        while True:
            try:
                page = await self.client.list_tools(cursor=cursor)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"]))
                fail(f"the list of tools is not what the protocol asks for, {where}: {first['msg']}; correct the tool")
            found += page.tools
            if not (cursor := page.next_cursor):
                return found

    def said(self) -> str:
        """The end of what it wrote to stderr, to be added to a sentence."""
        words = " ".join(self.errors.read_text(errors="replace").split())[-600:]
        return f"; it wrote: {words}" if words else ""


class ServerBench:
    """A plugin's server in a folder that has the container's places, run by a Python that has its packages."""

    def __init__(self, plugin: McpPlugin, folder: Path, python: Path) -> None:
        packages = own_packages(plugin)
        try:
            self.spec = check_server_spec(plugin.mcp_server_spec(), packages)
        except InvalidPlugin as error:
            fail(f"mcp_server_spec() of {plugin.name}: {error}; {error.remedy}")
        self._folder = folder.resolve()
        self._python = python
        self.workspace = self._inside("/workspace")
        self.data = self._inside(f"{DATA_PATH}/{plugin.name}")
        self.home = self._folder / "home"
        self._temporary = self.home / "tmp"
        for path in (GROUP_PATH, ATTACHMENTS_PATH, GLOBAL_PATH, "/workspace/extra"):
            self._inside(path).mkdir(parents=True)
        for path in (self.data, self._temporary):
            path.mkdir(parents=True)
        source, *folders = server_mounts(self.spec, packages)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source.host_path, self._inside(source.container_path), ignore=ignored)
        for mount in folders:
            self._inside(mount.container_path).symlink_to(mount.host_path)
        self._folders = [Path(mount.host_path) for mount in folders]
        self._runner = stage_runner(self._folder / "stage")

    @asynccontextmanager
    async def running(self, mode: Mode = "auto", walled: bool = False) -> AsyncGenerator[Server]:
        """Start the server and shake hands; whatever is left of it afterwards is killed."""
        errors, noise = self._folder / "stderr", []
        with errors.open("wb") as stderr:
            try:
                process = await asyncio.create_subprocess_exec(
                    *(self._wall() if walled else ()),
                    self._command(),
                    *self.spec.args,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=stderr,
                    cwd=self._inside(GROUP_PATH),
                    env=self.environment(),
                    start_new_session=True,
                    limit=_LONGEST_LINE,
                )
            except OSError as error:
                fail(f"the command {self.spec.command!r} cannot be started: {error.strerror}; name one that is on PATH")
        try:
            async with AsyncExitStack() as stack:
                client = Client(_transport(process, noise), mode=mode, read_timeout_seconds=ANSWERS_WITHIN)
                server = Server(process, client, noise, errors)
                try:
                    async with asyncio.timeout(STARTS_WITHIN):
                        await stack.enter_async_context(client)
                except Exception as error:
                    fail(f"the server does not start: {_reason(error)}{server.said()}{_hint(server.said())}")
                yield server
        finally:
            await self._end(process)

    def environment(self) -> dict[str, str]:
        """What the server finds in its environment, as in the container; temporary files go into its home."""
        given = dict(self.spec.env)
        paths = [str(self._inside(f"{PLUGINS_PATH}/{self.spec.name}")), given.get("PYTHONPATH", ""), str(self._runner)]
        return {
            "PATH": os.pathsep.join([str(self._python.parent), os.defpath]),
            "HOME": str(self.home),
            "TMPDIR": str(self._temporary),
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONSAFEPATH": "1",
            **given,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PYNCHY_DATA": str(self.data),
        }

    def left(self, group: int) -> list[str]:
        """The processes that are left of a server: those of its process group, and those with its data folder."""
        found = [f"some of its process group {group}"] if _alive(group) else []
        for pid in self._marked():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(f"{pid} ({command.strip()[:100]})")
        return found

    def end(self) -> None:
        """End what is left of any server."""
        for pid in self._marked():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def _marked(self) -> list[int]:
        mark, found = f"PYNCHY_DATA={self.data}".encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found

    def contents(self) -> dict[str, tuple[int, int]]:
        """Every file that the server may not change, with its size and time."""
        found = {}
        for path in sorted(self.workspace.rglob("*")):
            if path != self.data and self.data not in path.parents and not path.is_dir():
                status = path.lstat()
                found[str(path.relative_to(self._folder))] = (status.st_size, status.st_mtime_ns)
        return found

    def wall_trouble(self) -> str:
        """Why no server can be walled in here; empty where it can."""
        if shutil.which("bwrap") is None:
            return "there is no bwrap"
        done = subprocess.run([*self._wall(), "true"], capture_output=True, text=True, env={"PATH": os.defpath})
        return done.stderr.strip() if done.returncode else ""

    def _wall(self) -> list[str]:
        """No network, and no place to write but the data folder, the home and /tmp."""
        arguments = ["bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-net"]
        arguments += ["--die-with-parent", "--tmpfs", "/tmp"]  # noqa: S108 - as the container has it
        needed = [Path(sys.prefix), Path(sys.base_prefix), self._python.parents[1], *self._folders]
        needed += [path.resolve().parent for path in _packages_of(self._python).iterdir() if path.is_symlink()]
        for path in dict.fromkeys([*needed, self._folder]):
            if Path("/tmp") in path.parents:  # noqa: S108
                arguments += ["--ro-bind", str(path), str(path)]
        for path in (self.data, self.home):
            arguments += ["--bind", str(path), str(path)]
        return [*arguments, "--chdir", str(self._inside(GROUP_PATH)), "--"]

    def _command(self) -> str:
        """The command, as the container's PATH finds it."""
        return shutil.which(self.spec.command, path=self.environment()["PATH"]) or self.spec.command

    def _inside(self, path: str) -> Path:
        return self._folder / path.lstrip("/")

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Kill it and what it has left, and read its pipe to the end, which closes it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        self.end()
        assert process.stdin
        assert process.stdout
        process.stdin.close()
        while await process.stdout.read(1 << 16):
            pass
        await process.wait()


def container_python(folder: Path, plugin: McpPlugin) -> Path:
    """A Python that finds the container's packages, as far as they are installed here, and none of the host's."""
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    python = folder / "bin" / "python"
    packages = _packages_of(python)
    for name in sorted(_container_packages(plugin)):
        with contextlib.suppress(PackageNotFoundError):
            found = distribution(name)
            for entry in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
                source, link = Path(str(found.locate_file(entry))), packages / entry
                if source.exists() and not link.is_symlink() and not entry.endswith(".pth"):
                    link.symlink_to(source)
    return python


def _packages_of(python: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return python.parents[1] / "lib" / version / "site-packages"


def _container_packages(plugin: McpPlugin) -> set[str]:
    """The names of the agent's own packages, of those in the plugin's `container` extra, and of what these require."""
    lock = (container_dir() / "requirements" / "agent.lock").read_text()
    names: set[str] = {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}
    dist = _distribution_of(plugin)
    waiting = [one for one in _requirements(dist, EXTRA) if one.marker] if dist else []
    while waiting:
        requirement = waiting.pop()
        if (name := canonicalize_name(requirement.name)) in names:
            continue
        names.add(name)
        with contextlib.suppress(PackageNotFoundError):
            for extra in requirement.extras or {""}:
                waiting += _requirements(distribution(name), extra)
    return names - {canonicalize_name(dist.name) if dist else "", "pynchy"}


def _distribution_of(plugin: McpPlugin) -> Distribution | None:
    package = type(plugin).__module__.partition(".")[0]
    return next((one.dist for one in entry_points(group=GROUP) if one.module.partition(".")[0] == package), None)


def _requirements(dist: Distribution, extra: str) -> Iterator[Requirement]:
    for text in dist.requires or ():
        requirement = Requirement(text)
        if not requirement.marker or requirement.marker.evaluate({"extra": extra}):
            yield requirement


@asynccontextmanager
async def _transport(process: asyncio.subprocess.Process, noise: list[str]) -> AsyncIterator[TransportStreams]:
    """The process's pipes as the client's streams; lines that are no messages become noise."""
    assert process.stdin
    assert process.stdout
    stdin, stdout = process.stdin, process.stdout
    to_client, received = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    sent, to_server = anyio.create_memory_object_stream[SessionMessage](0)

    async def read() -> None:
        async with to_client:
            while line := await stdout.readline():
                try:
                    message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValueError:
                    noise.append(line.decode(errors="replace").rstrip("\n")[:200])
                    continue
                try:
                    await to_client.send(SessionMessage(message))
                except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                    return

    async def write() -> None:
        async for message in to_server:
            text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
            try:
                stdin.write(text.encode() + b"\n")
                await stdin.drain()
            except (ConnectionError, RuntimeError):
                return  # that it has gone is seen at its stdout

    async with received, sent, to_server, anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        tasks.start_soon(write)
        try:
            yield received, sent
        finally:
            tasks.cancel_scope.cancel()


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _reason(error: BaseException) -> str:
    error = innermost(error)
    if isinstance(error, TimeoutError):
        return f"it did not answer within {STARTS_WITHIN:.0f} s"
    return f"{type(error).__name__}: {error}"


def _hint(said: str) -> str:
    """What to do about an import that fails."""
    if "ModuleNotFoundError" not in said and "ImportError" not in said:
        return ""
    return (
        f"; in the container there are the standard library, `pynchy.plugin`, the agent's packages and what the "
        f"plugin's `{EXTRA}` extra names, which the tests' environment must have too: import what only the host has "
        "inside the method that needs it"
    )


def describe(result: Any) -> str:
    """What the agent reads of a tool's result."""
    return " ".join(str(getattr(block, "text", block)) for block in result.content)
