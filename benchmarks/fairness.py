"""Fifty groups that always have something to say, on five places: how long the unluckiest message waits.

Each group has its next message handed in as soon as the last is answered; its agent starts anew for each, takes
a fixed time to answer, and leaves. A wait is from the hand-in until the answer is at the channel. What is not over
at the end counts with what it came to.

A full round is one turn of every group. A turn is what a place is held for: the agent's start, its answer, its end,
and what the host does around them. That nobody waits longer than a round is measured twice:

In turns, where the machine's noise does not count: while a group waits for its turn, no other begins a second one.

In seconds, beside 50/5 turns one after the other, as long as the run's longest, since any turn may be that long. With
the mean turn it could not be held: when everybody always waits, the mean wait is a round of those, in whatever order.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import mean
from unittest.mock import patch

from benchmarks.disk import folder_on_disk
from benchmarks.stub import StubRuntime
from benchmarks.table import Row
from pynchy.app import Service
from pynchy.channels.terminal import terminal_jid
from pynchy.config import Settings
from pynchy.conversations import Conversations
from pynchy.group_queue import Place
from pynchy.model_gateway import Upstream
from pynchy.plugin import PluginRegistry
from pynchy.types import ContainerInput, Group
from pynchy.wire import Frame, encode, json_frame

GROUPS = 50
PLACES = 5
ROUNDS = 12
ANSWER_SECONDS = 0.05


@dataclass(slots=True)
class _Wait:
    """One message's way, in seconds of the monotonic clock; `answered` is the end of the run where it never was."""

    jid: str
    handed_in: float
    answered: float = 0.0

    @property
    def seconds(self) -> float:
        return self.answered - self.handed_in


@dataclass(frozen=True, slots=True)
class _Turn:
    jid: str
    began: float
    ended: float


async def measure() -> list[Row]:
    """Rows for the wait in turns, the wait in seconds, and the round itself beside the same agents without a host."""
    turns: list[_Turn] = []
    before = await _bare_turn()
    with folder_on_disk() as home, _noting(turns):
        waits = await _talk(home)
    bare = mean([before, await _bare_turn()])
    end = max(wait.answered for wait in waits)
    lengths = [turn.ended - turn.began for turn in turns if turn.ended <= end]
    longest = [max(wait.seconds for wait in waits if wait.jid == jid) for jid in {wait.jid for wait in waits}]
    busy = f"{GROUPS} busy groups on {PLACES} places"
    return [
        Row(f"turns of another while one waits, {busy}", _passed_over(waits, turns), 1, "one each", 1.0, unit="turns"),
        Row(
            f"longest wait, {busy} (the luckiest group's: {min(longest):.3f} s)",
            max(longest),
            max(lengths) * GROUPS / PLACES,
            f"{GROUPS}/{PLACES} of the longest turns",
            1.0,
        ),
        Row(
            f"a full round, {busy}",
            mean(lengths) * GROUPS / PLACES,
            bare * GROUPS / PLACES,
            f"the same agents without a host, {PLACES} at a time",
        ),
    ]


def _passed_over(waits: list[_Wait], turns: list[_Turn]) -> int:
    """How many turns any group began, at most, while another had a message that its own turn had not come for."""
    most = 0
    for wait in waits:
        begun = min((turn.began for turn in turns if turn.jid == wait.jid and turn.began > wait.handed_in), default=inf)
        others = Counter(turn.jid for turn in turns if wait.handed_in < turn.began < begun)
        most = max(most, *others.values(), 0)
    return most


@contextmanager
def _noting(turns: list[_Turn]) -> Iterator[None]:
    """Meanwhile write down every turn."""
    work = Conversations.work

    async def noted(conversations: Conversations, place: Place) -> None:
        began = time.monotonic()
        try:
            await work(conversations, place)
        finally:
            turns.append(_Turn(place.jid, began, time.monotonic()))

    with patch.object(Conversations, "work", noted):
        yield


async def _talk(home: Path) -> list[_Wait]:
    """Have all talk until there were as many answers as turns in the rounds."""
    settings = Settings(home=home).model_copy(  # pyright: ignore[reportCallIssue]
        update={"max_concurrent_containers": PLACES}
    )
    waits: list[_Wait] = []
    answers = asyncio.Semaphore(0)
    unused = Upstream("http://127.0.0.1:9")
    async with Service.start(settings, unused, PluginRegistry(), StubRuntime(ANSWER_SECONDS)) as service:

        async def talk(jid: str) -> None:
            heard: asyncio.Queue[str] = asyncio.Queue()
            with service.terminal.attached(jid, heard.put):
                while True:
                    wait = _Wait(jid, time.monotonic())
                    waits.append(wait)
                    await service.say(jid, "And now?")
                    await heard.get()
                    wait.answered = time.monotonic()
                    answers.release()

        jids = [terminal_jid(f"group-{number}") for number in range(GROUPS)]
        for number, jid in enumerate(jids):
            await service.register_group(Group(jid, f"Group {number}", f"group-{number}"))
        talks = [asyncio.create_task(talk(jid)) for jid in jids]
        for _ in range(GROUPS * ROUNDS):
            await answers.acquire()
        ended = time.monotonic()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
    for wait in waits:
        wait.answered = wait.answered or ended
    return waits


async def _bare_turn() -> float:
    """Seconds of one turn of an agent, as many at a time as there are places, with nothing around them."""

    async def turn() -> None:
        runtime = StubRuntime(ANSWER_SECONDS)
        process = await asyncio.create_subprocess_exec(
            runtime.cli,
            *runtime.build_run_args([], "", ""),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin
        assert process.stdout
        given = ContainerInput("And now?", "group", "terminal:group").to_dict()
        process.stdin.writelines(encode(json_frame("input", given, id="input", ids=[1])))
        while b'"result"' not in await process.stdout.readline():
            pass
        process.stdin.writelines(encode(Frame("close")))
        await process.stdout.read()
        await process.wait()

    async def place() -> None:
        for _ in range(GROUPS // PLACES):
            await turn()

    began = time.perf_counter()
    await asyncio.gather(*(place() for _ in range(PLACES)))
    return (time.perf_counter() - began) * PLACES / GROUPS
