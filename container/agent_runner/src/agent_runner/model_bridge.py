"""The model's API inside the container: a loopback server whose requests leave as frames.

The container has no network and holds no credential. The SDK talks to this server as if it were the API; the
host checks each request, adds the credential and sends the answer back as it comes.
"""

from __future__ import annotations

from agent_runner.host_link import HostLink
from pynchy.loopback import Exchange, LoopbackServer, Request
from pynchy.wire import Frame

#: Headers that concern this hop alone, or that the host must set itself.
_NOT_FORWARDED = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "accept-encoding", "authorization", "x-api-key"}
)


def model_bridge(link: HostLink) -> LoopbackServer:
    """A server for `ANTHROPIC_BASE_URL`; use as an async context manager."""

    async def forward(request: Request, exchange: Exchange) -> None:
        headers = [[name, value] for name, value in request.headers if name not in _NOT_FORWARDED]
        async with link.stream() as (stream_id, frames):
            head = {"id": stream_id, "method": request.method, "target": request.target, "headers": headers}
            finished = False
            try:
                await link.send_large(Frame("http.request", head, request.body))
                while not finished:
                    finished = await _pass_on(await frames.get(), exchange)
            finally:
                if not finished:
                    link.send(Frame("http.cancel", {"id": stream_id}))

    return LoopbackServer(forward)


async def _pass_on(frame: Frame, exchange: Exchange) -> bool:
    """Give one frame of the host's answer to the client; True when it was the last."""
    if frame.type == "http.response":
        await exchange.start(frame.fields["status"], [tuple(pair) for pair in frame.fields["headers"]])
    elif frame.type == "http.data":
        await exchange.send(frame.body)
    elif frame.type == "http.end":
        await exchange.end()
        return True
    elif frame.type == "http.failed":
        # Without an end the client sees a cut connection, which is what the host saw.
        if not exchange.started:
            await exchange.reply(502, frame.body)
        return True
    return False
