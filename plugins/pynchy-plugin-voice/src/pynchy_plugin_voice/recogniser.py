"""The server's end of the worker: one recording after the other, and an end to whatever is given up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from pynchy_plugin_voice.places import Refused

#: The longest line of the worker: a day's talk.
_LONGEST_LINE = 16 << 20  # bytes

Progress = Callable[[float, float | None], Awaitable[None]]


class Recogniser:
    """Hands recordings to a worker, which is started when there is one, and again after a death."""

    def __init__(self, workspace: Path, model: Path | None) -> None:
        self._arguments = [str(workspace), *([str(model)] if model else [])]
        self._turn = anyio.Lock()
        self._worker: Process | None = None

    async def transcribe(self, path: str, language: str | None, longest: float, progress: Progress) -> str:
        """The transcript, with a line about it; Refused says why there is none. Calls wait for their turn."""
        request = {"path": path, "language": language, "longest": longest}
        async with self._turn:
            reused = self._worker is not None
            try:
                return await self._ask(request, progress)
            except _Died as died:
                if not reused:
                    raise Refused(str(died)) from None
            try:
                return await self._ask(request, progress)  # the last one may have died before it was asked
            except _Died as died:
                raise Refused(str(died)) from None

    async def close(self) -> None:
        """End the worker, whatever it does."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        if worker.returncode is None:
            worker.kill()
        with anyio.CancelScope(shield=True):
            await worker.wait()

    async def _ask(self, request: dict[str, object], progress: Progress) -> str:
        """The worker's answer; Refused with its words, or _Died, and without a worker where there is no answer."""
        worker, answered = await self._running(), False
        assert worker.stdin
        assert worker.stdout
        try:
            with contextlib.suppress(ConnectionError):
                worker.stdin.write(json.dumps(request).encode() + b"\n")
                await worker.stdin.drain()
                while line := await worker.stdout.readline():
                    said = json.loads(line)
                    if "progress" in said:
                        await progress(said["progress"], said["total"])
                        continue
                    answered = True
                    if "refused" in said:
                        raise Refused(said["refused"])
                    return said["result"]
            raise _Died(_death(await worker.wait()))
        finally:
            if not answered:  # it is dead, or still at work for a call that was cancelled
                await self.close()

    async def _running(self) -> Process:
        if self._worker is None:
            command = [sys.executable, "-m", "pynchy_plugin_voice.worker", *self._arguments]
            self._worker = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, limit=_LONGEST_LINE, env=os.environ
            )
        return self._worker


class _Died(Exception):
    """The worker has died without an answer."""


def _death(code: int) -> str:
    """How the worker died, in words."""
    if code == -signal.SIGKILL:
        return "the recogniser was killed, most likely because memory ran out: try a shorter piece of the recording"
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"the recogniser died ({how}): the file may be malformed in a way that its decoder cannot take"
