"""Whether what a plugin offers can be used, said in a sentence its author can act on."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from pynchy.plugin._contracts import HostTool, McpServerSpec

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
#: `docker` is the built-in runtime and always reachable under its name; `pynchy` is our own MCP server.
RESERVED_NAMES = frozenset({"docker", "pynchy"})


class InvalidPlugin(Exception):
    """What a plugin offers cannot be used. `remedy` says what its author should change."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


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


def check_server_spec(spec: Any) -> McpServerSpec:
    """The spec, if every field is what it should be and the source may be mounted."""
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
    check_source(spec.host_source)
    return spec


def check_source(source: Any) -> Path:
    """A directory whose content may be shown to every agent; InvalidPlugin for anything broader."""
    if not isinstance(source, Path):
        raise InvalidPlugin(f"host_source is {type(source).__name__}", "set `host_source=Path(__file__).parent`")
    path = source.resolve()
    if not path.is_dir():
        raise InvalidPlugin(f"host_source {source} is not a directory", "point it at the package's directory")
    home = Path.home().resolve()
    too_broad = path == Path(path.anchor) or path == home or path in home.parents
    if too_broad or path in {Path(entry).resolve() for entry in sys.path if entry} or _is_site_packages(path):
        raise InvalidPlugin(
            f"host_source {source} is more than a plugin's own code",
            "point it at the package's own directory: `Path(__file__).parent`",
        )
    return path


def _is_site_packages(path: Path) -> bool:
    return path.name in ("site-packages", "dist-packages") or next(path.glob("*.dist-info"), None) is not None


def check_skill_paths(paths: Any) -> list[Path]:
    """Directories that each hold a SKILL.md."""
    if not isinstance(paths, list) or not all(isinstance(path, Path) for path in paths):
        raise InvalidPlugin("skill_paths() did not return a list of paths", "return a list of pathlib.Path")
    for path in paths:
        if not (path / "SKILL.md").is_file():
            raise InvalidPlugin(f"{path} has no SKILL.md", "return the directories that hold a SKILL.md")
    return paths


def check_hooks(hooks: Any) -> dict[str, list[Any]]:
    """`{event: [function or "module:function"]}`."""
    if not isinstance(hooks, dict) or not all(isinstance(items, list) for items in hooks.values()):
        raise InvalidPlugin("agent_hooks() did not return a dict of lists", "return {event: [function, ...]}")
    for event, items in hooks.items():
        for item in items:
            if not isinstance(item, str) and "<" in getattr(item, "__qualname__", "<"):
                raise InvalidPlugin(
                    f"the hook for {event} is no module-level function",
                    'use a function defined at the top of a module, or the string "package.module:function"',
                )
    return hooks


def check_tools(tools: Any) -> list[HostTool]:
    """Host tools with different names and object schemas."""
    if not isinstance(tools, list) or not all(isinstance(tool, HostTool) for tool in tools):
        raise InvalidPlugin("tools() did not return a list of HostTool", "return a list of pynchy.plugin.HostTool")
    names = [tool.name for tool in tools]
    if len(set(names)) != len(names):
        raise InvalidPlugin("two of its tools have one name", "give each tool a name of its own")
    return tools
