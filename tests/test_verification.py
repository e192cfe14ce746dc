"""The plan's verification, step by step, with `uv` as a person types it: installed is active, uninstalled is gone."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import uv
from environments import Environment, build, project
from support import REPOSITORY, RUNTIMES

_NO_OP = """
from pathlib import Path
from pynchy.plugin import McpPlugin, McpServerSpec

class TestPlugin(McpPlugin):
    name = "test"
    def mcp_server_spec(self):
        return McpServerSpec("test", "python", ["-m", "pynchy_plugin_test.mcp"], {}, Path(__file__).parent)
"""
_SERVER = """
from mcp.server import MCPServer

server = MCPServer("test")

@server.tool(structured_output=False)
def nothing() -> str:
    "Do nothing."
    return "nothing was done"

server.run()
"""
_SHOW = "from pynchy.plugin import discover_plugins; r = discover_plugins(); print(r)"
_RUNTIME = "from pynchy.runtime import get_runtime; print(get_runtime().name)"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with pynchy and the sandbox, and no other plugin."""
    directory = tmp_path_factory.mktemp("environment")
    environment = Environment(directory / "venv")
    environment.install(str(build(REPOSITORY, "wheel", directory)))
    environment.install(str(build(REPOSITORY / "plugins/pynchy-plugin-bubblewrap", "wheel", directory)))
    return environment


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """The no-op plugin of the plan, in a folder of its own."""
    path = project(tmp_path / "pynchy-plugin-test", "test", "TestPlugin", _NO_OP)
    (path / "src/pynchy_plugin_test/mcp.py").write_text(_SERVER)
    return path


class Shell:
    """`uv` in the environment, outside the checkout."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def __call__(self, command: str, *words: str, **env: str) -> str:
        """Run it and return its stdout."""
        given = {**os.environ, "VIRTUAL_ENV": str(self._environment.path), **env}
        given.pop("PYTHONPATH", None)
        done = subprocess.run(
            [uv.find_uv_bin(), *shlex.split(command)[1:], *words],
            cwd=self._environment.path,
            env=given,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def python(self, code: str, **env: str) -> str:
        """`uv run python -c CODE`."""
        return self("uv run --no-project --offline python -c", code, **env)

    def install(self, *what: str) -> None:
        """`uv pip install`, with nothing that is not here already."""
        self("uv pip install --quiet --no-deps --no-build-isolation --offline", *what)


@pytest.fixture
def shell(environment: Environment) -> Iterator[Shell]:
    """A shell; the plugin is uninstalled at the end, however the test ends."""
    shell = Shell(environment)
    yield shell
    shell("uv pip uninstall --quiet pynchy-plugin-test")


def test_without_a_runtime_plugin_for_this_machine_docker_is_chosen_and_can_always_be(shell: Shell) -> None:
    assert shell.python(_RUNTIME, CONTAINER_RUNTIME="docker") == "docker\n"
    assert shell.python(_RUNTIME, PYNCHY_SAFE_MODE="1", CONTAINER_IMAGE="some-image") == "docker\n"


@pytest.mark.bubblewrap
@pytest.mark.parametrize("source", ["editable", "git"])
def test_a_plugin_is_installed_seen_used_by_an_agent_uninstalled_and_gone(
    source: str, shell: Shell, plugin: Path, tmp_path: Path
) -> None:
    RUNTIMES["bubblewrap"]()
    assert "TestPlugin" not in shell.python(_SHOW)
    if source == "editable":
        shell.install("-e", str(plugin))
    else:
        git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
        for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "x"]):
            subprocess.run([*git, *command], cwd=plugin, check=True, capture_output=True)
        shell.install(f"git+file://{plugin}")
    shown = shell.python(_SHOW)
    assert "mcp_servers=[<pynchy_plugin_test.TestPlugin object" in shown
    ask = "uv run --no-project --offline pynchy ask --demo"
    answer = shell(ask, "/tool mcp__test__nothing", CONTAINER_RUNTIME="bubblewrap")
    assert answer == "nothing was done\n"
    listed = shell("uv run --no-project --offline pynchy plugins list")
    origin = f"editable {plugin}" if source == "editable" else f"git {plugin}"
    assert any(line.startswith("test ") and line.endswith(origin) for line in listed.splitlines()), listed
    shell("uv pip uninstall --quiet pynchy-plugin-test")
    assert "TestPlugin" not in shell.python(_SHOW)
    answer = shell(ask, "/tool mcp__test__nothing", CONTAINER_RUNTIME="bubblewrap")
    assert "nothing was done" not in answer
