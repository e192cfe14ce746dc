"""How build.sh builds an image, for Pynchy and by hand."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from apple_refusals import IMAGE, refused

from pynchy.home import container_dir
from pynchy_plugin_apple_container.runtime import AppleContainerRuntime

BUILD = AppleContainerRuntime.build_script


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
