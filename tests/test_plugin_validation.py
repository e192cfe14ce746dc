"""What a plugin may offer: anything else is refused in a sentence that its author can act on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from plugin_modules import Discover, contents, discovery, only, package_in

from pynchy.plugin import GATING_EVENTS, HOOK_EVENTS, AgentHook, State
from pynchy.plugin._validation import check_hooks, compile_schema


@pytest.fixture
def discover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Discover:
    """Discover what a text defines."""
    return discovery(tmp_path, monkeypatch)


def plugin(base: str, method: str, value: str) -> str:
    """A plugin whose method returns what it must not."""
    return f"class Broken({base}):\n    name = 'broken'\n    def {method}(self): return {value}"


def server(value: str) -> str:
    """One with this spec."""
    return plugin("Good", "mcp_server_spec", value)


def hooks(value: str) -> str:
    """One with these hooks."""
    return plugin("HookPlugin", "agent_hooks", value)


def tools(value: str) -> str:
    """One with these tools."""
    return plugin("ToolPlugin", "tools", value)


_NO_FUNCTION = "no module-level function"

_INVALID = {
    "no plugin type": ("class Broken:\n    name = 'broken'", "Broken extends no plugin type", "derive it from"),
    "a dict for a spec": (server("{}"), "mcp_server_spec() returned dict", "McpServerSpec"),
    "None for a spec": (server("None"), "mcp_server_spec() returned NoneType", "McpServerSpec"),
    "an empty command": (server("spec(command='')"), "no command", "`command`"),
    "a path for a command": (server("spec(command=SOURCE)"), "no command", "`command`"),
    "args in a tuple": (
        server("McpServerSpec('x', 'python', ('-m',), {}, SOURCE)"),
        "not a list of strings",
        "`args`",
    ),
    "a number in args": (server("spec(args=[8080])"), "not a list of strings", "`args`"),
    "a number in env": (server("spec(env={'PORT': 8080})"), "not map strings to strings", "`env`"),
    "env in pairs": (server("spec(env=[('PORT', '8080')])"), "not map strings to strings", "`env`"),
    "a string for host_source": (
        server("spec(host_source=str(SOURCE))"),
        "host_source is str",
        "Path(__file__).parent",
    ),
    "folders in a list": (server("spec(folders=[SOURCE])"), "folders of its MCP server are no mapping", "map names"),
    "a folder with a path for its name": (
        server("spec(folders={'../x': SOURCE})"),
        "a folder of its MCP server is called '../x'",
        "letters, digits",
    ),
    "a string for a folder": (server("spec(folders={'x': str(SOURCE)})"), "the folder 'x'", "absolute pathlib.Path"),
    "a relative folder": (server("spec(folders={'x': Path('x')})"), "the folder 'x'", "absolute pathlib.Path"),
    "a folder that is not there": (server("spec(folders={'x': SOURCE / 'x'})"), "is no directory", "make it, or name"),
    "a file for a folder": (server("spec(folders={'x': Path(__file__)})"), "is no directory", "make it, or name"),
    "a home for a folder": (server("spec(folders={'x': Path.home()})"), "holds a whole home", "needs alone"),
    "all there is for a folder": (server("spec(folders={'x': Path('/')})"), "holds a whole home", "needs alone"),
    "a folder that would hide the package": (
        server("spec(folders={'some_package': SOURCE})"),
        "called like its package",
        "name it otherwise",
    ),
    "a folder beside no package": (
        server("spec(host_source=SOURCE.parent / 'plain', folders={'x': SOURCE})")
        + "\n(SOURCE.parent / 'plain').mkdir(exist_ok=True)",
        "folders beside a source that is no package",
        "with __init__.py",
    ),
    "a word for a priority": (
        plugin("RuntimePlugin", "create_runtime", "None") + "\n    priority = 'high'",
        "its priority is 'high'",
        "whole number",
    ),
    "a fraction for a priority": (
        plugin("RuntimePlugin", "create_runtime", "None") + "\n    priority = 1.5",
        "its priority is 1.5",
        "whole number",
    ),
    # hooks
    "hooks in a list": (hooks("[a_hook]"), "did not return a dict of lists", "{event: [function, ...]}"),
    "a hook outside a list": (hooks("{'Stop': a_hook}"), "did not return a dict of lists", "{event:"),
    "an event that there is not": (hooks("{'Start': [a_hook]}"), "no event 'Start'", "PreToolUse"),
    "a lambda for a hook": (hooks("{'Stop': [lambda *args: None]}"), _NO_FUNCTION, "at the top of a module"),
    "a closure for a hook": (hooks("{'Stop': [(lambda: lambda: 0)()]}"), _NO_FUNCTION, "at the top of a module"),
    "a method for a hook": (hooks("{'Stop': [self.agent_hooks]}"), _NO_FUNCTION, "at the top of a module"),
    "a partial for a hook": (hooks("{'Stop': [functools.partial(a_hook, 1)]}"), _NO_FUNCTION, "at the top of a module"),
    "None for a hook": (hooks("{'Stop': [None]}"), _NO_FUNCTION, "at the top of a module"),
    "a foreign function for a hook": (
        hooks("{'Stop': [functools.wraps]}"),
        "functools:wraps is in no module of the plugin's own package",
        "move it into package_",
    ),
    "a foreign string for a hook": (hooks("{'Stop': ['os:abort']}"), "os:abort is in no module", "move it into"),
    "a module that there is not": (
        hooks("{'Stop': [__name__ + '_gone:a_hook']}"),
        "_gone:a_hook is in no module",
        "move it into",
    ),
    "a module that begins alike": (
        hooks("{'Stop': [__package__ + 'x:a_hook']}"),
        "x:a_hook is in no module",
        "move it into",
    ),
    "a hook without a module": (hooks("{'Stop': ['a_hook']}"), "names no function", '"package.module:function"'),
    "a hook with a dot too many": (
        hooks("{'Stop': [__package__ + '..x:a_hook']}"),
        "names no function",
        '"package.module:function"',
    ),
    "a hook by its path": (hooks("{'Stop': ['../x.py:a_hook']}"), "names no function", '"package.module:function"'),
    "a method by its name": (
        hooks("{'Stop': [__name__ + ':Broken.run']}"),
        "names no function",
        '"package.module:function"',
    ),
    "a matcher that is no regex": (
        hooks("{'Stop': [AgentHook(a_hook, matcher='(')]}"),
        "the matcher of a hook for Stop is '('",
        "regular expression",
    ),
    "a matcher that is no text": (
        hooks("{'Stop': [AgentHook(a_hook, matcher=7)]}"),
        "the matcher of a hook for Stop is 7",
        "regular expression",
    ),
    "a matcher in bytes": (
        hooks("{'Stop': [AgentHook(a_hook, matcher=b'Bash')]}"),
        "the matcher of a hook for Stop is b'Bash'",
        "regular expression",
    ),
    "a compiled matcher": (
        hooks("{'Stop': [AgentHook(a_hook, matcher=re.compile('Bash'))]}"),
        "the matcher of a hook for Stop is re.compile('Bash')",
        "regular expression",
    ),
    "no time for a hook": (hooks("{'Stop': [AgentHook(a_hook, timeout=0)]}"), "timeout of a hook for Stop is 0", "50"),
    "a minute for a hook": (hooks("{'Stop': [AgentHook(a_hook, timeout=60)]}"), "is 60", "1 to 50 seconds"),
    "no number for a hook": (hooks("{'Stop': [AgentHook(a_hook, timeout='9')]}"), "is '9'", "1 to 50 seconds"),
    "not a number for a hook": (
        hooks("{'Stop': [AgentHook(a_hook, timeout=float('nan'))]}"),
        "is nan",
        "1 to 50 seconds",
    ),
    "a hook that gates nothing": (
        hooks("{'Stop': [AgentHook(a_hook, fail_closed=True)]}"),
        "a hook for Stop cannot fail closed",
        "only PermissionRequest and PreToolUse decide",
    ),
    # host tools
    "dicts for tools": (tools("[{}]"), "tools() did not return a list of HostTool", "HostTool"),
    "tools in a tuple": (tools("(tool(),)"), "tools() did not return a list of HostTool", "HostTool"),
    "two tools of one name": (tools("[tool(), tool()]"), "two of its tools are called look", "a name of its own"),
    "a tool with a blank in its name": (tools("[tool('a b')]"), "a tool is called 'a b'", "letters, digits"),
    "a tool without a name": (tools("[tool('')]"), "a tool is called ''", "letters, digits"),
    "a tool with too long a name": (tools("[tool('x' * 65)]"), "a tool is called 'xxx", "letters, digits"),
    "a tool with a line end in its name": (tools("[tool('a\\n')]"), r"a tool is called 'a\n'", "letters, digits"),
    "a number for a tool's name": (tools("[tool(7)]"), "a tool is called 7", "letters, digits"),
    "a tool without a description": (tools("[tool(description=' ')]"), "look has no description", "good for"),
    "None for a description": (tools("[tool(description=None)]"), "look has no description", "good for"),
    "a handler that cannot be called": (tools("[tool(handler='a_tool')]"), "cannot be called", "async function"),
    "a handler that does not hear whose call it is": (
        tools("[tool(handler=alone)]") + "\nasync def alone(arguments): ...",
        "the handler of the tool look does not take the arguments and the call",
        "`async def handler(arguments, call)`",
    ),
    "a file that no argument names": (tools("[tool(file='path')]"), "'path', which is no string", '"type": "string"'),
    "a file that a number names": (
        tools("[tool(file='n', schema={'type': 'object', 'properties': {'n': {'type': 'number'}}})]"),
        "'n', which is no string",
        '"type": "string"',
    ),
    "a file named by what says nothing": (
        tools("[tool(file='n', schema={'type': 'object', 'properties': {'n': True}})]"),
        "'n', which is no string",
        '"type": "string"',
    ),
    "no time for a tool": (tools("[tool(timeout=0)]"), "the timeout of the tool look is 0", "1 to 3600 seconds"),
    "a day for a tool": (tools("[tool(timeout=86400)]"), "is 86400", "1 to 3600 seconds"),
    "chats that are a list": (tools("[tool(chats=['post:'])]"), "are ['post:']", 'as in "telegram:"'),
    "chats of no address": (tools("[tool(chats='')]"), "are ''", 'as in "telegram:"'),
    "a schema with a set in it": (tools("[tool(schema={'type': {1}})]"), "the tool look is no JSON", "as a dict"),
    "a number for a schema": (tools("[tool(schema=7)]"), "the tool look is no JSON", "as a dict"),
    "a schema without an end": (
        tools("[tool(schema=SCHEMA)]") + "\nSCHEMA = {}\nSCHEMA['type'] = SCHEMA",
        "the tool look is no JSON",
        "as a dict",
    ),
    "an empty schema": (tools("[tool(schema={})]"), "describes no object", '"type": "object"'),
    "a schema of a string": (tools("[tool(schema={'type': 'string'})]"), "describes no object", '"type": "object"'),
    "a schema of several types": (
        tools("[tool(schema={'type': ['object']})]"),
        "describes no object",
        '"type": "object"',
    ),
    "properties in a list": (
        tools("[tool(schema={'type': 'object', 'properties': ['path']})]"),
        "describes no object",
        '"type": "object"',
    ),
    "a type that there is not": (
        tools("[tool(schema={'type': 'object', 'properties': {'path': {'type': 'text'}}})]"),
        "the input_schema of the tool look is no JSON Schema: ",
        "json-schema.org",
    ),
    "a pattern that is no regex": (
        tools("[tool(schema={'type': 'object', 'properties': {'path': {'type': 'string', 'pattern': '('}}})]"),
        "the input_schema of the tool look is no JSON Schema: ",
        "json-schema.org",
    ),
    "a reference to nothing": (
        tools("[tool(schema={'type': 'object', 'properties': {'path': {'$ref': '#/definitions/path'}}})]"),
        "the input_schema of the tool look is no JSON Schema: ",
        "json-schema.org",
    ),
}


@pytest.mark.parametrize(("text", "words", "remedy"), _INVALID.values(), ids=_INVALID)
def test_a_plugin_that_offers_what_cannot_be_used_is_told_so(
    text: str, words: str, remedy: str, discover: Discover
) -> None:
    record = only(discover(text, broken="Broken"))
    assert (record.state, record.phase) == (State.INVALID, "collect")
    assert words in record.reason
    assert remedy in record.remedy


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["None", "''", "'Voice'", "'-x'", "'a b'", "'../x'", "'a/b'", "'ü'", "'x' * 65", "'a\\n'", "7", "b'voice'"]
)
def test_a_name_that_is_no_folder_name_is_refused(name: str, discover: Discover) -> None:
    record = only(discover(f"class Broken(Good):\n    name = {name}", broken="Broken"))
    assert record.state is State.INVALID
    assert record.reason.startswith("its name is ")


def test_a_plugin_without_a_name_is_refused(discover: Discover) -> None:
    text = "class Broken(McpPlugin):\n    def mcp_server_spec(self): return spec()"
    assert only(discover(text, broken="Broken")).reason == "its name is None"


@pytest.mark.parametrize("name", ["docker", "pynchy"])
def test_our_own_names_are_reserved(name: str, discover: Discover) -> None:
    assert only(discover(f"class P(Good):\n    name = {name!r}", p="P")).reason == f"the name {name!r} is reserved"
    text = f"class P(Good):\n    def mcp_server_spec(self): return spec({name!r})"
    assert only(discover(text, p="P")).reason == f"the MCP server name {name!r} is reserved"


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a:b", ".hidden", "x" * 65, "a\n", "ü"])
def test_a_server_name_that_is_no_folder_name_is_refused(name: str, discover: Discover) -> None:
    text = f"class P(Good):\n    def mcp_server_spec(self): return spec({name!r})"
    assert only(discover(text, p="P")).reason == f"its MCP server is called {name!r}"


# --- sources ----------------------------------------------------------------------------------------------------------


def outside(kind: str, tmp_path: Path) -> Path:
    """A directory that is not the plugin's own, whatever it is called."""
    package = package_in(tmp_path)
    sibling = package.with_name(package.name + "_too")
    sibling.mkdir()
    (sibling / "__init__.py").touch()
    (package / "to_the_root").symlink_to("/")
    return {
        "the root": Path("/"),
        "the home": Path.home(),
        "what holds the package": package.parent,
        "a package beside it": sibling,
        "another distribution's": Path(pytest.__file__).parent,
        "a link to the root": package / "to_the_root",
        "the root by a detour": package / ("../" * len(package.parts)),
        "a neighbour by a detour": package / ".." / sibling.name,
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "the root",
        "the home",
        "what holds the package",
        "a package beside it",
        "another distribution's",
        "a link to the root",
        "the root by a detour",
        "a neighbour by a detour",
    ],
)
def test_a_source_outside_the_plugins_own_package_is_refused(kind: str, tmp_path: Path, discover: Discover) -> None:
    source = outside(kind, tmp_path)
    record = only(discover(server(f"spec(host_source=Path({str(source)!r}))"), broken="Broken"))
    assert record.state is State.INVALID
    assert record.reason == f"host_source {source} is outside the plugin's own package"
    assert "Path(__file__).parent" in record.remedy


@pytest.mark.parametrize("kind", ["nonexistent", "a file"])
def test_a_source_that_is_no_directory_is_refused(kind: str, tmp_path: Path, discover: Discover) -> None:
    path = package_in(tmp_path) / kind
    if kind == "a file":
        path.touch()
    record = only(discover(server(f"spec(host_source=Path({str(path)!r}))"), broken="Broken"))
    assert record.reason == f"host_source {path} is not a directory"


def test_a_source_is_the_package_or_anything_in_it(discover: Discover) -> None:
    for source in ("SOURCE", "SOURCE.parent", "Path(__file__).parent", "SOURCE / '..' / 'some_package'"):
        assert discover(server(f"spec(host_source={source})"), b="Broken").records[0].state is State.READY, source


def test_the_package_of_a_base_class_is_the_plugins_own_as_well(tmp_path: Path, discover: Discover) -> None:
    base = package_in(tmp_path).with_name("base_of_" + package_in(tmp_path).name)
    base.mkdir()
    (base / "__init__.py").write_text(
        "from pathlib import Path\nfrom pynchy.plugin import *\nclass Base(McpPlugin):\n    name = 'base'\n"
        "    def mcp_server_spec(self): return McpServerSpec('base', 'python', [], {}, Path(__file__).parent)\n"
    )
    registry = discover(f"from {base.name} import Base\nclass Derived(Base): pass", derived="Derived")
    assert registry.records[0].state is State.READY


def test_a_plugin_in_a_namespace_owns_its_part_of_it_alone(tmp_path: Path, discover: Discover) -> None:
    part = package_in(tmp_path).parent / f"namespace_{tmp_path.name}" / "part"
    for directory in (part, part.with_name("other")):
        directory.mkdir(parents=True)
        (directory / "__init__.py").touch()
    (part / "own.py").write_text(
        "from pathlib import Path\nfrom pynchy.plugin import *\nclass Base(McpPlugin):\n    name = 'base'\n"
        "    source = Path(__file__).parent\n"
        "    def mcp_server_spec(self): return McpServerSpec('base', 'python', [], {}, self.source)\n"
    )
    # As if they stood in its module; in the text's they would own the text's package too.
    text = (
        f"from {part.parent.name}.part.own import Base as Sound\n"
        "Part = type('Part', (Sound,), {'__module__': Sound.__module__})\n"
        "Other = type('Other', (Part,), {'source': Sound.source.with_name('other'), '__module__': Sound.__module__})\n"
        "Whole = type('Whole', (Part,), {'source': Sound.source.parent, '__module__': Sound.__module__})\n"
    )
    assert discover(text, part="Part").records[0].state is State.READY
    for foreign in ("Other", "Whole"):
        assert only(discover(text, foreign=foreign)).reason.endswith("is outside the plugin's own package")


def test_a_plugin_in_a_single_module_is_told_to_become_a_package(tmp_path: Path, discover: Discover) -> None:
    name = f"single_{tmp_path.name}"
    (package_in(tmp_path).parent / f"{name}.py").write_text(
        "from pathlib import Path\nfrom pynchy.plugin import *\nclass Single(McpPlugin):\n    name = 'single'\n"
        "    def mcp_server_spec(self): return McpServerSpec('single', 'python', [], {}, Path(__file__).parent)\n"
    )
    record = only(discover(f"from {name} import Single", single="Single"))
    assert record.state is State.INVALID
    # `Path(__file__).parent`, the remedy elsewhere, is what it has, and it is site-packages.
    assert "package" in record.remedy
    assert "Path(__file__).parent" not in record.remedy


def test_a_path_with_a_line_end_does_not_end_the_sentence(discover: Discover) -> None:
    record = only(discover(server("spec(host_source=SOURCE / 'a\\nb')"), broken="Broken"))
    assert record.state is State.INVALID


def test_a_priority_that_shows_itself_in_lines_does_not_end_the_sentence(discover: Discover) -> None:
    text = "class Matrix:\n    def __repr__(self): return '[0 1\\n 1 0]' * 1000\n"
    text += plugin("RuntimePlugin", "create_runtime", "None") + "\n    priority = Matrix()"
    record = only(discover(text, broken="Broken"))
    assert record.reason.startswith("its priority is [0 1 1 0]")
    assert len(record.reason) < 500


# --- hooks ------------------------------------------------------------------------------------------------------------


def test_hooks_of_every_form_become_the_same_kind_of_record(discover: Discover) -> None:
    text = """
class Hooks(HookPlugin):
    name = "hooks"
    def agent_hooks(self):
        return {
            "PreToolUse": [a_hook, __name__ + ":a_hook", AgentHook(a_hook, "Bash|Write", 5, fail_closed=True)],
            "Stop": [AgentHook(__package__ + ".some_package:elsewhere")],
        }
"""
    registry = discover(text, hooks="Hooks")
    assert registry.records[0].offers == {"hooks": ("PreToolUse", "Stop")}
    (plugin,) = registry.hooks
    module = type(plugin).__module__
    package = module.partition(".")[0]
    checked = check_hooks(plugin.agent_hooks(), {package: Path(__import__(package).__file__ or "").parent})
    assert checked == {
        "PreToolUse": [
            AgentHook(f"{module}:a_hook"),
            AgentHook(f"{module}:a_hook"),
            AgentHook(f"{module}:a_hook", "Bash|Write", 5.0, fail_closed=True),
        ],
        "Stop": [AgentHook(f"{package}.some_package:elsewhere")],
    }
    json.dumps([[hook.function, hook.matcher, hook.timeout] for items in checked.values() for hook in items])


@pytest.mark.parametrize("event", sorted(HOOK_EVENTS))
def test_every_event_can_be_hooked_into_and_those_that_decide_can_fail_closed(event: str, discover: Discover) -> None:
    registry = discover(hooks(f"{{{event!r}: [a_hook, AgentHook(a_hook, fail_closed=False)]}}"), broken="Broken")
    assert registry.records[0].offers == {"hooks": (event,)}
    closed = discover(hooks(f"{{{event!r}: [AgentHook(a_hook, fail_closed=True)]}}"), broken="Broken")
    assert closed.records[0].state is (State.READY if event in GATING_EVENTS else State.INVALID)


def test_hooks_are_named_without_importing_their_module(tmp_path: Path, discover: Discover) -> None:
    (package_in(tmp_path) / "in_the_container.py").write_text("import not_there_on_the_host\ndef hook(*args): ...\n")
    registry = discover(hooks("{'Stop': [__package__ + '.in_the_container:hook']}"), broken="Broken")
    assert registry.records[0].state is State.READY


# --- host tools -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https", "ftp", "file", "HTTP"])
def test_a_schema_that_leads_elsewhere_is_refused_and_nothing_is_fetched(
    scheme: str, tmp_path: Path, discover: Discover
) -> None:
    (tmp_path / "schema.json").write_text('{"type": "string"}')
    where = f"{scheme}://127.0.0.1:9/schema.json" if scheme != "file" else f"file://{tmp_path}/schema.json"
    schema = {"type": "object", "properties": {"path": {"$ref": where}}}
    record = only(discover(tools(f"[tool(schema={schema!r})]"), broken="Broken"))
    assert record.state is State.INVALID
    assert "$ref leads out of the schema, to " in record.reason


def test_a_schema_may_refer_to_itself() -> None:
    check = compile_schema(
        {
            "type": "object",
            "definitions": {"path": {"type": "string", "default": "elsewhere"}},
            "properties": {"path": {"$ref": "#/definitions/path"}, "depth": {"type": "integer", "default": 3}},
        }
    )
    assert check({"path": "here"}) == {"path": "here"}
    assert check({}) == {}  # a default is not written into what the agent gave
    for wrong in ({"path": 7}, {"depth": "deep"}, [], None):
        with pytest.raises(ValueError, match="must be"):
            check(wrong)


def test_a_plugin_may_have_no_hooks_tools_or_skills_today(discover: Discover) -> None:
    for method, base, empty in (
        ("agent_hooks", "HookPlugin", "{}"),
        ("tools", "ToolPlugin", "[]"),
        ("skill_paths", "SkillPlugin", "[]"),
    ):
        registry = discover(plugin(base, method, empty), b="Broken")
        assert len(contents(registry)) == 1, method
