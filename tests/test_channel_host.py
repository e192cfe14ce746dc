"""The plugins' channels: each is connected, kept connected and shown on its own, and none hurts another."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from pynchy_sample.plugin import Pigeon, PigeonPost
from stored import queued, rows
from support import RogueRuntime, StartService, until

from pynchy.app import Service
from pynchy.plugin import Attachment, ChannelPlugin, NotConnected, PluginContext, PluginRecord, PluginRegistry, State
from pynchy.plugin._crashes import CrashLog
from pynchy.types import Group

pytestmark = pytest.mark.anyio

LOFT = "pigeon:loft"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that a test can wait for."""
    for name, seconds in (("_FIRST_PAUSE", 0.01), ("_LOOK_EVERY", 0.01), ("_RECONNECT_WITHIN", 0.05)):
        monkeypatch.setattr(f"pynchy.channel_host.{name}", seconds)
    monkeypatch.setattr("pynchy.channel_host._DISCONNECT_WITHIN", 0.5)


def registry_of(*plugins: ChannelPlugin) -> PluginRegistry:
    """A registry with these channels."""
    records = [PluginRecord(one.name, "sample", State.READY, name=one.name) for one in plugins]
    return PluginRegistry(channels=list(plugins), records=records)


def trouble(service: Service, name: str = "pigeon") -> str | None:
    """What was last heard of a plugin's channel."""
    return service.reports.by_plugin().get(name, {}).get("channel")


class Magpie(PigeonPost):
    """Another one, whose channel a test can spoil."""

    name = "magpie"

    def __init__(self, **members: Any) -> None:
        super().__init__()
        self.members = members

    def create_channel(self, ctx: PluginContext) -> Pigeon:
        channel = super().create_channel(ctx)
        channel.name = "magpie"
        channel.owns_jid = lambda jid: jid.startswith("magpie:")
        for name, member in self.members.items():
            setattr(channel, name, member)
        return channel


async def test_a_channel_that_fails_to_connect_is_tried_again_and_shown_as_such(start_service: StartService) -> None:
    post = PigeonPost()
    post.failures = [OSError("no such host"), SystemExit(3), asyncio.CancelledError(), RuntimeError("still not")]
    seen: list[str | None] = []
    async with start_service(RogueRuntime("answers"), registry_of(post)) as service:
        note = service.reports.note

        async def watched(reports: Any) -> None:
            reports = list(reports)
            seen.extend(one.trouble for one in reports)
            await note(reports)

        service.reports.note = watched
        await until(lambda: trouble(service) == "")
        assert post.channel
        assert post.channel.connections == 1
    assert [words for words in seen if words][-1] == "RuntimeError: still not"


async def test_a_channel_that_never_connects_is_said_once_in_the_main_chat(
    start_service: StartService, tmp_path: Path
) -> None:
    post = PigeonPost()
    post.failures = [OSError("no such host")] * 1000
    async with start_service(RogueRuntime("answers"), registry_of(post)) as service:
        left = len(post.failures)
        await until(lambda: len(post.failures) < left - 3)
        assert trouble(service) == "OSError: no such host"
    (notice,) = queued(tmp_path / "home/pynchy.db")
    assert notice[0] == "terminal:main"
    assert "- pigeon: its channel does not connect (OSError: no such host)" in notice[1]


async def test_a_channel_that_drops_is_connected_again_and_sends_what_waited(
    start_service: StartService, tmp_path: Path
) -> None:
    post = PigeonPost()
    async with start_service(RogueRuntime("answers"), registry_of(post)) as service:
        await until(lambda: post.channel and post.channel.is_connected())
        assert post.channel
        await post.channel.disconnect()
        post.channel.failures.append(OSError("down"))
        await service.send_text(LOFT, "while it was away")
        async with asyncio.timeout(20):
            assert await post.channel.sent.get() == (LOFT, "Pynchy: while it was away")
        assert post.channel.connections == 2


async def test_what_no_connected_channel_owns_waits_in_the_outbox(start_service: StartService, tmp_path: Path) -> None:
    database = tmp_path / "home/pynchy.db"
    async with start_service(RogueRuntime("answers"), registry_of(PigeonPost())) as service:
        await service.send_text("heron:lake", "anybody?")
        await service.outbox.flush("heron:lake")
        assert queued(database) == [("heron:lake", "anybody?", "message")]


async def test_a_channel_that_cannot_be_created_is_reported_and_the_others_run(start_service: StartService) -> None:
    class Raises(PigeonPost):
        name = "raises"

        def create_channel(self, ctx: PluginContext) -> Pigeon:
            raise SystemExit("no token")

    class Wrong(PigeonPost):
        name = "wrong"

        def create_channel(self, ctx: PluginContext) -> Any:
            return object()

    post = PigeonPost()
    async with start_service(RogueRuntime("answers"), registry_of(Raises(), Wrong(), post)) as service:
        await until(lambda: trouble(service) == "")
        assert trouble(service, "raises") == "SystemExit: no token"
        assert trouble(service, "wrong") == "create_channel() returned object, which is no Channel"
        await service.register_group(Group(LOFT, "Loft", "loft", needs_trigger=False))
        assert post.channel
        await post.channel.arrive("hello")
        async with asyncio.timeout(20):
            assert await post.channel.sent.get() == (LOFT, "Pynchy: an answer")


@pytest.mark.parametrize("member", ["is_connected", "owns_jid", "connect", "sync_metadata", "set_typing"])
async def test_a_member_that_raises_hurts_no_other_channel(member: str, start_service: StartService) -> None:
    def raises(*_: object) -> Any:
        raise SystemExit(member)

    post = PigeonPost()
    async with start_service(RogueRuntime("answers"), registry_of(Magpie(**{member: raises}), post)) as service:
        await until(lambda: trouble(service) == "")
        await service.register_group(Group(LOFT, "Loft", "loft", needs_trigger=False))
        assert post.channel
        await post.channel.arrive("hello")
        async with asyncio.timeout(20):
            assert await post.channel.sent.get() == (LOFT, "Pynchy: an answer")


async def test_a_send_that_ends_the_process_is_one_that_failed(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pynchy.outbox._FIRST_PAUSE", 0.01)
    tries: list[str] = []

    async def leave(jid: str, text: str) -> None:
        tries.append(text)
        if len(tries) == 1:
            raise SystemExit(1)
        if len(tries) == 2:
            raise NotConnected(jid)

    async with start_service(RogueRuntime("answers"), registry_of(Magpie(send_message=leave))) as service:
        await until(lambda: trouble(service, "magpie") == "")
        await service.send_text("magpie:nest", "shiny")
        await until(lambda: len(tries) >= 2)
        service.outbox.wake()
        await until(lambda: len(tries) >= 3)
    assert tries == ["Pynchy: shiny"] * 3


async def test_a_channel_that_does_not_let_go_holds_up_no_end(start_service: StartService) -> None:
    async def hang() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue

    magpie = Magpie(disconnect=hang)
    before = asyncio.get_running_loop().time()
    async with start_service(RogueRuntime("answers"), registry_of(magpie)) as service:
        await until(lambda: trouble(service, "magpie") == "")
    assert asyncio.get_running_loop().time() - before < 15
    for task in asyncio.all_tasks():
        if "_disconnect" in repr(task.get_coro()):
            task.get_coro().close()  # pyright: ignore[reportOptionalMemberAccess] - it would outlive the test


# --- inbound ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"jid": "terminal:main"}, "does not belong to the channel 'pigeon'"),
        ({"timestamp": datetime(2026, 1, 1)}, "with a time zone"),
        ({"timestamp": "today"}, "with a time zone"),
        ({"content": None}, "content of a message must be a string"),
        ({"id": ""}, "needs an id"),
    ],
)
async def test_a_message_that_cannot_be_stored_or_is_not_the_channels_is_refused(
    changes: dict[str, Any], words: str, start_service: StartService, tmp_path: Path
) -> None:
    post = PigeonPost()
    async with start_service(RogueRuntime("answers"), registry_of(post)):
        assert post.channel
        with pytest.raises((TypeError, ValueError), match=words):
            await post.channel.arrive("hello", **changes)
        with pytest.raises(TypeError, match="takes a NewMessage"):
            await post.channel.context.on_message("hello")  # pyright: ignore[reportArgumentType]
    assert rows(tmp_path / "home/pynchy.db", "SELECT * FROM messages") == []


async def test_on_message_returns_once_the_message_is_stored_and_a_redelivery_is_harmless(
    start_service: StartService, tmp_path: Path
) -> None:
    post = PigeonPost()
    async with start_service(RogueRuntime("answers"), registry_of(post)):
        assert post.channel
        when = datetime.now(UTC)
        for _ in range(2):
            await post.channel.arrive("hello", id="one", timestamp=when)
            assert rows(tmp_path / "home/pynchy.db", "SELECT content FROM messages") == [("hello",)]


async def test_files_of_a_chat_that_nobody_answers_are_named_and_not_kept(
    start_service: StartService, tmp_path: Path
) -> None:
    post = PigeonPost()
    async with start_service(RogueRuntime("answers"), registry_of(post)):
        assert post.channel
        await post.channel.arrive("listen", attachments=(Attachment("note.ogg", "audio/ogg", b"x"),))
    ((content, kept),) = rows(tmp_path / "home/pynchy.db", "SELECT content, attachments FROM messages")
    assert (content, json.loads(kept)) == (
        "listen",
        [{"name": "note.ogg", "media_type": "audio/ogg", "size": 1, "file": ""}],
    )
    assert not list((tmp_path / "home").rglob("*note*"))


async def test_a_flood_arrives_whole_and_in_order(start_service: StartService, tmp_path: Path) -> None:
    post = PigeonPost()
    async with start_service(RogueRuntime("answers"), registry_of(post)):
        assert post.channel
        for number in range(1000):
            await post.channel.arrive(str(number))
    found = rows(tmp_path / "home/pynchy.db", "SELECT content FROM messages ORDER BY id")
    assert [content for (content,) in found] == [str(number) for number in range(1000)]


# --- what a channel gets ------------------------------------------------------------------------------------


async def test_a_context_has_the_plugins_settings_its_folder_and_the_groups(
    start_service: StartService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYNCHY_PIGEON_TOKEN", "secret")
    monkeypatch.setenv("PYNCHY_PIGEONS_TOKEN", "somebody else's")
    post = PigeonPost()
    async with start_service(RogueRuntime("answers"), registry_of(post)) as service:
        assert post.channel
        context = post.channel.context
        assert dict(context.config) == {"token": "secret"}
        assert context.data_dir == tmp_path / "home/plugins/pigeon"
        assert context.data_dir.stat().st_mode & 0o777 == 0o700
        assert context.log.name == "pynchy.plugins.pigeon"
        await service.register_group(Group(LOFT, "Loft", "loft", needs_trigger=False))
        groups = context.registered_groups()
        assert groups[LOFT].folder == "loft"
        with pytest.raises(TypeError):
            groups["x"] = replace(groups[LOFT])  # pyright: ignore[reportIndexIssue]
        await context.send_message(LOFT, "from the plugin")
        async with asyncio.timeout(20):
            assert await post.channel.sent.get() == (LOFT, "Pynchy: from the plugin")


async def test_what_was_said_before_a_chat_was_registered_is_answered_then(start_service: StartService) -> None:
    post = PigeonPost()
    async with start_service(RogueRuntime("answers"), registry_of(post)) as service:
        assert post.channel
        await post.channel.arrive("early")
        await service.register_group(Group(LOFT, "Loft", "loft", needs_trigger=False))
        async with asyncio.timeout(20):
            assert await post.channel.sent.get() == (LOFT, "Pynchy: an answer")


_DIES = """
import os, sys
from pathlib import Path
from pynchy.plugin import PluginRecord, State
from pynchy.plugin._crashes import watched
with watched(PluginRecord("pigeon", "sample:Post", State.READY), Path(sys.argv[1])):
    os._exit(1)
"""


async def test_a_start_that_dies_while_a_channel_is_created_leaves_that_plugin_out_of_the_next(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _DIES, str(tmp_path)], check=False, timeout=60)
    with CrashLog.open(tmp_path) as crashes:
        assert crashes.died_of(EntryPoint("pigeon", "sample:Post", "pynchy.plugins"))
        assert not crashes.died_of(EntryPoint("other", "sample:Post", "pynchy.plugins"))
