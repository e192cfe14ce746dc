"""Limits by control groups: as this machine has them, and as others do, with a tree and a systemd-run that stand in."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from pynchy.plugin import RunSpec, RuntimeUnavailable
from pynchy_plugin_bubblewrap import limits as room
from pynchy_plugin_bubblewrap.limits import SHELL, Limits, find_limits
from pynchy_plugin_bubblewrap.runtime import BubblewrapRuntime

SPEC = RunSpec((), "pynchy-test-limits", "", memory_bytes=300_000_000, cpus=1.5, pids=70)


def name() -> str:
    """A name that no other test has."""
    return f"pynchy-test-{uuid.uuid4().hex[:8]}"


def started(limits: Limits, spec: RunSpec, *command: str) -> list[str]:
    """How a command is started where bwrap would be."""
    return [SHELL, *limits.args(spec, list(command))]


def run(limits: Limits, spec: RunSpec, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command where bwrap would be."""
    return subprocess.run(started(limits, spec, *command), capture_output=True, text=True, timeout=60)


# --- here -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def here() -> Limits:
    """What this machine has, where this user has anything."""
    limits = find_limits()
    if not limits.groups:
        pytest.skip("this user can make no control groups here")
    return limits


def test_a_command_starts_in_a_group_of_its_own_with_its_limits(here: Limits) -> None:
    spec = RunSpec((), name(), "", memory_bytes=300 * 1024**2, cpus=0.5, pids=70)
    groups = run(here, spec, "cat", "/proc/self/cgroup").stdout
    assert groups.count(spec.container_name) == len(here.groups)
    here.remove(spec.container_name)
    assert not [base for _, base in here.groups if (base / spec.container_name).exists()]


def test_memory_is_taken_from_who_takes_too_much(here: Limits) -> None:
    if "memory" not in here.supports:
        pytest.skip("no memory controller")
    spec = RunSpec((), name(), "", memory_bytes=200 * 1024**2)
    code = "x = bytearray(100 * 2**20); print('small', flush=True); y = bytearray(400 * 2**20); print('large')"
    done = run(here, spec, sys.executable, "-c", code)
    here.remove(spec.container_name)
    assert done.stdout == "small\n"
    assert done.returncode


def test_processes_are_bounded(here: Limits) -> None:
    if "pids" not in here.supports:
        pytest.skip("no pids controller")
    spec = RunSpec((), name(), "", pids=10)
    code = """
import os, signal
made = 0
try:
    while made < 50:
        if not os.fork():
            signal.pause()
        made += 1
except OSError:
    print(made, flush=True)
os.killpg(0, 9)
"""
    command = started(here, spec, sys.executable, "-c", code)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout
    with process:
        assert int(process.stdout.readline()) == 9
    here.remove(spec.container_name)


def test_a_name_is_given_once_at_a_time_and_again_afterwards(here: Limits) -> None:
    spec = RunSpec((), name(), "")
    command = started(here, spec, "sh", "-c", "echo up; read line")
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout
    assert first.stdout.readline() == "up\n"
    second = run(here, spec, "echo", "never")
    assert (second.returncode, second.stdout) == (125, "")
    assert "the sandbox's limits cannot be set" in second.stderr
    first.communicate("\n")
    assert run(here, spec, "echo", "again").stdout == "again\n"
    here.remove(spec.container_name)


def test_what_was_left_behind_is_removed_and_what_is_in_use_is_not(here: Limits) -> None:
    used, left = RunSpec((), name(), ""), RunSpec((), name(), "")
    process = subprocess.Popen(
        started(here, used, "sh", "-c", "echo up; read line"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    run(here, left, "true")
    here.remove()  # it may have been made a moment ago, by somebody who is about to enter it
    assert all((base / left.container_name).exists() for _, base in here.groups)
    for spec in (used, left):  # and not those of the whole machine, some of which are being entered just now
        for _, base in here.groups:
            os.utime(base / spec.container_name, (0, 0))
    here.remove()
    assert not any((base / left.container_name).exists() for _, base in here.groups)
    assert all((base / used.container_name).exists() for _, base in here.groups)
    process.communicate("\n")
    here.remove(used.container_name)


def test_what_cannot_be_limited_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "find_limits", Limits)
    monkeypatch.setattr("pynchy_plugin_bubblewrap.runtime.find_limits", Limits)
    runtime = BubblewrapRuntime()
    assert runtime.supports == frozenset()
    assert not [word for word in runtime.run_args(SPEC) if "cgroup" in word and word.startswith("/")]


def test_a_network_of_its_own_is_refused() -> None:
    with pytest.raises(RuntimeUnavailable, match="gives no agent a network of its own; use another runtime"):
        BubblewrapRuntime().run_args(RunSpec((), "pynchy-x", "", network="bridge"))


def test_an_ordinary_user_without_groups_has_no_limits(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    code = (
        "import os, pynchy_plugin_bubblewrap.limits as limits\n"
        "os.setgid(1000); os.setuid(1000); print(sorted(limits.find_limits().supports))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


# --- elsewhere --------------------------------------------------------------------------------------------------------


def files(directory: Path) -> dict[str, str]:
    """What was written into a group."""
    return {path.name: path.read_text().strip() for path in directory.iterdir() if path.is_file()}


def test_in_version_2_a_group_is_made_below_one_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_TREE", tmp_path)
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids\n")
    limits = room._version_2()
    assert limits.supports == {"memory", "cpus", "pids"}
    for directory in (tmp_path, tmp_path / "pynchy"):
        assert (directory / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"
    assert run(limits, SPEC, "echo", "started").stdout == "started\n"
    written = files(tmp_path / "pynchy" / SPEC.container_name)
    assert int(written.pop("cgroup.procs")) > 1
    assert written == {
        "memory.max": "300000000",
        "memory.swap.max": "0",
        "cpu.max": "150000 100000",
        "pids.max": "70",
    }


def test_in_version_2_only_the_controllers_there_are_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_TREE", tmp_path)
    (tmp_path / "cgroup.controllers").write_text("cpuset pids\n")
    assert room._version_2().supports == {"pids"}
    (tmp_path / "cgroup.controllers").write_text("\n")
    assert room._version_2().supports == frozenset()


def test_in_version_1_each_controller_has_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_TREE", tmp_path)
    for names in ("memory", "cpu,cpuacct", "pids"):
        (tmp_path / names).mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").touch()
    (tmp_path / "cpu,cpuacct/cpu.cfs_quota_us").touch()
    plain = room._read
    told = "4:memory:/deep/down\n3:cpu,cpuacct:/\n2:pids:/\n1:name=systemd:/\n0::/\n"
    monkeypatch.setattr(room, "_read", lambda path: told if path == Path("/proc/self/cgroup") else plain(path))
    limits = room._version_1()
    assert limits.supports == {"memory", "cpus", "pids"}
    assert run(limits, SPEC, "echo", "started").stdout == "started\n"
    assert files(tmp_path / "memory" / SPEC.container_name)["memory.limit_in_bytes"] == "300000000"
    cpu = files(tmp_path / "cpu,cpuacct" / SPEC.container_name)
    assert (cpu["cpu.cfs_period_us"], cpu["cpu.cfs_quota_us"]) == ("100000", "150000")
    assert files(tmp_path / "pids" / SPEC.container_name)["pids.max"] == "70"


@pytest.mark.parametrize("root", [True, False])
def test_systemd_is_asked_for_a_scope(root: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "systemd-run").write_text(
        '#!/bin/sh\nprintf \'%s\\n\' "$@" >>"$(dirname "$0")/asked"\n'
        'while [ "$1" != -- ]; do shift; done; shift; exec "$@"\n'
    )
    (tmp_path / "systemd-run").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(room, "_TREE", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    own = tmp_path if root else tmp_path / "user.slice/user-1000.slice/user@1000.service"
    own.mkdir(parents=True, exist_ok=True)
    (own / "cgroup.controllers").write_text("memory pids\n")
    limits = room._systemd()
    assert limits.supports == {"memory", "pids"}
    (tmp_path / "asked").unlink()
    assert run(limits, SPEC, "echo", "started").stdout == "started\n"
    user = [] if root else ["--user"]
    assert (tmp_path / "asked").read_text().splitlines() == [
        *user,
        "--scope",
        "--quiet",
        "--collect",
        "--unit",
        SPEC.container_name,
        "--property=MemoryMax=300000000",
        "--property=MemorySwapMax=0",
        "--property=TasksMax=70",
        "--",
        "echo",
        "started",
    ]


@pytest.mark.parametrize("lines", ["exit 1", "exec sleep 60"])
def test_a_systemd_that_gives_no_scope_keeps_no_limits(
    lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "systemd-run").write_text(f"#!/bin/sh\n{lines}\n")
    (tmp_path / "systemd-run").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    slow = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: slow(*args, **{**options, "timeout": 0.3}))
    assert room._systemd() == Limits()


def test_without_systemd_run_there_is_no_scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert room._systemd() == Limits()
