"""Sentences of everyday English, and how well they were heard."""

from __future__ import annotations

from collections.abc import Mapping

SENTENCES = (
    "please call me when you get home tonight",
    "the meeting has been moved to thursday morning at nine",
    "can you buy some milk and bread on the way back",
    "i will be about ten minutes late because of the traffic",
    "remember to water the plants in the living room",
    "what is the weather going to be like tomorrow",
    "my flight leaves at half past six in the evening",
    "send the report to the office before friday",
)


def word_error_rate(heard: Mapping[str, str]) -> float:
    """How many words must be added, left out or changed to come from what was said to what was heard, to all said."""
    wrong = sum(_errors(said, text) for said, text in heard.items())
    return wrong / sum(len(said.split()) for said in heard)


def _errors(said: str, heard: str) -> int:
    """How many words must be added, left out or changed to come from one text to the other."""
    row = list(range(len(heard.split()) + 1))
    for before, word in enumerate(said.split()):
        diagonal, row[0] = row[0], before + 1
        for at, other in enumerate(heard.split(), 1):
            diagonal, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, diagonal + (word != other))
    return row[-1]
