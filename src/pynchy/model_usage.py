"""What a model's answer says it took, read from its bytes as they pass.

Messages API: a JSON body with `usage`, or server-sent events of which `message_start` has the figures of the
beginning and `message_delta` those so far (https://docs.anthropic.com/en/api/messages-streaming).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pynchy.untrusted import printable

#: A line, or a body that is no stream, is read up to so many bytes; of what is longer only the length is known.
_LONGEST_LINE = 1024**2
_LONGEST_BODY = 8 * 1024**2
#: No request comes near it; a figure above is a mistake.
_MOST_TOKENS = 2**40
_LONGEST_MODEL = 120  # characters
#: Where an answer ends before it has said how many tokens it has, so many bytes of text count as one.
_BYTES_A_TOKEN = 4
_SAID = ("text", "thinking", "partial_json")

UNKNOWN_MODEL = "(unknown)"


@dataclass(frozen=True, slots=True)
class Figures:
    """What one request took, in tokens.

    `input_tokens` are those that were neither read from a cache nor written to one. Of `cache_write_tokens`,
    `cache_write_1h_tokens` are kept for an hour, the others for five minutes. `fast` is the dearer mode.
    """

    model: str
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    web_searches: int = 0
    fast: bool = False


class UsageReader:
    """Is fed with one answer, in pieces of any size; takes little memory whatever comes, and never raises."""

    def __init__(self, content_type: str) -> None:
        self._is_stream = "json" not in content_type.lower()
        self._held = bytearray()
        self._skipping = False
        self._model = ""
        self._most: dict[str, int] = {}
        self._fast = False
        #: Bytes of text that was said, or that could not be read.
        self._said = 0
        self._ended = False

    def feed(self, data: bytes) -> None:
        """The next bytes of the answer, unpacked."""
        if not self._is_stream:
            self._hold(data, _LONGEST_BODY)
            return
        for piece in data.splitlines(keepends=True):
            self._hold(piece, _LONGEST_LINE)
            if piece.endswith((b"\n", b"\r")):
                self._read_line()

    def figures(self) -> Figures | None:
        """What is known so far; None where that is nothing.

        Of an answer that was cut, the tokens are those of what had come of it, by its length.
        """
        if not self._is_stream and self._held:
            self._read_body()
        output = self._most.get("output_tokens", 0)
        if not self._ended:
            output = max(output, -(-self._said // _BYTES_A_TOKEN))
        if not (self._model or output or any(self._most.values())):
            return None
        writes = max(
            self._most.get("cache_creation_input_tokens", 0), self._most.get("5m", 0) + self._most.get("1h", 0)
        )
        return Figures(
            model=self._model or UNKNOWN_MODEL,
            input_tokens=self._most.get("input_tokens", 0),
            output_tokens=output,
            cache_read_tokens=self._most.get("cache_read_input_tokens", 0),
            cache_write_tokens=writes,
            cache_write_1h_tokens=self._most.get("1h", 0),
            web_searches=self._most.get("web_searches", 0),
            fast=self._fast,
        )

    def _hold(self, data: bytes, most: int) -> None:
        self._skipping |= len(self._held) + len(data) > most
        if self._skipping:
            self._said += len(self._held) + len(data)
            self._held.clear()
        else:
            self._held += data

    def _read_line(self) -> None:
        line, skipped = bytes(self._held), self._skipping
        self._held.clear()
        self._skipping = False
        if not skipped and line.startswith(b"data:"):
            self._read_event(_object(line[len(b"data:") :]))

    def _read_event(self, event: dict[str, Any]) -> None:
        match event.get("type"):
            case "message_start":
                self._read_message(event.get("message"))
            case "content_block_delta":
                delta = event.get("delta")
                if isinstance(delta, dict):
                    self._said += sum(len(text.encode("utf-8", "replace")) for text in _texts(delta))
            case "message_delta":
                self._ended |= self._read_usage(event.get("usage"))

    def _read_body(self) -> None:
        message = _object(bytes(self._held))
        self._read_message(message)
        self._ended = bool(message)
        self._said += len(self._held)
        self._held.clear()

    def _read_message(self, message: Any) -> None:
        if not isinstance(message, dict):
            return
        if isinstance(model := message.get("model"), str):
            self._model = printable(model[:_LONGEST_MODEL], "?")
        self._read_usage(message.get("usage"))

    def _read_usage(self, usage: Any) -> bool:
        """Take up figures, which are cumulative: none of them ever becomes less."""
        if not isinstance(usage, dict):
            return False
        steps = usage.get("iterations")
        # Where the API has asked the model several times, what it says of the whole may be of the last alone.
        for counts in (
            _counts(usage),
            _sums([_counts(step) for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []),
        ):
            for name, count in counts.items():
                self._most[name] = max(self._most.get(name, 0), count)
        self._fast |= usage.get("speed") == "fast"
        return True


def _counts(usage: dict[str, Any]) -> dict[str, int]:
    cache, tools = usage.get("cache_creation"), usage.get("server_tool_use")
    cache, tools = cache if isinstance(cache, dict) else {}, tools if isinstance(tools, dict) else {}
    found = {
        **{
            name: usage.get(name)
            for name in ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
        },
        "5m": cache.get("ephemeral_5m_input_tokens"),
        "1h": cache.get("ephemeral_1h_input_tokens"),
        "web_searches": tools.get("web_search_requests"),
    }
    return {name: count for name, count in found.items() if type(count) is int and 0 < count <= _MOST_TOKENS}


def _sums(steps: list[dict[str, int]]) -> dict[str, int]:
    return {name: sum(step.get(name, 0) for step in steps) for name in {name for step in steps for name in step}}


def _texts(delta: dict[str, Any]) -> list[str]:
    return [text for name in _SAID if isinstance(text := delta.get(name), str)]


def _object(data: bytes) -> dict[str, Any]:
    """A JSON object; an empty one where it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
