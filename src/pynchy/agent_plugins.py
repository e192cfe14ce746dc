"""What the plugins add to one group's agent: MCP servers, skills, hooks and host tools, with their mounts.

Each plugin is asked anew for each agent, part by part: a part that cannot be had now is left out of this run
and reported, and the others are there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from pynchy.home import container_dir
from pynchy.plugin import HostTool, InvalidPlugin, McpServerSpec, PluginRegistry
from pynchy.plugin._errors import PluginRaised, ask
from pynchy.plugin._skills import skill_files
from pynchy.plugin._validation import check_hooks, check_server_spec, check_skill_paths, check_tools, own_packages
from pynchy.types import Group, PluginReport, VolumeMount
from pynchy.workspace import DATA_PATH, HOOKS_PATH, PLUGINS_PATH, SKILLS_PATH, plugin_data_folder, staged

log = structlog.get_logger(__name__)

#: The name under which our own skills are, as no plugin's can be.
_OWN = "pynchy"


@dataclass(frozen=True, slots=True)
class AgentPlugins:
    """The plugins' part of one agent.

    `mcp_servers`, `hooks` and `skills` are what ContainerInput carries. `tools` maps a plugin's name to its host
    tools by name; `servers_of` a server's name to its plugin's. `reports` tells of the parts that were asked.
    """

    mounts: tuple[VolumeMount, ...] = ()
    mcp_servers: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    hooks: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    skills: tuple[str, ...] = ()
    tools: Mapping[str, Mapping[str, HostTool]] = field(default_factory=dict)
    servers_of: Mapping[str, str] = field(default_factory=dict)
    reports: tuple[PluginReport, ...] = ()

    @property
    def hook_plugins(self) -> frozenset[str]:
        """The plugins whose hooks this agent has."""
        return frozenset(str(hook["plugin"]) for hooks in self.hooks.values() for hook in hooks)

    def tool_descriptions(self) -> dict[str, list[dict[str, Any]]]:
        """The host tools as the agent is told of them."""
        return {
            plugin: [
                {
                    "name": tool.name,
                    "description": tool.description,
                    "input_schema": dict(tool.input_schema),
                    "file": tool.file,
                }
                for tool in tools.values()
            ]
            for plugin, tools in self.tools.items()
        }


def plugin_parts(registry: PluginRegistry, home: Path, group: Group, owner: tuple[int, int] | None) -> AgentPlugins:
    """Ask the plugins that this group has for everything that its agent gets of them.

    `owner` is who the agent runs as. OSError where the host's disk does not take what must be laid out.
    """
    gathering = _Gathering(registry, home, group, owner)
    gathering.ask_all("mcp", registry.mcp_servers, gathering.server)
    gathering.ask_all("skills", registry.skills, gathering.skill)
    gathering.ask_all("hooks", registry.hooks, gathering.hook)
    gathering.ask_all("tools", registry.tools, gathering.tool)
    return gathering.result()


class _Gathering:
    """The parts of one agent, while they are being collected."""

    def __init__(self, registry: PluginRegistry, home: Path, group: Group, owner: tuple[int, int] | None) -> None:
        self._registry = registry
        self._home = home
        self._group = group
        self._owner = owner
        self._mounts: dict[str, VolumeMount] = {}
        self._servers: dict[str, dict[str, Any]] = {}
        self._servers_of: dict[str, str] = {}
        self._hooks: dict[str, list[dict[str, Any]]] = {}
        self._skills: dict[str, list[Path]] = {_OWN: own_skills()}
        self._tools: dict[str, dict[str, HostTool]] = {}
        self._reports: list[PluginReport] = []

    def ask_all(self, part: str, plugins: Iterable[Any], add: Callable[[str, Any], None]) -> None:
        """Add a part of every plugin that the group has."""
        for plugin in plugins:
            name = self._registry.name_of(plugin)
            if not self._group.has_plugin(name):
                continue
            try:
                add(name, plugin)
            except (PluginRaised, InvalidPlugin) as error:
                log.warning("a part of a plugin is left out of this run", plugin=name, part=part, error=str(error))
                self._reports.append(PluginReport(name, part, str(error)))

    def result(self) -> AgentPlugins:
        """Everything that was added, with the skills laid out."""
        skills = stage_skills(self._home, self._skills)
        self._mount(VolumeMount(str(skills), SKILLS_PATH, readonly=True))
        return AgentPlugins(
            tuple(self._mounts.values()),
            self._servers,
            self._hooks,
            tuple(self._skills),
            self._tools,
            self._servers_of,
            tuple(self._reports),
        )

    # What a plugin says is checked again, for nothing says that it is what it was when it was discovered.

    def server(self, name: str, plugin: Any) -> None:
        """Add an MCP server: its source, its data folder, how it is started."""
        packages = own_packages(plugin)
        spec = ask(lambda: check_server_spec(plugin.mcp_server_spec(), packages))
        if spec.name in self._servers:
            raise InvalidPlugin(f"another plugin has an MCP server called {spec.name!r} now", "rename one")
        for folder in spec.folders.values():
            self._check_folder(folder.resolve())
        for mount in server_mounts(spec, packages):
            self._mount(mount)
        self._mount_data(name)
        self._servers[spec.name] = {
            "command": spec.command,
            "args": list(spec.args),
            "env": dict(spec.env),
            "data": name,
        }
        self._servers_of[spec.name] = name

    def skill(self, name: str, plugin: Any) -> None:
        """Add a plugin's skills."""
        if paths := ask(lambda: check_skill_paths(plugin.skill_paths(), own_packages(plugin))):
            self._skills[name] = paths
        self._reports.append(PluginReport(name, "skills"))

    def hook(self, name: str, plugin: Any) -> None:
        """Add a plugin's hooks, and the packages that they are in."""
        packages = own_packages(plugin)
        found = ask(lambda: check_hooks(plugin.agent_hooks(), packages))
        if not any(found.values()):
            return
        for package, directory in packages.items():
            inside = f"{HOOKS_PATH}/{name}/{package.replace('.', '/')}"
            self._mount(VolumeMount(str(directory), inside, readonly=True))
        self._mount_data(name)
        for event, hooks in found.items():
            self._hooks.setdefault(event, []).extend(
                {
                    "plugin": name,
                    "function": hook.function,
                    "matcher": hook.matcher,
                    "timeout": hook.timeout,
                    "fail_closed": hook.fail_closed,
                }
                for hook in hooks
            )

    def tool(self, name: str, plugin: Any) -> None:
        """Add a plugin's host tools, as far as they are for this chat."""
        tools = ask(lambda: check_tools(plugin.tools()))
        if mine := {tool.name: tool for tool in tools if self._is_for_this_chat(tool)}:
            self._tools[name] = mine
        self._reports.append(PluginReport(name, "tools"))

    def _is_for_this_chat(self, tool: HostTool) -> bool:
        return tool.chats is None or self._group.is_main or self._group.jid.startswith(tool.chats)

    def _check_folder(self, folder: Path) -> None:
        """Of Pynchy's own home, an agent may see no more than what is the plugins'."""
        home = self._home.resolve()
        inside = folder.is_relative_to(home) and home / "plugins" not in folder.parents
        if inside or home.is_relative_to(folder):
            raise InvalidPlugin(
                f"the folder {folder} of its MCP server holds what is Pynchy's own", "name another folder"
            )

    def _mount(self, mount: VolumeMount) -> None:
        self._mounts[mount.container_path] = mount

    def _mount_data(self, plugin: str) -> None:
        folder = plugin_data_folder(self._home, plugin, self._group, self._owner)
        self._mount(VolumeMount(str(folder), f"{DATA_PATH}/{plugin}"))


def server_mounts(spec: McpServerSpec, packages: Mapping[str, Path]) -> list[VolumeMount]:
    """What a server's agent sees of the host: the server's source, and the folders that it names.

    A package keeps its name below the server's directory, so that `-m package.module` finds it.
    """
    source = spec.host_source.resolve(strict=True)
    target = f"{PLUGINS_PATH}/{spec.name}"
    if (source / "__init__.py").is_file():
        # By the name it is imported under, which a link may give it.
        written = Path(os.path.abspath(spec.host_source)).name  # noqa: PTH100 - it must not follow links
        name = next((name for name, directory in packages.items() if directory == source), written)
        target += f"/{name.replace('.', '/')}"
    folders = [
        (str(path.resolve(strict=True)), f"{PLUGINS_PATH}/{spec.name}/{name}") for name, path in spec.folders.items()
    ]
    return [VolumeMount(path, inside, readonly=True) for path, inside in [(str(source), target), *folders]]


# --- skills -------------------------------------------------------------------------------------------------


def own_skills() -> list[Path]:
    """The directories of the skills that every agent has."""
    return sorted(path.parent for path in (container_dir() / "skills").glob("*/SKILL.md"))


def stage_skills(home: Path, skills: Mapping[str, list[Path]]) -> Path:
    """Copy skills, by plugin, to where they can be mounted from, and return that directory.

    Each plugin's are laid out as a plugin of the agent's SDK, so that the model knows them as `PLUGIN:SKILL` and
    none can take another's place. A change of any file makes a new directory.
    """
    digest = hashlib.sha256()
    files: list[tuple[str, Path]] = []
    for plugin, paths in sorted(skills.items()):
        for path in paths:
            for name, real in skill_files(path):
                status = real.stat()
                inside = f"{plugin}/skills/{path.name}/{name}"
                digest.update(f"{inside}\0{real}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_mode}\0".encode())
                files.append((inside, real))

    def fill(directory: Path) -> None:
        for plugin in skills:
            manifest = directory / plugin / ".claude-plugin" / "plugin.json"
            manifest.parent.mkdir(parents=True)
            manifest.write_text(json.dumps({"name": plugin}))
        for inside, real in files:
            target = directory / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(real, target)  # with its mode, for a skill may bring scripts

    return staged(skills_folder(home), digest.hexdigest()[:16], fill)


def skills_folder(home: Path) -> Path:
    """Where the copies of skills are; nothing in it is needed when no agent runs."""
    return home / "skills"
