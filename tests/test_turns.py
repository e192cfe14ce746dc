"""Who asks too often waits, and nobody else does."""

from __future__ import annotations

import asyncio

import pytest

from pynchy.turns import Turns

pytestmark = pytest.mark.anyio


async def test_who_has_had_its_share_waits_and_others_do_not() -> None:
    turns = Turns(3, 0.001)
    for _ in range(3):
        await turns.wait("loud")
    waiting = [asyncio.ensure_future(turns.wait("loud")) for _ in range(2)]
    await turns.wait("quiet")
    await asyncio.sleep(0)
    assert not any(one.done() for one in waiting)
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_turns_come_back_and_are_taken_in_order() -> None:
    turns = Turns(1, 20)
    taken: list[int] = []

    async def take(number: int) -> None:
        await turns.wait("loud")
        taken.append(number)

    await asyncio.gather(*(take(number) for number in range(5)))
    assert taken == [0, 1, 2, 3, 4]
