"""The agent's pinned dependencies, and what plugins need beside them, as a virtual environment.

For runtimes that run no image.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from pynchy.home import container_dir
from pynchy.plugin import RuntimeUnavailable

#: Inside it: what it was built with for plugins.
_RECORD = "pynchy-plugin-packages.json"


class AgentEnvironment:
    """A directory named after the agent's pinned set and the interpreter: a change of either makes a new one.

    It lies in the user's cache directory, or where `PYNCHY_AGENT_ENV` says.
    """

    def __init__(self) -> None:
        self._lock = container_dir() / "requirements" / "agent.lock"
        self.path = self._path()

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.path / "bin" / "python3"

    @property
    def ready(self) -> bool:
        """Whether it is complete."""
        return self.python.exists()

    @property
    def packages(self) -> frozenset[str] | None:
        """What of plugins it was built with; None where it is missing."""
        from pynchy.plugin_packages import from_text

        try:
            return from_text((self.path / _RECORD).read_text())
        except OSError:
            return frozenset() if self.ready else None

    def check(self) -> None:
        """Raise RuntimeUnavailable, with the command that makes it, when it is missing."""
        if not self.ready:
            raise RuntimeUnavailable("the agent's environment is missing", "make it with `pynchy image build`")

    def build(self, lock: Path, packages: frozenset[str]) -> None:
        """Make it of this lock, showing progress; `packages` are those that plugins wanted in it.

        An existing one is replaced only when the new one is complete, and stays beside it, as `NAME.previous`,
        until the next time: running agents have it mounted.
        """
        import tempfile

        import uv

        from pynchy.plugin_packages import to_text

        self.path.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".building-", dir=self.path.parent))
        tool = uv.find_uv_bin()
        try:
            _run([tool, "venv", "--quiet", "--relocatable", "--clear", "--python", _interpreter(), str(building)])
            install = [tool, "pip", "install", "--python", str(building / "bin" / "python3"), "--compile-bytecode"]
            # Wheels only: what a plugin wants in the container runs no build script out here.
            _run([*install, "--only-binary", ":all:", "--require-hashes", "--requirements", str(lock)])
            (building / _RECORD).write_text(to_text(packages))
            # Readable for the other user that a root host's agents run as.
            _run(["chmod", "-R", "u+rwX,go+rX,go-w", str(building)])
            previous = self.path.with_name(f"{self.path.name}.previous")
            shutil.rmtree(previous, ignore_errors=True)
            if self.path.exists():
                self.path.rename(previous)
            building.rename(self.path)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def _path(self) -> Path:
        if given := os.environ.get("PYNCHY_AGENT_ENV", "").strip():
            return Path(given).absolute()
        from platformdirs import user_cache_path

        contents = self._lock.read_bytes() + sys.version.encode() + sys.base_prefix.encode()
        return user_cache_path("pynchy") / "agent-env" / hashlib.sha256(contents).hexdigest()[:16]


def _interpreter() -> str:
    return str(Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}")


def _run(command: list[str]) -> None:
    from pynchy.plugin_packages import uv_environment

    done = subprocess.run(command, stdin=subprocess.DEVNULL, env=uv_environment())
    if done.returncode:
        raise RuntimeUnavailable(
            f"making the agent's environment failed (`{Path(command[0]).name} {command[1]}`)", "see the output above"
        )
