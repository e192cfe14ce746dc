"""An agent that means harm, with the real SDK's own Bash tool, on each runtime: what it tries, and that it fails.

`make test` runs it as whoever runs the tests; `.ci/run` as root and as an ordinary user.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shlex
import socket
import stat
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pynchy_sample.plugin import Manners, Shelf, Watch
from support import CREDENTIAL, Chat, StartService, own_addresses, until

from pynchy.app import Service
from pynchy.home import make_private
from pynchy.plugin import ContainerRuntime, PluginRegistry
from pynchy.testing import ScriptedModel
from pynchy.types import Group

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

_FAMILY_SECRET = "the family's secret 4711"
_HOME_SECRET = "what is in the user's home 4712"
_HOST_SECRET = "a variable of the host 4713"


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Secrets in the home of the host's user, in another group's folder, and in the host's environment."""
    monkeypatch.setenv("SOME_SECRET", _HOST_SECRET)
    folder = make_private(tmp_path / "home/groups/family")
    (folder / "diary.txt").write_text(_FAMILY_SECRET)
    (tmp_path / "home/notes.txt").write_text(_HOME_SECRET)
    (tmp_path / "home/.env").write_text(f"OTHER={_HOME_SECRET}\n")
    return tmp_path


PROGRAMS = Path(__file__).parent / "hostile"


async def result(chat: Chat, program: str, given: Any = None) -> Any:
    """What a program of `hostile/` found in the sandbox: the JSON that it printed."""
    # -P: what an earlier one has planted must not run in here either.
    code = (PROGRAMS / f"{program}.py").read_text()
    command = f"python3 -P - {shlex.quote(json.dumps(given))} <<'END'\n{code}\nEND"
    answer = await chat.ask(f"/tool Bash {json.dumps({'command': command})}")
    try:
        return json.loads(answer)
    except ValueError:
        raise AssertionError(answer) from None


def bash(command: str) -> str:
    """The message with which the agent runs a command."""
    return f"/tool Bash {json.dumps({'command': command})}"


@asynccontextmanager
async def hostile(runtime: ContainerRuntime, start_service: StartService, *plugins: Any) -> AsyncIterator[Service]:
    """A service with a second group, whose main group's agent is not to be trusted."""
    registry = PluginRegistry(
        mcp_servers=[one for one in plugins if isinstance(one, Shelf)],
        skills=[one for one in plugins if isinstance(one, Manners)],
        hooks=[one for one in plugins if isinstance(one, Watch)],
    )
    async with start_service(runtime, registry) as service:
        await service.register_group(Group("terminal:family", "Family", "family"))
        yield service


# --- reading ------------------------------------------------------------------------------------------------


async def test_it_reads_nothing_of_the_host_or_of_another_group(
    runtime: ContainerRuntime, start_service: StartService, secrets: Path
) -> None:
    wanted = [_FAMILY_SECRET, _HOME_SECRET, _HOST_SECRET, CREDENTIAL]
    given = {
        "halves": [(word[: len(word) // 2], word[len(word) // 2 :]) for word in wanted],
        "paths": [str(secrets / "home/groups/family/diary.txt"), str(secrets / "home/notes.txt"), "/etc/shadow"],
    }
    async with hostile(runtime, start_service) as service:
        found, (workspace, docker, homes) = await result(Chat(service), "search", given)
    assert found == []
    assert set(workspace) <= {"attachments", "group", "global", "skills", "plugins", "hooks", "data", "extra"}
    assert not docker
    assert homes == ["agent"]


# --- writing ------------------------------------------------------------------------------------------------


def digest(folder: Path) -> str:
    """Everything in a folder, its contents and modes."""
    seen = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        seen.update(f"{path.relative_to(folder)} {path.lstat().st_mode} {path.lstat().st_uid}".encode())
        if path.is_file() and not path.is_symlink():
            seen.update(path.read_bytes())
    return seen.hexdigest()


async def test_it_changes_no_program_plugin_skill_hook_or_attachment(
    runtime: ContainerRuntime, start_service: StartService, secrets: Path
) -> None:
    async with hostile(runtime, start_service, Shelf(), Manners(), Watch()) as service:
        chat = Chat(service)
        await chat.ask("hello")  # everything is staged now
        watched = [
            secrets / "home" / name
            for name in ("runner", "skills", "attachments")
            if (secrets / "home" / name).exists()
        ]
        watched.append(Path(__file__).parent / "pynchy_sample")
        before = [digest(folder) for folder in watched]
        wrote = await result(chat, "overwrite")
        assert wrote == []
        assert [digest(folder) for folder in watched] == before


async def test_it_leaves_nothing_in_its_folder_that_has_power_outside(
    runtime: ContainerRuntime, start_service: StartService, secrets: Path
) -> None:
    async with hostile(runtime, start_service) as service:
        made = await result(Chat(service), "leave_power")
    assert made == []
    for path in (secrets / "home/groups/main").iterdir():
        found = path.lstat()
        assert not stat.S_ISBLK(found.st_mode)
        assert not stat.S_ISCHR(found.st_mode)
        if os.geteuid() == 0:
            assert (found.st_uid, found.st_gid) == (60999, 60999), path
        else:
            assert found.st_uid == os.geteuid()
        assert "security.capability" not in os.listxattr(path, follow_symlinks=False)


# --- the next start -----------------------------------------------------------------------------------------


async def test_links_and_pipes_that_it_plants_lead_nowhere_at_the_next_start(
    runtime: ContainerRuntime, start_service: StartService, secrets: Path, model: ScriptedModel
) -> None:
    outside = secrets / "outside"
    outside.mkdir()
    given = {"family": str(secrets / "home/groups/family"), "outside": str(outside)}
    async with hostile(runtime, start_service, Shelf(), Manners()) as service:
        assert await result(Chat(service), "plant_links", given) == "planted"
    before = digest(outside), digest(secrets / "home/groups/family")
    async with hostile(runtime, start_service, Shelf(), Manners()) as service:
        chat = Chat(service)
        assert await chat.ask("hello") == "You said: hello"
        long = "é" * 60_000  # which the host stores beside the group's folder
        assert (await chat.ask(long)).startswith("You said: é")
        assert await chat.ask(bash("rm CLAUDE.md && mkfifo CLAUDE.md && echo done")) == "done"
    assert (digest(outside), digest(secrets / "home/groups/family")) == before
    async with hostile(runtime, start_service) as service:  # whose memory is a pipe that nobody writes to
        assert await Chat(service).ask("hello") == "You said: hello"
    assert _FAMILY_SECRET not in "".join(request.body.decode() for request in model.requests)


async def test_settings_hooks_servers_and_start_files_that_it_plants_do_nothing_at_the_next_start(
    runtime: ContainerRuntime, start_service: StartService, secrets: Path, model: ScriptedModel
) -> None:
    async with hostile(runtime, start_service) as service:
        assert await result(Chat(service), "plant_settings") == "planted"
        (secrets / "home/groups/main/it-ran").unlink(missing_ok=True)
    async with hostile(runtime, start_service, Shelf()) as service:
        chat = Chat(service)
        assert await chat.ask("hello") == "You said: hello"
        left = await chat.ask(bash("ls -A ~ && test ! -e it-ran"))
    assert not set(left.split()) & {".bashrc", ".profile", ".zshenv", ".mcp.json"}
    assert not (secrets / "home/groups/main/it-ran").exists()
    last = model.requests[-1].body.decode()
    assert "evil" not in json.dumps(json.loads(last)["tools"])
    assert "Be evil" not in last


# --- the wire -----------------------------------------------------------------------------------------------


async def test_it_can_neither_forge_nor_steal_a_frame(
    runtime: ContainerRuntime, start_service: StartService, secrets: Path
) -> None:
    async with hostile(runtime, start_service) as service:
        chat = Chat(service)
        touched = await result(chat, "forge")
        assert touched == []
        assert chat.texts.empty()
        assert await chat.ask("still there?") == "You said: still there?"


async def test_it_neither_sees_nor_signals_other_processes(
    runtime: ContainerRuntime, start_service: StartService, secrets: Path
) -> None:
    outsider = subprocess.Popen(["sleep", "300"])
    try:
        async with hostile(runtime, start_service) as service:
            chat = Chat(service)
            seen = await result(chat, "see", outsider.pid)
            assert seen[0] < 30
            assert seen[1] == []
            assert outsider.poll() is None
            await chat.say(bash("kill -9 -1; kill -9 1"))  # which may end itself
        assert outsider.poll() is None
    finally:
        outsider.kill()
        outsider.wait()


# --- taking too much ----------------------------------------------------------------------------------------


async def limited(service: Service, **limits: Any) -> None:
    """Give the main group's next agent these limits."""
    jid = await service.group_jid("main")
    await service.update_group(replace(service.registered_groups()[jid], **limits))


async def test_a_fork_bomb_ends_in_its_container_and_the_host_goes_on(
    runtime: ContainerRuntime, start_service: StartService, secrets: Path
) -> None:
    if "pids" not in getattr(runtime, "supports", ()):
        pytest.skip(f"{runtime.name} keeps no limit on processes for this user")
    async with hostile(runtime, start_service) as service:
        await limited(service, pids=150)
        chat = Chat(service)
        # The agent itself may be what finds no room for another thread, and end.
        await chat.say(bash(f"python3 -P - <<'END'\n{(PROGRAMS / 'fork.py').read_text()}\nEND"))
        assert 0 < int((secrets / "home/groups/main/made").read_text()) < 150
        assert await Chat(service).ask("and now?") == "You said: and now?"
    await until(lambda: runtime.list_running_containers(service.container_prefix) == [])


async def test_filling_the_memory_ends_the_agent_and_not_the_host(
    runtime: ContainerRuntime, start_service: StartService, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "memory" not in getattr(runtime, "supports", ()):
        pytest.skip(f"{runtime.name} keeps no limit on memory for this user")
    monkeypatch.setenv("PYNCHY_RETRY_PAUSE", "0.01")
    async with hostile(runtime, start_service) as service:
        await limited(service, memory_bytes=700 * 1024**2)
        chat = Chat(service)
        # The largest process is the one that is ended: the program, or the agent with it.
        await chat.say(bash("python3 -c 'x = []\nwhile True: x.append(bytearray(50_000_000))'"))
        await chat.say(bash("head -c 1G /dev/zero >/tmp/a; head -c 1G /dev/zero >~/b; rm -f /tmp/a ~/b"))
        assert await Chat(service).ask("and now?") == "You said: and now?"
    await until(lambda: runtime.list_running_containers(service.container_prefix) == [])


# --- the network --------------------------------------------------------------------------------------------


async def test_it_reaches_no_address_that_its_policy_forbids(
    runtime: ContainerRuntime, start_service: StartService, secrets: Path
) -> None:
    reached: list[str] = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(str(writer.get_extra_info("peername")))
        writer.close()

    name = f"pynchy-test-{os.getpid()}"
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0{name}")
    abstract.listen()
    async with await asyncio.start_server(accept, "0.0.0.0", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with hostile(runtime, start_service) as service:
            through = await result(
                Chat(service), "connect", {"port": port, "abstract": name, "addresses": own_addresses()}
            )
    abstract.close()
    assert through == [[], ["lo"]]
    assert reached == []


async def test_it_reaches_the_models_api_only_where_it_may(
    runtime: ContainerRuntime, start_service: StartService, secrets: Path, model: ScriptedModel
) -> None:
    async with hostile(runtime, start_service) as service:
        answers = await result(Chat(service), "ask_model")
    assert answers == [[404] * 9, "added-by-the-host"]
    assert {request.target.partition("?")[0] for request in model.requests} == {"/v1/messages"}


# --- names --------------------------------------------------------------------------------------------------


async def test_no_name_that_it_can_choose_leads_out(
    runtime: ContainerRuntime, start_service: StartService, secrets: Path
) -> None:
    async with hostile(runtime, start_service) as service:
        chat = Chat(service)
        for name in ("../../family", "..", "/etc/passwd", "pynchy__send_message"):
            answer = await chat.ask(f"/tool mcp__pynchy__{name} {json.dumps({'text': 'x'})}")
            assert "Message sent." not in answer
        for more in ({"jid": "terminal:family"}, {"folder": "../family"}, {"chat_jid": "terminal:family"}):
            await chat.ask(f"/tool mcp__pynchy__send_message {json.dumps({'text': 'not for you', **more})}")
        family = await service.group_jid("family")
        texts: list[str] = []

        async def show(text: str) -> None:
            texts.append(text)

        with service.terminal.attached(family, show):
            await service.flush_outbox(family)
        assert texts == []
    assert sorted(path.name for path in (secrets / "home/groups").iterdir()) == ["family", "main"]
