"""A channel that does everything right passes, and one that does not fails the very test that asks for it."""

from __future__ import annotations

import html
import os
import re
import unicodedata
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import couriers
import pytest
from couriers import Courier, Office
from suites import outcomes_in

from pynchy.plugin import PluginContext
from pynchy.testing import ChannelConformance, FarSide

# Whichever comes first waits for all that are found wanting.
pytestmark = pytest.mark.timeout(400)


class TestCourier(ChannelConformance):
    """Everything right."""

    @asynccontextmanager
    async def far_side(self, folder: Path) -> AsyncIterator[FarSide]:
        """An office of its own."""
        yield Office(Courier)


_ARRIVES = "test_a_text_of_any_script_arrives_as_it_was_written"
_IS_READ = "test_a_text_of_any_script_is_read_as_it_was_sent"
_SPACES = "test_line_breaks_and_spaces_inside_a_text_arrive_and_those_around_it_may_be_cut"
_SAYS = "test_a_message_says_its_chat_its_sender_and_its_time_in_utc"
_AGAIN = "test_a_message_that_was_not_stored_comes_again"
_BEING_STORED = "test_a_message_that_was_being_stored_at_a_disconnect_is_stored_once"
_BEFORE = "test_what_was_written_before_the_channel_connected_arrives"
_THOUSAND = "test_a_thousand_messages_at_once_arrive_once_each_and_in_order"
_SLOW = "test_a_slow_store_loses_nothing_and_changes_no_order"
_LONG = "test_a_text_of_100_kilobytes_is_read_whole_and_in_order"
_IN_TIME = "test_disconnect_returns_in_time_and_leaves_no_task"
_NOTHING_LEFT = "test_no_thread_process_or_open_file_is_left"
_OWNS = "test_it_owns_its_own_addresses_and_no_others"
_NOT_SENT = "test_a_text_cannot_be_sent_before_connect_and_after_disconnect"

#: What is wrong with a channel; the channel; the tests that must say so, each with some of the words.
FAULTS: dict[str, tuple[Any, dict[str, str]]] = {
    "acknowledges before it stores": (
        couriers.Hasty,
        {
            _AGAIN: "and acknowledge it only after",
            f"{_BEING_STORED}[not stored]": "and acknowledge it only after",
        },
    ),
    "acknowledges what was not stored": (couriers.Careless, {_AGAIN: "and acknowledge it only after"}),
    "keeps in memory what it has acknowledged": (
        couriers.Hoarder,
        {f"{_BEING_STORED}[not stored]": "and acknowledge it only after"},
    ),
    "hands over everything at once": (couriers.Hurried, {_SLOW: "was stored before 'message 1'"}),
    "lets others overtake": (couriers.Flighty, {_AGAIN: "was stored before 'message 1'"}),
    "begins with the latest": (couriers.Latest, {_BEFORE: "was stored before 'message 1'"}),
    "forgets what came before": (couriers.Forgetful, {_BEFORE: "was not even handed over"}),
    "calls from another loop": (couriers.Foreign, {_THOUSAND: "another event loop"}),
    "changes ids": (
        couriers.Fancier,
        {_AGAIN: "came with the id", f"{_BEING_STORED}[stored]": "was stored 2 times"},
    ),
    "hands over twice": (couriers.Repeating, {_THOUSAND: "was stored 2 times"}),
    "has one id for all": (couriers.writing(id=lambda message: "1"), {_THOUSAND: "give each an id of its own"}),
    "has no id": (
        couriers.writing(id=lambda message: ""),
        {_SAYS: "Pynchy has refused what it was given: a message needs an id"},
    ),
    "has another's chat": (
        couriers.writing(chat_jid=lambda message: "loft:1"),
        {_SAYS: "does not belong to the channel"},
    ),
    "confuses its chats": (
        couriers.writing(chat_jid=lambda message: "courier:bob"),
        {_SAYS: "was written in 'courier:ada'"},
    ),
    "has no sender": (couriers.writing(sender=lambda message: ""), {_SAYS: "empty sender"}),
    "has a naive time": (
        couriers.writing(timestamp=lambda message: datetime.now()),
        {_SAYS: "must be a datetime with a time zone"},
    ),
    "has a local time": (
        couriers.writing(timestamp=lambda message: message.timestamp.astimezone(timezone(timedelta(hours=2)))),
        {_SAYS: "is not in UTC"},
    ),
    "cuts what arrives": (
        couriers.writing(content=lambda message: message.content[:2000]),
        {"test_a_text_of_4000_characters_arrives_whole": "what was stored differ"},
    ),
    "squeezes what arrives": (
        couriers.writing(content=lambda message: " ".join(message.content.split())),
        {
            f"{_SPACES}[inside]": "what was stored differ",
            f"{_SPACES}[around]": "what was stored differ",
        },
    ),
    "normalises what arrives": (
        couriers.writing(content=lambda message: unicodedata.normalize("NFC", message.content)),
        {f"{_ARRIVES}[combining]": "what was stored differ"},
    ),
    "drops what it does not know": (
        couriers.writing(content=lambda message: message.content.encode("cp1252", "ignore").decode("cp1252")),
        {f"{_ARRIVES}[{name}]": "what was stored differ" for name in ("emoji", "right to left", "astral", "east")},
    ),
    "escapes what arrives": (
        couriers.writing(content=lambda message: html.escape(message.content)),
        {f"{_ARRIVES}[markup]": "what was stored differ"},
    ),
    "cuts what is sent": (couriers.reading(lambda text: text[:900]), {f"{_LONG}[letters]": "differ from character"}),
    "counts in bytes": (
        couriers.reading(lambda text: text.encode()[:1000].decode("utf-8", "ignore")),
        {f"{_LONG}[emoji]": "differ from character"},
    ),
    "escapes what is sent": (couriers.reading(html.escape), {f"{_IS_READ}[markup]": "'&lt;"}),
    "drops what it cannot show": (
        couriers.reading(lambda text: "".join(one for one in text if ord(one) < 0x10000 and one != "\u200d")),
        {f"{_IS_READ}[{name}]": "differ from character" for name in ("emoji", "astral")},
    ),
    "normalises what is sent": (
        couriers.reading(lambda text: unicodedata.normalize("NFC", text)),
        {f"{_IS_READ}[combining]": "differ from character"},
    ),
    "swaps texts": (
        couriers.Swapping,
        {"test_texts_are_read_in_the_order_in_which_they_were_sent": "differ", f"{_LONG}[letters]": "differ"},
    ),
    "sends twice": (
        couriers.Echoing,
        {"test_texts_are_read_in_the_order_in_which_they_were_sent": "send every character once"},
    ),
    "refuses what it has asked for": (
        couriers.Strict,
        {f"{_LONG}[letters]": "send_message() raised ValueError: too long"},
    ),
    "says nothing of what was not sent": (
        couriers.Silent,
        {_NOT_SENT: "raise NotConnected", "test_a_text_that_nobody_can_take_raises": "raise NotConnected"},
    ),
    "sends without a connection": (couriers.Telepathic, {_NOT_SENT: "before connect() has returned"}),
    "raises something else": (couriers.Puzzling, {_NOT_SENT: "before connect() raised AssertionError("}),
    "says always that it is connected": (
        couriers.Optimist,
        {"test_it_says_whether_it_is_connected": "before connect() is_connected() says True"},
    ),
    "says never that it is connected": (
        couriers.Pessimist,
        {"test_it_says_whether_it_is_connected": "instead of True"},
    ),
    "connects once": (couriers.Single, {"test_it_connects_again_after_a_disconnect": "RuntimeError('used up')"}),
    "listens once": (couriers.Lazy, {"test_it_connects_again_after_a_disconnect": "was not even handed over"}),
    "blocks": (couriers.Sleepy, {"test_the_event_loop_is_not_held_up": "held up for", _THOUSAND: "held up for"}),
    "does not leave": (couriers.Clinging, {f"{_IN_TIME}[idle]": "did not return within 5 s"}),
    "does not leave when told to": (couriers.Stubborn, {f"{_IN_TIME}[idle]": "did not return within 5 s"}),
    "waits for the store": (couriers.Patient, {f"{_IN_TIME}[storing]": "did not return within 5 s"}),
    "leaves what it does not have": (
        couriers.Presuming,
        {
            f"{_IN_TIME}[never connected]": "disconnect() raised AssertionError(",
            f"{_IN_TIME}[disconnected]": "disconnect() raised AssertionError(",
        },
    ),
    "leaves with an error": (couriers.Cancelled, {f"{_IN_TIME}[idle]": "disconnect() raised CancelledError()"}),
    "leaves a task": (couriers.Untidy, {f"{_IN_TIME}[idle]": "tasks still run: sleep"}),
    "leaves a task where it is stopped": (
        couriers.Uncertain,
        {
            f"{_IN_TIME}[connecting]": "tasks still run: sleep",
            "test_disconnect_cleans_up_after_a_connect_that_failed": "tasks still run: sleep",
        },
    ),
    "connects to nobody": (
        couriers.Denying,
        {"test_disconnect_cleans_up_after_a_connect_that_failed": "nobody is there, and is_connected() says True"},
    ),
    "leaves a thread": (couriers.Threaded, {f"{_NOTHING_LEFT}[idle]": "the thread 'courier-1'"}),
    "leaves a process": (couriers.Parental, {f"{_NOTHING_LEFT}[idle]": "(sleep)"}),
    "leaves a file": (couriers.Open, {f"{_NOTHING_LEFT}[idle]": "plugins/courier/notes"}),
    "leaves a socket": (couriers.Unclosed, {f"{_NOTHING_LEFT}[idle]": "unclosed <socket"}),
    "owns everything": (couriers.owning(lambda jid: True), {_OWNS: "is not False"}),
    "owns nothing": (couriers.owning(lambda jid: False), {_OWNS: "is not True"}),
    "wants a number": (
        couriers.owning(lambda jid: jid == "courier:ada" or (jid.startswith("courier:") and int(jid[8:]) > 0)),
        {_OWNS: "raised ValueError"},
    ),
    "matches addresses": (
        couriers.owning(lambda jid: True if jid == "courier:ada" else re.match("courier:", jid) or False),
        {_OWNS: "neither True nor False"},
    ),
    "has a limit in words": (couriers.longest("4096"), {"test_its_longest_message_is_a_number": "give a number"}),
    "has no room": (couriers.longest(0), {"test_its_longest_message_is_a_number": "leave it out"}),
    "raises": (
        couriers.Raising,
        {
            "test_typing_can_be_shown": "set_typing() raised NotImplementedError",
            "test_a_file_can_be_sent": "send_file() raised NotImplementedError",
            "test_what_chats_are_called_can_be_asked_for": "both strings",
        },
    ),
    "edits nothing": (couriers.Unchanging, {"test_what_was_sent_can_be_edited": "after the edit a reader sees"}),
    "does not know what it has sent": (couriers.Unknown, {"test_what_was_sent_can_be_edited": "must return the id"}),
    "cannot be created": (couriers.Uncreated, {_SAYS: "KeyError: 'COURIER_TOKEN'"}),
}


class Bad(ChannelConformance):
    """What the nested pytest collects: each class one of the faults."""

    patience = 1.0
    make: ClassVar[Any]

    @asynccontextmanager
    async def far_side(self, folder: Path) -> AsyncIterator[FarSide]:
        """An office of its own."""
        yield Office(self.make)


for _number, (_make, _) in enumerate(FAULTS.values()):
    globals()[f"Bad{_number}"] = type(f"Bad{_number}", (Bad,), {"make": staticmethod(_make), "__module__": __name__})


class BadThreaded(Bad):
    """A courier whose author knows that a thread of its library stays."""

    patience = ChannelConformance.patience
    make = couriers.Threaded
    may_stay = frozenset({"courier-*"})


class BadBare(Bad):
    """A courier without the optional members, at an office that cannot vanish."""

    patience = ChannelConformance.patience
    make = couriers.Bare

    @asynccontextmanager
    async def far_side(self, folder: Path) -> AsyncIterator[FarSide]:
        """An office that is always open."""
        office = Office(self.make)
        office.vanish = None  # type: ignore[assignment]
        yield office


class BadUnfinished(ChannelConformance):
    """One that has forgotten its far side."""


#: What a channel or its far side lacks, and the test that is skipped for it.
LACKING = {
    "test_its_longest_message_is_a_number": "the channel has no `max_message_length`",
    "test_typing_can_be_shown": "the channel has no `set_typing`",
    "test_a_file_can_be_sent": "the channel has no `send_file`",
    "test_what_chats_are_called_can_be_asked_for": "the channel has no `sync_metadata`",
    "test_what_was_sent_can_be_edited": "the channel has no `edit_message`",
    "test_a_text_that_nobody_can_take_raises": "the far side has no `vanish`",
    f"{_IN_TIME}[abandoned]": "the far side has no `vanish`",
}


@cache
def outcomes() -> dict[str, tuple[str, str]]:
    """How each test of a `Bad...` ends that is asked for here, and with which words: in one pytest of their own."""
    tests = [f"Bad{number}::{test}" for number, (_, tests) in enumerate(FAULTS.values()) for test in tests]
    tests += [f"BadBare::{test}" for test in (*LACKING, f"{_LONG}[letters]", f"{_IS_READ}[markup]")]
    tests += [f"BadThreaded::{_NOTHING_LEFT}[idle]", f"BadUnfinished::{_THOUSAND}"]
    # Most of them wait most of the time.
    return outcomes_in(__file__, tests, "-n", "4")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_the_tests_that_ask_for_it(fault: str) -> None:
    for test, expected in FAULTS[fault][1].items():
        outcome, words = outcomes()[f"Bad{list(FAULTS).index(fault)}::{test}"]
        assert outcome == "failure", f"{test} {outcome} {words}"
        # The suite's own words, not those of an error on the way.
        assert words.startswith(("AssertionError: ", "Failed: ")), f"{test}: {words}"
        assert expected in words, f"{test}: {words}"


def test_every_test_of_the_suite_finds_a_fault() -> None:
    tests = {test.partition("[")[0] for _, tests in FAULTS.values() for test in tests}
    assert tests == {name for name in dir(ChannelConformance) if name.startswith("test_")}


def test_what_a_channel_or_its_far_side_lacks_is_skipped_with_the_reason() -> None:
    ended = {name: result for name, result in outcomes().items() if name.startswith("BadBare::")}
    passed = [name for name, result in ended.items() if result == ("passed", "")]
    assert passed == [f"BadBare::{_LONG}[letters]", f"BadBare::{_IS_READ}[markup]"]
    for test, reason in LACKING.items():
        assert ended[f"BadBare::{test}"] == ("skipped", reason)


def test_a_thread_that_may_stay_stays() -> None:
    assert outcomes()[f"BadThreaded::{_NOTHING_LEFT}[idle]"] == ("passed", "")


def test_a_class_without_a_far_side_is_told_to_define_it() -> None:
    assert "define far_side in the class that inherits" in outcomes()[f"BadUnfinished::{_THOUSAND}"][1]


def test_pytest_does_not_collect_the_suite_itself(pytestconfig: pytest.Config) -> None:
    assert not any(ChannelConformance.__name__.startswith(one) for one in pytestconfig.getini("python_classes"))


def test_the_settings_of_whoever_runs_the_suite_reach_no_channel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYNCHY_COURIER_TOKEN", "a real one")
    seen: list[tuple[Mapping[str, str], Path]] = []

    class Suite(ChannelConformance):
        @asynccontextmanager
        async def far_side(self, folder: Path) -> AsyncIterator[FarSide]:
            def make(ctx: PluginContext, office: Office) -> Courier:
                seen.append((ctx.config, ctx.data_dir))
                return Courier(ctx, office)

            office = Office(make)
            office.environment = {"PYNCHY_COURIER_ADDRESS": "loopback"}
            yield office

    Suite().test_it_says_whether_it_is_connected(tmp_path)
    assert seen == [({"address": "loopback"}, tmp_path / "plugins/courier")]
    assert "PYNCHY_COURIER_ADDRESS" not in os.environ
    assert os.environ["PYNCHY_COURIER_TOKEN"] == "a real one"
