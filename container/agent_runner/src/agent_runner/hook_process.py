"""One plugin's hooks in a process of their own: calls come in as lines of JSON, answers go out the same way.

python -m agent_runner.hook_process PACKAGE.MODULE:FUNCTION...
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from agent_runner.host_link import claim_pipes

#: A call's input or answer may be as long as the largest tool result.
MAX_LINE = 96 * 1024 * 1024


def main(names: list[str]) -> None:
    """Import the functions, say which cannot be called and why, then answer calls until stdin ends."""
    read_fd, write_fd = claim_pipes()  # a hook may print, and must not read what is ours
    functions: dict[str, Callable[..., Any]] = {}
    troubles: dict[str, str] = {}
    for name in names:
        try:
            functions[name] = _import(name)
        except BaseException as error:
            troubles[name] = f"{name} cannot be imported: {_words(error)}"
    asyncio.run(_serve(read_fd, write_fd, functions, troubles))
    os._exit(0)  # a thread that a hook has left behind must not keep it alive


def _import(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    if not callable(function):
        raise TypeError(f"it is {type(function).__name__}, no function")
    return function


async def _serve(
    read_fd: int, write_fd: int, functions: dict[str, Callable[..., Any]], troubles: dict[str, str]
) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MAX_LINE)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_fd, "rb", 0))

    def send(message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(write_fd, data) :]

    send({"imported": troubles})
    tasks: set[asyncio.Task[None]] = set()
    while line := await reader.readline():
        call = json.loads(line)
        task = loop.create_task(_answer(call["id"], functions[call["function"]], call["arguments"], send))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def _answer(
    call_id: int, function: Callable[..., Any], arguments: list[Any], send: Callable[[dict[str, Any]], None]
) -> None:
    try:
        answer = await _call(function, arguments)
        if not isinstance(answer, dict):
            raise TypeError(f"it returned {type(answer).__name__}, no dict")
        send({"id": call_id, "answer": answer})
    except BaseException as error:
        send({"id": call_id, "error": f"{function.__name__} failed: {_words(error)}"})


async def _call(function: Callable[..., Any], arguments: list[Any]) -> Any:
    """A plain function in a thread, so that it holds up no other; nothing to say is an empty answer."""
    context = {"signal": None}  # the SDK's third argument, which has no other field yet
    if inspect.iscoroutinefunction(function):
        answer = await function(*arguments, context)
    else:
        answer = await asyncio.to_thread(function, *arguments, context)
        if inspect.isawaitable(answer):
            answer = await answer
    return {} if answer is None else answer


def _words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


if __name__ == "__main__":
    main(sys.argv[1:])
