"""What became of the plugins' parts: kept in the store, and told in the main chat once where something fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic

from pynchy.plugin import PluginRecord, State
from pynchy.plugin_inventory import by_plugin
from pynchy.store import Store
from pynchy.types import PluginReport
from pynchy.untrusted import printable

#: How a notice names a part, as in "voice: its MCP server does not work (...)".
_PARTS = {
    "channel": "its channel does not connect",
    "mcp": "its MCP server does not work",
    "skills": "its skills cannot be used",
    "hooks": "its hooks do not work",
    "tools": "its host tools cannot be used",
}
_MAX_TROUBLE = 300  # characters
_TELL_AGAIN_AFTER = 6 * 3600.0  # seconds


class PluginReports:
    """The last report of each part of each plugin. `main` says which chat hears of troubles."""

    def __init__(self, store: Store, main: Callable[[], str], wake_outbox: Callable[[], None]) -> None:
        self._store = store
        self._main = main
        self._wake_outbox = wake_outbox
        self._last: dict[tuple[str, str], str] = {}
        self._told: dict[tuple[str, str], float] = {}

    async def begin(self, records: Iterable[PluginRecord]) -> None:
        """Take up what is known from earlier, and what this start has found; tell what is newly wrong."""
        known = _by_name(records)
        await self._store.forget_plugins(known)
        self._last = {(one.plugin, one.part): one.trouble for one in await self._store.plugin_reports()}
        await self.note(PluginReport(name, "load", _trouble(record)) for name, record in known.items())

    async def note(self, reports: Iterable[PluginReport]) -> None:
        """Keep what has changed. A trouble is told once while it lasts, and of each part once in six hours."""
        changed = {}
        for report in reports:
            trouble = printable(report.trouble)[:_MAX_TROUBLE]
            if self._last.get((report.plugin, report.part)) != trouble:
                changed[report.plugin, report.part] = trouble
        if not changed:
            return
        now = monotonic()
        new = [
            key
            for key, trouble in changed.items()
            if trouble
            and not self._last.get(key)
            and now - self._told.get(key, -_TELL_AGAIN_AFTER) >= _TELL_AGAIN_AFTER
        ]
        self._told |= dict.fromkeys(new, now)
        lines = [_in_words(plugin, part, changed[plugin, part]) for plugin, part in new]
        self._last |= changed
        notice = (self._main(), "\n".join(["There is trouble with plugins:", *lines])) if lines else None
        rows = [PluginReport(plugin, part, trouble) for (plugin, part), trouble in changed.items()]
        await self._store.until_stored(lambda: self._store.note_plugin_reports(rows, notice))
        if notice:
            self._wake_outbox()

    def troubles(self) -> list[str]:
        """Each part that does not work, in words."""
        lines = (_in_words(plugin, part, trouble) for (plugin, part), trouble in self._last.items() if trouble)
        return sorted(line.removeprefix("- ") for line in lines)

    def by_plugin(self) -> dict[str, dict[str, str]]:
        """The troubles by plugin and part; an empty one means that the part works."""
        return by_plugin((plugin, part, trouble) for (plugin, part), trouble in self._last.items())


def _by_name(records: Iterable[PluginRecord]) -> dict[str, PluginRecord]:
    """Each record under its plugin's name where it is ready, else under one that no ready plugin has."""
    records = list(records)
    known = {record.name: record for record in records if record.state is State.READY}
    for record in records:
        if record.state is not State.READY:
            taken = record.entry_point in known
            known[f"{record.entry_point} of {record.distribution}" if taken else record.entry_point] = record
    return known


def _trouble(record: PluginRecord) -> str:
    working = record.state in (State.READY, State.DISABLED)
    return "" if working else f"{record.reason}; {record.remedy}"


def _in_words(plugin: str, part: str, trouble: str) -> str:
    if part in _PARTS:
        return f"- {plugin}: {_PARTS[part]} ({trouble}); `pynchy plugins check {plugin}` says more"
    return f"- {plugin}: {trouble}"
