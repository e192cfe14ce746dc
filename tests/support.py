"""Helpers of the tests: the runtimes that run here, a chat, and the command line as a person uses it."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import NoReturn

import pytest

from pynchy.app import Service
from pynchy.plugin import ContainerRuntime, RuntimeUnavailable
from pynchy.runtime import DockerRuntime, agent_image
from pynchy.types import VolumeMount

REPOSITORY = Path(__file__).parents[1]
#: What the services of the tests have for a model credential; it must not be found inside a container.
CREDENTIAL = "sk-ant-test-0123456789-must-stay-outside"

#: A command that takes longer than any test. (The SDK's Bash tool refuses a plain `sleep`.)
BUSY = "python3 -c 'import time; time.sleep(300)'"

#: Where it is about noon now, so that no day ends in the middle of a test.
NOON_ZONE = f"Etc/GMT{datetime.now(UTC).hour - 12:+d}"

StartService = Callable[..., AbstractAsyncContextManager[Service]]


def missing(what: str, reason: str) -> NoReturn:
    """Skip, or fail where PYNCHY_REQUIRE lists what is missing."""
    if what in os.environ.get("PYNCHY_REQUIRE", "").split(","):
        pytest.fail(f"{what} is required and missing: {reason}")
    pytest.skip(f"{what}: {reason}")


def docker_runtime() -> DockerRuntime:
    """Docker with an agent image, or a skip."""
    runtime = DockerRuntime()
    try:
        runtime.check_image(agent_image())
    except RuntimeUnavailable as error:
        missing("docker", str(error))
    return runtime


def bubblewrap_runtime() -> ContainerRuntime:
    """Bubblewrap with the agent's environment, or a skip."""
    from pynchy_plugin_bubblewrap.runtime import BubblewrapRuntime

    runtime = BubblewrapRuntime()
    try:
        runtime.ensure_running()
        runtime.check_image("")
    except RuntimeUnavailable as error:
        missing("bubblewrap", str(error))
    return runtime


def image_options(runtime: DockerRuntime) -> str:
    """What a build of an image takes on a machine that can pull none, where `.ci/docker-up` has made a base."""
    if not runtime.has_image("pynchy-base:bookworm"):
        return ""
    bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    return f"--base pynchy-base:bookworm --network host {f'--ca-bundle {bundle}' if bundle.exists() else ''}"


def podman_runtime() -> ContainerRuntime:
    """Podman with an agent image, or a skip."""
    # No checkout has it installed, and what a test starts has not pytest's path.
    sys.path.append(str(REPOSITORY / "plugins/pynchy-plugin-podman/src"))
    from pynchy_plugin_podman.runtime import PodmanRuntime

    runtime = PodmanRuntime()
    try:
        runtime.check_image(agent_image())
    except RuntimeUnavailable as error:
        missing("podman", str(error))
    return runtime


RUNTIMES: dict[str, Callable[[], ContainerRuntime]] = {
    "docker": docker_runtime,
    "bubblewrap": bubblewrap_runtime,
    "podman": podman_runtime,
}


def pynchy(*args: str, env: dict[str, str] | None = None, typed: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command line as a person would, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pynchy", *args],
        capture_output=True,
        text=True,
        timeout=90,
        input=typed,
        env={**os.environ, **(env or {})},
    )


def without_docker(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has everything but a docker."""
    directory = tmp_path / "path-without-docker"
    directory.mkdir()
    for entry in os.environ["PATH"].split(os.pathsep):
        for program in Path(entry).iterdir() if Path(entry).is_dir() else ():
            link = directory / program.name
            if program.name != "docker" and not link.is_symlink() and shutil.which(program.name):
                link.symlink_to(program)
    return {"PATH": str(directory)}


def count_from_noon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the test's connections counted by a clock that is at noon now: on one day, whenever it runs."""
    ahead = timedelta(hours=12 - datetime.now(UTC).hour)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + ahead

    for room in ("destinations", "egress"):
        monkeypatch.setattr(f"pynchy.{room}.datetime", Clock)


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so, at most twenty seconds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


class Chat:
    """A terminal attached to the main group."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.texts: asyncio.Queue[str] = asyncio.Queue()

    async def say(self, text: str) -> str | None:
        """Send a message and wait until it is settled; returns why it failed."""
        jid = await self.service.group_jid("main")
        with self.service.terminal.attached(jid, self.texts.put):
            await self.service.flush_outbox(jid)
            row_id = await self.service.say(jid, text)
            error = await self.service.settlement(row_id)
            await self.service.flush_outbox(jid)
        return error

    async def ask(self, text: str) -> str:
        """Send a message and return its one answer."""
        assert await self.say(text) is None
        return self.texts.get_nowait()


def own_addresses() -> list[str]:
    """The addresses of this machine by which others reach it."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("93.184.216.34", 9))
            found.append(probe.getsockname()[0])
        except OSError:
            pass
    return found


ROGUE = Path(__file__).parent / "rogue.py"


class RogueRuntime:
    """A runtime of the plan's five members alone, whose containers are rogue.py processes."""

    name = "rogue"
    cli = sys.executable

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def ensure_running(self) -> None:
        """Always."""

    def list_running_containers(self, prefix: str = "pynchy-") -> list[str]:
        """None that outlive their client."""
        return []

    def build_run_args(self, mounts: list[VolumeMount], container_name: str, image: str) -> list[str]:
        """The arguments of the process."""
        return [str(ROGUE), self.kind]
