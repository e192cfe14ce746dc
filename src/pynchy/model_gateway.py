"""The agent's model traffic, on its way out: the only place that holds the credential.

Requests arrive as frames from inside the container. Method and path are checked against a list, the headers
against another, the credential is added here, and the answer is streamed back as it comes, measured on the way.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx
import structlog
from pydantic import SecretStr

from pynchy.config import ANTHROPIC_API, Settings
from pynchy.model_usage import Figures, UsageReader
from pynchy.wire import MAX_BYTES, Frame, FrameWriter

log = structlog.get_logger(__name__)

_MESSAGES = "/v1/messages"
_ALLOWED = frozenset({("POST", _MESSAGES), ("POST", f"{_MESSAGES}/count_tokens")})
_REQUEST_HEADERS = frozenset({"accept", "content-type", "user-agent", "x-app", "anthropic-version", "anthropic-beta"})
_RESPONSE_HEADERS = frozenset({"content-type", "retry-after", "request-id", "x-should-retry"})
#: Marks requests that are authorised by a subscription's OAuth token.
_OAUTH_BETA = "oauth-2025-04-20"
#: The API sends a ping at least every few seconds while it thinks; silence for longer means it is gone.
_TIMEOUT = httpx.Timeout(connect=15, read=180, write=60, pool=60)
#: The API's own answer where there is no money left, which no client repeats.
_NOT_PAID = 402


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where model requests go, and the header that authorises them. `repr` never shows the secret."""

    base_url: str
    auth_header: tuple[str, str] | None = None
    oauth: bool = False

    def __repr__(self) -> str:
        return f"Upstream({self.base_url!r}, {'authorised' if self.auth_header else 'no credential'})"

    @classmethod
    def from_settings(cls, settings: Settings) -> Upstream | None:
        """The configured model: a bearer token goes before an API key, that before a subscription's token.

        None where neither a credential nor an endpoint is set.
        """
        if not settings.has_model:
            return None
        base_url = (settings.anthropic_base_url or ANTHROPIC_API).rstrip("/")
        if token := settings.anthropic_auth_token:
            return cls(base_url, ("authorization", f"Bearer {_secret(token)}"))
        if key := settings.anthropic_api_key:
            return cls(base_url, ("x-api-key", _secret(key)))
        if token := settings.claude_code_oauth_token:
            return cls(base_url, ("authorization", f"Bearer {_secret(token)}"), oauth=True)
        return cls(base_url)


@dataclass(frozen=True, slots=True)
class ModelFailure:
    """Why a model request got no answer, as the host saw it: the HTTP status, None where there was none.

    `retry_after` is how long the API asks to wait, in seconds. `held_back` says that the API was not asked, and
    `reason` why.
    """

    status: int | None
    reason: str
    retry_after: float | None = None
    held_back: bool = False


Note = Callable[[ModelFailure | None], None]


class Meter(Protocol):
    """What a message costs, and whether it may."""

    def refusal(self) -> str | None:
        """Why the model is not to be asked now, as people may read it; None where it may be."""
        ...

    def count(self, figures: Figures) -> None:
        """What an answer took, as far as it came; called at most once, and must return at once."""
        ...


class Free:
    """The meter of a model that costs nothing."""

    def refusal(self) -> str | None:
        """Everything may be asked."""
        return None

    def count(self, figures: Figures) -> None:
        """Nobody counts it."""


class ModelGateway:
    """Forwards the model requests of every agent to one upstream, which can be replaced while it runs."""

    def __init__(self, upstream: Upstream, client: httpx.AsyncClient) -> None:
        self.upstream = upstream
        self._client = client

    @classmethod
    @asynccontextmanager
    async def open(cls, upstream: Upstream) -> AsyncIterator[ModelGateway]:
        """A gateway with its connections, closed at the end."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
        # The loopback of a demo or a local endpoint never goes through a proxy of the environment.
        local = urlsplit(upstream.base_url).hostname in ("127.0.0.1", "localhost", "::1")
        async with httpx.AsyncClient(timeout=_TIMEOUT, limits=limits, trust_env=not local) as client:
            yield cls(upstream, client)

    async def forward(self, frame: Frame, out: FrameWriter, note: Note, meter: Meter) -> None:
        """Answer one `http.request` frame. Cancel to give up; every other end is a frame.

        `note` hears how each request for a message ended: None where it was answered. `meter` may hold it back,
        and is told what its answer took, also where that was cut or given up.
        """
        stream_id = frame.id
        method, target = str(frame.fields.get("method")), str(frame.fields.get("target"))
        # Not taken apart as a URL, so that `//host/v1/messages` is no path that is allowed.
        path, _, query = target.partition("?")
        if (method, path) not in _ALLOWED:
            log.warning("refused a request that is not for the model", method=method[:20], path=path[:200])
            await _refuse(out, stream_id, 404, "not_found_error", f"{method} {path} does not leave this container")
            return
        if path != _MESSAGES:
            note, meter = _nobody, Free()
        if why := meter.refusal():
            note(ModelFailure(_NOT_PAID, why, held_back=True))
            await _refuse(out, stream_id, _NOT_PAID, "billing_error", why)
            return
        url = self.upstream.base_url + path + (f"?{query}" if query else "")
        try:
            request = self._client.build_request(
                method, url, headers=self._headers(frame.fields.get("headers")), content=frame.body
            )
            response = await self._client.send(request, stream=True, follow_redirects=False)
        except (httpx.LocalProtocolError, UnicodeError):
            # What the error says quotes the header, and that may be the credential.
            await _fail(out, stream_id, "the model's API was not asked: a header is not valid HTTP")
            return
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            reason = f"the model's API cannot be reached: {_words(error)}"
            note(ModelFailure(None, reason))
            await _fail(out, stream_id, reason)
            return
        try:
            headers = [
                [name, value]
                for name, value in response.headers.items()
                if name in _RESPONSE_HEADERS or name.startswith("anthropic-ratelimit-")
            ]
            with _measured(response, meter) as read:
                await out.send(
                    Frame("http.response", {"id": stream_id, "status": response.status_code, "headers": headers})
                )
                async for chunk in response.aiter_bytes():
                    read(chunk)
                    for start in range(0, len(chunk), MAX_BYTES):
                        await out.send(Frame("http.data", {"id": stream_id}, chunk[start : start + MAX_BYTES]))
            note(_refusal(response) if response.is_error else None)
            await out.send(Frame("http.end", {"id": stream_id}))
        except httpx.HTTPError as error:
            reason = f"the model's answer broke off: {_words(error)}"
            note(ModelFailure(None, reason))
            await _fail(out, stream_id, reason)
        finally:
            await response.aclose()
            self._client.cookies.clear()  # one client serves every group, and none may mark another

    def _headers(self, given: Any) -> dict[str, str]:
        pairs = given if isinstance(given, list) else []
        headers = {
            str(name).lower(): str(value)
            for name, value in (pair for pair in pairs if isinstance(pair, list) and len(pair) == 2)
            if str(name).lower() in _REQUEST_HEADERS
        }
        if self.upstream.auth_header:
            name, value = self.upstream.auth_header
            headers[name] = value
        if self.upstream.oauth:
            betas = [beta for beta in headers.get("anthropic-beta", "").split(",") if beta]
            headers["anthropic-beta"] = ",".join(dict.fromkeys([*betas, _OAUTH_BETA]))
        return headers


def _refusal(response: httpx.Response) -> ModelFailure:
    """The status and the wait that the API asks for, in seconds (RFC 9110, 10.2.3; a date is ignored)."""
    retry_after = response.headers.get("retry-after", "")
    return ModelFailure(
        response.status_code,
        f"the model's API answered {response.status_code}",
        float(retry_after) if retry_after.isdecimal() and len(retry_after) < 7 else None,
    )


def _nobody(failure: ModelFailure | None) -> None:
    """Nobody wants to know."""


@contextmanager
def _measured(response: httpx.Response, meter: Meter) -> Iterator[Callable[[bytes], None]]:
    """Takes the bytes of an answer as they come, and tells the meter at the end, however that comes about."""
    reader = UsageReader(response.headers.get("content-type", ""))
    try:
        yield reader.feed
    finally:
        if response.status_code == httpx.codes.OK and (figures := reader.figures()):
            meter.count(figures)


async def _refuse(out: FrameWriter, stream_id: Any, status: int, kind: str, reason: str) -> None:
    body = _error_body(kind, reason)
    headers = [["content-type", "application/json"], ["x-should-retry", "false"]]
    head = {"id": stream_id, "status": status, "headers": headers}
    await out.send(Frame("http.response", head))
    await out.send(Frame("http.data", {"id": stream_id}, body))
    await out.send(Frame("http.end", {"id": stream_id}))


async def _fail(out: FrameWriter, stream_id: Any, reason: str) -> None:
    log.warning("model request failed", reason=reason)
    await out.send(Frame("http.failed", {"id": stream_id}, _error_body("api_error", reason)))


def _secret(value: SecretStr) -> str:
    # Files and clipboards add line ends, which no header may have.
    return value.get_secret_value().strip()


def _error_body(kind: str, message: str) -> bytes:
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
