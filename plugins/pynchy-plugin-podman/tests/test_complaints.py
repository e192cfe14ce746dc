"""What Podman says when it cannot be used, told apart, each with what to do."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from podman_answers import info, mapping

from pynchy.plugin import RunSpec, RuntimeUnavailable
from pynchy.runtime import agent_image
from pynchy_plugin_podman.runtime import PodmanRuntime

pytestmark = pytest.mark.usefixtures("clean_environment")


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
