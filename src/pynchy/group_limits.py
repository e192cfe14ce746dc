"""What an agent may be limited to, as people write it, and the least that one can live with."""

from __future__ import annotations

import re
from typing import Any

#: The Claude process alone takes some 200 MB, and a few processes with a dozen threads each.
LEAST_MEMORY = 256 * 1024**2
LEAST_PIDS = 64

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}


def as_bytes(value: Any) -> int:
    """A number of bytes, or a text like `512m` or `2 GiB`, in powers of 1024; ValueError."""
    if isinstance(value, int):
        return value
    match = _SIZE.fullmatch(str(value).strip())
    if match is None:
        raise ValueError("write a size as in 512m or 2g")
    return int(float(match[1]) * _UNITS[match[2].lower()])
