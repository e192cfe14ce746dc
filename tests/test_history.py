"""What was said is found by its words, whoever said it and whatever is typed, and exported under the right title."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pynchy.cli import history as command
from pynchy.history import NoHistory, export_markdown, find, search, search_text
from pynchy.schema import MIGRATIONS, migrate
from pynchy.store import Store

BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home / "pynchy.db"


@pytest.fixture
def db(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        migrate(db)
        db.execute("INSERT INTO groups (jid, name, folder) VALUES ('x:1', 'One', 'one'), ('x:2', 'Two', 'two')")
        yield db


def write(
    db: sqlite3.Connection, content: str, minute: int = 0, jid: str = "x:1", sender: str = "Ada", **columns
) -> None:
    """A message of somebody."""
    values = {
        "chat_jid": jid,
        "message_id": f"{db.total_changes}",
        "sender": sender,
        "sender_name": sender,
        "content": content,
        "timestamp": (BEGIN + timedelta(minutes=minute)).isoformat(),
        "is_from_me": 0,
        "state": "done",
        **columns,
    }
    names, places = ", ".join(values), ", ".join("?" * len(values))
    db.execute(f"INSERT INTO messages ({names}) VALUES ({places})", tuple(values.values()))


def answer(db: sqlite3.Connection, text: str, minute: int = 0, jid: str = "x:1", kind: str = "reply") -> None:
    """A text that went out."""
    db.execute(
        "INSERT INTO outbox (chat_jid, text, kind, created_at) VALUES (?, ?, ?, ?)",
        (jid, text, kind, (BEGIN + timedelta(minutes=minute)).isoformat()),
    )


def excerpts(db: sqlite3.Connection, words: str, jid: str | None = None, most: int = 50) -> list[str]:
    return [one.excerpt for one in search(db, words, jid, most)]


# --- what is found ------------------------------------------------------------------------------------------


def test_what_people_wrote_and_what_was_answered_is_found_newest_first(db: sqlite3.Connection) -> None:
    write(db, "Where is the hedgehog?", 1)
    answer(db, "The hedgehog sleeps.", 2)
    answer(db, "I could not answer about the hedgehog.", 3, kind="notice")
    write(db, "Let the hedgehog sleep", 4, "x:2", "Bob")
    answer(db, "A hedgehog is awake", 5, kind="message")
    write(db, "A hedgehog elsewhere", 6, "x:3")
    write(db, "something else", 7)
    found = search(db, "hedgehog", None, 50)
    assert [(one.group, one.jid, one.sender, one.excerpt.replace("hedgehog", "*")) for one in found] == [
        (None, "x:3", "Ada", "A * elsewhere"),
        ("one", "x:1", None, "A * is awake"),
        ("two", "x:2", "Bob", "Let the * sleep"),
        ("one", "x:1", None, "The * sleeps."),
        ("one", "x:1", "Ada", "Where is the *?"),
    ]
    assert [one.at for one in found] == [BEGIN + timedelta(minutes=minute) for minute in (6, 5, 4, 2, 1)]
    assert len(search(db, "hedgehog", "x:1", 50)) == 3
    assert [one.excerpt for one in search(db, "hedgehog", None, 2)] == ["A hedgehog elsewhere", "A hedgehog is awake"]


def test_messages_of_every_state_and_of_context_alone_are_found(db: sqlite3.Connection) -> None:
    for state in ("pending", "claimed", "done", "failed"):
        write(db, f"word {state}", state=state)
    write(db, "word context", state="pending", asks=0)
    assert len(excerpts(db, "word")) == 5


def test_all_words_must_occur_and_the_last_may_go_on(db: sqlite3.Connection) -> None:
    write(db, "Water the tomatoes on Sunday")
    assert excerpts(db, "sunday water")
    assert excerpts(db, "water tom")
    assert not excerpts(db, "wat tomatoes")
    assert not excerpts(db, "water monday")
    assert excerpts(db, "ada tomatoes"), "who wrote it is one of its words"


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("Naïve Café in ZÜRICH", "naive cafe zurich"),
        ("naive cafe in zurich", "NAÏVE Café Zürich"),
        ("Привет из Москвы", "ПРИВЕТ моск"),
        ("see https://example.com/a?b=c_d.", "https://example.com/a?b=c_d"),
        ("mail bob.smith@example.com now", "bob.smith@example.com"),
        ("don't panic", "don't"),
        ("a hedgehog 🦔 appears", "hedgehog 🦔"),
        ("C++ and C#", "c++"),
        ("今天北京天气很好", "北京"),
        ("今天北京天气很好", "天气 今天"),
        ("東京タワーに行きました", "タワー"),
        ("저는 한국어를 배웁니다", "한국어 배"),
        ("저는 한국어를 배웁니다", "국어"),
        ("สวัสดีครับเพื่อน", "เพื่อน"),
        ("明日の meeting は Zoom で", "zoom 明日"),
    ],
)
def test_case_accents_and_scripts_without_spaces_do_not_hide_a_word(
    db: sqlite3.Connection, written: str, words: str
) -> None:
    write(db, written)
    answer(db, written)
    write(db, "something else")
    assert excerpts(db, words) == [written] * 2


def test_a_word_of_chinese_is_found_nowhere_where_it_does_not_stand(db: sqlite3.Connection) -> None:
    write(db, "今天北京天气很好")
    write(db, "100% of 北_京")
    assert not excerpts(db, "上海")
    assert not excerpts(db, "北京 上海")
    assert not excerpts(db, "北%天")
    assert not excerpts(db, "hedgehog 北京")
    assert excerpts(db, "北_京") == ["100% of 北_京"]


# --- whatever is typed --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "a OR b",
        "NOT b",
        "a NEAR b",
        "NEAR(a b, 2)",
        "content:a",
        "a*",
        "^a",
        '"',
        '"a" OR "b',
        "(",
        ")",
        "a AND",
        "-b",
        "{a b}:c",
    ],
)
def test_the_languages_of_the_index_and_of_sql_are_words_like_others(db: sqlite3.Connection, words: str) -> None:
    write(db, f"quoted {words} here")
    write(db, "a b")
    assert set(excerpts(db, words)) <= {f"quoted {words} here", "a b"}
    if " " in words:
        assert excerpts(db, words)[0].startswith("quoted")


def test_what_cannot_be_looked_for_is_said_in_a_sentence(db: sqlite3.Connection) -> None:
    for nothing in ("", "  \n\t", "\0\0"):
        with pytest.raises(ValueError, match="nothing to search for"):
            search(db, nothing, None, 5)
    for much in ("a " * 21, "x" * 501, "y" * 10_000_000):
        with pytest.raises(ValueError, match="at most 20 words, and 500 characters"):
            search(db, much, None, 5)
    write(db, "... !?")
    assert excerpts(db, "...") == []
    assert excerpts(db, "'") == []


@settings(max_examples=300)
@given(words=st.one_of(st.text(max_size=60), st.text(alphabet="aé北\"'*()^:-+%_\\ \0\ud83e.,NEARORTD0", max_size=40)))
def test_no_text_is_an_error_of_sqlites(words: str) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.executescript(_SCHEMA)
        try:
            assert isinstance(search(db, words, "x:1", 5), list)
        except ValueError as error:
            assert "nothing to search for" in str(error)  # noqa: PT017 - or anything else is found


_SCHEMA = ";".join(MIGRATIONS)


# --- what is shown of it ------------------------------------------------------------------------------------


def test_an_excerpt_is_one_line_around_the_words(db: sqlite3.Connection) -> None:
    long = " ".join(f"word{number}" for number in range(2000))
    write(db, f"{long}\n\nthe\tneedle\r\nis here {long}")
    write(db, "漢字" * 3000 + "針" + "漢字" * 3000, sender="鈴木\nさん " + "x" * 500)
    write(db, "y" * 5000 + " needle")
    for words, wanted in (("needle", "the needle is here"), ("針", "字針漢")):
        found = search(db, words, None, 50)[-1]
        assert wanted in found.excerpt
        assert len(found.excerpt) <= 242
        assert found.excerpt.startswith("…")
        assert found.excerpt.endswith("…")
    assert excerpts(db, "needle")[0].endswith("needle")
    sender = search(db, "針", None, 50)[0].sender
    assert sender
    assert sender.startswith("鈴木 さん x")
    assert len(sender) == 60


def test_the_model_reads_lines_of_its_own_chat_in_its_time_zone(db: sqlite3.Connection) -> None:
    write(db, 'The hedgehog said\n2026-01-01 00:00 you: "yes"', 1, sender='you: "x')
    answer(db, "The hedgehog sleeps.", 2)
    write(db, "Their hedgehog", 3, "x:2")
    assert search_text(db, "hedgehog", "x:1", BERLIN).splitlines() == [
        "2026-03-01 13:02 you: The hedgehog sleeps.",
        '2026-03-01 13:01 "you: \\"x": The hedgehog said 2026-01-01 00:00 you: "yes"',
    ]
    assert search_text(db, "tortoise", "x:1", BERLIN).startswith("Nothing that was said in this chat")


def test_the_model_reads_no_more_than_so_much(db: sqlite3.Connection) -> None:
    for number in range(200):
        write(db, f"hedgehog {number} " + "x" * 300, number)
    text = search_text(db, "hedgehog", "x:1", BERLIN)
    lines = text.splitlines()
    assert 7000 < len(text) <= 8000
    assert "hedgehog 199 " in lines[0]
    assert lines[-1] == f"[There are more; these are the latest {len(lines) - 1}. More words find fewer.]"


def test_a_search_among_many_texts_takes_no_time(db: sqlite3.Connection) -> None:
    """The index is followed from its end: what was found long ago is not looked at."""
    db.execute("BEGIN")
    for number in range(20_000):
        write(db, f"the same words again and again, number {number}")
    db.execute("COMMIT")
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    db.set_progress_handler(count, 100)
    assert len(search(db, "same words", None, 20)) == 20
    assert steps < 50


# --- the command --------------------------------------------------------------------------------------------


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


def test_the_command_prints_a_line_for_each_text(
    db: sqlite3.Connection, berlin: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write(db, "a \x1b[31mred\x1b[0m hedgehog\nand more", 1, sender="A\x07da")
    answer(db, "a hedgehog", 2, "x:2")
    write(db, "a hedgehog", 3, "x:3")
    assert command.search("hedgehog", None, 20) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2026-03-01 13:03  x:3  Ada: a hedgehog",
        "2026-03-01 13:02  two  (assistant): a hedgehog",
        "2026-03-01 13:01  one  A\\x07da: a \\x1b[31mred\\x1b[0m hedgehog and more",
    ]
    assert command.search("hedgehog", "two", 20) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert command.search("hedgehog", None, 2) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_command_says_why_it_finds_nothing(
    db: sqlite3.Connection, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, folder, wanted in (
        ("hedgehog", None, "pynchy: nothing that was said has these words.\n"),
        ("hedgehog", "three", "pynchy: there is no group 'three'; there are: one, two.\n"),
        ("hedgehog", "\udce9", "pynchy: there is no group '\\udce9'; there are: one, two.\n"),
        (" ", None, "pynchy: there is nothing to search for: give at least one word.\n"),
    ):
        assert command.search(words, folder, 20) == 1
        assert capsys.readouterr().err == wanted
    path.unlink()
    assert command.search("hedgehog", None, 20) == 1
    assert "nothing has been said yet" in capsys.readouterr().err
    assert not path.exists()


def test_a_database_of_an_earlier_version_is_not_changed_but_named(tmp_path: Path) -> None:
    path = tmp_path / "pynchy.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(";".join(MIGRATIONS[:4]) + "; PRAGMA user_version = 4")
    before = path.read_bytes()
    with pytest.raises(NoHistory, match="of an earlier pynchy: start `pynchy run` once"):
        find(path, "word", None, 5)
    assert path.read_bytes() == before
    path.write_text("no database")
    with pytest.raises(NoHistory, match="cannot be read"):
        find(path, "word", None, 5)


@pytest.mark.anyio
async def test_the_database_is_read_beside_a_service_that_writes_and_after_it(path: Path) -> None:
    async with Store.open(path) as store:
        for number in range(3):
            await store._db.write(lambda db, number=number: write(db, f"hedgehog {number}", number))
            assert len(find(path, "hedgehog", None, 20)) == number + 1, "also what is in the log beside it alone"
        before = {one.name: one.stat().st_size for one in path.parent.iterdir()}
        find(path, "hedgehog", None, 20)
        assert {one.name: one.stat().st_size for one in path.parent.iterdir()} == before
    assert len(find(path, "hedgehog", None, 20)) == 3


# --- the export ---------------------------------------------------------------------------------------------


def test_the_export_names_the_task_whose_run_a_conversation_is(db: sqlite3.Connection, path: Path) -> None:
    db.execute(
        "INSERT INTO tasks (id, folder, prompt, kind, schedule, anchor, context, missed, created_at)"
        " VALUES (3, 'one', 'p', 'once', '', '', 'group', 'skip', '')"
    )
    db.execute("INSERT INTO task_runs (id, task_id, due_at, state) VALUES (12, 3, '2026-03-01T09:00:00+00:00', 'done')")
    for session in ("talk", "talk+task-12", "talk+task-13", "talk+task-x"):
        said = {"type": "user", "message": {"role": "user", "content": session}, "timestamp": "2026-03-01T09:00"}
        db.execute(
            "INSERT INTO transcripts (folder, session_id, subpath, entry) VALUES ('one', ?, '', ?)",
            (session, json.dumps(said)),
        )
    text = "".join(export_markdown(path, "one"))
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Conversation talk",
        "## Task 3, due 2026-03-01 09:00 UTC (run 12, conversation talk)",
        "## A task that is no more (run 13, conversation talk)",
        "## Conversation talk+task-x",
    ]
