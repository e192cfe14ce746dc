"""What is done about a run that gave no answer, and what people are told."""

from __future__ import annotations

import pytest

from pynchy.failures import Failure, Verdict
from pynchy.model_gateway import ModelFailure
from pynchy.types import INTERRUPTED


def failure(
    status: int | None = None,
    reason: str = "API Error: something. If it persists, check your inference gateway (http://127.0.0.1:4).",
    *,
    seen: bool = True,
    reported: bool = True,
    resumed: bool = False,
    attempts: int = 0,
) -> Failure:
    """A failure of which the host has `seen` a status, or a connection without one."""
    model = ModelFailure(status, "the model's API cannot be reached: refused") if seen else None
    return Failure(reason, model, reported, resumed, attempts)


def held_back() -> Failure:
    """A failure of which the host itself is the reason."""
    model = ModelFailure(402, "this chat may spend nothing", held_back=True)
    return Failure("API Error: 402 this chat may spend nothing", model, reported=True, resumed=True, attempts=0)


@pytest.mark.parametrize("status", [None, 408, 409, 429, 500, 502, 503, 504, 529])
@pytest.mark.parametrize("resumed", [True, False])
def test_what_may_be_better_in_a_moment_is_tried_again(status: int | None, resumed: bool) -> None:
    assert failure(status, resumed=resumed).verdict is Verdict.RETRY


@pytest.mark.parametrize("status", [402, 403, 404])
def test_what_will_not_be_better_is_not_tried_again(status: int) -> None:
    assert failure(status).verdict is Verdict.GIVE_UP
    assert failure(status, resumed=True).verdict is Verdict.GIVE_UP


def test_a_request_that_the_host_holds_back_is_not_made_again() -> None:
    assert held_back().verdict is Verdict.GIVE_UP


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_is_made_once_more_without_the_old_conversation(status: int) -> None:
    assert failure(status, resumed=True).verdict is Verdict.AFRESH
    assert failure(status, resumed=False).verdict is Verdict.GIVE_UP


def test_a_lost_conversation_is_begun_anew_and_one_that_was_new_is_tried_again() -> None:
    lost = "No conversation found with session ID: 1234"
    assert failure(reason=lost, seen=False, resumed=True).verdict is Verdict.AFRESH
    assert failure(reason=lost, seen=False, resumed=False).verdict is Verdict.RETRY


def test_an_agent_that_fails_twice_in_the_same_conversation_gets_a_new_one() -> None:
    died = "it reported: ProcessError: exit code 1"
    assert failure(reason=died, seen=False, resumed=True).verdict is Verdict.RETRY
    assert failure(reason=died, seen=False, resumed=True, attempts=1).verdict is Verdict.AFRESH


def test_a_container_that_never_starts_costs_nobody_a_conversation() -> None:
    never = failure(reason="its container could not be started", seen=False, reported=False, resumed=True, attempts=2)
    assert never.verdict is Verdict.RETRY


def test_what_the_agent_says_of_its_credential_is_not_believed_and_what_the_host_saw_is() -> None:
    words = "Invalid API key (HTTP 401)"
    assert failure(401).verdict is Verdict.CREDENTIAL
    assert failure(reason=words, seen=False).verdict is Verdict.RETRY


def test_what_was_interrupted_is_not_begun_again() -> None:
    assert failure(reason=INTERRUPTED, seen=False).verdict is Verdict.GIVE_UP


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (failure(429), "the model's API says that it is asked too often (HTTP 429)"),
        (failure(529), "the model's API is overloaded (HTTP 529)"),
        (failure(503), "the model's API has trouble of its own (HTTP 503)"),
        (failure(None), "the model's API cannot be reached: refused"),
        (held_back(), "this chat may spend nothing"),
        (failure(403, "You may not use this model. (HTTP 403)"), "You may not use this model. (HTTP 403)"),
        (failure(seen=False), "API Error: something"),
        (failure(400), "API Error: something"),
    ],
)
def test_reasons_are_plain_words_without_the_addresses_inside_the_container(given: Failure, plain: str) -> None:
    assert given.plain == plain
