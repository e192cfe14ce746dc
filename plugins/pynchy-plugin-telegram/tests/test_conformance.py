"""The channel is what every channel must be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bot_api import BotApi

from pynchy.testing import ChannelConformance, FarSide
from pynchy_plugin_telegram import TelegramPlugin

CHAT = 4711


class Telegram(FarSide):
    """One person's chat with the bot."""

    jid = f"telegram:{CHAT}"

    def __init__(self, api: BotApi) -> None:
        self._api = api
        self.plugin = TelegramPlugin()
        self.environment = {
            "TELEGRAM_BOT_TOKEN": api.token,
            "PYNCHY_TELEGRAM_API": api.url,
            "NO_PROXY": "127.0.0.1",
        }

    async def write(self, text: str) -> None:
        self._api.write(CHAT, text)

    def read(self) -> list[str]:
        return [one.text for one in self._api.sent if one.chat == CHAT]

    async def vanish(self) -> None:
        await self._api.stop()


class TestTelegram(ChannelConformance):
    @asynccontextmanager
    async def far_side(self, folder: Path) -> AsyncIterator[FarSide]:
        async with BotApi() as api:
            api.chat(CHAT)
            yield Telegram(api)
