"""Plugins that the user has switched off are listed, and not a line of their code runs."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from plugin_modules import contents, package_in

from pynchy.plugin import PluginRegistry, State, discover_plugins

_PLUGIN = """
from pathlib import Path
from pynchy.plugin import SkillPlugin
Path(__file__).with_suffix(".imported").touch()
class Plugin(SkillPlugin):
    name = {name!r}
    def skill_paths(self): return []
"""


class Installed:
    """Distributions on the import path, beside those that are really installed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.package = package_in(path)

    def add(self, distribution: str, name: str) -> None:
        """One with the plugin `name`."""
        metadata = self.package.parent / f"{distribution.replace('-', '_')}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        target = f"{self.package.name}.{name}:Plugin"
        (metadata / "entry_points.txt").write_text(f"[pynchy.plugins]\n{name} = {target}\n")
        (self.package / f"{name}.py").write_text(_PLUGIN.format(name=name))
        importlib.invalidate_caches()

    def imported(self) -> list[str]:
        """Whose code has run."""
        return sorted(path.stem for path in self.package.glob("*.imported"))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    """`voice` of the distribution Acme.Voice, and `sewing` of pynchy-plugin-sewing."""
    installed = Installed(tmp_path)
    monkeypatch.syspath_prepend(str(installed.package.parent))
    installed.add("Acme.Voice", "voice")
    installed.add("pynchy-plugin-sewing", "sewing")
    return installed


def states(registry: PluginRegistry) -> dict[str, State]:
    """How each of the two is."""
    return {one.entry_point: one.state for one in registry.records if one.entry_point in ("voice", "sewing")}


@pytest.mark.parametrize("value", ["voice", " VOICE ", "Acme.Voice", "acme-voice", "acme_voice", "nothing, voice,"])
def test_a_plugin_that_the_variable_names_is_not_even_imported(
    value: str, installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYNCHY_PLUGINS_DISABLED", value)
    registry = discover_plugins()
    assert states(registry) == {"voice": State.DISABLED, "sewing": State.READY}
    assert installed.imported() == ["sewing"]
    assert "voice" not in {plugin.name for plugin in contents(registry)}
    (record,) = (one for one in registry.records if one.entry_point == "voice")
    assert (record.phase, record.distribution, record.name) == ("find", "Acme.Voice", "")
    assert record.reason == "PYNCHY_PLUGINS_DISABLED names it"
    assert record.remedy == "take it out of that variable to have it"


def test_several_can_be_named(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYNCHY_PLUGINS_DISABLED", "voice, pynchy-plugin-sewing")
    assert set(states(discover_plugins()).values()) == {State.DISABLED}
    assert installed.imported() == []


@pytest.mark.parametrize("value", ["", ",", " , ", "voices", "v", "acme", "*"])
def test_a_name_that_is_nobodys_switches_nothing_off(
    value: str, installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYNCHY_PLUGINS_DISABLED", value)
    assert states(discover_plugins()) == {"voice": State.READY, "sewing": State.READY}


def test_safe_mode_leaves_ours_alone(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    installed.add("pynchy-plugin-bubblewrap", "sandbox")
    monkeypatch.setenv("PYNCHY_SAFE_MODE", "1")
    registry = discover_plugins()
    assert states(registry) == {"voice": State.DISABLED, "sewing": State.DISABLED}
    assert installed.imported() == ["sandbox"]
    (record,) = (one for one in registry.records if one.entry_point == "voice")
    assert (record.reason, record.remedy) == ("not loaded in safe mode", "start without --safe-mode to have it")
    assert {record.entry_point for record in registry.records if record.state is State.READY} == {"sandbox"}


@pytest.mark.parametrize("value", ["", "0", " 0 "])
def test_safe_mode_can_be_off(value: str, installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYNCHY_SAFE_MODE", value)
    assert states(discover_plugins()) == {"voice": State.READY, "sewing": State.READY}


def test_what_the_user_switched_off_is_no_warning(
    installed: Installed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PYNCHY_SAFE_MODE", "1")
    discover_plugins()
    assert caplog.records == []


def test_a_plugin_that_is_switched_off_holds_no_name(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    installed.add("pynchy-plugin-other", "wants_voice")
    (installed.package / "wants_voice.py").write_text(_PLUGIN.format(name="voice"))
    assert [one.state for one in discover_plugins().records if one.entry_point == "wants_voice"] == [State.CONFLICT]
    monkeypatch.setenv("PYNCHY_PLUGINS_DISABLED", "voice")
    record = discover_plugins().record_of("voice")
    assert record is not None
    assert record.entry_point == "wants_voice"
