"""Whatever a plugin answers, it leaves one record, and what is accepted is safe to use."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from plugin_modules import contents, discovery, package_in

from pynchy.plugin import (
    HOOK_EVENTS,
    AgentHook,
    HostTool,
    McpServerSpec,
    PluginRecord,
    State,
    ToolCall,
    discover_plugins,
)
from pynchy.plugin._validation import compile_schema
from pynchy.types import ContainerInput, tool_prefix, valid_folder
from pynchy.wire import json_frame

_ODD = """
class Odd(McpPlugin, SkillPlugin, HookPlugin, ToolPlugin):
    name = "odd"
    spec, paths, hooks, host_tools = spec("server"), [], {}, []
    def mcp_server_spec(self): return self.spec
    def skill_paths(self): return self.paths
    def agent_hooks(self): return self.hooks
    def tools(self): return self.host_tools
"""


class Odd:
    """A plugin that answers what it is told to."""

    def __init__(self, package: Path) -> None:
        self.package = package
        self.type: Any = sys.modules[f"{package.name}.module_0"].__dict__["Odd"]

    def discover(self, **answers: Any) -> PluginRecord:
        """The record it leaves when it answers so."""
        plain = {name: getattr(self.type, name) for name in answers}
        for name, answer in answers.items():
            setattr(self.type, name, answer)
        try:
            registry = discover_plugins()
        finally:
            for name, answer in plain.items():
                setattr(self.type, name, answer)
        (record,) = registry.records
        assert len(contents(registry)) == (4 if record.state is State.READY else 0)
        assert json.loads(json.dumps(record.to_dict()))["state"] == record.state
        for sentence in (record.reason, record.remedy, record.note):
            assert sentence.splitlines() == ([sentence] if sentence else [])
            assert len(sentence.encode()) < 1000  # it can be printed, and read
        assert bool(record.reason) == bool(record.remedy) == (record.state is not State.READY)
        return record


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Odd]:
    """The only plugin there is."""
    directory = tmp_path_factory.mktemp("odd")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PYNCHY_HOME", str(directory / "home"))
        registry = discovery(directory, monkeypatch)(_ODD, odd="Odd")
        assert registry.records[0].state is State.READY
        yield Odd(package_in(directory))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_NO_TEXT = st.none() | st.integers() | st.floats() | st.binary() | st.lists(st.text(max_size=3), max_size=2)
_TEXT = st.text(max_size=80)
_SURROGATES = st.text(st.characters(categories=["Cs", "Ll", "Zs", "Cc"]), max_size=8)
_NAMES = st.one_of(
    _TEXT,
    _SURROGATES,
    st.from_regex(r"[a-z0-9][a-z0-9_-]{0,70}", fullmatch=True),
    st.sampled_from([".", "..", "a/b", "a\0b", "pynchy", "docker", "con", "a" * 64, "a" * 65, "a" * 1500]),
)


def safe_segment(name: Any) -> bool:
    """Whether it names one thing in a folder, on any file system."""
    return isinstance(name, str) and "\0" not in name and Path("/x", name).resolve().parent == Path("/x")


@given(name=_NAMES | _NO_TEXT)
def test_a_name_that_is_accepted_is_a_folders_name(odd: Odd, name: Any) -> None:
    record = odd.discover(name=name)
    if record.state is State.READY:
        assert record.name == name
        assert valid_folder(record.name)
        assert safe_segment(record.name)
        assert not tool_prefix(record.name).startswith(tool_prefix("pynchy"))
    else:
        assert (record.state, record.phase, record.name) == (State.INVALID, "collect", "")


def paths(package: Path) -> st.SearchStrategy[Any]:
    """Paths in and outside a package, and what is no path."""
    inside = st.sampled_from([package, package / "some_package", package / "some_package/..", package / "gone"])
    outside = st.sampled_from([Path("/"), Path(), Path.home(), package.parent, package / "../..", Path("a\0b")])
    return inside | outside | (_TEXT | _SURROGATES).map(Path) | _TEXT | _NO_TEXT


@given(data=st.data())
def test_a_spec_that_is_accepted_can_be_used(odd: Odd, data: st.DataObject) -> None:
    valid = McpServerSpec("server", "python", ["-m", "x"], {"LEVEL": "3"}, odd.package)
    fields: dict[str, st.SearchStrategy[Any]] = {
        "name": _NAMES | _NO_TEXT,
        "command": _TEXT | _NO_TEXT,
        "args": st.lists(_TEXT, max_size=3) | st.lists(_NO_TEXT, max_size=2) | _TEXT | _NO_TEXT,
        "env": st.dictionaries(_TEXT, _TEXT, max_size=2) | st.dictionaries(_TEXT, _NO_TEXT, max_size=2) | _NO_TEXT,
        "host_source": paths(odd.package),
    }
    wrong = data.draw(st.sets(st.sampled_from(sorted(fields)), min_size=1))
    answers: dict[str, Any] = {name: getattr(valid, name) for name in fields}
    spec: Any = McpServerSpec(**{**answers, **{name: data.draw(fields[name], label=name) for name in sorted(wrong)}})
    record = odd.discover(spec=spec)
    if record.state is State.READY:
        assert record.offers["mcp"] == (spec.name,)
        assert safe_segment(spec.name)
        assert not tool_prefix(spec.name).startswith(tool_prefix("pynchy"))
        assert spec.command
        assert json.loads(json.dumps([spec.command, spec.args, spec.env])) == [spec.command, spec.args, spec.env]
        source = spec.host_source.resolve()
        assert source.is_dir()
        assert source == odd.package or odd.package in source.parents


@given(answer=JSON | st.lists(st.binary(), max_size=2) | st.sets(st.integers(), max_size=2))
def test_no_answer_of_another_kind_is_accepted(odd: Odd, answer: Any) -> None:
    assert odd.discover(spec=answer).state is State.INVALID
    for name, nothing in (("paths", []), ("hooks", {}), ("host_tools", [])):
        expected = State.READY if answer == nothing else State.INVALID
        assert odd.discover(**{name: answer}).state is expected


@given(
    event=st.sampled_from(sorted(HOOK_EVENTS)) | _TEXT,
    function=_TEXT | st.sampled_from(["module_0:a_hook", "some_package:x", "gone:x"]).map("{}".format) | _NO_TEXT,
    matcher=st.none() | _TEXT | _NO_TEXT,
    timeout=st.floats() | st.integers() | _NO_TEXT,
    own=st.booleans(),
)
def test_a_hook_that_is_accepted_can_be_sent_to_the_agent(
    odd: Odd, event: str, function: Any, matcher: Any, timeout: Any, own: bool
) -> None:
    target: Any = f"{odd.package.name}.{function}" if own else function
    record = odd.discover(hooks={event: [AgentHook(target, matcher, timeout)]})
    if record.state is State.READY:
        assert event in HOOK_EVENTS
        assert isinstance(target, str)
        assert target.startswith(f"{odd.package.name}.")
        assert isinstance(matcher, str | None)
        assert 0 < timeout <= 50


_KEYWORDS = st.sampled_from(
    """type properties required items enum const anyOf allOf not pattern format minimum multipleOf maxLength minLength
    uniqueItems additionalProperties patternProperties dependencies if then definitions $ref $id $schema
    default""".split()  # noqa: SIM905 - a list of so many strings is harder to read
)
_VALUES = st.sampled_from(["object", "string", "integer", "#", "#/definitions/x", "date", "^x$", "(", 0, 1, True])
_SCHEMAS = st.recursive(
    _VALUES | st.none() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYWORDS | st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)
_OBJECTS = st.dictionaries(_KEYWORDS | st.text(max_size=4), _SCHEMAS, max_size=5).map(
    lambda schema: {**schema, "type": "object"}
)


@example(schema={"type": "object", "$ref": "#"}, arguments={})
@given(schema=_SCHEMAS | _OBJECTS, arguments=st.dictionaries(_KEYWORDS | st.text(max_size=4), JSON, max_size=3))
def test_a_schema_that_is_accepted_judges_any_arguments(odd: Odd, schema: Any, arguments: dict[str, Any]) -> None:
    async def handler(arguments: dict[str, Any], call: ToolCall) -> str:
        raise AssertionError("not called")

    record = odd.discover(host_tools=[HostTool("look", "Looks.", schema, handler)])
    if record.state is State.READY:
        assert schema["type"] == "object"
        before = json.dumps(arguments)
        with suppress(ValueError):
            assert compile_schema(schema)(arguments) == arguments
        assert json.dumps(arguments) == before


_SERVERS = st.dictionaries(_TEXT, st.dictionaries(st.text(max_size=8), JSON, max_size=3), max_size=2)
_ENTRIES = st.dictionaries(
    _TEXT, st.lists(st.dictionaries(st.text(max_size=8), JSON, max_size=3), max_size=2), max_size=2
)


@given(
    st.builds(
        ContainerInput,
        prompt=_TEXT | _SURROGATES,
        group_folder=_TEXT,
        chat_jid=_TEXT,
        is_main=st.booleans(),
        session_id=st.none() | _TEXT,
        is_scheduled_task=st.booleans(),
        plugin_mcp_servers=st.none() | _SERVERS,
        plugin_hooks=st.none() | _ENTRIES,
        plugin_tools=st.none() | _ENTRIES,
        plugin_skills=st.none() | st.lists(_TEXT, max_size=3),
        assistant_name=_TEXT,
        model=st.none() | _TEXT,
    )
)
def test_an_agents_input_crosses_the_wall_unchanged(given_input: ContainerInput) -> None:
    sent = json_frame("input", given_input.to_dict())
    assert ContainerInput.from_dict(sent.json_body()) == given_input


@given(st.dictionaries(_TEXT, JSON, min_size=1, max_size=3))
def test_an_input_with_unknown_fields_is_an_error_that_names_them(more: dict[str, Any]) -> None:
    known = ContainerInput("hi", "main", "terminal:main").to_dict()
    unknown = sorted(set(more) - set(known))
    if unknown:
        with pytest.raises(ValueError, match="unknown ContainerInput fields: ") as error:
            ContainerInput.from_dict({**known, **more})
        assert str(error.value).endswith(", ".join(unknown))
