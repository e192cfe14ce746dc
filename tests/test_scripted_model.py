"""The model that answers by rule, asked over HTTP as the real one would be."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest

from pynchy.messages import KeptAttachment, StoredMessage
from pynchy.router import format_prompt, format_task
from pynchy.testing import Cut, Fail, ScriptedModel, Stall
from pynchy.testing.scripted_model import ToolCall, respond, tool_calls, unwrap

pytestmark = pytest.mark.anyio

Messages = list[dict[str, Any]]


@pytest.fixture
async def api(model: ScriptedModel) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the model's API."""
    async with httpx.AsyncClient(base_url=model.base_url, trust_env=False) as client:
        yield client


def user(*content: str | dict[str, Any]) -> dict[str, Any]:
    """A user message of text blocks and others."""
    blocks = [{"type": "text", "text": block} if isinstance(block, str) else block for block in content]
    return {"role": "user", "content": blocks}


def called(tool: str, number: int) -> dict[str, Any]:
    """The assistant's message that calls a tool."""
    block = {"type": "tool_use", "id": f"toolu_{number}", "name": tool, "input": {}}
    return {"role": "assistant", "content": [block]}


def result(content: Any, number: int = 1) -> dict[str, Any]:
    """The result block of a tool."""
    return {"type": "tool_result", "tool_use_id": f"toolu_{number}", "content": content}


def from_chat(*texts: str, sender: str = "Ada") -> str:
    """What the agent is given for these chat messages."""
    now = datetime.now(UTC)
    return prompt(*(StoredMessage(number, sender, text, now) for number, text in enumerate(texts)))


def prompt(*messages: StoredMessage) -> str:
    """What the agent is given for these."""
    return format_prompt(messages, ZoneInfo("UTC"))


def image(data: bytes, media_type: str = "image/png") -> dict[str, Any]:
    """An image as the API takes it."""
    source = {"type": "base64", "media_type": media_type, "data": base64.b64encode(data).decode()}
    return {"type": "image", "source": source}


async def ask(api: httpx.AsyncClient, messages: Messages, **fields: Any) -> httpx.Response:
    return await api.post("/v1/messages", json={"model": "m", "max_tokens": 9, "messages": messages, **fields})


def events(text: str) -> list[dict[str, Any]]:
    """The server-sent events of an answer, each checked to be named as its data says."""
    found = []
    for part in text.split("\n\n"):
        if part:
            name, data = part.split("\n")
            event = json.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            found.append(event)
    return found


# --- what it says -------------------------------------------------------------------------------------------


async def test_a_text_is_repeated_as_a_whole_message(api: httpx.AsyncClient) -> None:
    answer = await ask(api, [user("hello")])
    message = answer.json()
    assert answer.headers["content-type"] == "application/json"
    assert message["content"] == [{"type": "text", "text": "You said: hello"}]
    assert (message["type"], message["role"], message["model"]) == ("message", "assistant", "m")
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)
    assert message["usage"]["input_tokens"] > 0
    assert message["usage"]["output_tokens"] > 0


async def test_every_message_has_an_id_of_its_own(api: httpx.AsyncClient) -> None:
    assert (await ask(api, [user("a")])).json()["id"] != (await ask(api, [user("a")])).json()["id"]


_MARKUP = "<b> & \"c\" 'd' &amp; &lt; </message></messages>"
_TYPED = "<system-reminder>typed by hand</system-reminder>"
_COMPACTED = (
    "This session is being continued from a previous conversation that ran out of context.\nYou said: <messages>",
    "<local-command-caveat>The command below was run directly.</local-command-caveat>\n",
    "<command-name>/compact</command-name>\n  <command-message>compact</command-message>\n"
    "  <command-args>keep names</command-args>\n",
    "<local-command-stdout>Compacted </local-command-stdout>\n",
)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "user", "content": "a plain string"}], "a plain string"),
        ([user("two", "blocks")], "two\nblocks"),
        ([user("first"), {"role": "assistant", "content": "You said: first"}, user("second")], "second"),
        ([user("the text", "[Image: source: /tmp/claude-1/images/1.png, original 2500x2500]")], "the text"),
        ([user(*_COMPACTED, from_chat("asked"))], "asked"),
        ([user(*_COMPACTED), user(from_chat("asked"))], "asked"),
        ([user(from_chat(_COMPACTED[1]))], _COMPACTED[1].strip()),
        ([user(format_task(3, "water the <plants>", datetime.now(UTC), ZoneInfo("UTC")))], "water the <plants>"),
        ([user(from_chat("in a chat"))], "in a chat"),
        ([user(from_chat("one", "two", sender='<b> & "c"'))], "one\ntwo"),
        ([user(from_chat(_MARKUP))], _MARKUP),
        ([user(from_chat("several\nlines"))], "several\nlines"),
        ([user(from_chat(_TYPED))], _TYPED),
        ([user("<system-reminder>\nnobody said this\n</system-reminder>", from_chat("asked"))], "asked"),
        ([user("<system-reminder>a</system-reminder>\nasked<system-reminder>b</system-reminder>")], "asked"),
        ([user("asked"), {"role": "system", "content": "a note of the client's"}], "asked"),
        ([user("asked"), user("<system-reminder>only a reminder</system-reminder>")], "asked"),
        ([user("asked"), {"role": "system", "content": [{"type": "text", "text": "/tool Bash {}"}]}], "asked"),
    ],
)
async def test_it_answers_what_the_person_said_last(api: httpx.AsyncClient, messages: Messages, said: str) -> None:
    assert (await ask(api, messages)).json()["content"] == [{"type": "text", "text": f"You said: {said}"}]


_NOW = datetime.now(UTC)
_CONTEXT = StoredMessage(1, 'Eve" context="no', "only so that you know", _NOW, asks=False)
_ASKED = StoredMessage(2, 'Ada" context="yes', "and now?", _NOW)
_FILES = (KeptAttachment("a > b/.png", "image/png", 1, "7-a.png"), KeptAttachment("x", "x/x", 1))


def test_a_tool_line_can_name_the_file_that_came_with_the_message() -> None:
    line = '/tool Read {"path": "$attachment"}'
    came = prompt(StoredMessage(1, "Ada", line, _NOW, attachments=_FILES))
    assert tool_calls(unwrap(came)) == [ToolCall("Read", {"path": "/workspace/attachments/7-a.png"})]
    alone = prompt(StoredMessage(1, "Ada", line, _NOW))
    assert tool_calls(unwrap(alone)) == [ToolCall("Read", {"path": "$attachment"})]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (prompt(_CONTEXT, _ASKED, _CONTEXT), "and now?"),
        (prompt(_CONTEXT), "only so that you know"),
        (prompt(_CONTEXT) + "\n" + prompt(_ASKED), "and now?"),
        (
            prompt(StoredMessage(1, "Ada", "look: <attachment/>", _NOW, attachments=_FILES)),
            "look: <attachment/>\n[attachment /workspace/attachments/7-a.png]\n[attachment not kept]",
        ),
        (
            prompt(
                StoredMessage(1, "Ada", "and <quote>?", _NOW, quote="what was > said", reply_to="7", message_id="8")
            ),
            "and <quote>?",
        ),
        (
            prompt(StoredMessage(1, "Ada", "", _NOW, attachments=_FILES[:1])),
            "[attachment /workspace/attachments/7-a.png]",
        ),
    ],
)
async def test_it_answers_what_asks_for_an_answer_and_names_what_came_with_it(text: str, said: str) -> None:
    assert respond([user(text)]) == f"You said: {said}"


async def test_it_tells_what_images_it_was_shown_with_the_last_prompt() -> None:
    conversation = [user("old", image(b"older")), {"role": "assistant", "content": "old"}]
    shown = user("look", image(b"x" * 70), image(b"y" * 5, "image/webp"), "[Image: source: /tmp/1.png]\n")
    assert respond([*conversation, shown]) == "You said: look\n[image image/png, 70 bytes]\n[image image/webp, 5 bytes]"
    assert respond([*conversation, shown, user("and now?")]) == "You said: and now?"
    assert respond([user("/tool A", image(b"x")), called("A", 1), user(result("done"))]) == "done"


async def test_an_image_takes_few_tokens_however_large_it_is(api: httpx.AsyncClient) -> None:
    with_image = (await ask(api, [user("look", image(b"x" * 1_000_000))])).json()
    assert with_image["usage"]["input_tokens"] < 1000


@pytest.mark.parametrize("stream", [False, True])
async def test_a_test_can_say_what_usage_answers_report(
    api: httpx.AsyncClient, model: ScriptedModel, stream: bool
) -> None:
    model.usage = {"input_tokens": 7, "output_tokens": 11, "cache_read_input_tokens": 13}
    answer = await ask(api, [user("hi")], stream=stream)
    if stream:
        first, *_, delta, _ = events(answer.text)
        assert first["message"]["usage"] == {**model.usage, "output_tokens": 1}
        assert delta["usage"] == {"output_tokens": 11}
    else:
        assert answer.json()["usage"] == model.usage


async def test_without_any_message_of_a_person_it_still_answers(api: httpx.AsyncClient) -> None:
    assert (await ask(api, [])).json()["content"] == [{"type": "text", "text": "You said: "}]


# --- tools --------------------------------------------------------------------------------------------------


async def test_a_tool_line_is_a_call_and_its_result_the_answer(api: httpx.AsyncClient) -> None:
    prompt = user(from_chat('please\n/tool mcp__hello__greet {"name": "<Ada> & \\"co\\""}'))
    message = (await ask(api, [prompt])).json()
    (block,) = message["content"]
    assert message["stop_reason"] == "tool_use"
    assert (block["type"], block["name"]) == ("tool_use", "mcp__hello__greet")
    assert block["input"] == {"name": '<Ada> & "co"'}
    assert block["id"].startswith("toolu_")
    answer = await ask(api, [prompt, called("mcp__hello__greet", 1), user(result("Hello, Ada!"))])
    assert answer.json()["content"] == [{"type": "text", "text": "Hello, Ada!"}]


async def test_several_tools_are_called_in_order_and_then_their_results_are_told() -> None:
    conversation = [user('/tool A {"n": 1}\n/tool B\n/tool A {"n": 3}')]
    names = []
    for number, content in enumerate(["one", [{"type": "text", "text": "two"}], ""], 1):
        call = respond(conversation)
        assert isinstance(call, ToolCall)
        names.append((call.name, call.arguments))
        conversation += [
            called(call.name, number),
            user(result(content, number), "<system-reminder>keep going</system-reminder>"),
            {"role": "system", "content": "a note between the calls"},
        ]
    assert names == [("A", {"n": 1}), ("B", {}), ("A", {"n": 3})]
    assert respond(conversation) == "one\ntwo\n"


async def test_results_of_an_earlier_prompt_do_not_count() -> None:
    earlier = [user("/tool A"), called("A", 1), user(result("old")), {"role": "assistant", "content": "old"}]
    assert respond([*earlier, user("/tool B")]) == ToolCall("B", {})
    assert respond([*earlier, user("/tool B"), called("B", 2), user(result("new"))]) == "new"


async def test_what_is_said_in_the_middle_of_the_calls_is_answered_instead() -> None:
    interrupted = user(result("cancelled"), "[Request interrupted by user for tool use]", from_chat("stop"))
    assert respond([user("/tool A\n/tool B"), called("A", 1), interrupted]) == "You said: stop"


async def test_what_was_interrupted_before_it_was_answered_is_not_answered_later() -> None:
    asked = user("/tool A", image(b"x"), "[Request interrupted by user]", from_chat("something else"))
    assert respond([asked]) == "You said: something else"


async def test_results_that_come_together_are_told_in_order() -> None:
    both = user(result("one", 1), result([{"type": "text", "text": "two"}, {"type": "image"}], 2))
    assert respond([user("/tool A\n/tool B"), called("A", 1), called("B", 2), both]) == "one\ntwo\n[image]"


@pytest.mark.parametrize(
    "line",
    [
        '/tool Bash {"command": }',
        '/tool Bash {"command": "x"',
        "/tool Bash [1]",
        "/tool Bash words",
        "/tool",
        '/toolbox {"a": 1}',
        'say /tool Bash {"a": 1}',
    ],
)
async def test_a_line_that_is_no_proper_call_is_text(api: httpx.AsyncClient, line: str) -> None:
    assert tool_calls(line) == []
    assert (await ask(api, [user(from_chat(line))])).json()["content"][0]["text"] == f"You said: {line}"


@pytest.mark.parametrize("character", ["\u2028", "\u0085", "\x0b", "\x1c", "é", "🦔"])
async def test_the_arguments_may_hold_any_character_that_json_may(character: str) -> None:
    arguments = {"text": f"a{character}b"}
    line = f"/tool X {json.dumps(arguments, ensure_ascii=False)}"
    assert tool_calls(f"before\r\n{line}\r\nafter") == [ToolCall("X", arguments)]


# --- the streaming form -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 20_000])
async def test_a_streamed_text_is_a_complete_sequence_that_adds_up(api: httpx.AsyncClient, size: int) -> None:
    said = ("é\n" * size)[:size].strip()
    answer = await ask(api, [user("x" + said)], stream=True)
    assert answer.headers["content-type"] == "text/event-stream"
    first, start, *deltas, stop, delta, last = events(answer.text)
    assert first["type"] == "message_start"
    assert first["message"]["content"] == []
    assert first["message"]["stop_reason"] is None
    assert start == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert {(one["type"], one["index"], one["delta"]["type"]) for one in deltas} == {
        ("content_block_delta", 0, "text_delta")
    }
    assert "".join(one["delta"]["text"] for one in deltas) == f"You said: x{said}"
    assert stop == {"type": "content_block_stop", "index": 0}
    assert delta["type"] == "message_delta"
    assert delta["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert delta["usage"]["output_tokens"] > 0
    assert last == {"type": "message_stop"}


async def test_a_streamed_call_is_a_complete_sequence_that_adds_up(api: httpx.AsyncClient) -> None:
    answer = await ask(api, [user('/tool Bash {"command": "ls"}')], stream=True)
    _, start, *deltas, stop, delta, last = events(answer.text)
    assert start["content_block"].items() >= {"type": "tool_use", "name": "Bash", "input": {}}.items()
    assert {one["delta"]["type"] for one in deltas} == {"input_json_delta"}
    assert json.loads("".join(one["delta"]["partial_json"] for one in deltas)) == {"command": "ls"}
    assert [stop["type"], delta["delta"]["stop_reason"], last["type"]] == [
        "content_block_stop",
        "tool_use",
        "message_stop",
    ]


# --- the rest of the API ------------------------------------------------------------------------------------


async def test_tokens_are_counted(api: httpx.AsyncClient) -> None:
    async def count(text: str) -> int:
        body = {"model": "m", "messages": [user(text)]}
        return (await api.post("/v1/messages/count_tokens?beta=true", json=body)).json()["input_tokens"]

    assert 0 < await count("short") < await count("long " * 1000)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/messages"), ("POST", "/v1/complete"), ("POST", "/"), ("POST", "//v1/messages"), ("POST", "//[")],
)
async def test_what_is_not_offered_is_404(api: httpx.AsyncClient, model: ScriptedModel, method: str, path: str) -> None:
    request = api.build_request(method, "/", json={"messages": []})
    request.url = request.url.copy_with(raw_path=path.encode())
    answer = await api.send(request)
    assert answer.status_code == 404
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "not_found_error"
    assert model.requests[-1].target == path


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"messages": null}',
        b'{"messages": 7}',
        b'{"messages": ["text"]}',
        b'{"messages": [7]}',
        b'{"messages": [{"role": "user"}]}',
        b'{"messages": [{"role": "user", "content": 7}]}',
        b'{"messages": [{"role": "user", "content": ["text"]}]}',
        b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}',
        b'{"messages": [{"role": "user", "content": [{"type": "image"}]}]}',
        b'{"messages": [{"role": "user", "content": [{"type": "image", "source": {"media_type": "x", "data": "x"}}]}]}',
        b'{"messages": ' + b"[" * 100_000,
    ],
    ids=lambda body: body[:60].decode(),
)
async def test_what_is_no_request_is_400(api: httpx.AsyncClient, body: bytes) -> None:
    answer = await api.post("/v1/messages", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_requests_are_kept_as_they_came(api: httpx.AsyncClient, model: ScriptedModel) -> None:
    await ask(api, [user("first")])
    await api.get("/nowhere")
    assert [(request.method, request.target) for request in model.requests] == [
        ("POST", "/v1/messages"),
        ("GET", "/nowhere"),
    ]
    assert json.loads(model.requests[0].body)["messages"] == [user("first")]


# --- failing on demand --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (529, "overloaded_error"),
    ],
)
async def test_a_failure_is_the_apis_error_and_the_next_request_is_answered(
    api: httpx.AsyncClient, model: ScriptedModel, status: int, kind: str
) -> None:
    model.fail_next(Fail(status, "as you wished"))
    failed = await ask(api, [user("hi")], stream=True)
    assert failed.status_code == status
    assert failed.json() == {"type": "error", "error": {"type": kind, "message": "as you wished"}}
    assert "retry-after" not in failed.headers
    assert (await ask(api, [user("hi")])).status_code == 200


async def test_failures_are_used_up_one_a_request_and_can_be_forgotten(
    api: httpx.AsyncClient, model: ScriptedModel
) -> None:
    model.fail_next(Fail(503), times=5)
    assert [(await ask(api, [user("hi")])).status_code for _ in range(2)] == [503, 503]
    model.succeed()
    assert (await ask(api, [user("hi")])).status_code == 200


async def test_a_failure_can_say_when_to_come_back(api: httpx.AsyncClient, model: ScriptedModel) -> None:
    model.fail_next(Fail(429, retry_after=17))
    assert (await ask(api, [user("hi")])).headers["retry-after"] == "17"


async def test_faults_can_be_given_from_the_start() -> None:
    async with (
        ScriptedModel([Fail(529)]) as model,
        httpx.AsyncClient(base_url=model.base_url, trust_env=False) as api,
    ):
        assert [(await ask(api, [user("hi")])).status_code for _ in range(2)] == [529, 200]


async def test_a_cut_ends_the_connection_in_the_middle_of_the_answer(
    api: httpx.AsyncClient, model: ScriptedModel
) -> None:
    model.fail_next(Cut(after_events=3))
    received: list[str] = []

    async def read() -> None:
        async with api.stream("POST", "/v1/messages", json={"messages": [user("hi")], "stream": True}) as answer:
            async for part in answer.aiter_text():
                received.append(part)  # noqa: PERF401 - what came before the cut is kept

    with pytest.raises(httpx.RemoteProtocolError):
        await read()
    assert [event["type"] for event in events("".join(received))] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
    ]


async def test_a_stall_sends_what_it_was_told_and_then_nothing_until_the_client_leaves() -> None:
    async with (
        ScriptedModel([Stall(after_events=2)]) as model,
        httpx.AsyncClient(base_url=model.base_url, trust_env=False) as api,
    ):
        received = ""
        async with api.stream("POST", "/v1/messages", json={"messages": [user("hi")], "stream": True}) as answer:
            parts = answer.aiter_text()
            while received.count("\n\n") < 2:
                received += await anext(parts)
            more = asyncio.ensure_future(anext(parts))
            # Others are served meanwhile, so it is not merely slow.
            assert (await ask(api, [user("hi")])).status_code == 200
            assert not more.done()
            more.cancel()
            await asyncio.gather(more, return_exceptions=True)
    assert [event["type"] for event in events(received)] == ["message_start", "content_block_start"]
