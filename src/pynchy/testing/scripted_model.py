"""A model that answers by rule: the Anthropic Messages API on loopback, without a language model behind it.

A line `/tool NAME {json}` of the last user message makes it call that tool (several lines: several calls, in
order) and then answer with the tools' results; any other text is answered `You said: TEXT`, with a line for each
image. In such a line, `$attachment` is the path of the first file that came with the message. It is the demo model
and the model of the tests, and it can fail on demand: status codes, a stall, a cut connection.

Wire format: https://docs.anthropic.com/en/api/messages and .../messages-streaming.
"""

from __future__ import annotations

import asyncio
import base64
import html
import json
import random
import re
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pynchy.loopback import Exchange, LoopbackServer, Request

NAME = "pynchy-scripted-model"

#: What the command-line client writes in the user's place.
_NOT_SAID = re.compile(
    r"<(system-reminder|local-command-caveat|local-command-stdout|command-name|command-message|command-args)>.*?</\1>\s*"
    r"|\A\[Image: source: .*\]\s*\Z"
    r"|\AThis session is being continued from a previous conversation.*",
    re.DOTALL,
)
_INTERRUPTED = "[Request interrupted by user"
_CHAT_MESSAGE = re.compile(r"<message\b([^>]*)>(.*?)</message>", re.DOTALL)
_CHAT_BATCH = re.compile(r"<messages\b[^>]*>(.*)</messages>", re.DOTALL)
_ATTACHMENT = re.compile(r"<attachment\b([^>]*)/>")
_QUOTE = re.compile(r"\A<quote>.*?</quote>", re.DOTALL)
_ATTACHMENT_LINE = re.compile(r"^\[attachment (/\S+)\]$", re.MULTILINE)
_ATTRIBUTE = re.compile(r"""(\w+)=("[^"]*"|'[^']*')""")
_IMAGE_DATA = re.compile(rb'"data": ?"[^"]*"')
_TOOL_LINE = re.compile(r"^/tool\s+(\S+)(?:\s+(\{.*\}))?\s*$")


@dataclass(frozen=True, slots=True)
class Fail:
    """Answer with an HTTP error. The message is what the API's error body would say."""

    status: int = 500
    message: str = "scripted failure"
    retry_after: int | None = None  # seconds


@dataclass(frozen=True, slots=True)
class Stall:
    """Send `after_events` stream events, then nothing more until the client gives up."""

    after_events: int = 1


@dataclass(frozen=True, slots=True)
class Cut:
    """Send `after_events` stream events, then close the connection in the middle of the answer."""

    after_events: int = 2


Fault = Fail | Stall | Cut

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool the model wants called."""

    name: str
    arguments: dict[str, Any]


class ScriptedModel:
    """Serves the Messages API on 127.0.0.1; an async context manager.

    `requests` holds every request received, oldest first (the last 200). `fail_next` queues faults, each used
    for one request to `/v1/messages`. What is in `usage`, such as `cache_read_input_tokens`, answers report as
    their usage.
    """

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._faults: deque[Fault | None] = deque(faults)
        self._unreliable: Callable[[], Fault | None] = lambda: None
        self._key: str | None = None
        self._server = LoopbackServer(self._handle)
        self._count = 0
        # Ids must be new to a conversation that is resumed, also from an earlier model.
        self._run = uuid.uuid4().hex[:12]
        self.requests: deque[Request] = deque(maxlen=200)
        self.usage: dict[str, int] = {}

    @property
    def base_url(self) -> str:
        """What belongs into `ANTHROPIC_BASE_URL`."""
        return self._server.base_url

    async def __aenter__(self) -> ScriptedModel:
        await self._server.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._server.__aexit__(*exc)

    def fail_next(self, fault: Fault, times: int = 1) -> None:
        """Let the next `times` requests end in `fault`."""
        self._faults.extend([fault] * times)

    def answer_next(self, times: int = 1) -> None:
        """Let the next `times` requests be answered, before the faults that are queued after."""
        self._faults.extend([None] * times)

    def fail_often(self, share: float, faults: Sequence[Fault], seed: int) -> None:
        """From now on let that share of the requests end in one of the faults, by chance."""
        chance = random.Random(seed)  # noqa: S311 - it is for a test to be repeatable, not to be secret
        self._unreliable = lambda: chance.choice(faults) if chance.random() < share else None

    def require_key(self, key: str) -> None:
        """Answer 401 to every request that does not bring this `x-api-key`."""
        self._key = key

    def succeed(self) -> None:
        """Forget every fault."""
        self._faults.clear()
        self._unreliable = lambda: None
        self._key = None

    async def _handle(self, request: Request, exchange: Exchange) -> None:
        self.requests.append(request)
        path = request.target.partition("?")[0]
        if request.method != "POST" or path not in ("/v1/messages", "/v1/messages/count_tokens"):
            await _error(exchange, Fail(404, f"{request.method} {path} is not offered"))
            return
        try:
            body = json.loads(request.body)
            answer = respond(body["messages"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
            await _error(exchange, Fail(400, f"not a Messages API request: {problem!r}"))
            return
        # What an image takes has nothing to do with how long its encoding is.
        input_tokens = max(1, len(_IMAGE_DATA.sub(b"", request.body)) // 4)
        if path.endswith("/count_tokens"):
            await exchange.reply(200, json.dumps({"input_tokens": input_tokens}).encode())
            return
        fault = self._faults.popleft() if self._faults else self._unreliable()
        if self._key is not None and request.header("x-api-key") != self._key:
            fault = Fail(401, "invalid x-api-key")
        if isinstance(fault, Fail):
            await _error(exchange, fault)
            return
        self._count += 1
        message = _message(f"msg_{self._run}{self._count:06d}", body.get("model") or NAME, answer, input_tokens)
        message["usage"] |= self.usage
        if not body.get("stream") and fault is None:
            await exchange.reply(200, json.dumps(message).encode())
            return
        await exchange.start(200, [("content-type", "text/event-stream"), ("cache-control", "no-cache")])
        await exchange.stream(_faulty(_events(message), fault))
        if fault is None:
            await exchange.end()


def respond(messages: list[dict[str, Any]]) -> ToolCall | str:
    """What the model says next in a conversation: a call, or the text that ends its turn."""
    prompt, images, results = _last_prompt(messages)
    calls = tool_calls(prompt)
    if len(results) < len(calls):
        return calls[len(results)]
    if calls:
        return "\n".join(results)
    return "\n".join([f"You said: {prompt}", *images])


def tool_calls(prompt: str) -> list[ToolCall]:
    """The `/tool NAME {json}` lines of a prompt, in order; a line whose JSON is broken is plain text."""
    calls = []
    attached = _ATTACHMENT_LINE.search(prompt)
    for line in prompt.split("\n"):  # not splitlines(): JSON may hold U+2028
        if match := _TOOL_LINE.match(line.strip()):
            given = match[2] or "{}"
            if attached:
                given = given.replace("$attachment", attached[1])
            try:
                calls.append(ToolCall(match[1], json.loads(given)))
            except ValueError:
                continue
    return calls


def _last_prompt(messages: list[dict[str, Any]]) -> tuple[str, list[str], list[str]]:
    """The last thing a person said, a line for each image with it, and the tool results that came after it.

    The command-line client adds messages of its own after it (reminders, system-role notes), which nobody
    said; so the search goes backwards to the last user message that has text of its own.
    """
    results: list[str] = []
    for message in reversed(messages):
        if message.get("role") != "user":
            continue
        content = message["content"]
        blocks: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        found: list[str] = []
        texts: list[str] = []
        images: list[str] = []
        for block in blocks:
            if block.get("type") == "tool_result":
                found.append(_result_text(block))
            if block.get("type") == "tool_result" or block.get("text", "").startswith(_INTERRUPTED):
                texts.clear()  # what comes before it is not waiting for an answer any more
                images.clear()
            elif block.get("type") == "image":
                images.append(_image_line(block["source"]))
            elif block.get("type") == "text":
                texts.append(_NOT_SAID.sub("", block["text"]).strip())
        if text := "\n".join(text for text in texts if text):
            return unwrap(text), images, results
        results[:0] = found
    return "", [], results


def unwrap(text: str) -> str:
    """The chat text inside Pynchy's prompt format, unescaped; other text as it is.

    Messages that are only context count where there are no others; an attachment is a line with its path, and what
    a message quotes is left out.
    """
    batch = _CHAT_BATCH.search(text)
    if batch is None:
        return text
    messages = [(_attributes(head), inner) for head, inner in _CHAT_MESSAGE.findall(batch[1])]
    asked = [inner for head, inner in messages if head.get("context") != "yes"]
    return "\n".join(_plain(inner) for inner in asked or [inner for _, inner in messages])


def _plain(inner: str) -> str:
    return html.unescape(_ATTACHMENT.sub(_attachment_line, _QUOTE.sub("", inner))).strip()


def _attachment_line(element: re.Match[str]) -> str:
    return f"\n[attachment {_attributes(element[1]).get('path', 'not kept')}]"


def _attributes(head: str) -> dict[str, str]:
    return {name: quoted[1:-1] for name, quoted in _ATTRIBUTE.findall(head)}


def _image_line(source: dict[str, Any]) -> str:
    return f"[image {source['media_type']}, {len(base64.b64decode(source['data']))} bytes]"


def _result_text(block: dict[str, Any]) -> str:
    content = block.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", f"[{part.get('type')}]") for part in content)


def _message(message_id: str, model: str, answer: ToolCall | str, input_tokens: int) -> dict[str, Any]:
    if isinstance(answer, ToolCall):
        block = {
            "type": "tool_use",
            "id": message_id.replace("msg", "toolu"),
            "name": answer.name,
            "input": answer.arguments,
        }
    else:
        block = {"type": "text", "text": answer}
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [block],
        "stop_reason": "tool_use" if isinstance(answer, ToolCall) else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": input_tokens, "output_tokens": max(1, len(json.dumps(block)) // 4)},
    }


def _events(message: dict[str, Any]) -> list[bytes]:
    """The streaming form of a message, one server-sent event each."""
    block = message["content"][0]
    if block["type"] == "text":
        empty = {"type": "text", "text": ""}
        text = block["text"]
        deltas = [{"type": "text_delta", "text": text[i : i + 4096]} for i in range(0, len(text), 4096)]
    else:
        empty = {**block, "input": {}}
        deltas = [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]
    opening = {**message, "content": [], "stop_reason": None}
    opening["usage"] = {**message["usage"], "output_tokens": 1}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": opening},
        {"type": "content_block_start", "index": 0, "content_block": empty},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": message["stop_reason"], "stop_sequence": None},
            "usage": {"output_tokens": message["usage"]["output_tokens"]},
        },
        {"type": "message_stop"},
    ]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]


async def _faulty(events: list[bytes], fault: Fault | None) -> AsyncIterator[bytes]:
    if fault is None:
        yield b"".join(events)
        return
    assert not isinstance(fault, Fail)
    for event in events[: fault.after_events]:
        yield event
    if isinstance(fault, Stall):
        await asyncio.Event().wait()  # until the client goes away and the handler is cancelled


async def _error(exchange: Exchange, fault: Fail) -> None:
    error = {"type": _ERROR_TYPES.get(fault.status, "api_error"), "message": fault.message}
    body = json.dumps({"type": "error", "error": error}).encode()
    headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
    if fault.retry_after is not None:
        headers.append(("retry-after", str(fault.retry_after)))
    await exchange.start(fault.status, headers)
    await exchange.send(body)
    await exchange.end()
