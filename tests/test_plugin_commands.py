"""`pynchy plugins check` and the commands that plugins bring, over real projects installed beside the real wheel."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from environments import Environment, build, project
from support import REPOSITORY, RUNTIMES

_SERVER = """
from mcp.server import MCPServer

server = MCPServer("test")

@server.tool()
def look(where: str) -> str:
    "Look somewhere."
    return where

if __name__ == "__main__":
    server.run()
"""
_PLUGIN = """
from pathlib import Path
from pynchy.plugin import HookPlugin, McpPlugin, McpServerSpec

class Plugin(McpPlugin, HookPlugin):
    name = "{name}"
    def mcp_server_spec(self):
        return McpServerSpec("{name}", "python", ["-m", "pynchy_plugin_{name}.{module}"], {{}}, Path(__file__).parent)
    def agent_hooks(self):
        return {{"Stop": ["pynchy_plugin_{name}.hooks:stop"]}}
"""
_HOOKS = "def stop(*given):\n    return {}\n"
_COMMAND = """
import os, sys

def greet():
    print("hello", *sys.argv[1:], os.environ.get("PYNCHY_TEST_TOKEN", "no token"))
    return 3

def fail():
    raise ValueError("no such account")

def leave():
    sys.exit("goodbye")
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the wheel of pynchy and no plugin."""
    directory = tmp_path_factory.mktemp("environment")
    environment = Environment(directory / "venv")
    environment.install(str(build(REPOSITORY, "wheel", directory)))
    return environment


def written(directory: Path, name: str = "test", module: str = "mcp", **files: str) -> Path:
    """A project with an MCP server and a hook, changed as a test wants it."""
    path = project(directory / name, name, "Plugin", _PLUGIN.format(name=name, module=module))
    for file, text in {"mcp": _SERVER, "hooks": _HOOKS, **files}.items():
        (path / "src" / f"pynchy_plugin_{name}" / f"{file}.py").write_text(text)
    return path


def command(environment: Environment, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run that environment's pynchy on bubblewrap, away from the checkout."""
    given = {**os.environ, "CONTAINER_RUNTIME": "bubblewrap", **env}
    return subprocess.run(
        [str(environment.python), "-m", "pynchy", *words],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=environment.path,
        env={name: value for name, value in given.items() if name != "PYTHONPATH"},
    )


# --- check --------------------------------------------------------------------------------------------------


@pytest.fixture
def checking(environment: Environment, tmp_path: Path) -> Environment:
    """The environment with the sandbox plugin, which its runtime is."""
    RUNTIMES["bubblewrap"]()
    if "bubblewrap" not in environment.records(PYNCHY_HOME=str(tmp_path / "home")):
        environment.install("-e", str(REPOSITORY / "plugins/pynchy-plugin-bubblewrap"))
    return environment


@pytest.mark.bubblewrap
def test_a_project_that_works_is_checked_where_it_will_run(checking: Environment, tmp_path: Path) -> None:
    done = command(checking, "plugins", "check", str(written(tmp_path)))
    assert done.stdout == (
        "ok     test = pynchy_plugin_test:Plugin is the plugin 'test': mcp, hooks\n"
        "ok     the MCP server test offers: look\n"
        "ok     hooks: Stop\n"
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert "test" not in checking.records(), "a project that is checked is not installed"


_FAULTS = {
    "a module that is not there": ({"module": "server"}, "No module named pynchy_plugin_test.server"),
    "a library of the host's in the server": (
        {"mcp": f"import structlog\n{_SERVER}"},
        "No module named 'structlog'",
    ),
    "a hook that cannot be imported": (
        {"hooks": "import structlog"},
        "its hooks: pynchy_plugin_test.hooks:stop cannot",
    ),
    "a hook that is not there": ({"hooks": ""}, "has no attribute 'stop'"),
}


@pytest.mark.bubblewrap
@pytest.mark.parametrize(("changes", "words"), _FAULTS.values(), ids=_FAULTS)
def test_what_would_fail_in_the_container_is_said_before_it_does(
    changes: dict[str, str], words: str, checking: Environment, tmp_path: Path
) -> None:
    done = command(checking, "plugins", "check", str(written(tmp_path, **changes)))
    assert done.returncode == 1
    assert words in done.stdout
    assert "import what only the host has inside the method" in done.stdout
    assert "Traceback (most recent call last)" not in done.stderr


def test_what_ends_or_slows_a_start_is_found_by_a_check(environment: Environment, tmp_path: Path) -> None:
    def checked(name: str, code: str) -> subprocess.CompletedProcess[str]:
        path = project(tmp_path / name, name, "Plugin", code)
        (path / "src" / f"pynchy_plugin_{name}" / "slow.py").write_text("import time\ntime.sleep(2)\n")
        return command(environment, "plugins", "check", str(path))

    skills = "\nfrom pynchy.plugin import SkillPlugin\nclass Plugin(SkillPlugin):\n    name='x'\n    skill_paths=list\n"
    done = checked("exits", "import os; os._exit(7)")
    assert "WRONG  loading it ended the process (exit code 7)" in done.stdout
    done = checked("killed", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert "WRONG  loading it ended the process (signal 11)" in done.stdout
    done = checked("broken", "import not_there_at_all")
    assert "No module named 'not_there_at_all'" in done.stdout
    assert done.returncode == 1
    done = checked("sluggish", f"from pynchy_plugin_sluggish import slow{skills}")
    assert "ms of it pynchy_plugin_sluggish.slow; import it where it is used" in done.stdout
    assert done.returncode == 0


def test_a_check_of_nothing_says_what_there_is(environment: Environment, tmp_path: Path) -> None:
    done = command(environment, "plugins", "check", "nothing")
    assert "No plugin is called 'nothing'; installed are: " in done.stderr
    assert done.returncode == 1
    empty = tmp_path / "empty"
    empty.mkdir()
    done = command(environment, "plugins", "check", f"{empty}/")
    assert "cannot be built" in done.stderr
    assert (done.returncode, "Traceback (most" in done.stderr) == (1, False)


def test_a_plugin_that_a_start_died_of_is_tried_again_by_a_check(environment: Environment, tmp_path: Path) -> None:
    marker = tmp_path / "die"
    code = f"import os\nos.path.exists({str(marker)!r}) and os._exit(9)"
    skills = (
        "\nfrom pynchy.plugin import SkillPlugin\nclass Plugin(SkillPlugin):\n    name='mortal'\n    skill_paths=list\n"
    )
    path = project(tmp_path / "mortal", "mortal", "Plugin", code + skills)
    environment.install("-e", str(path))
    home = str(tmp_path / "home")
    try:
        marker.touch()
        assert command(environment, "plugins", "list", PYNCHY_HOME=home).returncode == 9
        assert environment.records(PYNCHY_HOME=home)["mortal"]["state"] == "failed"
        assert command(environment, "plugins", "check", "mortal", PYNCHY_HOME=home).returncode == 1
        marker.unlink()
        assert environment.records(PYNCHY_HOME=home)["mortal"]["state"] == "failed"
        assert command(environment, "plugins", "check", "mortal", PYNCHY_HOME=home).returncode == 0
        assert environment.records(PYNCHY_HOME=home)["mortal"]["state"] == "ready"
    finally:
        environment.uninstall("pynchy-plugin-mortal")


# --- commands -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def commanding(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """The environment with plugins that bring commands, two of them the same."""
    directory = tmp_path_factory.mktemp("commands")
    for name in ("one", "two"):
        path = directory / name
        (path / "src" / f"commands_{name}").mkdir(parents=True)
        (path / "src" / f"commands_{name}" / "__init__.py").write_text(
            f"open({str(directory / 'loaded')!r}, 'a').write({name!r})\n{_COMMAND}"
        )
        points = "\n".join(f'{word} = "commands_{name}:{target}"' for word, target in _POINTS[name].items())
        (path / "pyproject.toml").write_text(
            f'[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
            f'[project]\nname = "pynchy-commands-{name}"\nversion = "1"\n'
            f'[project.entry-points."pynchy.commands"]\n{points}\n'
            f'[tool.hatch.build.targets.wheel]\npackages = ["src/commands_{name}"]\n'
        )
        environment.install("-e", str(path))
    yield environment
    for name in ("one", "two"):
        environment.uninstall(f"pynchy-commands-{name}")


_POINTS = {
    "one": {"greet": "greet", "fail": "fail", "leave": "leave", "gone": "not_there", "run": "greet", "both": "greet"},
    "two": {"both": "greet"},
}


def test_a_plugins_command_is_called_like_a_console_script(commanding: Environment, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    (home / ".env").write_text("PYNCHY_TEST_TOKEN=from-the-file\n")
    done = command(commanding, "greet", "--loud", "-x", "Ada", PYNCHY_HOME=str(home))
    assert (done.stdout, done.returncode) == ("hello --loud -x Ada from-the-file\n", 3)


def test_commands_are_listed_and_loaded_only_when_they_are_called(commanding: Environment, tmp_path: Path) -> None:
    loaded = next(tmp_path.parent.glob("commands*/loaded"), None)
    before = loaded.read_text() if loaded else ""
    listed = command(commanding, "--help").stdout
    assert "greet     From the plugin pynchy-commands-one." in listed
    assert "Run the service until it is stopped" in listed, "ours is not taken"
    assert listed.count("    run ") == 1
    command(commanding, "plugins", "list")
    loaded = next(tmp_path.parent.glob("commands*/loaded"), None)
    assert (loaded.read_text() if loaded else "") == before


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("fail", 1, "`pynchy fail` of pynchy-commands-one failed: ValueError: no such account."),
        ("leave", 1, "goodbye"),
        ("gone", 1, "`pynchy gone` cannot be loaded from pynchy-commands-one: AttributeError"),
        ("both", 1, "`pynchy both` is offered by pynchy-commands-one and pynchy-commands-two: uninstall one of them."),
        ("nothing", 2, "invalid choice: 'nothing'"),
    ],
)
def test_a_command_that_cannot_be_carried_out_says_why(
    name: str, code: int, words: str, commanding: Environment
) -> None:
    done = command(commanding, name)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_of_a_plugin_that_is_switched_off_is_not_loaded(commanding: Environment) -> None:
    done = command(commanding, "greet", PYNCHY_PLUGINS_DISABLED="pynchy-commands-one")
    assert done.returncode == 1
    assert "`pynchy greet` belongs to pynchy-commands-one: PYNCHY_PLUGINS_DISABLED names it" in done.stderr
