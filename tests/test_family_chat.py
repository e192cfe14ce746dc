"""A chat of a family with the real SDK: registered by main, with a task, its cost and its history, on each runtime."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from loft import JID, Loft, database, loft
from stored import raw, rows
from support import NOON_ZONE, RUNTIMES, Chat, pynchy

from pynchy.plugin import ContainerRuntime
from pynchy.testing import ScriptedModel
from pynchy.types import Attachment, Group

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

GROUP = Group(JID, "Family", "family")


def tool(name: str, /, **arguments: object) -> str:
    """A line that has the scripted model call a tool."""
    return f"/tool {name} {json.dumps(arguments)}"


def ours(name: str, /, **arguments: object) -> str:
    """And one of the host's."""
    return tool(f"mcp__pynchy__{name}", **arguments)


def in_an_hour(prompt: str, context: str) -> dict[str, str]:
    """A task that comes once, long after the agent has scheduled it."""
    at = (datetime.now(UTC) + timedelta(hours=1)).isoformat(timespec="seconds")
    return {"prompt": prompt, "kind": "once", "schedule": at, "context": context}


def come_due(channel: Loft, tmp_path: Path) -> None:
    """Let the only task be one that was to come a second ago."""
    at = (datetime.now(UTC) - timedelta(seconds=1)).isoformat(timespec="seconds")
    with raw(database(tmp_path)) as db:
        db.execute("UPDATE tasks SET schedule = ?, next_run = ?", (at, at))
    assert channel.service
    channel.service.wake_scheduler()


@asynccontextmanager
async def family(runtime: ContainerRuntime, model: ScriptedModel, group: Group | None = GROUP) -> AsyncIterator[Loft]:
    async with loft(group, runtime, base_url=model.base_url) as channel:
        yield channel


async def test_main_registers_a_chat_that_has_a_task_its_cost_and_its_history(
    runtime: ContainerRuntime, model: ScriptedModel, tmp_path: Path
) -> None:
    async with family(runtime, model, None) as channel:
        assert channel.service
        main = Chat(channel.service)
        await channel.arrive("we like tulips")
        assert '"not registered": "loft:1"' in await main.ask(ours("list_groups"))
        registered = await main.ask(ours("register_group", jid=JID, folder="family", name="Family", time_zone="UTC"))
        assert registered.startswith("Registered: family, Family, trigger default")
        await channel.arrive("@Pynchy hello")
        assert await channel.hear() == "You said: @Pynchy hello"

        wishes = in_an_hour("water the tulips", "group")
        scheduled = await main.ask(ours("schedule_task", group="family", **wishes))
        assert scheduled.startswith("Scheduled: Task 1: water the tulips (once at ")
        come_due(channel, tmp_path)
        assert await channel.hear() == "You said: water the tulips"
        requests = [json.loads(request.body)["messages"] for request in model.requests]
        assert "@Pynchy hello" in json.dumps(requests[-1]), "the task knows the chat's conversation"

        await channel.arrive("@Pynchy thanks")
        assert await channel.hear() == "You said: @Pynchy thanks"
        said = json.dumps(json.loads(model.requests[-1].body)["messages"])
        assert "You said: water the tulips" in said, "the chat hears what its task has said"
        assert "scheduled task" not in said, "and not how it was asked"

        await channel.arrive(ours("search_history", words="tulips").replace("/tool", "@Pynchy\n/tool"))
        found = await channel.hear()
        assert "we like tulips" in found
        assert "You said: water the tulips" in found
        assert "Family" not in await main.ask(ours("search_history", words="tulips"))

        usage = json.loads(await asyncio.to_thread(lambda: pynchy("usage", "--json").stdout))
        assert "family" in json.dumps(usage)
        await channel.arrive("/status")
        assert "\nModel: $" in await channel.hear()
    assert rows(database(tmp_path), "SELECT DISTINCT folder, task_id FROM usage ORDER BY 1, 2") == [
        ("family", 0),
        ("family", 1),
        ("main", 0),
    ]
    assert rows(database(tmp_path), "SELECT count(*) FROM usage WHERE micro_usd > 0 AND NOT unpriced")[0][0] >= 3
    listed = pynchy("history", "search", "tulips", "--group", "family").stdout
    assert "we like tulips" in listed
    assert "\n## Task 1, due " in pynchy("history", "export", "family").stdout


def png(side: int, seed: int = 1) -> bytes:
    """A square of noise, which no compression makes smaller: 3 bytes a pixel."""
    noise = random.Random(seed)
    lines = b"".join(b"\0" + noise.randbytes(3 * side) for _ in range(side))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines, 0)) + chunk(b"IEND", b"")


async def test_a_photo_of_more_than_4_mb_is_seen_by_the_model_and_a_document_is_read(
    runtime: ContainerRuntime, model: ScriptedModel
) -> None:
    photo = png(1200)
    assert len(photo) > 4 * 1024 * 1024
    async with family(runtime, model) as channel:
        both = (Attachment("photo.png", "image/png", photo), Attachment("list.txt", "text/plain", b"milk, tea"))
        await channel.arrive("@Pynchy look", attachments=both)
        answer = await channel.hear()
        assert "[image image/" in answer
        (path,) = [
            line.removeprefix("[attachment ").removesuffix("]") for line in answer.split("\n") if "list.txt]" in line
        ]
        command = f"cat {path}; echo x >{path} || echo unchanged"
        await channel.arrive("@Pynchy\n" + tool("Bash", command=command))
        answer = await channel.hear()
        assert answer.startswith("milk, tea")
        assert answer.endswith("unchanged")
    blocks = [
        block
        for message in json.loads(model.requests[0].body)["messages"]
        if isinstance(message["content"], list)
        for block in message["content"]
    ]
    (image,) = [block for block in blocks if block["type"] == "image"]
    assert len(base64.b64decode(image["source"]["data"])) > 10_000


async def test_a_file_of_the_agents_goes_out_as_it_is(runtime: ContainerRuntime, model: ScriptedModel) -> None:
    class Carrying(Loft):
        """A channel that carries files."""

        async def send_file(self, jid: str, path: Path, caption: str) -> None:
            await self.sent.put(f"{path.name}: {path.read_bytes()!r}, {caption}")

    async with loft(GROUP, runtime, Carrying(), model.base_url) as channel:
        make = tool("Bash", command="printf 'a\\0b' >'my list.bin'; ln -s /etc/passwd link; mkfifo pipe")
        send = ours("send_file", path="my list.bin", caption="here <internal>hm</internal>")
        await channel.arrive(f"@Pynchy\n{make}\n{send}")
        assert await channel.hear() == "my_list.bin: b'a\\x00b', here"
        assert "File my_list.bin sent, 3 bytes." in await channel.hear()
        await channel.arrive(f"@Pynchy\n{ours('send_file', path='pipe')}\n{ours('send_file', path='nowhere')}")
        answer = await channel.hear()
        assert "sent" not in answer.replace("can be sent", "")
        assert await channel.silence() is None


async def test_what_all_agents_know_is_written_by_mains_alone(
    runtime: ContainerRuntime, model: ScriptedModel, tmp_path: Path
) -> None:
    write = tool("Bash", command="echo 'We speak Latin.' >/workspace/global/CLAUDE.md && echo written")
    async with family(runtime, model) as channel:
        assert channel.service
        await channel.arrive(f"@Pynchy\n{write}")
        assert "written" not in await channel.hear()
        assert (await Chat(channel.service).ask(write)) == "written"
        await channel.arrive("/clear")
        await channel.hear()
        await channel.arrive("@Pynchy hello")
        await channel.hear()
    assert "We speak Latin." in json.dumps(json.loads(model.requests[-1].body)["system"])


@pytest.mark.bubblewrap
async def test_a_conversation_is_compacted_and_then_begun_anew_and_its_history_stays(model: ScriptedModel) -> None:
    async with family(RUNTIMES["bubblewrap"](), model) as channel:
        await channel.arrive("@Pynchy my word is tulip")
        await channel.hear()
        await channel.arrive("@Pynchy /compact")
        assert (await channel.hear()).startswith("Our conversation is compacted")
        await channel.arrive("@Pynchy what is it?")
        assert (await channel.hear()).endswith("You said: @Pynchy what is it?")
        said = json.dumps(json.loads(model.requests[-1].body)["messages"])
        assert "being continued from a previous conversation" in said
        await channel.arrive("/clear")
        await channel.hear()
        await channel.arrive("@Pynchy hello")
        await channel.hear()
        assert "tulip" not in json.dumps(json.loads(model.requests[-1].body)["messages"])
    exported = pynchy("history", "export", "family").stdout
    assert exported.count("## Conversation") == 2
    assert "my word is tulip" in exported


@pytest.mark.bubblewrap
async def test_what_is_internal_leaves_the_host_on_no_path(model: ScriptedModel, tmp_path: Path) -> None:
    hidden = "<internal>secret plan</internal>"
    async with family(RUNTIMES["bubblewrap"](), model) as channel:
        await channel.arrive(f"@Pynchy {hidden}")
        await channel.hear()
        await channel.arrive(f"@Pynchy\n{ours('send_message', text=f'{hidden} to all')}")
        assert [await channel.hear(), await channel.hear()] == ["to all", "Message sent."]
        await channel.arrive(f"@Pynchy\n{ours('send_message', text=hidden)}")
        assert "nothing to send" in await channel.hear()
        wishes = in_an_hour(f"{hidden} water", "isolated")
        await channel.arrive(f"@Pynchy\n{ours('schedule_task', **wishes)}")
        assert (await channel.hear()).startswith("Scheduled:")
        come_due(channel, tmp_path)
        assert await channel.hear() == "You said:  water"
    texts = [text for (text,) in rows(database(tmp_path), "SELECT text FROM outbox WHERE kind != 'notice'")]
    assert not [text for text in texts if "secret plan" in text and not text.startswith("Scheduled:")]


@pytest.mark.bubblewrap
async def test_a_chat_that_may_spend_nothing_more_is_told_so_and_costs_nothing(
    model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYNCHY_TIME_ZONE", NOON_ZONE)
    async with family(RUNTIMES["bubblewrap"](), model, Group(JID, "Family", "family", usd_a_day=0.01)) as channel:
        await channel.arrive("@Pynchy hello")
        heard = {await channel.hear(), await channel.hear()}  # one request costs more than that
        assert "You said: @Pynchy hello" in heard
        (notice,) = heard - {"You said: @Pynchy hello"}
        assert notice.startswith("This chat has used up what may be spent in a day")
        asked = len(model.requests)
        await channel.arrive("@Pynchy and now?")
        assert "I could not answer: this chat has used up what may be spent in a day" in await channel.hear()
        assert len(model.requests) == asked
