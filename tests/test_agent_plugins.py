"""What an agent gets of the plugins: each part from the plugin through the input into the agent's options."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from plugin_modules import Discover, discovery, package_in
from support import REPOSITORY

from pynchy.agent_plugins import AgentPlugins, plugin_parts, server_mounts, stage_skills
from pynchy.plugin import McpServerSpec, PluginRegistry
from pynchy.types import ContainerInput, Group, VolumeMount

GROUP = Group("terminal:main", "main", "main", is_main=True)


@pytest.fixture
def discover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Discover:
    """Discover what a text defines."""
    return discovery(tmp_path, monkeypatch)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A package that a plugin may mount."""
    return package_in(tmp_path) / "some_package"


@pytest.fixture
def agent_runner(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The agent's side of the options, which is on no import path of the host."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "container/agent_runner/src"))
    from agent_runner import options

    return options


def parts_of(registry: PluginRegistry, tmp_path: Path, group: Group = GROUP) -> AgentPlugins:
    """What a group's agent gets."""
    return plugin_parts(registry, tmp_path / "home", group, None)


def inside(parts: AgentPlugins) -> dict[str, VolumeMount]:
    """The mounts by where they are in the container."""
    return {mount.container_path: mount for mount in parts.mounts}


def options_of(agent_runner: Any, given: ContainerInput, **changes: Any) -> Any:
    """The SDK's options for an input."""
    return agent_runner.build_options(
        given, "http://127.0.0.1:1", None, {"pynchy": "ours"}, changes.get("before_tool"), changes.get("hooks", {})
    )


# --- MCP servers --------------------------------------------------------------------------------------------


def test_a_package_is_mounted_under_its_name_and_any_other_directory_as_it_is(source: Path, tmp_path: Path) -> None:
    def mounted(host_source: Path, packages: dict[str, Path] | None = None) -> VolumeMount:
        return server_mounts(McpServerSpec("voice", "python", [], {}, host_source), packages or {})[0]

    assert mounted(source) == VolumeMount(str(source), "/workspace/plugins/voice/some_package", readonly=True)
    other = tmp_path / "no_package"
    other.mkdir()
    assert mounted(other) == VolumeMount(str(other), "/workspace/plugins/voice", readonly=True)
    link = tmp_path / "imported_as"
    link.symlink_to(source)
    assert mounted(link) == VolumeMount(str(source), "/workspace/plugins/voice/imported_as", readonly=True)
    namespaced = mounted(source, {"acme.voice": source})
    assert namespaced.container_path == "/workspace/plugins/voice/acme/voice"


def test_folders_are_mounted_beside_the_package_and_never_of_pynchys_own(
    discover: Discover, source: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    own = home / "plugins/good/model"
    link = tmp_path / "link"
    for folder in (own, tmp_path / "model", home / "groups"):
        folder.mkdir(parents=True)
    link.symlink_to(tmp_path / "model")

    def parts(folders: str) -> AgentPlugins:
        text = f"class Large(Good):\n    def mcp_server_spec(self): return spec(folders={{{folders}}})"
        return parts_of(discover(text, good="Large"), tmp_path)

    mounts = inside(parts(f"'own': Path({str(own)!r}), 'other': Path({str(link)!r})"))
    assert mounts["/workspace/plugins/good/own"] == VolumeMount(str(own), "/workspace/plugins/good/own", readonly=True)
    assert mounts["/workspace/plugins/good/other"].host_path == str(tmp_path / "model")
    assert mounts["/workspace/plugins/good/other"].readonly
    for folder in (home, home / "groups", home / "plugins", tmp_path):
        refused = parts(f"'x': Path({str(folder)!r})")
        assert not refused.mcp_servers
        assert "holds what is Pynchy's own" in refused.reports[0].trouble


def test_a_server_goes_from_the_plugin_through_the_input_into_the_agents_options(
    discover: Discover, source: Path, agent_runner: Any, tmp_path: Path
) -> None:
    text = """
class Voice(Good):
    name = "voice"
    def mcp_server_spec(self):
        return spec("my.voice", args=["-m", "some_package.mcp"], env={"PYTHONPATH": "/elsewhere", "LEVEL": "3"})
"""
    parts = parts_of(discover(text, voice="Voice", good="Good"), tmp_path)
    mounts = inside(parts)
    assert mounts["/workspace/plugins/good/some_package"].host_path == str(source)
    assert mounts["/workspace/plugins/my.voice/some_package"].readonly
    data = mounts["/workspace/data/voice"]
    assert not data.readonly
    assert Path(data.host_path) == tmp_path / "home/plugin-data/voice/main"
    assert parts.servers_of == {"my.voice": "voice", "good": "good"}
    sent = ContainerInput("hi", "main", "terminal:main", plugin_mcp_servers=dict(parts.mcp_servers))
    crossed = ContainerInput.from_dict(json.loads(json.dumps(sent.to_dict())))
    assert crossed == sent

    options = options_of(agent_runner, crossed)
    assert set(options.mcp_servers) == {"pynchy", "good", "my.voice"}
    assert options.mcp_servers["pynchy"] == "ours"
    server = options.mcp_servers["my.voice"]
    assert (server["command"], server["args"]) == ("python", ["-m", "some_package.mcp"])
    assert (server["env"]["LEVEL"], server["env"]["PYNCHY_DATA"]) == ("3", "/workspace/data/voice")
    assert server["env"]["PYTHONPATH"].split(os.pathsep)[:2] == ["/workspace/plugins/my.voice", "/elsewhere"]
    assert {"mcp__my_voice__*", "mcp__good__*", "mcp__pynchy__*"} <= set(options.allowed_tools)


def test_without_plugins_the_agent_has_our_own_server_alone(agent_runner: Any) -> None:
    options = options_of(agent_runner, ContainerInput("hi", "main", "terminal:main"))
    assert options.mcp_servers == {"pynchy": "ours"}


def test_no_plugin_can_take_the_place_of_our_own_server(agent_runner: Any) -> None:
    given = ContainerInput("hi", "main", "terminal:main", plugin_mcp_servers={"pynchy": {"command": "sh", "args": []}})
    assert options_of(agent_runner, given).mcp_servers == {"pynchy": "ours"}


def test_a_plugin_whose_spec_raises_later_is_left_out_of_the_run_and_reported(
    discover: Discover, tmp_path: Path
) -> None:
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
    for failure, words in (
        ("raise OSError('unplugged')", "OSError: unplugged"),
        ("sys.exit(1)", "SystemExit: 1"),
        ("return None", "returned NoneType"),
        ("return spec(host_source=SOURCE / 'gone')", "is not a directory"),
        ("return spec(host_source=Path('/'))", "outside the plugin's own package"),
        ("return spec('pynchy')", "is reserved"),
        ("return spec('good')", ""),
    ):
        registry = discover(text.replace("{failure}", failure), a="Good", b="Fickle")
        assert len(registry.mcp_servers) == 2
        parts = parts_of(registry, tmp_path)
        assert list(parts.mcp_servers) == ["good"]
        assert "/workspace/plugins/fickle/some_package" not in inside(parts)
        (report,) = parts.reports
        assert (report.plugin, report.part) == ("fickle", "mcp")
        assert words in report.trouble


def test_of_a_composite_one_part_that_fails_later_takes_no_other_with_it(discover: Discover, tmp_path: Path) -> None:
    text = """
class Fickle(Good, HookPlugin, ToolPlugin, SkillPlugin):
    name = "fickle"
    broken = set()
    def ask(self, part, answer):
        if part in self.broken: raise OSError(part)
        return answer
    def mcp_server_spec(self): return self.ask("mcp", spec("fickle-server"))
    def agent_hooks(self): return self.ask("hooks", {"Stop": [a_hook]})
    def tools(self): return self.ask("tools", [tool()])
    def skill_paths(self): return self.ask("skills", [])
"""
    registry = discover(text, fickle="Fickle")
    (plugin,) = registry.tools
    for broken in ("mcp", "hooks", "tools", "skills"):
        plugin.broken = {broken}  # pyright: ignore[reportAttributeAccessIssue]
        parts = parts_of(registry, tmp_path)
        found = {"mcp": parts.mcp_servers, "hooks": parts.hooks, "tools": parts.tools}
        assert {part for part, what in found.items() if what} == {"mcp", "hooks", "tools"} - {broken}
        assert [report.part for report in parts.reports if report.trouble] == [broken]


# --- skills -------------------------------------------------------------------------------------------------


def skill(directory: Path, name: str, text: str = "Do it well.") -> Path:
    """A skill's directory."""
    path = directory / name
    path.mkdir(parents=True, exist_ok=True)
    (path / "SKILL.md").write_text(f"---\nname: {name}\ndescription: How to {name}.\n---\n\n{text}\n")
    return path


def test_skills_are_staged_under_their_plugins_name_with_whole_trees_and_modes(tmp_path: Path) -> None:
    one = skill(tmp_path / "one", "cook")
    (one / "scripts").mkdir()
    (one / "scripts" / "stir.sh").write_text("#!/bin/sh\n")
    (one / "scripts" / "stir.sh").chmod(0o700)
    (one / "linked.txt").symlink_to("SKILL.md")
    same_name = skill(tmp_path / "two", "cook", "Do it otherwise.")
    staged = stage_skills(tmp_path / "home", {"alice": [one], "bob": [same_name]})
    assert json.loads((staged / "alice/.claude-plugin/plugin.json").read_text()) == {"name": "alice"}
    assert "otherwise" not in (staged / "alice/skills/cook/SKILL.md").read_text()
    assert "otherwise" in (staged / "bob/skills/cook/SKILL.md").read_text()
    assert (staged / "alice/skills/cook/scripts/stir.sh").stat().st_mode & 0o777 == 0o755
    linked = staged / "alice/skills/cook/linked.txt"
    assert linked.read_text() == (one / "SKILL.md").read_text()
    assert not linked.is_symlink()
    assert not [path for path in staged.rglob("*") if path.stat().st_mode & 0o022]


def test_staged_skills_are_reused_until_a_file_changes(tmp_path: Path) -> None:
    path = skill(tmp_path, "cook")
    first = stage_skills(tmp_path / "home", {"alice": [path]})
    assert stage_skills(tmp_path / "home", {"alice": [path]}) == first
    (path / "SKILL.md").write_text((path / "SKILL.md").read_text() + "More salt.\n")
    second = stage_skills(tmp_path / "home", {"alice": [path]})
    assert second != first
    assert "More salt." in (second / "alice/skills/cook/SKILL.md").read_text()


def test_a_skill_reaches_the_agent_beside_our_own(discover: Discover, tmp_path: Path, agent_runner: Any) -> None:
    skill(package_in(tmp_path), "cook")
    text = """
class Kitchen(SkillPlugin):
    name = "kitchen"
    def skill_paths(self): return [Path(__file__).parent / "cook"]
"""
    parts = parts_of(discover(text, kitchen="Kitchen"), tmp_path)
    assert parts.skills == ("pynchy", "kitchen")
    staged = Path(inside(parts)["/workspace/skills"].host_path)
    assert inside(parts)["/workspace/skills"].readonly
    assert (staged / "pynchy/skills/chat-memory/SKILL.md").is_file()
    options = options_of(agent_runner, ContainerInput("hi", "main", "x", plugin_skills=list(parts.skills)))
    assert [plugin["path"] for plugin in options.plugins] == ["/workspace/skills/pynchy", "/workspace/skills/kitchen"]


# --- hooks and tools ----------------------------------------------------------------------------------------


def test_hooks_are_named_and_their_package_mounted(discover: Discover, tmp_path: Path, agent_runner: Any) -> None:
    text = """
class Watch(HookPlugin):
    name = "watch"
    def agent_hooks(self):
        return {"Stop": [a_hook], "PreToolUse": [AgentHook(a_hook, matcher="Bash", timeout=2, fail_closed=True)]}
"""
    parts = parts_of(discover(text, watch="Watch"), tmp_path)
    package = package_in(tmp_path)
    assert inside(parts)[f"/workspace/hooks/watch/{package.name}"] == VolumeMount(
        str(package), f"/workspace/hooks/watch/{package.name}", readonly=True
    )
    (stop,) = parts.hooks["Stop"]
    function = stop["function"]
    assert function.startswith(f"{package.name}.module_")
    assert function.endswith(":a_hook")
    assert parts.hooks["PreToolUse"] == [
        {"plugin": "watch", "function": function, "matcher": "Bash", "timeout": 2.0, "fail_closed": True}
    ]
    assert parts.hook_plugins == {"watch"}
    assert json.loads(json.dumps(dict(parts.hooks))) == parts.hooks


def test_our_own_hook_stands_before_the_plugins_and_blocks_where_it_fails(agent_runner: Any) -> None:
    options = options_of(
        agent_runner,
        ContainerInput("hi", "main", "x"),
        before_tool="ours",
        hooks={"PreToolUse": ["theirs"], "Stop": []},
    )
    ours, theirs = options.hooks["PreToolUse"]
    assert (ours.hooks, ours.on_failure, theirs) == (["ours"], "block", "theirs")


def test_host_tools_are_described_to_the_agent_without_their_handlers(discover: Discover, tmp_path: Path) -> None:
    text = """
class Vault(ToolPlugin):
    name = "vault"
    def tools(self): return [tool("open"), tool("close", schema={"type": "object", "properties": {"hard": {}}})]
"""
    parts = parts_of(discover(text, vault="Vault"), tmp_path)
    assert list(parts.tools["vault"]) == ["open", "close"]
    described = parts.tool_descriptions()
    assert json.loads(json.dumps(described)) == described
    assert [set(one) for one in described["vault"]] == [{"name", "description", "input_schema", "file"}] * 2


# --- who has what -------------------------------------------------------------------------------------------


def test_a_group_has_the_plugins_it_names_and_no_part_of_another(discover: Discover, tmp_path: Path) -> None:
    text = """
class Voice(Good, HookPlugin, ToolPlugin):
    name = "voice"
    def mcp_server_spec(self): return spec("voice-server")
    def agent_hooks(self): return {"Stop": [a_hook]}
    def tools(self): return [tool()]
"""
    registry = discover(text, voice="Voice", good="Good")
    for plugins, servers in ((None, {"voice-server", "good"}), (("good",), {"good"}), ((), set())):
        parts = parts_of(registry, tmp_path, Group("x", "x", "x", plugins=plugins))
        assert set(parts.mcp_servers) == servers
        assert bool(parts.hooks) == bool(parts.tools) == (plugins is None)
        assert [path for path in inside(parts) if "voice" in path] == [] or plugins is None


def test_a_tool_for_some_chats_is_theirs_and_the_main_chats(discover: Discover, tmp_path: Path) -> None:
    text = """
class Post(ToolPlugin):
    name = "post"
    def tools(self): return [tool("stamp", chats="post:"), tool("weigh")]

class Stamps(ToolPlugin):
    name = "stamps"
    def tools(self): return [tool("print", chats="post:")]
"""
    registry = discover(text, post="Post", stamps="Stamps")

    def tools(group: Group) -> dict[str, list[str]]:
        return {name: list(offered) for name, offered in parts_of(registry, tmp_path, group).tools.items()}

    everything = {"post": ["stamp", "weigh"], "stamps": ["print"]}
    assert tools(Group("post:4711", "x", "x")) == everything
    assert tools(GROUP) == everything
    assert tools(Group("poster:4711", "y", "y")) == {"post": ["weigh"]}


def test_a_link_in_the_place_of_a_plugins_data_folder_is_refused(discover: Discover, tmp_path: Path) -> None:
    folder = tmp_path / "home/plugin-data/good"
    folder.mkdir(parents=True)
    (folder / "main").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="is a link"):
        parts_of(discover(good="Good"), tmp_path)
