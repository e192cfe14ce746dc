"""`pynchy plugins list`: every entry point found, in whatever state."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from pynchy.home import control_socket, pynchy_home


def show(as_json: bool) -> int:
    """Print the running service's list, or where none runs what a start would find."""
    records = running_service_records()
    if records is None:
        records = found_records()
    if as_json:
        print(json.dumps(records, indent=2))
    elif not records:
        print("No plugins are installed.")
    else:
        _print_table(records)
    return 0


def found_records() -> list[dict[str, Any]]:
    """Discover in this process."""
    from pynchy.plugin import discover_plugins

    logging.getLogger("pynchy.plugin").setLevel(logging.CRITICAL)  # the list says it all
    return [record.to_dict() for record in discover_plugins().records]


def running_service_records() -> list[dict[str, Any]] | None:
    """What the service of this home found when it started; None where none runs."""
    socket = control_socket(pynchy_home())
    if not socket.exists():
        return None
    from pynchy.control import ControlError, connect

    async def ask() -> list[dict[str, Any]] | None:
        peer = await connect(socket)
        if peer is None:
            return None
        await peer.send(op="plugins")
        answer = await peer.receive()
        await peer.close()
        return answer["records"] if answer and answer.get("event") == "plugins" else None

    try:
        return asyncio.run(ask())
    except (ControlError, ConnectionError):
        return None


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
        if record and record["reason"]:
            print(f"    {record['reason']}; {record['remedy']}")
        elif record and record["note"]:
            print(f"    {record['note']}")
