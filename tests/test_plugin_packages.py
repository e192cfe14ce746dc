"""What plugins need in the container: asked for in their metadata, locked beside the agent's own, built in."""

from __future__ import annotations

import json
import re
import subprocess
import uuid
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path
from typing import ClassVar

import pytest
from environments import Environment, build, project
from support import REPOSITORY, RUNTIMES, docker_runtime, image_options

from pynchy.cli.image import build_for
from pynchy.plugin import PluginRecord, PluginRegistry, RuntimeUnavailable, State
from pynchy.plugin_packages import from_text, lacking, lock, to_text, unmet, wanted
from pynchy.runtime import DockerRuntime
from pynchy.testing import ProcessRuntime

AGENT_LOCK = REPOSITORY / "container/requirements/agent.lock"

_PLUGIN = """
from pathlib import Path
from pynchy.plugin import McpPlugin, McpServerSpec

class Plugin(McpPlugin):
    name = "{name}"
    def mcp_server_spec(self):
        module = "pynchy_plugin_{name}.server"
        return McpServerSpec("{name}", "python", ["-m", module], {{}}, Path(__file__).parent)
"""

_SERVER = """
import six
from mcp.server import MCPServer

server = MCPServer("voice")

@server.tool(structured_output=False)
def speak() -> str:
    return "six is " + ("there" if six.PY3 else "odd")

server.run()
"""

_EXTRAS = """
[project.optional-dependencies]
container = [
    "six>=1.16",
    "toml==0.10.2; python_version < '4'",
    "humanize; sys_platform == 'darwin' or python_version < '3'",
]
other = ["not-for-the-container"]
"""

#: Without the plugins whose servers do not exist.
_SOUND = {"PYNCHY_PLUGINS_DISABLED": "needy,broken"}


def plugin(directory: Path, name: str, dependencies: str = '"pynchy"', extras: str = "") -> Path:
    """An MCP plugin's repository whose metadata has these dependencies and extras."""
    made = project(directory / name, name, "Plugin", _PLUGIN.format(name=name))
    text = (made / "pyproject.toml").read_text()
    text = text.replace('dependencies = ["pynchy"]\n', f"dependencies = [{dependencies}]\n{extras}")
    (made / "pyproject.toml").write_text(text)
    return made


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Pynchy with bubblewrap, and plugins that want, lack or hide something."""
    directory = tmp_path_factory.mktemp("plugins")
    environment = Environment(directory / "venv")
    voice = plugin(directory, "voice", extras=_EXTRAS)
    (voice / "src/pynchy_plugin_voice/server.py").write_text(_SERVER)
    needy = plugin(
        directory,
        "needy",
        """'pynchy', 'packaging<1', "not-there-at-all[extra]>=2; os_name != ''", "typing; python_version < '3'\"""",
    )
    broken = plugin(directory, "broken", extras=_EXTRAS)
    wheel = build(REPOSITORY, "wheel", directory)
    ours = [REPOSITORY / "plugins/pynchy-plugin-bubblewrap", REPOSITORY / "examples/pynchy-plugin-hello"]
    editable = [option for one in (voice, needy, broken, *ours) for option in ("-e", str(one))]
    environment.install(str(wheel), *editable)
    (metadata,) = environment.site_packages.glob("pynchy_plugin_broken-*.dist-info/METADATA")
    metadata.write_bytes(b"\xff\xfe\x00")
    return environment


def test_what_plugins_want_is_read_from_the_metadata_of_those_that_can_be_used(environment: Environment) -> None:
    code = "import json; from pynchy.plugin import discover_plugins; from pynchy.plugin_packages import wanted; "
    code += "print(json.dumps(wanted(discover_plugins())))"
    assert json.loads(environment.run("-c", code)) == {
        "voice": [
            'humanize; sys_platform == "darwin" or python_version < "3"',
            "six>=1.16",
            'toml==0.10.2; python_version < "4"',
        ]
    }
    assert json.loads(environment.run("-c", code, PYNCHY_PLUGINS_DISABLED="voice")) == {}


def registry_of(directory: Path, *requirements: str) -> PluginRegistry:
    """A registry with the record of one plugin, whose distribution has these requirements."""
    lines = ["Metadata-Version: 2.1", "Name: sample", "Version: 1", *(f"Requires-Dist: {one}" for one in requirements)]
    info = directory / "sample-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("\n".join(lines))
    return PluginRegistry(
        records=[PluginRecord("sample", "sample:Plugin", State.READY, "sample", dist=Distribution.at(info))]
    )


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("av>=17; extra == 'container'", "av>=17"),
        ("av[fast]>=17 ; 'Container' == extra", "av[fast]>=17"),
        ("av; (python_version < '3.13') and extra == 'container'", 'av; python_version < "3.13"'),
        ("av; extra == 'container' and sys_platform == 'linux'", 'av; sys_platform == "linux"'),
        ("av; extra == 'all' or extra == 'container'", "av"),
        ("av; os_name == 'nt' and (extra == 'all' or extra == 'container')", 'av; os_name == "nt"'),
        ("av @ https://example.org/av.whl ; extra == 'container'", "av @ https://example.org/av.whl"),
        ("av; extra == 'containers'", None),
        ("av; python_version > '3'", None),
        ("av", None),
        ("not a requirement; extra == 'container'", None),
    ],
)
def test_the_extra_is_found_in_every_way_that_build_backends_write_it(
    written: str, read: str | None, tmp_path: Path
) -> None:
    assert wanted(registry_of(tmp_path, "pynchy", written)) == ({"sample": (read,)} if read else {})


@pytest.mark.parametrize(("image", "built"), [("", ["pynchy-agent:latest"]), ("my-own:1", [])])
def test_an_image_of_the_users_own_is_not_replaced_for_want_of_a_plugins_packages(
    image: str, built: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Runtime(DockerRuntime):
        made: ClassVar[list[str]] = []

        def check_image(self, image: str) -> None:
            """It is there."""

        def image_packages(self, image: str) -> frozenset[str] | None:
            return frozenset()

        def build_image(self, image: str, lock: Path, packages: frozenset[str]) -> None:
            self.made.append(image)
            assert packages == {"six"}
            assert "six==" in lock.read_text()

    monkeypatch.setenv("CONTAINER_IMAGE", image)
    build_for(Runtime(), registry_of(tmp_path, "six; extra == 'container'"), if_missing=True)
    assert Runtime.made == built


def test_without_plugins_nothing_is_wanted_and_the_agents_lock_is_the_lock(tmp_path: Path) -> None:
    assert wanted(PluginRegistry()) == {}
    assert unmet(PluginRegistry()) == []
    assert lock({}, tmp_path) == AGENT_LOCK


@pytest.mark.parametrize("packages", [frozenset[str](), frozenset({'a"b>=1; python_version < "3"', "c"})])
def test_what_was_built_in_can_be_written_down_and_read(packages: frozenset[str]) -> None:
    assert from_text(to_text(packages)) == packages


@pytest.mark.parametrize("text", ["", "\n", "<no value>", "{}", "nonsense"])
def test_what_was_not_written_down_is_not_known(text: str) -> None:
    assert from_text(text) is None


def test_a_runtime_that_cannot_know_lacks_nothing_and_another_what_it_was_built_without() -> None:
    class Runtime(DockerRuntime):
        present: frozenset[str] | None = None

        def image_packages(self, image: str) -> frozenset[str] | None:
            return self.present

    runtime = Runtime()
    asked = {"a": ("six", "toml"), "b": ("six",)}
    assert lacking(asked, runtime, "image") == {}
    runtime.present = frozenset({"six", "gone"})
    assert lacking(asked, runtime, "image") == {"a": ("toml",)}


# --- the lock -------------------------------------------------------------------------------------------------


def pins(path: Path) -> dict[str, str]:
    """Each pinned package of a lock with everything that is said about it, comments aside."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    blocks = re.split(r"^(?=\S)", "\n".join(lines), flags=re.MULTILINE)
    return {block.split()[0]: " ".join(block.split()) for block in blocks if block.strip()}


def test_a_lock_has_the_agents_own_as_they_are_and_the_wanted_ones_with_hashes(tmp_path: Path) -> None:
    own, made = pins(AGENT_LOCK), pins(lock({"a": ("six==1.16.0",), "b": ("Toml; python_version < '4'",)}, tmp_path))
    assert {name: made.get(name) for name in own} == own
    new = sorted(set(made) - set(own))
    assert [name.split("==")[0] for name in new] == ["six", "toml"]
    assert new[0] == "six==1.16.0"
    assert all("--hash=sha256:" in text for text in made.values())


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"a": ("toml<0.10.2",), "b": ("six", "toml>=0.10.2")},
            "the plugins a and b cannot be used together: in the container a wants toml<0.10.2, and b wants "
            "toml>=0.10.2; update or uninstall one of the two",
        ),
        (
            {"a": ("six",), "old": ("mcp<2",)},
            rf"the plugin old wants mcp<2 in the container, where the agent itself has mcp {re.escape('2.')}\S+; "
            "update or uninstall old",
        ),
        (
            {"typo": ("pynchy-no-such-package",)},
            "the plugin typo wants pynchy-no-such-package in the container, which cannot be had: "
            "pynchy-no-such-package was not found .*; update or uninstall typo",
        ),
    ],
    ids=["two plugins", "a plugin and the agent", "a plugin and the index"],
)
def test_who_cannot_have_what_is_named(asked: dict[str, tuple[str, ...]], words: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable) as raised:
        lock(asked, tmp_path)
    assert re.fullmatch(words, str(raised.value))


@pytest.mark.parametrize(
    "setting",
    [
        {"UV_OFFLINE": "1"},
        {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple", "UV_HTTP_RETRIES": "0"},
        {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "UV_HTTP_RETRIES": "0"},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_an_index_that_cannot_be_reached_is_nobodys_conflict(
    setting: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"UV_CACHE_DIR": str(tmp_path / "cache"), **setting}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeUnavailable, match=r"^what plugins need in the container could not be fetched: .*; look"):
        lock({"a": ("six",)}, tmp_path)


@pytest.mark.parametrize(
    "text", ["six @ file:///tmp/six.whl", "git+ssh://host/six", "./six", "-r other.txt", "a\n-e b"]
)
def test_only_names_and_versions_may_be_wanted(text: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match=r"the plugin a wants '.*' in the container, which no index can have"):
        lock({"a": (text,)}, tmp_path)


# --- what is built, and what is said about it -----------------------------------------------------------------


def test_an_environment_from_before_plugins_could_want_anything_has_nothing_of_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYNCHY_AGENT_ENV", str(tmp_path / "agent-env"))
    assert ProcessRuntime().image_packages("") is None
    (tmp_path / "agent-env/bin").mkdir(parents=True)
    (tmp_path / "agent-env/bin/python3").touch()
    assert ProcessRuntime().image_packages("") == frozenset()


@pytest.mark.bubblewrap
def test_the_agents_environment_gets_what_a_plugin_needs_and_its_server_works(
    environment: Environment, tmp_path: Path
) -> None:
    RUNTIMES["bubblewrap"]()
    agent_env = tmp_path / "agent-env"
    setting = {"CONTAINER_RUNTIME": "bubblewrap", "PYNCHY_AGENT_ENV": str(agent_env)}
    (agent_env / "bin").mkdir(parents=True)
    (agent_env / "bin/python3").touch()  # an environment that was made before the plugin came
    first = environment.start("-m", "pynchy", "image", "build", "--if-missing", **setting)
    assert first.returncode == 0, first.stderr
    assert ', six>=1.16, toml==0.10.2; python_version < "4", for the plugin voice' in first.stderr
    assert (tmp_path / "agent-env.previous/bin/python3").stat().st_size == 0  # agents that run have it mounted

    again = environment.run("-m", "pynchy", "image", "build", "--if-missing", **setting)
    assert again == ""
    assert (tmp_path / "agent-env.previous/bin/python3").stat().st_size == 0  # nothing was built
    code = "import humanize"
    assert subprocess.run([str(agent_env / "bin/python3"), "-c", code], capture_output=True).returncode == 1
    asked = environment.run("-m", "pynchy", "ask", "--demo", "/tool mcp__voice__speak {}", **setting, **_SOUND)
    assert asked == "six is there\n"


@pytest.mark.bubblewrap
def test_doctor_names_what_is_missing_in_the_container_and_on_the_host(environment: Environment) -> None:
    RUNTIMES["bubblewrap"]()
    said = environment.start("-m", "pynchy", "doctor", CONTAINER_RUNTIME="bubblewrap").stdout
    assert "ok     image: there\n" in said
    assert (
        'WRONG  image for voice: without humanize; sys_platform == "darwin" or python_version < "3", six>=1.16, '
        'toml==0.10.2; python_version < "4"\n       -> `pynchy image build`\n'
    ) in said
    assert re.search(r"^WRONG  plugin needy: requires packaging<1, and [\d.]+ is installed$", said, re.MULTILINE)
    assert "       -> `uv pip install 'packaging<1'`\n" in said
    assert (
        "WRONG  plugin needy: requires not-there-at-all[extra]>=2, and none is installed\n"
        "       -> `uv pip install 'not-there-at-all[extra]>=2'`\n"
    ) in said
    assert said.count("requires") == 2


@pytest.mark.bubblewrap
def test_a_first_run_goes_on_without_what_cannot_be_fetched(environment: Environment, tmp_path: Path) -> None:
    RUNTIMES["bubblewrap"]()
    setting = {"CONTAINER_RUNTIME": "bubblewrap", "UV_OFFLINE": "1", "UV_CACHE_DIR": str(tmp_path / "cache")}
    done = environment.start("-m", "pynchy.cli.first_run", **setting, **_SOUND)
    assert done.returncode == 0, done.stderr
    assert "what plugins need in the container could not be fetched" in done.stderr
    assert "The agent starts without what plugins need in it" in done.stderr
    assert "pynchy: Hello, newcomer!" in done.stdout


@pytest.fixture
def tag() -> Iterator[str]:
    """The name of an image that is gone afterwards."""
    name = f"pynchy-test-packages:{uuid.uuid4().hex[:12]}"
    yield name
    subprocess.run(["docker", "image", "rm", "--force", name], capture_output=True, timeout=60)


@pytest.mark.docker
def test_dockers_image_gets_what_a_plugin_needs_and_says_so(
    tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = docker_runtime()
    monkeypatch.setenv("PYNCHY_IMAGE_OPTIONS", image_options(runtime))
    packages = frozenset({"six>=1.16", 'toml; python_version < "4"'})
    runtime.build_image(tag, lock({"voice": tuple(packages)}, tmp_path), packages)
    assert runtime.image_packages(tag) == packages
    sandbox = ["--rm", "--network", "none", "--log-driver", "none", "--entrypoint", "python3"]
    runtime.command("run", *sandbox, tag, "-c", "import six, toml, claude_agent_sdk")
    assert runtime.image_packages("pynchy-no-such-image:1") is None


@pytest.mark.docker
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--lock /no/such/lock", "the lock '/no/such/lock' does not exist."),
        ("--frobnicate", "unknown option '--frobnicate'; see build.sh --help."),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_built(
    options: str, words: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = docker_runtime()
    monkeypatch.setenv("PYNCHY_IMAGE_OPTIONS", options)
    with pytest.raises(RuntimeUnavailable, match="building the image pynchy-test-never:1 failed"):
        runtime.build_image("pynchy-test-never:1", AGENT_LOCK, frozenset())
    assert f"build.sh: {words}" in capfd.readouterr().err


@pytest.mark.docker
def test_options_with_an_open_quote_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYNCHY_IMAGE_OPTIONS", '--apt "git')
    with pytest.raises(RuntimeUnavailable, match=r"PYNCHY_IMAGE_OPTIONS=.* cannot be read: No closing quotation"):
        docker_runtime().build_image("pynchy-test-never:1", AGENT_LOCK, frozenset())
