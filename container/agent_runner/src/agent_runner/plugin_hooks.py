"""The plugins' hooks: each plugin's run in a process of its own, which is killed when one of them hangs.

A hook that raises, hangs or cannot be imported is skipped and reported; one that is to fail closed blocks what it
was asked about instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from claude_agent_sdk import HookMatcher

from agent_runner.hook_process import MAX_LINE
from agent_runner.network_proxy import PROXY_VARIABLES

#: A hook that has hung so often is left out for the rest of the run.
_MOST_HANGS = 3
#: How much longer than ours the SDK's own time limit is, in seconds.
_SLACK = 10.0

Report = Callable[[str, str], None]


class HookFailed(Exception):
    """A hook gave no answer that can be used."""


class HookProcess:
    """One process that runs a plugin's hooks: from its start until it ends or is killed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count(1)
        self._imported: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.get_running_loop().create_task(self._read())
        self.alive = True

    async def imported(self) -> dict[str, str]:
        """Why each function that cannot be called cannot be."""
        return await asyncio.shield(self._imported)

    async def call(self, function: str, arguments: list[Any]) -> dict[str, Any]:
        """Call a hook; HookFailed where it gives no answer that can be used."""
        if trouble := (await self.imported()).get(function):
            raise HookFailed(trouble)
        assert self._process.stdin
        call_id = next(self._ids)
        answer = self._calls[call_id] = asyncio.get_running_loop().create_future()
        try:
            request = {"id": call_id, "function": function, "arguments": arguments}
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            await self._process.stdin.drain()
            return await answer
        except ConnectionError:
            raise HookFailed("the process of its hooks ended") from None
        finally:
            del self._calls[call_id]

    async def _read(self) -> None:
        assert self._process.stdout
        try:
            while line := await self._process.stdout.readline():
                message = json.loads(line)
                if "imported" in message:
                    self._imported.set_result(message["imported"])
                elif (call := self._calls.get(message["id"])) and not call.done():
                    if "error" in message:
                        call.set_exception(HookFailed(message["error"]))
                    else:
                        call.set_result(message["answer"])
        except (ValueError, KeyError, TypeError, asyncio.InvalidStateError):
            pass  # a hook has written where only we may: nothing that comes from there can be believed
        self.kill()
        for future in [self._imported, *self._calls.values()]:
            if not future.done():
                future.set_exception(HookFailed("the process of its hooks ended"))
        self._imported.exception()  # nobody may have waited for it
        await self._process.wait()

    def kill(self) -> None:
        """End it, whatever it is doing."""
        self.alive = False
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> None:
        """End it and wait until it is gone."""
        self.kill()
        await asyncio.wait([self._reading], timeout=1)
        self._reading.cancel()


class PluginProcess:
    """Where a plugin's hooks run: a process that is started when it is needed and killed when one of them hangs."""

    def __init__(self, functions: list[str], environment: dict[str, str], cwd: str) -> None:
        self._functions = functions
        self._environment = environment
        self._cwd = cwd
        self._process: HookProcess | None = None
        self._starting = asyncio.Lock()
        self._hangs: Counter[str] = Counter()

    async def imported(self) -> dict[str, str]:
        """Start the process where none runs; why each function that cannot be called cannot be."""
        try:
            return await (await self._running()).imported()
        except (HookFailed, OSError) as failed:
            return {"": str(failed)}

    async def call(self, function: str, arguments: list[Any], within: float) -> dict[str, Any]:
        """Call a hook; HookFailed where it gives no answer within so many seconds, or none that can be used."""
        if self._hangs[function] >= _MOST_HANGS:
            raise HookFailed(f"{function} has hung {_MOST_HANGS} times and is left out")
        try:
            async with asyncio.timeout(within):
                return await (await self._running()).call(function, arguments)
        except TimeoutError:
            self._hangs[function] += 1
            if self._process:
                self._process.kill()
            raise HookFailed(f"{function} gave no answer within {within:g} s, so its process was ended") from None
        except OSError as error:
            raise HookFailed(f"the process of its hooks cannot be started: {error}") from None

    async def _running(self) -> HookProcess:
        async with self._starting:
            if self._process is None or not self._process.alive:
                self._process = HookProcess(
                    await asyncio.create_subprocess_exec(
                        sys.executable,
                        "-P",  # what the agent leaves in its folder must not take the place of a module
                        "-m",
                        "agent_runner.hook_process",
                        *self._functions,
                        stdin=asyncio.subprocess.PIPE,
                        stdout=asyncio.subprocess.PIPE,
                        limit=MAX_LINE,
                        env=self._environment,
                        cwd=self._cwd,
                    )
                )
            return self._process

    async def close(self) -> None:
        """End the process."""
        if self._process:
            await self._process.close()


class PluginHooks:
    """All plugins' hooks, as the SDK takes them. `report` hears of a plugin's trouble."""

    def __init__(
        self, hooks: dict[str, list[dict[str, Any]]], processes: dict[str, PluginProcess], report: Report
    ) -> None:
        self._hooks = hooks
        self._processes = processes
        self._report = report
        self._starting: dict[str, asyncio.Task[dict[str, str]]] = {}

    def start(self) -> None:
        """Start every process, without waiting: the SDK takes longer."""
        for plugin, process in self._processes.items():
            self._starting[plugin] = asyncio.get_running_loop().create_task(process.imported())

    async def imported(self, within: float) -> dict[str, str]:
        """Wait at most so many seconds: by plugin, why hooks of it cannot be called, or an empty string."""
        if self._starting:
            await asyncio.wait(self._starting.values(), timeout=within)
        slow = f"they were not imported within {within:.0f} s"
        return {**dict.fromkeys(self._starting, slow), **self.troubles()}

    def troubles(self) -> dict[str, str]:
        """What is known by now: by plugin, why hooks of it cannot be called, or an empty string."""
        return {
            plugin: "; ".join(starting.result().values())
            for plugin, starting in self._starting.items()
            if starting.done()
        }

    async def close(self) -> None:
        """End every process."""
        for starting in self._starting.values():
            starting.cancel()
        await asyncio.gather(*(process.close() for process in self._processes.values()), return_exceptions=True)

    def matchers(self) -> dict[str, list[HookMatcher]]:
        """The SDK's hooks by event, each with a time limit of its own."""
        return {event: [self._matcher(hook) for hook in hooks] for event, hooks in self._hooks.items()}

    def _matcher(self, hook: dict[str, Any]) -> HookMatcher:
        async def callback(given: Any, tool_use_id: str | None, context: Any) -> Any:
            process = self._processes[hook["plugin"]]
            try:
                return await process.call(hook["function"], [given, tool_use_id], hook["timeout"])
            except HookFailed as failed:
                self._report(hook["plugin"], str(failed))
                if hook["fail_closed"]:
                    raise  # which blocks, by `on_failure`
                return {}

        return HookMatcher(
            matcher=hook["matcher"],
            hooks=[callback],
            timeout=hook["timeout"] + _SLACK,
            on_failure="block" if hook["fail_closed"] else None,
        )


@asynccontextmanager
async def plugin_hooks(
    hooks: dict[str, list[dict[str, Any]]], workspace: str, runner: str, report: Report
) -> AsyncIterator[PluginHooks]:
    """The hooks of all plugins, their processes starting; at the end those are gone."""
    functions: dict[str, list[str]] = {}
    for items in hooks.values():
        for hook in items:
            known = functions.setdefault(hook["plugin"], [])
            if hook["function"] not in known:
                known.append(hook["function"])
    processes = {
        plugin: PluginProcess(names, _environment(plugin, workspace, runner), f"{workspace}/group")
        for plugin, names in functions.items()
    }
    running = PluginHooks(hooks, processes, report)
    running.start()
    try:
        yield running
    finally:
        await running.close()


def _environment(plugin: str, workspace: str, runner: str) -> dict[str, str]:
    return {
        **{
            name: os.environ[name]
            for name in ("PATH", "HOME", "LANG", "PYTHONDONTWRITEBYTECODE", *PROXY_VARIABLES)
            if name in os.environ
        },
        "PYTHONPATH": os.pathsep.join([f"{workspace}/hooks/{plugin}", runner]),
        "PYNCHY_DATA": f"{workspace}/data/{plugin}",
    }
