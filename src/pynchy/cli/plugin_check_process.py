"""The part of `pynchy plugins check` that may die: one distribution's plugins are loaded, and what came of it written.

    python -m pynchy.cli.plugin_check_process OUTPUT HOME UID:GID [--only DIRECTORY | --entry-point NAME]

OUTPUT gets a JSON list, an object a plugin: its record, and where it is ready its agent-side parts, laid out in HOME.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path
from typing import Any

from pynchy.agent_plugins import plugin_parts
from pynchy.plugin import GROUP, PluginRegistry, State
from pynchy.plugin._discovery import discover_entry_points
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
    return [point for point in entry_points(group=GROUP) if point.name == name]


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
    result["binaries"] = sorted(
        {
            str(path)
            for mount in parts.mounts
            if mount.container_path.startswith(("/workspace/plugins/", "/workspace/hooks/"))
            for path in Path(mount.host_path).rglob("*.so")
        }
    )
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
