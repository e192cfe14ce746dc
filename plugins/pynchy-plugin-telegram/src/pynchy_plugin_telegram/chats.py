"""What chats and their topics are called, told to Pynchy once each."""

from __future__ import annotations

import json

from pynchy.plugin import PluginContext
from pynchy_plugin_telegram.addresses import Address


class Chats:
    """Topics' names are kept in a file, for Telegram has no way to ask for them."""

    def __init__(self, ctx: PluginContext) -> None:
        self._ctx = ctx
        self._file = ctx.data_dir / "topics.json"
        self._told: dict[str, str] = {}
        self._topics: dict[str, str] | None = None

    async def report(self, address: Address, name: str, topic: tuple[str, bool] | None = None) -> None:
        """Tell what a chat is called, where that is news; `topic` is a name and whether it is the newest."""
        if address.thread:
            name = f"{name} / {self._topic(address.jid, topic) or f'topic {address.thread}'}"
        if self._told.get(address.jid) != name:
            await self._ctx.on_chat_metadata(address.jid, name)
            self._told[address.jid] = name

    def _topic(self, jid: str, learnt: tuple[str, bool] | None) -> str:
        if self._topics is None:
            self._topics = self._load()
        if learnt:
            name, newest = learnt
            if self._topics.get(jid) != name and (newest or jid not in self._topics):
                self._topics[jid] = name
                self._save(self._topics)
        return self._topics.get(jid, "")

    def _load(self) -> dict[str, str]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            return {str(jid): str(name) for jid, name in found.items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def _save(self, topics: dict[str, str]) -> None:
        try:
            new = self._file.with_suffix(".new")
            new.write_text(json.dumps(topics, ensure_ascii=False), encoding="utf-8")
            new.replace(self._file)
        except OSError as error:
            self._ctx.log.warning("cannot keep the names of topics: %s", error)
