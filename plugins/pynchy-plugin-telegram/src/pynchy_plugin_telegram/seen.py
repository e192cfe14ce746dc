"""Which messages there are in each chat, as far as this process knows."""

from __future__ import annotations

from collections import OrderedDict, deque

from pynchy_plugin_telegram.addresses import Address

_CHATS = 1000
_MESSAGES = 1000  # of a chat


class Seen:
    """The latest messages of the latest chats, by their numbers."""

    def __init__(self) -> None:
        self._chats: OrderedDict[Address, deque[int]] = OrderedDict()
        self._newest: dict[int, int] = {}

    def note(self, where: Address, number: int) -> None:
        """There is this message."""
        numbers = self._chats.setdefault(where, deque(maxlen=_MESSAGES))
        self._chats.move_to_end(where)
        if len(self._chats) > _CHATS:
            self._chats.popitem(last=False)
        numbers.append(number)
        box = _box(where.chat)
        self._newest[box] = max(number, self._newest.get(box, 0))

    def knows(self, where: Address, number: int) -> bool:
        """Whether a message of this number is known to be there."""
        return number in self._chats.get(where, ())

    def knows_anywhere(self, chat: int, number: int) -> bool:
        """Whether a message of this number is known to be in the chat, in any of its topics."""
        return any(where.chat == chat and number in numbers for where, numbers in self._chats.items())

    def newest(self, where: Address) -> int | None:
        """The number after which the next message's in this chat will come; None where nothing is known."""
        return self._newest.get(_box(where.chat))


def _box(chat: int) -> int:
    """What counts messages for a chat: a supergroup or channel does itself, the bot does for all its others."""
    return chat if str(chat).startswith("-100") else 0
