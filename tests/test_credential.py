"""A refused credential: said once, replaced from `.env`, and tried again by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pynchy.config import load_settings
from pynchy.credential import Credential
from pynchy.model_gateway import ModelGateway, Upstream

pytestmark = pytest.mark.anyio

OLD, NEW = ("x-api-key", "old"), ("x-api-key", "new")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The old credential in the environment, a home without `.env`, and no time to lose."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "old")
    monkeypatch.setenv("PYNCHY_RETRY_PAUSE", "0.01")
    monkeypatch.setattr("pynchy.credential._LOOK_EVERY", 0.001)
    (tmp_path / "home").mkdir()


class Watched:
    """A credential, what was said of it, and the resumptions, one after the other."""

    def __init__(self, gateway: ModelGateway, replaceable: bool) -> None:
        self.gateway = gateway
        self.said: list[str] = []
        self.held_up: list[str] = []
        self.resumed: asyncio.Queue[None] = asyncio.Queue()
        self.credential = Credential(
            load_settings(), gateway, self._say, self.held_up.append, self._resume, replaceable=replaceable
        )

    async def _say(self, text: str) -> None:
        self.said.append(text)

    async def _resume(self) -> None:
        self.resumed.put_nowait(None)

    async def refused(self) -> None:
        """It is refused, and some time later it is worth another try."""
        self.credential.refused()
        assert not self.credential.usable
        await self.resumed.get()
        assert self.credential.usable


@asynccontextmanager
async def watched(*, replaceable: bool = True) -> AsyncIterator[Watched]:
    async with ModelGateway.open(Upstream("https://api.anthropic.com", OLD)) as gateway:
        one = Watched(gateway, replaceable)
        watching = asyncio.create_task(one.credential.watch())
        yield one
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_one_refusal_is_not_spoken_of_and_further_ones_once() -> None:
    async with watched() as it:
        await it.refused()
        assert it.said == []
        for _ in range(3):
            await it.refused()
        assert len(it.said) == 1
        assert "does not accept my credential (HTTP 401)" in it.said[0]
        assert len(it.held_up) == 3, "whoever waits hears of it each time"


async def test_after_it_was_accepted_a_refusal_is_news_again() -> None:
    async with watched() as it:
        for _ in range(2):
            await it.refused()
        it.credential.accepted()
        assert not it.credential.known_refused
        for _ in range(2):
            await it.refused()
        assert len(it.said) == 2


async def test_the_credential_in_the_file_takes_the_place_of_every_other(tmp_path: Path) -> None:
    async with watched() as it:
        (tmp_path / "home/.env").write_text("ANTHROPIC_API_KEY=new\n")
        await it.refused()
        assert it.gateway.upstream.auth_header == NEW
        assert it.said == []
        (tmp_path / "home/.env").write_text("CLAUDE_CODE_OAUTH_TOKEN=token\n")
        await it.refused()
        assert it.gateway.upstream.auth_header == ("authorization", "Bearer token")
        assert it.gateway.upstream.oauth


async def test_a_file_that_comes_while_it_is_waited_for_ends_the_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYNCHY_RETRY_PAUSE", "1000")
    async with watched() as it:
        refused = asyncio.create_task(it.refused())
        await asyncio.sleep(0.05)
        assert not refused.done()
        (tmp_path / "home/.env").write_text("ANTHROPIC_API_KEY=new\n")
        await refused
        assert it.gateway.upstream.auth_header == NEW


@pytest.mark.parametrize("content", ["", "ANTHROPIC_API_KEY=\n", "ANTHROPIC_API_KEY=old\n", "OTHER=1\n", "\0\0", "="])
async def test_a_file_without_another_credential_changes_nothing(tmp_path: Path, content: str) -> None:
    async with watched() as it:
        (tmp_path / "home/.env").write_text(content)
        await it.refused()
        assert it.gateway.upstream == Upstream("https://api.anthropic.com", OLD)


async def test_a_file_that_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    async with watched() as it:
        (tmp_path / "home/.env").write_bytes(b"\xff\xfe")
        await it.refused()
        assert it.gateway.upstream.auth_header == OLD


async def test_a_demo_never_takes_a_real_credential(tmp_path: Path) -> None:
    (tmp_path / "home/.env").write_text("ANTHROPIC_API_KEY=new\n")
    async with watched(replaceable=False) as it:
        await it.refused()
        assert it.gateway.upstream.auth_header == OLD
