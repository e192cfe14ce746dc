"""What the tests share: hosts whose sandboxes run, in Pynchy's runner's place, the Python that they read from stdin."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import pynchy
import pynchy_plugin_bubblewrap
from pynchy_plugin_bubblewrap.runtime import BubblewrapRuntime

sys.path.insert(0, str(Path(__file__).parent))

from bwrap_hosts import USER, Host, Sandbox, checked, missing

_RUNNER = "import sys\nexec(compile(sys.stdin.read(), '<test>', 'exec'))\n"
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


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the tests. Not for the conformance tests, which are to use them."""
    for name in ("CONTAINER_RUNTIME", "CONTAINER_IMAGE", "PYNCHY_AGENT_ENV"):
        monkeypatch.delenv(name, raising=False)


def _readable(path: Path) -> bool:
    """Whether others may reach and read a directory."""
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in (path, *path.parents))


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A directory that every user can reach, with copies of the code. Pytest's own is closed to others."""
    place = Path(tempfile.mkdtemp(prefix="pynchy-bwrap-"))
    place.chmod(0o755)
    for package in (pynchy, pynchy_plugin_bubblewrap):
        assert package.__file__
        source = Path(package.__file__).parent
        shutil.copytree(source, place / "code" / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "runner").mkdir()
    (place / "runner" / "__main__.py").write_text(_RUNNER)
    (place / "driver.py").write_text(_DRIVER)
    subprocess.run(["chmod", "-R", "u+rwX,go+rX", str(place)], check=True)
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="session")
def hosts(place: Path) -> dict[str, Callable[[], Host]]:
    """How to become each host."""
    prefix = Path(sys.base_prefix)
    interpreter = str(prefix / "bin" / f"python{sysconfig.get_python_version()}")

    def oneself() -> Host:
        return Host(place, [], sys.executable, interpreter)

    def somebody_else() -> Host:
        if shutil.which("setpriv") is None:
            missing("setpriv is missing")
        switch = ["setpriv", f"--reuid={USER[0]}", f"--regid={USER[1]}", "--clear-groups", "--no-new-privs", "--"]
        if _readable(prefix):
            return Host(place, switch, interpreter, interpreter)
        system = "/usr/bin/python3"
        new_enough = [system, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        if not Path(system).exists() or subprocess.run(new_enough).returncode:
            missing(f"other users cannot reach {prefix}, and the system has no Python 3.11")
        return Host(place, switch, system, system)

    return {"root": oneself, "user": somebody_else if os.geteuid() == 0 else oneself}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.bubblewrap) for name in ("root", "user")], scope="module")
def host(request: pytest.FixtureRequest, hosts: dict[str, Callable[[], Host]]) -> Host:
    """Root and an ordinary user in turn, as far as this process can be them."""
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("only root can be a root host")
    return checked(hosts[request.param]())


@pytest.fixture
def start(host: Host) -> Iterator[Callable[..., Sandbox]]:
    """Start sandboxes that are ended with the test."""
    with ExitStack() as stack:

        def start(*args: Any, **options: Any) -> Sandbox:
            sandbox = host.start(*args, **options)
            stack.enter_context(sandbox.process)
            stack.callback(sandbox.process.kill)
            stack.callback(BubblewrapRuntime().stop, sandbox.name)  # the next one may be called the same
            return sandbox

        yield start
