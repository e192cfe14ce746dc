"""`pynchy plugins list`, `show` and `why`: every entry point found, in whatever state; the runtime that was chosen."""

from __future__ import annotations

import os
from typing import Any

from pynchy.home import control_socket, database, pynchy_home, read_environment

#: What each part of a plugin may do, and where it runs.
_RIGHTS = {
    "runtime": "runs on the host with your rights, and sees everything that agents say and write",
    "channel": "runs on the host with your rights; reads and writes the chats of its service",
    "mcp": "runs in each agent's container: no network, the chat's own folder and the plugin's data folder; "
    "the agent can read its sources, its env and the folders that it names",
    "skills": "text and scripts for the agent, read-only in its container",
    "hooks": "run in each agent's container; see what the agent does, and can hold it up; no wall against it",
    "tools": "run on the host with your rights, when an agent of a chat that has the plugin calls them",
}


def show_all(as_json: bool) -> int:
    """Print the running service's list, or where none runs what a start would find."""
    records = all_records()
    if as_json:
        import json

        print(json.dumps(records, indent=2))
    elif not records:
        print("No plugins are installed.")
    else:
        _print_table(records)
    return 0


def show_one(name: str) -> int:
    """Print everything there is to know of a plugin, by its name, entry point or distribution."""
    records = all_records()
    found = [one for one in records if name in (one["name"], one["entry_point"], one["distribution"])]
    if not found:
        from pynchy.cli.output import complain

        known = ", ".join(sorted({record["name"] or record["entry_point"] for record in records}))
        return complain(f"No plugin is called {name!r}; installed are: {known or 'none'}.")
    for record in found:
        _print_details(record)
    return 0


def why() -> int:
    """Print which runtime would be used, and why not another."""
    from pynchy.cli.output import complain, configure_logging
    from pynchy.plugin import runtime_candidates
    from pynchy.plugin._discovery import find_plugins
    from pynchy.runtime import get_runtime

    read_environment()
    configure_logging("critical")
    registry = find_plugins()
    try:
        runtime = get_runtime(registry)
    except RuntimeError as error:
        return complain(str(error))
    override = os.environ.get("CONTAINER_RUNTIME", "").strip()
    reason = f"CONTAINER_RUNTIME={override} names it" if override else "the highest priority of those that match"
    print(f"{runtime.name}: {reason}")
    for candidate in runtime_candidates(registry):
        owner = "built in" if candidate.plugin is None else "plugin"
        print(f"  matches   {candidate.name}, priority {candidate.priority}, {owner}")
    for plugin in registry.unmatched_runtimes:
        record = registry.record_of(registry.name_of(plugin))
        print(f"  no match  {registry.name_of(plugin)}: {record.note if record else ''}")
    for record in registry.records:
        if "runtime" in record.types and record.state != "ready":
            print(f"  {record.state:<8}  {record.entry_point}: {record.reason}")
    return 0


def all_records() -> list[dict[str, Any]]:
    """What the running service knows; where none runs, what a start would find and the last one has heard."""
    running = running_service_records()
    return found_records() if running is None else running


def found_records() -> list[dict[str, Any]]:
    """Discover in this process."""
    read_environment()
    from pynchy.plugin._discovery import find_plugins
    from pynchy.plugin_inventory import records_with_reports, stored_reports

    return records_with_reports(find_plugins().records, stored_reports(database(pynchy_home())))


def running_service_records() -> list[dict[str, Any]] | None:
    """What the service of this home found when it started; None where none runs."""
    socket = control_socket(pynchy_home())
    if not socket.exists():
        return None
    import asyncio

    from pynchy.control import ControlError, ask

    try:
        answer = asyncio.run(ask(socket, op="plugins"))
    except (ControlError, ConnectionError):
        return None
    return answer["records"] if answer and answer.get("event") == "plugins" else None


def _print_table(records: list[dict[str, Any]]) -> None:
    rows = [("NAME", "STATE", "TYPES", "VERSION", "FROM")]
    rows += [
        (
            record["name"] or record["entry_point"],
            record["state"],
            ", ".join(record["types"]) or "-",
            record["version"] or "-",
            record["origin"] or "-",
        )
        for record in records
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row, record in zip(rows, [None, *records], strict=True):
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip())
        if record:
            for line in _notes(record):
                print(f"    {line}")


def _notes(record: dict[str, Any]) -> list[str]:
    if record["reason"]:
        return [f"{record['reason']}; {record['remedy']}"]
    notes = [record["note"]] if record["note"] else []
    return [*notes, *(f"{part}: {trouble}" for part, trouble in record["reports"].items() if trouble)]


def _print_details(record: dict[str, Any]) -> None:
    print(f"{record['name'] or record['entry_point']}: {record['state']}")
    if record["reason"]:
        print(f"  reason        {record['reason']}")
        print(f"  what to do    {record['remedy']}")
    if record["note"]:
        print(f"  note          {record['note']}")
    print(f"  entry point   {record['entry_point']} = {record['target']}")
    print(f"  from          {record['distribution'] or '-'} {record['version']} ({record['origin'] or 'unknown'})")
    if record["state"] != "disabled":
        took, imported = record["milliseconds"], record["import_milliseconds"]
        print(f"  loading       {took:.0f} ms, of which its import {imported:.0f} ms")
        print("  rights        its package is imported on the host at every start, with your rights")
    for part in record["types"]:
        offered = ", ".join(record["offers"].get(part, ()))
        print(f"  {part:<13} {offered}{': ' if offered else ''}{_RIGHTS[part]}")
        if part in record["reports"]:
            print(f"  {'':<13} last heard: {record['reports'][part] or 'it works'}")
