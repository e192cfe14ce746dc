"""The worker process as the channel and the commands see it: lines of JSON to and from it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pynchy.plugin import NotConnected

Frame = dict[str, Any]

#: Bytes of a line from the worker, which cuts texts.
LONGEST_LINE = 16 * 1024 * 1024
# Seconds: the worker hands over what is on its way before it ends.
_END_WITHIN = 3.0
#: What Go says where the connection is gone, in whatever call.
_OFFLINE = ("not connected", "disconnected", "not logged in", "connection closed", "websocket", "client not found")
#: Of the environment, which holds credentials, the worker gets what a network program needs.
_KEPT = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "SSL_CERT_DIR", "SSL_CERT_FILE", "TMPDIR", "TZ")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class Link:
    """One run of the worker. `on_frame` gets what is no reply, the last time `{"is": "ended"}`."""

    def __init__(self, worker: Sequence[str], folder: Path, on_frame: Callable[[Frame], None], log: logging.Logger):
        self._worker = worker
        self._folder = folder
        self._on_frame = on_frame
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self.alive = False

    async def start(self, mode: str, *arguments: str) -> None:
        """Start the worker."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self._worker,
            str(self._folder),
            mode,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(),
            limit=LONGEST_LINE,
            start_new_session=True,  # Ctrl-C in a terminal is for the service
        )
        self.alive = True
        assert self._process.stdout
        assert self._process.stderr
        self._tasks = [
            asyncio.create_task(self._hear(self._process.stdout)),
            asyncio.create_task(self._log_lines(self._process.stderr)),
        ]

    def tell(self, frame: Frame) -> None:
        """Tell the worker something that has no answer."""
        if self.alive and self._process and self._process.stdin:
            self._process.stdin.write(json.dumps(frame).encode() + b"\n")

    async def call(self, what: str, seconds: float, **arguments: Any) -> Any:
        """Have the worker do something; NotConnected where WhatsApp cannot be reached, RuntimeError otherwise."""
        if not self.alive:
            raise NotConnected("WhatsApp is not connected")
        self._number += 1
        number = self._number
        answer = self._calls[number] = asyncio.get_running_loop().create_future()
        self.tell({"call": number, "what": what, **arguments})
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            raise RuntimeError(f"WhatsApp has not answered within {seconds:.0f} s ({what})") from None
        finally:
            self._calls.pop(number, None)

    async def stop(self) -> None:
        """End the worker, giving it a moment."""
        process, self._process = self._process, None
        if process is None:
            return
        self.alive = False
        if process.stdin:
            process.stdin.close()
        try:
            async with asyncio.timeout(_END_WITHIN):
                await process.wait()
        except TimeoutError:
            self._log.warning("the WhatsApp worker did not end by itself")
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _hear(self, lines: asyncio.StreamReader) -> None:
        try:
            while line := await lines.readline():
                try:
                    self._take(json.loads(line))
                except Exception:
                    self._log.exception("a line of the WhatsApp worker cannot be taken")
        finally:
            self.alive = False
            for answer in self._calls.values():
                if not answer.done():
                    answer.set_exception(NotConnected("the connection to WhatsApp has ended"))
            self._on_frame({"is": "ended"})

    def _take(self, frame: Frame) -> None:
        if frame["is"] != "reply":
            self._on_frame(frame)
            return
        answer = self._calls.get(frame["call"])
        if answer is None or answer.done():
            return
        if "error" not in frame:
            answer.set_result(frame["value"])
        elif any(word in frame["error"].lower() for word in _OFFLINE):
            answer.set_exception(NotConnected(f"WhatsApp cannot be reached: {frame['error']}"))
        else:
            answer.set_exception(RuntimeError(f"WhatsApp refuses: {frame['error']}"))

    async def _log_lines(self, lines: asyncio.StreamReader) -> None:
        while line := await _some_of(lines):
            if text := line.decode(errors="replace").strip():
                ours = text.startswith(("WARNING whatsapp:", "ERROR whatsapp:"))
                self._log.log(logging.WARNING if ours else logging.DEBUG, "worker: %.500s", text)


async def _some_of(lines: asyncio.StreamReader) -> bytes:
    """A line, or the beginning of one without end: what is not read would hold up who writes it."""
    try:
        return await lines.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError:
        return await lines.read(LONGEST_LINE)


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.lower() in _PROXIES}
    # Where this process finds its packages, the worker does too.
    return kept | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONSAFEPATH": "1"}
