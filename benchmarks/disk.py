"""Where durable things are measured: a folder on a disk, which /tmp often is not."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_KEPT_OVER_A_RESTART = Path("/var/tmp")


@contextmanager
def folder_on_disk() -> Iterator[Path]:
    """A folder that is removed at the end."""
    parent = _KEPT_OVER_A_RESTART if _KEPT_OVER_A_RESTART.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="pynchy-bench-", dir=parent) as folder:
        yield Path(folder)
