"""The program's services: how they are started, and what is said where they cannot be."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from apple_refusals import IMAGE, refused

from pynchy_plugin_apple_container.runtime import AppleContainerRuntime


def test_services_that_run_are_left_as_they_are(runtime: AppleContainerRuntime, stand_in: Any) -> None:
    runtime.ensure_running()
    assert stand_in.calls() == [["system", "status"], ["run", "--help"]]


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "no kernel yet"])
def test_services_that_do_not_run_are_started_without_a_question(
    kernel: bool, runtime: AppleContainerRuntime, stand_in: Any
) -> None:
    stand_in.set(kernel=kernel)
    stand_in.stop_services()
    runtime.ensure_running()
    assert ["system", "start", "--enable-kernel-install"] in stand_in.calls()
    runtime.ensure_running()
    assert stand_in.calls()[-2:] == [["system", "status"], ["run", "--help"]]


def test_where_it_is_not_installed_the_remedy_says_where_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    runtime = AppleContainerRuntime()
    error = refused(runtime.ensure_running)
    assert error.args[0] == "Apple's container is not installed"
    assert "github.com/apple/container/releases" in error.remedy
    for call in (runtime.list_running_containers, lambda: runtime.stop("x1"), lambda: runtime.check_image(IMAGE)):
        assert "not installed" in str(refused(call))
    assert not runtime.has_image(IMAGE)
    assert runtime.image_packages(IMAGE) is None


@pytest.mark.parametrize(
    ("answer", "reason", "remedy"),
    [
        ({"code": 1, "stderr": "Error: no vmnet\n"}, "does not start: Error: no vmnet", "see `container system logs`"),
        ({"code": 1, "stdout": "Registering ...\n"}, "does not start: Registering ...", "see `container system logs`"),
        ({"code": 1}, "does not start: it said nothing", "see `container system logs`"),
        (
            {
                "code": 134,
                "stderr": "dyld[1]: Library not loaded (built for macOS 15.0 which is newer than running OS)",
            },
            "this macOS is too old for Apple's container",
            "update to macOS 26 or newer, or use Docker",
        ),
    ],
)
def test_services_that_cannot_be_started_say_why(
    answer: dict[str, Any], reason: str, remedy: str, runtime: AppleContainerRuntime, stand_in: Any
) -> None:
    stand_in.stop_services()
    stand_in.set(answers={"system start": answer})
    error = refused(runtime.ensure_running)
    assert error.args[0].endswith(reason)
    assert error.remedy == remedy


def test_a_kernel_that_cannot_be_had_is_named_as_the_cause(runtime: AppleContainerRuntime, stand_in: Any) -> None:
    stand_in.stop_services()
    stand_in.set(kernel=False, offline=True)
    error = refused(runtime.ensure_running)
    assert error.args[0].startswith("Apple's container has no kernel for its machines: Error: The Internet")
    assert error.remedy == "install one with `container system kernel set --recommended`"


def test_a_system_on_which_it_cannot_even_be_loaded_is_too_old(runtime: AppleContainerRuntime, stand_in: Any) -> None:
    dyld = "dyld[1]: Library not loaded: /usr/lib/swift/x.dylib (built for macOS 15.0 which is newer than running OS)"
    stand_in.set(answers={"system status": {"code": 134, "stderr": dyld}})
    assert refused(runtime.ensure_running).args[0] == "this macOS is too old for Apple's container"
    assert len(stand_in.calls()) == 1


@pytest.mark.parametrize("command", ["system status", "system start"])
def test_services_that_do_not_answer_are_not_waited_for(
    command: str, runtime: AppleContainerRuntime, stand_in: Any
) -> None:
    stand_in.stop_services()
    stand_in.set(hangs=[command])
    runtime.answer_within, runtime.start_within = (0.5, 10) if command == "system status" else (10, 0.5)
    error = refused(runtime.ensure_running)
    assert error.args[0].startswith(f"`container {command}` did not answer within")
    assert "container system start" in error.remedy


@pytest.mark.parametrize("option", ["--cap-drop", "--network", "--no-dns", "--read-only", "--ulimit"])
def test_a_version_that_cannot_contain_an_agent_is_refused(
    option: str, runtime: AppleContainerRuntime, stand_in: Any
) -> None:
    stand_in.set(lacks=[option])
    error = refused(runtime.ensure_running)
    assert error.args[0].endswith(f"its `run` lacks {option}")
    assert error.remedy == "update it to 0.12 or newer"


def test_an_option_that_another_one_begins_with_does_not_stand_for_it(
    runtime: AppleContainerRuntime, stand_in: Any
) -> None:
    usage = subprocess.run([stand_in.program, "run", "--help"], capture_output=True, text=True).stdout
    (stand_in.program.parent / "container").write_text(
        f"#!/bin/sh\ncat <<'END'\n{usage.replace('--network ', '--network-alias ')}\nEND\n"
    )
    assert refused(runtime.ensure_running).args[0].endswith("its `run` lacks --network")
