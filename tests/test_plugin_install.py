"""Install = active, uninstall = gone: real distributions, built and installed into an environment of their own."""

from __future__ import annotations

import re
import subprocess
import zipfile
from pathlib import Path

import pytest
from environments import Environment, build, project
from support import REPOSITORY

PLUGINS = [
    *(REPOSITORY / f"plugins/pynchy-plugin-{name}" for name in ("apple-container", "bubblewrap", "podman")),
    REPOSITORY / "examples/pynchy-plugin-hello",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of pynchy, built from the checkout."""
    return build(REPOSITORY, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with pynchy and no plugin, shared: each test removes what it installs."""
    environment = Environment(tmp_path_factory.mktemp("environment") / "venv")
    environment.install(str(wheel))
    return environment


_NO_OP = """
from pathlib import Path
from pynchy.plugin import McpPlugin, McpServerSpec

class Plugin(McpPlugin):
    name = "test"
    def mcp_server_spec(self):
        return McpServerSpec("test", "python", ["-m", "pynchy_plugin_test.mcp"], {}, Path(__file__).parent)
"""


@pytest.mark.parametrize("way", ["editable", "wheel"])
def test_an_installed_plugin_is_discovered_and_an_uninstalled_one_is_gone(
    way: str, environment: Environment, tmp_path: Path
) -> None:
    assert environment.discovered() == {}
    directory = project(tmp_path / "my plugin", "test", "Plugin", _NO_OP)
    if way == "editable":
        environment.install("-e", str(directory))
    else:
        environment.install(str(build(directory, "wheel", tmp_path)))
    try:
        assert environment.discovered() == {"mcp_servers": ["test"]}
        record = environment.records()["test"]
        assert (record["state"], record["name"], record["types"]) == ("ready", "test", ["mcp"])
        assert (record["distribution"], record["version"]) == ("pynchy-plugin-test", "0.1.0")
        assert record["origin"].startswith(f"editable {directory}" if way == "editable" else str(tmp_path))
    finally:
        environment.uninstall("pynchy-plugin-test")
    assert environment.discovered() == {}
    assert environment.records() == {}


_APPLE = """
from pynchy.plugin import OciRuntime, RuntimePlugin

class AppleRuntime(OciRuntime):
    name = "apple"
    cli = "container"

class Plugin(RuntimePlugin):
    name = "apple-container"
    priority = 20
    def create_runtime(self):
        return AppleRuntime()
"""


def test_an_installed_runtime_is_chosen_and_docker_again_without_it(environment: Environment, tmp_path: Path) -> None:
    assert environment.runtime() == "docker"
    environment.install("-e", str(project(tmp_path / "apple", "apple", "Plugin", _APPLE)))
    try:
        assert environment.runtime() == "apple"
        assert environment.runtime(CONTAINER_RUNTIME="docker") == "docker"
        assert environment.runtime(CONTAINER_RUNTIME="apple") == "apple"
        assert environment.runtime(CONTAINER_RUNTIME="apple-container") == "apple"
    finally:
        environment.uninstall("pynchy-plugin-apple")
    assert environment.runtime() == "docker"


def test_an_installed_plugin_that_cannot_be_imported_is_listed_and_holds_up_nobody(
    environment: Environment, tmp_path: Path
) -> None:
    environment.install("-e", str(project(tmp_path / "a", "broken", "Plugin", "import not_there_at_all")))
    environment.install("-e", str(project(tmp_path / "b", "test", "Plugin", _NO_OP)))
    try:
        assert environment.discovered() == {"mcp_servers": ["test"]}
        record = environment.records()["broken"]
        assert (record["state"], record["phase"]) == ("failed", "load")
        assert record["reason"] == "importing it raised ModuleNotFoundError: No module named 'not_there_at_all'"
        assert record["remedy"] == "install what is missing, or reinstall pynchy-plugin-broken"
    finally:
        environment.uninstall("pynchy-plugin-broken")
        environment.uninstall("pynchy-plugin-test")


def test_our_own_plugins_are_discovered_from_their_wheels(environment: Environment, tmp_path: Path) -> None:
    for directory in PLUGINS:
        environment.install(str(build(directory, "wheel", tmp_path)))
    try:
        assert {name: record["state"] for name, record in environment.records().items()} == {
            "apple-container": "ready",
            "bubblewrap": "ready",
            "hello": "ready",
            "podman": "ready",
        }
        code = (
            "import sys; from pathlib import Path; from pynchy.agent_plugins import plugin_parts; "
            "from pynchy.plugin import discover_plugins; from pynchy.types import Group; "
            "parts = plugin_parts(discover_plugins(), Path(sys.argv[1]), Group('x', 'x', 'x'), None); "
            "print(*[one.host_path for one in parts.mounts if one.container_path.startswith('/workspace/plugins')])"
        )
        source = environment.run("-c", code, str(tmp_path / "home")).strip()
        assert source == str(environment.site_packages / "pynchy_plugin_hello")
    finally:
        for directory in PLUGINS:
            environment.uninstall(directory.name)


# --- what the distributions carry -------------------------------------------------------------------------------------


def test_the_wheel_carries_the_agents_side_and_its_types(wheel: Path) -> None:
    carried = set(zipfile.ZipFile(wheel).namelist())
    for path in (*(REPOSITORY / "container").rglob("*"), REPOSITORY / "src/pynchy/py.typed"):
        if path.is_file() and "__pycache__" not in path.parts:
            inside = path.relative_to(REPOSITORY).as_posix().removeprefix("src/pynchy/")
            assert f"pynchy/{inside}" in carried
    assert not [name for name in carried if name.endswith(".pyc") or name.startswith(("tests/", "plugins/"))]


def test_the_wheel_of_the_sdist_is_the_wheel_of_the_checkout(wheel: Path, tmp_path: Path) -> None:
    sdist = build(REPOSITORY, "sdist", tmp_path)
    subprocess.run(["tar", "-xf", str(sdist)], cwd=tmp_path, check=True)
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    again = zipfile.ZipFile(build(unpacked, "wheel", tmp_path))
    assert sorted(again.namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_an_installed_pynchy_finds_the_agents_side_inside_itself(environment: Environment) -> None:
    code = "from pynchy.home import container_dir; print(container_dir())"
    inside = Path(environment.run("-c", code).strip())
    assert inside == environment.site_packages / "pynchy/container"
    assert "agent-lock" in (inside / "Dockerfile").read_text()
    subprocess.run(["bash", "-n", str(inside / "build.sh")], check=True)


def test_an_installed_pynchy_stages_the_same_runner_as_the_checkout(environment: Environment, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from pynchy.workspace import stage_runner; "
    code += "print(stage_runner(Path(sys.argv[1])).name)"
    from pynchy.workspace import stage_runner

    # It is named after its content.
    assert environment.run("-c", code, str(tmp_path / "a")).strip() == stage_runner(tmp_path / "b").name


def test_an_installed_pynchy_has_its_command(environment: Environment) -> None:
    command = environment.python.with_name("pynchy")
    done = subprocess.run([str(command), "--help"], capture_output=True, text=True, timeout=60, cwd=environment.path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ +doctor  ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("directory", [REPOSITORY, *PLUGINS], ids=lambda path: path.name)
def test_a_wheel_describes_itself_and_names_no_path_of_where_it_was_built(directory: Path, tmp_path: Path) -> None:
    wheel = zipfile.ZipFile(build(directory, "wheel", tmp_path))
    (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    text = wheel.read(metadata).decode()
    assert "Requires-Python: >=3.11" in text
    assert str(REPOSITORY) not in text
    assert "Description-Content-Type: text/markdown" in text
