"""What is sent to Telegram: texts, files and changes, in order within each chat."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from telegram import InputFile, LinkPreviewOptions, Message
from telegram.error import BadRequest, RetryAfter

from pynchy.plugin import NotConnected, Refused
from pynchy_plugin_telegram.addresses import Address
from pynchy_plugin_telegram.bot import Connection, pause_of, was_not_sent
from pynchy_plugin_telegram.markdown import LONGEST_CAPTION, LONGEST_TEXT, Part, parts_of
from pynchy_plugin_telegram.seen import Seen

T = TypeVar("T")

#: Seconds that a call may wait for Telegram's flood control: Pynchy gives a call 120.
_PATIENCE = 80.0
#: How many numbers after the newest a message whose confirmation was lost can have.
_LOOK_AHEAD = 10
_MOST_PHOTO = 10 * 1024 * 1024
_MOST_FILE = 50 * 1024 * 1024
_PHOTOS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
#: Telegram opens what a message links to, and an agent without a network could tell an address something that way.
_NO_PREVIEW = LinkPreviewOptions(is_disabled=True)
#: Attempts that are not finished yet: how many, and for how many seconds the same text is taken for a next try.
_MOST_BEGUN = 100
_SAME_TEXT = 3600.0
#: After so many failures of a text, while all else works, it is the text.
_MOST_FAILURES = 10


@dataclass(slots=True)
class _Begun:
    """How far an attempt came: messages sent, the last one's number, and whether one more may have been."""

    at: float
    sent: int = 0
    failures: int = 0
    number: int = 0
    doubtful: bool = False
    newest: int | None = None


class Progress:
    """What has been begun, for as long as the process lives: what is tried again goes on where it stopped."""

    def __init__(self) -> None:
        self._begun: OrderedDict[tuple[Address, str], _Begun] = OrderedDict()

    def begin(self, to: Address, what: str) -> _Begun:
        """How far it came before."""
        now = time.monotonic()
        while self._begun and (len(self._begun) >= _MOST_BEGUN or self._oldest().at < now - _SAME_TEXT):
            self._begun.popitem(last=False)
        return self._begun.setdefault((to, what), _Begun(now))

    def _oldest(self) -> _Begun:
        return next(iter(self._begun.values()))

    def end(self, to: Address, what: str) -> None:
        """All of it was sent, or never will be."""
        self._begun.pop((to, what), None)


class Outgoing:
    """Sends through one connection."""

    def __init__(self, connection: Connection, seen: Seen, progress: Progress) -> None:
        self._connection = connection
        self._bot = connection.bot
        self._seen = seen
        self._progress = progress
        self._turns: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._flooded_until: dict[int, float] = {}

    async def text(self, to: Address, markdown: str) -> str | None:
        """Send a text, in several messages where it is long; returns the last one's number, None for a blank one."""
        parts = parts_of(markdown)
        return await self._all(to, markdown, [self._text_step(to, part) for part in parts]) if parts else None

    async def file(self, to: Address, name: str, data: bytes, caption: str, as_photo: bool = True) -> str:
        """Send a file, as a photo where it is one; a long caption follows as a message."""
        if len(data) > _MOST_FILE:
            raise Refused(f"{name} is larger than the {_MOST_FILE // 1024**2} MB that Telegram lets a bot send")
        if not data:
            raise Refused(f"{name} is empty, and Telegram carries no empty files")
        captions = parts_of(caption, LONGEST_CAPTION)
        fits = len(captions) == 1
        photo = as_photo and data.startswith(_PHOTOS) and len(data) <= _MOST_PHOTO
        steps = [self._file_step(to, name, data, captions[0] if fits else Part(""), photo)]
        if not fits:
            steps += [self._text_step(to, part) for part in parts_of(caption)]
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        return await self._all(to, f"{name}\n{digest}\n{caption}", steps)

    async def edit(self, to: Address, number: int, markdown: str) -> None:
        """Change a text or a caption that the bot has sent; what is longer than one message is cut."""
        parts = parts_of(markdown)
        if not parts:
            raise Refused("a message cannot be changed to nothing")

        async def caption(part: Part) -> Any:
            return await self._bot.edit_message_caption(
                to.chat, number, caption=part.text, caption_entities=part.entities()
            )

        async def change() -> None:
            try:
                await self._marked_or_plain(parts[0], lambda part: self._edit_text(to, number, part))
            except BadRequest as error:
                if "no text in the message" in str(error).lower():  # it is a file's
                    await self._marked_or_plain(parts_of(markdown, LONGEST_CAPTION)[0], caption, LONGEST_CAPTION)
                elif not _is_unchanged(error):
                    raise

        await self.do(to, change)

    async def do(self, to: Address, action: Callable[[], Awaitable[T]]) -> T:
        """One request about a chat; raises NotConnected or Refused in the place of the library's errors."""
        give_up = time.monotonic() + _PATIENCE
        while True:
            try:
                await self._until_allowed(to.chat, give_up)
                return await action()
            except RetryAfter as error:
                self._flooded_until[to.chat] = time.monotonic() + pause_of(error) + 0.1
            except (NotConnected, Refused):
                raise
            except Exception as error:
                raise self._connection.in_words(error, to.jid) from None

    async def _until_allowed(self, chat: int, give_up: float) -> None:
        """Wait as long as Telegram wants no messages for a chat; NotConnected where that is too long."""
        until = self._flooded_until.get(chat, 0.0)
        wait = until - time.monotonic()
        if until > give_up:
            raise NotConnected(f"Telegram takes no messages for this chat for another {wait:.0f} s")
        if wait > 0:
            await asyncio.sleep(wait)

    # --- steps ----------------------------------------------------------------------------------------------

    async def _all(self, to: Address, what: str, steps: Sequence[Callable[[_Begun], Awaitable[int]]]) -> str:
        """Take the steps that have not been taken yet, each sending one message."""
        async with self._turns[to.chat]:
            begun = self._progress.begin(to, what)
            while begun.sent < len(steps):
                try:
                    begun.number = await self.do(to, lambda: self._step(steps[begun.sent], begun))
                except Refused:
                    if not begun.sent:
                        self._progress.end(to, what)
                    raise
                except NotConnected:
                    if begun.failures >= _MOST_FAILURES and await self._is_well():
                        raise Refused(f"Telegram has failed {begun.failures} times to take this message") from None
                    raise
                begun.sent, begun.failures = begun.sent + 1, 0
                self._seen.note(to, begun.number)
            self._progress.end(to, what)
        return str(begun.number)

    async def _step(self, step: Callable[[_Begun], Awaitable[int]], begun: _Begun) -> int:
        try:
            return await step(begun)
        except RetryAfter:
            raise
        except Exception:
            begun.failures += 1
            raise

    async def _is_well(self) -> bool:
        try:
            await self._bot.get_me()
        except Exception:
            return False
        return True

    def _text_step(self, to: Address, part: Part) -> Callable[[_Begun], Awaitable[int]]:
        async def send(part: Part) -> int:
            message = await self._bot.send_message(
                to.chat,
                part.text,
                entities=part.entities(),
                message_thread_id=to.thread,
                link_preview_options=_NO_PREVIEW,
            )
            return message.message_id

        async def step(begun: _Begun) -> int:
            if begun.doubtful and (found := await self._find(to, part, begun.newest)):
                begun.doubtful = False
                return found
            begun.doubtful, begun.newest = True, self._seen.newest(to)
            try:
                number = await self._marked_or_plain(part, send)
            except Exception as error:
                begun.doubtful = not was_not_sent(error)
                raise
            begun.doubtful = False
            return number

        return step

    def _file_step(
        self, to: Address, name: str, data: bytes, caption: Part, photo: bool
    ) -> Callable[[_Begun], Awaitable[int]]:
        async def send(method: Callable[..., Awaitable[Message]]) -> int:
            async def with_caption(caption: Part) -> int:
                message = await method(
                    to.chat,
                    InputFile(data, filename=name),
                    caption=caption.text or None,
                    caption_entities=caption.entities(),
                    message_thread_id=to.thread,
                )
                return message.message_id

            return await self._marked_or_plain(caption, with_caption, LONGEST_CAPTION)

        async def step(_: _Begun) -> int:
            if photo:
                try:
                    return await send(self._bot.send_photo)
                except BadRequest as error:
                    if not any(word in str(error).lower() for word in ("photo", "image", "dimensions")):
                        raise
            return await send(self._bot.send_document)

        return step

    async def _edit_text(self, to: Address, number: int, part: Part) -> None:
        await self._bot.edit_message_text(
            part.text, to.chat, number, entities=part.entities(), link_preview_options=_NO_PREVIEW
        )

    async def _marked_or_plain(
        self, part: Part, send: Callable[[Part], Awaitable[T]], longest: int = LONGEST_TEXT
    ) -> T:
        """Send a text as it should look, or, where Telegram does not take that, as plain text."""
        try:
            return await send(part)
        except BadRequest as error:
            if not part.marks or "entit" not in str(error).lower():
                raise
        return await send(part.unmarked(longest))

    async def _find(self, to: Address, part: Part, newest: int | None) -> int | None:
        """The number of a message whose confirmation was lost, by edits that change nothing; None where there is none.

        Telegram counts messages up, and refuses an edit that would leave a message as it is with words of its own.
        """
        if newest is None:
            return None
        for number in range(newest + 1, newest + 1 + _LOOK_AHEAD):
            if self._seen.knows_anywhere(to.chat, number):  # as another message, which an edit would change
                continue
            try:
                await self._edit_text(to, number, part)
            except BadRequest as error:
                if _is_unchanged(error):
                    return number
            else:
                return number
        return None


def _is_unchanged(error: BadRequest) -> bool:
    return "not modified" in str(error).lower()
