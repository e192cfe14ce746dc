"""Markdown, as models write it, as what Telegram takes: plain text and entities, in parts that are short enough."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from markdown_it import MarkdownIt
from markdown_it.token import Token
from telegram import MessageEntity

#: UTF-16 code units of a message and of a caption, and entities of either (https://core.telegram.org/bots/api,
#: https://core.telegram.org/api/entities).
LONGEST_TEXT = 4096
LONGEST_CAPTION = 1024
_MOST_ENTITIES = 100
_MARKS = {"strong": "bold", "em": "italic", "s": "strikethrough"}
#: What Telegram takes as a link's address; not `localhost`, and no path.
_URL = re.compile(r"https?://(?:[^\s/?#]+\.)[^\s/?#.]+\S*|(?:tg://|mailto:|tel:)\S+", re.IGNORECASE)
_LANGUAGE = re.compile(r"[A-Za-z0-9_+#.-]{1,40}")
# HTML stays text, and so does what CommonMark would take for a link's definition: nothing that was written is lost.
_PARSER = MarkdownIt("commonmark", {"html": False, "maxNesting": 100}).enable(["table", "strikethrough"])
_PARSER.disable("reference")


@dataclass(frozen=True, slots=True)
class Mark:
    """A stretch of a text, from a character to a character, and what it is."""

    kind: str
    start: int
    end: int
    url: str | None = None
    language: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One message's text, and how it looks."""

    text: str
    marks: tuple[Mark, ...] = ()

    def unmarked(self, longest: int | None = None) -> Part:
        """The text alone, with links' addresses after their words, unless that makes it longer than `longest`."""
        text = self.text
        for mark in sorted(self.marks, key=lambda one: one.end, reverse=True):
            if mark.url:
                text = f"{text[: mark.end]} ({mark.url}){text[mark.end :]}"
        return Part(text if longest is None or length(text) <= longest else self.text)

    def entities(self) -> list[MessageEntity]:
        """The marks as Telegram counts them, in UTF-16 code units."""
        units = _units(self.text)
        return [
            MessageEntity(
                mark.kind, units[mark.start], units[mark.end] - units[mark.start], url=mark.url, language=mark.language
            )
            for mark in self.marks
        ]


def parts_of(markdown: str, longest: int = LONGEST_TEXT) -> list[Part]:
    """The text as messages of at most `longest` UTF-16 code units; none where it is blank."""
    plain = whole(markdown).strip()
    try:
        part = _render(plain)
    except RecursionError:
        part = Part(plain)
    return list(_split(part if part.text else Part(plain), longest))


def whole(text: str) -> str:
    """The text without halves of characters, which cannot be stored or sent."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def length(text: str) -> int:
    """How long Telegram finds a text, in UTF-16 code units."""
    return len(text.encode("utf-16-le")) // 2


# --- rendering ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Output:
    """What has been rendered so far. `gap` are the line ends that come before whatever is next."""

    lines: list[str]
    text: list[str] = field(default_factory=list)
    at: int = 0
    marks: list[Mark] = field(default_factory=list)
    open: list[Mark] = field(default_factory=list)
    gap: int = 0
    indent: str = ""
    line: int = -1  # of the source, where the latest block began

    def write(self, text: str) -> None:
        if self.gap and self.at:
            text = "\n" * self.gap + self.indent + text
        self.gap = 0
        self.text.append(text)
        self.at += len(text)

    def begin(self, kind: str, url: str | None = None) -> None:
        self.write("")
        self.open.append(Mark(kind, self.at, self.at, url))

    def end(self) -> None:
        mark = replace(self.open.pop(), end=self.at)
        if mark.end > mark.start:
            self.marks.append(mark)

    def verbatim(self, text: str, kind: str, language: str | None = None) -> None:
        if text:
            self.write("")
            self.marks.append(Mark(kind, self.at, self.at + len(text), language=language))
            self.write(text)

    def block(self, token: Token) -> None:
        """Keep a blank line before a block where the source has one; a list's item and its first block are one."""
        assert token.map
        if (line := token.map[0]) > self.line >= 0:
            self.gap = 1 if self.lines[line - 1].strip("> \t") else 2
        self.line = line


def _render(markdown: str) -> Part:
    tokens = _PARSER.parse(markdown)
    out = _Output(markdown.splitlines())
    quotes = 0
    lists: list[str] = []  # the indents outside each list
    rows: list[list[str]] = []
    in_table = False
    for token in tokens:
        match token.type:
            case "heading_open":
                out.block(token)
                out.begin("bold")
            case "heading_close":
                out.end()
                out.gap = 1
            case "paragraph_open":
                out.block(token)
            case "paragraph_close":
                out.gap = 1
            case "bullet_list_open" | "ordered_list_open":
                lists.append(out.indent)
            case "bullet_list_close" | "ordered_list_close":
                out.indent = lists.pop()
            case "list_item_open":
                out.indent = lists[-1]
                out.block(token)
                label = f"{token.info}{token.markup} " if token.info else "• "
                out.write(label)
                out.indent = lists[-1] + " " * (len(label) if token.info else 2)
            case "list_item_close":
                out.gap = 1
            case "blockquote_open":
                out.block(token)
                quotes += 1
                if quotes == 1:  # Telegram's do not nest
                    out.begin("blockquote")
            case "blockquote_close":
                quotes -= 1
                if quotes == 0:
                    out.end()
                out.gap = 1
            case "fence" | "code_block":
                out.block(token)
                language, _, more = token.info.strip().partition(" ")
                if not _LANGUAGE.fullmatch(language):
                    language, more = "", token.info.strip()
                if not token.content.strip("\n"):
                    more = token.info.strip()
                if more:
                    out.write(more)
                    out.gap = 1
                out.verbatim(token.content.strip("\n"), "pre", language or None)
                out.gap = 1
            case "hr":
                out.block(token)
                out.write("———")
                out.gap = 1
            case "table_open":
                out.block(token)
                in_table, rows = True, []
            case "tr_open":
                rows.append([])
            case "table_close":
                out.verbatim(_table(rows), "pre")
                out.gap, in_table = 1, False
            case "inline" if in_table:
                rows[-1].append(_cell(token))
            case "inline":
                _inline(token.children or [], out)
    return Part("".join(out.text), tuple(sorted(out.marks, key=lambda mark: (mark.start, -mark.end))))


def _inline(tokens: Sequence[Token], out: _Output) -> None:
    for token in tokens:
        kind = token.tag if token.type.endswith(("_open", "_close")) else ""
        match token.type:
            case "softbreak" | "hardbreak":
                out.write(f"\n{out.indent}")
            case "code_inline":
                out.verbatim(token.content, "code")
            case "link_open":
                out.begin("text_link", str(token.attrGet("href")))
            case "link_close":
                _end_link(out)
            case "image":
                out.begin("text_link", str(token.attrGet("src")))
                out.write(token.content)
                _end_link(out)
            case _ if token.nesting == 1 and kind in _MARKS:
                out.begin(_MARKS[kind])
            case _ if token.nesting == -1 and kind in _MARKS:
                out.end()
            case _:
                out.write(token.content)


def _end_link(out: _Output) -> None:
    """A link that Telegram takes becomes one, any other is written out."""
    link = out.open[-1]
    label = "".join(out.text)[link.start :]
    if label and _URL.fullmatch(link.url or ""):
        if label == link.url:  # Telegram finds it by itself
            out.open.pop()
        else:
            out.end()
        return
    out.open.pop()
    out.write(f" ({link.url})" if label and link.url else link.url or "")


def _cell(token: Token) -> str:
    """A table's cell as plain text, for it stands in a block where nothing is marked."""
    out = _Output([])
    _inline(token.children or [], out)
    return Part("".join(out.text), tuple(out.marks)).unmarked().text


def _table(rows: list[list[str]]) -> str:
    """Columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-+-".join("-" * width for width in widths))
    return "\n".join(lines)


# --- splitting ----------------------------------------------------------------------------------------------


def _units(text: str) -> list[int]:
    """How many UTF-16 code units come before each character, and before the end."""
    return [0, *accumulate(2 if one > "\uffff" else 1 for one in text)]


def _split(part: Part, longest: int) -> Iterator[Part]:
    """Parts of at most `longest` code units, cut between paragraphs, lines or words where that is possible."""
    units = _units(part.text)
    start = 0
    while start < len(part.text):
        end = bisect_right(units, units[start] + longest) - 1
        here = [mark for mark in part.marks if mark.end > start]
        if len(here) > _MOST_ENTITIES and here[_MOST_ENTITIES].start > start:
            end = min(end, here[_MOST_ENTITIES].start)
        if end < len(part.text):
            end = _cut(part.text, start, end)
        marks = tuple(
            replace(mark, start=max(mark.start, start) - start, end=min(mark.end, end) - start)
            for mark in here
            if mark.start < end
        )
        if part.text[start:end].strip():
            yield Part(part.text[start:end], marks)
        start = end


def _cut(text: str, start: int, end: int) -> int:
    for between in ("\n\n", "\n", " "):
        found = text.rfind(between, start + (end - start) // 2, end)
        if found > start:
            return found + len(between)
    return end
