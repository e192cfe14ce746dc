"""Throwaway environments with the real wheel of pynchy, and plugin projects to install into them."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
from pathlib import Path
from typing import Any

import uv

#: What none of these commands takes, however much else the machine does, in seconds.
_PATIENCE = 300


class Environment:
    """A virtual environment with the real wheel of pynchy; what pynchy depends on is borrowed from ours."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.python = path / "bin" / "python"
        self._uv("venv", "--quiet", "--python", sys.executable, str(path))
        borrowed = path / "borrowed"
        borrowed.mkdir()
        for entry in Path(site.getsitepackages()[0]).iterdir():
            if "pynchy" not in entry.name:
                (borrowed / entry.name).symlink_to(entry)
        (path / "bin" / "uv").symlink_to(uv.find_uv_bin())
        self.site_packages = Path(self.run("-c", "import site; print(site.getsitepackages()[0])").strip())
        (self.site_packages / "borrowed.pth").write_text(f"{borrowed}\n")

    def _uv(self, *args: str) -> None:
        command = [uv.find_uv_bin(), *args, "--no-config", "--offline"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
        assert done.returncode == 0, done.stderr

    def install(self, *what: str) -> None:
        """`uv pip install`, with nothing from anywhere else."""
        options = ("--no-deps", "--no-build-isolation", "--no-index", "--python", str(self.python))
        self._uv("pip", "install", "--quiet", *options, *what)

    def uninstall(self, name: str) -> None:
        """`uv pip uninstall`."""
        self._uv("pip", "uninstall", "--quiet", "--python", str(self.python), name)

    def start(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run this environment's Python, away from the checkout."""
        return subprocess.run(
            [str(self.python), *args],
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            cwd=self.path,
            env={**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, **env},
        )

    def run(self, *args: str, **env: str) -> str:
        """The output of a run that succeeds."""
        done = self.start(*args, **env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def discovered(self) -> dict[str, list[str]]:
        """The names of the plugins in each list of the registry."""
        code = (
            "import json; from pynchy.plugin import discover_plugins; r = discover_plugins(); "
            "lists = {k: v for k, v in vars(r).items() if k not in ('records', 'names')}; "
            "print(json.dumps({k: [p.name for p in v] for k, v in lists.items() if v}))"
        )
        return json.loads(self.run("-c", code))

    def runtime(self, **env: str) -> str:
        """The name of the runtime that is chosen."""
        return self.run("-c", "from pynchy.runtime import get_runtime; print(get_runtime().name)", **env).strip()

    def records(self, **env: str) -> dict[str, dict[str, Any]]:
        """What `pynchy plugins list --json` says, by entry point, which no two share."""
        records = json.loads(self.run("-m", "pynchy", "plugins", "list", "--json", **env))
        by_entry_point = {record["entry_point"]: record for record in records}
        assert len(by_entry_point) == len(records)
        return by_entry_point


def build(project: Path, kind: str, directory: Path) -> Path:
    """Build a project's wheel or sdist with its own build backend."""
    target = directory / f"{kind}-of-{project.name}"
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(target)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = target.iterdir()
    return built


def distribution(name: str) -> str:
    """What the distribution of the plugin `name` is called."""
    return f"pynchy-plugin-{name}".replace("_", "-")


def project(directory: Path, name: str, target: str, code: str) -> Path:
    """A plugin's repository as the plan lays it out; `target` is in its package, or has a module of its own."""
    package = f"pynchy_plugin_{name}"
    value = target if ":" in target else f"{package}:{target}"
    (directory / "src" / package).mkdir(parents=True)
    (directory / "pyproject.toml").write_text(
        f"""\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{distribution(name)}"
version = "0.1.0"
dependencies = ["pynchy"]

[project.entry-points."pynchy.plugins"]
{name} = "{value}"

[tool.hatch.build.targets.wheel]
packages = ["src/{package}"]
"""
    )
    (directory / "src" / package / "__init__.py").write_text(code)
    return directory
