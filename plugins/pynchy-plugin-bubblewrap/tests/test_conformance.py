"""Bubblewrap does what every runtime must, for whoever runs the tests and for an ordinary user."""

from __future__ import annotations

import os
import pickle
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pytest

import pynchy
import pynchy_plugin_bubblewrap
from pynchy.plugin import ContainerRuntime, RunSpec, RuntimeUnavailable, VolumeMount
from pynchy.testing import RuntimeConformance
from pynchy_plugin_bubblewrap.runtime import BubblewrapRuntime

#: Whom root becomes.
USER = (1000, 1000)
SWITCH = ("setpriv", f"--reuid={USER[0]}", f"--regid={USER[1]}", "--clear-groups", "--no-new-privs", "--")

_DRIVER = """
import pickle, sys
from pynchy.plugin import RuntimeUnavailable
from pynchy_plugin_bubblewrap.runtime import BubblewrapRuntime

member, given = pickle.load(sys.stdin.buffer)
runtime = BubblewrapRuntime()
try:
    if member == "supports":
        answer = runtime.supports, None
    elif member == "command":
        answer = [runtime.cli, *runtime.run_args(*given)], None
    else:
        answer = getattr(runtime, member)(*given), None
except RuntimeUnavailable as error:
    answer = None, (error.args[0], error.remedy)
pickle.dump(answer, sys.stdout.buffer)
"""


@pytest.mark.bubblewrap
class TestBubblewrap(RuntimeConformance):
    """For whoever runs the tests."""

    def create_runtime(self) -> ContainerRuntime:
        """Bubblewrap."""
        return BubblewrapRuntime()


class OrdinaryUsersRuntime:
    """What an ordinary user's BubblewrapRuntime answers, asked in a process of that user's."""

    name = "bubblewrap"
    cli = SWITCH[0]

    def __init__(self, place: Path, python: str) -> None:
        self._place, self._python = place, python

        self._checked = False

    @cached_property
    def supports(self) -> frozenset[str]:
        """The limits that this user can set."""
        return self._ask("supports")

    def ensure_running(self) -> None:
        """Whether a sandbox starts for this user, asked once."""
        if not self._checked:
            self._ask("ensure_running")
        self._checked = True

    def list_running_containers(self, prefix: str = "pynchy-") -> list[str]:
        """What this user sees."""
        return self._ask("list_running_containers", prefix)

    def build_run_args(self, mounts: list[VolumeMount], container_name: str, image: str) -> list[str]:
        """`run_args` with the defaults."""
        return self.run_args(RunSpec(tuple(mounts), container_name, image))

    def run_args(self, spec: RunSpec) -> list[str]:
        """The command of this user's, after the change to that user."""
        return [*SWITCH[1:], *self._ask("command", spec)]

    def stop(self, name: str) -> None:
        """End a sandbox of this user's."""
        self._ask("stop", name)

    def _ask(self, member: str, *given: object) -> Any:
        done = subprocess.run(
            [*SWITCH, self._python, "-B", str(self._place / "driver.py")],
            input=pickle.dumps((member, given)),
            capture_output=True,
            timeout=60,
            cwd="/",
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(self._place / "code"),
                "PYNCHY_AGENT_ENV": str(self._place / "env"),
                "PYNCHY_HOME": str(self._place / "nowhere"),
            },
        )
        assert done.returncode == 0, done.stderr
        answer, unavailable = pickle.loads(done.stdout)
        if unavailable:
            raise RuntimeUnavailable(*unavailable)
        return answer


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A directory that every user can reach, with copies of the code."""
    place = Path(tempfile.mkdtemp(prefix="pynchy-bwrap-"))
    for package in (pynchy, pynchy_plugin_bubblewrap):
        assert package.__file__
        source = Path(package.__file__).parent
        shutil.copytree(source, place / "code" / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "driver.py").write_text(_DRIVER)
    (place / "env" / "bin").mkdir(parents=True)
    subprocess.run(["chmod", "-R", "u+rwX,go+rX", str(place)], check=True)
    yield place
    shutil.rmtree(place)


@pytest.mark.bubblewrap
@pytest.mark.skipif(os.geteuid() != 0, reason="it is TestBubblewrap where root does not run the tests")
class TestBubblewrapForAnOrdinaryUser(RuntimeConformance):
    """For a user whose sandboxes are user namespaces."""

    _runtime: ClassVar[OrdinaryUsersRuntime]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def become(cls, place: Path) -> None:
        """Find a Python that this user can start."""
        prefix, system = Path(sys.base_prefix), "/usr/bin/python3"
        new_enough = [system, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        if all(path.stat().st_mode & stat.S_IXOTH for path in (prefix, *prefix.parents)):
            python = str(prefix / "bin" / f"python{sysconfig.get_python_version()}")
        elif Path(system).exists() and subprocess.run(new_enough).returncode == 0:
            python = system
        else:
            words = f"other users cannot reach {prefix}, and the system has no Python 3.11"
            if "bubblewrap" in os.environ.get("PYNCHY_REQUIRE", "").split(","):
                pytest.fail(words)
            pytest.skip(words)
        (place / "env" / "bin" / "python3").symlink_to(python)
        cls._runtime = OrdinaryUsersRuntime(place, python)

    def create_runtime(self) -> ContainerRuntime:
        """The one of that user."""
        return self._runtime

    def user(self) -> tuple[int, int]:
        """Whom it runs as: that user, always."""
        return USER
