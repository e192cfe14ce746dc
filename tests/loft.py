"""A channel that is always there, and a service whose agents say what they were asked."""

from __future__ import annotations

import asyncio
import sqlite3
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from support import CREDENTIAL, RogueRuntime

from pynchy.app import Service
from pynchy.config import load_settings
from pynchy.model_gateway import Upstream
from pynchy.plugin import ContainerRuntime, PluginRegistry
from pynchy.types import Group, NewMessage

JID = "loft:1"


class Loft:
    """A channel in this process: what a test puts in arrives, and what is sent can be looked at."""

    name = "loft"
    prefix_assistant_name = False

    def __init__(self) -> None:
        self.sent: asyncio.Queue[str] = asyncio.Queue()
        self.count = 0
        self.service: Service | None = None

    async def connect(self) -> None:
        """It is."""

    async def disconnect(self) -> None:
        """It stays."""

    def is_connected(self) -> bool:
        return True

    def owns_jid(self, jid: str) -> bool:
        return jid.startswith("loft:")

    async def send_message(self, jid: str, text: str) -> str | None:
        await self.sent.put(text if jid == JID else f"to {jid}: {text}")
        return None

    async def arrive(self, text: str, sender: str = "ada", jid: str = JID, **changes: Any) -> int | None:
        """A message comes in; returns its row id once the host has it."""
        assert self.service
        self.count += 1
        values: dict[str, Any] = {
            "id": str(self.count),
            "chat_jid": jid,
            "sender": sender,
            "sender_name": sender.title(),
            "content": text,
            "timestamp": datetime.now(UTC),
        }
        return await self.service.on_message(NewMessage(**{**values, **changes}))

    async def hear(self) -> str:
        """What is sent next."""
        async with asyncio.timeout(60):
            return await self.sent.get()

    async def silence(self) -> None:
        """Nothing was sent, and nothing more will be: everything that was to be done is done."""
        assert self.service
        service = self.service

        def open_messages(db: sqlite3.Connection) -> list[Any]:
            query = "SELECT id FROM messages WHERE state = 'claimed' OR state = 'pending' AND asks"
            return db.execute(query).fetchall()

        async with asyncio.timeout(60):
            while service.groups_running and await service._store.look(open_messages):
                await asyncio.sleep(0.01)
        await service.flush_outbox(JID)
        assert self.sent.empty(), self.sent.get_nowait()


@asynccontextmanager
async def loft(
    group: Group | None,
    runtime: ContainerRuntime | None = None,
    channel: Loft | None = None,
    base_url: str = "http://127.0.0.1:9",
) -> AsyncIterator[Loft]:
    """A service with this channel, and its chat registered."""
    channel = channel or Loft()
    upstream = Upstream(base_url, ("x-api-key", CREDENTIAL))
    runtime = runtime or RogueRuntime("echoes")
    async with Service.start(load_settings(), upstream, PluginRegistry(), runtime, channels=[channel]) as service:
        channel.service = service
        if group:
            await service.register_group(group)
        yield channel


def seen(prompt: str) -> list[tuple[str, str, bool]]:
    """The messages of a prompt: who, what, and whether it is only context."""
    root = ElementTree.fromstring(prompt)
    return [
        (one.attrib["sender"], one.text or "", one.attrib.get("context") == "yes")
        for one in root
        if one.tag == "message"
    ]


def database(tmp_path: Path) -> Path:
    """The service's database."""
    return tmp_path / "home/pynchy.db"
