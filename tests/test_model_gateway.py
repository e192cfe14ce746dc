"""The way out to the model: nothing but model requests, with our credential and no other header than allowed."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from structlog.testing import capture_logs

from pynchy.config import load_settings
from pynchy.loopback import Exchange, LoopbackServer, Request
from pynchy.model_gateway import Free, ModelFailure, ModelGateway, Upstream
from pynchy.model_usage import Figures
from pynchy.testing import Cut, Fail, ScriptedModel, Stall
from pynchy.wire import MAX_BYTES, MAX_LINE, Frame, FrameWriter, read_frames

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

KEY = "sk-ant-secret-key"
AUTHORISED = ("x-api-key", KEY)
OAUTH_BETA = "oauth-2025-04-20"


class Pipe:
    """A pipe without an end: what is written can be read at once."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader(limit=2 * MAX_LINE)

    def write(self, data: bytes) -> None:
        assert len(data) <= MAX_LINE + MAX_BYTES
        self.reader.feed_data(data)

    async def drain(self) -> None:
        await asyncio.sleep(0)


@dataclass
class Answer:
    """The frames that answered one request."""

    frames: list[Frame]

    @property
    def kinds(self) -> list[str]:
        return [frame.type for frame in self.frames]

    @property
    def status(self) -> int:
        return self.frames[0].fields["status"]

    @property
    def headers(self) -> dict[str, str]:
        return dict(self.frames[0].fields["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(frame.body for frame in self.frames if frame.type == "http.data")

    @property
    def failure(self) -> dict[str, Any]:
        """The error of an answer that is nothing but a failure, or ends in one."""
        assert self.frames[-1].type == "http.failed"
        return self.frames[-1].json_body()["error"]


class Ledger:
    """A meter that keeps what it is told, and lets nothing be asked while it has a reason."""

    def __init__(self) -> None:
        self.why: str | None = None
        self.counted: list[Figures] = []

    def refusal(self) -> str | None:
        return self.why

    def count(self, figures: Figures) -> None:
        self.counted.append(figures)


class Asking:
    """A gateway, and the agent's side of its pipe."""

    def __init__(self, gateway: ModelGateway, out: FrameWriter, frames: AsyncIterator[Frame]) -> None:
        self.gateway = gateway
        self.out = out
        self.frames = frames
        self.noted: list[ModelFailure | None] = []
        self.meter = Ledger()

    async def __call__(
        self,
        target: str = "/v1/messages",
        body: bytes = b"{}",
        method: str = "POST",
        headers: Any = (),
        stream_id: int = 1,
    ) -> Answer:
        fields = {"id": stream_id, "method": method, "target": target, "headers": list(headers)}
        return await self.with_fields(fields, body)

    async def with_fields(self, fields: Mapping[str, Any], body: bytes = b"{}") -> Answer:
        await self.gateway.forward(Frame("http.request", dict(fields), body), self.out, self.noted.append, self.meter)
        answer = [await anext(self.frames)]
        while answer[-1].type not in ("http.end", "http.failed"):
            answer.append(await anext(self.frames))
        assert {frame.id for frame in answer} == {fields.get("id")}
        return Answer(answer)


@asynccontextmanager
async def asking(upstream: Upstream) -> AsyncIterator[Asking]:
    pipe = Pipe()
    out = FrameWriter(pipe)
    writing = asyncio.create_task(out.run())
    try:
        async with ModelGateway.open(upstream) as gateway:
            yield Asking(gateway, out, read_frames(pipe.reader))
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


class Api(LoopbackServer):
    """An upstream that keeps each request and answers as it is told."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.requests: list[Request] = []
        self.status = 200
        self.headers: list[tuple[str, str]] = [("content-type", "application/json")]
        self.body = b'{"type":"message"}'

    @property
    def upstream(self) -> Upstream:
        return Upstream(self.base_url, AUTHORISED)

    async def _answer(self, request: Request, exchange: Exchange) -> None:
        self.requests.append(request)
        await exchange.start(self.status, [*self.headers, ("content-length", str(len(self.body)))])
        await exchange.send(self.body)
        await exchange.end()


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with Api() as api:
        assert isinstance(api, Api)
        yield api


# --- which model --------------------------------------------------------------------------------------------


def configured(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Upstream | None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return Upstream.from_settings(load_settings())


def test_without_credential_and_endpoint_there_is_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert configured(monkeypatch) is None


def test_a_bearer_token_goes_before_a_key_and_a_key_before_a_subscription(monkeypatch: pytest.MonkeyPatch) -> None:
    api = "https://api.anthropic.com"
    oauth = configured(monkeypatch, CLAUDE_CODE_OAUTH_TOKEN="o")
    assert oauth == Upstream(api, ("authorization", "Bearer o"), oauth=True)
    assert configured(monkeypatch, ANTHROPIC_API_KEY="k") == Upstream(api, ("x-api-key", "k"))
    bearer = configured(monkeypatch, ANTHROPIC_AUTH_TOKEN="t")
    assert bearer == Upstream(api, ("authorization", "Bearer t"))


def test_an_endpoint_of_ones_own_may_need_no_credential(monkeypatch: pytest.MonkeyPatch) -> None:
    assert configured(monkeypatch, ANTHROPIC_BASE_URL="http://localhost:8080/api/") == Upstream(
        "http://localhost:8080/api"
    )
    assert configured(monkeypatch, ANTHROPIC_API_KEY="k") == Upstream("http://localhost:8080/api", ("x-api-key", "k"))


def test_line_ends_around_a_credential_are_not_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = configured(monkeypatch, ANTHROPIC_API_KEY=f" {KEY}\r\n")
    assert upstream is not None
    assert upstream.auth_header == AUTHORISED


@pytest.mark.parametrize("oauth", [False, True])
def test_what_is_shown_of_an_upstream_has_no_secret(oauth: bool) -> None:
    upstream = Upstream("http://localhost", AUTHORISED, oauth)
    assert KEY not in f"{upstream} {upstream!r} {[upstream]}"
    assert "http://localhost" in repr(upstream)


# --- what goes out ------------------------------------------------------------------------------------------


async def test_a_request_goes_out_with_the_credential_and_its_answer_comes_back(api: Api) -> None:
    api.headers += [("request-id", "req_1"), ("anthropic-ratelimit-tokens-limit", "7"), ("retry-after", "3")]
    api.headers += [("anthropic-organization-id", "whose-account-it-is")]
    async with asking(api.upstream) as ask:
        answer = await ask(body=b'{"model":"m"}', stream_id=42)
    (request,) = api.requests
    assert (request.method, request.target, request.body) == ("POST", "/v1/messages", b'{"model":"m"}')
    assert request.header("x-api-key") == KEY
    assert request.header("host") == api.base_url.removeprefix("http://")
    assert answer.kinds == ["http.response", "http.data", "http.end"]
    assert (answer.status, answer.body) == (200, b'{"type":"message"}')
    assert answer.headers == {
        "content-type": "application/json",
        "request-id": "req_1",
        "anthropic-ratelimit-tokens-limit": "7",
        "retry-after": "3",
    }


async def test_the_query_is_kept_and_the_endpoints_own_path_comes_first(api: Api) -> None:
    upstream = Upstream(f"{api.base_url}/proxy/anthropic", AUTHORISED)
    async with asking(upstream) as ask:
        await ask("/v1/messages?beta=true&x=%2F..%2F")
        await ask("/v1/messages/count_tokens")
    assert [request.target for request in api.requests] == [
        "/proxy/anthropic/v1/messages?beta=true&x=%2F..%2F",
        "/proxy/anthropic/v1/messages/count_tokens",
    ]


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/v1/messages"),
        ("post", "/v1/messages"),
        ("DELETE", "/v1/messages"),
        ("CONNECT", "example.com:443"),
        ("POST", ""),
        ("POST", "/"),
        ("POST", "/v1/messages/"),
        ("POST", "/v1/messages/batches"),
        ("POST", "/v1/files"),
        ("POST", "/v1/organizations/api_keys"),
        ("POST", "//v1/messages"),
        ("POST", "//example.com/v1/messages"),
        ("POST", "//[/v1/messages"),
        ("POST", "/v1/../v1/messages"),
        ("POST", "/v1/x/../messages"),
        ("POST", "/v1/./messages"),
        ("POST", "/v1/%6dessages"),
        ("POST", "/v1/messages%2f..%2ffiles"),
        ("POST", "/v1/messages#x"),
        ("POST", "/v1/messages;x"),
        ("POST", "/v1/messages\\x"),
        ("POST", " /v1/messages"),
        ("POST", "/v1/mess\nages"),
        ("POST", "v1/messages"),
        ("POST", "@example.com/v1/messages"),
        ("POST", "http://example.com/v1/messages"),
        ("POST", "https://api.anthropic.com/v1/messages"),
        ("POST\r\n", "/v1/messages"),
    ],
)
async def test_whatever_is_no_model_request_does_not_leave(api: Api, method: str, target: str) -> None:
    async with asking(api.upstream) as ask:
        answer = await ask(target, method=method)
        assert answer.status == 404
        assert answer.kinds[-1] == "http.end"
        assert json.loads(answer.body)["error"]["type"] == "not_found_error"
        assert "does not leave this container" in json.loads(answer.body)["error"]["message"]
        await ask()
    assert [request.target for request in api.requests] == ["/v1/messages"], "only the one that is allowed"


@pytest.mark.parametrize("fields", [{}, {"method": None, "target": None}, {"method": ["POST"], "target": {"a": 1}}])
async def test_a_request_of_the_wrong_shape_is_answered_and_does_not_leave(api: Api, fields: dict[str, Any]) -> None:
    async with asking(api.upstream) as ask:
        assert (await ask.with_fields({"id": 1, **fields})).status == 404
    assert api.requests == []


async def test_no_header_of_the_agent_leaves_but_those_that_are_listed(api: Api) -> None:
    listed = {
        "accept": "application/json",
        "content-type": "application/json; charset=x",
        "user-agent": "claude-cli/1",
        "x-app": "cli",
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "a-1,b-2",
    }
    others = {
        "X-Api-Key": "stolen",
        "Authorization": "Bearer stolen",
        "Proxy-Authorization": "Basic stolen",
        "Host": "stolen.example.com",
        "Cookie": "stolen=1",
        "X-Forwarded-For": "stolen",
        "Transfer-Encoding": "stolen",
        "Content-Length": "7",
        "X-HTTP-Method-Override": "stolen",
        "anthropic-dangerous": "stolen",
    }
    async with asking(api.upstream) as ask:
        await ask(headers=[[name.upper(), value] for name, value in listed.items()] + [list(p) for p in others.items()])
    (request,) = api.requests
    sent = dict(request.headers)
    assert len(sent) == len(request.headers)
    assert sent.items() >= listed.items()
    assert "stolen" not in str(sent)
    assert set(sent) - set(listed) == {"x-api-key", "host", "connection", "content-length", "accept-encoding"}
    assert (sent["x-api-key"], sent["content-length"]) == (KEY, "2")


@pytest.mark.parametrize(
    "headers", [None, "accept", 7, {"accept": "x"}, [None, "accept", ["accept"], ["a", "b", "c"], [["accept"], {}]]]
)
async def test_headers_of_the_wrong_shape_are_left_out(api: Api, headers: Any) -> None:
    async with asking(api.upstream) as ask:
        fields = {"id": 1, "method": "POST", "target": "/v1/messages", "headers": headers}
        assert (await ask.with_fields(fields)).status == 200
    assert api.requests[0].header("x-api-key") == KEY


async def test_without_a_credential_none_is_sent(api: Api) -> None:
    async with asking(Upstream(api.base_url)) as ask:
        await ask(headers=[["x-api-key", "the agent's"], ["authorization", "the agent's"]])
    assert api.requests[0].header("x-api-key") is None
    assert api.requests[0].header("authorization") is None


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (None, OAUTH_BETA),
        ("", OAUTH_BETA),
        ("a-1", f"a-1,{OAUTH_BETA}"),
        (f"a-1,{OAUTH_BETA},b-2", f"a-1,{OAUTH_BETA},b-2"),
    ],
)
async def test_a_subscriptions_token_is_marked_as_one_beside_the_betas_of_the_agent(
    api: Api, given: str | None, sent: str
) -> None:
    async with asking(Upstream(api.base_url, ("authorization", "Bearer o"), oauth=True)) as ask:
        await ask(headers=[] if given is None else [["anthropic-beta", given]])
    assert api.requests[0].header("anthropic-beta") == sent
    assert api.requests[0].header("authorization") == "Bearer o"
    assert api.requests[0].header("x-api-key") is None


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY} ", f"{KEY}\x00", f"{KEY}é", f"{KEY}\ud83e"])
async def test_a_credential_that_no_header_can_have_is_not_told_to_the_agent(api: Api, key: str) -> None:
    async with asking(Upstream(api.base_url, ("x-api-key", key))) as ask:
        with capture_logs() as logs:
            answer = await ask()
    assert answer.kinds == ["http.failed"]
    assert answer.failure["message"]
    assert KEY not in f"{answer.frames} {logs}"
    assert api.requests == []


@pytest.mark.parametrize("value", ["a\r\nx-api-key: stolen", "é", "\x00"])
async def test_a_header_of_the_agent_that_is_none_is_a_failure(api: Api, value: str) -> None:
    async with asking(api.upstream) as ask:
        answer = await ask(headers=[["user-agent", value]])
        assert answer.kinds == ["http.failed"]
        assert (await ask()).status == 200
    assert len(api.requests) == 1


@pytest.mark.parametrize("query", ["a=\n", "a=\x00", "é=ü", "a b", "a#b"])
async def test_no_query_makes_it_another_request(api: Api, query: str) -> None:
    async with asking(api.upstream) as ask:
        answer = await ask(f"/v1/messages?{query}")
    assert answer.kinds[-1] in ("http.end", "http.failed")
    for request in api.requests:
        assert request.target.startswith("/v1/messages?")
        assert request.target.isascii()
        assert " " not in request.target


async def test_a_proxy_of_the_environment_is_not_asked_about_a_local_endpoint(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with asking(api.upstream) as ask:
        assert (await ask()).status == 200


# --- what comes back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 429, 500, 529])
async def test_an_error_of_the_api_passes_as_it_is(api: Api, status: int) -> None:
    api.status, api.body = status, b'{"type":"error"}'
    async with asking(api.upstream) as ask:
        answer = await ask()
    assert (answer.status, answer.body, answer.kinds[-1]) == (status, b'{"type":"error"}', "http.end")


async def test_a_redirect_is_not_followed_and_its_address_not_told(api: Api) -> None:
    async with Api() as other:
        assert isinstance(other, Api)
        api.status = 307
        api.headers.append(("location", f"{other.base_url}/v1/messages"))
        async with asking(api.upstream) as ask:
            answer = await ask()
        assert (answer.status, answer.kinds[-1]) == (307, "http.end")
        assert "location" not in answer.headers
        assert other.requests == []


async def test_headers_of_the_answer_that_are_not_listed_stay_outside(api: Api) -> None:
    api.headers += [("set-cookie", "a=b"), ("server", "x"), ("connection", "keep-alive"), ("x-other", "1")]
    async with asking(api.upstream) as ask:
        assert (await ask()).headers == {"content-type": "application/json"}


async def test_a_compressed_answer_arrives_unpacked(api: Api) -> None:
    text = json.dumps({"text": "hello " * 50_000}).encode()
    api.body = gzip.compress(text)
    api.headers.append(("content-encoding", "gzip"))
    async with asking(api.upstream) as ask:
        answer = await ask()
    assert answer.body == text
    assert "content-encoding" not in answer.headers
    assert "content-length" not in answer.headers


async def test_a_compressed_answer_that_is_broken_is_a_failure(api: Api) -> None:
    api.body = b"this is not gzip at all"
    api.headers.append(("content-encoding", "gzip"))
    async with asking(api.upstream) as ask:
        assert "broke off" in (await ask()).failure["message"]


async def test_a_long_answer_arrives_whole_in_frames_of_64_kib_at_most(api: Api) -> None:
    api.body = os.urandom(3 * 1024 * 1024 + 17)
    async with asking(api.upstream) as ask:
        answer = await ask()
    assert answer.body == api.body
    sizes = [len(frame.body) for frame in answer.frames if frame.type == "http.data"]
    assert min(sizes) > 0
    assert max(sizes) <= MAX_BYTES


async def test_an_answer_streams_through_as_it_is_made() -> None:
    go_on = asyncio.Event()

    async def handler(request: Request, exchange: Exchange) -> None:
        await exchange.start(200, [("content-type", "text/event-stream")])
        await exchange.send(b"first")
        await go_on.wait()
        await exchange.send(b"second")
        await exchange.end()

    async with LoopbackServer(handler) as server, asking(Upstream(server.base_url)) as ask:
        frame = Frame("http.request", {"id": 1, "method": "POST", "target": "/v1/messages", "headers": []})
        forwarding = asyncio.create_task(ask.gateway.forward(frame, ask.out, ask.noted.append, ask.meter))
        assert (await anext(ask.frames)).type == "http.response"
        assert (await anext(ask.frames)).body == b"first"
        go_on.set()
        assert (await anext(ask.frames)).body == b"second"
        assert (await anext(ask.frames)).type == "http.end"
        await forwarding


async def test_answers_to_several_requests_at_once_are_kept_apart(api: Api) -> None:
    async def echo(request: Request, exchange: Exchange) -> None:
        await exchange.reply(200, request.body * 1000)

    async with LoopbackServer(echo) as server, asking(Upstream(server.base_url)) as ask:
        fields = {"method": "POST", "target": "/v1/messages", "headers": []}
        await asyncio.gather(
            *(
                ask.gateway.forward(
                    Frame("http.request", {**fields, "id": number}, b"%03d" % number), ask.out, print, Free()
                )
                for number in range(50)
            )
        )
        bodies = dict.fromkeys(range(50), b"")
        ended = 0
        while ended < 50:
            frame = await anext(ask.frames)
            ended += frame.type == "http.end"
            assert isinstance(frame.id, int)
            bodies[frame.id] += frame.body
    assert bodies == {number: b"%03d" % number * 1000 for number in range(50)}


# --- when it fails ------------------------------------------------------------------------------------------


async def test_an_upstream_that_is_not_there_is_a_failure_in_words() -> None:
    async with LoopbackServer(lambda request, exchange: exchange.end()) as server:
        gone = server.base_url
    async with asking(Upstream(gone, AUTHORISED)) as ask:
        answer = await ask()
    assert answer.kinds == ["http.failed"]
    assert answer.failure["type"] == "api_error"
    assert "cannot be reached" in answer.failure["message"]


@pytest.mark.parametrize("base_url", ["localhost:8080", "ftp://localhost", "http://", "http://local host", "nonsense"])
async def test_an_endpoint_that_is_no_address_is_a_failure_in_words(base_url: str) -> None:
    async with asking(Upstream(base_url, AUTHORISED)) as ask:
        answer = await ask()
    assert answer.kinds == ["http.failed"]
    assert KEY not in answer.failure["message"]


async def test_an_upstream_that_hangs_up_before_it_answers_is_a_failure() -> None:
    async def handler(request: Request, exchange: Exchange) -> None:
        pass

    async with LoopbackServer(handler) as server, asking(Upstream(server.base_url)) as ask:
        answer = await ask()
    assert answer.kinds == ["http.failed"]


async def test_an_answer_that_is_cut_is_a_failure_after_what_had_come() -> None:
    async def handler(request: Request, exchange: Exchange) -> None:
        await exchange.start(200, [("content-type", "text/event-stream")])
        await exchange.send(b"the beginning")

    async with LoopbackServer(handler) as server, asking(Upstream(server.base_url)) as ask:
        answer = await ask()
    assert answer.kinds == ["http.response", "http.data", "http.failed"]
    assert answer.body == b"the beginning"
    assert "broke off" in answer.failure["message"]


async def test_giving_up_a_request_gives_it_up_upstream_too() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(request: Request, exchange: Exchange) -> None:
        await exchange.start(200)
        await exchange.send(b"begun")
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with LoopbackServer(handler) as server, asking(Upstream(server.base_url)) as ask:
        forwarding = asyncio.create_task(ask())
        await started.wait()
        forwarding.cancel()
        await cancelled.wait()


async def test_an_agent_that_does_not_read_holds_its_answer_up_and_its_end_ends_it() -> None:
    class Stuck:
        def write(self, data: bytes) -> None:
            pass

        async def drain(self) -> None:
            await asyncio.Event().wait()

    given_up = asyncio.Event()

    async def handler(request: Request, exchange: Exchange) -> None:
        await exchange.start(200)
        try:
            while True:
                await exchange.send(bytes(1024 * 1024))
        finally:
            given_up.set()

    out = FrameWriter(Stuck())
    writing = asyncio.create_task(out.run())
    async with LoopbackServer(handler) as server, ModelGateway.open(Upstream(server.base_url)) as gateway:
        fields = {"id": 1, "method": "POST", "target": "/v1/messages", "headers": []}
        forwarding = asyncio.create_task(gateway.forward(Frame("http.request", fields, b"{}"), out, print, Free()))
        while not out._room._waiters:  # pyright: ignore[reportAttributeAccessIssue]
            await asyncio.sleep(0.01)
        # An answer without an end waits in the sockets now, and what is in memory is little.
        assert sum(out._sizes.values()) < 2 * 1024 * 1024
        assert not forwarding.done()
        assert not given_up.is_set()
        writing.cancel()
        with pytest.raises(ConnectionError):
            await forwarding
        await given_up.wait()


# --- what the host notes of it ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers", "noted"),
    [
        (200, [], None),
        (401, [], ModelFailure(401, "the model's API answered 401")),
        (429, [("retry-after", "7")], ModelFailure(429, "the model's API answered 429", 7)),
        (529, [("retry-after", "-1")], ModelFailure(529, "the model's API answered 529")),
        (503, [("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT")], ModelFailure(503, "the model's API answered 503")),
        (429, [("retry-after", "9" * 400)], ModelFailure(429, "the model's API answered 429")),
    ],
)
async def test_how_a_request_ended_is_noted_as_the_host_saw_it(
    api: Api, status: int, headers: list[tuple[str, str]], noted: ModelFailure | None
) -> None:
    async with asking(api.upstream) as ask:
        api.status = status
        api.headers += headers
        await ask()
        assert ask.noted == [noted]
        await ask("/v1/messages/count_tokens")
        assert ask.noted == [noted], "counting tokens answers nobody"


async def test_an_api_that_is_not_there_is_noted_without_a_status() -> None:
    async with asking(Upstream("http://127.0.0.1:9")) as ask:
        await ask()
        (noted,) = ask.noted
    assert noted is not None
    assert noted.status is None
    assert "cannot be reached" in noted.reason


async def test_what_does_not_leave_the_container_is_not_noted(api: Api) -> None:
    async with asking(api.upstream) as ask:
        await ask("/v1/files")
        assert ask.noted == []


# --- what it costs ------------------------------------------------------------------------------------------


QUESTION = json.dumps(
    {"model": "claude-sonnet-4-5", "stream": True, "messages": [{"role": "user", "content": "words " * 5000}]}
).encode()
#: What the scripted model says that the question took, and its answer to it.
TOOK = Figures("claude-sonnet-4-5", len(QUESTION) // 4, 7509)


async def test_the_figures_of_an_answer_are_the_meters_whether_it_is_streamed_or_not(model: ScriptedModel) -> None:
    async with asking(Upstream(model.base_url)) as ask:
        streamed = await ask("/v1/messages?beta=true", QUESTION)
        assert ask.meter.counted == [TOOK]
        whole = json.dumps({**json.loads(QUESTION), "stream": False}).encode()
        answer = await ask(body=whole)
        assert ask.meter.counted[1:] == [Figures("claude-sonnet-4-5", len(whole) // 4, 7509)]
    assert streamed.body.startswith(b"event: message_start")
    assert streamed.body.rstrip().endswith(b'data: {"type": "message_stop"}'), "it passes as it is"
    assert json.loads(answer.body)["usage"]["output_tokens"] == 7509


async def test_an_answer_that_is_cut_is_counted_as_far_as_it_came(model: ScriptedModel) -> None:
    async with asking(Upstream(model.base_url)) as ask:
        for events in (1, 4):
            model.fail_next(Cut(events))
            assert (await ask(body=QUESTION)).kinds[-1] == "http.failed"
    begun, halfway = ask.meter.counted
    assert begun == Figures(TOOK.model, TOOK.input_tokens, 1)
    assert halfway == Figures(TOOK.model, TOOK.input_tokens, 2 * 4096 // 4), "two pieces of text had come"


async def test_an_answer_that_the_agent_gives_up_is_counted_as_far_as_it_came(model: ScriptedModel) -> None:
    async with asking(Upstream(model.base_url)) as ask:
        model.fail_next(Stall(3))
        forwarding = asyncio.create_task(ask(body=QUESTION))
        seen = b""
        while b"content_block_delta" not in seen:
            seen += (await anext(ask.frames)).body
        forwarding.cancel()
        await asyncio.gather(forwarding, return_exceptions=True)
        assert ask.meter.counted == [Figures(TOOK.model, TOOK.input_tokens, 4096 // 4)]


async def test_what_the_agent_does_not_read_is_counted_all_the_same(model: ScriptedModel) -> None:
    class Gone:
        def write(self, data: bytes) -> None:
            raise ConnectionError

        async def drain(self) -> None:
            """Never reached."""

    out, meter = FrameWriter(Gone()), Ledger()
    writing = asyncio.create_task(out.run())
    fields = {"id": 1, "method": "POST", "target": "/v1/messages", "headers": []}
    async with ModelGateway.open(Upstream(model.base_url)) as gateway:

        async def ask_until_it_is_noticed() -> None:
            while True:
                await gateway.forward(Frame("http.request", fields, QUESTION), out, print, meter)

        with pytest.raises(ConnectionError):
            await ask_until_it_is_noticed()
    await asyncio.gather(writing, return_exceptions=True)
    assert TOOK in meter.counted


async def test_what_is_no_answer_is_not_counted(model: ScriptedModel, api: Api) -> None:
    async with asking(Upstream(model.base_url)) as ask:
        for status in (400, 401, 429, 500, 529):
            model.fail_next(Fail(status))
            assert (await ask(body=QUESTION)).status == status
        assert (await ask("/v1/messages/count_tokens", QUESTION)).status == 200
        await ask("/v1/files", QUESTION)
    async with asking(Upstream("http://127.0.0.1:9")) as nowhere:
        await nowhere(body=QUESTION)
    api.status, api.body = 529, b'{"model": "m", "usage": {"input_tokens": 7}}'
    async with asking(api.upstream) as overloaded:
        await overloaded(body=QUESTION)
    assert ask.meter.counted == nowhere.meter.counted == overloaded.meter.counted == []


async def test_a_request_that_the_meter_holds_back_does_not_leave_and_the_reason_is_noted(api: Api) -> None:
    async with asking(api.upstream) as ask:
        ask.meter.why = "this chat may spend nothing"
        answer = await ask()
        assert (answer.status, answer.kinds[-1], answer.headers["x-should-retry"]) == (402, "http.end", "false")
        error = {"type": "billing_error", "message": "this chat may spend nothing"}
        assert json.loads(answer.body) == {"type": "error", "error": error}
        assert ask.noted == [ModelFailure(402, "this chat may spend nothing", held_back=True)]
        assert api.requests == []
        assert (await ask("/v1/messages/count_tokens")).status == 200, "that costs nothing"
        ask.meter.why = None
        assert (await ask()).status == 200


async def test_the_upstream_can_be_replaced_while_it_is_used(api: Api) -> None:
    async with asking(api.upstream) as ask:
        await ask()
        ask.gateway.upstream = Upstream(api.base_url, ("x-api-key", "another"))
        await ask()
        assert api.requests[-1].header("x-api-key") == "another"
