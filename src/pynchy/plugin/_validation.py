"""Whether what a plugin offers can be used, said in a sentence its author can act on."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pynchy.plugin._contracts import GATING_EVENTS, HOOK_EVENTS, AgentHook, HostTool, McpServerSpec
from pynchy.plugin._errors import InvalidPlugin
from pynchy.plugin._skills import check_skill

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
#: `docker` is the built-in runtime and always reachable under its name; `pynchy` is our own MCP server.
OWN_SERVER = "pynchy"
RESERVED_NAMES = frozenset({"docker", OWN_SERVER})


def check_name(plugin: Any) -> str:
    """The plugin's name; InvalidPlugin where it has none that can be used."""
    name = getattr(plugin, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidPlugin(
            f"its name is {name!r}",
            'set `name = "..."` in the class: lower-case letters, digits, `-` and `_`, at most 64',
        )
    if name in RESERVED_NAMES:
        raise InvalidPlugin(f"the name {name!r} is reserved", "choose another `name`")
    return name


def own_packages(plugin: Any) -> dict[str, Path]:
    """The packages that the plugin's class and its bases were imported from, by name, with their directories.

    Of a namespace the package below it counts. A module beside no other file is no package.
    """
    found: dict[str, Path] = {}
    for module_name in {cls.__module__ for cls in type(plugin).__mro__}:
        if module_name.partition(".")[0] in ("builtins", "abc", "typing", "pynchy"):
            continue
        parts = module_name.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            file = getattr(sys.modules.get(name), "__file__", None)
            if file and Path(file).name.startswith("__init__."):
                found[name] = Path(file).parent.resolve()
            if file:
                break
    return found


def check_server_spec(spec: Any, packages: Mapping[str, Path]) -> McpServerSpec:
    """The spec, if every field is what it should be and the source lies in one of the plugin's packages."""
    if not isinstance(spec, McpServerSpec):
        raise InvalidPlugin(f"mcp_server_spec() returned {type(spec).__name__}", "return a pynchy.plugin.McpServerSpec")
    if not isinstance(spec.name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", spec.name):
        raise InvalidPlugin(f"its MCP server is called {spec.name!r}", "name it with letters, digits, `-`, `_` and `.`")
    if spec.name in RESERVED_NAMES:
        raise InvalidPlugin(f"the MCP server name {spec.name!r} is reserved", "choose another server name")
    if not isinstance(spec.command, str) or not spec.command:
        raise InvalidPlugin("its MCP server has no command", 'set `command`, such as "python"')
    if not isinstance(spec.args, list) or not all(isinstance(arg, str) for arg in spec.args):
        raise InvalidPlugin("the args of its MCP server are not a list of strings", "make `args` a list of strings")
    if not isinstance(spec.env, dict) or not all(isinstance(text, str) for pair in spec.env.items() for text in pair):
        raise InvalidPlugin("the env of its MCP server does not map strings to strings", "use strings in `env`")
    check_source(spec.host_source, packages)
    _check_folders(spec)
    return spec


def _check_folders(spec: McpServerSpec) -> None:
    """Folders of the host that every agent may read; never one that holds more than somebody means to show."""
    if not isinstance(spec.folders, Mapping):
        raise InvalidPlugin("the folders of its MCP server are no mapping", "map names to paths in `folders`")
    if spec.folders and not (spec.host_source / "__init__.py").is_file():
        raise InvalidPlugin(
            "its MCP server has folders beside a source that is no package",
            "make the source a package, with __init__.py",
        )
    for name, path in spec.folders.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
            raise InvalidPlugin(
                f"a folder of its MCP server is called {name!r}", "name it with letters, digits, `-`, `_`"
            )
        if not isinstance(path, Path) or not path.is_absolute():
            raise InvalidPlugin(f"the folder {name!r} of its MCP server is {path!r}", "give an absolute pathlib.Path")
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            real = None
        if real is None or not real.is_dir():
            raise InvalidPlugin(
                f"the folder {name!r} of its MCP server, {path}, is no directory", "make it, or name another"
            )
        if Path.home().resolve().is_relative_to(real):
            raise InvalidPlugin(
                f"the folder {name!r} of its MCP server, {path}, holds a whole home", "name what the server needs alone"
            )
        if name in (spec.host_source.name, spec.host_source.resolve().name):
            raise InvalidPlugin(
                f"the folder {name!r} of its MCP server is called like its package", "name it otherwise"
            )


def check_source(source: Any, packages: Mapping[str, Path]) -> Path:
    """A directory of the plugin's own, whose content may be shown to every agent; InvalidPlugin for any other."""
    if not isinstance(source, Path):
        raise InvalidPlugin(f"host_source is {type(source).__name__}", "set `host_source=Path(__file__).parent`")
    try:
        path = source.resolve()
    except (OSError, RuntimeError, ValueError):  # a link that leads to itself, a path that cannot be one
        path = None
    if path is None or not path.is_dir():
        raise InvalidPlugin(f"host_source {source} is not a directory", "point it at the package's directory")
    if not packages:
        raise InvalidPlugin(
            f"host_source {source} is not the plugin's own, for it is a single module",
            "make the plugin a package, a directory with an __init__.py",
        )
    if not _inside(path, packages):
        raise InvalidPlugin(
            f"host_source {source} is outside the plugin's own package", "set `host_source=Path(__file__).parent`"
        )
    return path


def _inside(path: Path, packages: Mapping[str, Path]) -> bool:
    return any(path == package or package in path.parents for package in packages.values())


def check_skill_paths(paths: Any, packages: Mapping[str, Path]) -> list[Path]:
    """Directories in the plugin's packages that are skills by the Agent Skills specification."""
    if not isinstance(paths, list) or not all(isinstance(path, Path) for path in paths):
        raise InvalidPlugin("skill_paths() did not return a list of paths", "return a list of pathlib.Path")
    names: set[str] = set()
    for path in paths:
        if path.exists() and not _inside(path.resolve(), packages):
            raise InvalidPlugin(
                f"the skill {path} is outside the plugin's own package", "put it beside the plugin's modules"
            )
        name = check_skill(path)
        if name in names:
            raise InvalidPlugin(f"two of its skills are called {name}", "give each skill a name of its own")
        names.add(name)
    return paths


def check_hooks(hooks: Any, packages: Mapping[str, Path]) -> dict[str, list[AgentHook]]:
    """Every hook as an AgentHook whose function is a `"package.module:function"` that the container can import."""
    if not isinstance(hooks, Mapping) or not all(isinstance(items, list) for items in hooks.values()):
        raise InvalidPlugin("agent_hooks() did not return a dict of lists", "return {event: [function, ...]}")
    for event in hooks:
        if event not in HOOK_EVENTS:
            raise InvalidPlugin(
                f"there is no event {event!r} to hook into", f"use one of {', '.join(sorted(HOOK_EVENTS))}"
            )
    return {event: [_check_hook(event, item, packages) for item in items] for event, items in hooks.items()}


def _check_hook(event: str, item: Any, packages: Mapping[str, Path]) -> AgentHook:
    hook = item if isinstance(item, AgentHook) else AgentHook(item)
    if hook.matcher is not None:
        try:
            valid = isinstance(hook.matcher, str) and re.compile(hook.matcher)
        except re.error:
            valid = None
        if not valid:
            raise InvalidPlugin(
                f"the matcher of a hook for {event} is {hook.matcher!r}", "use a regular expression for tools' names"
            )
    if not isinstance(hook.timeout, int | float) or not 0 < hook.timeout <= 50:
        raise InvalidPlugin(f"the timeout of a hook for {event} is {hook.timeout!r}", "use 1 to 50 seconds")
    if hook.fail_closed and event not in GATING_EVENTS:
        raise InvalidPlugin(
            f"a hook for {event} cannot fail closed", f"only {' and '.join(sorted(GATING_EVENTS))} decide anything"
        )
    target = _hook_target(event, hook.function)
    module, _, function = target.partition(":")
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", module) or not function.isidentifier():
        raise InvalidPlugin(f"the hook {target!r} names no function", 'write it as "package.module:function"')
    if not _has_module(module, packages):
        raise InvalidPlugin(
            f"the hook {target} is in no module of the plugin's own package",
            f"move it into {' or '.join(sorted(packages)) or 'a package, not a single module'}",
        )
    return AgentHook(target, hook.matcher, float(hook.timeout), bool(hook.fail_closed))


def _hook_target(event: str, function: Any) -> str:
    if isinstance(function, str):
        return function
    name, module = getattr(function, "__qualname__", "<"), getattr(function, "__module__", None)
    if not callable(function) or not isinstance(name, str) or not isinstance(module, str) or not name.isidentifier():
        raise InvalidPlugin(
            f"the hook for {event} is no module-level function",
            'use a function defined at the top of a module, or the string "package.module:function"',
        )
    return f"{module}:{name}"


def _has_module(module: str, packages: Mapping[str, Path]) -> bool:
    for package, directory in packages.items():
        if module == package or module.startswith(f"{package}."):
            path = directory.joinpath(*module[len(package) :].split("."))
            return (path / "__init__.py").is_file() or path.with_name(f"{path.name}.py").is_file()
    return False


def check_tools(tools: Any) -> list[HostTool]:
    """Host tools with different names and schemas of objects."""
    if not isinstance(tools, list) or not all(isinstance(tool, HostTool) for tool in tools):
        raise InvalidPlugin("tools() did not return a list of HostTool", "return a list of pynchy.plugin.HostTool")
    names: set[str] = set()
    for tool in tools:
        if not isinstance(tool.name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", tool.name):
            raise InvalidPlugin(f"a tool is called {tool.name!r}", "name it with letters, digits, `-` and `_`")
        if tool.name in names:
            raise InvalidPlugin(f"two of its tools are called {tool.name}", "give each tool a name of its own")
        names.add(tool.name)
        if not isinstance(tool.description, str) or not tool.description.strip():
            raise InvalidPlugin(f"the tool {tool.name} has no description", "say in it what the tool is good for")
        if not callable(tool.handler):
            raise InvalidPlugin(f"the handler of the tool {tool.name} cannot be called", "use an async function")
        if not _takes_two(tool.handler):
            raise InvalidPlugin(
                f"the handler of the tool {tool.name} does not take the arguments and the call",
                "write it as `async def handler(arguments, call)`",
            )
        if not isinstance(tool.timeout, int | float) or not 0 < tool.timeout <= 3600:
            raise InvalidPlugin(f"the timeout of the tool {tool.name} is {tool.timeout!r}", "use 1 to 3600 seconds")
        if tool.chats is not None and not (isinstance(tool.chats, str) and tool.chats):
            raise InvalidPlugin(
                f"the chats of the tool {tool.name} are {tool.chats!r}",
                'write how their addresses begin, as in "telegram:"',
            )
        _check_schema(tool)
    return tools


def _takes_two(handler: Callable[..., Any]) -> bool:
    try:
        inspect.signature(handler).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # it has no signature to be seen
        pass
    return True


def _check_schema(tool: HostTool) -> None:
    schema = tool.input_schema
    try:
        if not isinstance(schema, Mapping):
            raise TypeError
        plain = json.loads(json.dumps(dict(schema)))
    except (TypeError, ValueError, RecursionError):
        raise InvalidPlugin(f"the input_schema of the tool {tool.name} is no JSON", "write it as a dict") from None
    if plain.get("type") != "object" or not isinstance(plain.get("properties", {}), dict):
        raise InvalidPlugin(
            f"the input_schema of the tool {tool.name} describes no object",
            'begin it with {"type": "object", "properties": {...}}',
        )
    if tool.file is not None and not _is_text(plain.get("properties", {}).get(tool.file)):
        raise InvalidPlugin(
            f"the file of the tool {tool.name} is to come with {tool.file!r}, which is no string among its arguments",
            'name one with {"type": "string"} in the input_schema',
        )
    try:
        compile_schema(plain)
    except Exception as error:
        raise InvalidPlugin(
            f"the input_schema of the tool {tool.name} is no JSON Schema: {' '.join(str(error).split())[:200]}",
            "correct it by json-schema.org, draft 7",
        ) from None


def _is_text(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("type") == "string"


def compile_schema(schema: Mapping[str, Any]) -> Callable[[Any], Any]:
    """A function that returns a value which fits the schema and raises ValueError for one that does not."""
    return _compiled(json.dumps(dict(schema), sort_keys=True))


@lru_cache(maxsize=1000)
def _compiled(schema: str) -> Callable[[Any], Any]:
    """By its text, for every agent's start asks for the same ones."""
    import fastjsonschema

    def refuse(uri: str) -> Any:
        raise ValueError(f"$ref leads out of the schema, to {uri}")

    elsewhere: dict[str, Callable[[str], Any]] = dict.fromkeys(("http", "https", "ftp", "file"), refuse)
    # A default would be written into the arguments that the agent gave.
    check = fastjsonschema.compile(json.loads(schema), handlers=elsewhere, use_default=False)

    def judge(value: Any) -> Any:
        try:
            return check(value)
        except RecursionError:
            raise ValueError("data cannot be checked, for the schema leads in a circle or too deep") from None

    return judge
