"""The plan's verification of a runtime plugin, step by step, with the real wheel: on a Mac, and on anything else.

What is no Mac says that it is one, to the environment's Python alone; its `container` is the stand-in.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pynchy.agent_environment import AgentEnvironment
from pynchy.plugin import RuntimeUnavailable

# They build and install wheels, and come with Pynchy's own checkout.
environments = pytest.importorskip("environments")

PROJECT = Path(__file__).parents[1]
NAME = "pynchy-plugin-apple-container"
#: Read at each start of the environment's Python, as a `sitecustomize` would be.
PRETEND = "import os, sys; sys.platform = os.environ.get('PRETENDED_PLATFORM', sys.platform)\n"
SHOW = "from pynchy.plugin import discover_plugins; r = discover_plugins(); print(r.runtimes)"
RUNTIME = "from pynchy.runtime import get_runtime; print(get_runtime().name)"
MAC = {"PRETENDED_PLATFORM": "darwin"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin's real wheel."""
    return environments.build(PROJECT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An environment with the real wheel of Pynchy and no plugin."""
    directory = tmp_path_factory.mktemp("environment")
    environment = environments.Environment(directory / "venv")
    environment.install(str(environments.build(PROJECT.parents[1], "wheel", directory)))
    (environment.site_packages / "pretended.pth").write_text(PRETEND)
    return environment


@pytest.fixture
def environment(empty: Any, wheel: Path, stand_in: Any) -> Iterator[Any]:
    """The same with the plugin (step 1), which is uninstalled afterwards."""
    empty.install(str(wheel))
    yield empty
    empty.uninstall(NAME)


def test_on_a_mac_it_is_discovered_and_chosen_and_gone_once_it_is_uninstalled(
    environment: Any, wheel: Path, stand_in: Any
) -> None:
    assert "AppleContainerPlugin" in environment.run("-c", SHOW, **MAC)  # step 2
    assert environment.run("-c", RUNTIME, **MAC) == "apple\n"  # step 3
    assert environment.run("-c", RUNTIME, CONTAINER_RUNTIME="docker", **MAC) == "docker\n"  # step 4
    environment.uninstall(NAME)  # step 5
    assert environment.run("-c", SHOW, **MAC) == "[]\n"
    assert environment.run("-c", RUNTIME, **MAC) == "docker\n"
    environment.install(str(wheel))
    assert environment.run("-c", RUNTIME, **MAC) == "apple\n"
    assert stand_in.calls() == [], "a choice that starts something"


@pytest.mark.parametrize("value", ["apple", "apple-container", "Apple"])
@pytest.mark.parametrize("platform", ["darwin", "linux"])
def test_by_name_it_is_chosen_wherever_that_is_asked_for(platform: str, value: str, environment: Any) -> None:
    chosen = environment.run("-c", RUNTIME, CONTAINER_RUNTIME=value, PRETENDED_PLATFORM=platform)
    assert chosen == "apple\n"


def test_on_anything_else_it_is_skipped_and_says_why(environment: Any) -> None:
    assert environment.run("-c", SHOW) == "[]\n"
    assert environment.run("-c", RUNTIME) == "docker\n"
    record = environment.records()["apple-container"]
    assert (record["state"], record["types"]) == ("ready", ["runtime"])
    assert "Apple's container needs macOS" in record["note"]


def test_the_chosen_runtime_is_the_one_that_is_checked_and_starts_agents(environment: Any, stand_in: Any) -> None:
    code = (
        "from pynchy.runtime import get_runtime; r = get_runtime(); r.ensure_running(); "
        "r.check_image('pynchy-agent:latest'); print(r.build_run_args([], 'pynchy-a', 'pynchy-agent:latest')[0])"
    )
    stand_in.stop_services()
    assert environment.run("-c", code, **MAC) == "run\n"
    assert ["system", "start", "--enable-kernel-install"] in stand_in.calls()


def test_the_installed_script_builds_the_image_of_the_installed_pynchy(environment: Any, stand_in: Any) -> None:
    code = (
        "from pynchy.home import container_dir; from pynchy.runtime import get_runtime; r = get_runtime(); "
        "r.build_image('mine:1', container_dir() / 'requirements/agent.lock', frozenset()); r.check_image('mine:1')"
    )
    assert "build.sh: built mine:1." in environment.run("-c", code, **MAC)


@pytest.mark.bubblewrap
def test_an_agent_starts_answers_and_ends_and_nothing_of_it_is_left(
    environment: Any, stand_in: Any, tmp_path: Path
) -> None:
    agent = AgentEnvironment()
    try:
        agent.check()
    except RuntimeUnavailable as error:
        pytest.skip(f"the agent's packages are missing: {error}")
    stand_in.set(agent_environment=str(agent.path))
    home = {"PYNCHY_HOME": str(tmp_path / "home"), "CONTAINER_RUNTIME": "apple"}
    assert environment.run("-m", "pynchy", "ask", "--demo", "hello", **home) == "You said: hello\n"
    (started,) = [call for call in stand_in.calls() if call[0] == "run" and call != ["run", "--help"]]
    assert "--network" in started
    assert list((stand_in.directory / "containers").iterdir()) == []


def test_the_wheel_carries_the_script_and_no_tests(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    package = "pynchy_plugin_apple_container"
    assert sorted(names) == [f"{package}/{name}" for name in ("__init__.py", "build.sh", "plugin.py", "runtime.py")]
