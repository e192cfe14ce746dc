"""How a container is ended, and what is said of one that does not end."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import pytest
from apple_refusals import IMAGE, refused

from pynchy.plugin import RunSpec
from pynchy_plugin_apple_container.runtime import AppleContainerRuntime


def test_a_container_that_never_was_is_gone(runtime: AppleContainerRuntime, stand_in: Any) -> None:
    stand_in.put("pynchy-a-long")
    runtime.stop("pynchy-a")
    assert runtime.list_running_containers() == ["pynchy-a-long"]


def test_a_container_that_does_not_end_is_reported_with_what_to_try(
    runtime: AppleContainerRuntime, stand_in: Any
) -> None:
    stand_in.put("pynchy-a")
    stand_in.set(immortal=True)
    runtime.stop_within = 0.5
    error = refused(runtime.stop, "pynchy-a")
    assert error.args[0] == "the container pynchy-a does not end"
    assert "container delete --force pynchy-a" in error.remedy


def test_a_kill_that_hangs_does_not_keep_it_from_being_deleted(runtime: AppleContainerRuntime, stand_in: Any) -> None:
    stand_in.put("pynchy-a")
    stand_in.set(hangs=["kill"])
    runtime.kill_within = 2  # which the `delete` has, too
    runtime.stop("pynchy-a")
    assert runtime.list_running_containers() == []


@pytest.mark.parametrize("output", ["no JSON", '[{"name": "pynchy-a"}]'])
def test_what_cannot_be_seen_to_be_gone_is_not_said_to_be(
    output: str, runtime: AppleContainerRuntime, stand_in: Any
) -> None:
    stand_in.set(answers={"ls": {"stdout": output}})
    error = refused(runtime.stop, "pynchy-a")
    assert error.args[0].startswith("whether the container pynchy-a is gone cannot be seen")


@pytest.mark.bubblewrap
def test_a_client_that_is_killed_while_it_starts_leaves_nothing_behind(
    runtime: AppleContainerRuntime, stand_in: Any
) -> None:
    stand_in.set(never_begins=True)
    args = runtime.run_args(RunSpec((), "pynchy-a", IMAGE))
    client = subprocess.Popen([runtime.cli, *args], stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not runtime.list_running_containers():
        assert time.monotonic() < deadline
    client.kill()
    client.wait()
    assert runtime.list_running_containers() == ["pynchy-a"]
    runtime.stop("pynchy-a")
    assert runtime.list_running_containers() == []
