"""What an agent reaches of the internet, and what not: with the real SDK and its tools, on each runtime."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from internet import PUBLIC, Internet
from support import Chat, StartService

from pynchy.app import Service
from pynchy.plugin import ContainerRuntime

pytestmark = pytest.mark.anyio


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch) -> Internet:
    """An internet that every service of the test uses."""
    internet = Internet()
    internet.replace_the_real_one(monkeypatch)
    return internet


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A web server: every request is answered with its first line."""
    head = await reader.readuntil(b"\r\n\r\n")
    line = head.split(b"\r\n")[0]
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(line), line))
    await writer.drain()
    writer.close()


@pytest.fixture
async def web(internet: Internet) -> AsyncIterator[asyncio.Server]:
    """A web server at a public address."""
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        internet.stands_at(PUBLIC, 80, server)
        internet.stands_at(PUBLIC, 443, server)
        yield server


def python(code: str) -> str:
    """The message with which the agent runs a program."""
    return f"/tool Bash {json.dumps({'command': f'python3 - <<END{chr(10)}{code}{chr(10)}END'})}"


_FETCH = """
import urllib.request, urllib.error
for url in {urls!r}:
    try:
        print(urllib.request.urlopen(url, timeout=20).read().decode())
    except urllib.error.HTTPError as error:
        print(error.code, error.read().decode().strip())
"""
_CONNECT = """
import http.client, os
proxy = os.environ["HTTPS_PROXY"].rpartition(":")[2]
connection = http.client.HTTPConnection("127.0.0.1", int(proxy), timeout=20)
connection.set_tunnel({host!r}, {port})
try:
    connection.request("GET", "/through")
    print(connection.getresponse().read().decode())
except OSError as error:
    print(error)
"""


async def set_network(service: Service, policy: str) -> None:
    """Change the main group's policy."""
    jid = await service.group_jid("main")
    await service.update_group(replace(service.registered_groups()[jid], network=policy))


async def test_a_program_reaches_what_the_policy_allows_without_any_set_up(
    runtime: ContainerRuntime, start_service: StartService, internet: Internet, web: asyncio.Server
) -> None:
    async with start_service(runtime) as service:
        chat = Chat(service)
        fetched = await chat.ask(python(_FETCH.format(urls=["http://example.com/a?b=c"])))
        assert fetched == "GET /a?b=c HTTP/1.1"
        assert await chat.ask(python(_CONNECT.format(host="example.com", port=443))) == "GET /through HTTP/1.1"
        await set_network(service, "none")
        refused = await chat.ask(python(_FETCH.format(urls=["http://example.com/"])))
        assert refused == "403 this chat's network policy allows no connection"
        assert "403 this chat's network policy allows no" in await chat.ask(
            python(_CONNECT.format(host="example.com", port=443))
        )
        await set_network(service, "*.example.org,example.com:443")
        assert await chat.ask(python(_CONNECT.format(host="example.com", port=443))) == "GET /through HTTP/1.1"
        refused = await chat.ask(python(_FETCH.format(urls=["http://example.com/"])))
        assert refused == "403 this chat's network policy does not name example.com:80"
    assert internet.dialled == [(PUBLIC, 80), (PUBLIC, 443), (PUBLIC, 443)]
