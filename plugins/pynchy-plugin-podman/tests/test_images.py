"""The agent's image: which ones are refused, and how build.sh builds it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from podman_answers import info

from pynchy.home import container_dir
from pynchy.plugin import RuntimeUnavailable
from pynchy.runtime import agent_image
from pynchy_plugin_podman.runtime import PodmanRuntime

pytestmark = pytest.mark.usefixtures("clean_environment")


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
