"""Words of agents, plugins and chats, as they may stand in a line of ours."""

from __future__ import annotations


def printable(text: str, instead: str = " ") -> str:
    """The text with this in the place of each character that cannot be printed."""
    return "".join(one if one.isprintable() else instead for one in text)


def printable_line(text: str, most: int) -> str:
    """The text as one line of at most so many printable characters."""
    return " ".join(printable(text[: 4 * most]).split())[:most]
