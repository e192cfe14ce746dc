"""Apple's `container` as a runtime, driven through the stand-in: what it is asked, and what is made of its answers."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pynchy.home import container_dir
from pynchy.plugin import ContainerRuntime, OciRuntime, PluginRegistry, RunSpec, RuntimeUnavailable, VolumeMount
from pynchy.runtime import agent_image
from pynchy_plugin_apple_container import AppleContainerPlugin
from pynchy_plugin_apple_container.runtime import AppleContainerRuntime

IMAGE = agent_image()
BUILD = AppleContainerRuntime.build_script
SHAPES = pytest.mark.parametrize("shape", ["0.x", "1.0", "1.x"])


@pytest.fixture
def runtime(stand_in: Any) -> AppleContainerRuntime:
    """The runtime, with the stand-in for its program, and less patience than people have."""
    runtime = AppleContainerRuntime()
    runtime.answer_within = runtime.start_within = runtime.kill_within = 10
    return runtime


def refused(call: Any, *arguments: Any) -> RuntimeUnavailable:
    """Why something cannot be done; each reason comes with a remedy, and in one line."""
    with pytest.raises(RuntimeUnavailable) as failure:
        call(*arguments)
    assert failure.value.remedy
    assert "\n" not in str(failure.value)
    return failure.value


def values(args: list[str], option: str) -> list[str]:
    """What an option is given, each time."""
    return [value for word, value in itertools.pairwise(args) if word == option]


# --- when it is used --------------------------------------------------------------------------------------------------


def test_it_matches_macos_alone_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = AppleContainerPlugin()
    monkeypatch.setattr(sys, "platform", "linux")
    assert not plugin.platform_matches()
    assert plugin.platform_reason == "Apple's container needs macOS"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert plugin.platform_matches()
    assert plugin.platform_reason == ""


def test_its_names_and_its_priority_are_the_plans() -> None:
    plugin = AppleContainerPlugin()
    runtime = plugin.create_runtime()
    assert (plugin.name, plugin.priority, runtime.name, runtime.cli) == ("apple-container", 20, "apple", "container")
    assert isinstance(runtime, ContainerRuntime)
    assert runtime.supports == {"memory", "cpus", "pids", "bridge"}  # pyright: ignore[reportAttributeAccessIssue]


# --- its services -----------------------------------------------------------------------------------------------------


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


# --- what runs --------------------------------------------------------------------------------------------------------


@SHAPES
def test_containers_are_found_in_every_shape_that_they_have_been_listed_in(
    shape: str, runtime: AppleContainerRuntime, stand_in: Any
) -> None:
    stand_in.set(shape=shape)
    assert runtime.list_running_containers() == []
    stand_in.put("pynchy-a-one", "pynchy-ab-two", "buildkit", supervisor=1 << 30)
    assert runtime.list_running_containers() == ["pynchy-a-one", "pynchy-ab-two"]
    assert runtime.list_running_containers("pynchy-a-") == ["pynchy-a-one"]
    assert runtime.list_running_containers("other-") == []
    stand_in.put("pynchy-a-one", "pynchy-ab-two", "buildkit")


@SHAPES
def test_a_container_that_never_began_to_run_is_found_and_removed(
    shape: str, runtime: AppleContainerRuntime, stand_in: Any
) -> None:
    stand_in.set(shape=shape)
    stand_in.put("pynchy-stuck", "pynchy-stuck-too")
    assert sorted(runtime.list_running_containers()) == ["pynchy-stuck", "pynchy-stuck-too"]
    runtime.stop("pynchy-stuck")
    assert runtime.list_running_containers() == ["pynchy-stuck-too"]


@pytest.mark.parametrize(
    "unknown",
    [
        {"container": {"id": "pynchy-b"}},
        {"configuration": {"name": "pynchy-b"}},
        {"configuration": {"id": 7}},
        {"configuration": "pynchy-b"},
        "pynchy-b",
        None,
    ],
    ids=json.dumps,
)
def test_what_is_listed_in_an_unknown_shape_is_left_alone_with_a_warning(
    unknown: Any, runtime: AppleContainerRuntime, stand_in: Any, caplog: pytest.LogCaptureFixture
) -> None:
    known = {"configuration": {"id": "pynchy-a"}, "status": {"phase": "of the moon"}}
    stand_in.set(answers={"ls": {"stdout": json.dumps([unknown, known])}})
    assert runtime.list_running_containers() == ["pynchy-a"]
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("pynchy.plugin", "WARNING")
    assert json.dumps(unknown) in record.getMessage()


@pytest.mark.parametrize("output", ["no JSON\nat all", "{}", '"pynchy-a"', "[{", "null"])
def test_an_answer_that_is_no_list_is_a_warning(
    output: str, runtime: AppleContainerRuntime, stand_in: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in.set(answers={"ls": {"stdout": output}})
    assert runtime.list_running_containers() == []
    (record,) = caplog.records
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize("output", ["", "\n", "[]", "[]\n"])
def test_nothing_listed_is_nothing(
    output: str, runtime: AppleContainerRuntime, stand_in: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in.set(answers={"ls": {"stdout": output}})
    assert runtime.list_running_containers() == []
    assert not caplog.records


def test_without_services_nothing_is_said_to_run_or_not(runtime: AppleContainerRuntime, stand_in: Any) -> None:
    stand_in.stop_services()
    words = "Apple's container does not run; start it with `container system start`"
    assert str(refused(runtime.list_running_containers)) == words
    assert str(refused(runtime.stop, "pynchy-a")) == words
    assert str(refused(runtime.run_args, RunSpec((), "pynchy-a", IMAGE))) == words
    stand_in.set(answers={"ls": {"code": 1, "stderr": "Error: a thing\nof two lines\n"}})
    assert "`container ls` failed: Error: a thing of two lines;" in str(refused(runtime.list_running_containers))


# --- how a container is started ---------------------------------------------------------------------------------------


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


# --- how one is ended -------------------------------------------------------------------------------------------------


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


# --- images -----------------------------------------------------------------------------------------------------------


def test_an_agent_image_of_our_lock_is_fine(runtime: AppleContainerRuntime, stand_in: Any) -> None:
    runtime.check_image(IMAGE)
    assert runtime.has_image(IMAGE)
    assert runtime.image_packages(IMAGE) == frozenset()
    stand_in.set(images={IMAGE: stand_in.agent_image("linux/amd64", "linux/arm64", packages='["pandas>=2"]')})
    runtime.check_image(IMAGE)
    assert runtime.image_packages(IMAGE) == {"pandas>=2"}


@pytest.mark.parametrize(
    "words", ['notFound: "image with reference {}"', "image inspect failed name={} error=image not found"]
)
def test_a_missing_image_is_named_with_the_command_that_makes_it(
    words: str, runtime: AppleContainerRuntime, stand_in: Any
) -> None:
    stand_in.set(images={}, not_found=words)
    assert str(refused(runtime.check_image, IMAGE)) == (
        f"the agent image {IMAGE} is missing; build it with `pynchy image build`"
    )
    assert not runtime.has_image(IMAGE)
    assert runtime.image_packages(IMAGE) is None


@pytest.mark.parametrize("stdout", ["", "[]", "[]\n"])
def test_an_answer_without_images_means_that_it_is_missing(
    stdout: str, runtime: AppleContainerRuntime, stand_in: Any
) -> None:
    stand_in.set(answers={"image inspect": {"stdout": stdout}})
    assert "is missing" in str(refused(runtime.check_image, IMAGE))


def test_an_image_of_another_lock_is_refused(runtime: AppleContainerRuntime, stand_in: Any) -> None:
    stand_in.set(images={IMAGE: stand_in.agent_image(lock="0" * 64)})
    assert "was built for another version of Pynchy" in str(refused(runtime.check_image, IMAGE))


def test_an_image_for_other_processors_is_refused_without_trying_it(
    runtime: AppleContainerRuntime, stand_in: Any
) -> None:
    stand_in.set(images={IMAGE: stand_in.agent_image("linux/amd64")})
    assert refused(runtime.check_image, IMAGE).args[0] == (
        f"the agent image {IMAGE} is for amd64 processors, and this machine's are arm64"
    )
    assert not [call for call in stand_in.calls() if call[0] == "run" and call != ["run", "--help"]]


def test_an_image_of_somebody_elses_has_no_packages_that_are_known(
    runtime: AppleContainerRuntime, stand_in: Any
) -> None:
    stand_in.set(images={IMAGE: stand_in.image(None)})
    runtime.check_image(IMAGE)
    assert runtime.image_packages(IMAGE) in (None, frozenset())


@pytest.mark.parametrize(
    "stdout",
    [
        "no JSON",
        "{}" * 2,
        '[{"Architecture": "arm64"}]',
        '[{"variants": []}]',
        '[{"variants": [{"platform": {"os": "unknown", "architecture": "unknown"}, "config": {}}]}]',
        '[{"variants": [{"platform": null}]}]',
        '{"variants": []}',
    ],
)
def test_an_answer_on_an_image_that_is_not_understood_is_said_to_be(
    stdout: str, runtime: AppleContainerRuntime, stand_in: Any
) -> None:
    stand_in.set(answers={"image inspect": {"stdout": stdout}})
    assert "its answer is none that is known here" in str(refused(runtime.check_image, IMAGE))
    assert not runtime.has_image(IMAGE)


def test_a_failure_to_look_at_images_is_no_missing_image(runtime: AppleContainerRuntime, stand_in: Any) -> None:
    stand_in.set(answers={"image inspect": {"code": 1, "stderr": "Error: the store is locked\n"}})
    assert "`container image` failed: Error: the store is locked" in str(refused(runtime.check_image, IMAGE))
    stand_in.set(answers={}, hangs=["image inspect"])
    runtime.answer_within = 0.5
    assert not runtime.has_image(IMAGE)


# --- the build --------------------------------------------------------------------------------------------------------


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """A lock with something of a plugin's."""
    lock = tmp_path / "plugins.lock"
    lock.write_text((container_dir() / "requirements/agent.lock").read_text() + "\n# and something\n")
    return lock


def built(stand_in: Any) -> dict[str, Any]:
    """What the program was given to build."""
    return json.loads((stand_in.directory / "build.json").read_text())


def test_an_image_is_built_and_then_it_is_the_agents(
    runtime: AppleContainerRuntime, stand_in: Any, lock: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stand_in.set(images={})
    runtime.build_image(IMAGE, lock, frozenset({"pandas>=2"}))
    runtime.check_image(IMAGE)
    assert runtime.image_packages(IMAGE) == {"pandas>=2"}
    assert f"build.sh: built {IMAGE}." in capfd.readouterr().out
    record = built(stand_in)
    assert record["files"]["Dockerfile"] == (container_dir() / "Dockerfile").read_text()
    assert record["files"]["requirements/plugins.lock"] == lock.read_text()
    digest = hashlib.sha256((container_dir() / "requirements/agent.lock").read_bytes()).hexdigest()
    assert record["arguments"]["AGENT_LOCK_SHA256"] == digest
    assert record["real"]
    assert record["options"]["--platform"] == ["linux/arm64"]


def test_a_build_that_fails_leads_to_its_output(
    runtime: AppleContainerRuntime, stand_in: Any, lock: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stand_in.set(build_fails=True)
    assert f"building the image {IMAGE} failed" in str(refused(runtime.build_image, IMAGE, lock, frozenset()))
    said = capfd.readouterr().err
    assert "failed to solve" in said
    assert f"build.sh: the image '{IMAGE}' was not built" in said


def build(*options: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the script as a person does."""
    return subprocess.run(
        ["bash", str(BUILD), *options],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYNCHY_CONTAINER_DIR": str(container_dir()), **env},
    )


def test_every_argument_is_given_with_its_value(stand_in: Any, tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n")
    secret = "a b'c\"$d"  # as it may stand in the URL of a proxy
    done = build("--tag", "mine:1", "--apt", "git curl", "--ca-bundle", str(bundle), HTTPS_PROXY=secret)
    assert done.returncode == 0, done.stderr
    record = built(stand_in)
    assert record["arguments"]["HTTPS_PROXY"] == secret
    assert record["arguments"]["EXTRA_APT"] == "git curl"
    assert record["files"]["extra-ca.crt"] == bundle.read_text()
    assert record["options"]["--tag"] == ["mine:1"]


def test_the_base_is_named_even_where_it_is_the_dockerfiles_own(stand_in: Any) -> None:
    assert build().returncode == 0
    (default,) = re.findall(r"^ARG BASE_IMAGE=(.*)$", (container_dir() / "Dockerfile").read_text(), re.MULTILINE)
    assert built(stand_in)["arguments"]["BASE_IMAGE"] == default
    assert build("--base", "mine:2").returncode == 0
    assert built(stand_in)["arguments"]["BASE_IMAGE"] == "mine:2"


def test_a_build_from_behind_a_link_finds_its_files(stand_in: Any, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert build(TMPDIR=str(tmp_path / "link")).returncode == 0
    assert built(stand_in)["real"]
    assert not list((tmp_path / "real").iterdir())


def test_pynchys_own_files_are_found_through_its_python(stand_in: Any, tmp_path: Path) -> None:
    directory = tmp_path / "bin"
    directory.mkdir()
    (directory / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (directory / "python3").chmod(0o755)
    done = build(PYNCHY_CONTAINER_DIR="", PATH=f"{directory}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    (directory / "python3").write_text("#!/bin/sh\necho no such module >&2; exit 1\n")
    done = build(PYNCHY_CONTAINER_DIR="", PATH=f"{directory}:{os.environ['PATH']}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "Pynchy is not installed for this 'python3'" in done.stderr


def test_a_network_for_builds_is_refused_for_there_is_no_such_option(stand_in: Any) -> None:
    done = build("--network", "host")
    assert (done.returncode, done.stderr) == (
        2,
        "build.sh: Apple's container has no --network for builds: leave the option out.\n",
    )


def test_a_build_without_the_program_or_its_services_says_what_to_do(stand_in: Any, tmp_path: Path) -> None:
    stand_in.stop_services()
    done = build()
    assert (done.returncode, done.stderr) == (
        1,
        "build.sh: Apple's container does not run: start it with 'container system start'.\n",
    )
    for program in ("bash", "sed"):
        (tmp_path / program).symlink_to(str(shutil.which(program)))
    done = build(PATH=str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "is not installed (no 'container' in PATH)" in done.stderr


def test_the_scripts_help_needs_nothing(tmp_path: Path) -> None:
    for program in ("bash", "cat"):
        (tmp_path / program).symlink_to(str(shutil.which(program)))
    done = build("--help", PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: build.sh [options]\n")
    assert "Apple's container" in done.stdout


# --- the choice -------------------------------------------------------------------------------------------------------


def test_it_is_preferred_to_docker_where_it_matches(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pynchy.plugin import select_runtime

    registry = PluginRegistry(runtimes=[AppleContainerPlugin()])
    assert select_runtime(registry).name == "apple"
    monkeypatch.setenv("CONTAINER_RUNTIME", "docker")
    assert select_runtime(registry).name == "docker"
