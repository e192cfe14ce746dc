"""A server without a fault passes McpConformance, and each fault fails the very test that is about it."""

from __future__ import annotations

import importlib
import inspect
import os
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pynchy.plugin import McpPlugin, McpServerSpec
from pynchy.testing import McpConformance, _mcp_bench, mcp_conformance
from pynchy.testing._mcp_bench import ServerBench, container_python

_PLUGIN = """
from pathlib import Path
from pynchy.plugin import McpPlugin, McpServerSpec

class Plugin(McpPlugin):
    name = "raw"
    def mcp_server_spec(self):
        return self.spec(Path(__file__).parent)
"""

#: Says what it is told. By hand, for a library would keep it from most of these faults.
_SERVER = """
import json, os, socket, subprocess, sys, time

FAULT = os.environ.get("FAULT", "")
SAY = {"name": "say", "description": "Say it.", "inputSchema": {
    "type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}}
FAULTY = {
    "odd name": {"name": "say it!"}, "no description": {"description": " "}, "no object": {"inputSchema": {}},
    "no schema": {"inputSchema": {"type": "object", "properties": {"text": {"type": "strnig"}}}},
}
errors = calls = 0


def tools():
    if FAULT == "no tools" or (FAULT == "forgets its tools" and errors):
        return []
    return [{**SAY, **FAULTY.get(FAULT, {})}] * (2 if FAULT == "two of one name" else 1)


def call(name, arguments):
    global calls
    calls += 1
    text = arguments.get("text")
    if FAULT == "speaks in between":
        print("a word", flush=True)
    if FAULT == "answers one call" and calls > 1:
        return None
    if name != "say":
        return result("there is no such tool", "unknown tool")
    if not isinstance(text, str):
        return result("text is missing or no string", "wrong arguments")
    if text == "":
        words = {"speechless": "Error executing tool say", "a traceback": "Traceback (most recent call last): ..."}
        return result(words.get(FAULT, "there is nothing to say"), "bad call")
    return {"content": [{"type": "text", "text": text}]}


def result(words, why):
    global errors
    errors += 1
    if FAULT == f"dies of {why}":
        os._exit(3)
    return {"content": [{"type": "text", "text": words}], "isError": FAULT != f"takes {why}"}


def answer(message):
    method, given = message["method"], message.get("params", {})
    if method == "initialize":
        return {"protocolVersion": given["protocolVersion"], "capabilities": {"tools": {}},
                "serverInfo": {"name": "raw", "version": "1"}}
    if method == "tools/list":
        return {"tools": tools()}
    if method == "tools/call":
        return call(given["name"], given.get("arguments", {}))
    return {} if method == "ping" else None


def begin():
    if FAULT == "dies at the start":
        sys.exit("no luck")
    if FAULT == "is slow to start":
        time.sleep(60)
    if FAULT == "speaks first":
        print("ready", flush=True)
    if FAULT.startswith("imports "):
        __import__(FAULT.removeprefix("imports "))
    if FAULT == "writes into the chat's folder":
        open("state", "w").close()
    if FAULT == "writes beside its code":
        open(os.path.join(os.path.dirname(__file__), "state"), "w").close()
    if FAULT == "writes elsewhere":
        open(os.environ["ELSEWHERE"], "w").close()
    if FAULT == "needs the network":
        socket.create_connection(("127.0.0.1", int(os.environ["PORT"]))).close()
    if FAULT == "leaves a child":
        subprocess.Popen(["sleep", "60"])
    if FAULT == "leaves a child elsewhere":
        subprocess.Popen(["sleep", "60"], start_new_session=True)


begin()
for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    found = answer(message)
    if found is not None:
        said = {"result": found}
    elif message["method"] == "tools/call":
        continue
    else:
        said = {"error": {"code": -32601, "message": "no such method"}}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **said}), flush=True)
if FAULT == "outlives its stdin":
    time.sleep(60)
"""


#: Faults that show in that something does not come, and for how long it is waited for.
_IN_VAIN = {
    "is slow to start": (_mcp_bench, "STARTS_WITHIN", 5.0),
    "answers one call": (_mcp_bench, "ANSWERS_WITHIN", 5.0),
    "outlives its stdin": (mcp_conformance, "ENDS_WITHIN", 2.0),
    "leaves a child": (mcp_conformance, "ENDS_WITHIN", 5.0),
    "leaves a child elsewhere": (mcp_conformance, "ENDS_WITHIN", 5.0),
}


class Suite(McpConformance):
    """For the raw server; its tests are called one at a time."""

    bad_call: ClassVar[Any] = ("say", {"text": ""})
    good_call: ClassVar[Any] = ("say", {"text": "Hello."})


Benches = Callable[..., ServerBench]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What runs the raw server: it has the agent's packages."""
    return container_python(tmp_path_factory.mktemp("python"), Nobody())


class Nobody(McpPlugin):
    """A plugin that nobody has installed."""

    name = "nobody"

    def mcp_server_spec(self) -> McpServerSpec:
        """Never asked."""
        raise NotImplementedError


@pytest.fixture
def laid_out(tmp_path: Path, python: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Benches]:
    """Lay out the raw server with a fault; the suite's patience is short where it waits in vain."""
    package = tmp_path / "modules" / f"raw_{tmp_path.name}"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(_PLUGIN)
    (package / "server.py").write_text(_SERVER)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = importlib.import_module(package.name)
    benches: list[ServerBench] = []

    def lay_out(fault: str = "", command: str = "python", name: str = "raw", **env: str) -> ServerBench:
        def spec(source: Path) -> McpServerSpec:
            return McpServerSpec(name, command, ["-m", f"{package.name}.server"], {"FAULT": fault, **env}, source)

        if fault in _IN_VAIN:
            monkeypatch.setattr(*_IN_VAIN[fault])
        plugin = module.Plugin()
        plugin.spec = spec
        bench = ServerBench(plugin, tmp_path / f"container{len(benches)}", python)
        benches.append(bench)
        return bench

    yield lay_out
    for bench in benches:
        bench.end()


def names_of_tests() -> list[str]:
    """Their names."""
    return [name for name, _ in inspect.getmembers(McpConformance, inspect.isfunction) if name.startswith("test_")]


def run(name: str, bench: ServerBench) -> None:
    """Call one test of the suite, once for each of its parameters."""
    method = getattr(Suite(), name)
    parametrized = [mark.args for mark in getattr(method, "pytestmark", []) if mark.name == "parametrize"]
    for value in parametrized[0][1] if parametrized else [None]:
        method(bench, value) if parametrized else method(bench)


@pytest.mark.parametrize("name", names_of_tests())
def test_a_server_without_a_fault_passes(name: str, laid_out: Benches) -> None:
    run(name, laid_out())


STARTS = "test_it_starts_and_lists_its_tools"
STDOUT = "test_stdout_carries_nothing_but_the_protocol"
NAMES = "test_each_tool_has_a_name_of_its_own_that_a_model_can_call"
DESCRIBED = "test_each_tool_is_described"
SCHEMA = "test_each_tools_arguments_have_a_valid_schema"
WRONG = "test_wrong_arguments_are_refused_and_the_server_lives_on"
UNKNOWN = "test_an_unknown_tool_is_an_error_and_the_server_lives_on"
BAD = "test_a_bad_call_is_refused_in_words_and_the_server_lives_on"
AT_ONCE = "test_several_calls_at_once_are_answered"
ENDS = "test_the_end_of_its_stdin_is_its_end_and_no_process_is_left"
FILES = "test_it_changes_no_file_but_in_its_data_folder_and_its_home"
WALL = "test_it_needs_no_network_and_no_other_place_to_write"

FAULTS = {
    "dies at the start": (STARTS, "the server does not start: .*; it wrote: no luck"),
    "is slow to start": (STARTS, "did not answer within"),
    "imports pynchy.config": (STARTS, "No module named 'pynchy.config'; in the container there are .* import what"),
    "imports structlog": (STARTS, "No module named 'structlog'; in the container"),
    "no tools": (STARTS, "offers no tools"),
    "speaks first": (STDOUT, "'ready' was written to stdout"),
    "speaks in between": (STDOUT, "'a word' was written to stdout"),
    "odd name": (NAMES, "'say it!': name it with"),
    "two of one name": (NAMES, "2 tools are called 'say'"),
    "no description": (DESCRIBED, "'say' has no description"),
    "no object": (SCHEMA, "not what the protocol asks for, tools.0.inputSchema.type: Field required"),
    "no schema": (SCHEMA, "is no JSON Schema"),
    "takes wrong arguments": (WRONG, r"say\(.*\), arguments that its schema forbids, was answered as if"),
    "dies of wrong arguments": (WRONG, r"the server died of say\({}\)"),
    "forgets its tools": (WRONG, r"lists \[\]"),
    "takes unknown tool": (UNKNOWN, "a tool that does not exist, was answered as if"),
    "dies of unknown tool": (UNKNOWN, "the server died of no-such-tool"),
    "takes bad call": (BAD, "`bad_call`, was answered as if"),
    "dies of bad call": (BAD, "the server died of say"),
    "speechless": (BAD, "which says nothing: raise"),
    "a traceback": (BAD, "is a traceback"),
    "answers one call": (AT_ONCE, "was not answered"),
    "outlives its stdin": (ENDS, r"still runs 2 s after its stdin has ended \(idle\)"),
    "leaves a child": (ENDS, "has left processes .*some of its process group"),
    "leaves a child elsewhere": (ENDS, r"has left processes .*\(sleep 60\)"),
    "writes into the chat's folder": (FILES, "workspace/group/state changed"),
    "writes beside its code": (FILES, "/state changed"),
    "writes elsewhere": (WALL, "Read-only file system"),
    "needs the network": (WALL, "Connection refused"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_the_test_that_is_about_it(fault: str, laid_out: Benches) -> None:
    name, words = FAULTS[fault]
    elsewhere = f"/var/tmp/pynchy-test-{uuid.uuid4().hex}"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        bench = laid_out(fault, ELSEWHERE=elsewhere, PORT=str(listener.getsockname()[1]))
        with pytest.raises(pytest.fail.Exception, match=words):
            run(name, bench)


def test_every_test_of_the_suite_can_fail() -> None:
    assert {name for name, _ in FAULTS.values()} | {"test_the_good_call_works"} == set(names_of_tests())


def test_a_good_call_that_fails_is_told_with_its_words(laid_out: Benches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Suite, "good_call", ("say", {"text": ""}))
    for name in ("test_the_good_call_works", AT_ONCE, WALL):
        with pytest.raises(pytest.fail.Exception, match="there is nothing to say"):
            run(name, laid_out())


def test_a_spec_that_pynchy_would_not_take_and_a_missing_command_are_told(laid_out: Benches) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"mcp_server_spec\(\) of raw: .* is reserved; choose another"):
        laid_out(name="pynchy")
    with pytest.raises(pytest.fail.Exception, match="the command 'no-such-command' cannot be started"):
        run(STARTS, laid_out(command="no-such-command"))


def test_the_server_sees_nothing_of_the_hosts_environment(laid_out: Benches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "of the host")
    given = laid_out(LEVEL="3").environment()
    assert "A_SECRET" not in given
    assert given["LEVEL"] == "3"
    assert given["HOME"] != os.environ.get("HOME")
