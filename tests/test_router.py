"""Text in, text out: nothing a person writes is lost or taken for markup, and what is internal stays."""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import cast
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pynchy.channels.terminal import TerminalChannel
from pynchy.messages import StoredMessage
from pynchy.router import format_prompt, next_part, visible_text
from pynchy.testing.scripted_model import unwrap
from pynchy.types import Channel

BERLIN = ZoneInfo("Europe/Berlin")
NOON = datetime(2024, 5, 1, 12, 0, 0, 987654, tzinfo=UTC)

_MARKUP = st.sampled_from(
    [*"<>&\"'\n\t", "&amp;", "&lt", "&#10;", "]]>", "<!--", "<message>", "</message>", "<messages>", "</messages>"]
)


def with_markup(characters: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Texts of these characters, and of what means something in a prompt."""
    return st.lists(_MARKUP | st.text(characters, max_size=5), max_size=8).map("".join)


#: Every character that UTF-8 has; and those among them that XML 1.0 can have in a text (Char, section 2.2).
any_text = with_markup(st.characters(codec="utf-8"))
xml_text = with_markup(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"))


def stored(content: str, sender: str = "Ada") -> StoredMessage:
    return StoredMessage(1, sender, content, NOON)


def test_a_prompt_names_the_sender_and_the_local_time_of_each_message() -> None:
    assert format_prompt([stored("hello"), stored("and <b>", 'B & "o"')], BERLIN) == (
        "<messages>\n"
        '<message sender="Ada" time="2024-05-01T14:00:00+02:00">hello</message>\n'
        '<message sender=\'B &amp; "o"\' time="2024-05-01T14:00:00+02:00">and &lt;b&gt;</message>\n'
        "</messages>"
    )


@given(st.lists(st.tuples(any_text, any_text), min_size=1, max_size=4))
def test_whatever_is_written_is_what_arrives(messages: list[tuple[str, str]]) -> None:
    prompt = format_prompt([stored(content, sender) for content, sender in messages], BERLIN)
    assert unwrap(prompt) == "\n".join(content.strip() for content, _ in messages)


@given(st.lists(st.tuples(xml_text, xml_text), min_size=1, max_size=4))
def test_a_prompt_is_xml_with_exactly_the_messages_in_it(messages: list[tuple[str, str]]) -> None:
    root = ElementTree.fromstring(format_prompt([stored(content, sender) for content, sender in messages], BERLIN))
    assert root.tag == "messages"
    assert [(child.tag, child.text or "", child.attrib["sender"], len(child)) for child in root] == [
        ("message", content, sender, 0) for content, sender in messages
    ]


@given(any_text)
def test_no_name_can_leave_its_attribute_or_its_line(sender: str) -> None:
    line = format_prompt([stored("text", sender)], BERLIN).split("\n")[1]
    head, _, rest = line.rpartition(" time=")
    assert rest.endswith(">text</message>")
    quoted = head.removeprefix("<message sender=")
    assert quoted[0] == quoted[-1]
    assert quoted[0] in "\"'"
    assert not set(quoted[1:-1]) & {"<", ">", quoted[0], "\n", "\r", "\t"}
    assert html.unescape(quoted[1:-1]) == sender


@pytest.mark.parametrize(
    ("answer", "visible"),
    [
        (None, ""),
        ("", ""),
        ("  hello\n", "hello"),
        ("<internal>hm</internal>hello", "hello"),
        ("a <internal>x</internal>b<internal>y</internal> c", "a b c"),
        ("a <internal>\nseveral\nlines\n</internal>\nb", "a \nb"),
        ("<INTERNAL>loud</Internal>b", "b"),
        ("a <internal>never closed", "a"),
        ("a <internal>x</internal> b <internal>open\nto the end", "a  b"),
        ("<internal></internal>", ""),
        ("<internal>only this</internal>\n", ""),
        ("1 < 2 and <internals> is another word", "1 < 2 and <internals> is another word"),
        ("&lt;internal&gt;talked about&lt;/internal&gt;", "&lt;internal&gt;talked about&lt;/internal&gt;"),
    ],
)
def test_internal_blocks_are_left_out(answer: str | None, visible: str) -> None:
    assert visible_text(answer) == visible


@given(st.lists(st.sampled_from(["<internal>", "</internal>", "<INTERNAL>", "secret", "\n", " "]), max_size=12))
def test_what_follows_an_opened_block_is_not_seen_before_it_is_closed(parts: list[str]) -> None:
    opened, seen = False, ""
    for part in parts:
        if opened:
            opened = part != "</internal>"
        elif part.lower() == "<internal>":
            opened = True
        else:
            seen += part
    assert visible_text("".join(parts)) == seen.strip()


def test_an_endless_row_of_opened_blocks_takes_no_time() -> None:
    assert visible_text("seen" + "<internal>" * 200_000) == "seen"
    assert visible_text("<internal" * 200_000) == "<internal" * 200_000


@dataclass
class Silent:
    """A channel that says nothing about prefixes."""

    name: str = "silent"


@dataclass
class Saying(Silent):
    """A channel that does."""

    prefix_assistant_name: bool = True


def test_a_text_goes_out_under_the_assistants_name_unless_the_channel_says_otherwise() -> None:
    def whole(channel: object, text: str, name: str) -> str:
        part, sent = next_part(cast("Channel", channel), text, 0, name)
        assert sent == len(text)
        return part

    assert whole(Silent(), "hi", "Pynchy") == "Pynchy: hi"
    assert whole(Saying(prefix_assistant_name=True), "hi", "Ada's") == "Ada's: hi"
    assert whole(Saying(prefix_assistant_name=False), "hi", "Pynchy") == "hi"
    assert whole(TerminalChannel(), "hi", "Pynchy") == "hi"


@dataclass
class Short(Silent):
    """A channel that takes texts of a length only."""

    max_message_length: int = 40


def parts(channel: object, text: str) -> list[str]:
    """Everything that is sent of a text, part by part."""
    found, sent = [], 0
    while sent < len(text):
        part, sent = next_part(cast("Channel", channel), text, sent, "Pynchy")
        found.append(part)
    return found


def test_a_long_text_is_split_at_paragraphs_lines_and_words_and_named_once() -> None:
    assert parts(Short(), "One paragraph is here.\n\nAnd another one.") == [
        "Pynchy: One paragraph is here.",
        "And another one.",
    ]
    assert parts(Short(), "First line of a text.\nSecond line of it.") == [
        "Pynchy: First line of a text.",
        "Second line of it.",
    ]
    assert parts(Short(), "A sentence that goes on and on, and on, and on.") == [
        "Pynchy: A sentence that goes on and on,",
        "and on, and on.",
    ]


@given(st.text(min_size=1, max_size=300), st.integers(9, 60))
def test_no_part_is_longer_than_a_channel_takes_and_nothing_but_white_space_is_lost(text: str, longest: int) -> None:
    found = parts(Short(max_message_length=longest), text)
    assert all(len(part) <= longest for part in found)
    assert "".join("".join(found).split()) == "".join(f"Pynchy: {text}".split())


def parts_of(text: str, longest: int) -> list[str]:
    channel = cast("Channel", SimpleNamespace(prefix_assistant_name=False, max_message_length=longest))
    parts, sent = [], 0
    while sent < len(text):
        part, sent = next_part(channel, text, sent, "Pynchy")
        parts.append(part)
    return parts


def test_a_block_of_code_that_is_split_is_closed_and_opened_again() -> None:
    code = "".join(f"    line {number}\n" for number in range(30))
    parts = parts_of(f"Look:\n\n```python\n{code}```\n\nThat is all.", 200)
    assert len(parts) > 2
    assert all(len(part) <= 200 for part in parts)
    assert parts[0].startswith("Look:\n\n```python\n    line 0\n")
    assert all(part.startswith("```python\n    line ") for part in parts[1:-1])
    assert all(part.endswith("\n```") for part in parts[:-1])
    assert parts[-1].endswith("That is all.")
    inside = [line for part in parts for line in part.splitlines() if line.startswith("    line ")]
    assert inside == code.splitlines()


@pytest.mark.parametrize("fence", ["```", "````", "~~~", "   ```"])
def test_only_what_closes_a_block_does(fence: str) -> None:
    marks = fence.strip()
    text = f"{fence}\n``\n{marks[:-1]}x\n{'word ' * 80}\n{fence}\n{'after ' * 80}"
    parts = parts_of(text, 100)
    first = next(index for index, part in enumerate(parts) if "after" in part)
    assert all(part.startswith(marks) or index == 0 for index, part in enumerate(parts[:first]))
    assert not any(marks in part for part in parts[first + 1 :])


@given(
    st.lists(
        st.sampled_from(["```\n", "```++\n", "\n```\n", "~~~\n", "word ", "\n", "    x\n", "é🦔" * 20]), max_size=60
    ),
    st.integers(1, 80),
)
@example(["```\n", "é🦔" * 20, "```++\n", "```\n"], 52)  # the word that a block begins with is itself split
def test_every_text_goes_out_whole_and_in_parts_that_are_short_enough(pieces: list[str], longest: int) -> None:
    text = "".join(pieces)
    parts = parts_of(text, longest)
    assert all(0 < len(part) <= longest for part in parts)
    letters = re.sub(r"[\s`~+]", "", text)
    assert re.sub(r"[\s`~+]", "", "".join(parts)) == letters


def test_what_a_message_replies_to_and_puts_right_is_named() -> None:
    message = replace(
        stored("and <now>?"), message_id='5"7', reply_to="51", quote="</quote>& that", edits="56", asks=False
    )
    assert format_prompt([message], BERLIN).splitlines()[1] == (
        '<message sender="Ada" time="2024-05-01T14:00:00+02:00" id=\'5"7\' reply_to="51" edits="56" context="yes">'
        "<quote>&lt;/quote&gt;&amp; that</quote>and &lt;now&gt;?</message>"
    )
