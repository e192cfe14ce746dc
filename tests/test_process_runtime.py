"""ProcessRuntime: the agent as a plain process, whose environment is ours alone and of which nothing stays behind."""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import CREDENTIAL, Chat, StartService, missing

from pynchy.plugin import ContainerRuntime, PluginRegistry, RuntimeUnavailable
from pynchy.testing import ProcessRuntime
from pynchy.types import VolumeMount
from pynchy_plugin_hello import HelloPlugin


@pytest.fixture(autouse=True)
def temporary_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Temporary homes of this test alone, on a path short enough for the sockets in them."""
    with tempfile.TemporaryDirectory(prefix="pynchy-test-") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(directory)
        monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def homes(temporary_directory: Path) -> Path:
    """Where the agents' temporary homes are."""
    return temporary_directory / f"pynchy-process-{os.geteuid()}"


@pytest.fixture
def with_agent() -> ProcessRuntime:
    """A runtime that has the agent's environment, or a skip."""
    runtime = ProcessRuntime()
    try:
        runtime.check_image("")
    except RuntimeUnavailable as error:
        missing("bubblewrap", str(error))
    return runtime


def test_it_is_a_container_runtime() -> None:
    runtime = ProcessRuntime()
    assert isinstance(runtime, ContainerRuntime)
    runtime.ensure_running()
    assert runtime.list_running_containers() == []


# --- with the real agent ----------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_real_agent_answers_and_leaves_nothing_behind(
    with_agent: ProcessRuntime, start_service: StartService, homes: Path
) -> None:
    async with start_service(with_agent, PluginRegistry(mcp_servers=[HelloPlugin()])) as service:
        chat = Chat(service)
        assert await chat.ask("hello") == "You said: hello"
        (name,) = with_agent.list_running_containers()
        answer = await chat.ask('/tool mcp__hello__greet {"name": "Ada"}')
        assert answer.startswith("Hello, Ada!")
        assert with_agent.list_running_containers() == [name]
        assert [path.name for path in homes.iterdir()] == [name]
    assert with_agent.list_running_containers() == []
    assert list(homes.iterdir()) == []


@pytest.mark.anyio
async def test_the_agents_environment_is_scrubbed(
    with_agent: ProcessRuntime,
    start_service: StartService,
    homes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", CREDENTIAL)  # as it is in the environment of a real service
    monkeypatch.setenv("SOME_OTHER_SECRET", "of the person who runs it")
    script = "import json, os; print(json.dumps([dict(os.environ), os.getcwd()]))"
    async with start_service(with_agent) as service:
        chat = Chat(service)
        await chat.ask("hello")
        (tmp_path / "home/groups/main/show.py").write_text(script)
        shown, directory = json.loads(await chat.ask('/tool Bash {"command": "python3 show.py"}'))
        root = homes / with_agent.list_running_containers()[0]
    assert shown["HOME"] == str(root / "home")
    assert shown["PYNCHY_WORKSPACE"] == str(root / "workspace")
    assert Path(directory) == tmp_path / "home/groups/main"
    assert "SOME_OTHER_SECRET" not in shown
    assert CREDENTIAL not in json.dumps(shown)


@pytest.mark.anyio
async def test_stop_ends_what_the_agents_shell_has_left_running(
    with_agent: ProcessRuntime, start_service: StartService, homes: Path, tmp_path: Path
) -> None:
    if not Path("/proc/self/environ").exists():
        pytest.skip("what has left the agent's process group can be found on Linux only")
    folder = tmp_path / "home/groups/main"
    async with start_service(with_agent) as service:
        chat = Chat(service)
        await chat.ask("hello")
        (folder / "cling.py").write_text(_CLING)
        assert await chat.ask('/tool Bash {"command": "python3 cling.py lock-session 2>/dev/null"}') == "clinging"
        assert held(folder) == ["lock-session"]
        (name,) = with_agent.list_running_containers()
        with_agent.stop(name)
        assert held(folder) == []
        assert with_agent.list_running_containers() == []
        assert not (homes / name).exists()


# --- with a stand-in for it -------------------------------------------------------------------------------------------

#: Leaves two processes that each hold a lock: one has made a session of its own, one has emptied its environment.
_CLING = """
import os, subprocess, sys, time
hold = "import fcntl, os, sys, time; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX); "
hold += "print('held', flush=True); os.close(1); time.sleep(600)"
ways = {"lock-session": {"start_new_session": True}, "lock-environment": {"env": {}}}
for name, options in ways.items() if len(sys.argv) == 1 else [(sys.argv[1], ways[sys.argv[1]])]:
    holder = subprocess.Popen([sys.executable, "-c", hold, name], stdout=subprocess.PIPE, **options)
    assert holder.stdout.readline() == b"held\\n"
print("clinging", flush=True)
"""


def held(folder: Path) -> list[str]:
    """The locks that some process holds, of those that can be expected to end on this system."""
    names = []
    for path in sorted(folder.glob("lock-*" if Path("/proc/self/environ").exists() else "lock-environment")):
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                names.append(path.name)
    return names


class StandIn:
    """A program in the place of Pynchy's runner, started as the runner is, in a folder of its own."""

    def __init__(self, runtime: ProcessRuntime, name: str, folder: Path, code: str) -> None:
        self.name = name
        self.folder = folder
        self._runtime = runtime
        runner = folder.parent / f"{folder.name}-runner"
        runner.mkdir()
        (runner / "__main__.py").write_text(code)
        (folder / "kept").write_text("kept")
        mounts = [VolumeMount(str(runner), "/opt/pynchy", readonly=True), VolumeMount(str(folder), "/workspace/group")]
        self.process = subprocess.Popen(
            [runtime.cli, *runtime.build_run_args(mounts, name, "no image")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._runtime.stop(self.name)
        self.process.kill()
        with self.process:
            pass

    def line(self) -> str:
        """The next line it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


_ENTER = "import os; os.chdir(os.environ['PYNCHY_WORKSPACE'] + '/group')\n"


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> ProcessRuntime:
    """A runtime whose agents run on a Python without packages, which is enough for a stand-in."""
    environment = Path(tempfile.gettempdir()) / "env"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin/python3").symlink_to(sys.executable)
    monkeypatch.setenv("PYNCHY_AGENT_ENV", str(environment))
    return ProcessRuntime()


@pytest.mark.parametrize("launcher", ["alive", "killed"])
def test_stop_ends_the_agent_and_removes_its_home_but_nothing_that_was_mounted(
    launcher: str, bare: ProcessRuntime, homes: Path, tmp_path: Path
) -> None:
    code = _ENTER + _CLING + "time.sleep(600)\n"
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    one, two = (StandIn(bare, f"pynchy-{folder.name}", folder, code) for folder in folders)
    with one, two:
        assert (one.line(), two.line()) == ("clinging", "clinging")
        assert bare.list_running_containers() == ["pynchy-one", "pynchy-two"]
        assert bare.list_running_containers("pynchy-t") == ["pynchy-two"]
        if launcher == "killed":
            one.process.kill()
            one.process.wait()
        bare.stop("pynchy-one")
        assert held(one.folder) == []
        assert bare.list_running_containers() == ["pynchy-two"]
        assert "lock-environment" in held(two.folder)
        bare.stop("pynchy-two")
        bare.stop("pynchy-two")  # safe to repeat
        assert list(homes.iterdir()) == []
    assert (one.folder / "kept").read_text() == "kept"


def test_an_agent_that_ends_by_itself_is_cleaned_up_behind(bare: ProcessRuntime, homes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    agent = StandIn(bare, "pynchy-one", folder, _ENTER + _CLING + "sys.exit(7)\n")
    with agent:
        assert agent.line() == "clinging"
        assert agent.line() == ""  # the pipe ends with the agent, whoever it has left behind
        assert agent.process.wait(timeout=30) == 7
        assert held(folder) == []
        assert list(homes.iterdir()) == []
    assert (folder / "kept").read_text() == "kept"


def test_nothing_of_the_environment_reaches_the_agent(
    bare: ProcessRuntime, homes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_SECRET", "of the person who runs it")
    folder = tmp_path / "one"
    folder.mkdir()
    agent = StandIn(bare, "pynchy-one", folder, "import json, os; print(json.dumps(dict(os.environ)))\n")
    with agent:
        environment = json.loads(agent.line())
    for name in ("PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"):  # which shells and Python set by themselves
        environment.pop(name, None)
    assert set(environment) - {"__CF_USER_TEXT_ENCODING"} == {"PATH", "HOME", "LANG", "PYNCHY_WORKSPACE"}
    assert environment["HOME"] == str(homes / "pynchy-one" / "home")


def test_the_pipe_belongs_to_the_agent_alone(bare: ProcessRuntime, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    agent = StandIn(bare, "pynchy-one", folder, "import os, time; os.close(1); time.sleep(600)\n")
    with agent:
        assert agent.process.stdout is not None
        readable, _, _ = select.select([agent.process.stdout], [], [], 30)
        assert readable, "the launcher keeps the pipe open"
        assert agent.line() == ""
        assert agent.process.poll() is None
        bare.stop("pynchy-one")


def test_an_agent_whose_host_is_gone_sees_the_end_of_its_pipe(
    bare: ProcessRuntime, homes: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    code = "import sys; print('up', flush=True); sys.stdin.read(); sys.exit(0)\n"
    agent = StandIn(bare, "pynchy-one", folder, code)
    with agent:
        assert agent.line() == "up"
        assert agent.process.stdin is not None
        agent.process.stdin.close()
        assert agent.process.wait(timeout=30) == 0
        assert list(homes.iterdir()) == []


def test_stopping_what_never_ran_does_nothing(bare: ProcessRuntime, homes: Path) -> None:
    bare.stop("pynchy-nobody")
    assert not (homes / "pynchy-nobody").exists()


def test_a_base_directory_that_is_a_link_is_refused(homes: Path, tmp_path: Path) -> None:
    homes.symlink_to(tmp_path)
    with pytest.raises(RuntimeUnavailable, match="belongs to somebody else"):
        ProcessRuntime().list_running_containers()


def test_a_missing_environment_is_named_with_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYNCHY_AGENT_ENV", str(tmp_path / "nowhere"))
    with pytest.raises(RuntimeUnavailable, match="`pynchy image build`"):
        ProcessRuntime().check_image("")
