"""What the tests of the plugins together share: what agents run from, a voice note, a home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from household import Home, home_in
from support import missing

from pynchy.config import MODEL_VARIABLES
from pynchy.runtime import reset_runtime


@pytest.fixture
def anyio_backend() -> str:
    """Everything here is asyncio's."""
    return "asyncio"


@pytest.fixture(scope="session")
def agent_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What agents run from, with the packages that the plugins' servers need."""
    path = tmp_path_factory.mktemp("agent") / "env"
    built = subprocess.run(
        [sys.executable, "-m", "pynchy", "image", "build", "--runtime", "bubblewrap"],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYNCHY_AGENT_ENV": str(path)},
    )
    if built.returncode:
        missing("bubblewrap", built.stderr.strip())
    return path


@pytest.fixture(autouse=True)
def clean_environment(agent_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty home, no credential, no setting of the person who runs the tests."""
    for name in list(os.environ):
        if name in MODEL_VARIABLES or name.startswith(("PYNCHY_", "TELEGRAM_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYNCHY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYNCHY_AGENT_ENV", str(agent_environment))
    monkeypatch.setenv("CONTAINER_RUNTIME", "bubblewrap")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    reset_runtime()


@pytest.fixture(scope="session")
def note(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A voice note, Opus in Ogg: "please call me when you get home tonight"."""
    import av

    if shutil.which("flite") is None:
        missing("flite", "`apt-get install flite` brings a voice")
    folder = tmp_path_factory.mktemp("note")
    text = "please call me when you get home tonight"
    command = ["flite", "-voice", "rms", "-t", text, "-o", str(folder / "said.wav")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    with av.open(str(folder / "said.wav")) as source, av.open(str(folder / "note.ogg"), mode="w") as target:
        stream = cast("Any", target.add_stream("libopus", rate=48000, layout="mono"))
        for frame in source.decode(audio=0):
            frame.pts = None
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return (folder / "note.ogg").read_bytes()


@pytest.fixture
async def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Home]:
    """A family's home."""
    async with home_in(tmp_path / "home", monkeypatch) as found:
        yield found
