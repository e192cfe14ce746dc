"""Podman as a runtime: when it is used, what it says when it cannot be, and what a container keeps in and leaves.

Whoever runs these tests runs the containers: root those of root's Podman, an ordinary user rootless ones. What this
machine's Podman is not, a stand-in is: a `podman` in PATH that answers what a real one has answered.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pynchy.container_runner import CLIENT_VARIABLES
from pynchy.home import container_dir
from pynchy.plugin import PluginRegistry, RunSpec, RuntimeUnavailable, VolumeMount, select_runtime
from pynchy.runtime import agent_image
from pynchy_plugin_podman import PodmanPlugin
from pynchy_plugin_podman.monitors import monitors
from pynchy_plugin_podman.runtime import PodmanRuntime

#: Whom a root host's agents run as; an ordinary user's as that user.
AGENT = (60999, 60999) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
#: No test may see another's containers, nor those of a service that runs on this machine.
PREFIX = f"pynchy-test-{uuid.uuid4().hex[:8]}-"
PROJECT = Path(__file__).parents[1]
#: What all agents are allowed, where nothing else is said.
LIMITS = {"--memory": ["2147483648"], "--memory-swap": ["2147483648"], "--cpus": ["2.0"], "--pids-limit": ["512"]}


def missing(reason: str) -> None:
    """Skip, or fail where PYNCHY_REQUIRE lists podman."""
    if "podman" in os.environ.get("PYNCHY_REQUIRE", "").split(","):
        pytest.fail(f"podman is required and missing: {reason}")
    pytest.skip(f"podman: {reason}")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the tests."""
    for name in ("CONTAINER_RUNTIME", "CONTAINER_IMAGE", "PYNCHY_CONTAINER_DIR", "PYNCHY_IMAGE_OPTIONS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def podman() -> PodmanRuntime:
    """A Podman that runs agents, or a skip."""
    runtime = PodmanRuntime()
    try:
        runtime.check_image(agent_image())
    except RuntimeUnavailable as error:
        missing(str(error))
    return runtime


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make a podman that runs these lines of shell all that there is in PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))

    def put(lines: str) -> None:
        (directory / "podman").write_text(f"#!/bin/sh\n{lines}\n")
        (directory / "podman").chmod(0o755)

    return put


def info(**host: Any) -> str:
    """Lines of shell that answer like root's Podman on a machine with systemd, but for these fields."""
    rootless = host.pop("rootless", False)
    selinux = host.pop("selinux", False)
    answer = {
        "arch": "amd64",
        "cgroupManager": "systemd",
        "cgroupVersion": "v2",
        "cgroupControllers": ["cpuset", "cpu", "io", "memory", "pids"],
        "idMappings": {"uidmap": None, "gidmap": None},
        "security": {"rootless": rootless, "selinuxEnabled": selinux},
        "serviceIsRemote": False,
        **host,
    }
    return f"""[ "$*" = "info --format json" ] && echo '{json.dumps({"host": answer})}'"""


def mapping(*sizes: int) -> dict[str, Any]:
    """The ids that a user has, as `podman info` has them."""
    ranges = [{"container_id": 0, "host_id": 1000, "size": size} for size in sizes]
    return {"uidmap": ranges, "gidmap": ranges}


# --- when it is used ------------------------------------------------------------------------------------------


def test_it_is_used_where_it_is_installed_and_docker_only_when_that_is_asked_for(
    stand_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in("exit 1")
    plugin = PodmanPlugin()
    assert (plugin.platform_matches(), plugin.platform_reason, plugin.priority) == (True, "", 10)
    assert select_runtime(PluginRegistry(runtimes=[plugin])).name == "podman"
    monkeypatch.setenv("CONTAINER_RUNTIME", "docker")
    assert select_runtime(PluginRegistry(runtimes=[plugin])).name == "docker"


def test_it_does_not_match_where_it_is_missing_but_can_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    plugin = PodmanPlugin()
    assert (plugin.platform_matches(), plugin.platform_reason) == (False, "Podman is not installed")
    assert select_runtime(PluginRegistry(unmatched_runtimes=[plugin])).name == "docker"
    monkeypatch.setenv("CONTAINER_RUNTIME", "podman")
    assert isinstance(select_runtime(PluginRegistry(unmatched_runtimes=[plugin])), PodmanRuntime)


@pytest.mark.parametrize(("platform", "matches"), [("linux", True), ("darwin", True), ("win32", False)])
def test_it_is_for_linux_and_macos(
    platform: str, matches: bool, stand_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in("exit 1")
    monkeypatch.setattr(sys, "platform", platform)
    assert PodmanPlugin().platform_matches() is matches
    assert ("Linux and macOS only" in PodmanPlugin().platform_reason) is not matches


def test_whether_it_matches_is_decided_without_starting_it(stand_in: Callable[[str], None], tmp_path: Path) -> None:
    stand_in(f"echo started > {tmp_path}/started")
    assert PodmanPlugin().platform_matches()
    assert not (tmp_path / "started").exists()


def test_the_wheel_has_everything_that_the_package_needs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    package = "pynchy_plugin_podman"
    wanted = {"__init__.py", "plugin.py", "runtime.py", "monitors.py", "build.sh", "hosts"}
    assert {f"{package}/{name}" for name in wanted} == {name for name in names if name.startswith(f"{package}/")}


# --- what it says when it cannot be used ----------------------------------------------------------------------


def unavailable(runtime: PodmanRuntime) -> RuntimeUnavailable:
    """Why it cannot be used."""
    with pytest.raises(RuntimeUnavailable) as failure:
        runtime.ensure_running()
    assert failure.value.remedy
    assert "\n" not in str(failure.value)
    return failure.value


def test_a_podman_that_answers_is_fine_and_asked_once(stand_in: Callable[[str], None], tmp_path: Path) -> None:
    stand_in(f"echo asked >> {tmp_path}/asked\n{info(arch='arm64')}")
    runtime = PodmanRuntime()
    runtime.ensure_running()
    assert runtime.architecture() == "arm64"
    assert runtime.supports == {"memory", "cpus", "pids", "bridge"}
    runtime.run_args(RunSpec((), "n", "i"))
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_a_podman_that_is_not_installed_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in: Callable[[str], None]
) -> None:
    error = unavailable(PodmanRuntime())
    assert error.args[0] == "Podman is not installed"
    assert "apt-get install podman" in error.remedy
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "brew install podman" in unavailable(PodmanRuntime()).remedy


_CONNECT = (
    "Cannot connect to Podman. Please verify your connection to the Linux system using `podman system connection "
    "list`, or try `podman machine init` and `podman machine start` to manage a new Linux VM\n"
    "Error: unable to connect to Podman socket: dial unix /tmp/podman.sock: connect: no such file or directory"
)
_NO_UIDMAP = (
    'time="2026-01-31T12:00:00Z" level=error msg="invalid internal status, try resetting the pause process with '
    '\\"podman system migrate\\": command required for rootless mode with multiple IDs: exec: \\"newuidmap\\": '
    'executable file not found in $PATH"'
)
_WEAK_UIDMAP = (
    'time="2026-01-31T12:00:00Z" level=error msg="invalid internal status, try resetting the pause process with '
    '\\"podman system migrate\\": cannot set up namespace using \\"/usr/bin/newuidmap\\": should have setuid or have '
    'filecaps setuid: exit status 1"'
)
_NO_RANGES = (
    'time="2026-01-31T12:00:00Z" level=error msg="cannot find UID/GID for user ada: no subuid ranges found for user '
    '\\"ada\\" in /etc/subuid - check rootless mode in man pages."'
)
_NO_RUNTIME = 'Error: default OCI runtime "crun" not found: invalid argument'
_LOGGED = 'time="2026-01-31T12:00:00Z" level=error msg="the moon is in the wrong phase"'


@pytest.mark.parametrize(
    ("platform", "stderr", "reason", "remedy"),
    [
        ("darwin", _CONNECT, "Podman's machine is not running", "podman machine start"),
        ("linux", _CONNECT, "no Podman answers where CONTAINER_HOST", "podman system service"),
        ("linux", _NO_UIDMAP, "newuidmap is missing", "apt-get install uidmap"),
        ("linux", _WEAK_UIDMAP, "newuidmap has lost its privileges", "apt-get install uidmap"),
        ("linux", _NO_RANGES, "no subordinate uids and gids", "usermod --add-subuids"),
        ("linux", _NO_RUNTIME, 'Podman does not work: Error: default OCI runtime "crun" not found', "podman info"),
        ("linux", f"a warning\n{_LOGGED}", "Podman does not work: the moon is in the wrong phase", "podman info"),
        ("linux", "", "Podman does not work: it said nothing", "podman info"),
    ],
)
def test_podmans_complaints_are_told_apart(
    platform: str,
    stderr: str,
    reason: str,
    remedy: str,
    stand_in: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(f"printf '%s\\n' {shlex.quote(stderr)} >&2\nexit 125")
    monkeypatch.setattr(sys, "platform", platform)
    error = unavailable(PodmanRuntime())
    assert error.args[0].startswith(reason) or reason in error.args[0]
    assert remedy in error.remedy


def test_a_user_with_one_uid_only_is_told_how_to_get_more(stand_in: Callable[[str], None]) -> None:
    stand_in(info(rootless=True, idMappings=mapping(1)))
    error = unavailable(PodmanRuntime())
    assert "no subordinate uids and gids" in error.args[0]
    assert "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER" in error.remedy
    assert "podman system migrate" in error.remedy
    stand_in(info(rootless=True, idMappings=mapping(1, 65536)))
    PodmanRuntime().ensure_running()


def test_a_podman_that_hangs_is_given_up(stand_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in("exec /bin/sleep 60")
    runtime = PodmanRuntime()
    runtime.answers_within = 0.2
    assert str(unavailable(runtime)).startswith("Podman did not answer within 0 s; look with `ps -C podman`")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "podman machine stop" in unavailable(runtime).remedy


@pytest.mark.parametrize("answer", ["", "null", "[]", "{}", '{"host": {}}', "{not json", '{"host": null}'])
def test_an_answer_of_another_shape_is_no_crash(answer: str, stand_in: Callable[[str], None]) -> None:
    stand_in(f"echo {shlex.quote(answer)}")
    assert unavailable(PodmanRuntime()).args[0] == "Podman does not say what it is"


@pytest.mark.podman
def test_the_real_podman_without_a_service_to_talk_to_is_told_apart(
    podman: PodmanRuntime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONTAINER_HOST", f"unix://{tmp_path}/dead.sock")
    assert "no Podman answers" in unavailable(PodmanRuntime()).args[0]
    assert not podman.has_image(agent_image())
    with pytest.raises(RuntimeUnavailable):
        podman.stop("pynchy-whatever")


# --- what a container is started with -------------------------------------------------------------------------


def options(args: list[str]) -> dict[str, list[str]]:
    """The options of `podman run` with their values, `yes` for those without."""
    found: dict[str, list[str]] = {}
    words = iter(args[1:-1])
    for word in words:
        assert word.startswith("--"), f"{word} is no option"
        if "=" in word:
            word, _, value = word.partition("=")
        elif word in ("--rm", "--interactive", "--read-only", "--no-hosts"):
            value = "yes"
        else:
            value = next(words)
        found.setdefault(word, []).append(value)
    return found


_SPEC = RunSpec((VolumeMount("/host/a", "/inside/a"),), "pynchy-x-main-1", "pynchy-agent:latest", user=(1000, 1001))


def test_as_root_it_differs_from_docker_in_little(stand_in: Callable[[str], None]) -> None:
    stand_in(info())
    args = PodmanRuntime().run_args(_SPEC)
    assert (args[0], args[-1]) == ("run", "pynchy-agent:latest")
    given = options(args)
    assert given["--user"] == ["1000:1001"]
    assert not {"--userns", "--privileged", "--cap-add"} & set(given)
    assert given["--security-opt"] == ["no-new-privileges"]
    assert (given["--network"], given["--cap-drop"], given["--pull"]) == (["none"], ["ALL"], ["never"])
    assert {name: given[name] for name in LIMITS} == LIMITS
    assert (given["--stop-timeout"], given["--http-proxy"]) == (["0"], ["false"])


def test_an_ordinary_users_agent_is_that_user(stand_in: Callable[[str], None]) -> None:
    stand_in(info(rootless=True, idMappings=mapping(1, 65536)))
    given = options(PodmanRuntime().run_args(_SPEC))
    assert (given["--userns"], given["--user"]) == (["keep-id"], ["1000:1001"])


def test_a_virtual_machines_user_stands_for_ours(stand_in: Callable[[str], None]) -> None:
    stand_in(info(rootless=True, serviceIsRemote=True, selinux=True, idMappings=mapping(1, 1000000)))
    given = options(PodmanRuntime().run_args(_SPEC))
    assert (given["--userns"], given["--user"]) == (["keep-id:uid=1000,gid=1001"], ["1000:1001"])
    # Nothing of this machine's packages is mounted into it: it need not see where they are.
    assert given["--mount"] == ["type=bind,source=/host/a,target=/inside/a"]
    assert "--no-hosts" not in given


def test_labels_of_selinux_do_not_keep_the_agent_from_its_folder(stand_in: Callable[[str], None]) -> None:
    stand_in(info(selinux=True))
    given = options(PodmanRuntime().run_args(_SPEC))
    assert given["--security-opt"] == ["no-new-privileges", "label=disable"]


@pytest.mark.parametrize(
    ("host", "kept"),
    [
        ({"rootless": True}, {"memory", "cpus", "pids"}),
        ({"rootless": True, "cgroupControllers": ["memory", "pids"]}, {"memory", "pids"}),
        ({"rootless": True, "cgroupControllers": []}, set()),
        ({"rootless": True, "cgroupControllers": None}, set()),
        ({"rootless": True, "cgroupVersion": "v1"}, set()),
        ({"rootless": True, "cgroupManager": "cgroupfs"}, set()),
        ({"cgroupManager": "cgroupfs", "cgroupVersion": "v1"}, {"memory", "cpus", "pids"}),
        ({"cgroupControllers": ["cpu", "pids"]}, {"cpus", "pids"}),
    ],
)
def test_a_limit_is_claimed_and_asked_for_only_where_the_kernel_will_keep_it(
    host: dict[str, Any], kept: set[str], stand_in: Callable[[str], None]
) -> None:
    stand_in(info(**host))
    runtime = PodmanRuntime()
    assert runtime.supports == kept | {"bridge"}
    given = options(runtime.run_args(_SPEC))
    asked = {"--memory": "memory", "--memory-swap": "memory", "--cpus": "cpus", "--pids-limit": "pids"}
    assert {name for name in asked if name in given} == {name for name, limit in asked.items() if limit in kept}


def test_where_podman_does_not_answer_its_limits_are_not_the_reason(stand_in: Callable[[str], None]) -> None:
    stand_in("exit 1")
    runtime = PodmanRuntime()
    assert runtime.supports == {"memory", "cpus", "pids", "bridge"}
    stand_in(info(rootless=True, cgroupVersion="v1"))
    assert runtime.supports == {"bridge"}, "what it said once it answered counts"


# --- the image ------------------------------------------------------------------------------------------------


@pytest.mark.podman
def test_a_missing_image_is_named_with_the_command_that_builds_it(podman: PodmanRuntime) -> None:
    with pytest.raises(RuntimeUnavailable) as failure:
        podman.check_image("pynchy-no-such-image:latest")
    assert str(failure.value) == (
        "the agent image pynchy-no-such-image:latest is missing; build it with `pynchy image build`"
    )


@contextmanager
def image(podman: PodmanRuntime, directory: Path, *changes: str) -> Iterator[str]:
    """An image that is the agent's with these changes, as Dockerfile lines."""
    tag = f"pynchy-test-{uuid.uuid4().hex[:8]}:latest"
    lines = "\n".join((f"FROM {agent_image()}", *changes))
    command = ["podman", "build", "--quiet", "--format", "docker", "--tag", tag, "--file", "-", str(directory)]
    subprocess.run(command, input=lines, text=True, check=True, timeout=100, capture_output=True)
    try:
        yield tag
    finally:
        podman.command("image", "rm", tag)


@pytest.mark.podman
def test_an_image_of_another_version_of_pynchy_is_named_with_what_to_do(podman: PodmanRuntime, tmp_path: Path) -> None:
    with (
        image(podman, tmp_path, "LABEL io.pynchy.agent-lock=0123") as tag,
        pytest.raises(RuntimeUnavailable, match=r"for another version of Pynchy; build it anew with"),
    ):
        podman.check_image(tag)


def test_an_image_for_another_processor_is_refused_unless_it_runs(stand_in: Callable[[str], None]) -> None:
    inspect = """[ "$1 $2" = "image inspect" ] && echo '[{"Architecture": "arm64"}]' && exit"""
    stand_in(f"{inspect}\n{info()}")
    with pytest.raises(RuntimeUnavailable, match="is for arm64 processors, and this machine's are amd64; build"):
        PodmanRuntime().check_image("any")
    stand_in(f"{inspect}\n[ $1 = run ] && exit\n{info()}")
    PodmanRuntime().check_image("any")
    stand_in(f"{inspect}\n{info(arch='arm64')}")
    PodmanRuntime().check_image("any")


BUILD = PodmanRuntime.build_script


def build(*options: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run build.sh by hand."""
    return subprocess.run(
        ["/bin/bash", str(BUILD), *options], capture_output=True, text=True, timeout=100, env={**os.environ, **env}
    )


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--frobnicate"], 2, "unknown option '--frobnicate'; see build.sh --help."),
        (["--base"], 2, "--base needs a value; see build.sh --help."),
        (["--lock", "/no/such/lock"], 1, "the lock '/no/such/lock' does not exist."),
        (["--ca-bundle", "/no/such.pem"], 1, "the CA bundle '/no/such.pem' does not exist."),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_built(options: list[str], code: int, words: str) -> None:
    done = build(*options, PYNCHY_CONTAINER_DIR=str(container_dir()))
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"build.sh: {words}\n")


def test_build_sh_says_what_is_missing(tmp_path: Path, stand_in: Callable[[str], None]) -> None:
    here = {"PYNCHY_CONTAINER_DIR": str(container_dir()), "PATH": "/nowhere"}
    assert "Podman is not installed" in build(**here).stderr
    stand_in("exit 1")
    assert "Podman does not work: 'podman info' says why" in build(**{**here, "PATH": f"{tmp_path}/bin"}).stderr
    assert "no Pynchy is installed for the 'python3' in PATH" in build(PATH="/nowhere").stderr
    assert f"'{tmp_path}' holds no build-context.sh" in build(PYNCHY_CONTAINER_DIR=str(tmp_path)).stderr


def test_build_sh_finds_by_itself_what_the_image_is_made_of(tmp_path: Path) -> None:
    (tmp_path / "python3").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    done = build("--help", PATH=f"{tmp_path}:{os.environ['PATH']}", PYTHONPATH=":".join(filter(None, sys.path)))
    assert done.returncode == 0, done.stderr
    assert "with Podman." in done.stdout
    assert "--ca-bundle FILE" in done.stdout


@pytest.mark.podman
def test_build_sh_builds_what_docker_would(
    podman: PodmanRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = tmp_path / "container"
    (container / "requirements").mkdir(parents=True)
    shutil.copy(container_dir() / "build-context.sh", container)
    shutil.copy(container_dir() / "requirements/agent.lock", container / "requirements")
    # What is particular in the real Dockerfile, without what takes long.
    (container / "Dockerfile").write_text(
        "ARG BASE_IMAGE=unused\nFROM ${BASE_IMAGE}\nUSER root\nWORKDIR /made\n"
        "COPY requirements/agent.lock extra-ca.cr[t] /made/\n"
        "COPY requirements/agent.lock requirements/plugins.loc[k] /made/\n"
        'SHELL ["/bin/sh", "-e", "-c"]\nRUN ls /made > /made/list\n'
        'ARG AGENT_LOCK_SHA256=""\nARG PLUGIN_PACKAGES="[]"\n'
        'LABEL io.pynchy.agent-lock="${AGENT_LOCK_SHA256}" io.pynchy.plugin-packages="${PLUGIN_PACKAGES}"\n'
        'USER agent\nENTRYPOINT ["ls", "/made"]\n'
    )
    lock = tmp_path / "with a space.lock"
    lock.write_text("six==1\n")
    tag = f"pynchy-test-{uuid.uuid4().hex[:8]}:1"
    monkeypatch.setattr("pynchy.home.container_dir", lambda: container)
    monkeypatch.setenv("PYNCHY_IMAGE_OPTIONS", f"--base {agent_image()} --network host")
    packages = frozenset({"six>=1.16", 'toml; python_version < "4"'})
    podman.build_image(tag, lock, packages)
    try:
        assert podman.image_packages(tag) == packages
        podman.check_image(tag)
        args = ["run", "--rm", "--network", "none", "--log-driver", "none", "--pull", "never", tag]
        assert podman.command(*args, timeout=100).split() == ["agent.lock", "list", "plugins.lock"]
        configuration = json.loads(podman.command("image", "inspect", tag))[0]
        assert configuration["Config"]["User"] == "agent"
        assert "docker" in configuration["ManifestType"]
    finally:
        podman.command("image", "rm", tag)


# --- real containers ------------------------------------------------------------------------------------------


def client(
    podman: PodmanRuntime, spec: RunSpec, script: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[str]:
    """Start a shell where the agent would be, with the environment that the agent's client has."""
    args = podman.run_args(spec)
    return subprocess.Popen(
        [podman.cli, *args[:-1], "--entrypoint", "sh", args[-1], "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**{name: os.environ[name] for name in CLIENT_VARIABLES if name in os.environ}, **(env or {})},
    )


def output(podman: PodmanRuntime, spec: RunSpec, script: str, env: dict[str, str] | None = None) -> list[str]:
    """What a script that succeeds says, by lines; afterwards nothing is left of it."""
    with client(podman, spec, script, env) as process:
        said, complaint = process.communicate(timeout=100)
    assert (process.returncode, complaint) == (0, ""), said
    assert left(podman, spec.container_name) == []
    return said.splitlines()


def left(podman: PodmanRuntime, name: str) -> list[str]:
    """What is there of a container, in Podman's eyes or in the kernel's."""
    listed = podman.command("ps", "--all", "--external", "--filter", f"name={name}", "--format", "{{.Names}}").split()
    # The filter lets through every external one, such as one that another process is making just now.
    return [one for one in listed if name in one] + [container for _, container in monitors() if container == name]


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


def owned(directory: Path) -> Path:
    """A folder of the agent's."""
    directory.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(directory, *AGENT)
    return directory


@pytest.mark.podman
def test_inside_there_is_no_way_out(podman: PodmanRuntime) -> None:
    script = """
    id -u; id -g; echo home > ~/x && cat ~/x; echo tmp > /tmp/x && cat /tmp/x
    grep -E '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status | tr '\\t' ' '
    for d in / /etc /usr /opt /workspace /dev /run /run/lock /var /sys /sys/fs/cgroup /proc/sys/kernel; do
        touch $d/x 2>/dev/null && echo wrote $d
    done
    ls /sys/class/net | grep -v -E '^(tunl|gre|erspan|ip_vti|ip6|sit)'
    for path in /proc/kcore /proc/sysrq-trigger; do echo b 2>/dev/null > $path && echo wrote $path; done
    df -B1 --output=size /tmp /var/tmp /home/agent | tail -n 3 | tr -d ' '
    true
    """
    none = "0" * 16
    said = output(podman, RunSpec((), PREFIX + "inside", agent_image(), user=AGENT), script)
    assert said == [
        str(AGENT[0]),
        str(AGENT[1]),
        "home",
        "tmp",
        *(f"Cap{which}: {none}" for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")),
        "NoNewPrivs: 1",
        "Seccomp: 2",
        "lo",
        *[str(1024**3)] * 3,
    ]


@pytest.mark.podman
def test_nothing_of_the_hosts_environment_or_names_gets_in(
    podman: PodmanRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = f"secret-{uuid.uuid4().hex}"
    # More than an agent's client ever sees.
    leaks: dict[str, str] = {}
    for name in ("HTTP_PROXY", "https_proxy", "ALL_PROXY", "FTP_PROXY", "PYNCHY_SECRET"):
        leaks[name] = f"http://ada:{secret}@proxy:1"
    spec = RunSpec((), PREFIX + "environment", agent_image(), user=AGENT, env={"GIVEN": "a b"})
    said = output(podman, spec, "env; cat /proc/1/environ | tr '\\0' '\\n'; hostname; cat /etc/hosts", leaks)
    assert secret not in "\n".join(said)
    assert "GIVEN=a b" in said
    assert "HOME=/home/agent" in said
    hosts = (Path(sys.modules[PodmanRuntime.__module__].__file__ or "").parent / "hosts").read_text().splitlines()
    assert said[-1 - len(hosts) :] == ["agent", *hosts]


@pytest.mark.podman
def test_its_own_names_can_be_looked_up(podman: PodmanRuntime) -> None:
    spec = RunSpec((), PREFIX + "names", agent_image(), user=AGENT)
    script = "import socket; print(socket.gethostbyname('localhost'), socket.gethostbyname(socket.gethostname()))"
    assert output(podman, spec, f'exec python3 -c "{script}"') == ["127.0.0.1 127.0.0.1"]


@pytest.mark.podman
def test_the_limits_are_the_kernels_where_they_are_claimed(podman: PodmanRuntime) -> None:
    spec = RunSpec((), PREFIX + "limits", agent_image(), memory_bytes=123 << 20, cpus=1.5, pids=99, user=AGENT)
    script = """
    cd /sys/fs/cgroup
    if [ -e cgroup.controllers ]; then cat memory.max pids.max cpu.max
    else cat memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us; fi
    """
    limits = podman.supports - {"bridge"}
    if limits != {"memory", "cpus", "pids"}:
        pytest.skip(f"podman: only {sorted(limits)} can be limited on this machine by this user")
    found = " ".join(output(podman, spec, script)).split()
    assert found == [str(123 << 20), "99", "150000", "100000"]


@pytest.mark.podman
def test_a_fork_bomb_and_a_memory_hog_meet_their_limits(podman: PodmanRuntime, tmp_path: Path) -> None:
    if not podman.supports >= {"memory", "pids"}:
        pytest.skip("podman: nothing can be limited on this machine by this user")
    spec = RunSpec((), PREFIX + "hog", agent_image(), memory_bytes=64 << 20, pids=20, user=AGENT)
    hog = "python3 -c 'bytearray(200 << 20)'; echo $?"
    forks = """python3 -c '
import os, time
made = 0
try:
    while made < 100:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
except BlockingIOError:
    print(made < 20)
os.killpg(0, 9)'"""
    # Podman's monitor notes in the working directory of its client that memory ran out.
    with client(podman, spec, f"{hog}; {forks}", cwd=tmp_path) as process:
        said, _ = process.communicate(timeout=60)
    assert said.split()[:2] == ["137", "True"]


@pytest.mark.podman
@pytest.mark.parametrize("name", ["plain", "with a space", "com,ma", 'quo"te', "ünïcödé 🎉", "a=b,readonly"])
def test_a_folder_is_mounted_whatever_its_name(name: str, podman: PodmanRuntime, tmp_path: Path) -> None:
    folder = owned(tmp_path / name)
    (folder / "file").write_text("found\n")
    (folder / "file").chmod(0o644)
    mounts = (
        VolumeMount(str(folder), "/workspace/group"),
        VolumeMount(str(folder), f"/workspace/plugins/{name}", readonly=True),
    )
    script = """
    cat /workspace/plugins/*/file
    touch /workspace/plugins/*/x 2>/dev/null || echo refused
    echo new > /workspace/group/made && chmod 4755 /workspace/group/made
    """
    spec = RunSpec(mounts, PREFIX + "mount", agent_image(), user=AGENT)
    assert output(podman, spec, script) == ["found", "refused"]
    assert sorted(path.name for path in folder.iterdir()) == ["file", "made"]
    made = (folder / "made").stat()
    assert (made.st_uid, made.st_gid) == AGENT
    assert (folder / "made").read_text() == "new\n"


@pytest.mark.podman
def test_a_mount_whose_source_is_missing_fails_and_makes_nothing(podman: PodmanRuntime, tmp_path: Path) -> None:
    spec = RunSpec((VolumeMount(str(tmp_path / "missing"), "/x"),), PREFIX + "missing", agent_image(), user=AGENT)
    with client(podman, spec, "true") as process:
        _, complaint = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "missing" in complaint
    assert not (tmp_path / "missing").exists()
    podman.stop(spec.container_name)
    assert left(podman, spec.container_name) == []


@pytest.mark.podman
def test_what_goes_in_comes_out_and_its_end_is_the_containers_end(podman: PodmanRuntime) -> None:
    spec = RunSpec((), PREFIX + "pipe", agent_image(), user=AGENT)
    text = "0123456789abcdef\n" * (1 << 18)
    with client(podman, spec, "cat; exit 7") as process:
        said, complaint = process.communicate(text, timeout=60)
    assert (process.returncode, complaint) == (7, "")
    assert said == text


# --- list and stop --------------------------------------------------------------------------------------------


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
