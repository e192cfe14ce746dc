"""What models write looks in Telegram as it was meant, and nothing of it is lost."""

from __future__ import annotations

import re
import time
from collections import Counter
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pynchy_plugin_telegram.markdown import LONGEST_TEXT, Part, length, parts_of


def _one(markdown: str) -> Part:
    (part,) = parts_of(markdown)
    return part


def _marked(markdown: str) -> list[tuple[str, str]]:
    part = _one(markdown)
    return [(mark.kind, part.text[mark.start : mark.end]) for mark in part.marks]


@pytest.mark.parametrize(
    ("markdown", "text", "marks"),
    [
        ("# Title\nand text", "Title\nand text", [("bold", "Title")]),
        ("**b** *i* _i_ ~~s~~ `c`", "b i i s c", ["bold", "italic", "italic", "strikethrough", "code"]),
        ("***both***", "both", ["bold", "italic"]),
        ("- a\n- b\n  - c\n    more\n- d", "• a\n• b\n  • c\n    more\n• d", []),
        ("Steps:\n1. a\n2. b\n\n   more\n10) c", "Steps:\n1. a\n2. b\n\n   more\n10) c", []),
        ("- [ ] open\n- [x] done", "• [ ] open\n• [x] done", []),
        ("> said\n> > before\n\nanswer", "said\nbefore\n\nanswer", [("blockquote", "said\nbefore")]),
        ("```python\n  if x:\n\n    y\n```", "  if x:\n\n    y", [("pre", "  if x:\n\n    y")]),
        ("| A | B |\n|---|---|\n| 1 | **22** |", "A | B\n--+---\n1 | 22", [("pre", "A | B\n--+---\n1 | 22")]),
        ("[here](https://a.example/x_(y))", "here", [("text_link", "here")]),
        ("![a cat](https://a.example/c.png)", "a cat", [("text_link", "a cat")]),
        ("see [that](notes.md)", "see that (notes.md)", []),
        ("[**app**](http://localhost:3000/x)", "app (http://localhost:3000/x)", [("bold", "app")]),
        ("| A |\n|---|\n| [b](http://c.d) |", "A\n" + "-" * 14 + "\nb (http://c.d)", ["pre"]),
        ("<https://a.example>", "https://a.example", []),
        ("a\n\n---\n\nb", "a\n\n———\n\nb", []),
        ("a  \nb\\\nc\nd", "a\nb\nc\nd", []),
    ],
)
def test_it_looks_as_it_was_meant(markdown: str, text: str, marks: list[tuple[str, str] | str]) -> None:
    assert _one(markdown).text == text
    assert [one if isinstance(marks[0], tuple) else one[0] for one in _marked(markdown)] == marks


@pytest.mark.parametrize(
    "text",
    [
        "Replace <name> in List<String>, <b>not bold</b>",
        "<div>\nhtml\n</div>",
        "snake_case and __init__py, $5 and $10, a || b || c, ~5 ~6",
        "[1]: https://a.example/source\n\nThat is where it says so [1].",
        "#hashtag and 100% & &c",
        "f(x) = x^2; [not a link] (at all); [bad](javascript:alert(1))",
    ],
)
def test_what_is_no_markup_stays_as_it_is(text: str) -> None:
    assert _one(text) == Part(text)


def test_code_says_its_language_and_links_their_address() -> None:
    marks = _one("```c++ title=x\nint x;\n```\n[a](https://b.example)").marks
    assert [(one.language, one.url) for one in marks] == [("c++", None), (None, "https://b.example")]


def test_what_is_said_of_a_block_of_code_comes_before_it() -> None:
    assert _one("```python title=a b\nx\n```").text == "title=a b\nx"
    assert _one("- ```word").text == "• word"


def test_a_text_that_is_markup_alone_is_sent_as_it_was_written() -> None:
    assert _one("```\n```").text == "```\n```"
    assert parts_of("  \n\t ") == []


def test_a_cut_falls_between_paragraphs_lines_or_words() -> None:
    paragraphs = "\n\n".join("word " * 100 for _ in range(30)).strip()
    assert all(part.text.rstrip().endswith("word") for part in parts_of(paragraphs, 900))
    assert all(part.text.startswith("word") for part in parts_of(paragraphs, 900))


def test_telegram_counts_what_python_counts_once_twice() -> None:
    assert [length(part.text) for part in parts_of("😀" * 35, 21)] == [20, 20, 20, 10]
    assert [(one.offset, one.length) for one in _one("😀 **😀a**").entities()] == [(3, 3)]


def test_what_is_marked_stays_marked_on_both_sides_of_a_cut() -> None:
    parts = parts_of("**" + "bold " * 30 + "end**\n\nplain", 100)
    assert [one.kind for one in parts[0].marks] == [one.kind for one in parts[1].marks] == ["bold"]


def test_no_message_has_more_marks_than_telegram_looks_at() -> None:
    parts = parts_of(" ".join(f"[{number}](https://a.example/{number})" for number in range(250)))
    assert sum(len(part.marks) for part in parts) == 250
    assert max(len(part.marks) for part in parts) <= 100


_PIECES = st.sampled_from(
    [
        *("*", "**", "_", "`", "```", "> ", "- ", "1. ", "# ", "|", "|---|", "[", "](", ")", "![", "\\", "~~", "<"),
        *("word", "x" * 50, "https://a.b/c", "&amp;", "😀", "👩‍👩‍👧", "é", "\u202e", "\0", "\ud800", " ", "\n", "\n\n"),
        *("    ", "\t", ">"),
    ]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_PIECES, max_size=80).map("".join) | st.text(max_size=200), st.integers(20, 300))
def test_any_text_becomes_messages_that_telegram_takes_and_loses_no_word(text: str, longest: int) -> None:
    parts = parts_of(text, longest)
    for part in parts:
        assert part.text.strip()
        assert length(part.text) <= longest
        for entity in part.entities():
            assert entity.offset >= 0
            assert entity.length > 0
            assert entity.offset + entity.length <= length(part.text)
    # A block of code says its language beside its text; in an address some characters are written as `%F0`.
    told = "".join(part.text + "".join(mark.language or "" for mark in part.marks) for part in parts)
    assert Counter(re.findall("[wx😀é]", text)) - Counter(unquote(told)) == Counter()


@pytest.mark.parametrize(
    "text",
    ["> " * 2048, "[" * 4096, "*a " * 1365, "- " * 2048, "`" * 4095, "|a" * 2000 + "\n" + "|-" * 1000, "![](" * 1000],
)
def test_a_text_that_was_made_to_be_slow_is_not(text: str) -> None:
    begun = time.process_time()
    assert all(length(part.text) <= LONGEST_TEXT for part in parts_of(text))
    assert time.process_time() - begun < 5
