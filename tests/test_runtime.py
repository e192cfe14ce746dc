"""Which runtime runs the agents, what Docker says when it cannot, and what a container is started with."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from support import docker_runtime

from pynchy.plugin import (
    ContainerRuntime,
    InvalidPlugin,
    OciRuntime,
    PluginRecord,
    PluginRegistry,
    RuntimePlugin,
    RuntimeUnavailable,
    State,
    runtime_candidates,
    select_runtime,
)
from pynchy.runtime import DockerRuntime, agent_image, detect_runtime, get_runtime, reset_runtime
from pynchy.types import RunSpec, VolumeMount


class Podman(OciRuntime):
    """A runtime as a plugin may bring it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.cli = name


class Plugin(RuntimePlugin):
    """A runtime plugin whose runtime may be called otherwise than itself."""

    def __init__(self, name: str, priority: int = 10, runtime: str = "") -> None:
        self.name = name
        self._priority = priority
        self._runtime = runtime or name

    def create_runtime(self) -> ContainerRuntime:
        """The runtime."""
        return Podman(self._runtime)

    @property
    def priority(self) -> int:
        """As it was given."""
        return self._priority


class Broken(Plugin):
    """One that raises where it is told to."""

    def __init__(self, name: str, member: str, error: BaseException, priority: int = 10) -> None:
        super().__init__(name, priority)
        self._member = member
        self._error = error

    def create_runtime(self) -> ContainerRuntime:
        """Raise, or not."""
        if self._member == "create_runtime":
            raise self._error
        return super().create_runtime()

    @property
    def priority(self) -> int:
        """Raise, or not."""
        if self._member == "priority":
            raise self._error
        return super().priority


class Untouchable:
    """What may not even be looked at."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"{name} was touched")


def registry(*plugins: RuntimePlugin, unmatched: tuple[RuntimePlugin, ...] = ()) -> PluginRegistry:
    """A registry as discovery leaves it."""
    records = [PluginRecord(f"ep-{one.name}", "m:C", State.READY, one.name) for one in (*plugins, *unmatched)]
    return PluginRegistry(runtimes=list(plugins), unmatched_runtimes=list(unmatched), records=records)


# --- the choice -------------------------------------------------------------------------------------------------------


def test_without_plugins_docker_is_used() -> None:
    assert isinstance(select_runtime(PluginRegistry()), DockerRuntime)
    assert isinstance(detect_runtime(), DockerRuntime)


def test_the_highest_priority_is_used_whatever_the_order() -> None:
    plugins = [Plugin("podman", 10), Plugin("apple", 20), Plugin("nerdctl", 15)]
    for order in (plugins, plugins[::-1]):
        assert select_runtime(registry(*order)).name == "apple"


def test_equal_priorities_are_decided_by_name() -> None:
    plugins = [Plugin("zebra"), Plugin("ant"), Plugin("bee")]
    for order in (plugins, plugins[::-1]):
        assert select_runtime(registry(*order)).name == "ant"


@pytest.mark.parametrize(("priority", "chosen"), [(1, "podman"), (-1, "docker")])
def test_docker_stands_among_the_others_with_priority_0(priority: int, chosen: str) -> None:
    assert select_runtime(registry(Plugin("podman", priority))).name == chosen


def test_the_candidates_are_listed_best_first() -> None:
    ranked = runtime_candidates(registry(Plugin("podman", 10), Plugin("last", -5), Plugin("apple", 20)))
    assert [(one.name, one.priority) for one in ranked] == [("apple", 20), ("podman", 10), ("docker", 0), ("last", -5)]


@pytest.mark.parametrize("value", ["apple-container", "apple", "APPLE", " apple "])
def test_container_runtime_names_a_plugin_or_its_runtime(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_RUNTIME", value)
    plugins = registry(Plugin("podman", 50), Plugin("apple-container", 1, runtime="apple"))
    assert select_runtime(plugins).name == "apple"


def test_a_plugins_own_name_counts_before_anothers_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_RUNTIME", "podman")
    impostor = Plugin("impostor", 50, runtime="podman")
    genuine = Plugin("podman", 1, runtime="podman-5")
    assert select_runtime(registry(impostor, genuine)).name == "podman-5"


@pytest.mark.parametrize("value", ["docker", "Docker", " docker "])
def test_container_runtime_docker_touches_no_plugin(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_RUNTIME", value)
    untouchable: Any = Untouchable()
    plugins = PluginRegistry(runtimes=[untouchable], unmatched_runtimes=[untouchable])
    assert isinstance(select_runtime(plugins), DockerRuntime)


def test_an_empty_container_runtime_chooses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_RUNTIME", " ")
    assert select_runtime(registry(Plugin("podman"))).name == "podman"


def test_an_unknown_container_runtime_is_an_error_that_lists_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_RUNTIME", "podmann")
    plugins = registry(Plugin("apple-container", runtime="apple"), unmatched=(Plugin("podman"),))
    with pytest.raises(RuntimeError, match="Unknown CONTAINER_RUNTIME='podmann'") as failure:
        select_runtime(plugins)
    assert "available: apple, apple-container, docker, podman." in str(failure.value)


def test_a_runtime_for_another_platform_is_used_only_when_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = registry(unmatched=(Plugin("apple", 20),))
    assert select_runtime(plugins).name == "docker"
    assert [one.name for one in runtime_candidates(plugins)] == ["docker"]
    monkeypatch.setenv("CONTAINER_RUNTIME", "apple")
    assert select_runtime(plugins).name == "apple"


class Unprintable(Exception):
    """An error that cannot even be shown."""

    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("member", ["priority", "create_runtime"])
@pytest.mark.parametrize(
    "error", [ValueError("broken"), SystemExit("broken"), GeneratorExit(), Unprintable()], ids=repr
)
def test_a_runtime_plugin_that_raises_is_recorded_and_skipped(member: str, error: BaseException) -> None:
    plugins = registry(Broken("broken", member, error, 50), Plugin("podman"))
    assert select_runtime(plugins).name == "podman"
    record, other = plugins.records
    assert (record.state, record.phase) == (State.FAILED, member)
    assert record.reason.startswith(f"{member} raised {type(error).__name__}")
    assert "\n" not in record.reason
    assert record.remedy
    assert other.state is State.READY


@pytest.mark.parametrize("member", ["priority", "create_runtime"])
def test_our_own_error_from_a_runtime_plugins_hand_is_recorded_like_any_other(member: str) -> None:
    plugins = registry(Broken("broken", member, InvalidPlugin("no socket", "start it"), 50), Plugin("podman"))
    assert select_runtime(plugins).name == "podman"
    assert (plugins.records[0].state, plugins.records[0].phase) == (State.FAILED, member)
    assert "no socket" in plugins.records[0].reason


def test_an_interruption_from_the_keyboard_while_a_runtime_is_created_passes() -> None:
    with pytest.raises(KeyboardInterrupt):
        select_runtime(registry(Broken("broken", "create_runtime", KeyboardInterrupt())))


def test_a_priority_that_became_no_number_is_recorded_and_its_plugin_skipped() -> None:
    high: Any = "high"
    plugins = registry(Plugin("fickle", high), Plugin("podman"))
    assert select_runtime(plugins).name == "podman"
    assert (plugins.records[0].state, plugins.records[0].phase) == (State.FAILED, "priority")


def test_a_runtime_plugin_is_known_by_the_name_it_was_registered_under(monkeypatch: pytest.MonkeyPatch) -> None:
    liar = Plugin("podman", runtime="podman-5")
    plugins = registry(liar, Broken("broken", "create_runtime", OSError("no")))
    plugins.names = {id(plugin): plugin.name for plugin in plugins.runtimes}
    for lie in ("docker", "broken", None, 7):
        monkeypatch.setattr(liar, "name", lie)
        assert [one.name for one in runtime_candidates(plugins)] == ["broken", "podman", "docker"]
        monkeypatch.setenv("CONTAINER_RUNTIME", "podman")
        assert select_runtime(plugins).name == "podman-5"
        monkeypatch.setenv("CONTAINER_RUNTIME", "apple")
        with pytest.raises(RuntimeError, match="available: docker, podman, podman-5"):
            select_runtime(plugins)


def test_a_failure_is_recorded_on_the_plugin_that_has_the_name_not_on_one_that_wanted_it() -> None:
    plugins = registry(Broken("podman", "create_runtime", ValueError("broken")))
    conflict = PluginRecord("ep-second", "m:D", State.CONFLICT, "podman", reason="the name is taken")
    plugins.records.append(conflict)
    assert select_runtime(plugins).name == "docker"
    assert [record.entry_point for record in plugins.records] == ["ep-podman", "ep-second"]
    assert plugins.records[1] == conflict


def test_where_every_plugin_raises_docker_is_used() -> None:
    plugins = registry(*(Broken(name, "create_runtime", OSError("no")) for name in ("a", "b")))
    assert isinstance(select_runtime(plugins), DockerRuntime)


def test_a_plugin_that_was_asked_for_and_raises_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_RUNTIME", "podman")
    plugins = registry(Broken("podman", "create_runtime", ValueError("no socket")), Plugin("apple"))
    with pytest.raises(RuntimeError, match="create_runtime raised ValueError: no socket") as failure:
        select_runtime(plugins)
    assert "available: apple, docker." in str(failure.value)


def test_a_broken_plugin_does_not_hide_the_one_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_RUNTIME", "apple")
    plugins = registry(Broken("a", "create_runtime", SystemExit(1)), Plugin("apple-container", runtime="apple"))
    assert select_runtime(plugins).name == "apple"


@pytest.mark.parametrize("lacking", ["name", "cli", "ensure_running", "list_running_containers", "build_run_args"])
def test_a_runtime_that_lacks_a_member_is_refused(lacking: str) -> None:
    members: dict[str, Any] = {
        "name": "x",
        "cli": "x",
        "ensure_running": lambda self: None,
        "list_running_containers": lambda self, prefix="pynchy-": [],
        "build_run_args": lambda self, mounts, container_name, image: [],
    }

    class Incomplete(Plugin):
        def create_runtime(self) -> ContainerRuntime:
            runtime: Any = type("Runtime", (), {key: value for key, value in members.items() if key != lacking})()
            return runtime

    plugins = registry(Incomplete("incomplete"))
    assert select_runtime(plugins).name == "docker"
    assert plugins.records[0].state is State.FAILED
    assert "which is no ContainerRuntime" in plugins.records[0].reason


def test_a_runtime_whose_name_is_no_string_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nameless(Plugin):
        def create_runtime(self) -> ContainerRuntime:
            runtime: Any = Podman("x")
            runtime.name = None
            return runtime

    monkeypatch.setenv("CONTAINER_RUNTIME", "apple")
    plugins = registry(Nameless("nameless"), Plugin("apple-container", runtime="apple"))
    assert select_runtime(plugins).name == "apple"
    assert plugins.records[0].state is State.FAILED


def test_get_runtime_chooses_once_until_it_is_reset() -> None:
    first = get_runtime(registry(Plugin("podman")))
    assert first.name == "podman"
    assert get_runtime(registry(Plugin("apple", 20))) is first
    assert get_runtime() is first
    reset_runtime()
    assert get_runtime(registry(Plugin("apple", 20))).name == "apple"


def test_get_runtime_without_a_registry_discovers_the_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_runtime_plugin.py").write_text(
        "from pynchy.plugin import *\n"
        "class Runtime(OciRuntime):\n    name = cli = 'discovered'\n"
        "class Plugin(RuntimePlugin):\n    name = 'discovered'\n    def create_runtime(self): return Runtime()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = [EntryPoint("discovered", "a_runtime_plugin:Plugin", "pynchy.plugins")]
    monkeypatch.setattr("pynchy.plugin._discovery.entry_points", lambda group: found)
    assert get_runtime().name == "discovered"


def test_a_failed_choice_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_RUNTIME", "nothing")
    with pytest.raises(RuntimeError):
        get_runtime(PluginRegistry())
    monkeypatch.delenv("CONTAINER_RUNTIME")
    assert get_runtime(PluginRegistry()).name == "docker"


# --- what Docker says when it cannot ----------------------------------------------------------------------------------


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put an executable called `docker` first in PATH that runs these lines of shell."""

    def put(lines: str, start: str = "#!/bin/sh\n") -> None:
        directory = tmp_path / "bin"
        directory.mkdir(exist_ok=True)
        (directory / "docker").write_text(start + lines)
        (directory / "docker").chmod(0o755)
        monkeypatch.setenv("PATH", str(directory))

    return put


def unavailable(runtime: ContainerRuntime) -> RuntimeUnavailable:
    """Why it cannot be used."""
    with pytest.raises(RuntimeUnavailable) as failure:
        runtime.ensure_running()
    assert failure.value.remedy
    return failure.value


def engine(*options: str, **more: Any) -> str:
    """Lines of shell that answer like an engine with these security options."""
    security = [f"name={one}" for one in options]
    info = {"ServerVersion": "28.0.0", "Architecture": "x86_64", "SecurityOptions": security, **more}
    return f"echo '{json.dumps(info)}'\n"


def test_docker_that_answers_is_fine(stand_in: Any) -> None:
    stand_in(engine())
    DockerRuntime().ensure_running()


def test_the_user_of_a_rootless_engine_is_root_of_its_containers(stand_in: Any) -> None:
    stand_in(engine("seccomp,profile=builtin", "rootless"))
    runtime = DockerRuntime()
    runtime.ensure_running()
    assert options(runtime.run_args(_SPEC))["--user"] == ["0:0"]


def test_a_limit_that_the_engine_does_not_keep_is_not_claimed(stand_in: Any) -> None:
    stand_in(engine(MemoryLimit=False, CpuCfsQuota=True, PidsLimit=False))
    assert DockerRuntime().supports == {"cpus", "bridge"}
    stand_in(engine())
    assert DockerRuntime().supports == {"memory", "cpus", "pids", "bridge"}


def test_an_engine_that_maps_users_elsewhere_is_told_not_to(stand_in: Any) -> None:
    stand_in(engine("seccomp,profile=builtin", "userns"))
    given = options(DockerRuntime().run_args(_SPEC))
    assert (given["--userns"], given["--user"]) == (["host"], ["60999:60998"])


def test_labels_of_selinux_do_not_keep_the_agent_from_its_folder(stand_in: Any) -> None:
    stand_in(engine("selinux"))
    given = options(DockerRuntime().run_args(_SPEC))
    assert given["--security-opt"] == ["no-new-privileges", "label=disable"]


def test_an_engine_that_hangs_is_given_up(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in("exec /bin/sleep 60\n")
    slow = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: slow(*args, **{**options, "timeout": 0.2}))
    assert str(unavailable(DockerRuntime())) == "Docker did not answer within 20 s; restart Docker"


def test_docker_that_is_not_installed_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "Docker is not installed; install " in str(unavailable(DockerRuntime()))
    assert not DockerRuntime().has_image("any")


_DEAD = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
_DEAD_NEW = "failed to connect to the docker API at unix:///var/run/docker.sock; check if the path is correct"
_DENIED = "permission denied while trying to connect to the Docker daemon socket: dial unix: connect: permission denied"


@pytest.mark.parametrize(
    ("stderr", "reason", "remedy"),
    [
        (_DEAD, "Docker is installed but not running", "start"),
        (_DEAD_NEW, "Docker is installed but not running", "start"),
        (_DENIED, "this user may not talk to Docker", "`docker` group"),
        ("the moon is in the wrong phase", "the moon is in the wrong phase", "docker info"),
    ],
)
def test_dockers_complaints_are_told_apart(stderr: str, reason: str, remedy: str, stand_in: Any) -> None:
    stand_in(f"echo '{stderr}' >&2\nexit 1\n")
    error = unavailable(DockerRuntime())
    assert reason in error.args[0]
    assert remedy in error.remedy


@pytest.mark.parametrize(
    ("system", "command"),
    [
        ("darwin", "`open -a Docker`"),
        ("systemd", "`sudo systemctl start docker`"),
        ("rootless", "`systemctl --user start docker`"),
        ("openrc", "`sudo rc-service docker start`"),
        ("other", "`sudo service docker start`"),
    ],
)
def test_the_command_that_starts_docker_is_this_systems(
    system: str, command: str, stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(f"echo '{_DEAD}' >&2\nexit 1\n")
    monkeypatch.setattr("sys.platform", "darwin" if system == "darwin" else "linux")
    monkeypatch.setattr("pynchy.runtime._SYSTEMD", tmp_path if system in ("systemd", "rootless") else tmp_path / "none")
    if system == "rootless":
        monkeypatch.setenv("DOCKER_HOST", f"unix:///run/user/{os.getuid()}/docker.sock")
    if system == "openrc":
        (tmp_path / "bin/rc-service").symlink_to("/bin/true")
    assert command in unavailable(DockerRuntime()).remedy


def test_output_that_is_not_utf8_and_a_program_that_is_none_are_complaints_too(stand_in: Any) -> None:
    stand_in("printf 'caf\\351' >&2\nexit 1\n")
    assert "caf\N{REPLACEMENT CHARACTER}" in unavailable(DockerRuntime()).args[0]
    stand_in("\x7fnot a program", start="")
    assert "docker cannot be started" in unavailable(DockerRuntime()).args[0]
    assert not DockerRuntime().has_image("any")


@pytest.mark.docker
def test_the_real_client_without_an_engine_is_not_running(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    docker_runtime()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/dead.sock")
    assert unavailable(DockerRuntime()).args[0] == "Docker is installed but not running"
    with pytest.raises(RuntimeUnavailable):
        DockerRuntime().stop("pynchy-whatever")


@pytest.mark.docker
def test_a_missing_image_is_named_with_the_command_that_builds_it() -> None:
    runtime = docker_runtime()
    with pytest.raises(RuntimeUnavailable) as failure:
        runtime.check_image("pynchy-no-such-image:latest")
    assert str(failure.value) == (
        "the agent image pynchy-no-such-image:latest is missing; build it with `pynchy image build`"
    )


def image(*changes: str) -> str:
    """Make an image that is the agent's with these changes, as Dockerfile lines; returns its name, which is new."""
    tag = f"pynchy-test:{uuid.uuid4().hex[:12]}"
    lines = "\n".join((f"FROM {agent_image()}", *changes))
    subprocess.run(["docker", "build", "--quiet", "--tag", tag, "-"], input=lines, text=True, check=True, timeout=60)
    return tag


@pytest.mark.docker
def test_an_image_of_another_version_of_pynchy_is_named_with_what_to_do() -> None:
    runtime = docker_runtime()
    tag = image("LABEL io.pynchy.agent-lock=0123")
    try:
        with pytest.raises(RuntimeUnavailable, match=r"for another version of Pynchy; build it anew with"):
            runtime.check_image(tag)
    finally:
        runtime.command("image", "rm", tag)


@pytest.mark.docker
def test_an_image_for_another_processor_is_refused_unless_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = docker_runtime()
    other = "arm64" if runtime.architecture() == "amd64" else "amd64"
    # Says that it is for another processor, and is not: as on a machine that can run both.
    monkeypatch.setattr(runtime, "architecture", lambda: other)
    runtime.check_image(agent_image())
    tag = image("USER root", "RUN rm /usr/bin/true", "USER agent")
    try:
        with pytest.raises(RuntimeUnavailable, match=rf"is for \w+ processors, and this machine's are {other}; build"):
            runtime.check_image(tag)
    finally:
        runtime.command("image", "rm", tag)


def test_an_image_is_not_missing_when_docker_does_not_run(stand_in: Any) -> None:
    stand_in(f"echo '{_DEAD}' >&2\nexit 1\n")
    with pytest.raises(RuntimeUnavailable, match="not running"):
        DockerRuntime().check_image("any")


def test_container_image_names_the_agents_image(monkeypatch: pytest.MonkeyPatch) -> None:
    assert agent_image() == "pynchy-agent:latest"
    monkeypatch.setenv("CONTAINER_IMAGE", " mine:7 ")
    assert agent_image() == "mine:7"


# --- what a container is started with ---------------------------------------------------------------------------------


def options(args: list[str]) -> dict[str, list[str]]:
    """The options of `docker run` with their values, `yes` for those without."""
    found: dict[str, list[str]] = {}
    words = iter(args[1:-1])
    for word in words:
        assert word.startswith("--"), f"{word} is no option"
        flag = word in ("--rm", "--interactive", "--read-only")
        found.setdefault(word, []).append("yes" if flag else next(words))
    return found


_SPEC = RunSpec(
    mounts=(VolumeMount("/host/a", "/inside/a", readonly=True), VolumeMount("/host/b", "/inside/b")),
    container_name="pynchy-x-main-1",
    image="pynchy-agent:latest",
    env={"B": "2", "A": "1"},
    labels={"io.pynchy.group": "main"},
    memory_bytes=123_000_000,
    cpus=1.5,
    pids=99,
    user=(60999, 60998),
)


def test_run_args_confine_the_container() -> None:
    args = DockerRuntime().run_args(_SPEC)
    assert (args[0], args[-1]) == ("run", "pynchy-agent:latest")
    given = options(args)
    assert given["--network"] == ["none"]
    assert options(DockerRuntime().run_args(replace(_SPEC, network="bridge")))["--network"] == ["bridge"]
    assert given["--cap-drop"] == ["ALL"]
    assert given["--security-opt"] == ["no-new-privileges"]
    assert given["--read-only"] == ["yes"]
    assert given["--user"] == ["60999:60998"]
    assert given["--log-driver"] == ["none"]
    assert given["--pull"] == ["never"]
    assert given["--rm"] == given["--interactive"] == ["yes"]
    assert given["--name"] == ["pynchy-x-main-1"]
    assert (given["--memory"], given["--memory-swap"]) == (["123000000"], ["123000000"])
    assert (given["--cpus"], given["--pids-limit"]) == (["1.5"], ["99"])
    assert given["--label"] == ["io.pynchy.group=main"]
    assert given["--env"] == ["A=1", "B=2"]
    assert given["--mount"] == [
        "type=bind,source=/host/a,target=/inside/a,readonly",
        "type=bind,source=/host/b,target=/inside/b",
    ]
    home, tmp = given["--tmpfs"]
    assert home.startswith("/home/agent:")
    assert tmp.startswith("/tmp:")
    for disk in (home, tmp):
        assert {"nosuid", "nodev", "size=1g", "mode=1777"} <= set(disk.partition(":")[2].split(","))
    assert not {"--init", "--privileged", "--volume", "--cap-add", "--device", "--pid", "--ipc"} & set(given)


def test_a_limit_that_is_none_is_left_out() -> None:
    given = options(DockerRuntime().run_args(RunSpec((), "n", "i", memory_bytes=None, cpus=None, pids=None)))
    assert not {"--memory", "--memory-swap", "--cpus", "--pids-limit", "--user"} & set(given)


@pytest.mark.parametrize(
    "name", ["", "x" * 129, "n" * 300, "-it", "--privileged", "a b", "a/b", "..", "../x", "a\nb", "ä", ".x"]
)
def test_a_container_cannot_be_called_like_an_option_or_a_path(name: str) -> None:
    with pytest.raises(ValueError, match="a container cannot be called"):
        RunSpec((), name, "i")


@pytest.mark.parametrize("image", ["--privileged", "-v/:/host", "a b", "a\n"])
def test_an_image_cannot_be_called_like_an_option(image: str) -> None:
    with pytest.raises(ValueError, match=r"an image cannot be called .*; correct CONTAINER_IMAGE"):
        RunSpec((), "n", image)


def test_build_run_args_are_the_run_args_with_the_defaults() -> None:
    mounts = [VolumeMount("/host/a", "/inside/a")]
    runtime = DockerRuntime()
    assert runtime.build_run_args(mounts, "n", "i") == runtime.run_args(RunSpec(tuple(mounts), "n", "i"))
    given = options(runtime.build_run_args(mounts, "n", "i"))
    assert {"--memory", "--cpus", "--pids-limit"} <= set(given)


@pytest.mark.parametrize("path", ["/a b", "/a,b", '/a"b', '/a,"b",readonly', "/ä/日本語 🎉", "/a=b", "/a'b", "/a\\b"])
def test_a_mounts_path_is_quoted_as_csv(path: str) -> None:
    args = DockerRuntime().run_args(RunSpec((VolumeMount(path, "/x", readonly=True),), "n", "i"))
    (fields,) = csv.reader([args[args.index("--mount") + 1]])
    assert fields == ["type=bind", f"source={path}", "target=/x", "readonly"]


# --- against a real engine --------------------------------------------------------------------------------------------


@pytest.fixture
def docker() -> DockerRuntime:
    """A Docker that runs agents, or a skip."""
    return docker_runtime()


#: No test may see another's containers, nor those of a service that runs on this machine.
_PREFIX = f"pynchy-test-{uuid.uuid4().hex[:8]}-"


def run(runtime: DockerRuntime, spec: RunSpec, script: str) -> subprocess.Popen[str]:
    """Start a shell where the agent would be."""
    args = runtime.run_args(spec)
    command = [runtime.cli, *args[:-1], "--entrypoint", "sh", args[-1], "-c", script]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def containers(docker: DockerRuntime) -> Iterator[Any]:
    """Start containers that wait; whatever is left of them in the end is removed."""
    started: list[tuple[str, subprocess.Popen[str]]] = []

    def start(name: str, script: str = "echo up; exec sleep 600") -> subprocess.Popen[str]:
        process = run(docker, RunSpec((), _PREFIX + name, agent_image()), script)
        started.append((_PREFIX + name, process))
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return process

    yield start
    for name, process in started:
        docker.stop(name)
        with process:
            process.kill()


def listed(docker: DockerRuntime, wanted: list[str], prefix: str = _PREFIX) -> list[str]:
    """The running containers; the engine may list one only a moment after its first output."""
    deadline = time.monotonic() + 10
    while (found := sorted(docker.list_running_containers(prefix))) != wanted and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


@pytest.mark.docker
@pytest.mark.parametrize("name", ["plain", "with a space", "com,ma", 'quo"te', "ünïcödé 🎉", "a=b,readonly"])
def test_a_file_is_read_through_a_mount_whatever_its_name(name: str, docker: DockerRuntime, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "file").write_text("found")
    folder.chmod(0o755)
    mounts = (VolumeMount(str(folder), f"/workspace/plugins/{name}", readonly=True),)
    process = run(
        docker,
        RunSpec(mounts, _PREFIX + "mount", agent_image()),
        "cat /workspace/plugins/*/file; touch /workspace/plugins/*/x",
    )
    output, _ = process.communicate(timeout=60)
    assert output == "found"
    assert sorted(path.name for path in folder.iterdir()) == ["file"]


@pytest.mark.docker
def test_a_mount_whose_source_is_missing_fails_and_makes_nothing(docker: DockerRuntime, tmp_path: Path) -> None:
    mounts = (VolumeMount(str(tmp_path / "missing"), "/x"),)
    process = run(docker, RunSpec(mounts, _PREFIX + "missing", agent_image()), "true")
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (tmp_path / "missing").exists()


@pytest.mark.docker
@pytest.mark.parametrize("user", [None, (60999, 60999)])
def test_inside_there_is_no_way_out(user: tuple[int, int] | None, docker: DockerRuntime, tmp_path: Path) -> None:
    script = """
    id -u; echo home > ~/x && cat ~/x; echo tmp > /tmp/x && cat /tmp/x
    grep -E '^(CapPrm|CapEff|CapBnd|NoNewPrivs)' /proc/self/status | tr '\\t' ' '
    for d in / /etc /usr /opt /workspace /dev; do touch $d/x 2>/dev/null && echo wrote $d; done
    ls /sys/class/net
    """
    process = run(docker, RunSpec((), _PREFIX + "inside", agent_image(), user=user), script)
    output, _ = process.communicate(timeout=60)
    none = "0" * 16
    assert output.splitlines() == [
        str(user[0]) if user else "1000",
        "home",
        "tmp",
        f"CapPrm: {none}",
        f"CapEff: {none}",
        f"CapBnd: {none}",
        "NoNewPrivs: 1",
        "lo",
    ]


@pytest.mark.docker
def test_the_limits_are_set(docker: DockerRuntime) -> None:
    name = _PREFIX + "limits"
    process = run(docker, RunSpec((), name, agent_image(), labels={"io.pynchy.x": "a b"}), "echo up; exec sleep 600")
    try:
        assert process.stdout is not None
        process.stdout.readline()
        form = (
            "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}} "
            '{{.HostConfig.LogConfig.Type}} {{index .Config.Labels "io.pynchy.x"}}'
        )
        found = docker.command("inspect", "--format", form, name)
        assert found.split(maxsplit=5) == ["2147483648", "2147483648", "2000000000", "512", "none", "a b\n"]
    finally:
        docker.stop(name)
        with process:
            process.kill()


@pytest.mark.docker
def test_running_containers_are_listed_by_prefix(docker: DockerRuntime, containers: Any) -> None:
    assert docker.list_running_containers(_PREFIX) == []
    containers("one")
    containers("two")
    assert listed(docker, [_PREFIX + "one", _PREFIX + "two"]) == [_PREFIX + "one", _PREFIX + "two"]
    assert docker.list_running_containers(_PREFIX + "t") == [_PREFIX + "two"]
    assert docker.list_running_containers(_PREFIX.removeprefix("pynchy-")) == []
    assert {_PREFIX + "one", _PREFIX + "two"} <= set(docker.list_running_containers())


@pytest.mark.docker
@pytest.mark.parametrize("client", ["alive", "killed", "gone by itself"])
def test_stop_returns_when_nothing_of_the_container_is_left(
    client: str, docker: DockerRuntime, containers: Any
) -> None:
    script = "echo up; read line" if client == "gone by itself" else "trap '' TERM INT; echo up; sleep 600; sleep 600"
    process = containers("stopped", script)
    containers("other")
    if client == "killed":
        process.kill()
    elif client == "gone by itself":
        process.stdin.close()  # the engine is removing it by itself when `stop` comes
    docker.stop(_PREFIX + "stopped")
    assert docker.command("ps", "--all", "--filter", f"name={_PREFIX}stopped", "--format", "{{.Names}}") == ""
    assert listed(docker, [_PREFIX + "other"]) == [_PREFIX + "other"]
    docker.stop(_PREFIX + "stopped")  # safe to repeat
