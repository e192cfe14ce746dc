"""The part of `pynchy plugins check` that may die: one distribution's plugins are loaded, and what came of it written.

    python -m pynchy.cli.plugin_check_process OUTPUT HOME UID:GID [--only DIRECTORY | --entry-point NAME]

OUTPUT gets a JSON list, an object a plugin: its record, and where it is ready its agent-side parts, laid out in HOME.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import EntryPoint, distributions
from pathlib import Path
from typing import Any

from pynchy.agent_plugins import plugin_parts
from pynchy.channel_host import create_channel
from pynchy.plugin import GROUP, NewMessage, PluginRegistry, State
from pynchy.plugin._discovery import discover_entry_points, readable_entry_points
from pynchy.plugin._errors import PluginRaised
from pynchy.plugin._runtimes import create_runtime
from pynchy.types import Group


def main(output: str, home: str, owner: str, option: str, value: str) -> None:
    """Load each plugin on its own, so that one's name is not another's conflict."""
    uid, gid = owner.split(":")
    found = _installed_in(Path(value)) if option == "--only" else _called(value)
    results = []
    for number, entry_point in enumerate(found):
        registry = discover_entry_points([entry_point])
        results.append(_result(registry, Path(home) / str(number), (int(uid), int(gid))))
    Path(output).write_text(json.dumps(results))


def _installed_in(directory: Path) -> list[EntryPoint]:
    return [point for dist in distributions(path=[str(directory)]) for point in dist.entry_points.select(group=GROUP)]


def _called(name: str) -> list[EntryPoint]:
    return [point for point in readable_entry_points(GROUP)[0] if point.name == name]


def _result(registry: PluginRegistry, home: Path, owner: tuple[int, int]) -> dict[str, Any]:
    (record,) = registry.records
    result: dict[str, Any] = {"record": record.to_dict()}
    if record.state is not State.READY:
        return result
    parts = plugin_parts(registry, home, Group("check:", "check", "check"), owner)
    result["mounts"] = [asdict(mount) for mount in parts.mounts]
    result["mcp_servers"] = dict(parts.mcp_servers)
    result["hooks"] = dict(parts.hooks)
    result["troubles"] = {report.part: report.trouble for report in parts.reports if report.trouble}
    result["troubles"] |= _created(registry, home)
    result["binaries"] = sorted(
        {
            str(path)
            for mount in parts.mounts
            if mount.container_path.startswith(("/workspace/plugins/", "/workspace/hooks/"))
            for path in Path(mount.host_path).rglob("*.so")
        }
    )
    return result


def _created(registry: PluginRegistry, home: Path) -> dict[str, str]:
    """Why a channel or a runtime cannot be created, as a start would do it."""
    troubles: dict[str, str] = {}

    async def create_channels() -> None:
        for plugin in registry.channels:
            try:
                create_channel(registry, plugin, home, _Nobody())
            except (PluginRaised, TypeError) as error:
                troubles["channel"] = str(error)

    asyncio.run(create_channels())
    for plugin in [*registry.runtimes, *registry.unmatched_runtimes]:
        if create_runtime(registry, plugin) is None:
            troubles["runtime"] = registry.records[0].reason
    return troubles


class _Nobody:
    """A service that takes everything and does nothing with it."""

    async def on_message(self, message: NewMessage) -> int | None:
        """Forget it."""

    async def on_chat_metadata(self, jid: str, name: str) -> None:
        """Forget it."""

    async def send_text(self, jid: str, text: str) -> None:
        """Forget it."""

    def registered_groups(self) -> Mapping[str, Group]:
        """There are none."""
        return {}

    def wake_outbox(self) -> None:
        """Nothing waits."""


if __name__ == "__main__":
    main(*sys.argv[1:])
