"""A channel connected to a Bot API server, and the Pynchy that it hands messages to."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bot_api import BotApi, until

from pynchy.plugin import Group, NewMessage, PluginContext
from pynchy_plugin_telegram.channel import TelegramChannel

PERSON = 1001
GROUP = -5005
FORUM = -1007007
LOG = logging.getLogger("pynchy.plugins.telegram")


class World:
    """`stored` are the messages, once each, `names` what chats are called; `storing` may refuse a message."""

    def __init__(self, api: BotApi, folder: Path, groups: Mapping[str, Group], config: Mapping[str, str]) -> None:
        self.api = api
        self.stored: dict[tuple[str, str], NewMessage] = {}
        self.offers: list[NewMessage] = []
        self.names: dict[str, str] = {}
        self.storing: Callable[[NewMessage], Awaitable[None]] | None = None
        self.groups = dict(groups)
        self._folder = folder
        self._config = config
        self.channel = self.new_channel()

    def new_channel(self, token: str | None = None) -> TelegramChannel:
        """Another channel of the same settings and folder."""

        async def on_message(message: NewMessage) -> None:
            self.offers.append(message)
            if self.storing:
                await self.storing(message)
            self.stored.setdefault((message.chat_jid, message.id), message)

        async def on_chat_metadata(jid: str, name: str) -> None:
            self.names[jid] = name

        async def send_message(jid: str, text: str) -> None:
            raise AssertionError

        context = PluginContext(
            send_message=send_message,
            registered_groups=lambda: self.groups,
            config={"api": self.api.url, **self._config},
            on_message=on_message,
            on_chat_metadata=on_chat_metadata,
            data_dir=self._folder,
            log=LOG,
        )
        return TelegramChannel(bot_token=self.api.token if token is None else token, ctx=context)

    @property
    def messages(self) -> list[NewMessage]:
        """What was stored, in order."""
        return list(self.stored.values())

    async def arrived(self, count: int = 1) -> list[NewMessage]:
        """The messages, once there are so many."""
        await until(lambda: len(self.stored) >= count)
        return self.messages

    async def hear(self, chat: int, fields: Mapping[str, Any], **more: Any) -> NewMessage:
        """The one message that this becomes."""
        before = len(self.stored)
        self.api.post(chat, fields, **more)
        return (await self.arrived(before + 1))[-1]

    async def confirmed(self) -> None:
        """Return once the bot has confirmed everything."""
        await until(lambda: self.api.waiting == 0)


def group(jid: str, **changes: Any) -> Group:
    """A registered chat."""
    return Group(jid, "A chat", "chat", **changes)


@asynccontextmanager
async def world(folder: Path, *jids: str, connect: bool = True, **config: str) -> AsyncIterator[World]:
    """A world whose groups are these; `config` are the channel's settings."""
    folder.mkdir(parents=True, exist_ok=True)
    async with BotApi() as api:
        for chat in (PERSON, GROUP):
            api.chat(chat)
        api.chat(FORUM, title="Club", is_forum=True)
        found = World(api, folder, {jid: group(jid) for jid in jids}, config)
        try:
            if connect:
                await found.channel.connect()
            yield found
        finally:
            await found.channel.disconnect()
