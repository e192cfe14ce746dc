"""Awaiting what is a plugin's own: whatever it raises stays its own, and ends neither the service nor another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from pynchy.plugin._errors import PluginRaised, in_words

__all__ = ["PluginRaised", "ask_async", "ask_quietly"]

log = structlog.get_logger(__name__)

_Answer = TypeVar("_Answer")


async def ask_async(call: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """Await a plugin's coroutine. What it raises, `SystemExit` and a cancellation of its own included, is PluginRaised.

    A cancellation of ours, KeyboardInterrupt and a TimeoutError of ours pass.
    """
    try:
        return await call()
    except KeyboardInterrupt:
        raise
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task and task.cancelling():
            raise
        raise PluginRaised(in_words(error)) from error
    except BaseException as error:
        # SystemExit in a task would end the event loop.
        raise PluginRaised(in_words(error)) from error


async def ask_quietly(what: str, subject: str, call: Callable[[], Awaitable[_Answer]], within: float) -> _Answer | None:
    """Await what nothing depends on: that it raises, or takes longer than so many seconds, is a line in the log."""
    try:
        async with asyncio.timeout(within):
            return await ask_async(call)
    except (PluginRaised, TimeoutError) as error:
        log.warning("a channel failed", call=what, subject=subject, error=str(error) or "it took too long")
        return None
