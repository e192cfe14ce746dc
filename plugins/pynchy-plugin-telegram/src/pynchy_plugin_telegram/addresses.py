"""The addresses of chats: `telegram:CHAT`, and `telegram:CHAT/THREAD` for a forum's topic."""

from __future__ import annotations

import re
from dataclasses import dataclass

_JID = re.compile(r"telegram:(-?[1-9][0-9]{0,18})(?:/([1-9][0-9]{0,17}))?")


@dataclass(frozen=True, slots=True)
class Address:
    """A chat by Telegram's number, and a topic in it; None is a chat without topics, or a forum's General."""

    chat: int
    thread: int | None = None

    @classmethod
    def parse(cls, jid: str) -> Address | None:
        """The reverse of `jid`; None for what is no chat of Telegram's."""
        if (match := _JID.fullmatch(jid)) is None:
            return None
        return cls(int(match[1]), int(match[2]) if match[2] else None)

    @classmethod
    def of(cls, chat: int, thread: int | None = None) -> Address:
        """A chat as Telegram tells it; ValueError where that can be none."""
        address = cls(chat, thread)
        if cls.parse(address.jid) != address:
            raise ValueError(f"{address.jid[:100]!r} is no chat's address")
        return address

    @property
    def jid(self) -> str:
        """As Pynchy writes it."""
        return f"telegram:{self.chat}" + (f"/{self.thread}" if self.thread else "")
