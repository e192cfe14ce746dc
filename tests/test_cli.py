"""The command line, each command in a process of its own, as a person uses it."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support import BUSY, RUNTIMES, pynchy, without_docker

#: Some of them start three agents one after the other, and a machine may have much else to do.
pytestmark = pytest.mark.timeout(300)

GREET = '/tool mcp__hello__greet {"name": "Ada"}'
HELLO_ADA = "Hello, Ada! The hello plugin sends this greeting."


@pytest.fixture(params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("docker", "bubblewrap")])
def runtime_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each runtime that a checkout has installed, chosen by CONTAINER_RUNTIME."""
    RUNTIMES[request.param]()
    monkeypatch.setenv("CONTAINER_RUNTIME", request.param)
    return request.param


@pytest.fixture
def any_runtime(monkeypatch: pytest.MonkeyPatch) -> str:
    """One runtime, for what does not depend on which: bubblewrap, the quickest."""
    RUNTIMES["bubblewrap"]()
    monkeypatch.setenv("CONTAINER_RUNTIME", "bubblewrap")
    return "bubblewrap"


@contextmanager
def running_service(*args: str) -> Iterator[subprocess.Popen[str]]:
    """`pynchy run`, ready; stopped with SIGTERM at the end, and expected to end well."""
    service = subprocess.Popen(
        [sys.executable, "-m", "pynchy", "run", *args], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    assert service.stderr is not None
    seen = []
    for line in service.stderr:
        seen.append(line)
        if "is ready" in line:
            break
    else:
        pytest.fail(f"the service did not start: {seen}")
    try:
        yield service
    finally:
        service.send_signal(signal.SIGTERM)
        service.communicate(timeout=60)
    assert service.returncode == 0


def test_ask_prints_the_answer_alone_on_stdout(runtime_name: str) -> None:
    done = pynchy("ask", "--demo", GREET)
    assert (done.stdout, done.returncode) == (HELLO_ADA + "\n", 0)
    assert "The scripted demo model answers" in done.stderr
    assert "ANTHROPIC_API_KEY" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_conversation_goes_on_from_one_ask_to_the_next(any_runtime: str) -> None:
    for _ in range(3):
        assert pynchy("ask", "--demo", GREET).stdout == HELLO_ADA + "\n"


def test_ask_and_chat_use_the_running_service(any_runtime: str) -> None:
    with running_service("--demo"):
        assert pynchy("ask", "--demo", "one").stdout == "You said: one\n"
        assert pynchy("ask", "two").stdout == "You said: two\n"
        chat = subprocess.run(
            [sys.executable, "-m", "pynchy", "chat"],
            input="three\n\nfour\n",
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert (chat.stdout, chat.returncode) == ("You said: three\nYou said: four\n", 0)
        listed = json.loads(pynchy("plugins", "list", "--json").stdout)
        assert {record["name"]: record["state"] for record in listed} == {"bubblewrap": "ready", "hello": "ready"}
        assert "ok     service: running" in pynchy("doctor").stdout


def test_two_asks_at_once_without_a_service_are_both_answered(any_runtime: str) -> None:
    asking = [
        subprocess.Popen(
            [sys.executable, "-m", "pynchy", "ask", "--demo", f"number {number}"], stdout=subprocess.PIPE, text=True
        )
        for number in range(3)
    ]
    answers = [process.communicate(timeout=200)[0] for process in asking]
    # Told apart or answered together, every text is in somebody's answer.
    assert [process.returncode for process in asking] == [0, 0, 0]
    for number in range(3):
        assert f"number {number}" in answers[number]


def test_a_second_service_on_one_home_is_refused(any_runtime: str) -> None:
    with running_service("--demo") as first:
        second = pynchy("run", "--demo")
    assert second.returncode == 1
    assert f"A pynchy service (process {first.pid}) already runs on" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_service_killed_without_warning_leaves_nothing_in_the_way(any_runtime: str) -> None:
    with pytest.raises(AssertionError), running_service("--demo") as service:
        service.kill()
    assert pynchy("ask", "--demo", "hello").stdout == "You said: hello\n"


@pytest.fixture
def door(tmp_path: Path) -> Iterator[socket.socket]:
    """What listens at the door of this test's home in the place of a service."""
    (tmp_path / "home").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(60)
        listener.bind(str(tmp_path / "home/control.sock"))
        listener.listen()
        yield listener


@contextmanager
def asking(*words: str) -> Iterator[subprocess.Popen[str]]:
    """`pynchy ask --demo`; it ends with the block at the latest."""
    command = [sys.executable, "-m", "pynchy", "ask", "--demo", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_service_that_stops_while_it_is_asked_which_one_it_is_is_replaced(
    any_runtime: str, door: socket.socket
) -> None:
    with asking("hello") as process:
        door.accept()[0].close()
        Path(door.getsockname()).unlink()
        door.close()
        assert process.communicate(timeout=90)[0] == "You said: hello\n"


def test_a_command_asks_who_is_there_and_its_question_on_one_connection(door: socket.socket) -> None:
    with asking("hello") as process:
        connection = door.accept()[0]
        connection.settimeout(60)
        with connection, connection.makefile() as said:
            assert json.loads(said.readline()) == {"op": "hello"}
            connection.sendall(b'{"event": "hello", "demo": true}\n')
            assert json.loads(said.readline()) == {"op": "ask", "group": "main", "text": "hello"}
            connection.sendall(b'{"event": "text", "text": "hi"}\n{"event": "settled", "error": null}\n')
            assert process.communicate(timeout=60)[0] == "hi\n"


def test_a_demo_and_a_real_service_are_not_taken_for_each_other(
    any_runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-not-a-key")
    with running_service():
        refused = pynchy("ask", "--demo", "hello")
    assert refused.returncode == 1
    assert "uses the real model" in refused.stderr


def test_the_demo_never_uses_a_credential_of_the_environment(any_runtime: str) -> None:
    # If it did, the answer would have to come from there.
    env = {"ANTHROPIC_API_KEY": "sk-not-a-key", "ANTHROPIC_BASE_URL": "http://127.0.0.1:9"}
    assert pynchy("ask", "--demo", "hello", env=env).stdout == "You said: hello\n"


def test_a_model_endpoint_of_ones_own_needs_no_credential(any_runtime: str) -> None:
    failed = pynchy("ask", "hello", env={"ANTHROPIC_BASE_URL": "http://127.0.0.1:9", "PYNCHY_RETRY_PAUSE": "0.01"})
    assert failed.returncode == 1
    assert "I could not answer: " in failed.stdout
    assert "the model's API cannot be reached" in failed.stdout


# --- bad input ------------------------------------------------------------------------------------------------


def unknown_runtime(tmp_path: Path) -> dict[str, str]:
    return {"CONTAINER_RUNTIME": "kubernetes"}


def docker_not_installed(tmp_path: Path) -> dict[str, str]:
    return {"CONTAINER_RUNTIME": "docker", **without_docker(tmp_path)}


def docker_not_running(tmp_path: Path) -> dict[str, str]:
    return {"CONTAINER_RUNTIME": "docker", "DOCKER_HOST": f"unix://{tmp_path}/nothing.sock"}


def docker_without_permission(tmp_path: Path) -> dict[str, str]:
    # A stand-in for the client, with the words of the real one: root may always.
    client = tmp_path / "docker"
    client.write_text(
        "#!/bin/sh\necho 'permission denied while trying to connect to the Docker daemon socket' >&2\nexit 1\n"
    )
    client.chmod(0o755)
    return {"CONTAINER_RUNTIME": "docker", "PATH": f"{tmp_path}:{os.environ['PATH']}"}


def agent_environment_missing(tmp_path: Path) -> dict[str, str]:
    RUNTIMES["bubblewrap"]()
    return {"CONTAINER_RUNTIME": "bubblewrap", "PYNCHY_AGENT_ENV": str(tmp_path / "nothing")}


def image_missing(tmp_path: Path) -> dict[str, str]:
    RUNTIMES["docker"]()
    return {"CONTAINER_RUNTIME": "docker", "CONTAINER_IMAGE": "pynchy-no-such-image:1"}


def home_is_a_file(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "file").touch()
    RUNTIMES["bubblewrap"]()
    return {"PYNCHY_HOME": str(tmp_path / "file"), "CONTAINER_RUNTIME": "bubblewrap"}


def home_too_long(tmp_path: Path) -> dict[str, str]:
    return {"PYNCHY_HOME": str(tmp_path / ("long" * 40))}


def bad_setting(tmp_path: Path) -> dict[str, str]:
    return {"MAX_CONCURRENT_CONTAINERS": "many"}


@pytest.mark.parametrize(
    ("situation", "words"),
    [
        (unknown_runtime, "Unknown CONTAINER_RUNTIME='kubernetes'; available: bubblewrap, docker."),
        (docker_not_installed, "Docker is not installed; install it"),
        (docker_not_running, "Docker is installed but not running; start it"),
        (docker_without_permission, "this user may not talk to Docker; add the user to the `docker` group"),
        (agent_environment_missing, "the agent's environment is missing; make it with `pynchy image build`"),
        (image_missing, "the agent image pynchy-no-such-image:1 is missing; build it with `pynchy image build`"),
        (home_is_a_file, "cannot be used"),
        (home_too_long, "set PYNCHY_HOME to a shorter one"),
        (bad_setting, "MAX_CONCURRENT_CONTAINERS='many' cannot be used"),
    ],
)
def test_what_is_missing_or_wrong_is_one_sentence_with_its_remedy(
    situation: Callable[[Path], dict[str, str]], words: str, tmp_path: Path
) -> None:
    env = {"ANTHROPIC_API_KEY": "sk-not-a-key", **situation(tmp_path)}
    done = pynchy("ask", "hello", env=env)
    assert done.returncode == 1
    assert done.stdout == ""
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_a_credential_it_says_how_to_set_one() -> None:
    done = pynchy("ask", "hello")
    assert done.returncode == 1
    assert done.stderr.startswith("pynchy: No model credential: set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN")
    assert "--demo" in done.stderr


@pytest.mark.parametrize("text", ["", "   \n"])
def test_an_empty_message_is_refused(text: str) -> None:
    done = pynchy("ask", "--demo", text)
    assert (done.returncode, done.stdout) == (1, "")
    assert "The message is empty" in done.stderr


def test_text_that_is_not_utf8_is_taken_as_far_as_it_can_be_read(any_runtime: str) -> None:
    done = pynchy("ask", "--demo", os.fsdecode(b"caf\xe9 \xf0\x9f\x98\x80"))
    assert (done.stdout, done.returncode) == ("You said: caf? \U0001f600\n", 0)


def test_a_message_that_is_too_long_is_refused_with_the_limit(any_runtime: str) -> None:
    done = pynchy("chat", "--demo", typed="x" * 200_001)
    assert done.returncode == 1
    assert "The message has 200001 characters; 200000 is the most" in done.stderr


def test_a_file_that_is_no_database_is_left_alone_and_named(any_runtime: str, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/pynchy.db").write_text("something else entirely " * 10)
    done = pynchy("ask", "--demo", "hello")
    assert done.returncode == 1
    assert "pynchy.db: file is not a database; restore it from a backup" in done.stderr
    assert (tmp_path / "home/pynchy.db").read_text() == "something else entirely " * 10


def test_an_unknown_group_is_refused_and_the_known_ones_are_listed(any_runtime: str) -> None:
    done = pynchy("ask", "--demo", "--group", "../../etc", "hello")
    assert done.returncode == 1
    assert "There is no group '../../etc'; there are: main." in done.stderr


def test_a_question_that_takes_too_long_is_kept(any_runtime: str) -> None:
    with running_service("--demo"):
        pynchy("ask", "the agent is up")
        late = pynchy("ask", "--timeout", "1", f"/tool Bash {json.dumps({'command': BUSY})}")
    assert late.returncode == 1
    assert "No answer within 1 s. The message is kept" in late.stderr


def test_help_and_python_m_pynchy_work() -> None:
    done = pynchy("--help")
    assert done.returncode == 0
    for command in ("run", "chat", "ask", "plugins", "doctor", "image"):
        assert f"\n    {command} " in done.stdout


@pytest.mark.parametrize(
    "command", [("plugins", "list"), ("plugins", "why"), ("plugins", "show", "hello"), ("--help",)]
)
def test_a_reader_that_goes_away_and_a_broken_settings_file_end_in_no_traceback(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.env").write_bytes(b"A=\xff\xfe\n")
    assert pynchy(*command).returncode == 0
    read, write = os.pipe()
    os.close(read)
    for unbuffered in ("", "1"):
        env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        whole = [sys.executable, "-m", "pynchy", *command]
        done = subprocess.run(whole, stdout=write, stderr=subprocess.PIPE, timeout=60, env=env)
        assert done.stderr == b""
        assert done.returncode == 1 or command == ("--help",)
    os.close(write)


def test_the_plugin_list_names_each_plugin_with_its_types(any_runtime: str) -> None:
    lines = pynchy("plugins", "list").stdout.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "TYPES", "VERSION", "FROM"]
    assert [line.split()[:4] for line in lines if not line.startswith((" ", "NAME"))] == [
        ["bubblewrap", "ready", "runtime", "0.1.0"],
        ["hello", "ready", "mcp", "0.1.0"],
    ]


def test_doctor_says_what_is_wrong_and_what_mends_it(tmp_path: Path) -> None:
    env = {"CONTAINER_RUNTIME": "bubblewrap", "PYNCHY_AGENT_ENV": str(tmp_path / "nothing")}
    RUNTIMES["bubblewrap"]()
    done = pynchy("doctor", env=env)
    assert done.returncode == 1
    assert "WRONG  credential: none" in done.stdout
    assert (
        "WRONG  image: the agent's environment is missing\n       -> make it with `pynchy image build`" in done.stdout
    )


def test_doctor_is_content_when_all_is_well(any_runtime: str) -> None:
    done = pynchy("doctor", env={"ANTHROPIC_API_KEY": "sk-not-a-key"})
    assert done.returncode == 0, done.stdout
    assert "WRONG" not in done.stdout
    assert "sk-not-a-key" not in done.stdout


# --- machines where no sandbox can start ----------------------------------------------------------------------


@pytest.fixture
def no_sandbox(tmp_path: Path) -> dict[str, str]:
    """As in an unprivileged container: no docker, and a bwrap that may not create namespaces."""
    env = without_docker(tmp_path)
    bwrap = Path(env["PATH"], "bwrap")
    bwrap.unlink(missing_ok=True)
    bwrap.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && { echo bubblewrap 0.11.0; exit; }\n'
        "echo 'bwrap: Creating new namespace failed: Operation not permitted' >&2\nexit 1\n"
    )
    bwrap.chmod(0o755)
    RUNTIMES["bubblewrap"]()  # for the agent's environment
    return env


def test_without_a_sandbox_the_demo_runs_as_a_process_and_says_that_this_is_none(
    no_sandbox: dict[str, str],
) -> None:
    done = pynchy("ask", "--demo", GREET, env=no_sandbox)
    assert (done.stdout, done.returncode) == (HELLO_ADA + "\n", 0)
    assert "THIS IS NO SANDBOX" in done.stderr


def test_without_a_sandbox_a_real_model_is_refused(no_sandbox: dict[str, str]) -> None:
    done = pynchy("ask", "hello", env={**no_sandbox, "ANTHROPIC_API_KEY": "sk-not-a-key"})
    assert done.returncode == 1
    assert "No sandbox for the agent: Docker is not installed; install it" in done.stderr


def test_a_service_that_outlives_the_terminal_is_refused_without_a_sandbox(no_sandbox: dict[str, str]) -> None:
    done = pynchy("run", "--demo", env=no_sandbox)
    assert done.returncode == 1
    assert "No sandbox for the agent" in done.stderr


def test_a_runtime_that_was_asked_for_is_never_replaced_by_none(no_sandbox: dict[str, str]) -> None:
    done = pynchy("ask", "--demo", "hello", env={**no_sandbox, "CONTAINER_RUNTIME": "bubblewrap"})
    assert done.returncode == 1
    assert "no sandbox can start here" in done.stderr


# --- at a real terminal ---------------------------------------------------------------------------------------


def read_until(terminal: int, words: str) -> str:
    """What the terminal shows up to and including these words; the test's time limit ends a wait in vain."""
    shown = ""
    while words not in shown:
        shown += os.read(terminal, 4096).decode("utf-8", "replace")
    return shown


def test_a_chat_at_a_terminal_shows_answers_as_they_come_and_ends_with_ctrl_d(any_runtime: str) -> None:
    terminal, its_end = pty.openpty()
    chat = subprocess.Popen(
        [sys.executable, "-m", "pynchy", "chat", "--demo"], stdin=its_end, stdout=its_end, stderr=subprocess.PIPE
    )
    os.close(its_end)
    try:
        read_until(terminal, "Ctrl-D ends the chat.")
        os.write(terminal, b"hello\r")
        read_until(terminal, "You said: hello")
        while chat.poll() is None:
            os.write(terminal, b"\x04")  # a key pressed while the answer is being drawn may be lost
            with suppress(subprocess.TimeoutExpired):
                chat.wait(timeout=0.5)
        assert chat.returncode == 0
    finally:
        chat.kill()
        chat.communicate()
        os.close(terminal)
