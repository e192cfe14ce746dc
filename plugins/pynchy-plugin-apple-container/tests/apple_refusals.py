"""The agent's image, and how something that cannot be done is refused."""

from __future__ import annotations

from typing import Any

import pytest

from pynchy.plugin import RuntimeUnavailable
from pynchy.runtime import agent_image

IMAGE = agent_image()


def refused(call: Any, *arguments: Any) -> RuntimeUnavailable:
    """Why something cannot be done; each reason comes with a remedy, and in one line."""
    with pytest.raises(RuntimeUnavailable) as failure:
        call(*arguments)
    assert failure.value.remedy
    assert "\n" not in str(failure.value)
    return failure.value
