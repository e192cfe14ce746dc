"""A group's conversations as Markdown, read from the database without changing it, whoever else is using it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

_MAX_RESULT = 2000  # characters of a tool's result


class NoHistory(Exception):
    """There is nothing to export; the message says why."""


def export_markdown(database: Path, folder: str) -> Iterator[str]:
    """The sessions of a group, oldest first, in pieces; NoHistory where there is no such group or database."""
    if not database.is_file():
        raise NoHistory(f"there is no database {database}: nothing has been said yet")
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as db:
            row = db.execute("SELECT name, jid FROM groups WHERE folder = ?", (folder,)).fetchone()
            if row is None:
                known = ", ".join(name for (name,) in db.execute("SELECT folder FROM groups ORDER BY folder"))
                raise NoHistory(f"there is no group {folder!r}; there are: {known or 'none'}")
            yield f"# {row[0]} ({row[1]})\n"
            session = None
            for session_id, entry in db.execute(
                "SELECT session_id, entry FROM transcripts WHERE folder = ? AND subpath = '' AND NOT dropped"
                " ORDER BY (SELECT min(id) FROM transcripts first WHERE first.session_id = transcripts.session_id"
                " AND first.folder = transcripts.folder AND first.subpath = ''), id",
                (folder,),
            ):
                if session_id != session:
                    session = session_id
                    yield f"\n## Conversation {session_id}\n"
                yield from _entry(json.loads(entry))
    except sqlite3.Error as error:
        raise NoHistory(f"the database {database} cannot be read: {error}") from None


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
