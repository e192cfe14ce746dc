"""Discovery: every entry point ends as registered plugins or as a record that says why not, and never as a crash."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from importlib.metadata import EntryPoint, PathDistribution
from pathlib import Path
from typing import Any

import pytest
from plugin_modules import PREAMBLE, Discover, contents, discovery, only, package_in
from support import REPOSITORY

from pynchy.plugin import (
    GROUP,
    ChannelPlugin,
    HookPlugin,
    McpPlugin,
    PluginRecord,
    PluginRegistry,
    RuntimePlugin,
    SkillPlugin,
    State,
    ToolPlugin,
    discover_plugins,
)


@pytest.fixture
def discover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Discover:
    """Discover what a text defines."""
    return discovery(tmp_path, monkeypatch)


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
    def agent_hooks(self): return {"Stop": [a_hook]}

class Tool(ToolPlugin):
    name = "tool"
    def tools(self): return [tool()]

class Everything(Runtime, Chat, Good, Skill, Hook, Tool):
    name = "everything"
    def mcp_server_spec(self): return spec("everything-else")
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
    (record,) = registry.records
    assert record.types == ("runtime", "channel", "mcp", "skills", "hooks", "tools")
    assert record.offers == {
        "runtime": (), "channel": (), "mcp": ("everything-else",), "skills": (), "hooks": ("Stop",), "tools": ("look",),
    }  # fmt: skip


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
    "a value for a class": ("Broken = 7", "create", "not callable"),
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


_FIGHTING_BACK = {
    "an error that exits when it is printed": "class E(Exception):\n    def __str__(self): sys.exit('got out')",
    "an error that interrupts by being printed": "class E(Exception):\n    def __str__(self): raise GeneratorExit",
    "a missing library without a name": (
        "class E(ModuleNotFoundError):\n    @property\n    def name(self): raise RuntimeError('got out')"
    ),
}


@pytest.mark.parametrize("text", _FIGHTING_BACK.values(), ids=_FIGHTING_BACK)
def test_nothing_gets_out_by_the_way_in_which_an_error_is_put_in_words(text: str, discover: Discover) -> None:
    record = only(discover(f"{text}\nclass Broken(Good):\n    def __init__(self): raise E", broken="Broken"))
    assert (record.state, record.phase, record.reason) == (State.FAILED, "create", "creating it raised E")


_MISUSED = {
    "without a remedy": "class E(InvalidPlugin):\n    def __init__(self): pass",
    "that exits when it is printed": (
        "class E(InvalidPlugin):\n    def __init__(self): super().__init__('', 'mend it')\n"
        "    def __str__(self): sys.exit('got out')"
    ),
    "without a word": "def E(): return InvalidPlugin('', '')",
    "with more than a sentence": "def E(): return InvalidPlugin('no\\ntoken', 'set\\none')",
}


@pytest.mark.parametrize("text", _MISUSED.values(), ids=_MISUSED)
def test_our_own_error_from_a_plugins_hand_makes_a_record_like_any_other(text: str, discover: Discover) -> None:
    record = only(discover(f"{text}\nclass Broken(Good):\n    def __init__(self): raise E()", broken="Broken"))
    assert record.phase == "create"


def test_the_longest_error_is_cut_to_a_sentence(discover: Discover) -> None:
    assert len(only(discover("raise ValueError('x' * 10**6)", broken="Broken")).reason) < 400


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
    record = only(discover_plugins())
    assert (record.state, record.phase) == (State.INVALID, "load")
    assert record.reason == "the entry point's value 'no module at all!' names no object"


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
    def written(name: str, entry_points: bytes) -> None:
        metadata = tmp_path / f"{name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_bytes(entry_points)

    written("half-written", b"[pynchy.plugins]\nvoice")
    written("not-text", b"\xff\xfe\x00")
    written("sound", b"[pynchy.plugins]\nsound = sound:Sound\n")
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


# --- records ----------------------------------------------------------------------------------------------------------


def installed(directory: Path, name: str, entry_points: str) -> PathDistribution:
    """The metadata of an installed distribution."""
    metadata = directory / f"{name.replace('-', '_')}-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text(f"[pynchy.plugins]\n{entry_points}\n")
    return PathDistribution(metadata)


def test_a_record_says_where_the_plugin_comes_from_and_how_long_it_took(
    tmp_path: Path, discover: Discover, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = package_in(tmp_path)
    (package / "voice.py").write_text(PREAMBLE)
    target = f"{package.name}.voice:Good"
    dist = installed(tmp_path, "pynchy-plugin-voice", f"voice = {target}")
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
    direct = tmp_path / "pynchy_plugin_voice-1.2.dist-info/direct_url.json"
    for direct_url, origin in origins.items():
        direct.unlink(missing_ok=True)
        if direct_url:
            direct.write_text(direct_url)
        found = list(dist.entry_points)
        monkeypatch.setattr("pynchy.plugin._discovery.entry_points", lambda group, found=found: found)
        (record,) = discover_plugins().records
        assert (record.entry_point, record.target, record.name) == ("voice", target, "good")
        assert (record.distribution, record.version, record.origin) == ("pynchy-plugin-voice", "1.2", origin)
        assert (record.state, record.phase, record.reason, record.remedy) == (State.READY, "register", "", "")
        if direct_url is None:  # later it is imported already, which may take less than what is written down
            assert 0 < record.import_milliseconds < record.milliseconds
        assert record.import_milliseconds <= record.milliseconds < 60_000


def test_a_distribution_whose_metadata_is_gone_has_a_plugin_that_works(
    tmp_path: Path, discover: Discover, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = package_in(tmp_path)
    (package / "voice.py").write_text(PREAMBLE)
    dist = installed(tmp_path, "pynchy-plugin-voice", f"voice = {package.name}.voice:Good")
    found = list(dist.entry_points)
    monkeypatch.setattr("pynchy.plugin._discovery.entry_points", lambda group: found)
    (tmp_path / "pynchy_plugin_voice-1.2.dist-info/METADATA").write_bytes(b"\xff\xfe")
    (record,) = discover_plugins().records
    assert (record.state, record.distribution, record.version) == (State.READY, "", "")


def test_records_are_json_with_every_field(discover: Discover) -> None:
    registry = discover("class Broken(Good):\n    name = None", a="Good", b="Broken", c="Missing")
    dicts = [record.to_dict() for record in registry.records]
    assert json.loads(json.dumps(dicts)) == dicts
    assert [one["state"] for one in dicts] == ["ready", "invalid", "failed"]
    assert set(dicts[0]) == {*PluginRecord.__slots__, "distribution", "version", "origin"} - {"dist"}
    assert (dicts[0]["types"], dicts[0]["offers"]) == (["mcp"], {"mcp": ["good"]})


def test_an_import_that_holds_up_the_start_is_noted(discover: Discover, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pynchy.plugin._discovery.SLOW_IMPORT", 60_000.0)
    assert discover().records[0].note == ""
    monkeypatch.setattr("pynchy.plugin._discovery.SLOW_IMPORT", 0.0)
    (record,) = discover().records
    assert record.state is State.READY
    assert re.fullmatch(r"its import takes \d+ ms: `pynchy plugins check good` says of what", record.note)


def test_folders_that_a_server_names_are_noted(discover: Discover, tmp_path: Path) -> None:
    folder = tmp_path / "a\nmodel"
    folder.mkdir()
    text = f"class Large(Good):\n    def mcp_server_spec(self): return spec(folders={{'model': Path({str(folder)!r})}})"
    assert discover(text, good="Large").records[0].note == f"agents can read {tmp_path}/a model"


def test_a_later_failure_of_a_plugin_is_recorded_on_it_alone(discover: Discover) -> None:
    registry = discover(_ONE_OF_EACH, a="Good", b="Chat", c="Chat")
    before = list(registry.records)
    registry.fail("chat", "create_channel", "create_channel raised OSError: unplugged")
    registry.fail("nobody", "create_channel", "create_channel raised OSError: unplugged")
    assert [record.state for record in registry.records] == [State.READY, State.FAILED, State.CONFLICT]
    assert [registry.records[0], registry.records[2]] == [before[0], before[2]]
    failed = registry.records[1]
    assert (failed.phase, failed.reason) == ("create_channel", "create_channel raised OSError: unplugged")
    assert failed.remedy == "update or uninstall chat"


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
