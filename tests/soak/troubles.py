"""What goes wrong from outside, each for a while: the disk, the clock, the engine, the containers, the model."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support import REPOSITORY, missing

from pynchy.testing import Cut, Fail, ScriptedModel, Stall

#: Calls of the model that fail, and how. A stall lasts until the host has had enough of it.
FAILING_CALLS = 0.3
FAULTS = (
    Fail(401, "invalid x-api-key"),
    Fail(429, "Slow down", retry_after=0),
    Fail(500, "Internal server error"),
    Fail(529, "Overloaded"),
    Stall(2),
    Cut(2),
)


def unreliable(model: ScriptedModel, seed: int) -> None:
    """From now on nearly a third of the model's answers fail."""
    model.fail_often(FAILING_CALLS, FAULTS, seed)


class Clock:
    """The host's wall clock, which jumps. Time that is only counted goes on as it should."""

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            missing("cc", "a C compiler makes the clock that jumps; install gcc and libc6-dev")
        assert compiler
        library = directory / "clock.so"
        self._offset = directory / "clock"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O2", "-o", library, Path(__file__).parent / "clock.c"], check=True
        )
        self.environment = {"LD_PRELOAD": str(library), "JUMPING_CLOCK": str(self._offset)}
        self._offset.write_bytes(bytes(8))

    def jump(self, hours: int) -> None:
        """Be so many hours off."""
        with self._offset.open("r+b") as file:  # in place: the host has it mapped
            file.write((hours * 3600).to_bytes(8, sys.byteorder, signed=True))


class Disk:
    """A small file system of its own, which can be full."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    @contextmanager
    def mounted(cls, path: Path, megabytes: int = 64) -> Iterator[Disk]:
        """A tmpfs at `path`, which takes root."""
        path.mkdir(parents=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(path)], capture_output=True, text=True
        )
        if done.returncode:
            missing("mount", f"a file system of its own cannot be mounted here: {done.stderr.strip()}")
        try:
            yield cls(path)
        finally:
            subprocess.run(["umount", "--lazy", str(path)], check=True)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Meanwhile there is no room."""
        filler = self.path / "filler"
        try:
            with contextlib.suppress(OSError), filler.open("wb", 0) as file:
                while True:
                    file.write(bytes(4096))
            yield
        finally:
            filler.unlink(missing_ok=True)


class Engine:
    """A Docker engine that may be restarted: the one of `.ci/docker-up DIR`, where PYNCHY_TEST_ENGINE names DIR."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    @classmethod
    def ours(cls) -> Engine | None:
        """The engine, or None where there is none that the tests may touch."""
        if directory := os.environ.get("PYNCHY_TEST_ENGINE"):
            return cls(directory)
        if "engine" in os.environ.get("PYNCHY_REQUIRE", "").split(","):
            missing("engine", "PYNCHY_TEST_ENGINE names no Docker engine that may be restarted")
        return None

    async def restart(self) -> None:
        """Stop it with everything that runs in it, and start it again."""
        for script in ("docker-down", "docker-up"):
            process = await asyncio.create_subprocess_exec(
                REPOSITORY / ".ci" / script,
                self._directory,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            assert await process.wait() == 0, f"{script} failed"
