"""What the tests share: this machine's Podman, and a stand-in that answers what a real one has answered."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pynchy.plugin import RuntimeUnavailable
from pynchy.runtime import agent_image
from pynchy_plugin_podman.runtime import PodmanRuntime

sys.path.insert(0, str(Path(__file__).parent))


def missing(reason: str) -> None:
    """Skip, or fail where PYNCHY_REQUIRE lists podman."""
    if "podman" in os.environ.get("PYNCHY_REQUIRE", "").split(","):
        pytest.fail(f"podman is required and missing: {reason}")
    pytest.skip(f"podman: {reason}")


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the tests. Not for the conformance tests, which are to use them."""
    for name in ("CONTAINER_RUNTIME", "CONTAINER_IMAGE", "PYNCHY_CONTAINER_DIR", "PYNCHY_IMAGE_OPTIONS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def podman() -> PodmanRuntime:
    """A Podman that runs agents, or a skip."""
    runtime = PodmanRuntime()
    try:
        runtime.check_image(agent_image())
    except RuntimeUnavailable as error:
        missing(str(error))
    return runtime


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make a podman that runs these lines of shell all that there is in PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))

    def put(lines: str) -> None:
        (directory / "podman").write_text(f"#!/bin/sh\n{lines}\n")
        (directory / "podman").chmod(0o755)

    return put
