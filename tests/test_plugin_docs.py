"""The documentation for plugin authors, done as it is written: each page's project is installed and tried.

A page's files are the fenced blocks below a line that names the file, its exchanges the `console` blocks. All of it
happens in a throwaway environment with the wheels of pynchy and of the bubblewrap plugin, outside the checkout.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from environments import Environment, build
from support import REPOSITORY, RUNTIMES, docker_runtime
from test_docs import blocks, exchanges

import pynchy.plugin

DOCS = REPOSITORY / "docs" / "plugins"
PAGES = {path.stem: path.read_text() for path in sorted(DOCS.glob("*.md"))}
#: The page of each type by its word, as lists have it.
TYPES = {
    "runtime": "runtime",
    "channel": "channel",
    "mcp": "mcp",
    "skills": "skills",
    "hooks": "hooks",
    "tools": "tools",
}
#: Names that only Pynchy itself, or a program that embeds it, has a use for.
NOT_FOR_AUTHORS = {
    "Candidate",
    "GROUP",
    "GROUP_OF_COMMANDS",
    "InvalidPlugin",
    "PluginRecord",
    "PluginRegistry",
    "runtime_candidates",
    "select_runtime",
}
#: What is accepted and then dropped: nothing stores a message's attachments yet.
NOT_YET = {"Attachment"}


def files(page: str) -> dict[str, str]:
    """The files of a page's project by their paths."""
    return dict(re.findall(r"^\*\*`([^`\n]+)`\*\*\n\n```\w*\n(.*?)^```$", page, re.DOTALL | re.MULTILINE))


def dialogue(page: str) -> list[tuple[str, str]]:
    """The commands of a page, each with its output."""
    return [pair for block in blocks(page, "console") for pair in exchanges(block)]


def claims(page: str) -> tuple[str, str, list[str]]:
    """The entry point, the plugin's name and its types, as the page's `pynchy plugins check` says them."""
    found = re.search(r"^ok     (\S+) = \S+ is the plugin '(\S+)': (.*)$", page, re.MULTILINE)
    assert found
    return found[1], found[2], found[3].split(", ")


EXAMPLES = [name for name, page in PAGES.items() if "pyproject.toml" in files(page)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with pynchy and its sandbox, as wheels; each test removes what it installs."""
    directory = tmp_path_factory.mktemp("environment")
    environment = Environment(directory / "venv")
    for project in (REPOSITORY, REPOSITORY / "plugins/pynchy-plugin-bubblewrap"):
        environment.install(str(build(project, "wheel", directory)))
    return environment


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty home, and bubblewrap for the agents."""
    RUNTIMES["bubblewrap"]()
    monkeypatch.setenv("CONTAINER_RUNTIME", "bubblewrap")
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    return home


@contextmanager
def installed(page: str, environment: Environment, directory: Path) -> Iterator[Path]:
    """A page's project, written and installed as the page says; afterwards uninstalled, and then it is gone."""
    assert "uv pip install -e ." in page
    project = directory / "project"
    for name, content in files(page).items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    environment.install("-e", str(project))
    entry_point, name, types = claims(page)
    try:
        record = environment.records()[entry_point]
        assert (record["state"], record["name"], record["types"]) == ("ready", name, types)
        yield project
    finally:
        environment.uninstall(f"pynchy-plugin-{name}")
    assert entry_point not in environment.records()


def shell(environment: Environment, command: str, project: Path) -> subprocess.CompletedProcess[str]:
    """A command as the reader types it, with the environment activated and in the project's directory."""
    return subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=project,
        env=activated(environment),
    )


def activated(environment: Environment) -> dict[str, str]:
    """Our environment variables, as if the environment's `activate` had been sourced."""
    path = f"{environment.python.parent}{os.pathsep}{os.environ['PATH']}"
    return {**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, "PATH": path}


def try_out(page: str, environment: Environment, directory: Path) -> None:
    """Install a page's project, and have its exchanges word by word."""
    with installed(page, environment, directory) as project:
        for command, output in dialogue(page):
            done = shell(environment, command, project)
            assert (command, done.stdout) == (command, output), done.stderr


@pytest.mark.bubblewrap
@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "channel"])
def test_the_example_of_a_page_works_as_it_is_written(
    name: str, environment: Environment, home: Path, tmp_path: Path
) -> None:
    try_out(PAGES[name], environment, tmp_path)


@pytest.mark.docker
def test_the_example_of_an_mcp_server_works_on_docker_too(
    environment: Environment, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker_runtime()
    monkeypatch.setenv("CONTAINER_RUNTIME", "docker")
    try_out(PAGES["mcp"], environment, tmp_path)


# --- channels -----------------------------------------------------------------------------------------------


@contextmanager
def started(environment: Environment, log: Path, *command: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs until it is told to stop, and then ends well within seconds."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**activated(environment), **env}
        )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
    finally:
        process.kill()
        process.wait()


def says(environment: Environment, command: str, output: str, project: Path) -> bool:
    """Whether a command now has this output."""
    return shell(environment, command, project).stdout == output


def until(condition: Callable[[], bool], why_not: Callable[[], object], within: float = 60) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, why_not()
        time.sleep(0.05)


@pytest.mark.bubblewrap
def test_the_channel_of_the_page_takes_a_message_in_and_brings_the_answer_out(
    environment: Environment, home: Path, tmp_path: Path
) -> None:
    page = PAGES["channel"]
    model_log, log = tmp_path / "model.log", tmp_path / "service.log"
    with (
        installed(page, environment, tmp_path) as project,
        started(environment, model_log, str(environment.python), "-u", str(project / "scripted_model.py")),
    ):
        until(lambda: model_log.read_text().endswith("pynchy run\n"), model_log.read_text)
        variable, _, url = model_log.read_text().split()[0].partition("=")
        with started(environment, log, str(environment.python), "-m", "pynchy", "run", **{variable: url}) as service:
            until((home / "plugins/mailbox/inbox").is_dir, log.read_text)
            for command, output in dialogue(page):
                # Any step may be a moment early, as the page says. Those that only look can look again.
                if command.startswith(("cat ", "pynchy groups list")):
                    until(partial(says, environment, command, output, project), log.read_text)
                else:
                    assert says(environment, command, output, project), (command, log.read_text())
            inbox = home / "plugins/mailbox/inbox"
            until(lambda: not list(inbox.iterdir()), lambda: "what is stored is acknowledged")
        assert service.returncode == 0, log.read_text()
        assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("page", ["channel", "mcp"])
def test_the_tests_of_a_page_pass(page: str, environment: Environment, tmp_path: Path) -> None:
    with installed(PAGES[page], environment, tmp_path) as project:
        done = shell(environment, "python -W error -m pytest -q -p no:cacheprovider", project)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


# --- what the pages say -------------------------------------------------------------------------------------


def test_every_type_has_a_page_with_an_example_of_exactly_that_type() -> None:
    for word, name in TYPES.items():
        assert claims(PAGES[name])[2] == [word]
    assert len(claims(PAGES["composite"])[2]) > 1
    assert {"commands", "trust", "README"} < set(PAGES)


def test_every_public_name_that_an_author_needs_is_documented() -> None:
    code = re.findall(r"^```.*?^```|`[^`\n]+`", "\n".join(PAGES.values()), re.DOTALL | re.MULTILINE)
    written = set(re.findall(r"\w+", "\n".join(code)))
    assert set(pynchy.plugin.__all__) >= NOT_FOR_AUTHORS | NOT_YET
    assert set(pynchy.plugin.__all__) - NOT_FOR_AUTHORS - NOT_YET - written == set()


_CREATE = """
for one in list(vars().values()):
    if isinstance(one, type) and one.__module__ == __name__:
        one()
"""


@pytest.mark.parametrize("name", PAGES)
def test_a_plugin_that_is_shown_without_its_project_can_be_created(name: str, environment: Environment) -> None:
    own = set(files(PAGES[name]).values())
    for code in blocks(PAGES[name], "python"):
        if code not in own:
            environment.run("-W", "error", "-c", code + _CREATE)
