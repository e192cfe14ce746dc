"""The agent's way to the internet: an HTTP proxy on the container's loopback whose connections the host opens.

The host decides what is reached; here are only the protocol (RFC 9110, 9.3.6 and RFC 9112, 3.2) and h11's two sides
of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import h11

from agent_runner.host_link import HostLink
from pynchy.tunnel import Tunnel, TunnelRefused

#: What every HTTP library looks for. Lower case too, because curl reads `http_proxy` alone.
_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
_DIRECT = "localhost,127.0.0.1,::1"
#: Everything that `network_proxy` yields.
PROXY_VARIABLES = (*_VARIABLES, "NO_PROXY", "no_proxy", "NODE_USE_ENV_PROXY", "CLAUDE_CODE_PROXY_RESOLVES_HOSTS")
#: Headers that concern the hop to this proxy alone (RFC 9110, 7.6.1).
_HOP = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"proxy-authorization", b"te", b"trailer", b"upgrade"}
)
#: What of an absolute URL is not asked of its server.
_ORIGIN = re.compile(r"^http://[^/?]*", re.IGNORECASE)
_READ_BYTES = 64 * 1024
_MAX_HEAD = 64 * 1024


class BadRequest(Exception):
    """Something that no proxy can do."""


@asynccontextmanager
async def network_proxy(link: HostLink) -> AsyncIterator[dict[str, str]]:
    """Serve the proxy; yields the environment with which programs find it."""
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(_serve(link, reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    env = dict.fromkeys(_VARIABLES, url)
    # Node reads the variables only when it is told to, and Claude would look names up itself, which nobody answers.
    env |= {
        "NO_PROXY": _DIRECT,
        "no_proxy": _DIRECT,
        "NODE_USE_ENV_PROXY": "1",
        "CLAUDE_CODE_PROXY_RESOLVES_HOSTS": "1",
    }
    try:
        yield env
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _serve(link: HostLink, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    client = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)
    try:
        while True:
            try:
                request = await _next_event(client, reader)
                if not isinstance(request, h11.Request):
                    return
                if request.method == b"CONNECT":
                    await _connect(link, request, client, reader, writer)
                    return
                await _forward(link, request, client, reader, writer)
            except (BadRequest, h11.RemoteProtocolError) as error:
                _refuse(writer, 400, str(error))
                return
            except TunnelRefused as refused:
                _refuse(writer, refused.status, str(refused))
                return
            if client.our_state is not h11.DONE or client.their_state is not h11.DONE:
                return
            client.start_next_cycle()
    except (ConnectionError, OSError, h11.LocalProtocolError):
        writer.transport.abort()
    except asyncio.CancelledError:
        writer.transport.abort()
        raise
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, OSError):
            await writer.wait_closed()


async def _next_event(connection: h11.Connection, reader: asyncio.StreamReader | Tunnel) -> h11.Event | type:
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await (reader.read() if isinstance(reader, Tunnel) else reader.read(_READ_BYTES)))
    return event


def _refuse(writer: asyncio.StreamWriter, status: int, reason: str) -> None:
    """Answer with the reason also where the status line has its phrase, which is all that some programs show."""
    phrase = "".join(character for character in reason if " " <= character <= "~")[:200]
    body = f"{reason}\n".encode()
    head = f"HTTP/1.1 {status} {phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)


async def _connect(
    link: HostLink,
    request: h11.Request,
    client: h11.Connection,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    """Make this connection the program's own to where it wants to go."""
    host, port = _address(f"//{request.target.decode('latin-1')}", None)
    async with link.tunnel() as tunnel:
        await tunnel.open(host, port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        if early := client.trailing_data[0]:
            await tunnel.write(early)
        await tunnel.relay(reader, writer)


async def _forward(
    link: HostLink,
    request: h11.Request,
    client: h11.Connection,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    """Repeat a request to its server, and the answer to the program, each as it comes."""
    target = request.target.decode("latin-1")
    if not target.lower().startswith("http://"):
        raise BadRequest("this is a proxy: it takes http:// URLs, and CONNECT for everything else")
    host, port = _address(target, 80)
    rest = "/" + _ORIGIN.sub("", target).removeprefix("/")
    names = {
        token.strip().lower() for name, value in request.headers if name == b"connection" for token in value.split(b",")
    }
    headers = [(name, value) for name, value in request.headers if name not in _HOP and name not in names]
    async with link.tunnel() as tunnel:
        await tunnel.open(host, port)
        server = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        head = h11.Request(method=request.method, target=rest, headers=[*headers, (b"connection", b"close")])
        await tunnel.write(server.send(head) or b"")
        asking = asyncio.ensure_future(_pass_request(client, reader, writer, server, tunnel))
        try:
            await _pass_answer(server, tunnel, client, writer)
        finally:
            if client.their_state is not h11.DONE:
                asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)


async def _pass_request(
    client: h11.Connection,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    server: h11.Connection,
    tunnel: Tunnel,
) -> None:
    if client.they_are_waiting_for_100_continue:
        writer.write(client.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
    while True:
        event = await _next_event(client, reader)
        if not isinstance(event, h11.Data | h11.EndOfMessage):
            return
        await tunnel.write(server.send(event) or b"")
        if isinstance(event, h11.EndOfMessage):
            return


async def _pass_answer(
    server: h11.Connection, tunnel: Tunnel, client: h11.Connection, writer: asyncio.StreamWriter
) -> None:
    while True:
        event = await _next_event(server, tunnel)
        if isinstance(event, h11.Response):
            headers = [(name, value) for name, value in event.headers if name not in _HOP]
            event = h11.Response(status_code=event.status_code, headers=headers, reason=event.reason)
        elif isinstance(event, h11.InformationalResponse):
            continue  # a 100 has been said already, and nobody asked for the others
        elif not isinstance(event, h11.Data | h11.EndOfMessage):
            raise ConnectionResetError("the server's answer broke off")
        writer.write(client.send(event) or b"")
        await writer.drain()
        if isinstance(event, h11.EndOfMessage):
            return


def _address(url: str, default_port: int | None) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or default_port
    except ValueError:
        host = port = None
    if not host or not port:
        raise BadRequest(f"{url[:200]!r} names no host and port")
    return host, port
