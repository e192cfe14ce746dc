"""How a test of a suite ends: with words for the author of what it tests."""

from __future__ import annotations

from typing import NoReturn

import pytest


def fail(words: str) -> NoReturn:
    """End the test with words for the author, who has no use for our traceback."""
    pytest.fail(words, pytrace=False)


def innermost(error: BaseException) -> BaseException:
    """What a task group has wrapped, pytest's own outcomes included."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
