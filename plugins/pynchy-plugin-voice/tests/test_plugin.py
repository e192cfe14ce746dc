"""The host's side: the plugin is found, and says what is wrong with its settings where the user looks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pynchy.agent_plugins import plugin_parts
from pynchy.plugin import InvalidPlugin, State, discover_plugins
from pynchy.types import Group
from pynchy_plugin_voice import VoicePlugin

_PARTS = ("model.bin", "config.json", "tokenizer.json", "vocabulary.json")


def model_folder(path: Path, *without: str) -> Path:
    """A folder with the files of a model, empty ones."""
    path.mkdir(parents=True)
    for name in _PARTS:
        if name not in without:
            (path / name).touch()
    return path


def test_it_is_discovered_with_a_server_and_a_skill(tmp_path: Path) -> None:
    registry = discover_plugins()
    (record,) = (one for one in registry.records if one.entry_point == "voice")
    assert (record.state, record.types, record.reason) == (State.READY, ("mcp", "skills"), "")
    parts = plugin_parts(registry, tmp_path, Group("x", "x", "x"), None)
    assert parts.mcp_servers["voice"]["args"] == ["-m", "pynchy_plugin_voice.mcp"]
    assert "voice" in parts.skills
    (skills,) = (mount for mount in parts.mounts if mount.container_path == "/workspace/skills")
    assert "transcribe_voice" in Path(skills.host_path, "voice/skills/voice-notes/SKILL.md").read_text()


def test_the_host_imports_no_engine() -> None:
    code = "import sys, pynchy_plugin_voice; print({'av', 'numpy', 'mcp', 'pocketsphinx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


def test_a_model_folder_is_mounted_beside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert VoicePlugin().mcp_server_spec().folders == {}
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = model_folder(tmp_path / "whisper base")
    for written in (str(folder), "~/whisper base", f" {folder}/ "):
        monkeypatch.setenv("PYNCHY_VOICE_MODEL", written)
        assert VoicePlugin().mcp_server_spec().folders == {"model": folder}


@pytest.mark.parametrize("missing", _PARTS)
def test_an_incomplete_model_is_refused_by_what_it_lacks(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYNCHY_VOICE_MODEL", str(model_folder(tmp_path / "model", missing)))
    with pytest.raises(InvalidPlugin, match=f"PYNCHY_VOICE_MODEL is .*model, which lacks {missing}"):
        VoicePlugin().mcp_server_spec()


def test_a_model_that_is_not_there_makes_the_plugin_invalid_and_not_the_worse_engine_speak_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for written, words in (
        (str(tmp_path / "gone"), "which is not a directory"),
        (str(tmp_path / "file"), "which is not a directory"),
        ("whisper-base", "which is not an absolute path"),
    ):
        monkeypatch.setenv("PYNCHY_VOICE_MODEL", written)
        (record,) = (one for one in discover_plugins().records if one.entry_point == "voice")
        assert record.state is State.INVALID
        assert record.reason == f"PYNCHY_VOICE_MODEL is {written}, {words}"
        assert record.remedy.startswith("name the folder of a Whisper model")


def test_a_model_of_links_that_lead_out_is_refused_for_they_lead_nowhere_in_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/abc").touch()
    folder = model_folder(tmp_path / "snapshots/1", "model.bin")
    (folder / "model.bin").symlink_to("../../blobs/abc")
    monkeypatch.setenv("PYNCHY_VOICE_MODEL", str(folder))
    with pytest.raises(InvalidPlugin, match=r"model\.bin is a link that leads out of it") as raised:
        VoicePlugin().mcp_server_spec()
    assert "cp -rL" in raised.value.remedy


def test_the_longest_recording_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert VoicePlugin().mcp_server_spec().env == {"PYNCHY_VOICE_MINUTES": "30"}
    monkeypatch.setenv("PYNCHY_VOICE_MINUTES", " 090 ")
    assert VoicePlugin().mcp_server_spec().env == {"PYNCHY_VOICE_MINUTES": "90"}
    for wrong in ("0", "-1", "1.5", "an hour", "1441", "99999", "٣"):
        monkeypatch.setenv("PYNCHY_VOICE_MINUTES", wrong)
        with pytest.raises(InvalidPlugin, match="PYNCHY_VOICE_MINUTES is"):
            VoicePlugin().mcp_server_spec()
