"""What to do about a run that gave no answer, and how to say it in plain words.

Judged is what the host saw itself. The agent's own words are believed only where they concern its own
conversation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from pynchy.model_gateway import ModelFailure
from pynchy.types import INTERRUPTED

#: What the SDK says when a conversation cannot be resumed.
_LOST_SESSION = ("no conversation found", "session id")
#: The request itself is what the API does not take: with a long conversation, often something in that.
_REFUSED_REQUEST = frozenset({400, 413, 422})
#: It will not be otherwise in a minute: no right to this, no money, no such model.
_HOPELESS = frozenset({402, 403, 404})
_CREDENTIAL = 401
_LONGEST_PAUSE = 300.0  # seconds, between two attempts

#: The SDK knows the model's API as an address inside the container.
_GATEWAY_HINT = re.compile(r"If it persists, check your inference gateway \([^)]*\)\.?")

_STATUS_WORDS = {
    408: "the model's API took too long",
    429: "the model's API says that it is asked too often",
    529: "the model's API is overloaded",
}


class Verdict(Enum):
    """What to do with the messages of a run that failed before any tool ran."""

    RETRY = "retry"  # the same again, after a pause
    AFRESH = "afresh"  # once more, in a new conversation
    CREDENTIAL = "credential"  # nothing can be answered until the credential works
    GIVE_UP = "give up"  # it would fail again


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that gave no answer.

    `model` is the last thing the host saw of the model's API, None where that had answered; `reported` says
    that the agent could still tell the reason; `resumed`, that it continued an earlier conversation;
    `attempts`, how many there were before this one; `hopeless`, that it would fail in the same way again.
    """

    reason: str
    model: ModelFailure | None
    reported: bool
    resumed: bool
    attempts: int
    hopeless: bool = False

    @property
    def verdict(self) -> Verdict:
        """What to do about it."""
        status = self.model.status if self.model else None
        if status == _CREDENTIAL:
            return Verdict.CREDENTIAL
        if self.hopeless or self.reason == INTERRUPTED or status in _HOPELESS:
            return Verdict.GIVE_UP
        lost = any(words in self.reason.lower() for words in _LOST_SESSION)
        # An agent that starts and then fails twice in the same conversation may fail because of it.
        failed_again = self.reported and self.model is None and self.attempts > 0
        if self.resumed and (lost or status in _REFUSED_REQUEST or failed_again):
            return Verdict.AFRESH
        return Verdict.GIVE_UP if status in _REFUSED_REQUEST else Verdict.RETRY

    def pause(self, first: float) -> float:
        """Seconds until the next attempt: `first`, four times as long each time, or what the API asks for."""
        asked_for = (self.model and self.model.retry_after) or 0
        return min(max(first * 4**self.attempts, asked_for), _LONGEST_PAUSE)

    @property
    def plain(self) -> str:
        """The reason as people may read it."""
        if self.model:
            status = self.model.status
            if status is None or self.model.held_back:
                return self.model.reason
            if words := _STATUS_WORDS.get(status):
                return f"{words} (HTTP {status})"
            if status >= 500:
                return f"the model's API has trouble of its own (HTTP {status})"
        return _GATEWAY_HINT.sub("", self.reason).rstrip(" .")
