"""Discovery: every entry point ends as registered plugins or as a record that says why not, and never as a crash."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, PathDistribution
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY

from pynchy.plugin import (
    GROUP,
    ChannelPlugin,
    HookPlugin,
    McpPlugin,
    McpServerSpec,
    PluginRecord,
    PluginRegistry,
    RuntimePlugin,
    SkillPlugin,
    State,
    ToolPlugin,
    discover_plugins,
)
from pynchy.types import ContainerInput, VolumeMount
from pynchy.workspace import plugin_mount, plugin_parts

#: What every module of these tests starts with. `Good` is an MCP plugin without a fault.
_PREAMBLE = """
import sys
from pathlib import Path
from pynchy.plugin import *

SOURCE = Path({source!r})


def a_hook(*args):
    pass


async def a_tool(arguments):
    return ""


def spec(name="good", command="python", args=("-m", "x"), env=None, host_source=SOURCE):
    return McpServerSpec(name, command, list(args), env or {{}}, host_source)


class Good(McpPlugin):
    name = "good"

    def mcp_server_spec(self):
        return spec()


"""

Discover = Callable[..., PluginRegistry]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A package that a plugin may mount."""
    package = tmp_path / "somewhere" / "some_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    return package


@pytest.fixture
def discover(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> Discover:
    """Discover the plugins of a module with this text, by `entry_point=Class` or else `good=Good`."""
    directory = tmp_path / "modules"
    directory.mkdir()
    monkeypatch.syspath_prepend(str(directory))
    count = 0

    def run(text: str = "", **objects: str) -> PluginRegistry:
        nonlocal count
        count += 1
        module = f"module_{tmp_path.name}_{count}"
        (directory / f"{module}.py").write_text(_PREAMBLE.format(source=str(source)) + text)
        found = [EntryPoint(name, f"{module}:{value}", GROUP) for name, value in (objects or {"good": "Good"}).items()]
        monkeypatch.setattr("pynchy.plugin._discovery.entry_points", lambda group: found)
        return discover_plugins()

    return run


def only(registry: PluginRegistry) -> PluginRecord:
    """The one record of a registry in which nothing was registered."""
    (record,) = registry.records
    assert contents(registry) == []
    assert record.state is not State.READY
    assert record.remedy
    return record


def contents(registry: PluginRegistry) -> list[Any]:
    """Every plugin in every list."""
    lists = (value for name, value in vars(registry).items() if name != "records")
    return [plugin for plugins in lists for plugin in plugins]


# --- dispatch ---------------------------------------------------------------------------------------------------------


_ONE_OF_EACH = """
class Runtime(RuntimePlugin):
    name = "runtime"
    def create_runtime(self): raise AssertionError("not before it is chosen")

class Elsewhere(Runtime):
    name = "elsewhere"
    platform_reason = "only on the moon"
    def platform_matches(self): return False

class Chat(ChannelPlugin):
    name = "chat"
    def create_channel(self, ctx): raise AssertionError("not during discovery")

class Skill(SkillPlugin):
    name = "skill"
    def skill_paths(self): return []

class Hook(HookPlugin):
    name = "hook"
    def agent_hooks(self): return {"Stop": [a_hook, "package.module:function"]}

class Tool(ToolPlugin):
    name = "tool"
    def tools(self): return [HostTool("look", "Looks.", {"type": "object"}, a_tool)]

class Everything(Runtime, Chat, Good, Skill, Hook, Tool):
    name = "everything"
    def mcp_server_spec(self): return spec("everything")
"""


def test_each_plugin_type_goes_into_its_list(discover: Discover) -> None:
    registry = discover(_ONE_OF_EACH, a="Runtime", b="Elsewhere", c="Chat", d="Good", e="Skill", f="Hook", g="Tool")
    assert [record.state for record in registry.records] == [State.READY] * 7
    lists: list[tuple[list[Any], type, str]] = [
        (registry.runtimes, RuntimePlugin, "runtime"),
        (registry.unmatched_runtimes, RuntimePlugin, "elsewhere"),
        (registry.channels, ChannelPlugin, "chat"),
        (registry.mcp_servers, McpPlugin, "good"),
        (registry.skills, SkillPlugin, "skill"),
        (registry.hooks, HookPlugin, "hook"),
        (registry.tools, ToolPlugin, "tool"),
    ]
    for plugins, plugin_type, name in lists:
        assert [plugin.name for plugin in plugins] == [name]
        assert isinstance(plugins[0], plugin_type)
    assert [record.types for record in registry.records] == [
        ("runtime",), ("runtime",), ("channel",), ("mcp",), ("skills",), ("hooks",), ("tools",),
    ]  # fmt: skip


def test_a_composite_plugin_is_one_object_in_several_lists(discover: Discover) -> None:
    registry = discover(_ONE_OF_EACH, everything="Everything")
    plugins = contents(registry)
    assert len(plugins) == 6
    assert len({id(plugin) for plugin in plugins}) == 1
    assert registry.records[0].types == ("runtime", "channel", "mcp", "skills", "hooks", "tools")


def test_a_runtime_for_another_platform_is_noted_with_its_reason(discover: Discover) -> None:
    (record,) = discover(_ONE_OF_EACH, elsewhere="Elsewhere").records
    assert record.note == "does not match this platform: only on the moon"
    assert (record.reason, record.remedy) == ("", "")


def test_without_plugins_the_registry_is_empty(discover: Discover, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pynchy.plugin._discovery.entry_points", lambda group: [])
    assert discover_plugins() == PluginRegistry()


# --- broken plugins ---------------------------------------------------------------------------------------------------


_FAILING = {
    "a missing library": ("import not_there_at_all", "load", "No module named 'not_there_at_all'"),
    "a syntax error": ("def def", "load", "SyntaxError"),
    "an exit while it is imported": ("sys.exit('goodbye')", "load", "SystemExit: goodbye"),
    "no such class": ("", "load", "no attribute 'Broken'"),
    "a value for a class": ("Broken = SOURCE", "create", "not callable"),
    "an __init__ that raises": (
        "class Broken(Good):\n    def __init__(self): raise ValueError('no token,\\n  set one')",
        "create",
        "creating it raised ValueError: no token, set one",
    ),
    "an __init__ that exits": (
        "class Broken(Good):\n    def __init__(self): sys.exit(3)",
        "create",
        "creating it raised SystemExit: 3",
    ),
    "an __init__ with parameters": (
        "class Broken(Good):\n    def __init__(self, token): pass",
        "create",
        "missing 1 required positional argument: 'token'",
    ),
    "an abstract method left open": ("class Broken(McpPlugin):\n    name = 'broken'", "create", "mcp_server_spec"),
    "a spec that raises": (
        "class Broken(Good):\n    def mcp_server_spec(self): return 1 / 0",
        "collect",
        "asking what it offers raised ZeroDivisionError: division by zero",
    ),
    "an error that cannot be printed": (
        "class E(Exception):\n    def __str__(self): raise RuntimeError\n"
        "class Broken(Good):\n    def mcp_server_spec(self): raise E",
        "collect",
        "asking what it offers raised E",
    ),
    "a name that raises": (
        "class Broken(Good):\n    @property\n    def name(self): return 1 / 0",
        "collect",
        "ZeroDivisionError",
    ),
    "a platform_matches that raises": (
        "class Broken(RuntimePlugin):\n    name = 'broken'\n    def create_runtime(self): ...\n"
        "    def platform_matches(self): return 1 / 0",
        "collect",
        "ZeroDivisionError",
    ),
}


@pytest.mark.parametrize(("text", "phase", "words"), _FAILING.values(), ids=_FAILING)
def test_a_plugin_that_raises_is_recorded_and_skipped(text: str, phase: str, words: str, discover: Discover) -> None:
    record = only(discover(text, broken="Broken"))
    assert (record.state, record.phase) == (State.FAILED, phase)
    assert words in record.reason
    assert "\n" not in record.reason


def plugin(base: str, method: str, value: str) -> str:
    """A plugin whose method returns what it must not."""
    return f"class Broken({base}):\n    name = 'broken'\n    def {method}(self): return {value}"


_INVALID = {
    "no plugin type": ("class Broken:\n    name = 'broken'", "Broken extends no plugin type"),
    "a dict for a spec": (plugin("Good", "mcp_server_spec", "{}"), "mcp_server_spec() returned dict"),
    "None for a spec": (plugin("Good", "mcp_server_spec", "None"), "mcp_server_spec() returned NoneType"),
    "an empty command": (plugin("Good", "mcp_server_spec", "spec(command='')"), "no command"),
    "args in a tuple": (
        plugin("Good", "mcp_server_spec", "McpServerSpec('x', 'python', ('-m',), {}, SOURCE)"),
        "not a list of strings",
    ),
    "a number in args": (plugin("Good", "mcp_server_spec", "spec(args=[8080])"), "not a list of strings"),
    "a number in env": (plugin("Good", "mcp_server_spec", "spec(env={'PORT': 8080})"), "not map strings to strings"),
    "a string for host_source": (
        plugin("Good", "mcp_server_spec", "spec(host_source=str(SOURCE))"),
        "host_source is str",
    ),
    "strings for skill paths": (plugin("SkillPlugin", "skill_paths", "[str(SOURCE)]"), "not return a list of paths"),
    "a skill without SKILL.md": (plugin("SkillPlugin", "skill_paths", "[SOURCE]"), "has no SKILL.md"),
    "hooks in a list": (plugin("HookPlugin", "agent_hooks", "[a_hook]"), "did not return a dict of lists"),
    "a hook outside a list": (
        plugin("HookPlugin", "agent_hooks", "{'Stop': a_hook}"),
        "did not return a dict of lists",
    ),
    "a lambda for a hook": (
        plugin("HookPlugin", "agent_hooks", "{'Stop': [lambda *args: None]}"),
        "the hook for Stop is no module-level function",
    ),
    "a method for a hook": (
        plugin("HookPlugin", "agent_hooks", "{'Stop': [(lambda: lambda: 0)()]}"),
        "the hook for Stop is no module-level function",
    ),
    "dicts for tools": (plugin("ToolPlugin", "tools", "[{}]"), "tools() did not return a list of HostTool"),
    "two tools of one name": (
        plugin("ToolPlugin", "tools", "[HostTool('look', '', {}, a_tool)] * 2"),
        "two of its tools have one name",
    ),
    "a word for a priority": (
        plugin("RuntimePlugin", "create_runtime", "None") + "\n    priority = 'high'",
        "its priority is 'high'",
    ),
}


@pytest.mark.parametrize(("text", "words"), _INVALID.values(), ids=_INVALID)
def test_a_plugin_that_offers_what_cannot_be_used_is_told_so(text: str, words: str, discover: Discover) -> None:
    record = only(discover(text, broken="Broken"))
    assert (record.state, record.phase) == (State.INVALID, "collect")
    assert words in record.reason


@pytest.mark.parametrize(
    "name", ["None", "''", "'Voice'", "'-x'", "'a b'", "'../x'", "'a/b'", "'ü'", "'x' * 65", "'a\\n'", "7", "b'voice'"]
)
def test_a_name_that_is_no_folder_name_is_refused(name: str, discover: Discover) -> None:
    record = only(discover(f"class Broken(Good):\n    name = {name}", broken="Broken"))
    assert record.state is State.INVALID
    assert record.reason.startswith("its name is ")


def test_a_plugin_without_a_name_is_refused(discover: Discover) -> None:
    text = "class Broken(McpPlugin):\n    def mcp_server_spec(self): return spec()"
    assert only(discover(text, broken="Broken")).reason == "its name is None"


@pytest.mark.parametrize("name", ["docker", "pynchy"])
def test_our_own_names_are_reserved(name: str, discover: Discover) -> None:
    assert only(discover(f"class P(Good):\n    name = {name!r}", p="P")).reason == f"the name {name!r} is reserved"
    text = f"class P(Good):\n    def mcp_server_spec(self): return spec({name!r})"
    assert only(discover(text, p="P")).reason == f"the MCP server name {name!r} is reserved"


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a:b", ".hidden", "x" * 65, "a\n"])
def test_a_server_name_that_is_no_folder_name_is_refused(name: str, discover: Discover) -> None:
    text = f"class P(Good):\n    def mcp_server_spec(self): return spec({name!r})"
    assert only(discover(text, p="P")).reason == f"its MCP server is called {name!r}"


def too_broad(kind: str, tmp_path: Path) -> Path:
    """A directory that holds more than a plugin's own code."""
    environment = tmp_path / "environment" / "site-packages"
    (environment / "some_package").mkdir(parents=True)
    renamed = tmp_path / "vendored"
    (renamed / "thing-1.0.dist-info").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to("/")
    return {
        "the root": Path("/"),
        "the home": tmp_path / "people" / "me",
        "above the home": tmp_path / "people",
        "site-packages": environment,
        "site-packages by another name": renamed,
        "a directory of the import path": REPOSITORY / "src",
        "a link to the root": link,
        "the root by a detour": tmp_path / ("../" * len(tmp_path.parts)),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "the root",
        "the home",
        "above the home",
        "site-packages",
        "site-packages by another name",
        "a directory of the import path",
        "a link to the root",
        "the root by a detour",
    ],
)
def test_a_source_that_would_show_the_agent_too_much_is_refused(
    kind: str, tmp_path: Path, discover: Discover, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "people" / "me").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "people" / "me"))
    source = too_broad(kind, tmp_path)
    text = f"class P(Good):\n    def mcp_server_spec(self): return spec(host_source=Path({str(source)!r}))"
    record = only(discover(text, p="P"))
    assert record.state is State.INVALID
    assert record.reason == f"host_source {source} is more than a plugin's own code"
    assert "Path(__file__).parent" in record.remedy


@pytest.mark.parametrize("kind", ["nonexistent", "a file"])
def test_a_source_that_is_no_directory_is_refused(kind: str, tmp_path: Path, discover: Discover) -> None:
    path = tmp_path / kind
    if kind == "a file":
        path.touch()
    text = f"class P(Good):\n    def mcp_server_spec(self): return spec(host_source=Path({str(path)!r}))"
    assert only(discover(text, p="P")).reason == f"host_source {path} is not a directory"


def test_a_composite_of_which_one_part_is_invalid_registers_nowhere(discover: Discover) -> None:
    text = _ONE_OF_EACH + "class P(Everything):\n    def tools(self): return None"
    record = only(discover(text, p="P"))
    assert record.state is State.INVALID


def test_one_broken_plugin_does_not_hold_up_the_others(discover: Discover) -> None:
    text = _ONE_OF_EACH + "class Broken(Good):\n    def __init__(self): sys.exit(1)"
    registry = discover(text, a="Broken", b="Missing", c="Good", d="Chat")
    assert [record.state for record in registry.records] == [State.FAILED, State.FAILED, State.READY, State.READY]
    assert [plugin.name for plugin in contents(registry)] == ["chat", "good"]


def test_an_entry_point_that_names_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [EntryPoint("odd", "no module at all!", GROUP)]
    monkeypatch.setattr("pynchy.plugin._discovery.entry_points", lambda group: found)
    assert only(discover_plugins()).state is State.FAILED


def test_a_failure_is_logged_once_with_its_remedy(discover: Discover, caplog: pytest.LogCaptureFixture) -> None:
    record = only(discover("sys.exit('goodbye')", broken="Broken"))
    lines = [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert lines == [f"plugin broken: {record.reason}; {record.remedy}"]


@pytest.mark.parametrize(
    "text", ["raise KeyboardInterrupt", "class P(Good):\n    def __init__(self): raise KeyboardInterrupt"]
)
def test_a_keyboard_interrupt_passes(text: str, discover: Discover) -> None:
    with pytest.raises(KeyboardInterrupt):
        discover(text, p="P")


def test_unreadable_metadata_of_one_distribution_is_recorded_and_the_others_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(name: str, entry_points: bytes) -> None:
        metadata = tmp_path / f"{name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_bytes(entry_points)

    installed("half-written", b"[pynchy.plugins]\nvoice")
    installed("not-text", b"\xff\xfe\x00")
    installed("sound", b"[pynchy.plugins]\nsound = sound:Sound\n")
    (tmp_path / "sound.py").write_text(
        "from pynchy.plugin import SkillPlugin\n"
        "class Sound(SkillPlugin):\n    name = 'sound'\n    def skill_paths(self): return []\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = discover_plugins()
    found = {record.entry_point: record for record in registry.records}
    assert found["sound"].state is State.READY
    for name in ("half-written", "not-text"):
        assert (found[name].state, found[name].phase, found[name].version) == (State.FAILED, "find", "1.0")
        assert found[name].reason.startswith("its entry_points.txt cannot be read: ")
        assert found[name].remedy == f"reinstall or uninstall {name}"
    assert "hello" in found  # which is installed beside


# --- names ------------------------------------------------------------------------------------------------------------


def test_of_two_plugins_with_one_name_the_first_entry_point_by_name_keeps_it(discover: Discover) -> None:
    text = "class One(Good):\n    mark = 1\n\nclass Two(Good):\n    mark = 2\n"
    for objects in ({"b": "Two", "a": "One"}, {"a": "One", "b": "Two"}):
        registry = discover(text, **objects)
        assert [plugin.mark for plugin in contents(registry)] == [1]
        first, second = registry.records
        assert (first.entry_point, first.state) == ("a", State.READY)
        assert (second.entry_point, second.state, second.phase) == ("b", State.CONFLICT, "register")
        assert second.reason == "the name 'good' already belongs to the plugin of entry point 'a'"
        assert second.remedy


@pytest.mark.parametrize("name", ["good", "g.d", "g_d"])
def test_of_two_servers_whose_tools_would_share_their_names_the_first_counts(name: str, discover: Discover) -> None:
    first = {"good": "good", "g.d": "g_d", "g_d": "g.d"}[name]
    text = (
        f"class One(Good):\n    name = 'one'\n    def mcp_server_spec(self): return spec({first!r})\n"
        f"class Two(Good, SkillPlugin):\n    name = 'two'\n    def skill_paths(self): return []\n"
        f"    def mcp_server_spec(self): return spec({name!r})\n"
    )
    registry = discover(text, a="One", b="Two")
    assert [plugin.name for plugin in contents(registry)] == ["one"]
    assert registry.records[1].state is State.CONFLICT
    assert "plugin 'one'" in registry.records[1].reason


def test_a_plugin_that_failed_holds_no_name(discover: Discover) -> None:
    text = "class Broken(Good):\n    def mcp_server_spec(self): return spec('')"
    registry = discover(text, a="Broken", b="Good")
    assert [record.state for record in registry.records] == [State.INVALID, State.READY]


# --- records ----------------------------------------------------------------------------------------------------------


def test_a_record_says_where_the_plugin_comes_from_and_how_long_it_took(
    tmp_path: Path, source: Path, discover: Discover, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "voice-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: pynchy-plugin-voice\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text("[pynchy.plugins]\nvoice = voice_module:Good\n")
    (tmp_path / "modules/voice_module.py").write_text(_PREAMBLE.format(source=str(source)))
    origins = {
        None: "index",
        '{"url": "file:///home/me/my%20voice", "dir_info": {"editable": true}}': "editable /home/me/my voice",
        '{"url": "file:///home/me/voice.whl", "archive_info": {}}': "/home/me/voice.whl",
        '{"url": "https://example.org/voice.git", "vcs_info": {"vcs": "git", "commit_id": "1"}}': (
            "git https://example.org/voice.git"
        ),
        "{broken": "",
        "[]": "",
    }
    for direct_url, origin in origins.items():
        (metadata / "direct_url.json").unlink(missing_ok=True)
        if direct_url:
            (metadata / "direct_url.json").write_text(direct_url)
        found = list(PathDistribution(metadata).entry_points)
        monkeypatch.setattr("pynchy.plugin._discovery.entry_points", lambda group, found=found: found)
        (record,) = discover_plugins().records
        assert (record.entry_point, record.target, record.name) == ("voice", "voice_module:Good", "good")
        assert (record.distribution, record.version, record.origin) == ("pynchy-plugin-voice", "1.2", origin)
        assert (record.state, record.phase, record.reason, record.remedy) == (State.READY, "register", "", "")
        assert 0 < record.milliseconds < 60_000


def test_records_are_json_with_every_field(discover: Discover) -> None:
    registry = discover("class Broken(Good):\n    name = None", a="Good", b="Broken", c="Missing")
    dicts = [record.to_dict() for record in registry.records]
    assert json.loads(json.dumps(dicts)) == dicts
    assert [one["state"] for one in dicts] == ["ready", "invalid", "failed"]
    assert set(dicts[0]) == set(PluginRecord.__slots__)


# --- an MCP server's way into the agent -------------------------------------------------------------------------------


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


# --- what it may import -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["pynchy.plugin", "pynchy.types", "pynchy.wire"])
def test_the_shared_rooms_need_the_standard_library_alone(module: str) -> None:
    code = f"import sys; sys.path.append({str(REPOSITORY / 'src')!r}); import {module}; print({module}.__name__)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.stdout == f"{module}\n", done.stderr


def test_discovery_imports_nothing_but_the_standard_library_and_the_plugins() -> None:
    code = """
import sys
before = set(sys.modules)
from pynchy.plugin import discover_plugins
import pynchy.plugin._discovery as discovery
discovery.entry_points = lambda group: []
discover_plugins()
print(sorted({name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['pynchy']\n"
