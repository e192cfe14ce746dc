"""A look into a home's database beside whoever else uses it, which changes nothing."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path


def reading(database: Path) -> closing[sqlite3.Connection]:
    """A connection that cannot write, closed at the end of its `with`. Raises what SQLite raises."""
    return closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True))
