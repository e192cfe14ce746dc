"""The tool in a real sandbox, called by the real SDK, with the packages that `pynchy image build` has built in."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from speech import SENTENCES, word_error_rate

#: The plugin that is tested, in a checkout beside the others.
_PLUGIN = Path(__file__).parents[1]


@pytest.fixture
def environment(tmp_path: Path) -> Any:
    """A throwaway environment with Pynchy, the sandbox and this plugin; a skip outside of Pynchy's checkout."""
    environments = pytest.importorskip("environments", reason="the tests of Pynchy's checkout are not on the path")
    support = pytest.importorskip("support")
    made = environments.Environment(tmp_path / "venv")
    options = [
        option for name in ("bubblewrap", "voice") for option in ("-e", str(_PLUGIN.parent / f"pynchy-plugin-{name}"))
    ]
    made.install(str(environments.build(support.REPOSITORY, "wheel", tmp_path)), *options)
    code = "from pynchy_plugin_bubblewrap.runtime import BubblewrapRuntime as R; R().ensure_running()"
    started = made.start("-c", code)
    if started.returncode:
        support.missing("bubblewrap", started.stderr.strip().splitlines()[-1])
    return made


@pytest.mark.bubblewrap
@pytest.mark.timeout(1200)  # it may have to fetch 200 MB
def test_a_voice_note_is_heard_by_an_agent_in_its_sandbox(
    environment: Any,
    say: Callable[..., bytes],
    encode: Callable[..., Path],
    random_whisper: Path,
    record_property: Callable[[str, object], None],
    tmp_path: Path,
) -> None:
    setting = {"CONTAINER_RUNTIME": "bubblewrap", "PYNCHY_AGENT_ENV": str(tmp_path / "agent-env")}
    command = [str(environment.python), "-m", "pynchy", "image", "build", "--runtime", "bubblewrap"]
    built = subprocess.run(command, capture_output=True, text=True, timeout=900, env={**os.environ, **setting})
    assert built.returncode == 0, built.stderr

    checked = environment.run("-m", "pynchy", "plugins", "check", "voice", **setting)
    assert "the MCP server voice offers: transcribe_voice" in checked

    def ask(line: str, **more: str) -> str:
        return environment.run("-m", "pynchy", "ask", "--demo", line, **setting, **more)

    call = '/tool mcp__voice__transcribe_voice {"path": "%s"}'
    assert "there is no file 'note.ogg'" in ask(call % "note.ogg")
    (group,) = (Path(os.environ["PYNCHY_HOME"]) / "groups").iterdir()
    note = encode(say("please call me when you get home tonight"), group / "note.ogg", "libopus")
    note.chmod(0o644)
    assert "home tonight" in ask(call % "note.ogg")
    assert "home tonight" in ask(call % "/workspace/group/note.ogg")
    assert "is outside of" in ask(call % "/opt/pynchy/__main__.py")

    for voice, most in (("flite", 0.3), ("espeak-ng", 0.9)):
        for number, text in enumerate(SENTENCES):
            (group / f"{voice}-{number}.wav").write_bytes(say(text, voice))
            (group / f"{voice}-{number}.wav").chmod(0o644)
        lines = "\n".join(call % f"{voice}-{number}.wav" for number in range(len(SENTENCES)))
        answers = re.split(r"^\d.* of audio, .*$", ask(lines), flags=re.MULTILINE)[1:]
        rate = word_error_rate(dict(zip(SENTENCES, answers, strict=True)))
        record_property(f"word error rate of pocketsphinx with {voice}, in the container", f"{rate:.2f}")
        assert rate <= most

    random_whisper.chmod(0o755)
    heard = ask(call % "note.ogg", PYNCHY_VOICE_MODEL=str(random_whisper))
    assert "heard by Whisper" in heard
