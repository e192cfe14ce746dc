"""When Podman is used, which is decided without starting it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pynchy.plugin import PluginRegistry, select_runtime
from pynchy_plugin_podman import PodmanPlugin
from pynchy_plugin_podman.runtime import PodmanRuntime

pytestmark = pytest.mark.usefixtures("clean_environment")


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
