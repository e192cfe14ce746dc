"""What the package's wheel has in it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def test_the_wheel_has_everything_that_the_package_needs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    package = "pynchy_plugin_podman"
    wanted = {"__init__.py", "plugin.py", "runtime.py", "monitors.py", "build.sh", "hosts"}
    assert {f"{package}/{name}" for name in wanted} == {name for name in names if name.startswith(f"{package}/")}
