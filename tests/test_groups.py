"""`pynchy groups` and `pynchy history`: the same with a service and without one."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from support import RUNTIMES, pynchy
from test_cli import running_service

from pynchy.history import NoHistory, export_markdown
from pynchy.schema import migrate

#: Each starts the command line up to thirty times.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(params=["stopped", "running"])
def home(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A home, with or without a service on it."""
    RUNTIMES["bubblewrap"]()
    monkeypatch.setenv("CONTAINER_RUNTIME", "bubblewrap")
    with running_service("--demo") if request.param == "running" else nullcontext():
        yield tmp_path / "home"


@pytest.mark.bubblewrap
def test_a_chat_becomes_a_group_with_the_plugins_it_is_given(home: Path) -> None:
    assert pynchy("groups", "add", "terminal:work", "work", "--name", "Work", "--plugins", "hello").returncode == 0
    assert pynchy("groups", "add", "terminal:play", "play").returncode == 0
    assert (
        "work: Work, terminal:work, trigger default, hello, network public"
        in pynchy("groups", "list").stdout.splitlines()
    )
    assert (
        "play: play, terminal:play, trigger default, all plugins, network public"
        in pynchy("groups", "list").stdout.splitlines()
    )
    greet = '/tool mcp__hello__greet {"name": "Ada"}'
    assert pynchy("ask", "--demo", "--group", "work", greet).stdout.startswith("Hello, Ada!")
    assert (
        pynchy("groups", "set", "work", "--plugins", "").stdout
        == "work has trigger default, no plugins, network public.\n"
    )
    assert "Hello, Ada!" not in pynchy("ask", "--demo", "--group", "work", greet).stdout
    assert (
        pynchy("groups", "set", "work", "--plugins", "all").stdout
        == "work has trigger default, all plugins, network public.\n"
    )
    assert pynchy("ask", "--demo", "--group", "work", greet).stdout.startswith("Hello, Ada!")


@pytest.mark.bubblewrap
def test_a_group_is_given_a_network_policy_and_limits_and_keeps_what_is_not_named(home: Path) -> None:
    pynchy("groups", "add", "terminal:work", "work", "--network", "Example.COM, *.example.net", "--memory", "1g")
    begin = "work has trigger default, all plugins, network example.com,*.example.net"
    assert pynchy("groups", "set", "work", "--cpus", "1.5", "--pids", "99").stdout == (
        f"{begin}, memory 1024 MiB, cpus 1.5, pids 99.\n"
    )
    assert pynchy("groups", "set", "work", "--memory", "default").stdout == f"{begin}, cpus 1.5, pids 99.\n"
    assert pynchy("groups", "set", "work").stdout == f"{begin}, cpus 1.5, pids 99.\n"


_MISTAKES: list[tuple[tuple[str, ...], str]] = [
    (("add", "", "x"), "A chat needs an address"),
    (("add", "terminal:x", "../x"), "'../x' cannot be a folder"),
    (("add", "terminal:x", "x", "--plugins", "nope"), "No plugin is called nope; there are: bubblewrap, hello."),
    (("add", "terminal:main", "other"), "The chat terminal:main is the group 'main' already."),
    (("add", "terminal:x", "main"), "the folder 'main' belongs to another chat; choose another."),
    (("add", "terminal:x", "x", "--network", "the web"), "'the web' is no host name."),
    (("set", "main", "--network", "127.0.0.1"), "127.0.0.1 is no public address, and a policy opens no other."),
    (("set", "main", "--network", "pubilc"), "'pubilc' is no host of the internet: its name has no dot."),
    (("set", "main", "--memory", "2 apples"), "memory '2 apples' cannot be: write a number from 256m on"),
    (("set", "main", "--memory", "1k"), "memory '1k' cannot be"),
    (("set", "main", "--cpus", "nan"), "cpus 'nan' cannot be"),
    (("set", "main", "--pids", "1e3"), "pids '1e3' cannot be"),
    (("set", "nope", "--plugins", "all"), "There is no group 'nope'; there are: main."),
]


@pytest.mark.bubblewrap
def test_what_cannot_be_is_said_in_one_sentence(home: Path) -> None:
    pynchy("ask", "--demo", "hello")  # which registers the main group
    for command, words in _MISTAKES:
        done = pynchy("groups", *command)
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert pynchy("groups", "list").stdout == "main (main): main, terminal:main, all plugins, network public\n"


@pytest.mark.bubblewrap
def test_a_chat_that_a_channel_has_seen_is_listed_by_its_name(home: Path) -> None:
    pynchy("groups", "list")
    with sqlite3.connect(home / "pynchy.db") as db:
        db.execute("INSERT INTO chats VALUES ('pigeon:loft', 'The loft', '2026-01-01T00:00:00+00:00')")
    assert "not registered: The loft, pigeon:loft" in pynchy("groups", "list").stdout.splitlines()
    pynchy("groups", "add", "pigeon:loft", "loft")
    assert (
        "loft: The loft, pigeon:loft, trigger default, all plugins, network public"
        in pynchy("groups", "list").stdout.splitlines()
    )


# --- history ------------------------------------------------------------------------------------------------


@pytest.mark.bubblewrap
def test_a_groups_conversation_is_exported_as_markdown(home: Path, tmp_path: Path) -> None:
    command = json.dumps({"command": "echo '```'; echo out"})
    pynchy("ask", "--demo", f"/tool Bash {command}")
    pynchy("ask", "--demo", "Ada says <hello> & more")
    text = pynchy("history", "export", "main").stdout
    assert text.startswith("# main (terminal:main)\n\n## Conversation ")
    assert "**user** 20" in text
    assert "**tool** `Bash`" in text
    assert "````\n```\nout\n````" in text
    assert "**assistant**" in text
    assert "You said: Ada says <hello> & more" in text
    assert text.count("## Conversation") == 1
    assert pynchy("history", "export", "main", "--output", str(tmp_path / "main.md")).stdout == ""
    assert (tmp_path / "main.md").read_text() == text
    assert [path.name for path in tmp_path.iterdir() if "main.md" in path.name] == ["main.md"]


def test_what_has_no_history_is_said_and_leaves_no_file(tmp_path: Path) -> None:
    done = pynchy("history", "export", "main", "-o", str(tmp_path / "x.md"))
    assert done.returncode == 1
    assert "nothing has been said yet" in done.stderr
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home/pynchy.db").write_text("no database")
    done = pynchy("history", "export", "main", "-o", str(tmp_path / "x.md"))
    assert "cannot be read: file is not a database" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in tmp_path.iterdir() if "x.md" in path.name]
    done = pynchy("history", "export", "main", "-o", str(tmp_path / "no/such/x.md"))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_a_dropped_turn_and_a_sub_agents_transcript_are_no_part_of_the_history(tmp_path: Path) -> None:
    def entry(text: str) -> str:
        return json.dumps(
            {"type": "user", "message": {"role": "user", "content": text}, "timestamp": "2026-01-01T10:00"}
        )

    path = tmp_path / "pynchy.db"
    with sqlite3.connect(path) as db:
        migrate(db)
        db.execute("INSERT INTO groups (jid, name, folder) VALUES ('x', 'X', 'x')")
        for session, subpath, text, dropped in (
            ("one", "", "first", 0),
            ("two", "", "second", 0),
            ("one", "", "third", 0),
            ("one", "", "never answered", 1),
            ("one", "agents/1", "of a sub-agent", 0),
        ):
            db.execute(
                "INSERT INTO transcripts (folder, session_id, subpath, entry, dropped) VALUES ('x', ?, ?, ?, ?)",
                (session, subpath, entry(text), dropped),
            )
    text = "".join(export_markdown(path, "x"))
    assert [line for line in text.splitlines() if line in ("first", "second", "third") or line.startswith("##")] == [
        "## Conversation one",
        "first",
        "third",
        "## Conversation two",
        "second",
    ]
    assert "never answered" not in text
    assert "of a sub-agent" not in text
    with pytest.raises(NoHistory, match="there is no group 'y'; there are: x"):
        list(export_markdown(path, "y"))
