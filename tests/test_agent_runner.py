"""The agent's side of the wall: the real runner and SDK in a sandbox, on a wire whose host is the test."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from contained import Agent, contained
from support import BUSY, until

from pynchy.container_runner import AgentRun
from pynchy.testing import ScriptedModel, Stall
from pynchy.types import INTERRUPTED
from pynchy.wire import MAX_FILE

pytestmark = [pytest.mark.anyio, pytest.mark.bubblewrap]

_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\x06\0\0\0\x1f\x15\xc4\x89"
_PNG += b"\0\0\0\rIDATx\xdac\xfc\xcf\xc0P\x0f\0\x04\x85\x01\x80\x84\xa9\x8c!\0\0\0\0IEND\xaeB`\x82"
_GIF = b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff!\xf9\4\1\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\1D\0;"


@pytest.fixture
async def agent(tmp_path: Path, model: ScriptedModel) -> AsyncIterator[Agent]:
    """An agent whose model is the scripted one."""
    async with contained(tmp_path / "agent", model.base_url) as agent:
        yield agent


def tool(name: str, **properties: str) -> dict[str, Any]:
    """A tool of the host, with arguments of these types."""
    schema = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}}
    return {"name": name, "description": f"Does {name}.", "input_schema": schema}


def calls(name: str, **arguments: Any) -> str:
    """A prompt that has the model call this tool."""
    return f"/tool {name} {json.dumps(arguments)}"


async def said(run: AgentRun) -> str:
    """The text of the next answer."""
    output = await run.result()
    assert output.error is None
    return output.text or ""


def shown(model: ScriptedModel, number: int = -1) -> dict[str, Any]:
    """A request that the model was sent."""
    return json.loads(model.requests[number].body)


# --- tools of the host ----------------------------------------------------------------------------------------


async def test_our_own_tools_are_those_that_the_host_describes(agent: Agent, model: ScriptedModel) -> None:
    run = await agent.start(calls("mcp__pynchy__ring", times=3), host_tools=[tool("ring", times="integer")])
    agent.host.answers.put_nowait("it rang")
    assert await said(run) == "it rang"
    assert agent.host.calls == [("ring", {"times": 3})]
    ours = [one for one in shown(model)["tools"] if one["name"].startswith("mcp__pynchy__")]
    assert [(one["name"], one["description"]) for one in ours] == [("mcp__pynchy__ring", "Does ring.")]
    assert ours[0]["input_schema"]["properties"] == {"times": {"type": "integer"}}


async def test_where_the_host_describes_no_tool_there_is_none(agent: Agent, model: ScriptedModel) -> None:
    assert await said(await agent.start("hello")) == "You said: hello"
    assert not [one["name"] for one in shown(model)["tools"] if one["name"].startswith("mcp__")]


_SEND_FILE = {**tool("send_file", path="string", caption="string"), "file": "path"}


async def test_a_file_is_read_in_the_container_and_crosses_as_bytes(agent: Agent) -> None:
    data = os.urandom(3_000_000)
    (agent.home / "group/out").mkdir()
    (agent.home / "group/out/réport \n.bin").write_bytes(data)
    (agent.home / "attachments/seen.txt").write_bytes(b"")
    caption = '"\\\x01🦔' * 1000
    run = await agent.start(
        calls("mcp__pynchy__send_file", path="out/réport \n.bin", caption=caption)
        + "\n"
        + calls("mcp__pynchy__send_file", path="/workspace/attachments/seen.txt"),
        host_tools=[_SEND_FILE],
    )
    assert await said(run) == "réport .bin is on its way\nseen.txt is on its way"
    assert agent.host.files == [("réport .bin", {"caption": caption}, data), ("seen.txt", {}, b"")]


async def test_what_is_no_file_that_can_be_sent_is_said_and_holds_up_nothing(agent: Agent) -> None:
    group = agent.home / "group"
    os.mkfifo(group / "pipe", 0o666)
    (group / "folder").mkdir()
    with (group / "large").open("wb") as large:
        large.truncate(MAX_FILE + 1)
    paths = ["nowhere", "pipe", "folder", "", "/dev/zero", "large", "nul\0l", "x" * 300]
    prompt = "\n".join(calls("mcp__pynchy__send_file", path=path) for path in paths)
    too_long = calls("mcp__pynchy__send_file", path="large", caption="x" * 30_000)
    run = await agent.start(f"{prompt}\n{too_long}", host_tools=[_SEND_FILE])
    assert (await said(run)).splitlines() == [
        "there is no file /workspace/group/nowhere",
        *(f"/workspace/group/{name} is no file: it is a folder, a pipe or a device" for name in ("pipe", "folder")),
        "/workspace/group is no file: it is a folder, a pipe or a device",
        "/dev/zero is no file: it is a folder, a pipe or a device",
        "/workspace/group/large is larger than 45 MB, which is too large",
        "/workspace/group/nul\0l cannot be read: embedded null byte",
        f"/workspace/group/{'x' * 300} cannot be read: File name too long",
        "what you say beside the path is too long: shorten it, or put it into a message of its own",
    ]
    assert agent.host.files == []


# --- pictures -------------------------------------------------------------------------------------------------


async def test_pictures_are_shown_to_the_model_whatever_they_are_called(agent: Agent) -> None:
    attachments = agent.home / "attachments"
    (attachments / "picture.txt").write_bytes(_PNG)
    (attachments / "small.gif").write_bytes(_GIF)
    (attachments / "words.png").write_text("I am no picture")
    os.mkfifo(attachments / "pipe.png")
    with (attachments / "large.png").open("wb") as large:
        large.write(_PNG)
        large.truncate(20_000_001)
    run = await agent.start("look", images=["picture.txt", "words.png", "pipe.png", "nowhere.png", "large.png"])
    assert (await said(run)).splitlines() == [
        "You said: look",
        "[A picture is not shown: words.png is neither PNG, JPEG, GIF nor WebP, whatever it is called]",
        "[A picture is not shown: /workspace/attachments/pipe.png is no file: it is a folder, a pipe or a device]",
        "[A picture is not shown: there is no file /workspace/attachments/nowhere.png]",
        "[A picture is not shown: /workspace/attachments/large.png is larger than 20 MB, which is too large]",
        f"[image image/png, {len(_PNG)} bytes]",
    ]
    run.send("and this?", (2,), ["small.gif"])
    assert await said(run) == f"You said: and this?\n[image image/gif, {len(_GIF)} bytes]"


async def test_pictures_of_prompts_that_are_answered_together_are_shown_together(agent: Agent) -> None:
    (agent.home / "attachments/a.png").write_bytes(_PNG)
    (agent.home / "attachments/b.gif").write_bytes(_GIF)
    run = await agent.start(calls("mcp__pynchy__wait"), host_tools=[tool("wait")])
    await until(lambda: agent.host.calls)
    run.send("one", (2,), ["a.png"])
    run.send("two", (3,), ["b.gif"] + 20 * ["a.png"])
    agent.host.answers.put_nowait("waited")
    assert await said(run) == "waited"
    output = await run.result()
    assert output.ids == (2, 3)
    assert output.text is not None
    lines = output.text.splitlines()
    assert lines[:3] == [
        "You said: one",
        "two",
        "[2 more pictures are not shown: at most 20 are. They are files]",
    ]
    assert lines[3:5] == [f"[image image/png, {len(_PNG)} bytes]", f"[image image/gif, {len(_GIF)} bytes]"]
    assert len(lines) == 3 + 20


# --- a conversation made shorter ------------------------------------------------------------------------------


async def test_compaction_goes_in_by_itself_and_its_summary_is_what_a_later_agent_knows(
    agent: Agent, model: ScriptedModel
) -> None:
    run = await agent.start(calls("mcp__pynchy__wait", word="tulip"), host_tools=[tool("wait", word="string")])
    await until(lambda: agent.host.calls)
    run.send("before", (2,))
    run.send("also before", (3,))
    run.send("/compact keep flowers", (4,))
    run.send("after", (5,))
    run.send("/compact", (6,))
    run.send("/compacted milk", (7,))
    agent.host.answers.put_nowait("waited")
    answers = [await run.result() for _ in range(6)]
    assert [(one.ids, one.text, one.error) for one in answers] == [
        ((1,), "waited", None),
        ((2, 3), "You said: before\nalso before", None),
        ((4,), "", None),
        ((5,), "You said: after", None),
        ((6,), "", None),
        ((7,), "You said: /compacted milk", None),
    ]
    compacting = shown(model, 3)["messages"][-1]["content"]
    assert "keep flowers" in str(compacting)
    await run.stop()

    asked = len(model.requests)
    later = await agent.start("who are you?", session_id=answers[-1].session_id)
    assert await said(later) == "You said: who are you?"
    assert len(model.requests) == asked + 1
    resumed = json.dumps(shown(model)["messages"])
    assert "This session is being continued from a previous conversation" in resumed
    assert "/compacted milk" in resumed
    assert "also before" not in resumed
    assert "tulip" not in resumed


# --- what it is doing -----------------------------------------------------------------------------------------

_UNTIL_TOLD = "touch began; while [ ! -e go ]; do python3 -c 'import time; time.sleep(0.05)'; done"


async def test_what_the_agent_is_doing_is_known_while_it_does_it(agent: Agent) -> None:
    run = await agent.start(
        calls("Bash", command=_UNTIL_TOLD, description="Look for\n tulips " + "x" * 300)
        + "\n"
        + calls("mcp__pynchy__wait", secret="tulip"),
        host_tools=[tool("wait", secret="string")],
    )
    await until((agent.home / "group/began").exists)
    assert run.doing.startswith("Bash: Look for tulips x")
    assert len(run.doing) == 120
    (agent.home / "group/go").touch()
    await until(lambda: agent.host.calls)
    assert run.doing == "mcp__pynchy__wait"
    agent.host.answers.put_nowait("waited")
    await said(run)
    assert run.doing == ""


# --- memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_main", [True, False])
async def test_the_memory_of_every_chat_is_read_before_that_of_this_one(
    agent: Agent, model: ScriptedModel, is_main: bool
) -> None:
    (agent.home / "global/CLAUDE.md").write_text("We water flowers on Sundays.")
    (agent.home / "group/CLAUDE.md").write_text("Ada likes tulips.")
    await said(await agent.start("hello", is_main=is_main))
    prompt = json.dumps(shown(model)["system"])
    assert 0 < prompt.index("# The memory of every chat") < prompt.index("We water flowers")
    assert prompt.index("We water flowers") < prompt.index("# CLAUDE.md") < prompt.index("Ada likes tulips.")
    assert ("this chat, the main one, is the only one that can write it" in prompt) == is_main
    assert ("only the main chat can write it" in prompt) != is_main


async def test_a_memory_that_is_a_pipe_is_none(agent: Agent) -> None:
    for name in ("global", "group"):
        os.mkfifo(agent.home / name / "CLAUDE.md", 0o666)
    assert await said(await agent.start("hello")) == "You said: hello"


# --- interrupts -----------------------------------------------------------------------------------------------

#: Seconds, on a machine that has much else to do; what is interrupted takes minutes, or half of one.
_SOON = 25.0
_MCP_SERVER = """
import json, sys, time
for line in sys.stdin:
    asked = json.loads(line)
    if asked["method"] == "initialize":
        answer = {"protocolVersion": asked["params"]["protocolVersion"], "capabilities": {"tools": {}},
                  "serverInfo": {"name": "slow", "version": "1"}}
    elif asked["method"] == "tools/list":
        answer = {"tools": [{"name": "wait", "description": "Waits.", "inputSchema": {"type": "object"}}]}
    elif asked["method"] == "tools/call":
        open("called", "w").close()
        time.sleep(300)
    else:
        continue
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": answer}), flush=True)
"""
_SLOW_SERVER = {"slow": {"command": "python3", "args": ["-c", _MCP_SERVER]}}
#: It starts once the test says so.
_WAITING = "import os, time\nopen('started', 'w').close()\nwhile not os.path.exists('go'): time.sleep(0.02)\n"
_WAITING_SERVER = {"slow": {"command": "python3", "args": ["-c", _WAITING + _MCP_SERVER]}}


async def interrupted(run: AgentRun, ids: tuple[int, ...]) -> None:
    """Interrupt; it ends the answer to these messages soon, and the agent goes on."""
    began = time.monotonic()
    await run.interrupt()
    output = await run.result()
    assert (output.ids, output.text, output.error) == (ids, None, INTERRUPTED)
    assert time.monotonic() - began < _SOON
    run.send("still there?", (99,))
    assert await said(run) == "You said: still there?"


async def test_an_interrupt_ends_the_wait_for_the_model(agent: Agent, model: ScriptedModel) -> None:
    model.fail_next(Stall())
    run = await agent.start("hello")
    await until(lambda: model.requests)
    await interrupted(run, (1,))


async def test_an_interrupt_ends_a_command_of_the_agents(agent: Agent) -> None:
    run = await agent.start(calls("Bash", command=f"touch began; {BUSY}"))
    await until((agent.home / "group/began").exists)
    await interrupted(run, (1,))


async def test_an_interrupt_ends_a_tool_of_the_host(agent: Agent) -> None:
    run = await agent.start(calls("mcp__pynchy__wait"), host_tools=[tool("wait")])
    await until(lambda: agent.host.calls)
    await interrupted(run, (1,))


async def test_an_interrupt_ends_a_tool_of_a_plugins_server(agent: Agent) -> None:
    run = await agent.start(calls("mcp__slow__wait"), plugin_mcp_servers=_SLOW_SERVER)
    await until((agent.home / "group/called").exists)
    await interrupted(run, (1,))


async def test_an_interrupt_ends_a_compaction(agent: Agent, model: ScriptedModel) -> None:
    run = await agent.start("hello")
    await said(run)
    model.fail_next(Stall())
    run.send("/compact", (2,))
    await until(lambda: len(model.requests) == 2)
    await interrupted(run, (2,))


async def test_an_interrupt_before_the_agent_is_up_ends_what_it_was_given(agent: Agent, model: ScriptedModel) -> None:
    run = await agent.start("hello")
    await interrupted(run, (1,))
    assert len(model.requests) == 1, "the model has not heard of what was interrupted"


async def test_an_interrupt_does_not_wait_for_a_server_that_does_not_start(agent: Agent, model: ScriptedModel) -> None:
    run = await agent.start("hello", plugin_mcp_servers=_WAITING_SERVER)
    await until((agent.home / "group/started").exists)
    began = time.monotonic()
    await run.interrupt()
    output = await run.result()
    assert (output.ids, output.error) == ((1,), INTERRUPTED)
    assert time.monotonic() - began < _SOON
    run.send("still there?", (2,))
    (agent.home / "group/go").touch()
    assert await said(run) == "You said: still there?"
    assert len(model.requests) == 1, "the model was not asked about what was interrupted"


async def test_an_interrupt_right_behind_a_prompt_ends_that_prompt(agent: Agent, model: ScriptedModel) -> None:
    run = await agent.start("hello")
    await said(run)
    for number in range(2, 8):
        run.send(calls("Bash", command=BUSY), (number,))
        await run.interrupt()
        output = await run.result()
        assert (output.ids, output.error) == ((number,), INTERRUPTED)
    run.send("still there?", (99,))
    assert await said(run) == "You said: still there?"


async def test_an_interrupt_leaves_what_is_held_for_later_and_comes_but_once(agent: Agent) -> None:
    run = await agent.start(calls("mcp__pynchy__wait"), host_tools=[tool("wait")])
    await until(lambda: agent.host.calls)
    run.send("afterwards", (2,))
    for _ in range(5):
        await run.interrupt()
    assert (await run.result()).error == INTERRUPTED
    assert await said(run) == "You said: afterwards"


async def test_an_interrupt_where_nothing_runs_does_nothing(agent: Agent) -> None:
    run = await agent.start("hello")
    await said(run)
    await run.interrupt()
    run.send("and you?", (2,))
    assert await said(run) == "You said: and you?"
    await run.interrupt()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await run.result()
