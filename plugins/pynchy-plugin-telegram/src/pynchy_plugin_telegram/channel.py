"""The channel: one bot, its messages in and out."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from telegram.constants import ChatAction

from pynchy.plugin import NotConnected, PluginContext
from pynchy_plugin_telegram.addresses import Address
from pynchy_plugin_telegram.bot import API, Connection, NeedsMending
from pynchy_plugin_telegram.chats import Chats
from pynchy_plugin_telegram.incoming import chat_name, one_line
from pynchy_plugin_telegram.markdown import LONGEST_TEXT
from pynchy_plugin_telegram.outgoing import Outgoing, Progress
from pynchy_plugin_telegram.polling import Polling
from pynchy_plugin_telegram.seen import Seen

#: Seconds: Pynchy gives a disconnection 5.
_END_WITHIN = 3.0
_CLOSE_WITHIN = 1.0


class TelegramChannel:
    """The chats of one bot, which `bot_token` is the key to."""

    name = "telegram"
    prefix_assistant_name = False  # the bot has a name of its own
    max_message_length = LONGEST_TEXT

    def __init__(self, *, bot_token: str, ctx: PluginContext) -> None:
        self._token = bot_token.strip()
        self._ctx = ctx
        self._seen = Seen()
        self._progress = Progress()
        self._chats = Chats(ctx)
        self._connection: Connection | None = None
        self._outgoing: Outgoing | None = None
        self._polling: Polling | None = None
        self._offset: int | None = None
        self._was_rivalled = False

    # --- connecting -----------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Connect; NeedsMending where somebody has to do something first."""
        await self.disconnect()
        owners = _owners(self._ctx.config.get("owner", ""))
        connection = self._connection = Connection(self._token, self._ctx.config.get("api") or API)
        trouble: Exception | None = None
        try:
            await connection.open()
            # Says whether there is a webhook; another program that polls is noticed only while waiting.
            await connection.updates(self._offset, wait=10 if self._was_rivalled else 0, most=1)
        except Exception as error:
            trouble = connection.in_words(error)
        if trouble:  # raised out here, it does not carry an error along that has the token in its words
            raise trouble
        self._was_rivalled = False
        self._outgoing = Outgoing(connection, self._seen, self._progress)
        self._polling = Polling(connection, self._ctx, self._chats, self._seen, owners, self._offset)
        self._ctx.log.info("connected to Telegram as @%s", one_line(connection.bot.username))

    async def disconnect(self) -> None:
        """Stop receiving and let go of every socket."""
        polling, self._polling = self._polling, None
        connection, self._connection = self._connection, None
        self._outgoing = None
        if polling:
            await polling.end(_END_WITHIN)
            self._offset, self._was_rivalled = polling.offset, polling.is_rivalled
        if connection:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_WITHIN):
                    await connection.close()

    def is_connected(self) -> bool:
        """Whether Telegram answers."""
        return self._polling is not None and self._polling.is_online()

    def owns_jid(self, jid: str) -> bool:
        """Whether this is a chat's address, as in `telegram:42` or `telegram:-100123/5`."""
        return Address.parse(jid) is not None

    # --- sending --------------------------------------------------------------------------------------------

    async def send_message(self, jid: str, text: str) -> str | None:
        """Send a text of Markdown; returns the number of the last message that it became."""
        return await self.outgoing.text(_address(jid), text)

    async def edit_message(self, jid: str, message_id: str, text: str) -> None:
        """Change a text that was sent."""
        await self.outgoing.edit(_address(jid), int(message_id), text)

    async def send_file(self, jid: str, path: Path, caption: str) -> None:
        """Send a file, as a photo where it is one."""
        data = await asyncio.to_thread(path.read_bytes)
        await self.outgoing.file(_address(jid), path.name, data, caption)

    async def set_typing(self, jid: str, on: bool) -> None:
        """Show that an answer is being written; Telegram ends that by itself."""
        if on and self._connection and self.is_connected():
            bot, to = self._connection.bot, _address(jid)
            await self.outgoing.do(to, lambda: bot.send_chat_action(to.chat, ChatAction.TYPING, to.thread))

    async def sync_metadata(self) -> None:
        """Pass on what the groups' chats are called."""
        addresses = [address for jid in self._ctx.registered_groups() if (address := Address.parse(jid))]
        for number in {address.chat for address in addresses}:
            if self._connection:
                with contextlib.suppress(Exception):  # the next message says it too
                    name = chat_name(await self._connection.bot.get_chat(number))
                    for address in addresses:
                        if address.chat == number:
                            await self._chats.report(address, name)

    # --- for the tools --------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, be it one that does not work at the moment."""
        return self._outgoing is not None

    @property
    def outgoing(self) -> Outgoing:
        """What sends; NotConnected where nothing does."""
        if self._outgoing is None:
            raise NotConnected("the bot is not connected to Telegram")
        return self._outgoing

    @property
    def connection(self) -> Connection:
        """What talks to Telegram; NotConnected where nothing does."""
        if self._connection is None or self._outgoing is None:
            raise NotConnected("the bot is not connected to Telegram")
        return self._connection

    @property
    def context(self) -> PluginContext:
        """What the host has handed over."""
        return self._ctx

    @property
    def seen(self) -> Seen:
        """The messages that are known."""
        return self._seen


def _address(jid: str) -> Address:
    if (address := Address.parse(jid)) is None:
        raise ValueError(f"{jid[:100]!r} is no chat of Telegram's: write it as in telegram:42 or telegram:-100123/5")
    return address


def _owners(setting: str) -> frozenset[str]:
    owners = frozenset(filter(None, map(str.strip, setting.split(","))))
    if not all(owner.isascii() and owner.isdigit() for owner in owners):
        raise NeedsMending(
            "PYNCHY_TELEGRAM_OWNER must be numbers of Telegram users, with commas between them: "
            "`pynchy groups people FOLDER` lists them"
        )
    return owners
