"""What was said: conversations as Markdown and a search by words, read from the database without changing it."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pynchy.database import as_text
from pynchy.reading import reading

_MAX_RESULT = 2000  # characters of a tool's result
#: What a scheduled task's run has said is kept under such a session: the one it began in, and the run.
_TASK_SESSION = re.compile(r"(.*)\+task-([0-9]{1,18})", re.DOTALL)

#: The first version of the database that has an index of words.
_SEARCHABLE_VERSION = 5
_MOST_WORDS = 20
_LONGEST_QUERY = 500  # characters
_EXCERPT = 240  # characters
_LONGEST_NAME = 60  # characters
_MOST_FOR_THE_MODEL = 8000  # characters
#: Around what was found, in what SQLite returns; a text that has these itself is only cut at another place.
_MARK, _END = "\x02", "\x03"
#: Scripts that put no space between words, and Korean, which adds to them: the index has a whole run of their
#: letters as one word, so that such a word is looked for in the texts themselves.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff]"
)


class NoHistory(Exception):
    """There is nothing to be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Found:
    """A text that has the words: in which chat (`group` is its folder, if it is one), and the words' surroundings.

    `sender` is None where the assistant said it.
    """

    at: datetime
    jid: str
    group: str | None
    sender: str | None
    excerpt: str


@dataclass(frozen=True, slots=True)
class _Source:
    """A table of texts that has an index of words: its columns for the time and the sender, and those searched."""

    table: str
    at: str
    sender: str
    texts: tuple[str, ...]
    only: str


_SOURCES = (
    _Source("messages", "t.timestamp", "t.sender_name", ("content", "sender_name"), "1"),
    _Source("outbox", "t.created_at", "NULL", ("text",), "t.kind != 'notice'"),
)


# --- search -------------------------------------------------------------------------------------------------


def search(db: sqlite3.Connection, words: str, jid: str | None, most: int) -> list[Found]:
    """What people wrote and the assistant said that has all these words; ValueError where they cannot be looked for.

    In one chat or in all, newest first: what was said is remembered by when it was said, and the first results
    need not wait until all are ranked. Case and accents make no difference; the last word may go on.
    """
    given = as_text(words.replace("\0", " ")).split()
    if not given:
        raise ValueError("there is nothing to search for: give at least one word")
    if len(given) > _MOST_WORDS or sum(map(len, given)) > _LONGEST_QUERY:
        raise ValueError(f"search for at most {_MOST_WORDS} words, and {_LONGEST_QUERY} characters in all")
    folders: dict[str, str] = dict(db.execute("SELECT jid, folder FROM groups").fetchall())
    rows = sorted(
        (row for source in _SOURCES for row in _rows(db, source, given, jid, most)),
        key=lambda row: datetime.fromisoformat(row[0]),
        reverse=True,
    )
    return [
        Found(
            datetime.fromisoformat(at),
            chat,
            folders.get(chat),
            None if sender is None else _line(sender)[:_LONGEST_NAME],
            _excerpt(text, given),
        )
        for at, chat, sender, text in rows[:most]
    ]


def search_text(db: sqlite3.Connection, words: str, jid: str, zone: ZoneInfo) -> str:
    """What the model reads of a search in its own chat: a line for each text, newest first; ValueError as `search`."""
    lines: list[str] = []
    room = _MOST_FOR_THE_MODEL
    for one in search(db, words, jid, 100):
        # Nobody is called what stands here without quotes.
        sender = "you" if one.sender is None else json.dumps(one.sender, ensure_ascii=False)
        line = f"{one.at.astimezone(zone):%Y-%m-%d %H:%M} {sender}: {one.excerpt}"
        room -= len(line) + 1
        if room < 100:
            lines.append(f"[There are more; these are the latest {len(lines)}. More words find fewer.]")
            break
        lines.append(line)
    return "\n".join(lines) or "Nothing that was said in this chat has these words; fewer or others may find it."


def find(database: Path, words: str, folder: str | None, most: int) -> list[Found]:
    """`search` in a database file, of one group or of all; NoHistory where that cannot be."""
    with _reading(database) as db:
        if db.execute("PRAGMA user_version").fetchone()[0] < _SEARCHABLE_VERSION:
            raise NoHistory(f"the database {database} is of an earlier pynchy: start `pynchy run` once, then search")
        return search(db, words, None if folder is None else _chat(db, folder)[1], most)


def _rows(
    db: sqlite3.Connection, source: _Source, words: Sequence[str], jid: str | None, most: int
) -> list[tuple[str, str, str | None, str]]:
    """Time, chat, sender and text of the latest that one table has; where the index found it, an excerpt with marks."""
    table, match = source.table, _match(words)
    conditions, values = [source.only, "(?1 IS NULL OR t.chat_jid = ?1)"], [jid, most, match]
    for word in filter(_UNSPACED.search, words):
        values.append("%" + re.sub(r"([\\%_])", r"\\\1", word) + "%")
        pattern = f"LIKE ?{len(values)} ESCAPE '\\'"
        conditions.append("(" + " OR ".join(f"t.{text} {pattern}" for text in source.texts) + ")")
    text, origin, row_id = f"t.{source.texts[0]}", f"{table} t", "t.id"
    if match:
        index = f"{table}_text"
        conditions.append(f"{index} MATCH ?3")
        text = f"snippet({index}, 0, '{_MARK}', '{_END}', '…', 40)"
        # The index comes first, whatever SQLite thinks; it yields its rows in this order by itself.
        origin, row_id = f"{index} CROSS JOIN {table} t ON t.id = {index}.rowid", f"{index}.rowid"
    return db.execute(
        f"SELECT {source.at}, t.chat_jid, {source.sender}, {text} FROM {origin}"  # noqa: S608 - names of ours
        f" WHERE {' AND '.join(conditions)} ORDER BY {row_id} DESC LIMIT ?2",
        values,
    ).fetchall()


def _match(words: Sequence[str]) -> str:
    """The words that the index knows, in the language of FTS5, each as a string in which nothing is an operator."""
    known = [word for word in words if not _UNSPACED.search(word)]
    quoted = ['"' + word.replace('"', '""') + '"' for word in known]
    if known and known[-1] is words[-1]:
        quoted[-1] += "*"
    return " ".join(quoted)


def _excerpt(text: str, words: Sequence[str]) -> str:
    """One line of a text, around its mark or, where it has none, the first of the words."""
    line = _line(text)
    places = (line.find(_MARK), *(line.lower().find(word.lower()) for word in words))
    first = next((place for place in places if place >= 0), 0)
    start = max(0, min(first - _EXCERPT // 3, len(line) - _EXCERPT))
    shown = line[start : start + _EXCERPT].replace(_MARK, "").replace(_END, "")
    return ("…" if start else "") + shown + ("…" if start + _EXCERPT < len(line) else "")


def _line(text: str) -> str:
    return " ".join(text.split())


@contextmanager
def _reading(database: Path) -> Iterator[sqlite3.Connection]:
    if not database.is_file():
        raise NoHistory(f"there is no database {database}: nothing has been said yet")
    try:
        with reading(database) as db:
            yield db
    except sqlite3.Error as error:
        raise NoHistory(f"the database {database} cannot be read: {error}") from None


def _chat(db: sqlite3.Connection, folder: str) -> tuple[str, str]:
    """A group's name and its chat."""
    row = db.execute("SELECT name, jid FROM groups WHERE folder = ?", (as_text(folder),)).fetchone()
    if row is None:
        known = ", ".join(name for (name,) in db.execute("SELECT folder FROM groups ORDER BY folder"))
        raise NoHistory(f"there is no group {folder!r}; there are: {known or 'none'}")
    return row


# --- conversations ------------------------------------------------------------------------------------------


def export_markdown(database: Path, folder: str) -> Iterator[str]:
    """The sessions of a group, oldest first, in pieces; NoHistory where there is no such group or database."""
    with _reading(database) as db:
        name, jid = _chat(db, folder)
        yield f"# {name} ({jid})\n"
        session = None
        for session_id, entry in db.execute(
            "SELECT session_id, entry FROM transcripts WHERE folder = ? AND subpath = '' AND NOT dropped"
            " ORDER BY (SELECT min(id) FROM transcripts first WHERE first.session_id = transcripts.session_id"
            " AND first.folder = transcripts.folder AND first.subpath = ''), id",
            (folder,),
        ):
            if session_id != session:
                session = session_id
                yield f"\n## {_title(db, session_id)}\n"
            yield from _entry(json.loads(entry))


def _title(db: sqlite3.Connection, session_id: str) -> str:
    parts = _TASK_SESSION.fullmatch(session_id)
    if not parts:
        return f"Conversation {session_id}"
    run = db.execute("SELECT task_id, due_at FROM task_runs WHERE id = ?", (int(parts[2]),)).fetchone()
    what = f"Task {run[0]}, due {run[1][:16].replace('T', ' ')} UTC" if run else "A task that is no more"
    return f"{what} (run {parts[2]}, conversation {parts[1]})"


def _entry(entry: dict[str, Any]) -> Iterator[str]:
    message = entry.get("message")
    if entry.get("type") not in ("user", "assistant") or not isinstance(message, dict) or entry.get("isMeta"):
        return
    content = message.get("content")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    when = str(entry.get("timestamp", ""))[:19].replace("T", " ")
    for block in blocks:
        match block.get("type"):
            case "text":
                yield f"\n**{message.get('role')}** {when}\n\n{block.get('text', '')}\n"
            case "tool_use":
                arguments = json.dumps(block.get("input"), ensure_ascii=False, indent=2)
                yield f"\n**tool** `{block.get('name')}` {when}\n\n{_fenced(arguments)}\n"
            case "tool_result":
                yield f"\n**result** {when}\n\n{_fenced(_result(block.get('content')))}\n"


def _result(content: Any) -> str:
    if isinstance(content, list):
        content = "\n".join(part.get("text", f"[{part.get('type')}]") for part in content if isinstance(part, dict))
    text = str(content or "")
    return text if len(text) <= _MAX_RESULT else f"{text[:_MAX_RESULT]}\n[... {len(text)} characters in all]"


def _fenced(text: str) -> str:
    """A code block that nothing in the text can end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
