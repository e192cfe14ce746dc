"""The receiving end: updates in order, each confirmed to Telegram only once Pynchy has stored it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from telegram import ChatMember, Update
from telegram.error import Conflict, RetryAfter

from pynchy.plugin import NewMessage, PluginContext
from pynchy_plugin_telegram.addresses import Address
from pynchy_plugin_telegram.bot import Connection, moved, pause_of
from pynchy_plugin_telegram.chats import Chats
from pynchy_plugin_telegram.files import fetch
from pynchy_plugin_telegram.incoming import (
    RemoteFile,
    address_of,
    chat_name,
    file_of,
    is_of_a_bot,
    message_of,
    read,
    topic_name_of,
    without_bytes,
)
from pynchy_plugin_telegram.seen import Seen

#: In seconds, doubled after each failure, and at most.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0
#: How often a message is offered that Pynchy says it cannot take.
_OFFERS = 3


class Polling:
    """Receives through one connection from its creation until `end`."""

    def __init__(
        self,
        connection: Connection,
        ctx: PluginContext,
        chats: Chats,
        seen: Seen,
        owners: frozenset[str],
        offset: int | None,
    ) -> None:
        self.offset = offset
        self.is_rivalled = False
        self._connection = connection
        self._ctx = ctx
        self._chats = chats
        self._seen = seen
        self._owners = owners
        self._online = True
        self._offered: tuple[int, int] = (0, 0)  # an update, and how often Pynchy did not take it
        self._task = asyncio.get_running_loop().create_task(self._run(), name="telegram: updates")

    def is_online(self) -> bool:
        """Whether Telegram has answered lately."""
        return self._online and not self._task.done()

    async def end(self, within: float) -> None:
        """Stop; what is being stored now will come again."""
        self._task.cancel()
        await asyncio.wait([self._task], timeout=within)

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                updates = await self._connection.updates(self.offset)
            except Exception as error:
                pause = max(pause, self._lost(error))
            else:
                if not self._online:
                    self._ctx.log.info("Telegram answers again")
                self._online, self.is_rivalled = True, False
                before = self.offset
                all_taken = await self._take_all(updates)
                if self.offset != before or not updates:
                    pause = _FIRST_PAUSE
                    if all_taken:
                        continue
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _lost(self, error: Exception) -> float:
        """Note that Telegram does not answer as it should; returns how many seconds it asks to wait."""
        if isinstance(error, RetryAfter):
            return pause_of(error)
        self.is_rivalled = isinstance(error, Conflict)
        if self._online:
            self._ctx.log.warning("no messages from Telegram: %s", self._connection.in_words(error))
        self._online = False
        return _FIRST_PAUSE

    async def _take_all(self, updates: list[Any]) -> bool:
        """Whether all were taken; the first that was not, and what comes after it, will come again."""
        for raw in updates:
            number = raw.get("update_id") if isinstance(raw, dict) else None
            if not isinstance(number, int):
                self._ctx.log.error("Telegram has sent an update without a number; it is left out")
                continue
            try:
                heard = _hear(Update.de_json(raw, self._connection.bot), self._owners)
            except Exception:
                self._ctx.log.exception("the update %s cannot be understood and is left out", number)
                heard = None
            if heard and not await self._hand_over(heard, number):
                return False
            self.offset = number + 1
        return True

    async def _hand_over(self, heard: _Heard, number: int) -> bool:
        """Whether Pynchy has it, or never will."""
        try:
            await self._chats.report(heard.address, heard.chat, heard.topic)
            if heard.moved_to:
                self._ctx.log.warning("%s", moved(heard.address.jid, str(heard.moved_to)))
            if heard.said:
                await self._ctx.on_message(await self._with_file(heard.said, heard.file))
            if heard.number:
                self._seen.note(heard.address, heard.number)
        except Exception as error:
            offered = self._offered[1] + 1 if self._offered[0] == number else 1
            self._offered = number, offered
            if isinstance(error, TypeError | ValueError) and offered >= _OFFERS:
                self._ctx.log.exception("Pynchy cannot take the update %s, and it is left out", number)
                return True
            self._ctx.log.warning("a message was not stored and will be fetched again: %r", error)
            return False
        return True

    async def _with_file(self, said: NewMessage, file: RemoteFile | None) -> NewMessage:
        if file is None:
            return said
        if said.chat_jid not in self._ctx.registered_groups():  # a stranger's files are not worth fetching
            return replace(said, attachments=(without_bytes(file),))
        attachment, note = await fetch(self._connection, file)
        return replace(said, attachments=(attachment,), content="\n".join(filter(None, (said.content, note))))


@dataclass(frozen=True, slots=True)
class _Heard:
    """What an update says: about a chat, and what somebody said there."""

    address: Address
    chat: str
    topic: tuple[str, bool] | None = None
    said: NewMessage | None = None
    file: RemoteFile | None = None
    number: int | None = None
    moved_to: int | None = None


def _hear(update: Update, owners: frozenset[str]) -> _Heard | None:
    """Read an update, without waiting for anything; None where it says nothing to us."""
    if changed := update.my_chat_member:
        gone = changed.new_chat_member.status in (ChatMember.LEFT, ChatMember.BANNED)
        return None if gone else _Heard(Address.of(changed.chat.id), chat_name(changed.chat))
    if (message := message_of(update)) is None:
        return None
    if not isinstance(message.message_id, int):
        raise TypeError("its message has no number")
    said = file = None
    if not is_of_a_bot(message):
        edited = bool(update.edited_message or update.edited_channel_post)
        said = read(message, owners, edited)
        file = None if edited else file_of(message)
    return _Heard(
        address_of(message),
        chat_name(message.chat),
        topic_name_of(message),
        said,
        file,
        message.message_id,
        message.migrate_to_chat_id,
    )
