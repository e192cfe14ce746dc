"""Fifty broken plugins, really installed: each has its record, and beside them the good one works."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from broken_plugins import FAULTS, GOOD, KILLERS, ODD, Fault
from environments import Environment, build, distribution
from support import REPOSITORY, bubblewrap_runtime, docker_runtime

from pynchy.plugin import State

pytestmark = pytest.mark.timeout(400)

_BROKEN = {**FAULTS, **{name: fault for name, (fault, _) in KILLERS.items()}}
_ALL = {"good": GOOD, **_BROKEN, **ODD}


class Start:
    """An environment with all of them, and what became of the starts until one came through."""

    def __init__(self, environment: Environment, directory: Path) -> None:
        self.environment = environment
        self.home = str(directory / "home")
        projects = [fault.write(directory / name, name) for name, fault in _ALL.items()]
        environment.install(*(word for path in projects for word in ("-e", str(path))))
        list_them = ("-m", "pynchy", "plugins", "list", "--json")
        self.deaths = [environment.start(*list_them, PYNCHY_HOME=self.home) for _ in KILLERS]
        self.records = environment.records(PYNCHY_HOME=self.home)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Made once: it takes half a minute."""
    environment = Environment(tmp_path_factory.mktemp("environment") / "venv")
    environment.install(str(build(REPOSITORY, "wheel", tmp_path_factory.mktemp("wheel"))))
    return Start(environment, tmp_path_factory.mktemp("broken"))


def test_every_plugin_has_exactly_one_record(start: Start) -> None:
    assert start.records.keys() == _ALL.keys()
    assert len(_BROKEN) >= 32


@pytest.mark.parametrize(("name", "fault"), _BROKEN.items(), ids=_BROKEN)
def test_a_broken_plugin_is_told_what_is_wrong_and_what_to_do(name: str, fault: Fault, start: Start) -> None:
    record = start.records[name]
    assert (record["state"], record["phase"]) == (fault.state, fault.phase)
    assert fault.reason in record["reason"]
    assert fault.remedy in record["remedy"]
    for sentence in (record["reason"], record["remedy"]):
        assert sentence.splitlines() == [sentence]
        assert not sentence.endswith(".")
    assert (record["distribution"], record["version"]) == (distribution(name), "0.1.0")
    assert record["origin"].startswith("editable ")


@pytest.mark.parametrize("name", ["good", *ODD])
def test_what_works_is_ready_beside_them(name: str, start: Start) -> None:
    record = start.records[name]
    assert (record["state"], record["name"], record["reason"], record["remedy"]) == ("ready", name, "", "")
    assert record["offers"] == {"mcp": [name]}


def test_nothing_of_a_broken_plugin_is_registered(start: Start) -> None:
    assert start.environment.run("-c", _REGISTERED, PYNCHY_HOME=start.home).split() == ["good", *sorted(ODD)]


_REGISTERED = """
from pynchy.plugin import discover_plugins
r = discover_plugins()
every = r.runtimes + r.unmatched_runtimes + r.channels + r.mcp_servers + r.skills + r.hooks + r.tools
print(*(r.name_of(plugin) for plugin in every))
"""


def test_a_plugin_that_kills_a_start_costs_that_one_start(start: Start) -> None:
    assert [(done.returncode, done.stdout) for done in start.deaths] == [(code, "") for _, code in KILLERS.values()]


def test_the_list_for_people_has_a_line_and_a_reason_for_each(start: Start) -> None:
    done = start.environment.start("-m", "pynchy", "plugins", "list", PYNCHY_HOME=start.home)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    for record in start.records.values():
        (line,) = (number for number, one in enumerate(lines) if one.endswith(record["origin"]))
        assert record["state"] in lines[line]
        if record["reason"]:
            assert lines[line + 1] == f"    {record['reason']}; {record['remedy']}"


def test_a_mended_plugin_that_is_installed_again_works(start: Start, tmp_path: Path) -> None:
    for name in (*KILLERS, "raises"):
        start.environment.install("-e", str(GOOD.write(tmp_path / name, name)))
    records = start.environment.records(PYNCHY_HOME=start.home)
    assert {records[name]["state"] for name in (*KILLERS, "raises")} == {"ready"}
    assert {name: one["state"] for name, one in records.items() if name in FAULTS and name != "raises"} == {
        name: fault.state for name, fault in FAULTS.items() if name != "raises"
    }


_NOISY: Mapping[str, str] = {
    "prints": "print('[' * 100_000)",
    "closes": "sys.stdout.close()",
    "redirects": "sys.stdout = sys.stderr = None",
}


@pytest.mark.parametrize("code", _NOISY.values(), ids=_NOISY)
def test_a_plugin_that_uses_stdout_while_it_loads_does_not_spoil_the_list(
    code: str, start: Start, tmp_path: Path
) -> None:
    noisy = Fault(State.READY, "register", "", "", f"{code}\nPlugin = Good")
    start.environment.install("-e", str(noisy.write(tmp_path / "noisy", "noisy")))
    try:
        records: dict[str, dict[str, Any]] = start.environment.records(PYNCHY_HOME=start.home)
    finally:
        start.environment.uninstall("pynchy-plugin-noisy")
    assert records["noisy"]["state"] == "ready"
    assert records["good"]["state"] == "ready"


@pytest.mark.bubblewrap
def test_the_host_answers_beside_them(start: Start, tmp_path: Path) -> None:
    bubblewrap_runtime()  # or a skip
    start.environment.install(str(build(REPOSITORY / "plugins/pynchy-plugin-bubblewrap", "wheel", tmp_path)))
    ask = ("-m", "pynchy", "ask", "--demo", "--timeout", "200")
    env = {"PYNCHY_HOME": start.home, "CONTAINER_RUNTIME": "bubblewrap"}
    done = start.environment.start(*ask, '/tool mcp__good__greet {"name": "Ada"}', **env)
    assert done.stdout == "Hello, Ada! The plugin good is well.\n", done.stderr
    assert done.returncode == 0


_RUNTIME = """
class Runtime(OciRuntime):
    name = cli = NAME
    def ensure_running(self): raise SystemExit("never")
class Plugin(RuntimePlugin):
    name = NAME
    priority = 99
    def create_runtime(self): {body}
"""


@pytest.mark.docker
def test_docker_by_name_works_beside_them_and_beside_runtimes_that_are_broken(start: Start, tmp_path: Path) -> None:
    docker_runtime()  # or a skip
    bodies = {
        "raising": "raise MemoryError",
        "useless": "return 3",
        "exiting": "raise SystemExit",
        "sick": "return Runtime()",
    }
    for name, body in bodies.items():
        fault = Fault(State.READY, "register", "", "", _RUNTIME.format(body=body))
        start.environment.install("-e", str(fault.write(tmp_path / name, name)))
    try:
        ask = ("-m", "pynchy", "ask", "--demo", "--timeout", "200", "hello")
        env = {"PYNCHY_HOME": start.home, "CONTAINER_RUNTIME": "docker"}
        done = start.environment.start(*ask, **env)
        assert (done.returncode, done.stdout) == (0, "You said: hello\n"), done.stderr
    finally:
        for name in bodies:
            start.environment.uninstall(f"pynchy-plugin-{name}")
