"""The library's bot as the channel uses it: its limits, its errors in plain words, and the token in none of them."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import httpx
from telegram.error import (
    BadRequest,
    ChatMigrated,
    Conflict,
    Forbidden,
    InvalidToken,
    NetworkError,
    RetryAfter,
    TelegramError,
)
from telegram.ext import AIORateLimiter, ExtBot
from telegram.request import HTTPXRequest

from pynchy.plugin import NotConnected, Refused

# The library warns at each flood error unless it is told that its `retry_after` may be a timedelta.
os.environ.setdefault("PTB_TIMEDELTA", "true")

API = "https://api.telegram.org"
#: Seconds that Telegram holds back an answer to getUpdates when there is nothing new.
POLL = 25
_KINDS = json.dumps(["message", "edited_message", "channel_post", "edited_channel_post", "my_chat_member"])
_TOKEN = re.compile(r"[0-9]{3,20}:[A-Za-z0-9_-]{10,100}")
_LOGGERS = ("httpx", "httpcore", "telegram")
#: What Telegram limits: it counts messages, not looks at a chat and not "is typing".
_COUNTED = ("send", "edit")
#: The httpx errors after which a request has certainly not been acted on.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)


class NeedsMending(NotConnected):
    """The bot cannot be used until somebody changes something; the words say what."""


# Its lines about floods say less than ours, at a greater length.
logging.getLogger("telegram.ext.AIORateLimiter").setLevel(logging.CRITICAL)


class _Limits(AIORateLimiter):
    """30 messages a second, 20 a minute in a group."""

    async def process_request(
        self,
        callback: Callable[..., Coroutine[Any, Any, Any]],
        args: Any,
        kwargs: dict[str, Any],
        endpoint: str,
        data: dict[str, Any],
        rate_limit_args: int | None,
    ) -> Any:
        if endpoint == "sendChatAction" or not endpoint.startswith(_COUNTED):
            return await callback(*args, **kwargs)
        return await super().process_request(callback, args, kwargs, endpoint, data, rate_limit_args)


class Connection:
    """One bot, from `open` to `close`."""

    def __init__(self, token: str, api: str) -> None:
        if not token:
            raise NeedsMending(
                "there is no bot token: put TELEGRAM_BOT_TOKEN=..., as @BotFather has given it, into Pynchy's .env"
            )
        if not _TOKEN.fullmatch(token):
            raise NeedsMending("TELEGRAM_BOT_TOKEN is no bot token: copy what @BotFather shows, as in 123456:ABC-DEF")
        if not re.fullmatch(r"https?://[^\s?#]+", api):
            raise NeedsMending("PYNCHY_TELEGRAM_API is no address: write it as in http://127.0.0.1:8081")
        self._secret = _Secret(token)
        self._secret.guard()
        api = api.rstrip("/")
        self._updates = HTTPXRequest(connection_pool_size=2, connect_timeout=10, write_timeout=10, pool_timeout=10)
        self.bot = ExtBot(
            token,
            base_url=f"{api}/bot",
            base_file_url=f"{api}/file/bot",
            request=HTTPXRequest(
                connection_pool_size=16,
                connect_timeout=10,
                read_timeout=30,
                write_timeout=30,
                pool_timeout=10,
                media_write_timeout=90,
            ),
            get_updates_request=self._updates,
            rate_limiter=_Limits(),
        )
        self.files = httpx.AsyncClient(timeout=httpx.Timeout(20, connect=10), headers={"Accept-Encoding": "identity"})

    async def open(self) -> None:
        """See whether the token is a bot's."""
        await self.bot.initialize()

    async def close(self) -> None:
        """Let go of every socket."""
        try:
            await self.bot.shutdown()
            await self.files.aclose()
        finally:
            self._secret.release()

    async def updates(self, offset: int | None, wait: int = POLL, most: int = 100) -> list[Any]:
        """What is new from `offset` on, as it comes; whatever is older will not come again."""
        # Not get_updates(): a single update that the library cannot read would hold up all that follow.
        wanted = {"timeout": wait, "limit": most, "allowed_updates": _KINDS}
        if offset is not None:
            wanted["offset"] = offset
        url = f"{self.bot.base_url}/getUpdates?{urlencode(wanted)}"
        result = await self._updates.post(url, read_timeout=wait + 10)
        if not isinstance(result, list):
            raise TelegramError("Invalid server response")
        return result

    def in_words(self, error: Exception, jid: str = "") -> Exception:
        """What to raise in its place: NotConnected where trying again later may do, else why not."""
        text = self._secret.hidden_in(str(error)) or type(error).__name__
        match error:
            case InvalidToken():
                return NeedsMending(
                    "Telegram does not accept the bot's token: put the one that @BotFather shows into "
                    "TELEGRAM_BOT_TOKEN and start Pynchy again"
                )
            case Conflict() if "webhook" in text:
                return NeedsMending(
                    "the bot has a webhook, which keeps its messages from Pynchy: end the program that uses it, and "
                    "remove it by calling the Bot API's deleteWebhook"
                )
            case Conflict():
                return NeedsMending(
                    "another program receives this bot's messages: end it, or give Pynchy a bot of its own"
                )
            case ChatMigrated():
                return Refused(moved(jid, str(error.new_chat_id)))
            case Forbidden():
                return Refused(f"Telegram does not let the bot write to {jid or 'this chat'}: {text}")
            case BadRequest() if "chat not found" in text.lower():
                return Refused(f"Telegram knows no chat {jid} of this bot: somebody must write to the bot there first")
            case BadRequest():
                return Refused(f"Telegram refuses this: {text}")
            case NetworkError():
                return NotConnected(f"Telegram cannot be reached: {text}")
        return NotConnected(f"Telegram answers oddly: {text}")


class _Secret(logging.Filter):
    """Keeps the token, which is part of every address, out of what the libraries log."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = re.compile(re.escape(token), re.IGNORECASE)  # the library changes the case of errors
        self._guarded: list[logging.Logger] = []

    def hidden_in(self, text: str) -> str:
        """The text without the token."""
        return self._token.sub("[the token]", text)

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every line pass, cleared."""
        if self._token.search(text := record.getMessage()):
            record.msg, record.args = self.hidden_in(text), ()
        return True

    def guard(self) -> None:
        """Begin; loggers have no use for a filter of their parent's."""
        names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in _LOGGERS]
        self._guarded = [logging.getLogger(name) for name in names]
        for logger in self._guarded:
            logger.addFilter(self)

    def release(self) -> None:
        """End."""
        for logger in self._guarded:
            logger.removeFilter(self)


def moved(jid: str, to: str) -> str:
    """What to do about a group that has become a supergroup."""
    return (
        f"the Telegram group {jid} has become telegram:{to}: answer that one with `pynchy groups remove FOLDER` and "
        f"`pynchy groups add telegram:{to} FOLDER`"
    )


def pause_of(error: RetryAfter) -> float:
    """How many seconds Telegram wants nothing."""
    pause = error.retry_after
    return pause.total_seconds() if isinstance(pause, timedelta) else float(pause)


def was_not_sent(error: Exception) -> bool:
    """Whether a failed request has certainly changed nothing."""
    refused = isinstance(error, BadRequest | Forbidden | InvalidToken | ChatMigrated | Conflict | RetryAfter)
    return refused or isinstance(error.__cause__, _NOT_SENT)
