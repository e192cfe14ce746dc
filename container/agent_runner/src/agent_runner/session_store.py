"""The SDK's session store, at the host: every transcript line crosses the wire, and none stays here."""

from __future__ import annotations

import json
from typing import Any

from agent_runner.host_link import HostLink
from pynchy.wire import json_frame

#: A batch is sent in parts of about this many bytes, well below what one frame body may hold.
_PART_BYTES = 8 * 1024 * 1024


class HostSessionStore:
    """Appends go out in order before the result they belong to, so the host can record both at once."""

    def __init__(self, link: HostLink) -> None:
        self._link = link

    async def append(self, key: dict[str, Any], entries: list[dict[str, Any]]) -> None:
        """Send transcript entries to the host. The pipe keeps the order; there is nothing to wait for."""
        part: list[dict[str, Any]] = []
        size = 0
        for entry in entries:
            part.append(entry)
            size += len(json.dumps(entry))
            if size > _PART_BYTES:
                self._send(key, part)
                part, size = [], 0
        if part:
            self._send(key, part)

    def _send(self, key: dict[str, Any], entries: list[dict[str, Any]]) -> None:
        self._link.send(json_frame("session.append", entries, session=key["session_id"], subpath=key.get("subpath")))

    async def load(self, key: dict[str, Any]) -> list[dict[str, Any]] | None:
        """Fetch a session's entries from the host, page by page; None where it has none."""
        entries: list[dict[str, Any]] = []
        after: int | None = 0
        while after is not None:
            page = await self._link.request(
                "session.load", {"session": key["session_id"], "subpath": key.get("subpath"), "after": after}
            )
            entries += page["entries"]
            after = page["next"]
        return entries or None

    async def list_subkeys(self, key: dict[str, Any]) -> list[str]:
        """The names of a session's sub-agent transcripts."""
        return await self._link.request("session.subkeys", {"session": key["session_id"]})
