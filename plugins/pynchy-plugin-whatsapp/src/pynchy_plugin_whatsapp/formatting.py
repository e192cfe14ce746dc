"""Markdown in WhatsApp's own marks: *bold*, _italic_, ~struck~, code as it is, headings bold, links in words."""

from __future__ import annotations

import re

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})[^`]*$")
_HEADING = re.compile(r" {0,3}#{1,6}\s+(.*?)(?:\s+#+)?\s*$")
_RULE = re.compile(r" {0,3}(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,})$")
_BULLET = re.compile(r"(\s*)[*+](\s+)(?=\S)")
_TASK = re.compile(r"(\s*)[-*+]\s+\[([ xX])\]\s+")
_TABLE_LINE = re.compile(r"\s*\|[\s:|-]*-[\s:|-]*\|\s*$")

#: Taken out before emphasis is looked for, and put back after it.
_CODE = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)")
_ESCAPED = re.compile(r"\\([\\`*_{}\[\]()#+.!~>|-])")
_LINK = re.compile(r"!?\[([^\[\]]*)\]\(<?([^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*)>?(?:\s+\"[^\"]*\")?\)")
_BARE_LINK = re.compile(r"<(https?://[^\s<>]+|mailto:[^\s<>]+)>|(https?://[^\s<>]+)")
_KEPT = re.compile("\x00(\\d+)\x00")

# \x01 stands for the asterisk of bold text, which italics must not take for theirs.
_EMPHASIS = (
    (re.compile(r"\*\*\*(?=\S)(.+?)(?<=\S)\*\*\*"), "\x01_\\1_\x01"),
    (re.compile(r"\*\*(?=\S)(.+?)(?<=\S)\*\*"), "\x01\\1\x01"),
    (re.compile(r"(?<!\w)__(?=[^\s_])(.+?)(?<=[^\s_])__(?!\w|\.\w)"), "\x01\\1\x01"),
    (re.compile(r"(?<![\w*])\*(?=[^\s*])(.+?)(?<=[^\s*])\*(?![\w*])"), r"_\1_"),
    (re.compile(r"~~(?=\S)(.+?)(?<=\S)~~"), r"~\1~"),
)


def to_whatsapp(text: str) -> str:
    """The same text with WhatsApp's marks; what is no Markdown stays as it is."""
    lines = text.translate({0: None, 1: None}).split("\n")
    done: list[str] = []
    fence = ""
    table = False
    for number, line in enumerate(lines):
        if fence:
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
                line = "```"
            done.append(line)
            continue
        if opening := _FENCE.match(line):
            fence = opening[1]
            done.append("```")
            continue
        if not table and "|" in line and number + 1 < len(lines) and _TABLE_LINE.match(lines[number + 1]):
            table = True
            done.append("```")
        elif table and "|" not in line:
            table = False
            done.append("```")
        done.append(line if table else _line(line))
    if fence or table:
        done.append("```")
    return "\n".join(done)


def _line(line: str) -> str:
    if _RULE.match(line):
        return "———"
    if heading := _HEADING.match(line):
        words = _spans(heading[1]).replace("*", "")
        return f"*{words}*" if words.strip() else ""
    if task := _TASK.match(line):
        return f"{task[1]}- {'☐' if task[2] == ' ' else '☑'} {_spans(line[task.end() :])}"
    if bullet := _BULLET.match(line):
        return f"{bullet[1]}-{bullet[2]}{_spans(line[bullet.end() :])}"
    return _spans(line)


def _spans(line: str) -> str:
    kept: list[str] = []

    def keep(text: str) -> str:
        kept.append(text)
        return f"\x00{len(kept) - 1}\x00"

    line = _CODE.sub(lambda found: keep(f"`{found[2]}`" if "`" not in found[2] else f"```{found[2].strip()}```"), line)
    line = _ESCAPED.sub(lambda found: keep(found[1]), line)
    line = _LINK.sub(lambda found: _link(found[1], keep(found[2]), found[2]), line)
    line = _BARE_LINK.sub(lambda found: keep(found[1] or found[2]), line)
    for pattern, marked in _EMPHASIS:
        line = pattern.sub(marked, line)
    line = line.replace("\x01", "*")
    for _ in range(3):  # an escape inside of code or of a link is kept within what is kept
        line = _KEPT.sub(lambda found: kept[int(found[1])], line)
    return line


def _link(words: str, target: str, address: str) -> str:
    if not address:
        return words
    if not words.strip() or words.strip() == address:
        return target
    return f"{words} ({target})"
