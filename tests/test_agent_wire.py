"""The host's end of an agent's wire, with the runner's at the other."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import pytest
from support import until
from wall import Listener, wall

from agent_runner.host_link import HostLink, HostRefused
from pynchy import wire
from pynchy.types import Attachment
from pynchy.untrusted import printable_line
from pynchy.wire import MAX_FILE, Frame

pytestmark = pytest.mark.anyio

File = tuple[str, Any, bytes]


class Post:
    """A host that takes files, and answers a tool's call at once."""

    def __init__(self) -> None:
        self.files: list[File] = []
        self.problem: Exception | None = None

    async def call_tool(self, plugin: str | None, name: str, arguments: Any, file: Attachment | None = None) -> str:
        if file is None:
            return "at once"
        if self.problem:
            raise self.problem
        assert (plugin, name) == ("post", "send")
        self.files.append((file.name, arguments, file.data or b""))
        return f"{file.name} is on its way"


async def hand_over(link: HostLink, data: bytes, file: Any, arguments: Any = "{}") -> Any:
    return await link.hand_over(data, name="send", plugin="post", file=file, arguments=arguments)


async def test_a_file_of_the_largest_size_crosses_and_a_larger_one_is_refused() -> None:
    post = Post()
    data = os.urandom(1_000_000) * 45
    assert len(data) == MAX_FILE
    async with wall(post) as (link, _):
        assert await hand_over(link, data, "holiday.mp4", '{"caption": "look"}') == ("holiday.mp4 is on its way")
        with pytest.raises(HostRefused, match="larger than the 45 MB that can be sent"):
            await hand_over(link, data + b"x", "holiday.mp4")
    assert post.files == [("holiday.mp4", {"caption": "look"}, data)]


async def test_files_go_one_after_the_other_and_hold_up_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 3_000_000
    monkeypatch.setattr(wire, "MAX_OPEN_BYTES", 2 * size)  # together they would be more than may be under way
    post = Post()
    async with wall(post) as (link, _):
        sending = [asyncio.create_task(hand_over(link, bytes(size), f"{number}")) for number in range(5)]
        assert await link.request("request", {}, name="ring") == "at once"
        assert len(post.files) < 5
        await asyncio.gather(*sending)
    assert [name for name, _, _ in post.files] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("../../etc/passwd", "passwd"),
        ("a\nb\x1b[2J\u202e.txt", "a b [2J .txt"),
        ("half \ud83d", "half"),
        *((odd, "file") for odd in ("", "..", ".", "a/", "\n", None, 7, ["x"])),
        ("x" * 5000, "x" * 200),
    ],
)
async def test_a_files_name_is_one_printable_line_without_a_folder(given: Any, name: str) -> None:
    post = Post()
    async with wall(post) as (link, _):
        await hand_over(link, b"x", given)
    assert post.files == [(name, {}, b"x")]


@pytest.mark.parametrize("arguments", ["", "{", None, 7, ["x"], "9" * 5000, "[" * 50_000])
async def test_arguments_that_are_none_are_refused_and_the_wire_goes_on(arguments: Any) -> None:
    post = Post()
    async with wall(post) as (link, _):
        with pytest.raises(HostRefused):
            await hand_over(link, b"x", "x", arguments)
        assert await hand_over(link, b"x", "x", json.dumps([1])) == "x is on its way"
    assert post.files == [("x", [1], b"x")]


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (PermissionError("not to that chat"), "not to that chat"),
        (ValueError("its channel takes no files"), "its channel takes no files"),
        (RuntimeError("secret"), "the host could not do it"),
    ],
)
async def test_why_a_file_is_not_sent_is_said_to_the_agent(problem: Exception, words: str) -> None:
    post = Post()
    post.problem = problem
    async with wall(post) as (link, _):
        with pytest.raises(HostRefused, match=words):
            await hand_over(link, b"x", "x")


async def test_what_an_agent_does_is_heard_in_order_and_costs_no_task() -> None:
    listener = Listener()
    async with wall(Post(), listener) as (link, host):
        for fields in ({"tool": "Read", "detail": "a.txt"}, {"tool": 7}, {"tool": "x" * 60_000, "detail": ["y"]}, {}):
            link.send(Frame("doing", fields))
        await until(lambda: len(listener.doings) == 4)
        assert not host._tasks
    assert listener.doings == [("Read", "a.txt"), ("", ""), ("x" * 400, ""), ("", "")]
    assert listener.broken == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain", "plain"),
        ("  two\r\n\t lines\u2028 ", "two lines"),
        ("\x1b]0;title\x07\u202ehidden\u200b", "]0;title hidden"),
        ("naïve 🦔", "naïve 🦔"),
        ("x" * 100, "x" * 10),
        ("", ""),
    ],
)
def test_an_untrusted_text_becomes_one_line_of_printable_characters(text: str, line: str) -> None:
    assert printable_line(text, 20 if len(text) < 50 else 10) == line
