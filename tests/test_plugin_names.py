"""Names: plugins and servers share one space, for each name is the beginning of tools' names."""

from __future__ import annotations

from pathlib import Path

import pytest
from plugin_modules import Discover, contents, discovery, only

from pynchy.plugin import State


@pytest.fixture
def discover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Discover:
    """Discover what a text defines."""
    return discovery(tmp_path, monkeypatch)


def mcp(cls: str, name: str, server: str) -> str:
    """An MCP plugin that calls itself and its server so."""
    return f"class {cls}(Good):\n    name = {name!r}\n    def mcp_server_spec(self): return spec({server!r})\n"


def skills(cls: str, name: str) -> str:
    """A plugin without a server or a tool."""
    return f"class {cls}(SkillPlugin):\n    name = {name!r}\n    def skill_paths(self): return []\n"


def host_tools(cls: str, name: str) -> str:
    """A plugin with a host tool."""
    return f"class {cls}(ToolPlugin):\n    name = {name!r}\n    def tools(self): return [tool()]\n"


def test_of_two_plugins_with_one_name_the_first_entry_point_by_name_keeps_it(discover: Discover) -> None:
    text = "class One(Good):\n    mark = 1\n\nclass Two(Good):\n    mark = 2\n"
    for objects in ({"b": "Two", "a": "One"}, {"a": "One", "b": "Two"}):
        registry = discover(text, **objects)
        assert [plugin.mark for plugin in contents(registry)] == [1]
        first, second = registry.records
        assert (first.entry_point, first.state) == ("a", State.READY)
        assert (second.entry_point, second.state, second.phase) == ("b", State.CONFLICT, "register")
        assert second.reason == "the name 'good' already belongs to the plugin of entry point 'a'"
        assert second.remedy.startswith("uninstall one of the two (")


def test_plugins_of_different_types_share_their_names_too(discover: Discover) -> None:
    registry = discover(skills("One", "voice") + host_tools("Two", "voice"), a="One", b="Two")
    assert [record.state for record in registry.records] == [State.READY, State.CONFLICT]


_SAME_BEGINNING = {
    "two servers of one name": (mcp("One", "one", "good"), mcp("Two", "two", "good")),
    "two servers the agent cannot tell apart": (mcp("One", "one", "g.d"), mcp("Two", "two", "g_d")),
    "a server called like a plugin": (host_tools("One", "voice"), mcp("Two", "two", "voice")),
    "a plugin called like a server": (mcp("One", "one", "voice"), host_tools("Two", "voice")),
    "a plugin whose tools are called like a server's": (mcp("One", "one", "my.voice"), host_tools("Two", "my_voice")),
    "a plugin without tools, today": (skills("One", "voice"), mcp("Two", "two", "voice")),
}


@pytest.mark.parametrize(("one", "two"), _SAME_BEGINNING.values(), ids=_SAME_BEGINNING)
def test_of_two_plugins_whose_tools_would_share_their_names_the_first_counts(
    one: str, two: str, discover: Discover
) -> None:
    registry = discover(one + two, a="One", b="Two")
    first, second = registry.records
    assert contents(registry) == [plugin for plugin in contents(registry) if type(plugin).__name__ == "One"] != []
    assert (first.state, second.state, second.phase) == (State.READY, State.CONFLICT, "register")
    assert "the plugin of entry point 'a'" in second.reason
    assert "rename" in second.remedy or "another name" in second.remedy


@pytest.mark.parametrize(("one", "two"), [("a", "a__b"), ("a__b", "a"), ("a", "a_"), ("a_", "a")])
def test_no_tool_of_one_plugin_can_be_taken_for_anothers(one: str, two: str, discover: Discover) -> None:
    # `mcp__a__b__c` would be the tool `b__c` of `a` and the tool `c` of `a__b`; what allows the one allows both.
    registry = discover(host_tools("One", one) + host_tools("Two", two), a="One", b="Two")
    assert len(contents(registry)) < 2


@pytest.mark.parametrize("name", ["pynchy_", "pynchy__files", "pynchy.", "pynchy..x"])
def test_no_tool_of_a_server_can_be_taken_for_one_of_ours(name: str, discover: Discover) -> None:
    assert only(discover(mcp("One", "one", name), a="One")).state is not State.READY


def test_a_plugins_own_server_may_have_its_name(discover: Discover) -> None:
    assert discover(mcp("One", "voice", "voice"), a="One").records[0].state is State.READY


def test_a_plugin_whose_server_and_host_tools_would_share_names_is_refused(discover: Discover) -> None:
    text = "class Both(Good, ToolPlugin):\n    def tools(self): return TOOLS\n"
    record = only(discover(text + "TOOLS = [tool()]", both="Both"))
    assert (record.state, record.phase) == (State.INVALID, "collect")
    assert "would all be called mcp__good__*" in record.reason
    assert record.remedy == "give the server another name than the plugin"
    assert discover(text + "TOOLS = []", both="Both").records[0].state is State.READY


def test_a_plugin_that_was_not_registered_holds_no_name(discover: Discover) -> None:
    text = (
        "class Invalid(Good):\n    def mcp_server_spec(self): return spec('')\n"
        "class Failed(Good):\n    def mcp_server_spec(self): return 1 / 0\n"
        # It has a name of its own, and a server's that is taken: none of the two is its.
        + mcp("Conflict", "own", "good")
        + mcp("Last", "last", "own")
    )
    registry = discover(text, a="Invalid", b="Failed", c="Good", d="Conflict", e="Last")
    assert [record.state for record in registry.records] == [
        State.INVALID, State.FAILED, State.READY, State.CONFLICT, State.READY,
    ]  # fmt: skip


def test_a_plugin_is_known_by_the_name_it_had_first(discover: Discover) -> None:
    text = """
class Liar(Good):
    asked = 0
    @property
    def name(self):
        self.asked += 1
        return "good" if self.asked == 1 else "docker" if self.asked == 2 else 1 / 0
"""
    registry = discover(text, liar="Liar")
    (plugin,) = registry.mcp_servers
    assert registry.names == {id(plugin): "good"}
    assert [registry.name_of(plugin) for _ in range(3)] == ["good"] * 3
    record = registry.record_of("good")
    assert record is not None
    assert (record.entry_point, record.name) == ("liar", "good")
    assert registry.record_of("docker") is None


def test_the_record_of_a_name_is_that_of_the_plugin_that_has_it(discover: Discover) -> None:
    registry = discover(skills("One", "voice") + skills("Two", "voice"), a="One", b="Two")
    record = registry.record_of("voice")
    assert record is not None
    assert record.entry_point == "a"
