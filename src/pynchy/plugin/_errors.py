"""What plugins raise: caught here, and put in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_Answer = TypeVar("_Answer")


class InvalidPlugin(Exception):
    """What a plugin offers cannot be used. `remedy` says what its author should change."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


def in_words(error: BaseException) -> str:
    """The error's type and text, on one line; an error that cannot even be printed by its type alone."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    return type(error).__name__ + (f": {text[:300]}" if text else "")


class PluginRaised(Exception):
    """A call into a plugin raised; the message says what, on one line."""


def ask(call: Callable[[], _Answer]) -> _Answer:
    """Call into a plugin. Whatever it raises, `SystemExit` and worse included, becomes PluginRaised.

    InvalidPlugin, which says what its author should change, and KeyboardInterrupt pass.
    """
    try:
        return call()
    except (KeyboardInterrupt, InvalidPlugin):
        raise
    except BaseException as error:
        raise PluginRaised(in_words(error)) from error
