"""A group as a row, and a row as a group."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from pynchy.database import as_text
from pynchy.types import ExtraMount, Group

#: What of a group can be changed, as its columns.
GROUP_COLUMNS = (
    *("is_main", "name", "needs_trigger", "trigger_word", "senders", "commanders", "plugins", "network"),
    *("memory_bytes", "cpus", "pids", "mounts", "model", "time_zone", "usd_a_day"),
)


def groups_in(db: sqlite3.Connection) -> dict[str, Group]:
    """Every registered group by its jid."""
    rows = db.execute(
        f"SELECT jid, folder, {', '.join(GROUP_COLUMNS)} FROM groups"  # noqa: S608 - names of ours
    )
    return {jid: group_of(jid, folder, *settings) for jid, folder, *settings in rows}


def end_session(db: sqlite3.Connection, jid: str) -> None:
    """Let a chat's next message begin a new conversation."""
    db.execute(
        "UPDATE groups SET session_id = NULL, session_end = 0, aside_id = NULL, aside_end = NULL,"
        " aside_notice = NULL WHERE jid = ?",
        (jid,),
    )


def group_columns(group: Group) -> tuple[Any, ...]:
    """What a group is set to, in the order of these columns."""
    return (
        *(group.is_main, as_text(group.name), group.needs_trigger, group.trigger),
        *(_list(group.senders), _list(group.commanders), _list(group.plugins)),
        *(group.network, group.memory_bytes, group.cpus, group.pids),
        json.dumps([[mount.host_path, mount.readonly] for mount in group.mounts]),
        *(group.model, group.time_zone, group.usd_a_day),
    )


def group_of(
    jid: str,
    folder: str,
    is_main: int,
    name: str,
    needs_trigger: int,
    trigger: str | None,
    senders: str | None,
    commanders: str | None,
    plugins: str | None,
    network: str,
    memory_bytes: int | None,
    cpus: float | None,
    pids: int | None,
    mounts: str,
    *rest: Any,
) -> Group:
    """A group of its columns."""
    extra = tuple(ExtraMount(path, bool(readonly)) for path, readonly in json.loads(mounts))
    people = (_names(senders), _names(commanders), _names(plugins))
    main, needs = bool(is_main), bool(needs_trigger)
    return Group(jid, name, folder, main, needs, trigger, *people, network, memory_bytes, cpus, pids, extra, *rest)


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(json.loads(text))


def _list(names: tuple[str, ...] | None) -> str | None:
    return None if names is None else json.dumps(names)
