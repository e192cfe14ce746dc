"""Install = active, uninstall = gone: real distributions, built and installed into an environment of their own."""

from __future__ import annotations

import json
import os
import re
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import uv
from support import REPOSITORY

PLUGINS = [REPOSITORY / "plugins/pynchy-plugin-bubblewrap", REPOSITORY / "examples/pynchy-plugin-hello"]


class Environment:
    """A virtual environment with the real wheel of pynchy; what pynchy depends on is borrowed from ours."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.python = path / "bin" / "python"
        self._uv("venv", "--quiet", "--python", sys.executable, str(path))
        borrowed = path / "borrowed"
        borrowed.mkdir()
        for entry in Path(site.getsitepackages()[0]).iterdir():
            if "pynchy" not in entry.name:
                (borrowed / entry.name).symlink_to(entry)
        self.site_packages = Path(self.run("-c", "import site; print(site.getsitepackages()[0])").strip())
        (self.site_packages / "borrowed.pth").write_text(f"{borrowed}\n")

    def _uv(self, *args: str) -> None:
        command = [uv.find_uv_bin(), *args, "--no-config", "--offline"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr

    def install(self, *what: str) -> None:
        """`uv pip install`, with nothing from anywhere else."""
        options = ("--no-deps", "--no-build-isolation", "--no-index", "--python", str(self.python))
        self._uv("pip", "install", "--quiet", *options, *what)

    def uninstall(self, name: str) -> None:
        """`uv pip uninstall`."""
        self._uv("pip", "uninstall", "--quiet", "--python", str(self.python), name)

    def run(self, *args: str, **env: str) -> str:
        """The output of this environment's Python, away from the checkout."""
        done = subprocess.run(
            [str(self.python), *args],
            capture_output=True,
            text=True,
            timeout=100,
            cwd=self.path,
            env={**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, **env},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def discovered(self) -> dict[str, list[str]]:
        """The names of the plugins in each list of the registry."""
        code = (
            "import json; from pynchy.plugin import discover_plugins; r = discover_plugins(); "
            "print(json.dumps({k: [p.name for p in v] for k, v in vars(r).items() if k != 'records' and v}))"
        )
        return json.loads(self.run("-c", code))

    def runtime(self, **env: str) -> str:
        """The name of the runtime that is chosen."""
        return self.run("-c", "from pynchy.runtime import get_runtime; print(get_runtime().name)", **env).strip()

    def records(self) -> dict[str, dict[str, str]]:
        """What `pynchy plugins list --json` says, by entry point."""
        return {one["entry_point"]: one for one in json.loads(self.run("-m", "pynchy", "plugins", "list", "--json"))}


def build(project: Path, kind: str, directory: Path) -> Path:
    """Build a project's wheel or sdist with its own build backend."""
    target = directory / f"{kind}-of-{project.name}"
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(target)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = target.iterdir()
    return built


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


def project(directory: Path, name: str, target: str, code: str) -> Path:
    """A plugin's repository as the plan lays it out."""
    package = f"pynchy_plugin_{name}"
    (directory / "src" / package).mkdir(parents=True)
    (directory / "pyproject.toml").write_text(
        f"""\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "pynchy-plugin-{name}"
version = "0.1.0"
dependencies = ["pynchy"]

[project.entry-points."pynchy.plugins"]
{name} = "{package}:{target}"

[tool.hatch.build.targets.wheel]
packages = ["src/{package}"]
"""
    )
    (directory / "src" / package / "__init__.py").write_text(code)
    return directory


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
            "bubblewrap": "ready",
            "hello": "ready",
        }
        code = (
            "from pynchy.plugin import discover_plugins; from pynchy.workspace import plugin_parts; "
            "print(plugin_parts(discover_plugins()).mounts[0].host_path)"
        )
        assert environment.run("-c", code).strip() == str(environment.site_packages / "pynchy_plugin_hello")
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
    assert re.search(r"^  doctor  ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("directory", [REPOSITORY, *PLUGINS], ids=lambda path: path.name)
def test_a_wheel_describes_itself_and_names_no_path_of_where_it_was_built(directory: Path, tmp_path: Path) -> None:
    wheel = zipfile.ZipFile(build(directory, "wheel", tmp_path))
    (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    text = wheel.read(metadata).decode()
    assert "Requires-Python: >=3.11" in text
    assert str(REPOSITORY) not in text
    assert "Description-Content-Type: text/markdown" in text
