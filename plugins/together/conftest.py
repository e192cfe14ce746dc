"""What the tests of the plugins together share: what agents run from, a voice note, a home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from household import Home, home_in
from support import RUNTIMES, docker_runtime, image_options, missing

from pynchy.config import MODEL_VARIABLES
from pynchy.runtime import reset_runtime


@pytest.fixture
def anyio_backend() -> str:
    """Everything here is asyncio's."""
    return "asyncio"


def build(runtime: str, **env: str) -> None:
    """What agents run from, with the packages that the plugins' servers need."""
    command = [sys.executable, "-m", "pynchy", "image", "build", "--runtime", runtime]
    built = subprocess.run(command, capture_output=True, text=True, timeout=280, env={**os.environ, **env})
    if built.returncode:
        missing(runtime, built.stderr.strip())


@pytest.fixture(scope="session")
def agent_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a sandbox's packages are."""
    path = tmp_path_factory.mktemp("agent") / "env"
    build("bubblewrap", PYNCHY_AGENT_ENV=str(path))
    return path


@pytest.fixture(scope="session")
def agent_image() -> Iterator[str]:
    """The image of Docker's containers, gone afterwards."""
    options = image_options(docker_runtime())
    name = f"pynchy-test-together:{uuid.uuid4().hex[:12]}"
    build("docker", CONTAINER_IMAGE=name, PYNCHY_IMAGE_OPTIONS=options)
    yield name
    subprocess.run(["docker", "image", "rm", "--force", name], capture_output=True, timeout=60)


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


@pytest.fixture(params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("bubblewrap", "docker")])
async def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Home]:
    """A family's home, its agents in sandboxes and in Docker's containers."""
    if request.param == "docker":
        monkeypatch.setenv("CONTAINER_IMAGE", request.getfixturevalue("agent_image"))
    async with home_in(tmp_path / "home", RUNTIMES[request.param](), monkeypatch) as found:
        yield found
