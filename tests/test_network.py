"""What an agent reaches of the internet, and what not: with the real SDK and its tools, on each runtime."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import zipfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from internet import PUBLIC, Internet
from pynchy_sample.plugin import Shelf
from support import RUNTIMES, Chat, RogueRuntime, StartService, count_from_noon, pynchy
from wall import Nowhere

from agent_runner import plugin_hooks
from agent_runner.host_link import HostLink
from agent_runner.network_proxy import PROXY_VARIABLES, network_proxy
from pynchy.app import Service
from pynchy.plugin import ContainerRuntime, PluginRegistry, RunSpec
from pynchy.testing import ScriptedModel
from pynchy.types import Group
from pynchy.wire import FrameWriter

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]


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


async def shown(service: Service) -> str:
    """What `pynchy status` prints."""
    done = await asyncio.to_thread(pynchy, "status")
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n")


async def test_a_program_reaches_what_the_policy_allows_without_any_set_up(
    runtime: ContainerRuntime,
    start_service: StartService,
    internet: Internet,
    web: asyncio.Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count_from_noon(monkeypatch)
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
        assert await chat.ask("/status") == await shown(service)
        status = (await chat.ask(" /Status ")).splitlines()
    assert status[0] == f"Agents: main (at most 5 at once), in {runtime.name}"
    assert status[1].startswith("Model: $")
    assert status[2] == "Network: *.example.org,example.com:443"
    assert status[3].startswith("  example.com:80: 1 connection today, ")
    assert status[3].endswith(" received, 2 refused (this chat's network policy does not name example.com:80)")
    assert status[4].startswith("  example.com:443: 2 connections today, ")
    assert len(status) == 5
    assert internet.dialled == [(PUBLIC, 80), (PUBLIC, 443), (PUBLIC, 443)]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("docker", "podman")]
)
async def test_a_chat_has_a_network_of_its_own_only_where_its_user_says_so(
    name: str, start_service: StartService, internet: Internet
) -> None:
    async with start_service(RUNTIMES[name]()) as service:
        chat = Chat(service)
        look = f"/tool Bash {json.dumps({'command': 'ls /sys/class/net; env | grep -ci https_proxy= || true'})}"
        assert (await chat.ask(look)).split() == ["lo", "2"]
        await set_network(service, "bridge")
        own, loopback, proxies = (await chat.ask(look)).split()
    assert own != loopback == "lo"
    assert proxies == "0"
    assert internet.dialled == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"network": "bridge"}, "the runtime rogue gives no agent a network of its own: set another network policy"),
        (
            {"memory_bytes": 10**9, "pids": 99},
            "the runtime rogue cannot limit memory, pids here, as is set for this chat",
        ),
    ],
)
async def test_a_chat_that_asks_for_what_its_runtime_cannot_give_is_told_so_at_once(
    settings: dict[str, Any], words: str, start_service: StartService
) -> None:
    async with start_service(RogueRuntime("answers")) as service:
        jid = await service.group_jid("main")
        await service.update_group(replace(service.registered_groups()[jid], **settings))
        chat = Chat(service)
        error = await chat.say("hello")
        assert error is not None
        assert error.startswith(words)
        assert chat.texts.get_nowait().startswith(f"I could not answer: {words}")
        await service.update_group(Group(jid, "main", "main", is_main=True))
        assert await chat.ask("hello") == "an answer"


@pytest.mark.bubblewrap
async def test_a_plugins_server_finds_the_proxy_too(start_service: StartService, internet: Internet) -> None:
    finding = "for one in /proc/[0-9]*; do tr '\\0' ' ' <$one/environ; echo; done 2>/dev/null | grep SHELF_COLOUR=green"
    async with start_service(RUNTIMES["bubblewrap"](), PluginRegistry(mcp_servers=[Shelf()])) as service:
        seen = await Chat(service).ask(f"/tool Bash {json.dumps({'command': finding})}")
    assert "https_proxy=http://127.0.0.1:" in seen


async def test_a_plugins_hooks_find_the_proxy_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async with network_proxy(HostLink(FrameWriter(Nowhere()))) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert environment.items() <= plugin_hooks._environment("watch", "/workspace", "/opt/pynchy").items()
        assert set(environment) == set(PROXY_VARIABLES)


# --- tools that know of nothing -----------------------------------------------------------------------------

#: Where a tool looks for whom it trusts: the only thing that the tests' internet needs other than the real one.
_TRUST = ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT", "NODE_EXTRA_CA_CERTS")


def trusting(runtime: ContainerRuntime) -> ContainerRuntime:
    """The runtime, its agents trusting the certificates in their folder."""
    plain = runtime.run_args  # type: ignore[attr-defined]

    def run_args(spec: RunSpec) -> list[str]:
        return plain(replace(spec, env={**spec.env, **dict.fromkeys(_TRUST, "/workspace/group/ca.pem")}))

    runtime.run_args = run_args  # type: ignore[attr-defined]
    return runtime


@pytest.fixture
async def site(internet: Internet, tmp_path: Path) -> AsyncIterator[Path]:
    """A folder that https://example.com serves; its certificate's authority is in the main group's folder."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("example.com").configure_cert(context)
    folder = tmp_path / "site"
    folder.mkdir()
    (tmp_path / "home/groups/main").mkdir(parents=True)
    authority.cert_pem.write_to_path(str(tmp_path / "home/groups/main/ca.pem"))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode().partition("?")[0].lstrip("/")
        file = folder / path / "index.html" if (folder / path).is_dir() else folder / path
        status, body = ("200 OK", file.read_bytes()) if file.exists() else ("404 Not Found", b"")
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        internet.stands_at(PUBLIC, 443, server)
        yield folder


async def test_webfetch_reads_a_page_and_asks_nobody_else(
    runtime: ContainerRuntime, start_service: StartService, internet: Internet, site: Path, model: ScriptedModel
) -> None:
    (site / "page").mkdir()
    (site / "page/index.html").write_text("<html><body><h1>Hedgehogs</h1><p>They sleep in winter.</p></body></html>")
    async with start_service(trusting(runtime)) as service:
        fetch = {"url": "https://example.com/page/", "prompt": "What is this?"}
        await Chat(service).ask(f"/tool WebFetch {json.dumps(fetch)}")
    assert any("They sleep in winter." in request.body.decode() for request in model.requests)
    assert set(internet.dialled) == {(PUBLIC, 443)}


@pytest.mark.bubblewrap
async def test_curl_and_git_need_no_set_up(start_service: StartService, site: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    for command in (
        ["git", "init", "--quiet", str(work)],
        [
            "git",
            "-C",
            str(work),
            "-c",
            "user.name=A",
            "-c",
            "user.email=a@b.c",
            "commit",
            "--allow-empty",
            "-qm",
            "One",
        ],
        ["git", "clone", "--quiet", "--bare", str(work), str(site / "repo.git")],
        ["git", "-C", str(site / "repo.git"), "update-server-info"],
    ):
        subprocess.run(command, check=True)
    (site / "file").write_text("by curl")
    async with start_service(trusting(RUNTIMES["bubblewrap"]())) as service:
        chat = Chat(service)
        command = "curl --silent --show-error --fail https://example.com/file"
        assert await chat.ask(f"/tool Bash {json.dumps({'command': command})}") == "by curl"
        command = "git clone --quiet https://example.com/repo.git r && git -C r log --format=%s"
        assert await chat.ask(f"/tool Bash {json.dumps({'command': command})}") == "One"
        command = "curl --silent --show-error https://192.168.0.1/ https://example.org/"
        answer = await chat.ask(f"/tool Bash {json.dumps({'command': command})}")
        assert answer.count("CONNECT tunnel failed, response 403") + answer.count("code 403") == 1
        assert "502" in answer


@pytest.mark.docker
async def test_pip_needs_no_set_up(start_service: StartService, site: Path) -> None:
    (site / "simple/hedgehog").mkdir(parents=True)
    (site / "simple/hedgehog/index.html").write_text('<a href="hedgehog-1.0-py3-none-any.whl">hedgehog</a>')
    with zipfile.ZipFile(site / "simple/hedgehog/hedgehog-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("hedgehog.py", "NAME = 'Mecki'")
        wheel.writestr("hedgehog-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: hedgehog\nVersion: 1.0\n")
        wheel.writestr("hedgehog-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("hedgehog-1.0.dist-info/RECORD", "")
    async with start_service(trusting(RUNTIMES["docker"]())) as service:
        install = "python3 -m pip install -q --index-url https://example.com/simple --target /tmp/t hedgehog"
        command = f"{install} && PYTHONPATH=/tmp/t python3 -c 'import hedgehog; print(hedgehog.NAME)'"
        answer = await Chat(service).ask(f"/tool Bash {json.dumps({'command': command})}")
    assert answer.splitlines()[-1] == "Mecki"
