"""The agent as a plain process: a temporary home, a scrubbed environment, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from support import CREDENTIAL, Chat, StartService, missing

from pynchy.plugin import ContainerRuntime, PluginRegistry, RuntimeUnavailable
from pynchy.testing import ProcessRuntime
from pynchy.types import VolumeMount
from pynchy_plugin_hello import HelloPlugin


@pytest.fixture
def process_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProcessRuntime:
    """The runtime, with a temporary directory of its own."""
    (tmp_path / "t").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    runtime = ProcessRuntime()
    try:
        runtime.check_image("")
    except RuntimeUnavailable as error:
        missing("agent environment", str(error))
    return runtime


def left_behind(tmp_path: Path) -> list[str]:
    """The temporary homes that are still there."""
    return [path.name for path in (tmp_path / "t").glob("pynchy-process-*/*")]


@pytest.mark.anyio
async def test_the_real_agent_answers_with_a_plugins_tool_and_leaves_nothing(
    process_runtime: ProcessRuntime, start_service: StartService, tmp_path: Path
) -> None:
    async with start_service(process_runtime, PluginRegistry(mcp_servers=[HelloPlugin()])) as service:
        chat = Chat(service)
        assert (
            await chat.ask('/tool mcp__hello__greet {"name": "Ada"}')
            == "Hello, Ada! The hello plugin sends this greeting."
        )
        assert len(process_runtime.list_running_containers()) == 1
    assert process_runtime.list_running_containers() == []
    assert left_behind(tmp_path) == []


@pytest.mark.anyio
async def test_nothing_of_the_hosts_environment_reaches_the_agent(
    process_runtime: ProcessRuntime, start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", CREDENTIAL)
    monkeypatch.setenv("SOME_SECRET", CREDENTIAL)
    async with start_service(process_runtime) as service:
        answer = await Chat(service).ask(f"/tool Bash {json.dumps({'command': 'env; echo; echo $HOME'})}")
    assert CREDENTIAL not in answer
    assert answer.splitlines()[-1].endswith("/home")
    assert answer.splitlines()[-1] != os.environ["HOME"]


def start_sleeper(runtime: ProcessRuntime, name: str, tmp_path: Path) -> subprocess.Popen[bytes]:
    """An agent that starts a process of its own and then waits for ever."""
    runner = tmp_path / "runner"
    runner.mkdir(exist_ok=True)
    (runner / "__main__.py").write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(300)\n"
    )
    arguments = runtime.build_run_args([VolumeMount(str(runner), "/opt/pynchy", readonly=True)], name, "")
    return subprocess.Popen([runtime.cli, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def running(pid: int) -> bool:
    """Whether a process is there and is more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("killed_before", [False, True], ids=["running", "its launcher was killed"])
def test_stop_ends_every_process_and_removes_the_home(
    killed_before: bool, process_runtime: ProcessRuntime, tmp_path: Path
) -> None:
    launcher = start_sleeper(process_runtime, "pynchy-test-stop", tmp_path)
    assert launcher.stdout is not None
    child = int(launcher.stdout.readline())
    assert process_runtime.list_running_containers() == ["pynchy-test-stop"]
    if killed_before:
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
        assert running(child)
    process_runtime.stop("pynchy-test-stop")
    launcher.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while running(child) and time.monotonic() < deadline:
        time.sleep(0.01)  # the kernel ends it when it gets to it
    assert not running(child)
    assert process_runtime.list_running_containers() == []
    assert left_behind(tmp_path) == []


def test_a_folder_that_somebody_else_made_is_refused(process_runtime: ProcessRuntime, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "t" / f"pynchy-process-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RuntimeUnavailable, match="belongs to somebody else"):
        process_runtime.list_running_containers()


def test_it_is_a_container_runtime() -> None:
    assert isinstance(ProcessRuntime(), ContainerRuntime)
