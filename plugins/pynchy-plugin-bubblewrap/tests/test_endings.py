"""How a sandbox ends, with everything in it, and which ones are listed until then."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bwrap_hosts import PREFIX, Host, Sandbox, checked, group

from pynchy.plugin import RuntimeUnavailable

pytestmark = pytest.mark.usefixtures("clean_environment")

#: Starts processes that do all they can to outlive the sandbox, each of which holds a lock on the host's disk.
_CLINGING = """
import fcntl, os, signal, sys, time
for number in range(5):
    ready, go = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(one, signal.SIG_IGN)
        lock = open(f"/workspace/group/lock-{number}", "w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(go, b"x")
        os.close(1)
        time.sleep(600)
    os.close(go)
    os.read(ready, 1)
print("up", flush=True)
time.sleep(600)
"""


def held(folder: Path) -> int:
    """How many of the locks are held by a process."""
    count = 0
    for path in folder.glob("lock-*"):
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                count += 1
    return count


def test_when_its_client_is_killed_everything_inside_ends(host: Host, start: Callable[..., Sandbox]) -> None:
    folder = host.folder()
    sandbox = start(_CLINGING, group(folder))
    assert held(folder) == 5
    sandbox.process.kill()
    deadline = time.monotonic() + 20
    while held(folder) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held(folder) == 0


@pytest.mark.parametrize("client", ["alive", "killed"])
def test_stop_returns_when_nothing_inside_is_left(client: str, host: Host, start: Callable[..., Sandbox]) -> None:
    folder = host.folder()
    sandbox = start(_CLINGING, group(folder))
    other = start("print('up', flush=True); import time; time.sleep(600)", name="other")
    if client == "killed":
        sandbox.process.kill()
    host.ask("stop", sandbox.name)
    assert held(folder) == 0
    assert host.ask("list_running_containers", PREFIX) == [other.name]
    assert other.process.poll() is None
    host.ask("stop", sandbox.name)  # safe to repeat


def test_what_an_agent_calls_its_processes_is_not_taken_for_a_sandbox(
    host: Host, start: Callable[..., Sandbox]
) -> None:
    code = f"""
import subprocess, sys, time
fake = ["bwrap", "-c", "echo faked; read line", "--setenv", "PYNCHY_CONTAINER", "{PREFIX}other"]
process = subprocess.Popen(fake, executable="/bin/sh", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
assert process.stdout.readline() == b"faked\\n"
print("up", flush=True)
time.sleep(600)
"""
    sandbox = start(code)
    assert host.ask("list_running_containers", PREFIX) == [sandbox.name]


def test_sandboxes_are_listed_by_prefix_until_they_end(host: Host, start: Callable[..., Sandbox]) -> None:
    wait = "print('up', flush=True); import time; time.sleep(600)"
    assert host.ask("list_running_containers", PREFIX) == []
    one, two = start(wait, name="one"), start(wait, name="two")
    assert host.ask("list_running_containers", PREFIX) == [one.name, two.name]
    assert host.ask("list_running_containers", PREFIX + "t") == [two.name]
    assert {one.name, two.name} <= set(host.ask("list_running_containers"))
    host.ask("stop", one.name)
    host.ask("stop", two.name)
    assert host.ask("list_running_containers", PREFIX) == []


@pytest.mark.bubblewrap
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_a_sandbox_of_another_user_is_left_alone_and_the_reason_named(hosts: dict[str, Callable[[], Host]]) -> None:
    owner, stranger = checked(hosts["root"]()), checked(hosts["user"]())
    sandbox = owner.start("print('up', flush=True); import time; time.sleep(600)")
    with sandbox.process as process:
        with pytest.raises(RuntimeUnavailable, match="belongs to another user; stop it there"):
            stranger.ask("stop", sandbox.name)
        assert process.poll() is None
        owner.ask("stop", sandbox.name)


def test_ten_at_once_do_not_meet(host: Host, start: Callable[..., Sandbox]) -> None:
    code = """
import os, time
for folder in ("/workspace/group", "/home/agent", "/tmp", "/dev/shm"):
    assert os.listdir(folder) == [], folder
    open(folder + "/mine", "w").write(os.environ["PYNCHY_CONTAINER"])
print("up", flush=True)
time.sleep(600)
"""
    folders = [host.folder() for _ in range(10)]
    sandboxes = [start(code, group(folder), name=f"ten-{number}") for number, folder in enumerate(folders)]
    assert host.ask("list_running_containers", PREFIX) == [sandbox.name for sandbox in sandboxes]
    assert [(folder / "mine").read_text() for folder in folders] == [sandbox.name for sandbox in sandboxes]
