"""Where things are: PYNCHY_HOME with everything durable, and the files of the agent's side.

Standard library, and platformdirs for the default home; imported by everything that must start quickly.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def pynchy_home() -> Path:
    """`PYNCHY_HOME`, or the platform's data directory for pynchy. Absolute; may not exist yet."""
    if given := os.environ.get("PYNCHY_HOME", "").strip():
        return Path(given).expanduser().absolute()
    from platformdirs import user_data_path

    return user_data_path("pynchy").absolute()


def load_environment(home: Path) -> None:
    """Read the home's `.env` into the environment, where what is set already stays; OSError, ValueError."""
    path = home / ".env"
    if path.exists():
        from dotenv import load_dotenv

        load_dotenv(path, override=False)


def read_environment() -> None:
    """`load_environment` for what only shows things: that a `.env` cannot be read is for `pynchy doctor` to say."""
    with contextlib.suppress(OSError, ValueError):
        load_environment(pynchy_home())


def make_private(path: Path) -> Path:
    """Create a directory that only this user can enter, and return it."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def container_dir() -> Path:
    """The `container/` directory: inside the installed package, or beside `src/` in a checkout."""
    package = Path(__file__).parent
    carried = package / "container"
    return carried if carried.is_dir() else package.parents[1] / "container"


def database(home: Path) -> Path:
    """Where a home's durable facts are."""
    return home / "pynchy.db"


def control_socket(home: Path) -> Path:
    """Where a home's service listens."""
    return home / "control.sock"
