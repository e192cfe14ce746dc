"""What Pynchy finds. The libraries are imported when the channel is wanted."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pynchy.plugin import Channel, ChannelPlugin, HostTool, PluginContext, ToolPlugin
from pynchy_plugin_telegram.tools import TelegramTools

if TYPE_CHECKING:
    from pynchy_plugin_telegram.channel import TelegramChannel


class TelegramPlugin(ChannelPlugin, ToolPlugin):
    """One bot: its chats are the channel's, and agents get tools for what only Telegram has."""

    name = "telegram"

    def __init__(self) -> None:
        self._channel: TelegramChannel | None = None

    def create_channel(self, ctx: PluginContext) -> Channel:
        from pynchy_plugin_telegram.channel import TelegramChannel

        token = os.environ.get("TELEGRAM_BOT_TOKEN") or ctx.config.get("token", "")
        self._channel = TelegramChannel(bot_token=token, ctx=ctx)
        return self._channel

    def tools(self) -> list[HostTool]:
        return TelegramTools(lambda: self._channel).all()
