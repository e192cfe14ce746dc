"""The list of plugins that everybody shows: what discovery found, with what was last heard of each part."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pynchy.plugin import GROUP, PluginRecord, State
from pynchy.plugin._discovery import readable_entry_points
from pynchy.reading import reading


def records_with_reports(
    records: Iterable[PluginRecord], reports: Mapping[str, Mapping[str, str]]
) -> list[dict[str, Any]]:
    """The records as JSON objects; `reports` in each holds the troubles of its parts, empty where one works."""
    return [{**record.to_dict(), "reports": dict(reports.get(record.name, {}))} for record in records]


def plugin_line(record: PluginRecord, reports: Mapping[str, str]) -> str:
    """One plugin in one line: what it is, and what is wrong with it."""
    name = " ".join(part for part in (record.name or record.entry_point, record.version) if part)
    if record.state is not State.READY:
        return f"{name}: {record.state}, {record.reason}"
    troubles = [f"{part}: {trouble}" for part, trouble in reports.items() if trouble]
    return f"{name}: {'; '.join(troubles) or 'works'}"


def changed_since(records: Iterable[PluginRecord]) -> list[str]:
    """What has been installed or uninstalled since these were found, a line each; nothing is loaded."""
    known, found = {record.entry_point for record in records}, {one.name for one in readable_entry_points(GROUP)[0]}
    new = [f"{name}: installed; restart to activate it" for name in sorted(found - known)]
    return new + [f"{name}: uninstalled; gone at the next start" for name in sorted(known - found)]


def stored_reports(database: Path) -> dict[str, dict[str, str]]:
    """What a service has last heard of its plugins, read from its database without one running."""
    if not database.is_file():
        return {}
    try:
        with reading(database) as db:
            return by_plugin(db.execute("SELECT plugin, part, trouble FROM plugin_reports"))
    except sqlite3.Error:  # it is of another version, or no database
        return {}


def by_plugin(rows: Iterable[tuple[str, str, str]]) -> dict[str, dict[str, str]]:
    """Rows of plugin, part and trouble as troubles by plugin and part."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for plugin, part, trouble in rows:
        found[plugin][part] = trouble
    return dict(found)
