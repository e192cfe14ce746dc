"""Claude's Markdown as WhatsApp shows it."""

import pytest

from pynchy_plugin_whatsapp.formatting import to_whatsapp


@pytest.mark.parametrize(
    ("markdown", "shown"),
    [
        ("**bold** and *italic* and _italic_ and ~~gone~~", "*bold* and _italic_ and _italic_ and ~gone~"),
        ("***both*** and __bold__", "*_both_* and *bold*"),
        ("**bold with *italic* in it**", "*bold with _italic_ in it*"),
        ("# Title\n## **Part** two ##", "*Title*\n*Part two*"),
        ("* one\n+ two\n  * three\n- four\n1. five", "- one\n- two\n  - three\n- four\n1. five"),
        ("- [ ] to do\n- [x] done", "- ☐ to do\n- ☑ done"),
        ("[the docs](https://example.org/a_b_c) are there", "the docs (https://example.org/a_b_c) are there"),
        ("[https://example.org](https://example.org)", "https://example.org"),
        ("![a cat](https://example.org/cat.png)", "a cat (https://example.org/cat.png)"),
        ("<https://example.org/x*y*z>", "https://example.org/x*y*z"),
        ("`**code**` stays, **see `x_y_z`**", "`**code**` stays, *see `x_y_z`*"),
        ("``a ` b``", "```a ` b```"),
        ("```python\n# no **title**\n* x\n```\n**b**", "```\n# no **title**\n* x\n```\n*b*"),
        ("~~~\n*x*\n~~~", "```\n*x*\n```"),
        ("```\nnever closed **x**", "```\nnever closed **x**\n```"),
        ("> **quoted**", "> *quoted*"),
        ("---", "———"),
        ("| a | b |\n|---|---|\n| **1** | 2 |\n\nafter", "```\n| a | b |\n|---|---|\n| **1** | 2 |\n```\n\nafter"),
        (r"2 \* 3 \_ 4", "2 * 3 _ 4"),
    ],
)
def test_markdown_is_shown_in_whatsapps_marks(markdown: str, shown: str) -> None:
    assert to_whatsapp(markdown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "2 * 3 * 4 = 24",
        "snake_case_name and __init__.py",
        "5 < 6 & 7 > 3, 100% {0} %s",
        "https://example.org/a_b_c?x=*1*&y=~2~",
        "  indented\n\n\n  text  ",
        "a #hashtag, and ** alone",
        "e\u0301 👩‍👩‍👧‍👦 שלום",
        "",
    ],
)
def test_what_is_no_markdown_stays_as_it_is(text: str) -> None:
    assert to_whatsapp(text) == text


@pytest.mark.parametrize("marks", ["*", "[", "`", "**a", "[a](", "_a*", "~~", "\\`", "|-|\n"])
def test_odd_marks_do_not_hold_it_up(marks: str) -> None:
    to_whatsapp(marks * (4000 // len(marks)))


def test_a_forged_placeholder_is_dropped() -> None:
    assert to_whatsapp("`code` \x000\x00 \x01x\x01") == "`code` 0 x"
