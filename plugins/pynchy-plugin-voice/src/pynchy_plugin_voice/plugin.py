"""The host's side: how the server is started, and which model folder it is given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pynchy.plugin import InvalidPlugin, McpPlugin, McpServerSpec, SkillPlugin, plugin_config

_LONGEST_MINUTES = 24 * 60
_DEFAULT_MINUTES = "30"
#: What faster-whisper opens; without the tokenizer it would look for one on the internet.
_MODEL_FILES = ("model.bin", "config.json", "tokenizer.json")
_VOCABULARIES = ("vocabulary.json", "vocabulary.txt")


class VoicePlugin(McpPlugin, SkillPlugin):
    """Gives the agent `mcp__voice__transcribe_voice` and the skill `voice:voice-notes`."""

    name = "voice"

    def mcp_server_spec(self) -> McpServerSpec:
        """The server in `mcp.py`; InvalidPlugin where a setting cannot be used, for a worse engine is no substitute."""
        settings = plugin_config(self.name)
        model = _model_folder(settings)
        return McpServerSpec(
            name="voice",
            command="python",
            args=["-m", "pynchy_plugin_voice.mcp"],
            env={"PYNCHY_VOICE_MINUTES": _minutes(settings)},
            host_source=Path(__file__).parent,
            folders={"model": model} if model else {},
        )

    def skill_paths(self) -> list[Path]:
        """What to do with voice notes."""
        return [Path(__file__).parent / "skills" / "voice-notes"]


def _minutes(settings: Mapping[str, str]) -> str:
    text = settings.get("minutes", "").strip() or _DEFAULT_MINUTES
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= _LONGEST_MINUTES:
        raise InvalidPlugin(
            f"PYNCHY_VOICE_MINUTES is {text!r}", f"set it to a whole number from 1 to {_LONGEST_MINUTES}, or unset it"
        )
    return str(int(text))


def _model_folder(settings: Mapping[str, str]) -> Path | None:
    """The folder of a Whisper model with everything in it, None where no model is set."""
    text = settings.get("model", "").strip()
    if not text:
        return None
    folder = Path(text).expanduser()
    if not folder.is_absolute() or not folder.is_dir():
        raise _unusable(text, "which is not a directory" if folder.is_absolute() else "which is not an absolute path")
    present = {path.name: path for path in folder.iterdir()}
    missing = [name for name in _MODEL_FILES if name not in present]
    if not any(name in present for name in _VOCABULARIES):
        missing.append(" or ".join(_VOCABULARIES))
    if missing:
        raise _unusable(text, f"which lacks {', '.join(missing)}")
    inside = folder.resolve()
    for name, path in present.items():
        if path.is_symlink() and inside not in path.resolve().parents:
            raise InvalidPlugin(
                f"PYNCHY_VOICE_MODEL is {text}, where {name} is a link that leads out of it",
                "make a copy without links, as in `cp -rL FOLDER COPY`, and name that",
            )
    return folder


def _unusable(text: str, why: str) -> InvalidPlugin:
    return InvalidPlugin(
        f"PYNCHY_VOICE_MODEL is {text}, {why}",
        "name the folder of a Whisper model in CTranslate2's format, or unset it to use the engine that is built in",
    )
