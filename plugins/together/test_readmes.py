"""What the plugins' pages tell a reader to type is what happens."""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import uv
from household import Home
from support import pynchy

PLUGINS = Path(__file__).parents[1]
NAMES = ("telegram", "voice", "whatsapp")
#: What takes a phone, the internet or a day: held by the plugins' own tests, or by nobody.
_ELSEWHERE = re.compile(r"pynchy (run|image build|whatsapp)\b|hf |echo ")

pytestmark = [pytest.mark.anyio, pytest.mark.bubblewrap]


def commands(name: str) -> list[tuple[str, str]]:
    """What a page has one type, with the output that it shows; None of it is left out but `_ELSEWHERE`."""
    page = (PLUGINS / f"pynchy-plugin-{name}/README.md").read_text()
    found = []
    for language, block in re.findall(r"^ *```(sh|console)\n(.*?)^ *```$", page, re.DOTALL | re.MULTILINE):
        if language == "sh":
            found += [(line.strip(), "") for line in block.splitlines()]
        else:
            parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
            found += zip(parts[1::2], parts[2::2], strict=True)
    return [(command, output) for command, output in found if command and not _ELSEWHERE.match(command)]


def told(output: str) -> str:
    """An output as a pattern; `...` stands for anything in its line."""
    return re.escape(output.rstrip("\n")).replace(r"\.\.\.", ".*")


@pytest.mark.parametrize("name", NAMES)
def test_a_plugin_is_installed_as_its_page_says(name: str) -> None:
    (command,) = [command for command, _ in commands(name) if command.startswith("uv pip install")]
    from_checkout = re.search(r"# or `(-e \S+)` from a checkout$", command)
    assert command.startswith(f"uv pip install pynchy-plugin-{name} ")
    assert from_checkout
    options = ["--quiet", "--python", sys.executable, "--no-deps", "--no-build-isolation", "--offline"]
    subprocess.run(
        [uv.find_uv_bin(), "pip", "install", *options, *shlex.split(from_checkout[1])], cwd=PLUGINS.parent, check=True
    )


@pytest.mark.parametrize("name", ["telegram", "whatsapp"])
async def test_the_chats_of_a_page_are_listed_and_registered(name: str, home: Home) -> None:
    page = (PLUGINS / f"pynchy-plugin-{name}/README.md").read_text()
    for title, jid in re.findall(r"^not registered: (.+), (\S+)$", page, re.MULTILINE):
        await home.service.on_chat_metadata(jid, title)
    typed = [(command, output) for command, output in commands(name) if command.startswith("pynchy ")]
    assert any(command.startswith("pynchy groups add") for command, _ in typed)
    for command, output in typed:
        done = await asyncio.to_thread(pynchy, *shlex.split(command, comments=True)[1:])
        assert done.returncode == 0, done.stderr
        for line in output.splitlines():
            assert line in done.stdout.splitlines()
        if added := re.match(r"pynchy groups add (\S+) (\S+)", command):
            assert done.stdout == f"{added[2]} is the group of {added[1]}.\n"


def test_the_page_of_the_voice_shows_what_is_heard(note: bytes, tmp_path: Path) -> None:
    group = tmp_path / "home/groups/main"
    assert pynchy("ask", "--demo", "hello").returncode == 0
    (group / "note.ogg").write_bytes(note)
    (group / "note.ogg").chmod(0o644)
    typed = [(command, output) for command, output in commands("voice") if command.startswith("pynchy ")]
    assert len(typed) == 2
    for command, output in typed:
        done = pynchy(*shlex.split(command)[1:])
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(told(output) if output else "(?s).*", done.stdout.rstrip("\n")), done.stdout
