"""Which containers are listed, and how they are stopped."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from podman_containers import AGENT, PREFIX, client, left

from pynchy.plugin import RunSpec, RuntimeUnavailable
from pynchy.runtime import agent_image
from pynchy_plugin_podman.monitors import monitors
from pynchy_plugin_podman.runtime import PodmanRuntime

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.fixture
def containers(podman: PodmanRuntime) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start containers that wait; whatever is left of them in the end is removed."""
    started: list[tuple[str, subprocess.Popen[str]]] = []

    def start(name: str, script: str = "echo up; exec sleep 600", up: bool = True) -> subprocess.Popen[str]:
        process = client(podman, RunSpec((), PREFIX + name, agent_image(), user=AGENT), script)
        started.append((PREFIX + name, process))
        if up:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "up\n", process.stderr.read()
        return process

    yield start
    for name, process in started:
        process.kill()
        podman.stop(name)
        with process:
            process.kill()


@pytest.mark.podman
def test_containers_are_listed_by_prefix(podman: PodmanRuntime, containers: Any) -> None:
    assert podman.list_running_containers(PREFIX) == []
    containers("one")
    containers("two")
    assert podman.list_running_containers(PREFIX) == [PREFIX + "one", PREFIX + "two"]
    assert podman.list_running_containers(PREFIX + "t") == [PREFIX + "two"]
    assert podman.list_running_containers(PREFIX.removeprefix("pynchy-")) == []
    assert {PREFIX + "one", PREFIX + "two"} <= set(podman.list_running_containers())


_DEAF = "trap 'echo asked' TERM INT HUP; echo up; while :; do sleep 600 & wait $!; done"


@pytest.mark.podman
@pytest.mark.parametrize("client", ["alive", "killed", "gone by itself", "unread"])
def test_stop_returns_when_nothing_of_the_container_is_left(
    client: str, podman: PodmanRuntime, containers: Any
) -> None:
    scripts = {"gone by itself": "echo up; read line", "unread": "echo up; exec yes"}
    process = containers("stopped", scripts.get(client, _DEAF))
    containers("other")
    if client == "killed":
        process.kill()
        process.wait()
        assert PREFIX + "stopped" in podman.list_running_containers(PREFIX), "it outlives its client"
    elif client == "gone by itself":
        process.stdin.close()  # Podman is removing it by itself when `stop` comes
    podman.stop(PREFIX + "stopped")
    assert left(podman, PREFIX + "stopped") == []
    assert podman.list_running_containers(PREFIX) == [PREFIX + "other"]
    if client == "alive":
        assert process.stdout.read() == "", "it was asked to end, and not killed"
    podman.stop(PREFIX + "stopped")  # safe to repeat


@pytest.mark.podman
def test_a_container_that_never_began_to_run_is_found_and_removed(podman: PodmanRuntime) -> None:
    name = PREFIX + "created"
    podman.command("create", *podman.run_args(RunSpec((), name, agent_image(), user=AGENT))[1:])
    assert podman.list_running_containers(PREFIX) == [name]
    podman.stop(name)
    assert left(podman, name) == []


@pytest.mark.podman
@pytest.mark.parametrize("look", ["at once", "after Podman has forgotten it"])
def test_a_client_that_is_killed_while_it_sets_a_container_up_leaves_nothing_that_stop_does_not_end(
    look: str, podman: PodmanRuntime, containers: Any
) -> None:
    name = PREFIX + "unfinished"
    process = containers("unfinished", up=False)
    deadline = time.monotonic() + 60
    while not any(container == name for _, container in monitors()):
        assert time.monotonic() < deadline, "it has no monitor"
    process.kill()
    process.wait()
    if look != "at once":
        listed = ("ps", "--all", "--filter", f"name={name}", "--format", "{{.Names}}")
        deadline = time.monotonic() + 2  # it may have got too far for that
        while podman.command(*listed) and time.monotonic() < deadline:
            time.sleep(0.02)
    assert podman.list_running_containers(PREFIX) == [name]
    waiting = [pid for monitor, container in monitors() if container == name for pid in children(monitor)]
    podman.stop(name)
    assert left(podman, name) == []
    for pid in waiting:
        assert not Path(f"/proc/{pid}/exe").exists(), "what would have been the container"


def children(process: int) -> list[int]:
    """What a process has started; nothing where it has just ended, as the first of a monitor's two does."""
    try:
        return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


@pytest.mark.podman
def test_an_agent_cannot_pass_for_another_containers_monitor(podman: PodmanRuntime, containers: Any) -> None:
    name = PREFIX + "victim"
    code = 'import time; print("up", flush=True); time.sleep(600)'
    disguise = f"import os, sys; os.execv(sys.executable, ['conmon', '-c', {code!r}, '-n', '{name}'])"
    containers("liar", f"exec python3 -c {shlex.quote(disguise)}")
    assert any(b"\0-n\0" + name.encode() in words for words in command_lines()), "it is to be seen"
    assert podman.list_running_containers(PREFIX) == [PREFIX + "liar"]
    podman.stop(name)
    assert podman.list_running_containers(PREFIX) == [PREFIX + "liar"]


def command_lines() -> Iterator[bytes]:
    """The processes' command lines that can be read."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield path.read_bytes()


def test_a_container_that_goes_while_podman_lists_them_is_no_failure(
    stand_in: Callable[[str], None], tmp_path: Path
) -> None:
    gone = "Error: determining buildah container for container 0123: container not known"
    stand_in(
        f'[ "$1" = ps ] || exit 1\n[ -e {tmp_path}/asked ] && {{ echo pynchy-x-one; exit; }}\n'
        f": >{tmp_path}/asked\necho '{gone}' >&2\nexit 125"
    )
    assert PodmanRuntime().list_running_containers("pynchy-x-") == ["pynchy-x-one"]
    stand_in(f"echo '{gone}' >&2\nexit 125")
    with pytest.raises(RuntimeUnavailable, match="container not known"):
        PodmanRuntime().list_running_containers("pynchy-x-")
