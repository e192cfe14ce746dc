"""Who runs when: a limit, turns that nobody waits longer for than others, places that are given up when needed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pynchy import group_queue
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
        self.wakes: list[Wake] = []
        self.then: dict[str, Callable[[Place], object]] = {}
        self._may: dict[str, asyncio.Semaphore] = {}
        self._changed = asyncio.Condition()

    def let(self, jid: str, times: int = 1) -> None:
        """Let this group's work go on."""
        for _ in range(times):
            self._may.setdefault(jid, asyncio.Semaphore(0)).release()

    async def begin(self, jids: str, then: Callable[[Place], object] | None = None) -> None:
        """Wake these groups and let them go on, to do `then` if it is given."""
        for jid in jids:
            if then:
                self.then[jid] = then
            self.let(jid)
            self.queue.wake(jid)
        await until_all_wait()

    async def idle(self, place: Place) -> None:
        """Work that only idles, once."""
        self.wakes.append(await place.idle(FOREVER))

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
        those.let("b")
        await those.begin("a", lambda _: those.queue.wake("b"))
        assert those.started == ["a", "b"]


@given(st.integers(1, 4), st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=40))
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


# --- again, later -------------------------------------------------------------------------------------------


def fail(place: Place) -> None:
    raise RuntimeError("as you wished")


def later(seconds: float) -> Callable[[Place], None]:
    """Work that wants to be tried again in so many seconds."""

    def then(place: Place) -> None:
        place.again_in = seconds

    return then


async def test_work_that_raises_gives_its_place_to_the_next_and_is_tried_again_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group_queue, "_AFTER_AN_ERROR", 0.01)
    async with groups(1) as those:
        those.then["a"] = fail
        await those.begin("ab")
        await those.until(lambda: those.started == ["a", "b", "a"])
        those.let("a")
        await those.until(lambda: those.started == ["a", "b", "a", "a"])  # for as long as it takes


async def test_work_that_was_cancelled_by_itself_is_tried_again_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_queue, "_AFTER_AN_ERROR", 0.01)
    started: list[str] = []
    again = asyncio.Event()

    async def work(place: Place) -> None:
        started.append(place.jid)
        if len(started) == 1:
            raise asyncio.CancelledError
        again.set()

    queue = GroupQueue(1, work)
    queue.wake("a")
    await again.wait()
    await queue.close()
    assert started == ["a", "a"]


async def test_an_error_does_not_shorten_a_pause_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_queue, "_AFTER_AN_ERROR", 0)
    started: list[str] = []

    async def work(place: Place) -> None:
        started.append(place.jid)
        place.again_in = FOREVER
        raise RuntimeError

    queue = GroupQueue(1, work)
    queue.wake("a")
    await asyncio.sleep(0.05)
    await queue.close()
    assert started == ["a"]


async def test_a_group_that_wants_to_run_later_runs_after_that_time_and_once() -> None:
    clock, times = asyncio.get_running_loop().time, list[float]()

    def work(place: Place) -> None:
        times.append(clock())
        if len(times) == 1:
            later(0.05)(place)

    async with groups(1) as those:
        those.let("a", 5)
        await those.begin("a", work)
        await those.until(lambda: len(times) == 2 and not those.at_once.total())
        assert times[1] - times[0] > 0.049  # a timer may be early by the resolution of its clock
        await until_all_wait()
        assert those.started == ["a", "a"]
        await those.begin("a")
        assert those.started == ["a", "a", "a"], "and then it is a group like any other"


@pytest.mark.parametrize("then", [fail, later(FOREVER)], ids=["raises", "later"])
async def test_wakes_start_a_group_no_earlier_than_it_is_to_be_tried_again_and_others_run(
    monkeypatch: pytest.MonkeyPatch, then: Callable[[Place], None]
) -> None:
    monkeypatch.setattr(group_queue, "_AFTER_AN_ERROR", FOREVER)
    async with groups(1) as those:
        those.queue.wake("a")
        await until_all_wait()
        await those.begin("a", then)  # woken while it works,
        await those.begin("abac")  # and while its time has not come
        assert those.started == ["a", "b", "c"]
        assert (those.queue.running, those.queue.waiting) == ([], [])


@pytest.mark.parametrize("seconds", [0, 0.01])
async def test_a_group_whose_time_has_come_stands_behind_those_that_wait(seconds: float) -> None:
    async with groups(1) as those:
        those.then["a"] = later(seconds)
        those.let("a")
        for jid in "abc":
            those.queue.wake(jid)
        async with asyncio.timeout(30):
            while those.queue.waiting[-1:] != ["a"]:
                await asyncio.sleep(0)
        assert (those.queue.running, those.queue.waiting) == (["b"], ["c", "a"])


# --- fairness -----------------------------------------------------------------------------------------------


async def test_a_group_that_always_has_work_leaves_for_one_that_waits_and_stands_behind_it() -> None:
    async def answer_for_ever(place: Place) -> None:
        while True:
            those.queue.wake(place.jid)
            await asyncio.sleep(0)
            if place.yield_turn():
                return

    async with groups(1) as those:
        those.let("a", 2)
        await those.begin("a", answer_for_ever)
        assert those.started == ["a"], "while nobody waits it goes on"
        await those.begin("bc")
        assert those.started == ["a", "b", "c", "a"]


async def test_nobody_is_asked_for_a_place_that_nobody_waits_for() -> None:
    answers: list[bool] = []

    async with groups(2) as those:
        await those.begin("ab", lambda place: answers.extend([place.wanted, place.yield_turn(), place.leaving]))
        assert answers == [False] * 6


async def test_no_more_places_are_given_up_than_groups_wait() -> None:
    places: dict[str, Place] = {}

    async def stay(place: Place) -> None:
        places[place.jid] = place
        await asyncio.Event().wait()

    async with groups(3) as those:
        await those.begin("abc", stay)
        those.queue.wake("d")
        assert [places[jid].wanted for jid in "abc"] == [True] * 3, "to ask promises nothing"
        assert [places[jid].yield_turn() for jid in "abc"] == [True, False, False]
        assert [places[jid].wanted for jid in "abc"] == [True, False, False], "what was promised stays so"
        those.queue.wake("e")
        assert [places[jid].yield_turn() for jid in "abc"] == [True, True, False]


@pytest.mark.parametrize("order", ["iw", "wi"])
async def test_a_place_that_idles_and_one_that_works_are_not_both_given_up_for_one_group(order: str) -> None:
    answers: list[bool] = []

    async def idle(place: Place) -> None:
        await those.idle(place)
        await asyncio.Event().wait()  # to leave takes a while

    async def work(place: Place) -> None:
        answers.append(place.yield_turn())
        await asyncio.Event().wait()

    async with groups(2) as those:
        those.then = {"i": idle, "w": work}
        for jid in "iwc":
            those.queue.wake(jid)
        for jid in order:
            those.let(jid)
            await until_all_wait()
        given_up = those.wakes == [Wake.LEAVE], answers == [True]
        assert given_up == (order == "iw", order == "wi"), "the first that could be"


class Busy:
    """Groups that always have work: each answers for so many steps, and leaves for as many, when others wait."""

    def __init__(self, limit: int, jids: Sequence[str], steps: Sequence[int]) -> None:
        self.queue = GroupQueue(limit, self._work)
        #: Who began a turn, in order.
        self.turns: list[str] = []
        #: Who waited when a group stood in line, and has not begun a turn since.
        self.before: dict[str, set[str]] = {jid: set(jids[:number]) for number, jid in enumerate(jids)}
        self.overtaken: list[tuple[str, set[str]]] = []
        self._steps = dict(zip(jids, steps, strict=True))

    async def run(self, turns: int) -> None:
        """Until so many turns have begun."""
        try:
            for jid in self.before:
                self.queue.wake(jid)
            async with asyncio.timeout(30):
                while len(self.turns) < turns:
                    await asyncio.sleep(0)
        finally:
            await self.queue.close()

    async def _work(self, place: Place) -> None:
        jid = place.jid
        if left_behind := self.before.pop(jid):
            self.overtaken.append((jid, left_behind))
        for before in self.before.values():
            before.discard(jid)
        while True:
            self.turns.append(jid)
            self.queue.wake(jid)
            await self._step(jid)
            if place.yield_turn():
                break
        await self._step(jid)
        self.before[jid] = set(self.queue.waiting)

    async def _step(self, jid: str) -> None:
        for _ in range(self._steps[jid]):
            await asyncio.sleep(0)


async def test_with_ten_times_as_many_busy_groups_as_places_nobody_has_a_second_turn_before_all_had_one() -> None:
    jids = [f"{number}" for number in range(50)]
    busy = Busy(5, jids, [1] * 50)
    await busy.run(turns=500)
    rounds = [busy.turns[at : at + 50] for at in range(0, 500, 50)]
    assert [sorted(turns) for turns in rounds] == [sorted(jids)] * 10
    assert busy.overtaken == []


@given(st.integers(1, 4), st.lists(st.integers(0, 9), min_size=2, max_size=9))
async def test_however_long_each_takes_nobody_is_overtaken_while_it_waits(limit: int, steps: list[int]) -> None:
    jids = [f"{number}" for number in range(len(steps))]
    busy = Busy(limit, jids, [step + 1 for step in steps])
    await busy.run(turns=10 * len(steps))
    assert busy.overtaken == []
    assert set(busy.turns) == set(jids)


# --- idle places --------------------------------------------------------------------------------------------


async def test_an_idle_group_keeps_its_place_and_is_woken_by_work() -> None:
    async def idle(place: Place) -> None:
        while True:
            await those.idle(place)

    async with groups(1) as those:
        await those.begin("a", idle)
        assert (those.wakes, those.queue.running) == ([], ["a"])
        for expected in (1, 2):
            those.queue.wake("a")
            await until_all_wait()
            assert those.wakes == [Wake.WORK] * expected
        assert those.started == ["a"]


async def test_work_that_came_before_the_idling_ends_it_at_once() -> None:
    async def idle(place: Place) -> None:
        those.queue.wake("a")
        await those.idle(place)

    async with groups(1) as those:
        await those.begin("a", idle)
        assert those.wakes == [Wake.WORK]
        assert those.started == ["a"], "what woke it was taken, so it is not run again for it"


async def test_an_idle_group_leaves_after_its_time() -> None:
    async def idle(place: Place) -> None:
        those.wakes.append(await place.idle(0.01))

    async with groups(1) as those:
        await those.begin("a", idle)
        await those.until(lambda: those.wakes == [Wake.LEAVE] and not those.at_once.total())


async def test_a_group_that_comes_gets_the_place_of_an_idle_one_at_once() -> None:
    async with groups(1) as those:
        await those.begin("a", those.idle)
        those.queue.wake("b")
        await until_all_wait()
        assert those.started == ["a", "b"]
        assert those.queue.running == ["b"]


async def test_a_group_that_begins_to_idle_while_another_waits_leaves_at_once() -> None:
    async with groups(1) as those:
        those.then["a"] = those.idle
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
            those.then[jid] = those.idle
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
    async def idle_twice(place: Place) -> None:
        await those.idle(place)
        await busy.wait()
        await those.idle(place)

    busy = asyncio.Event()
    async with groups(1) as those:
        await those.begin("a", idle_twice)
        for jid in "ab":
            those.queue.wake(jid)
            await until_all_wait()
        assert (those.wakes, those.started) == ([Wake.WORK], ["a"])
        busy.set()
        await until_all_wait()
        assert (those.wakes, those.started) == ([Wake.WORK, Wake.LEAVE], ["a", "b"])


async def test_one_that_is_idle_leaves_even_if_another_was_idle_for_longer_before_it_got_work() -> None:
    async def idle_then_work(place: Place) -> None:
        assert await place.idle(FOREVER) is Wake.WORK
        await asyncio.Event().wait()

    async with groups(2) as those:
        await those.begin("a", idle_then_work)
        await those.begin("b", those.idle)
        for jid in "ac":
            those.queue.wake(jid)
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
    async with groups(1) as those:
        those.queue.wake("a")
        await until_all_wait()
        those.then["a"] = those.idle
        await those.begin("ba")  # both are woken before it idles
        assert those.wakes == [Wake.LEAVE]
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


async def test_close_leaves_no_group_to_be_run_later(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, timers = asyncio.get_running_loop(), list[asyncio.TimerHandle]()
    call_later = loop.call_later

    async def end_badly(place: Place) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            place.again_in = FOREVER
            fail(place)

    async with groups(1) as those:
        with monkeypatch.context() as patch:
            patch.setattr(loop, "call_later", lambda *given: timers.append(call_later(*given)) or timers[-1])
            await those.begin("a", later(FOREVER))
            await those.begin("b", end_badly)
            await those.queue.close()
        assert [timer.cancelled() for timer in timers] == [True]
