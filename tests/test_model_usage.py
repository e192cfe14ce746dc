"""What a model's answer took: the same in whatever pieces it comes, and never more than what came."""

from __future__ import annotations

import json
import random
import tracemalloc
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pynchy.model_usage import UNKNOWN_MODEL, Figures, UsageReader

MODEL = "claude-sonnet-4-5-20250929"
BEGUN: dict[str, Any] = {
    "input_tokens": 7,
    "output_tokens": 1,
    "cache_read_input_tokens": 1000,
    "cache_creation_input_tokens": 50,
    "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 30},
    "service_tier": "standard",
}
WHOLE = Figures(MODEL, 7, 321, 1000, 50, 30)


def sse(*events: dict[str, Any]) -> bytes:
    return b"".join(b"event: %s\ndata: %s\n\n" % (str(e["type"]).encode(), json.dumps(e).encode()) for e in events)


def start(usage: Any = BEGUN, model: Any = MODEL) -> dict[str, Any]:
    return {"type": "message_start", "message": {"type": "message", "model": model, "content": [], "usage": usage}}


def says(text: str, kind: str = "text") -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": f"{kind}_delta", kind: text}}


def end(**usage: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}


STREAM = sse(
    start(),
    {"type": "ping"},
    says('data: {"type": "message_start"}\r\nünd'),
    end(output_tokens=321),
    {"type": "message_stop"},
)


def read(data: bytes, content_type: str = "text/event-stream; charset=utf-8") -> Figures | None:
    reader = UsageReader(content_type)
    reader.feed(data)
    return reader.figures()


def test_a_stream_has_figures_at_its_beginning_and_the_last_at_its_end() -> None:
    assert read(STREAM) == WHOLE


@pytest.mark.parametrize("line_end", [b"\r\n", b"\r"])
def test_every_line_end_of_the_standard_ends_a_line(line_end: bytes) -> None:
    assert read(STREAM.replace(b"\n", line_end)) == WHOLE


def test_a_body_of_json_has_them_too() -> None:
    body = json.dumps({"model": MODEL, "content": [], "usage": {**BEGUN, "output_tokens": 321}}).encode()
    assert read(body, "application/json") == WHOLE
    assert read(json.dumps(json.loads(body), indent=2).encode(), "application/json; charset=utf-8") == WHOLE


@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_the_pieces_in_which_it_comes_make_no_difference(cuts: list[int]) -> None:
    reader = UsageReader("text/event-stream")
    places = sorted({0, *cuts, len(STREAM)})
    for begin, stop in pairwise(places):
        reader.feed(STREAM[begin:stop])
    assert reader.figures() == WHOLE


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(2**70),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["type", "message", "usage", "model", "delta", "text", "iterations", "output_tokens", "speed"]
            )
            | st.sampled_from(["input_tokens", "cache_creation", "server_tool_use", "ephemeral_1h_input_tokens"]),
            inner | st.sampled_from(["message_start", "message_delta", "content_block_delta"]),
            max_size=6,
        )
    ),
    max_leaves=20,
)
_LINES = st.binary(max_size=80) | _JSON.map(lambda value: b"data: " + json.dumps(value).encode() + b"\n")


@given(st.lists(_LINES, max_size=10), st.sampled_from(["application/json", "text/event-stream", ""]))
def test_no_bytes_make_it_raise_and_no_figure_is_out_of_range(pieces: list[bytes], content_type: str) -> None:
    reader = UsageReader(content_type)
    for piece in pieces:
        reader.feed(piece)
    if figures := reader.figures():
        counts = (figures.input_tokens, figures.output_tokens, figures.cache_read_tokens, figures.web_searches)
        assert all(0 <= count < 2**42 for count in counts)
        assert 0 <= figures.cache_write_1h_tokens <= figures.cache_write_tokens < 2**42


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("text", [b'{"usage":' + b"[" * 400_000, b'{"model": 1' + b"0" * 10_000 + b"}", b"\xff\xfe{}"])
def test_json_that_no_parser_takes_is_passed_over(text: bytes, content_type: str) -> None:
    reader = UsageReader(content_type)
    reader.feed(b"data: " + text + b"\n" if "stream" in content_type else text)
    figures = reader.figures()
    assert figures is None or (figures.model, figures.input_tokens) == (UNKNOWN_MODEL, 0)


def test_an_answer_that_is_cut_keeps_what_it_had_said_and_counts_the_words_that_came() -> None:
    text = "x" * 4000
    cut = sse(start(), says(text[:2000]), says(text[2000:3000], "thinking"), says(text[3000:], "partial_json"))
    assert read(cut + b'event: message_delta\ndata: {"type": "message_delta", "usa') == Figures(
        MODEL, 7, 1000, 1000, 50, 30
    )
    assert read(cut + sse(end(output_tokens=900))) == Figures(MODEL, 7, 900, 1000, 50, 30), "its own figure is better"
    assert read(sse(start())) == Figures(MODEL, 7, 1, 1000, 50, 30)


def test_a_body_that_is_cut_counts_by_its_length() -> None:
    assert read(b'{"model": "m", "content": "' + b"x" * 3973, "application/json") == Figures(UNKNOWN_MODEL, 0, 1000)


def test_what_says_nothing_has_no_figures() -> None:
    for data in (b"", b"\n\n", sse({"type": "ping"}), b": a comment\n", b"retry: 3\n"):
        assert read(data) is None
    assert read(b"", "application/json") is None


def test_figures_never_become_less_and_later_ones_add_what_was_not_known() -> None:
    assert read(sse(start({"input_tokens": 0}), end(input_tokens=9, output_tokens=3))) == Figures(MODEL, 9, 3)
    assert read(sse(start({"input_tokens": 9}), end(output_tokens=5), end(input_tokens=0, output_tokens=3))) == Figures(
        MODEL, 9, 5
    )


def test_several_steps_of_one_request_are_added_up() -> None:
    steps = [{"input_tokens": 100, "output_tokens": 30}, {"input_tokens": 40, "output_tokens": 5}, "nonsense"]
    assert read(sse(start({}), end(input_tokens=40, output_tokens=5, iterations=steps))) == Figures(MODEL, 140, 35)


def test_searches_and_the_dearer_mode_are_noticed() -> None:
    usage = {"output_tokens": 5, "server_tool_use": {"web_search_requests": 2}, "speed": "fast"}
    assert read(sse(start({}), end(**usage))) == Figures(MODEL, output_tokens=5, web_searches=2, fast=True)


@pytest.mark.parametrize("count", [-1, True, 1.5, "7", None, [], 2**41])
def test_what_is_no_number_of_tokens_is_none(count: Any) -> None:
    assert read(sse(start({"input_tokens": count, "output_tokens": 3}), end(output_tokens=count))) == Figures(
        MODEL, 0, 3
    )


def test_a_model_is_named_by_a_short_line_that_drives_no_terminal() -> None:
    figures = read(sse(start({}, "m\x1b[31m\n\ud83e" + "x" * 1000)))
    assert figures is not None
    assert figures.model.startswith("m?[31m??xxx")
    assert len(figures.model) == 120
    assert read(sse(start(BEGUN, None))) == Figures(UNKNOWN_MODEL, 7, 1, 1000, 50, 30)


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
def test_a_line_without_an_end_takes_little_memory_and_what_follows_is_read(content_type: str) -> None:
    reader = UsageReader(content_type)
    piece = random.Random(7).randbytes(1 << 16).replace(b"\n", b" ").replace(b"\r", b" ")
    tracemalloc.start()
    try:
        reader.feed(b"data: ")
        for _ in range(1000):
            reader.feed(piece)
        assert tracemalloc.get_traced_memory()[1] < 20 * 1024**2
    finally:
        tracemalloc.stop()
    figures = reader.figures()
    assert figures is not None
    assert figures.output_tokens >= 1000 * len(piece) // 4, "what could not be read is counted by its length"
    if content_type == "text/event-stream":
        reader.feed(b"\n" + STREAM)
        assert reader.figures() == WHOLE
