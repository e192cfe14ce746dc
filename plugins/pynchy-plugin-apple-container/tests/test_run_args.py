"""How a container is started, and what is refused before that."""

from __future__ import annotations

import itertools
import subprocess
from typing import Any

import pytest
from apple_refusals import IMAGE, refused

from pynchy.plugin import OciRuntime, RunSpec, VolumeMount
from pynchy_plugin_apple_container.runtime import AppleContainerRuntime


def values(args: list[str], option: str) -> list[str]:
    """What an option is given, each time."""
    return [value for word, value in itertools.pairwise(args) if word == option]


def test_a_container_gets_everything_that_keeps_it_in(runtime: AppleContainerRuntime) -> None:
    args = runtime.run_args(RunSpec((), "pynchy-a", IMAGE, user=(501, 20)))
    assert args[0] == "run"
    assert args[-1] == IMAGE
    assert {"--rm", "--interactive", "--read-only", "--no-dns"} <= set(args)
    assert "--init" not in args, "an init that holds the wire"
    assert values(args, "--network") == ["none"]
    assert values(args, "--cap-drop") == ["ALL"]
    assert values(args, "--user") == ["501:20"]
    assert values(args, "--name") == ["pynchy-a"]
    assert values(args, "--platform") == ["linux/arm64"]
    assert values(args, "--progress") == ["none"]
    assert values(args, "--mount") == [
        "type=tmpfs,target=/home/agent,size=1G,mode=1777",
        "type=tmpfs,target=/tmp,size=1G,mode=1777",
    ]
    assert values(args, "--memory") == ["2048M"]
    assert values(args, "--cpus") == ["2"]
    assert values(args, "--ulimit") == ["nproc=512"]


def test_a_bridge_is_what_it_has_by_itself(runtime: AppleContainerRuntime) -> None:
    args = runtime.run_args(RunSpec((), "pynchy-a", IMAGE, network="bridge"))
    assert not {"--network", "--no-dns"} & set(args)


def test_the_plans_own_member_means_the_same_with_the_defaults(runtime: AppleContainerRuntime) -> None:
    mounts = [VolumeMount("/tmp", "/workspace/group", readonly=True)]
    assert runtime.build_run_args(mounts, "pynchy-a", IMAGE) == runtime.run_args(
        RunSpec(tuple(mounts), "pynchy-a", IMAGE)
    )


def test_limits_are_rounded_down_to_what_a_machine_can_have(runtime: AppleContainerRuntime) -> None:
    args = runtime.run_args(RunSpec((), "pynchy-a", IMAGE, memory_bytes=(300 << 20) + 999_999, cpus=3.9, pids=7))
    assert values(args, "--memory") == ["300M"]
    assert values(args, "--cpus") == ["3"]
    assert values(args, "--ulimit") == ["nproc=7"]


def test_less_than_a_processor_is_refused(runtime: AppleContainerRuntime) -> None:
    error = refused(runtime.run_args, RunSpec((), "pynchy-a", IMAGE, cpus=0.5))
    assert error.args[0] == "Apple's container gives whole processors, and this agent may have 0.5 of one"


def test_without_limits_the_program_has_its_own(runtime: AppleContainerRuntime) -> None:
    args = runtime.run_args(RunSpec((), "pynchy-a", IMAGE, memory_bytes=None, cpus=None, pids=None))
    assert not {"--memory", "--cpus", "--ulimit", "--user", "--label", "--env"} & set(args)


def test_labels_and_variables_are_given_in_order(runtime: AppleContainerRuntime) -> None:
    spec = RunSpec((), "pynchy-a", IMAGE, labels={"b": "2", "a": "1"}, env={"Y": "a=b", "X": ""})
    assert values(runtime.run_args(spec), "--label") == ["a=1", "b=2"]
    assert values(runtime.run_args(spec), "--env") == ["X=", "Y=a=b"]


def test_a_mount_is_read_only_where_it_is_to_be(runtime: AppleContainerRuntime) -> None:
    mounts = (VolumeMount("/a b", "/opt/pynchy", readonly=True), VolumeMount("/ü:x", "/workspace/group"))
    assert values(runtime.run_args(RunSpec(mounts, "pynchy-a", IMAGE)), "--mount")[2:] == [
        "type=bind,source=/a b,target=/opt/pynchy,readonly",
        "type=bind,source=/ü:x,target=/workspace/group",
    ]


@pytest.mark.parametrize("character", [",", "="])
@pytest.mark.parametrize("inside", [True, False])
def test_a_path_that_cannot_be_written_down_is_refused_by_its_name(
    character: str, inside: bool, runtime: AppleContainerRuntime
) -> None:
    path = f"/somewhere/a{character}readonly"
    mount = VolumeMount("/a", path) if inside else VolumeMount(path, "/a")
    error = refused(runtime.run_args, RunSpec((mount,), "pynchy-a", IMAGE))
    assert error.args[0] == f"Apple's container cannot mount {path}: it takes no path with `{character}` in it"


def test_an_image_that_is_not_here_is_not_fetched_from_anywhere(runtime: AppleContainerRuntime, stand_in: Any) -> None:
    error = refused(runtime.run_args, RunSpec((), "pynchy-a", "somebody/elses:1"))
    assert error.args[0] == "the agent image somebody/elses:1 is missing"
    stand_in.set(images={IMAGE: stand_in.agent_image("linux/amd64")})
    error = refused(runtime.run_args, RunSpec((), "pynchy-a", IMAGE))
    assert error.args[0] == f"the agent image {IMAGE} is for amd64 processors, and not for arm64 ones"
    assert not (stand_in.directory / "fetched").exists()


def test_an_image_is_looked_for_before_the_first_start_alone(runtime: AppleContainerRuntime, stand_in: Any) -> None:
    for name in ("pynchy-a", "pynchy-b", "pynchy-c"):
        runtime.run_args(RunSpec((), name, IMAGE))
    assert stand_in.calls() == [["image", "inspect", IMAGE]]


def test_the_stand_in_refuses_what_is_dockers_alone(stand_in: Any) -> None:
    class Docker(OciRuntime):
        name = "docker"
        cli = "container"

    for word in Docker().run_args(RunSpec((), "pynchy-a", IMAGE)):
        if word in ("--pull", "--security-opt", "--log-driver", "--memory-swap", "--pids-limit"):
            done = subprocess.run([stand_in.program, "run", word, "x", IMAGE], capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (64, f"Error: Unknown option '{word}'\n")
