"""The named points on a message's way, at which tests kill and stop things. In production they do nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

Point = Literal[
    "received",  # a channel has handed it over; it is not stored yet
    "committed",  # it is stored
    "claimed",  # it belongs to a run
    "spawned",  # the process of the run's container has been started
    "accepted",  # the agent has it
    "result",  # the answer has arrived; it is not stored yet
    "recorded",  # the answer is stored and the message done
    "sent",  # the channel has taken the answer; that is not stored yet
    "delivered",  # that is stored too
]
POINTS: tuple[Point, ...] = get_args(Point)

#: What a test wants to happen when a point is reached.
observer: Callable[[Point], None] | None = None


def reached(point: Point) -> None:
    """Say that a message has got this far."""
    if observer:
        observer(point)
