"""Plugins with a fault each, as small real projects, and what has to be said about every one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from environments import project

from pynchy.plugin import State

FAILED, INVALID, CONFLICT = State.FAILED, State.INVALID, State.CONFLICT

#: What every package begins with. `Good` is the plugin that works, under the name of this one.
_PREAMBLE = """\
import functools, os, signal, sys
from pathlib import Path
from pynchy.plugin import *

HERE = Path(__file__).parent
NAME = "{name}"


def spec(name=NAME, command="python", args=("-m", __name__ + ".mcp"), env=None, host_source=HERE):
    return McpServerSpec(name, command, list(args), env or {{}}, host_source)


def a_hook(*args):
    pass


async def a_tool(arguments, call):
    return ""


class Good(McpPlugin):
    name = NAME

    def mcp_server_spec(self):
        return spec()


"""

_SERVER = '''\
from mcp.server import MCPServer

server = MCPServer("{name}")


@server.tool(structured_output=False)
def greet(name: str) -> str:
    """Greet somebody by name."""
    return f"Hello, {{name}}! The plugin {name} is well."


if __name__ == "__main__":
    server.run()
'''


@dataclass(frozen=True)
class Fault:
    """A plugin's code below the preamble, and its record: words of `reason` and `remedy`, how far it came."""

    state: State
    phase: str
    reason: str
    remedy: str
    code: str = "Plugin = Good"
    target: str = "Plugin"
    files: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)

    def write(self, directory: Path, name: str) -> Path:
        """The project of the plugin `name`."""
        project(directory, name, self.target, _PREAMBLE.format(name=name) + self.code)
        package = directory / "src" / f"pynchy_plugin_{name}"
        for path, text in {"mcp.py": _SERVER.format(name=name), **self.files}.items():
            (package / path).parent.mkdir(parents=True, exist_ok=True)
            (package / path).write_text(text)
        for path, target in self.links.items():
            (package / path).symlink_to(target)
        return directory


#: The plugin that works all the time.
GOOD = Fault(State.READY, "register", "", "")

_REPORT = "update or uninstall pynchy-plugin-"
_SOURCE = "set `host_source=Path(__file__).parent`"


def loads(code: str, reason: str, remedy: str = _REPORT, state: State = FAILED, target: str = "Plugin") -> Fault:
    """A fault that shows while it is imported."""
    return Fault(state, "load", reason, remedy, code + "\nPlugin = Good", target)


def creates(code: str, reason: str) -> Fault:
    """A fault that shows while it is created."""
    return Fault(FAILED, "create", reason, _REPORT, code)


def names(code: str, reason: str, remedy: str = 'set `name = "..."` in the class') -> Fault:
    """A fault of its name."""
    return Fault(INVALID, "collect", reason, remedy, f"class Plugin(Good):\n    {code}")


def method(base: str, name: str, answer: str, reason: str, remedy: str, state: State = INVALID) -> Fault:
    """A fault of what a method answers, an expression or a statement that raises."""
    body = answer if answer.startswith("raise ") else f"return {answer}"
    code = f"class Plugin({base}):\n    name = NAME\n    def {name}(self): {body}"
    return Fault(state, "collect", reason, remedy, code)


def server(answer: str, reason: str, remedy: str, state: State = INVALID) -> Fault:
    """A fault of its MCP server."""
    return method("Good", "mcp_server_spec", answer, reason, remedy, state)


def skills(answer: str, reason: str, remedy: str) -> Fault:
    """A fault of its skills."""
    return method("SkillPlugin", "skill_paths", answer, reason, remedy)


def hooks(answer: str, reason: str, remedy: str) -> Fault:
    """A fault of its hooks."""
    return method("HookPlugin", "agent_hooks", answer, reason, remedy)


def tools(answer: str, reason: str, remedy: str) -> Fault:
    """A fault of its host tools."""
    return method("ToolPlugin", "tools", answer, reason, remedy)


def runtime(body: str, reason: str, remedy: str, state: State) -> Fault:
    """A fault of its runtime."""
    code = f"class Plugin(RuntimePlugin):\n    name = NAME\n    def create_runtime(self): ...\n    {body}"
    return Fault(state, "collect", reason, remedy, code)


FAULTS: Mapping[str, Fault] = {
    # while it is imported
    "raises": loads("raise ValueError('no token,\\n  set one')", "importing it raised ValueError: no token, set one"),
    "exits": loads("sys.exit('goodbye')", "importing it raised SystemExit: goodbye"),
    "recurses": loads("def again(): again()\nagain()", "importing it raised RecursionError: maximum recursion depth"),
    "raises_the_worst": loads("class Worst(BaseException): ...\nraise Worst('of all')", "raised Worst: of all"),
    "closes_a_generator": loads("raise GeneratorExit", "importing it raised GeneratorExit"),
    "cancels": loads("import asyncio\nraise asyncio.CancelledError", "importing it raised CancelledError"),
    "raises_the_unprintable": loads(
        "class Unprintable(Exception):\n    def __str__(self): raise RuntimeError\nraise Unprintable",
        "importing it raised Unprintable",
    ),
    "misses_a_library": loads(
        "import not_there_at_all",
        "importing it raised ModuleNotFoundError: No module named 'not_there_at_all'",
        "install what is missing, or reinstall pynchy-plugin-misses-a-library",
    ),
    "misses_a_name": loads("from pynchy.plugin import Nonsense", "ImportError: cannot import name 'Nonsense'"),
    "is_no_python": loads("def def", "importing it raised SyntaxError: invalid syntax"),
    # what the entry point names
    "names_no_module": loads(
        "", "No module named 'pynchy_plugin_nowhere'", "reinstall", target="pynchy_plugin_nowhere:P"
    ),
    "names_nothing": loads("", "has no attribute 'Missing'", target="Missing"),
    "is_malformed": Fault(
        INVALID, "load", "names no object", 'write it as `name = "package:Class"`', "", target="not a module: at all!"
    ),
    "names_a_number": Fault(FAILED, "create", "'int' object is not callable", _REPORT, "Plugin = 7"),
    "is_no_plugin": Fault(
        INVALID, "collect", "Plugin extends no plugin type", "derive it from", "class Plugin:\n    name = NAME"
    ),
    # while it is created
    "cannot_begin": creates("class Plugin(Good):\n    def __init__(self): 1 / 0", "raised ZeroDivisionError"),
    "ends_the_beginning": creates(
        "class Plugin(Good):\n    def __init__(self): sys.exit(3)", "creating it raised SystemExit: 3"
    ),
    "wants_a_token": creates(
        "class Plugin(Good):\n    def __init__(self, token): ...", "missing 1 required positional argument: 'token'"
    ),
    "is_abstract": creates("class Plugin(McpPlugin):\n    name = NAME", "mcp_server_spec"),
    # names
    "has_no_name": names("name = None", "its name is None"),
    "has_an_empty_name": names("name = ''", "its name is ''"),
    "has_an_upper_case_name": names("name = 'Voice'", "its name is 'Voice'"),
    "has_a_path_for_a_name": names("name = '../../etc'", "its name is '../../etc'"),
    "has_a_reserved_name": names("name = 'pynchy'", "the name 'pynchy' is reserved", "choose another `name`"),
    "has_a_name_that_raises": Fault(
        FAILED,
        "collect",
        "asking what it offers raised KeyError: 'TOKEN'",
        _REPORT,
        "class Plugin(Good):\n    @property\n    def name(self): raise KeyError('TOKEN')",
    ),
    "takes_a_name": Fault(
        CONFLICT,
        "register",
        "the name 'good' already belongs to the plugin of entry point 'good'",
        "uninstall one of the two (pynchy-plugin-takes-a-name is this one)",
        "class Plugin(SkillPlugin):\n    name = 'good'\n    def skill_paths(self): return []",
    ),
    "takes_a_servers_name": Fault(
        CONFLICT,
        "register",
        "its tools would be called mcp__good__*, as those of the plugin of entry point 'good' are",
        "give its server another name",
        "class Plugin(Good):\n    def mcp_server_spec(self): return spec('good')",
    ),
    # MCP servers
    "cannot_describe_itself": server(
        "raise OSError('unplugged')", "asking what it offers raised OSError: unplugged", _REPORT, FAILED
    ),
    "describes_itself_in_a_dict": server(
        "{'command': 'python'}", "mcp_server_spec() returned dict", "return a pynchy.plugin.McpServerSpec"
    ),
    "has_a_number_in_args": server("spec(args=[8080])", "args of its MCP server are not", "list of strings"),
    "has_a_number_in_env": server("spec(env={'PORT': 8080})", "does not map strings to strings", "strings in `env`"),
    "has_a_reserved_server": server("spec('docker')", "server name 'docker' is reserved", "another server name"),
    "mounts_nothing": server("spec(host_source=HERE / 'gone')", "gone is not a directory", "the package's directory"),
    "mounts_the_root": server("spec(host_source=Path('/'))", "host_source / is outside", _SOURCE),
    "mounts_its_repository": server(
        "spec(host_source=HERE.parents[1])", "is outside the plugin's own package", _SOURCE
    ),
    "mounts_a_neighbour": server(
        "spec(host_source=Path(sys.modules['pynchy'].__file__).parent)", "is outside the plugin's own package", _SOURCE
    ),
    "mounts_a_link": replace(
        server("spec(host_source=HERE / 'data')", "data is outside the plugin's own package", _SOURCE),
        links={"data": "/etc"},
    ),
    "mounts_a_string": server("spec(host_source=str(HERE))", "host_source is str", _SOURCE),
    # skills
    "has_a_skill_missing": skills("[HERE / 'skills/sew']", "sew is not a directory", "hold a SKILL.md"),
    "has_a_skill_elsewhere": skills("[Path('/etc')]", "the skill /etc is outside", "beside the plugin's modules"),
    "has_a_skill_without_a_name": replace(
        skills("[HERE / 'sew']", "Missing required field in frontmatter: name", "correct the front matter"),
        files={"sew/SKILL.md": "---\ndescription: Sews.\n---\n"},
    ),
    "has_a_skill_that_leaks": replace(
        skills("[HERE / 'sew']", "the skill sew has a link that leaves it, passwords", "put a copy of the file"),
        files={"sew/SKILL.md": "---\nname: sew\ndescription: Sews.\n---\n"},
        links={"sew/passwords": "/etc/passwd"},
    ),
    # hooks
    "hooks_a_lambda": hooks(
        "{'Stop': [lambda *args: None]}", "the hook for Stop is no module-level function", "at the top of a module"
    ),
    "hooks_into_nothing": hooks("{'Begin': [a_hook]}", "there is no event 'Begin'", "PreToolUse"),
    "hooks_a_foreigner": hooks(
        "{'Stop': ['os:abort']}", "os:abort is in no module of the plugin's own", "pynchy_plugin_hooks_a_foreigner"
    ),
    # host tools
    "has_one_tool_twice": tools(
        "[HostTool('look', 'Looks.', {'type': 'object'}, a_tool)] * 2", "two of its tools are called look", "of its own"
    ),
    "has_a_bad_schema": tools(
        "[HostTool('look', 'Looks.', {'type': 'object', 'properties': {'path': {'type': 'text'}}}, a_tool)]",
        "the input_schema of the tool look is no JSON Schema",
        "json-schema.org",
    ),
    "has_a_schema_elsewhere": tools(
        "[HostTool('look', 'Looks.', {'type': 'object', 'properties': {'p': {'$ref': 'file:///etc/hosts'}}}, a_tool)]",
        "$ref leads out of the schema, to file:///etc/hosts",
        "json-schema.org",
    ),
    "answers_twice_for_its_name": Fault(
        INVALID,
        "collect",
        "would all be called mcp__answers_twice_for_its_name__*",
        "give the server another name",
        "class Plugin(Good, ToolPlugin):\n"
        "    def tools(self): return [HostTool('look', 'Looks.', {'type': 'object'}, a_tool)]",
    ),
    # runtimes
    "has_no_platform": runtime(
        "def platform_matches(self): return os.uname().moon", "raised AttributeError", _REPORT, FAILED
    ),
    "has_no_rank": runtime("priority = 'high'", "its priority is 'high'", "a whole number", INVALID),
}

_DIED = "an earlier start died while it was being loaded, so it is left out"

#: Those that a start dies of, with its exit code; in the order in which a start meets them.
KILLERS: Mapping[str, tuple[Fault, int]] = {
    "ends_the_process": (loads("os._exit(0)", _DIED, "`pynchy plugins check ends_the_process` tries it again"), 0),
    "kills_the_process": (
        loads("os.kill(os.getpid(), signal.SIGKILL)", _DIED, "pynchy-plugin-kills-the-process"),
        -9,
    ),
    "touches_nothing": (
        loads(
            "import ctypes, resource\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))\nctypes.string_at(0)",
            _DIED,
            "else update or uninstall pynchy-plugin-touches-nothing",
        ),
        -11,
    ),
}

_LIAR = """
class Plugin(Good):
    asked = 0
    @property
    def name(self):
        self.asked += 1
        return NAME if self.asked == 1 else f"another-{self.asked}"
"""

#: What works although it should not have been written.
ODD: Mapping[str, Fault] = {
    "lies_about_its_name": Fault(State.READY, "register", "", "", _LIAR),
    "moves_away": Fault(State.READY, "register", "", "", "os.chdir('/')\nPlugin = Good"),
}
