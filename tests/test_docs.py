"""The documentation is true: its exchanges happen as written, its commands and links exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import uv
from supervisors import StandIns
from support import REPOSITORY, RUNTIMES, pynchy

from pynchy import blocked_names, egress, group_settings, mount_security
from pynchy.agent_setup import agent_owner
from pynchy.chat_commands import COMMANDS
from pynchy.config import Settings, load_settings
from pynchy.conversations import _CONTEXT, _CONTEXT_CHARACTERS
from pynchy.destinations import Destination
from pynchy.host_tools import _AT_ONCE, _EACH_SECOND, RIGHTS, TOOLS
from pynchy.messages import MOST_CONTEXT
from pynchy.status import Status
from pynchy.testing import RuntimeConformance
from pynchy.tunnel import MAX_TUNNELS, WINDOW
from pynchy.types import GROUP_SETTINGS, Group, VolumeMount

#: Some pages have very many commands, and a machine may have much else to do.
pytestmark = pytest.mark.timeout(400)

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "plugins/*/*.md", "examples/*/*.md")
    for path in REPOSITORY.glob(pattern)
)
UV = uv.find_uv_bin()
README = (REPOSITORY / "README.md").read_text()
CHATS_PAGE = (REPOSITORY / "docs/chats.md").read_text()
MOUNTS_PAGE = (REPOSITORY / "docs/mounts.md").read_text()


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def exchanges(block: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output that follows it."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.bubblewrap
@pytest.mark.parametrize(
    ("command", "output"), [pair for block in blocks(README, "console") for pair in exchanges(block)]
)
def test_an_exchange_in_the_readme_happens_as_it_is_written(
    command: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    RUNTIMES["bubblewrap"]()
    monkeypatch.setenv("CONTAINER_RUNTIME", "bubblewrap")
    program, *arguments = shlex.split(command)
    assert program == "pynchy"
    assert pynchy(*arguments).stdout == output


def test_the_readme_shows_an_exchange_with_a_plugins_tool() -> None:
    assert any("mcp__hello__greet" in command for block in blocks(README, "console") for command, _ in exchanges(block))


@pytest.mark.parametrize("target", re.findall(r"^make (\S+)", "\n".join(blocks(README, "sh")), re.MULTILINE))
def test_a_make_target_in_the_readme_exists_and_is_listed(target: str) -> None:
    subprocess.run(["make", "-n", target], cwd=REPOSITORY, check=True, capture_output=True)
    listed = subprocess.run(["make", "help"], cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    assert re.search(rf"^make {target} ", listed, re.MULTILINE)


def sh_commands(beginning: str) -> list[str]:
    """Every command in a shell block of a page that begins so, without its comment."""
    found = (line for page in PAGES for block in blocks(page.read_text(), "sh") for line in block.splitlines())
    tables = (cell for page in PAGES for cell in re.findall(r"\| `([^`]+)`", page.read_text()))
    return sorted(
        {shlex.join(shlex.split(one, comments=True)) for one in (*found, *tables) if one.startswith(beginning)}
    )


@pytest.fixture
def documents(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pynchy's home in that of a person with the folders and the allowlist of the page of mounts."""
    person = short_path
    home = person / ".local/share/pynchy"
    monkeypatch.setenv("HOME", str(person))
    monkeypatch.setenv("PYNCHY_HOME", str(home))
    for folder in (home, *(person / name for name in ("Documents/recipes", "Documents/shopping", "taxes"))):
        folder.mkdir(parents=True)
    (home / "mounts.toml").write_text(*blocks(MOUNTS_PAGE, "toml"))
    for path in (person, *person.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    if os.geteuid() == 0:  # then agents are another user
        os.chown(person / "Documents/shopping", *agent_owner(load_settings()))
    return home


@pytest.mark.bubblewrap
def test_the_exchanges_on_the_page_of_chats_happen_one_after_the_other_as_they_are_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    RUNTIMES["bubblewrap"]()
    monkeypatch.setenv("CONTAINER_RUNTIME", "bubblewrap")
    assert pynchy("ask", "--demo", "/help").returncode == 0  # which registers the main group

    def timeless(text: str) -> str:
        return re.sub(r"\d{4}-\d\d-\d\d", "DAY", text)

    for block in blocks(CHATS_PAGE, "console"):
        for command, output in exchanges(block):
            assert timeless(pynchy(*shlex.split(command)[1:]).stdout) == timeless(output), command


def test_the_tables_on_the_page_of_chats_are_those_of_the_code() -> None:
    def names(pattern: str, heading: str) -> list[str]:
        section = CHATS_PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
        cells = (row.split("|")[1] for row in section.splitlines() if row.startswith("| `"))
        return [name for cell in cells for name in re.findall(pattern, cell)]

    settings = [name.replace("-", "_") for name in names(r"`--([a-z-]+)`", "What can be set")]
    assert settings == list(GROUP_SETTINGS)
    assert names(r"`/([a-z]+)`", "Commands in a chat") == list(COMMANDS)
    assert sorted(names(r"`([a-z_]+)`", "What an agent can do beside answering")) == sorted(TOOLS)
    for cell, own, foreign in re.findall(r"^\| (`[a-z_`, ]+`) \| ([^|]+) \| ([^|]+) \|$", CHATS_PAGE, re.MULTILINE):
        said = {"yes": {"main", "other"}, "no": set(), "the main chat's": {"main"}}
        for name in re.findall(r"`([a-z_]+)`", cell):
            for whose, words in (("own", own), ("foreign", foreign)):
                may = {caller for caller, target in RIGHTS[name] if target == whose}
                assert may == said[words], (name, whose)
    assert f"the latest {MOST_CONTEXT} messages" in CHATS_PAGE
    assert f"more than the last {_CONTEXT}, or\n{_CONTEXT_CHARACTERS:,} characters" in CHATS_PAGE
    assert f"agents make {_AT_ONCE} calls at once, and then one every two seconds" in CHATS_PAGE
    assert _EACH_SECOND == 0.5


@pytest.mark.parametrize("command", sh_commands("pynchy groups set "))
@pytest.mark.usefixtures("documents")
def test_a_setting_of_a_group_can_be_made_as_it_is_written(command: str) -> None:
    folder = shlex.split(command)[3]
    assert pynchy("groups", "add", "pigeon:loft", folder).returncode == 0
    # Which plugins there are is another machine's affair.
    done = pynchy(*shlex.split(command.replace("agenda,notes", "hello"))[1:])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{folder} has ")


def test_a_folder_on_the_page_of_mounts_is_mounted_or_refused_as_it_is_written(documents: Path) -> None:
    def mounts(asked: str) -> tuple[VolumeMount, ...]:
        group = group_settings.apply(Group("pigeon:loft", "Loft", "loft"), {"mounts": asked}, ())
        return mount_security.extra_mounts(documents, group, [group], agent_owner(load_settings()))

    rows = re.findall(r"^\| `(~[^`]+)` \| `([^`]+)`(, read-only)? \|$", MOUNTS_PAGE, re.MULTILINE)
    assert len(rows) == 2
    for asked, inside, readonly in rows:
        (mount,) = mounts(asked)
        assert (mount.container_path, mount.readonly) == (inside, bool(readonly))
    sentence, names = blocks(MOUNTS_PAGE, "text")
    with pytest.raises(mount_security.MountRefused) as refused:
        mounts("~/taxes")
    assert str(refused.value).replace(str(documents.parents[2]), "~") == sentence.strip()
    assert " ".join(names.split()) == " ".join(blocked_names.ALWAYS)
    harmless = " and ".join(", ".join(f"`{name}`" for name in blocked_names.HARMLESS).rsplit(", ", 1))
    assert f"Not refused are {harmless}," in MOUNTS_PAGE


def test_the_limits_on_the_page_of_mounts_are_those_of_the_code() -> None:
    assert f"| folders of one chat | {mount_security._MOST_MOUNTS} |" in MOUNTS_PAGE
    assert f"are looked through at each start | {mount_security._MOST_ENTRIES:,} |" in MOUNTS_PAGE
    assert f"| {mount_security._MOST_LEVELS} levels, {mount_security._CHECKED_WITHIN:.0f} s |" in MOUNTS_PAGE


def test_the_status_on_the_page_of_the_network_is_what_is_said() -> None:
    (block,) = blocks((REPOSITORY / "docs/network.md").read_text(), "console")
    ((command, output),) = exchanges(block)
    assert command == "pynchy status"
    why = "10.0.0.1 is no public address of the internet, and no policy opens another"
    seen = [
        Destination("main", "example.com", 443, 2, 0, 1100, 20_400, ""),
        Destination("main", "10.0.0.1", 80, 0, 1, 0, 0, why),
    ]
    main = Group("terminal:main", "main", "main")
    status = Status("docker", [main], frozenset({main.jid}), frozenset(), 5, seen)
    assert output.splitlines() == status.lines()


def test_the_limits_on_the_page_of_the_network_are_those_of_the_code() -> None:
    page = (REPOSITORY / "docs/network.md").read_text()
    assert f"| connections of one agent at once | {MAX_TUNNELS}; " in page
    assert f"| new ones | {egress._BURST} at once, then {egress._EACH_SECOND:.0f} a second |" in page
    assert f"| {egress._RESOLVE_WITHIN:.0f} s, {egress._CONNECT_WITHIN:.0f} s |" in page
    assert f"window of {WINDOW // 1024} KiB" in page
    assert (egress._IDLE_FOR, egress._HALF_OPEN_FOR) == (600, 60)
    assert Settings.model_fields["network_bytes_a_day"].default == 10 * 1024**3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_names_every_room() -> None:
    rooms = {path.name for path in (REPOSITORY / "src/pynchy").glob("*.py") if not path.name.startswith("__")}
    assert not [name for name in sorted(rooms) if f"`{name}`" not in README and f" {name} " not in README]


def test_every_setting_is_documented_and_every_documented_one_exists() -> None:
    fields = {str(field.validation_alias or f"PYNCHY_{name.upper()}") for name, field in Settings.model_fields.items()}
    read_elsewhere = {
        "CONTAINER_RUNTIME",
        "CONTAINER_IMAGE",
        "PYNCHY_AGENT_ENV",
        "PYNCHY_IMAGE_OPTIONS",
        "PYNCHY_PLUGINS_DISABLED",
    }
    rows = set(re.findall(r"^\| `([A-Z_]+)` \|", README, re.MULTILINE))
    assert rows | {"PYNCHY_HOME", "ANTHROPIC_AUTH_TOKEN"} == fields | read_elsewhere


def test_every_command_is_documented_and_every_documented_one_exists() -> None:
    documented = set(re.findall(r"^\| `pynchy ([a-z]+)", README, re.MULTILINE))
    listed = set(re.findall(r"^ +([a-z]+)  ", pynchy("--help").stdout.split("Commands:")[1], re.MULTILINE))
    assert documented == listed


@pytest.mark.parametrize(
    "command", re.findall(r"^uv pip install .*", "\n".join(blocks(README, "sh")), re.MULTILINE), ids=str
)
def test_an_installation_in_the_readme_works(command: str, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, str(venv)], check=True)
    # Into a fresh environment, of what is in this checkout alone: its dependencies come from elsewhere.
    options = ["--quiet", "--python", str(venv), "--no-deps", "--no-build-isolation", "--offline"]
    (venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages" / "dev.pth").write_text(
        f"{sysconfig.get_path('purelib')}\n"
    )
    subprocess.run([UV, *shlex.split(command)[1:], *options], cwd=REPOSITORY, check=True)
    listed = subprocess.run([UV, "pip", "list", "--python", str(venv)], capture_output=True, text=True, check=True)
    assert "pynchy-plugin-hello" in listed.stdout


@pytest.mark.parametrize("page", sorted((REPOSITORY / "docs/runtimes").glob("*.md")), ids=lambda page: page.name)
def test_the_code_on_a_runtimes_page_is_code_and_its_commands_exist(page: Path) -> None:
    text = page.read_text()
    for block in blocks(text, "python"):
        compile(block, page.name, "exec")
        for name in re.findall(r'cannot = \{"(\w+)"', block):
            assert hasattr(RuntimeConformance, name)
    for block in blocks(text, "sh"):
        for command in re.findall(r"^pynchy (.*?)(?: #.*)?$", block, re.MULTILINE):
            words = [word for word in shlex.split(command) if not word.startswith("-")][:2]
            assert pynchy(*words, "--help").returncode == 0, command


#: What a test can do in the place of a command on the page of operations: it waits for no end, spends nothing and
#: builds nothing anew.
INSTEAD = {
    # A job of its own does not ignore the signal; it comes once a line has been followed.
    "pynchy logs -f": """
        set -m; coproc pynchy logs -f; read -ru "${COPROC[0]}"
        for log in "$PYNCHY_HOME"/logs/*.jsonl; do :; done; echo '{"event": "one more"}' >>"$log"
        while [[ $REPLY != *"one more"* ]]; do read -ru "${COPROC[0]}" || exit; done
        kill -INT "$COPROC_PID"; wait "$COPROC_PID" """,
    "pynchy smoke": "pynchy smoke --demo",
    "pynchy image build": "pynchy image build --if-missing",
    "git pull": "git pull --quiet origin HEAD",  # from whatever is checked out here
    "make agent-env": "make --dry-run agent-env",
}


@pytest.mark.bubblewrap
def test_the_commands_on_the_page_of_operations_do_as_they_are_written(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path = short_path
    RUNTIMES["bubblewrap"]()
    stand_ins = StandIns(tmp_path / "stand-ins")
    stand_ins.set("active")  # else it would be missed that no service runs
    stand_ins.set("lingers")
    for name, script in {
        "pynchy": f'exec {sys.executable} -m pynchy "$@"',
        "ssh": 'shift; PYNCHY_HOME="$HOME/new-machine" exec "$@"',
    }.items():
        (stand_ins.directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (stand_ins.directory / name).chmod(0o755)
    for name, value in {
        "PATH": stand_ins.path,
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "CONTAINER_RUNTIME": "bubblewrap",
    }.items():
        monkeypatch.setenv(name, value)
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(checkout)], check=True)
    assert pynchy("ask", "--demo", "hello").returncode == 0
    (tmp_path / "home/.env").write_text("ANTHROPIC_API_KEY=sk-not-a-key\n")
    # As root, of the machine's units it sees an empty folder.
    (tmp_path / "units").mkdir()
    hidden = 'mount --bind "$0" /etc/systemd/system && exec "$@"'
    apart = ["unshare", "--mount", "sh", "-c", hidden, str(tmp_path / "units")] if os.geteuid() == 0 else []
    page = (REPOSITORY / "docs/operations.md").read_text()
    commands = [line for block in blocks(page, "sh") for line in block.splitlines()]
    assert set(INSTEAD) <= set(commands)
    for command in commands:
        words = [*apart, "bash", "-o", "pipefail", "-c", INSTEAD.get(command, command)]
        done = subprocess.run(words, cwd=checkout, capture_output=True, text=True, timeout=200)
        # No service runs, and of a credential that is none nobody can say so.
        fine = (0, 1) if command in ("pynchy service status", "pynchy doctor") else (0,)
        assert done.returncode in fine, (command, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr, (command, done.stderr)
    assert (tmp_path / "new-machine/pynchy.db").exists()
    assert (tmp_path / "pynchy-restored/pynchy.db").exists()
    assert [call for call in stand_ins.calls() if "disable --now" in call or "bootout" in call]
    written = re.findall(r"^\| (?:Linux|macOS)[^|]*\| `([^`]+)` \|$", page, re.MULTILINE)
    assert written == [
        "~/.config/systemd/user/pynchy.service",
        "/etc/systemd/system/pynchy.service",
        "~/Library/LaunchAgents/io.pynchy.plist",
    ]
