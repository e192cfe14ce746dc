"""How long commands and the service take to start, and the service's memory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.table import Row

RUNS = 10
_LIBRARIES = "import argparse, dotenv, h11, httpx, pydantic_settings, structlog"


def measure() -> list[Row]:
    """Rows for `--help`, `plugins list`, and the service's way to ready with its peak memory."""
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "PYNCHY_HOME": home}
        bare = _seconds([sys.executable, "-c", "pass"], env)
        libraries = _seconds([sys.executable, "-c", _LIBRARIES], env)
        argparse = _seconds([sys.executable, "-c", "import argparse"], env)
        scan = "from importlib.metadata import entry_points; entry_points(group='pynchy.plugins')"
        entry_points = _seconds([sys.executable, "-c", f"import argparse; {scan}"], env)
        help_ = _seconds([sys.executable, "-m", "pynchy", "--help"], env)
        listing = _seconds([sys.executable, "-m", "pynchy", "plugins", "list"], env)
        ready, peak = _service(env)
        base_peak = _peak_of(_LIBRARIES)
    return [
        Row("pynchy --help", help_, argparse, f"python and argparse ({bare:.3f} s python alone)"),
        Row("pynchy plugins list (2 plugins)", listing, entry_points, "python, argparse and a scan of entry points"),
        Row("pynchy run, start to ready", ready, libraries, "python and the libraries it uses"),
        Row("pynchy run, peak memory when ready", peak, base_peak, "python and the libraries it uses", unit="MB"),
    ]


def _seconds(command: list[str], env: dict[str, str]) -> float:
    def once() -> float:
        began = time.perf_counter()
        subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - began

    return _median(once)


def _median(once: Callable[[], float]) -> float:
    once()  # fills caches, bytecode among them
    return median(once() for _ in range(RUNS))


def _service(env: dict[str, str]) -> tuple[float, float]:
    times, peaks = [], []
    for _ in range(RUNS):
        began = time.perf_counter()
        service = subprocess.Popen(
            [sys.executable, "-m", "pynchy", "run", "--demo"], env=env, stderr=subprocess.PIPE, text=True
        )
        assert service.stderr is not None
        for line in service.stderr:
            if "pynchy is ready" in line:
                break
        times.append(time.perf_counter() - began)
        peaks.append(peak_megabytes(service.pid))
        service.send_signal(signal.SIGTERM)
        service.communicate(timeout=30)
    return median(times), median(peaks)


def _peak_of(statement: str) -> float:
    process = subprocess.Popen(
        [sys.executable, "-c", f"{statement}\nprint(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    peak = peak_megabytes(process.pid)
    process.communicate(b"\n")
    return peak


def peak_megabytes(pid: int) -> float:
    """The most memory that a process has had so far."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():  # no /proc on macOS
        return float("nan")
    match = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    return int(match[1]) / 1024 if match else float("nan")
