"""When Apple's `container` is used."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from pynchy.plugin import ContainerRuntime, PluginRegistry
from pynchy_plugin_apple_container import AppleContainerPlugin


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


def test_it_is_preferred_to_docker_where_it_matches(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pynchy.plugin import select_runtime

    registry = PluginRegistry(runtimes=[AppleContainerPlugin()])
    assert select_runtime(registry).name == "apple"
    monkeypatch.setenv("CONTAINER_RUNTIME", "docker")
    assert select_runtime(registry).name == "docker"
