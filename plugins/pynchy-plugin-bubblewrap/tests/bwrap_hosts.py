"""Whoever starts real sandboxes: a root host, and an ordinary user that root becomes."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pynchy.plugin import RunSpec, RuntimeUnavailable, VolumeMount

#: Whom a root host's agents run as, and an ordinary user for those tests that root runs as somebody else.
AGENT = (60999, 60999)
USER = (1000, 1000)
#: No test may see another's sandboxes, nor those of a service that runs on this machine.
PREFIX = f"pynchy-test-{uuid.uuid4().hex[:8]}-"


def missing(reason: str) -> None:
    """Skip, or fail where PYNCHY_REQUIRE lists bubblewrap."""
    if "bubblewrap" in os.environ.get("PYNCHY_REQUIRE", "").split(","):
        pytest.fail(f"bubblewrap is required and missing: {reason}")
    pytest.skip(f"bubblewrap: {reason}")


@dataclass
class Sandbox:
    """A sandbox that runs."""

    name: str
    process: subprocess.Popen[str]


class Host:
    """Somebody who starts sandboxes: whoever runs the tests, or an ordinary user that root becomes."""

    def __init__(self, place: Path, switch: list[str], python: str, interpreter: str) -> None:
        self.place = place
        self.switch = switch
        self.python = python
        self.uid = USER[0] if switch else os.getuid()
        self.root = self.uid == 0
        #: Whom the agent runs as, which is whom its files belong to.
        self.agent = AGENT if self.root else (self.uid, USER[1] if switch else os.getgid())
        self._environment = place / f"env-{self.uid}"
        if not self._environment.exists():
            (self._environment / "bin").mkdir(parents=True)
            (self._environment / "bin" / "python3").symlink_to(interpreter)

    def ask(self, member: str, *given: Any) -> Any:
        """What this user's BubblewrapRuntime answers, or why it cannot; `command` is its cli with its run_args."""
        done = subprocess.run(
            [*self.switch, self.python, "-B", str(self.place / "driver.py")],
            input=pickle.dumps((member, given)),
            capture_output=True,
            timeout=60,
            cwd="/",
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(self.place / "code"),
                "PYNCHY_AGENT_ENV": str(self._environment),
                "PYNCHY_HOME": str(self.place / "nowhere"),
            },
        )
        assert done.returncode == 0, done.stderr
        answer, unavailable = pickle.loads(done.stdout)
        if unavailable:
            raise RuntimeUnavailable(*unavailable)
        return answer

    def folder(self) -> Path:
        """A new folder that the agent may write."""
        folder = Path(tempfile.mkdtemp(prefix="group-", dir=self.place))
        if os.geteuid() == 0:
            os.chown(folder, *self.agent)
        return folder

    def command(self, *mounts: VolumeMount, name: str = "", env: dict[str, str] | None = None) -> list[str]:
        """How the sandbox is started."""
        runner = VolumeMount(str(self.place / "runner"), "/opt/pynchy", readonly=True)
        spec = RunSpec((runner, *mounts), PREFIX + (name or "one"), "", env=env or {}, user=AGENT)
        return [*self.switch, *self.ask("command", spec)]

    def start(self, code: str, *mounts: VolumeMount, name: str = "one") -> Sandbox:
        """Run this code inside; returns once it has printed `up`."""
        process = subprocess.Popen(
            self.command(*mounts, name=name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"]},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(code)
        process.stdin.close()
        assert process.stdout.readline() == "up\n"
        return Sandbox(PREFIX + name, process)

    def run(self, code: str, *mounts: VolumeMount, env: dict[str, str] | None = None) -> Any:
        """Run this code inside to its end; it prints JSON."""
        done = subprocess.run(
            self.command(*mounts, env=env),
            input=code,
            capture_output=True,
            text=True,
            timeout=60,
            env={"PATH": os.environ["PATH"], "OF_THE_CLIENT": "must stay outside"},
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def checked(host: Host) -> Host:
    """The host, if a sandbox starts there."""
    done = subprocess.run(host.command(), input="print('{}')", capture_output=True, text=True, timeout=60)
    if done.returncode:
        missing(f"no sandbox starts for uid {host.uid}: {done.stderr.strip()[-300:]}")
    return host


def group(folder: Path) -> VolumeMount:
    """The folder as the agent's own."""
    return VolumeMount(str(folder), "/workspace/group")
