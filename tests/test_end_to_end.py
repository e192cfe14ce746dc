"""A message in, a contained Claude agent, a reply out: with the real SDK, on each runtime."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
from pathlib import Path
from typing import cast

import httpx
import pytest
from support import BUSY, CREDENTIAL, RUNTIMES, Chat, StartService

from pynchy.agent_setup import agent_owner
from pynchy.config import load_settings
from pynchy.container_runner import AgentRun, Limits
from pynchy.costs import Costs
from pynchy.credential import Credential
from pynchy.egress import Egress
from pynchy.group_host import GroupHost
from pynchy.home import make_private
from pynchy.host_tools import HostTools
from pynchy.model_gateway import ModelGateway, Upstream
from pynchy.plugin import ContainerRuntime, PluginRegistry
from pynchy.plugin_reports import PluginReports
from pynchy.store import Store
from pynchy.testing import Cut, Fail, ScriptedModel, Stall
from pynchy.types import INTERRUPTED, ContainerInput, Group, RunSpec
from pynchy.workspace import group_mounts, stage_runner
from pynchy_plugin_hello import HelloPlugin

pytestmark = pytest.mark.anyio

#: How often the SDK asks before it gives up.
_REQUESTS_AN_ATTEMPT = 1


async def test_a_message_is_answered_and_the_next_one_by_the_same_agent(
    runtime: ContainerRuntime, start_service: StartService
) -> None:
    async with start_service(runtime) as service:
        chat = Chat(service)
        assert await chat.ask('hello <there> & "you"') == 'You said: hello <there> & "you"'
        prefix = service.container_prefix
        first = runtime.list_running_containers(prefix)
        assert await chat.ask("again") == "You said: again"
        assert len(first) == 1
        assert runtime.list_running_containers(prefix) == first
    assert runtime.list_running_containers(prefix) == []


async def test_the_tool_of_an_mcp_plugin_answers(runtime: ContainerRuntime, start_service: StartService) -> None:
    async with start_service(runtime, PluginRegistry(mcp_servers=[HelloPlugin()])) as service:
        answer = await Chat(service).ask('/tool mcp__hello__greet {"name": "Ada"}')
    assert answer == "Hello, Ada! The hello plugin sends this greeting."


async def test_send_message_goes_out_before_the_answer(runtime: ContainerRuntime, start_service: StartService) -> None:
    async with start_service(runtime) as service:
        chat = Chat(service)
        assert await chat.say('/tool mcp__pynchy__send_message {"text": "on it <internal>hm</internal>"}') is None
        assert [chat.texts.get_nowait(), chat.texts.get_nowait()] == ["on it", "Message sent."]


async def test_a_conversation_is_resumed_by_the_next_start(
    runtime: ContainerRuntime, start_service: StartService, model: ScriptedModel
) -> None:
    async with start_service(runtime) as service:
        await Chat(service).ask("my name is Ada")
    async with start_service(runtime) as service:
        await Chat(service).ask("what is my name?")
    conversation = json.dumps(json.loads(model.requests[-1].body)["messages"])
    assert "my name is Ada" in conversation
    assert "You said: my name is Ada" in conversation


async def test_what_the_agent_writes_stays_in_its_folder_and_its_memory_is_read_back(
    runtime: ContainerRuntime, start_service: StartService, model: ScriptedModel, tmp_path: Path
) -> None:
    async with start_service(runtime) as service:
        command = "echo 'Ada likes tea.' > CLAUDE.md; pwd; ls -A"
        answer = await Chat(service).ask(f"/tool Bash {json.dumps({'command': command})}")
    assert answer.split() == ["/workspace/group", "CLAUDE.md"]
    assert (tmp_path / "home/groups/main/CLAUDE.md").read_text() == "Ada likes tea.\n"
    async with start_service(runtime) as service:
        await Chat(service).ask("hi")
    assert "Ada likes tea." in json.dumps(json.loads(model.requests[-1].body)["system"])


@pytest.mark.bubblewrap
async def test_an_interrupt_ends_an_answer_and_the_agent_goes_on(model: ScriptedModel) -> None:
    runtime = RUNTIMES["bubblewrap"]()
    settings = load_settings()
    owner = agent_owner(settings)
    group = Group("terminal:main", "main", "main", is_main=True)
    make_private(settings.home)
    async with (
        Store.open(settings.home / "pynchy.db") as store,
        ModelGateway.open(Upstream(model.base_url)) as gateway,
    ):
        mounts = group_mounts(settings.home, group, stage_runner(settings.home), owner)
        spec = RunSpec(mounts, f"pynchy-test-{os.getpid()}-interrupt", "", user=owner)

        async def nothing(*_: object) -> None:
            """Nobody listens."""

        credential = Credential(settings, gateway, nothing, print, nothing, replaceable=False)
        egress = Egress(store.destinations, 0)
        services = GroupHost(
            lambda: group,
            store,
            gateway,
            credential,
            print,
            PluginReports(store, lambda: group.jid, print),
            egress,
            cast("HostTools", None),
            Costs(settings, store, lambda: group.jid, print),
        )
        run = AgentRun(runtime, spec, services, Limits())
        await run.start(ContainerInput(prompt="hello", group_folder="main", chat_jid=group.jid), (1,))
        assert (await run.result()).text == "You said: hello"
        run.send(f"/tool Bash {json.dumps({'command': BUSY})}", (2,))
        while not run.acted:
            await asyncio.sleep(0.01)  # the agent decides when
        await run.interrupt()
        output = await run.result()
        assert (output.ids, output.text, output.error) == ((2,), None, INTERRUPTED)
        run.send("still there?", (3,))
        assert (await run.result()).text == "You said: still there?"
        await run.stop()


#: Waits until the test has made a file of this name.
_WAIT = "while [ ! -e go ]; do python3 -c 'import time; time.sleep(0.05)'; done; rm go; echo went"


async def test_a_message_that_the_agent_sends_goes_out_while_it_is_still_working(
    runtime: ContainerRuntime, start_service: StartService, tmp_path: Path
) -> None:
    async with start_service(runtime) as service:
        chat = Chat(service)
        send = '/tool mcp__pynchy__send_message {"text": "on it"}'
        saying = asyncio.create_task(chat.say(f"{send}\n/tool Bash {json.dumps({'command': _WAIT})}"))
        assert await chat.texts.get() == "on it"
        assert not saying.done()
        (tmp_path / "home/groups/main/go").touch()
        assert await saying is None
        assert chat.texts.get_nowait() == "Message sent.\nwent"


async def test_what_is_said_during_a_run_is_held_by_the_agent_and_answered_together_after_it(
    runtime: ContainerRuntime, start_service: StartService, model: ScriptedModel, tmp_path: Path
) -> None:
    async with start_service(runtime) as service:
        chat = Chat(service)
        jid = await service.group_jid("main")
        with service.terminal.attached(jid, chat.texts.put):
            await service.say(jid, f"/tool Bash {json.dumps({'command': f'touch began; {_WAIT}'})}")
            while not (tmp_path / "home/groups/main/began").exists():
                await asyncio.sleep(0.02)
            for text in ("second", "third"):
                await service.say(jid, text)
            with sqlite3.connect(tmp_path / "home/pynchy.db") as db:
                while db.execute("SELECT count(*) FROM messages WHERE state = 'claimed'").fetchone() != (3,):
                    await asyncio.sleep(0.02)
            assert len(model.requests) == 1, "the model hears of it only after the tool"
            (tmp_path / "home/groups/main/go").touch()
            assert await chat.texts.get() == "went"
            assert await chat.texts.get() == "You said: second\nthird"


async def test_a_long_message_travels_as_a_file_that_the_agent_can_read_and_not_change(
    runtime: ContainerRuntime, start_service: StartService, model: ScriptedModel
) -> None:
    path = "/workspace/attachments/message-1.txt"
    command = f"tail -c 8 {path}; touch {path}x 2>/dev/null; echo >{path} || echo unchanged"
    text = f"/tool Bash {json.dumps({'command': command})}\n" + "é" * 60_000 + " the end"
    async with start_service(runtime) as service:
        answer = await Chat(service).ask(text)
    assert answer.startswith("the end")
    assert "unchanged" in answer
    first = model.requests[0].body.decode()
    assert path in first
    assert "é" * 2000 not in first


# --- a model that fails -------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses and time limits that a test can wait for, and within which a model that is well answers."""
    monkeypatch.setenv("PYNCHY_RETRY_PAUSE", "0.01")
    monkeypatch.setattr("pynchy.model_gateway._TIMEOUT", httpx.Timeout(3))


FAULTS = [
    pytest.param(Fail(429, "Slow down"), r"the model's API says that it is asked too often \(HTTP 429\)", id="429"),
    pytest.param(Fail(500, "Oops"), r"the model's API has trouble of its own \(HTTP 500\)", id="500"),
    pytest.param(Fail(529, "Overloaded"), r"the model's API is overloaded \(HTTP 529\)", id="529"),
    pytest.param(Cut(2), r"the model's answer broke off: .*", id="cut"),
    pytest.param(Stall(2), r"the model's answer broke off: .*", id="stall"),
]


@pytest.mark.bubblewrap
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("fault", "words"), FAULTS)
async def test_a_model_that_fails_once_is_asked_again_and_nobody_notices(
    fault: Fail | Cut | Stall, words: str, start_service: StartService, model: ScriptedModel
) -> None:
    async with start_service(RUNTIMES["bubblewrap"]()) as service:
        chat = Chat(service)
        model.fail_next(fault, _REQUESTS_AN_ATTEMPT)
        assert await chat.ask("hello") == "You said: hello"
        assert await chat.ask("again") == "You said: again"
    conversation = json.dumps(json.loads(model.requests[-1].body)["messages"])
    assert conversation.count(">hello<") == 1, "what failed is not part of the conversation"


@pytest.mark.bubblewrap
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("fault", "words"), FAULTS)
async def test_a_model_that_goes_on_failing_ends_in_a_notice_and_the_next_message_is_answered(
    fault: Fail | Cut | Stall,
    words: str,
    start_service: StartService,
    model: ScriptedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYNCHY_ATTEMPTS", "2")
    async with start_service(RUNTIMES["bubblewrap"]()) as service:
        chat = Chat(service)
        model.fail_next(fault, 2 * _REQUESTS_AN_ATTEMPT)
        assert await chat.say("hello") is not None
        what_next = r"I tried 2 times, and nothing was done\. Send it again to have me try again\."
        assert re.fullmatch(rf"I could not answer: {words}\. {what_next}", chat.texts.get_nowait())
        assert chat.texts.empty()
        with sqlite3.connect(tmp_path / "home/pynchy.db") as db:
            assert db.execute("SELECT session_id FROM groups").fetchall() == [(None,)], "what failed is never resumed"
        assert await chat.ask("are you back?") == "You said: are you back?"


@pytest.mark.bubblewrap
@pytest.mark.usefixtures("impatient")
async def test_a_failure_after_a_tool_ran_is_not_repeated_and_the_notice_says_so(
    start_service: StartService, model: ScriptedModel, tmp_path: Path
) -> None:
    async with start_service(RUNTIMES["bubblewrap"]()) as service:
        chat = Chat(service)
        await chat.ask("hello")
        asked = len(model.requests)
        model.answer_next(1)
        model.fail_next(Fail(529, "Overloaded"), 20)
        command = json.dumps({"command": "echo done >>counter"})
        assert await chat.say(f"/tool Bash {command}") is not None
        model.succeed()
        notice = chat.texts.get_nowait()
        assert (tmp_path / "home/groups/main/counter").read_text() == "done\n"
        assert len(model.requests) == asked + 1 + _REQUESTS_AN_ATTEMPT
        assert await chat.ask("and now?") == "You said: and now?"
    assert notice == (
        "I could not answer: the model's API is overloaded (HTTP 529). "
        "I may have done a part of it already; look before you ask again."
    )


@pytest.mark.bubblewrap
@pytest.mark.usefixtures("impatient")
async def test_a_conversation_that_the_model_refuses_is_dropped_and_the_message_answered_in_a_new_one(
    start_service: StartService, model: ScriptedModel
) -> None:
    async with start_service(RUNTIMES["bubblewrap"]()) as service:
        chat = Chat(service)
        await chat.ask("my name is Ada")
        model.fail_next(Fail(400, "messages.1: image exceeds the maximum"), _REQUESTS_AN_ATTEMPT)
        assert await chat.say("what is my name?") is None
        notice, answer = chat.texts.get_nowait(), chat.texts.get_nowait()
    assert notice.startswith("I could not go on with our conversation (")
    assert "Image was too large" in notice
    assert answer == "You said: what is my name?"
    assert "Ada" not in json.dumps(json.loads(model.requests[-1].body)["messages"])


@pytest.mark.bubblewrap
@pytest.mark.usefixtures("impatient")
async def test_a_message_that_the_model_refuses_in_a_new_conversation_too_costs_nobody_the_old_one(
    start_service: StartService, model: ScriptedModel
) -> None:
    async with start_service(RUNTIMES["bubblewrap"]()) as service:
        chat = Chat(service)
        await chat.ask("my name is Ada")
        model.fail_next(Fail(400, "messages.1: image exceeds the maximum"), 2 * _REQUESTS_AN_ATTEMPT)
        assert await chat.say("look at this") is not None
        assert chat.texts.get_nowait().startswith("I could not answer: Image was too large.")
        assert await chat.ask("what is my name?") == "You said: what is my name?"
    conversation = json.dumps(json.loads(model.requests[-1].body)["messages"])
    assert "my name is Ada" in conversation
    assert "look at this" not in conversation


@pytest.mark.bubblewrap
@pytest.mark.usefixtures("impatient")
async def test_a_conversation_that_has_vanished_is_dropped_and_the_message_answered_in_a_new_one(
    start_service: StartService, tmp_path: Path
) -> None:
    async with start_service(RUNTIMES["bubblewrap"]()) as service:
        await Chat(service).ask("my name is Ada")
    with sqlite3.connect(tmp_path / "home/pynchy.db") as db:
        db.execute("DELETE FROM transcripts")
    async with start_service(RUNTIMES["bubblewrap"]()) as service:
        chat = Chat(service)
        assert await chat.say("what is my name?") is None
        assert chat.texts.get_nowait().startswith("I could not go on with our conversation (")
        assert chat.texts.get_nowait() == "You said: what is my name?"


@pytest.mark.bubblewrap
@pytest.mark.usefixtures("impatient")
async def test_a_refused_credential_is_said_once_in_the_main_chat_and_work_goes_on_when_it_is_replaced(
    start_service: StartService, model: ScriptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pynchy.credential._LOOK_EVERY", 0.05)
    monkeypatch.setattr("pynchy.credential._LONGEST_PAUSE", 0.5)
    async with start_service(RUNTIMES["bubblewrap"]()) as service:
        await service.register_group(Group("terminal:other", "other", "other"))
        chat = Chat(service)
        others: asyncio.Queue[str] = asyncio.Queue()
        model.require_key("a-new-one")
        with service.terminal.attached("terminal:other", others.put):
            row = await service.say("terminal:other", "and me?")
            why = await chat.say("hello")
            assert why is not None
            assert chat.texts.get_nowait() == why
            assert "does not accept my credential (HTTP 401)" in why
            assert str(tmp_path / "home/.env") in why
            jid = await service.group_jid("main")
            with service.terminal.attached(jid, chat.texts.put):
                (tmp_path / "home/.env").write_text(
                    f"ANTHROPIC_AUTH_TOKEN=\nANTHROPIC_API_KEY=a-new-one\nANTHROPIC_BASE_URL={model.base_url}\n"
                )
                assert await chat.texts.get() == "You said: hello"
            assert await service.settlement(row) is None
            assert await others.get() == "You said: and me?"
        assert chat.texts.empty()
        assert others.empty()


#: Reads every environment and every file there is inside, and prints the paths where the needle is found.
_SEARCH = r"""
import os, re, stat
needle = "@".join(["sk", "ant", "test"]).replace("@", "-").encode() + b"-0123456789"
found, read = [], 0
def look(path):
    global read
    try:
        with open(path, "rb") as file:
            tail = b""
            while chunk := file.read(1 << 20):
                read += len(chunk)
                if needle in tail + chunk:
                    found.append(path)
                    return
                tail = chunk[-64:]
    except OSError:
        pass
for entry in os.listdir("/proc"):
    if entry.isdigit():
        for name in ("environ", "cmdline"):
            look(f"/proc/{entry}/{name}")
for top, directories, files in os.walk("/"):
    directories[:] = [d for d in directories if os.path.join(top, d) not in ("/proc", "/sys", "/usr")]
    for name in files:
        path = os.path.join(top, name)
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            continue
        if stat.S_ISREG(mode) and not path.endswith("/_bundled/claude"):
            look(path)
print(read > 1_000_000, found)
"""


async def test_the_credential_is_nowhere_inside(
    runtime: ContainerRuntime,
    start_service: StartService,
    model: ScriptedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", CREDENTIAL)  # as it is in the environment of a real service
    home = tmp_path / "home"
    home.mkdir()
    (home / ".env").write_text(f"CLAUDE_CODE_OAUTH_TOKEN={CREDENTIAL}\n")
    async with start_service(runtime) as service:
        chat = Chat(service)
        await chat.ask("hello")
        (home / "groups/main/search.py").write_text(_SEARCH)
        (home / "groups/main/search.py").chmod(0o644)
        command = json.dumps({"command": "python3 search.py", "timeout": 100000})
        answer = await chat.ask(f"/tool Bash {command}")
    assert answer == "True []"
    assert model.requests[-1].header("x-api-key") == CREDENTIAL


_KNOCK = r"""
import socket, sys
for address in (("127.0.0.1", int(sys.argv[1])), ("192.0.2.1", 80), ("172.17.0.1", 22)):
    with socket.socket() as knock:
        knock.settimeout(2)
        try:
            knock.connect(address)
            print("reached", address)
        except OSError:
            print("unreachable")
"""


async def test_there_is_no_network_inside(
    runtime: ContainerRuntime, start_service: StartService, model: ScriptedModel, tmp_path: Path
) -> None:
    host_port = model.base_url.rsplit(":", 1)[1]
    async with start_service(runtime) as service:
        chat = Chat(service)
        await chat.ask("hello")
        (tmp_path / "home/groups/main/knock.py").write_text(_KNOCK)
        (tmp_path / "home/groups/main/knock.py").chmod(0o644)
        answer = await chat.ask(f"/tool Bash {json.dumps({'command': f'python3 knock.py {host_port}'})}")
    assert answer.split() == ["unreachable"] * 3


async def test_only_the_groups_own_folder_can_be_written(
    runtime: ContainerRuntime, start_service: StartService
) -> None:
    command = (
        "for d in / /usr /etc /opt/pynchy /opt/agent-env /workspace /workspace/plugins/hello/pynchy_plugin_hello "
        "/workspace/group; do touch $d/x 2>/dev/null && echo $d; done; id -u; "
        "grep -h -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status"
    )
    async with start_service(runtime, PluginRegistry(mcp_servers=[HelloPlugin()])) as service:
        answer = (await Chat(service).ask(f"/tool Bash {json.dumps({'command': command})}")).split()
    assert answer[0] == "/workspace/group"
    assert answer[1] == str(60999 if os.geteuid() == 0 else os.geteuid())
    assert answer[2:] == ["CapEff:", "0" * 16, "CapBnd:", *answer[5:6], "NoNewPrivs:", "1"]
