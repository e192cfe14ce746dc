"""Who runs when: a limit, turns, and places that are given up as soon as someone needs them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pynchy.group_queue import GroupQueue, Place, Wake

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

#: Longer than any test: who leaves before was asked to.
FOREVER = 1000.0


class Groups:
    """Work for a queue that says what it does and does what it is told.

    A group's work starts, waits until it may go on (`let`), and then does what `then` says.
    """

    def __init__(self, limit: int) -> None:
        self.queue = GroupQueue(limit, self._work)
        self.started: list[str] = []
        self.at_once: Counter[str] = Counter()
        self.most_at_once: Counter[str] = Counter()
        self.most_together = 0
        self.then: dict[str, Callable[[Place], object]] = {}
        self._may: dict[str, asyncio.Semaphore] = {}
        self._changed = asyncio.Condition()

    def let(self, jid: str, times: int = 1) -> None:
        """Let this group's work go on."""
        for _ in range(times):
            self._may.setdefault(jid, asyncio.Semaphore(0)).release()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds."""
        async with self._changed, asyncio.timeout(30):
            await self._changed.wait_for(condition)

    async def note(self) -> None:
        """Something has changed."""
        async with self._changed:
            self._changed.notify_all()

    async def _work(self, place: Place) -> None:
        jid = place.jid
        self.started.append(jid)
        self.at_once[jid] += 1
        self.most_at_once[jid] = max(self.most_at_once[jid], self.at_once[jid])
        self.most_together = max(self.most_together, self.at_once.total())
        try:
            await self.note()
            await self._may.setdefault(jid, asyncio.Semaphore(0)).acquire()
            if (result := self.then.get(jid, lambda _: None)(place)) is not None:
                assert asyncio.iscoroutine(result)
                await result
        finally:
            self.at_once[jid] -= 1
            await asyncio.shield(self.note())


@asynccontextmanager
async def groups(limit: int) -> AsyncIterator[Groups]:
    """Groups whose queue is closed at the end."""
    those = Groups(limit)
    try:
        yield those
    finally:
        await those.queue.close()


async def until_all_wait() -> None:
    """Let every task go on until nothing but this one can."""
    for _ in range(50):
        await asyncio.sleep(0)


# --- turns --------------------------------------------------------------------------------------------------


async def test_no_more_than_the_limit_run_and_the_others_come_first_come_first_served() -> None:
    async with groups(2) as those:
        for jid in "abcdef":
            those.queue.wake(jid)
        await until_all_wait()
        assert those.started == ["a", "b"]
        assert sorted(those.queue.running) == ["a", "b"]
        assert those.queue.waiting == ["c", "d", "e", "f"]
        for jid in "baecdf":  # they end in another order than they came
            those.let(jid)
        await until_all_wait()
        assert those.started == list("abcdef")
        assert those.most_together == 2
        assert (those.queue.running, those.queue.waiting) == ([], [])


async def test_a_waiting_group_that_is_woken_again_keeps_its_turn() -> None:
    async with groups(1) as those:
        for jid in "abcb":
            those.queue.wake(jid)
        await until_all_wait()
        assert those.queue.waiting == ["b", "c"]


async def test_a_group_never_runs_twice_at_once() -> None:
    async with groups(5) as those:
        for _ in range(3):
            those.queue.wake("a")
            await until_all_wait()
        assert those.started == ["a"]
        those.let("a", 10)
        await until_all_wait()
        assert those.most_at_once["a"] == 1


async def test_a_group_woken_while_it_works_runs_again_and_once_is_enough() -> None:
    async with groups(1) as those:
        those.queue.wake("a")
        await until_all_wait()
        for _ in range(3):
            those.queue.wake("a")
        those.let("a", 10)
        await until_all_wait()
        assert those.started == ["a", "a"]


async def test_a_group_that_wakes_itself_runs_again_behind_those_that_wait() -> None:
    async with groups(1) as those:
        those.then["a"] = lambda place: those.queue.wake(place.jid) if those.started.count("a") == 1 else None
        for jid in "ab":
            those.queue.wake(jid)
            those.let(jid, 2)
        await until_all_wait()
        assert those.started == ["a", "b", "a"]


async def test_work_can_wake_another_group() -> None:
    async with groups(1) as those:
        those.then["a"] = lambda _: those.queue.wake("b")
        those.let("a")
        those.let("b")
        those.queue.wake("a")
        await until_all_wait()
        assert those.started == ["a", "b"]


async def test_work_that_raises_gives_its_place_to_the_next_and_can_run_again() -> None:
    def fail(place: Place) -> None:
        raise RuntimeError("as you wished")

    async with groups(1) as those:
        those.then["a"] = fail
        for jid in "ab":
            those.queue.wake(jid)
            those.let(jid)
        await until_all_wait()
        assert those.started == ["a", "b"]
        those.queue.wake("a")
        await until_all_wait()
        assert those.started == ["a", "b", "a"]


async def test_a_group_woken_before_its_work_raises_runs_again() -> None:
    def fail_once(place: Place) -> None:
        if those.started.count("a") == 1:
            those.queue.wake("a")
            raise RuntimeError("as you wished")

    async with groups(1) as those:
        those.then["a"] = fail_once
        those.let("a", 2)
        those.queue.wake("a")
        await until_all_wait()
        assert those.started == ["a", "a"]


@given(st.integers(1, 4), st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=40))
@settings(deadline=None)
async def test_whatever_happens_every_wake_is_followed_by_work_within_the_limit(
    limit: int, steps: list[tuple[str, bool]]
) -> None:
    owed: Counter[str] = Counter()

    def work(place: Place) -> None:
        owed[place.jid] = 0

    async with groups(limit) as those:
        for jid in "abcdef":
            those.then[jid] = work
        for jid, wakes in steps:
            if wakes:
                owed[jid] += 1
                those.queue.wake(jid)
            else:
                those.let(jid)
            await asyncio.sleep(0)
        for jid in "abcdef":
            those.let(jid, 100)
        async with asyncio.timeout(30):
            while those.queue.running or those.queue.waiting:
                await asyncio.sleep(0)
        assert +owed == Counter()
        assert those.most_together <= limit
        assert all(most == 1 for most in those.most_at_once.values())


# --- idle places --------------------------------------------------------------------------------------------


async def test_an_idle_group_keeps_its_place_and_is_woken_by_work() -> None:
    wakes: list[Wake] = []

    async def idle(place: Place) -> None:
        while True:
            wakes.append(await place.idle(FOREVER))

    async with groups(1) as those:
        those.then["a"] = idle
        those.let("a")
        those.queue.wake("a")
        await until_all_wait()
        assert (wakes, those.queue.running) == ([], ["a"])
        for expected in (1, 2):
            those.queue.wake("a")
            await until_all_wait()
            assert wakes == [Wake.WORK] * expected
        assert those.started == ["a"]


async def test_work_that_came_before_the_idling_ends_it_at_once() -> None:
    wakes: list[Wake] = []

    async def idle(place: Place) -> None:
        those.queue.wake("a")
        wakes.append(await place.idle(FOREVER))

    async with groups(1) as those:
        those.then["a"] = idle
        those.let("a")
        those.queue.wake("a")
        await until_all_wait()
        assert wakes == [Wake.WORK]
        assert those.started == ["a"], "what woke it was taken, so it is not run again for it"


async def test_an_idle_group_leaves_after_its_time() -> None:
    wakes: list[Wake] = []

    async def idle(place: Place) -> None:
        wakes.append(await place.idle(0.01))

    async with groups(1) as those:
        those.then["a"] = idle
        those.let("a")
        those.queue.wake("a")
        await those.until(lambda: wakes == [Wake.LEAVE] and not those.at_once.total())


async def test_a_group_that_comes_gets_the_place_of_an_idle_one_at_once() -> None:
    async with groups(1) as those:
        those.then["a"] = lambda place: place.idle(FOREVER)
        those.let("a")
        those.queue.wake("a")
        await until_all_wait()
        those.queue.wake("b")
        await until_all_wait()
        assert those.started == ["a", "b"]
        assert those.queue.running == ["b"]


async def test_a_group_that_begins_to_idle_while_another_waits_leaves_at_once() -> None:
    async with groups(1) as those:
        those.then["a"] = lambda place: place.idle(FOREVER)
        for jid in "ab":
            those.queue.wake(jid)
        await until_all_wait()
        assert those.started == ["a"]
        those.let("a")
        await until_all_wait()
        assert those.started == ["a", "b"]


async def test_the_group_that_is_idle_longest_leaves_and_only_as_many_as_are_needed() -> None:
    async with groups(3) as those:
        for jid in "abc":
            those.then[jid] = lambda place: place.idle(FOREVER)
            those.queue.wake(jid)
        for jid in "bca":  # the order in which they begin to idle
            those.let(jid)
            await until_all_wait()
        those.queue.wake("d")
        await until_all_wait()
        assert sorted(those.queue.running) == ["a", "c", "d"]
        those.queue.wake("e")
        await until_all_wait()
        assert sorted(those.queue.running) == ["a", "d", "e"]


async def test_a_group_that_works_is_not_asked_to_leave() -> None:
    wakes: list[Wake] = []

    async def idle_twice(place: Place) -> None:
        wakes.append(await place.idle(FOREVER))
        await busy.wait()
        wakes.append(await place.idle(FOREVER))

    busy = asyncio.Event()
    async with groups(1) as those:
        those.then["a"] = idle_twice
        those.let("a")
        those.queue.wake("a")
        await until_all_wait()
        those.queue.wake("a")
        await until_all_wait()
        those.queue.wake("b")
        await until_all_wait()
        assert (wakes, those.started) == ([Wake.WORK], ["a"])
        busy.set()
        await until_all_wait()
        assert (wakes, those.started) == ([Wake.WORK, Wake.LEAVE], ["a", "b"])


async def test_one_that_is_idle_leaves_even_if_another_was_idle_for_longer_before_it_got_work() -> None:
    async def idle_then_work(place: Place) -> None:
        assert await place.idle(FOREVER) is Wake.WORK
        await asyncio.Event().wait()

    async with groups(2) as those:
        those.then = {"a": idle_then_work, "b": lambda place: place.idle(FOREVER)}
        for jid in "ab":
            those.queue.wake(jid)
            those.let(jid)
            await until_all_wait()
        those.queue.wake("a")
        await until_all_wait()
        those.queue.wake("c")
        await until_all_wait()
        assert sorted(those.queue.running) == ["a", "c"]


async def test_while_one_is_leaving_no_other_is_asked_for_the_same_place() -> None:
    gone = asyncio.Event()

    async def leave_slowly(place: Place) -> None:
        assert await place.idle(FOREVER) is Wake.LEAVE
        await gone.wait()

    async with groups(2) as those:
        those.then = {"a": leave_slowly, "b": lambda place: place.idle(FOREVER)}
        for jid in "ab":
            those.queue.wake(jid)
        those.let("a")
        await until_all_wait()
        those.queue.wake("c")
        await until_all_wait()
        those.let("b")  # begins to idle while the place of `a` is on its way to `c`
        await until_all_wait()
        assert sorted(those.queue.running) == ["a", "b"]
        gone.set()
        await until_all_wait()
        assert sorted(those.queue.running) == ["b", "c"]


async def test_a_group_that_is_woken_while_it_leaves_runs_again() -> None:
    leaving, gone = asyncio.Event(), asyncio.Event()

    async def leave_slowly(place: Place) -> None:
        if those.started.count("a") == 1:
            assert await place.idle(FOREVER) is Wake.LEAVE
            leaving.set()
            await gone.wait()

    async with groups(1) as those:
        those.then["a"] = leave_slowly
        those.let("a", 2)
        those.let("b")
        those.queue.wake("a")
        await until_all_wait()
        those.queue.wake("b")
        await leaving.wait()
        those.queue.wake("a")
        gone.set()
        await until_all_wait()
        assert those.started == ["a", "b", "a"]


async def test_a_group_with_work_lets_one_that_waits_go_first() -> None:
    wakes: list[Wake] = []

    async def idle(place: Place) -> None:
        wakes.append(await place.idle(FOREVER))

    async with groups(1) as those:
        those.then["a"] = idle
        those.queue.wake("a")
        await until_all_wait()
        those.queue.wake("b")
        those.queue.wake("a")  # both, before it idles
        those.let("a")
        those.let("b")
        await until_all_wait()
        assert wakes == [Wake.LEAVE]
        assert those.started == ["a", "b", "a"]


# --- the end ------------------------------------------------------------------------------------------------


async def test_close_ends_whoever_runs_idles_or_waits_and_nothing_starts_after() -> None:
    ended: list[str] = []

    async def work(place: Place) -> None:
        try:
            await (place.idle(FOREVER) if place.jid == "idle" else asyncio.Event().wait())
        finally:
            await asyncio.sleep(0)  # it may still have something to do
            ended.append(place.jid)

    async with groups(2) as those:
        for jid in ("idle", "busy", "waiting"):
            those.then[jid] = work
            those.let(jid)
        those.queue.wake("busy")
        those.queue.wake("idle")
        await until_all_wait()
        those.then["busy"] = work
        async with asyncio.timeout(30):
            await those.queue.close()
        assert sorted(ended) == ["busy", "idle"]
        those.queue.wake("waiting")
        those.queue.wake("idle")
        await until_all_wait()
        assert sorted(those.started) == ["busy", "idle"]
        assert (those.queue.running, those.queue.waiting) == ([], [])


async def test_close_forgets_the_groups_that_wait() -> None:
    async with groups(1) as those:
        for jid in "abc":
            those.queue.wake(jid)
        await until_all_wait()
        await those.queue.close()
        assert (those.started, those.queue.running, those.queue.waiting) == (["a"], [], [])


async def test_close_before_anything_has_begun_leaves_nothing_behind() -> None:
    async with groups(1) as those:
        those.queue.wake("a")
        await those.queue.close()
        await until_all_wait()
        assert (those.started, those.queue.running) == ([], [])
