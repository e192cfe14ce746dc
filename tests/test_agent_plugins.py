"""What an agent gets of the plugins: an MCP server's way from its spec into the agent's options."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from plugin_modules import Discover, discovery, package_in
from support import REPOSITORY

from pynchy.plugin import McpServerSpec
from pynchy.types import ContainerInput, VolumeMount
from pynchy.workspace import plugin_mount, plugin_parts


@pytest.fixture
def discover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Discover:
    """Discover what a text defines."""
    return discovery(tmp_path, monkeypatch)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A package that a plugin may mount."""
    return package_in(tmp_path) / "some_package"


def test_a_package_is_mounted_under_its_name_and_any_other_directory_as_it_is(source: Path, tmp_path: Path) -> None:
    def mounted(host_source: Path) -> VolumeMount:
        return plugin_mount(McpServerSpec("voice", "python", [], {}, host_source))

    assert mounted(source) == VolumeMount(str(source), "/workspace/plugins/voice/some_package", readonly=True)
    assert mounted(source.parent) == VolumeMount(str(source.parent), "/workspace/plugins/voice", readonly=True)
    link = tmp_path / "imported_as"
    link.symlink_to(source)
    assert mounted(link) == VolumeMount(str(source), "/workspace/plugins/voice/imported_as", readonly=True)


def test_a_server_goes_from_the_plugin_through_the_input_into_the_agents_options(
    discover: Discover, source: Path, agent_runner: Any
) -> None:
    text = """
class Voice(Good):
    name = "voice"
    def mcp_server_spec(self):
        return spec("my.voice", args=["-m", "some_package.mcp"], env={"PYTHONPATH": "/elsewhere", "LEVEL": "3"})
"""
    parts = plugin_parts(discover(text, voice="Voice", good="Good"))
    assert parts.mounts == (
        VolumeMount(str(source), "/workspace/plugins/good/some_package", readonly=True),
        VolumeMount(str(source), "/workspace/plugins/my.voice/some_package", readonly=True),
    )
    sent = ContainerInput("hi", "main", "terminal:main", plugin_mcp_servers=parts.mcp_servers)
    crossed = ContainerInput.from_dict(json.loads(json.dumps(sent.to_dict())))
    assert crossed == sent

    options = agent_runner.build_options(
        crossed, "http://127.0.0.1:1", session_store=None, host_tools="ours", before_tool=None
    )
    assert set(options.mcp_servers) == {"pynchy", "good", "my.voice"}
    assert options.mcp_servers["pynchy"] == "ours"
    server = options.mcp_servers["my.voice"]
    assert (server["command"], server["args"]) == ("python", ["-m", "some_package.mcp"])
    assert server["env"]["LEVEL"] == "3"
    assert server["env"]["PYTHONPATH"].split(os.pathsep)[:2] == ["/workspace/plugins/my.voice", "/elsewhere"]
    assert {"mcp__my_voice__*", "mcp__good__*", "mcp__pynchy__*"} <= set(options.allowed_tools)


def test_without_plugins_the_agent_has_our_own_server_alone(agent_runner: Any) -> None:
    options = agent_runner.build_options(
        ContainerInput("hi", "main", "terminal:main"), "http://127.0.0.1:1", None, "ours", None
    )
    assert options.mcp_servers == {"pynchy": "ours"}


def test_no_plugin_can_take_the_place_of_our_own_server(agent_runner: Any) -> None:
    given = ContainerInput("hi", "main", "terminal:main", plugin_mcp_servers={"pynchy": {"command": "sh", "args": []}})
    assert agent_runner.build_options(given, "http://127.0.0.1:1", None, "ours", None).mcp_servers == {"pynchy": "ours"}


def test_a_plugin_whose_spec_raises_later_is_left_out_of_the_run(discover: Discover) -> None:
    text = """
class Fickle(Good):
    name = "fickle"
    calls = 0
    def mcp_server_spec(self):
        self.calls += 1
        if self.calls > 1:
            {failure}
        return spec("fickle")
"""
    for failure in (
        "raise OSError('unplugged')",
        "sys.exit(1)",
        "return None",
        "return spec(host_source=SOURCE / 'gone')",
        "return spec(host_source=Path('/'))",
        "return spec('pynchy')",
    ):
        registry = discover(text.replace("{failure}", failure), a="Fickle", b="Good")
        assert len(registry.mcp_servers) == 2
        parts = plugin_parts(registry)
        assert list(parts.mcp_servers) == ["good"]
        assert [mount.container_path for mount in parts.mounts] == ["/workspace/plugins/good/some_package"]


@pytest.fixture
def agent_runner(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The agent's side of the options, which is on no import path of the host."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "container/agent_runner/src"))
    from agent_runner import options

    return options
