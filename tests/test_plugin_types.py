"""Each plugin type end to end: the real SDK in a real sandbox, and a model that does what it is told."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pynchy_sample.plugin import (
    SECRET_VARIABLE,
    Broken,
    Everything,
    Manners,
    PigeonPost,
    Shelf,
    Vault,
    Watch,
    marks,
)
from stored import rows
from support import RUNTIMES, Chat, StartService, until

from pynchy.app import Service
from pynchy.plugin import ContainerRuntime, PluginRecord, PluginRegistry, State
from pynchy.testing import ScriptedModel
from pynchy.types import Group

pytestmark = pytest.mark.anyio


def call(tool: str, **arguments: Any) -> str:
    """A line that makes the model call a tool."""
    return f"/tool {tool} {json.dumps(arguments)}"


def registry_of(*plugins: Any) -> PluginRegistry:
    """A registry that holds these in every list they belong to."""
    from pynchy.plugin._registry import PLUGIN_TYPES

    lists = {"runtime": "runtimes", "channel": "channels", "mcp": "mcp_servers"}
    registry = PluginRegistry()
    for plugin in plugins:
        registry.records.append(PluginRecord(plugin.name, "pynchy_sample.plugin", State.READY, name=plugin.name))
        for word, plugin_type in PLUGIN_TYPES:
            if isinstance(plugin, plugin_type):
                getattr(registry, lists.get(word, word)).append(plugin)
    return registry


# --- MCP servers --------------------------------------------------------------------------------------------


async def test_an_mcp_server_answers_with_its_own_sources_environment_and_a_folder_that_lasts(
    runtime: ContainerRuntime, start_service: StartService, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for expected in ("first\n", "first\nfirst\n"):
        async with start_service(runtime, registry_of(Shelf())) as service:
            answer = await Chat(service).ask(call("mcp__shelf__keep", note="first"))
        assert answer == expected.strip()
    async with start_service(runtime, registry_of(Shelf())) as service:
        answer = await Chat(service).ask(call("mcp__shelf__surroundings"))
    assert answer == "green /workspace/data/shelf /workspace/plugins/shelf"
    logged = "".join(capfd.readouterr())
    assert "ready" in logged
    assert "green" not in logged + repr(Shelf().mcp_server_spec()), "what is in env is in no log"
    assert (tmp_path / "home/plugin-data/shelf/main/notes").read_text() == "first\nfirst\n"


async def test_a_server_that_does_not_start_is_said_once_in_the_main_chat_and_the_agent_runs_on_without(
    runtime: ContainerRuntime, start_service: StartService
) -> None:
    registry = registry_of(Broken(), Shelf())
    async with start_service(runtime, registry) as service:
        chat = Chat(service)
        assert await chat.say(call("mcp__shelf__keep", note="all the same")) is None
        texts = [chat.texts.get_nowait()]
        jid = await service.group_jid("main")
        with service.terminal.attached(jid, chat.texts.put):
            async with asyncio.timeout(20):
                texts.append(await chat.texts.get())
        assert "all the same" in texts
        (notice,) = (text for text in texts if text != "all the same")
        assert notice.startswith("There is trouble with plugins:\n- broken: its MCP server does not work (")
        assert "`pynchy plugins check broken`" in notice
        assert {part for part, trouble in service.reports.by_plugin()["broken"].items() if trouble} == {"mcp"}
        assert service.reports.by_plugin()["shelf"]["mcp"] == ""
    async with start_service(runtime, registry) as service:
        assert await Chat(service).ask("hello") == "You said: hello", "it is not said again"


_PLANTED = ("mcp", "json", "asyncio", "agent_runner", "pynchy", "pynchy_sample")


async def test_what_an_agent_leaves_in_its_folder_takes_no_modules_place(
    runtime: ContainerRuntime, start_service: StartService, tmp_path: Path
) -> None:
    async with start_service(runtime, registry_of(Shelf(), Watch())) as service:
        plant = "; ".join(f"echo 'raise SystemExit(1)' > {name}.py" for name in _PLANTED)
        await Chat(service).ask(call("Bash", command=plant))
    async with start_service(runtime, registry_of(Shelf(), Watch())) as service:
        assert await Chat(service).ask(call("mcp__shelf__keep", note="safe")) == "safe"
        assert "the sample hook forbids it" in await Chat(service).ask(call("Bash", command="echo forbidden"))


# --- skills -------------------------------------------------------------------------------------------------


async def test_a_skill_is_loaded_with_its_files_and_is_gone_without_its_plugin(
    runtime: ContainerRuntime, start_service: StartService, model: ScriptedModel, tmp_path: Path
) -> None:
    async with start_service(runtime, registry_of(Manners())) as service:
        answer = await Chat(service).ask(call("Skill", skill="manners:sample-manners"))
        assert 'Say "if you please"' in answer
        folder = "/workspace/skills/manners/skills/sample-manners"
        assert folder in answer
        command = f"cat {folder}/manners.txt; touch {folder}/x 2>/dev/null || echo read-only"
        assert await Chat(service).ask(call("Bash", command=command)) == "Always hold the door.\nread-only"
    assert "manners:sample-manners" in model.requests[0].body.decode()
    async with start_service(runtime, PluginRegistry()) as service:
        answer = await Chat(service).ask(call("Bash", command="ls /workspace/skills"))
        assert answer == "pynchy"
        answer = await Chat(service).ask(call("Skill", skill="manners:sample-manners"))
        assert "Unknown skill: manners:sample-manners" in answer
        assert "Remembering" in await Chat(service).ask(call("Skill", skill="pynchy:chat-memory"))


# --- hooks --------------------------------------------------------------------------------------------------


async def test_hooks_fire_leave_their_marks_and_can_deny(
    runtime: ContainerRuntime, start_service: StartService, tmp_path: Path
) -> None:
    async with start_service(runtime, registry_of(Watch())) as service:
        chat = Chat(service)
        assert await chat.ask(call("Bash", command="echo allowed")) == "allowed"
        assert "the sample hook forbids it" in await chat.ask(call("Bash", command="echo forbidden"))
    found = [(mark["event"], mark["tool"]) for mark in marks(tmp_path / "home/groups/main")]
    assert found == [
        ("UserPromptSubmit", None),
        ("PreToolUse", "Bash"),
        ("PostToolUse", "Bash"),
        ("Stop", None),
        ("UserPromptSubmit", None),
        ("PreToolUse", "Bash"),
        ("Stop", None),
    ]


async def test_a_hook_that_raises_hangs_or_dies_is_skipped_and_one_that_fails_closed_blocks(
    runtime: ContainerRuntime, start_service: StartService, tmp_path: Path
) -> None:
    async with start_service(runtime, registry_of(Watch())) as service:
        chat = Chat(service)
        await chat.say(call("Write", file_path="/workspace/group/written", content="x"))
        await chat.say(call("Edit", file_path="/workspace/group/written", old_string="x", new_string="y"))
        await chat.say(call("Glob", pattern="*"))
        await chat.say(call("Grep", pattern="x", path="/workspace/group"))
        await chat.say(call("Bash", command="echo still here"))
        texts = [chat.texts.get_nowait() for _ in range(chat.texts.qsize())]
        assert (tmp_path / "home/groups/main/written").read_text() == "x", "one hook is skipped, the other blocks"
        assert texts[-1] == "still here"
        assert sum("There is trouble with plugins:\n- watch: its hooks do not work (" in text for text in texts) == 1
        assert service.reports.by_plugin()["watch"]["hooks"]
    after = [mark for mark in marks(tmp_path / "home/groups/main") if mark["event"] == "PreToolUse"]
    assert [mark["tool"] for mark in after][-1] == "Bash"


# --- host tools ---------------------------------------------------------------------------------------------


async def test_a_host_tool_answers_and_its_secret_is_nowhere_inside(
    runtime: ContainerRuntime, start_service: StartService, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "vault-secret-0123456789"
    monkeypatch.setenv(SECRET_VARIABLE, secret)
    search = "grep -rl vault-[s]ecret-0123 /proc/*/environ /home /tmp /workspace /opt/pynchy 2>/dev/null; echo searched"
    async with start_service(runtime, registry_of(Vault())) as service:
        chat = Chat(service)
        assert await chat.ask(call("mcp__vault__sign", word="tea")) == "tea is signed with 23 characters"
        assert await chat.ask(call("Bash", command=search)) == "searched"
        assert "is not of type 'string'" in await chat.ask(call("mcp__vault__sign", word=7))
        assert await chat.ask(call("mcp__vault__refuse")) == "not on a Sunday"
        assert await chat.ask(call("mcp__vault__fail")) == "fail failed (RuntimeError)"
        assert await chat.ask(call("mcp__vault__leave")) == "leave failed (SystemExit)"
        assert await chat.ask(call("mcp__vault__sleep")) == "sleep gave no answer within 0.2 s, and was stopped"
        assert await chat.ask(call("mcp__vault__count")) == "count answered with int, not with text"
    assert secret not in "".join(request.body.decode() for request in model.requests)


# --- channels -----------------------------------------------------------------------------------------------


async def registered(service: Service, plugins: tuple[str, ...] | None = None) -> None:
    """Make the pigeon's loft a group."""
    await service.register_group(Group("pigeon:loft", "Loft", "loft", needs_trigger=False, plugins=plugins))


async def give_plugins(service: Service, *plugins: str) -> None:
    """Let the loft's next agent have these."""
    await service.update_group(replace(service.registered_groups()["pigeon:loft"], plugins=plugins))


async def test_a_message_through_a_plugins_channel_is_answered_through_it(
    runtime: ContainerRuntime, start_service: StartService, tmp_path: Path
) -> None:
    post = PigeonPost()
    async with start_service(runtime, registry_of(post)) as service:
        await registered(service)
        assert post.channel
        await post.channel.arrive("coo <coo> & more")
        assert await post.channel.sent.get() == ("pigeon:loft", "Pynchy: You said: coo <coo> & more")
        assert post.channel.typing[0] is True
        await post.channel.arrive("x" * 100)
        parts = [(await post.channel.sent.get())[1] for _ in range(2)]
        assert all(len(part) <= 60 for part in parts)
        assert "".join(parts).endswith("x" * 100)
        assert (await service.known_chats())["pigeon:loft"] == "The loft"
    assert not post.channel.is_connected()


# --- composite, and who has what ----------------------------------------------------------------------------


async def test_a_composite_plugin_is_everything_at_once(
    runtime: ContainerRuntime, start_service: StartService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, "s" * 9)
    everything = Everything()
    async with start_service(runtime, registry_of(everything)) as service:
        await registered(service)
        assert everything.channel
        lines = [
            call("mcp__everything-shelf__keep", note="a note"),
            call("mcp__everything__sign", word="tea"),
            call("Skill", skill="everything:sample-manners"),
        ]
        await everything.channel.arrive("\n".join(lines))
        answer = ""
        while "if you please" not in answer:
            answer += (await everything.channel.sent.get())[1] + "\n"
    events = [mark["event"] for mark in marks(tmp_path / "home/groups/loft")]
    assert events.count("PreToolUse") == 3


@pytest.mark.bubblewrap
async def test_a_group_without_a_plugin_sees_none_of_its_parts_and_files(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch, model: ScriptedModel, tmp_path: Path
) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, "s" * 9)
    post = PigeonPost()
    registry = registry_of(post, Shelf(), Manners(), Watch(), Vault())
    async with start_service(RUNTIMES["bubblewrap"](), registry) as service:
        await registered(service, plugins=("manners",))
        assert post.channel
        show = "find /workspace -mindepth 2 -maxdepth 2 | grep -v group | sort"
        await post.channel.arrive(call("Bash", command=show))
        answer = (await post.channel.sent.get())[1].removeprefix("Pynchy: ").split()
        assert answer == ["/workspace/skills/manners", "/workspace/skills/pynchy"]
        offered = [tool["name"] for tool in json.loads(model.requests[-1].body)["tools"]]
        assert not [name for name in offered if "shelf" in name or "vault" in name]
        assert marks(tmp_path / "home/groups/loft") == []
        await give_plugins(service, "vault")
        await post.channel.arrive(call("mcp__vault__sign", word="tea"))
        assert (await post.channel.sent.get())[1] == "Pynchy: tea is signed with 9 characters"
        await give_plugins(service)
        await post.channel.arrive(call("mcp__vault__sign", word="tea"))
        assert "signed" not in (await post.channel.sent.get())[1]
        await give_plugins(service, "vault")
        go = tmp_path / "home/groups/loft/go"
        wait = "while [ ! -e go ]; do python3 -c 'import time; time.sleep(0.05)'; done; echo went"
        claimed = "SELECT count(*) FROM messages WHERE state = 'claimed'"
        asked = len(model.requests)
        await post.channel.arrive(call("Bash", command=wait))
        await until(lambda: len(model.requests) > asked)
        await give_plugins(service)
        await post.channel.arrive("said while it was busy")
        await until(lambda: rows(tmp_path / "home/pynchy.db", claimed) == [(2,)])
        go.touch()
        replies = ""
        while "said while it was busy" not in replies:
            replies += (await post.channel.sent.get())[1]
        assert "went" in replies
        await post.channel.arrive(call("mcp__vault__sign", word="tea"))
        assert "signed" not in (await post.channel.sent.get())[1], "the change was not lost on the busy agent"
    with sqlite3.connect(tmp_path / "home/pynchy.db") as db:
        assert db.execute("SELECT plugins FROM groups WHERE folder = 'loft'").fetchone() == ("[]",)
