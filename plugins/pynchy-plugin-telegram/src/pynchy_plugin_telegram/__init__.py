"""Telegram chats, through a bot of the user's own."""

from pynchy_plugin_telegram.plugin import TelegramPlugin

__all__ = ["TelegramPlugin"]
