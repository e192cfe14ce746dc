"""What plugins raise: caught here, and put in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pynchy.types import NotConnected, Refused

_Answer = TypeVar("_Answer")


class InvalidPlugin(Exception):
    """What a plugin offers cannot be used. `remedy` says what its author should change."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


def sentence(text: object, longest: int = 300) -> str:
    """What may stand in a record: one line that can be printed and stored, and not too long; empty for what cannot."""
    try:
        words = " ".join(str(text).split())
    except KeyboardInterrupt:
        raise
    except BaseException:
        return ""
    words = words.encode("utf-8", "replace").decode()
    return words if len(words) <= longest else f"{words[:longest]} ..."


def in_words(error: BaseException) -> str:
    """The error's type and text, on one line; an error that cannot even be printed by its type alone.

    What is meant for people has no use for its type.
    """
    if isinstance(error, InvalidPlugin | NotConnected | Refused) and (text := sentence(error, 480)):
        return text
    text = sentence(error)
    return type(error).__name__ + (f": {text}" if text else "")


class PluginRaised(Exception):
    """A call into a plugin raised; the message says what, on one line."""


def ask(call: Callable[[], _Answer]) -> _Answer:
    """Call into a plugin. Whatever comes of it but an answer, `SystemExit` and worse included, is PluginRaised.

    KeyboardInterrupt passes.
    """
    try:
        return call()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginRaised(in_words(error)) from error
