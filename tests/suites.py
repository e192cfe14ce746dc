"""How the tests of a suite end for those who inherit it, in a pytest of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path


def outcomes_in(file: str, tests: Sequence[str], *options: str, **env: str) -> dict[str, tuple[str, str]]:
    """How each of these tests of a file's classes `Bad...` ends, and with which words; the caller's time limits it."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report.xml")
        given = ["-q", "-p", "no:cacheprovider", *options, "-o", "python_classes=Bad", f"--junitxml={report}"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *given, *(f"{file}::{test}" for test in tests)],
            capture_output=True,
            text=True,
            env={**own, **env},
        )
        assert report.exists(), done.stdout + done.stderr
        cases = list(ElementTree.parse(report).iter("testcase"))
    ended = {}
    for case in cases:
        result = next(((one.tag, one.attrib.get("message", "")) for one in case), ("passed", ""))
        ended[f"{case.attrib['classname'].rpartition('.')[2]}::{case.attrib['name']}"] = result
    assert set(ended) == set(tests), done.stdout
    return ended
