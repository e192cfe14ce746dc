"""Waiting one's turn: who asks for something too often is held up, and nobody else is."""

from __future__ import annotations

import asyncio
import time


class Turns:
    """So many at once for each key, and then so many each second (a token bucket)."""

    def __init__(self, at_once: int, each_second: float) -> None:
        self._at_once = at_once
        self._each_second = each_second
        self._left: dict[str, tuple[float, float]] = {}

    async def wait(self, key: str) -> None:
        """Return once it is this key's turn; those of one key in the order in which they asked."""
        now = time.monotonic()
        left, at = self._left.get(key, (float(self._at_once), now))
        left = min(self._at_once, left + (now - at) * self._each_second) - 1
        self._left[key] = (left, now)
        if left < 0:
            await asyncio.sleep(-left / self._each_second)
