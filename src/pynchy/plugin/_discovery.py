"""Finding the installed plugins: each entry point is tried on its own and leaves exactly one record."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from time import perf_counter
from typing import Any
from urllib.parse import unquote

from pynchy.plugin._contracts import (
    ChannelPlugin,
    HookPlugin,
    McpPlugin,
    RuntimePlugin,
    SkillPlugin,
    ToolPlugin,
)
from pynchy.plugin._registry import PLUGIN_TYPES, PluginRecord, PluginRegistry, State
from pynchy.plugin._validation import (
    InvalidPlugin,
    check_hooks,
    check_name,
    check_server_spec,
    check_skill_paths,
    check_tools,
)
from pynchy.types import tool_prefix

GROUP = "pynchy.plugins"

logger = logging.getLogger("pynchy.plugin")


class _Conflict(InvalidPlugin):
    """A name that another plugin has already."""


@dataclass(frozen=True)
class _Offer:
    """What one plugin offers, collected and validated, not yet registered."""

    plugin: Any
    name: str
    types: tuple[str, ...]
    server_name: str | None
    runtime_matches: bool
    note: str


def discover_plugins() -> PluginRegistry:
    """Load every entry point of the group `pynchy.plugins`, sorted by name, and register what works.

    Nothing a plugin raises gets out of here, `SystemExit` included; it ends in that plugin's record.
    `KeyboardInterrupt` passes. A plugin registers whole or not at all.
    """
    registry = PluginRegistry()
    taken = _Taken()
    found, unreadable = _entry_points()
    registry.records += unreadable
    for entry_point in found:
        registry.records.append(_discover_one(entry_point, registry, taken))
    for record in registry.records:
        if record.state is not State.READY:
            logger.warning("plugin %s: %s; %s", record.entry_point, record.reason, record.remedy)
    return registry


def _entry_points() -> tuple[list[EntryPoint], list[PluginRecord]]:
    """The group's entry points by name, and a record of each distribution whose own cannot be read."""
    try:
        found, unreadable = list(entry_points(group=GROUP)), []
    except Exception:
        found, unreadable = _readable_entry_points()
    return sorted(found, key=lambda ep: (ep.name, ep.value)), unreadable


def _readable_entry_points() -> tuple[list[EntryPoint], list[PluginRecord]]:
    """The same one by one, so that a distribution with broken metadata is missed alone."""
    found: list[EntryPoint] = []
    unreadable: list[PluginRecord] = []
    seen: set[str] = set()
    for dist in distributions():
        name = _attempt(lambda dist=dist: dist.name or "", "")
        normalised = re.sub(r"[-_.]+", "-", name).lower()
        if normalised and normalised in seen:
            continue  # of two distributions of one name the first on the path counts
        seen.add(normalised)
        try:
            found += dist.entry_points.select(group=GROUP)
        except Exception as error:
            record = _with_distribution(PluginRecord(name, "", State.FAILED, phase="find"), dist)
            reason = f"its entry_points.txt cannot be read: {_words(error)}"
            unreadable.append(replace(record, reason=reason, remedy=f"reinstall or uninstall {name or 'it'}"))
    return found, unreadable


class _Taken:
    """The names that registered plugins hold, and who holds them. Servers by their tools' prefix."""

    def __init__(self) -> None:
        self.plugins: dict[str, str] = {}
        self.servers: dict[str, str] = {}


def _discover_one(entry_point: EntryPoint, registry: PluginRegistry, taken: _Taken) -> PluginRecord:
    started = perf_counter()
    record = _with_distribution(PluginRecord(entry_point.name, entry_point.value, State.READY), entry_point.dist)
    phase = "load"
    try:
        loaded = entry_point.load()
        phase = "create"
        plugin = loaded()
        phase = "collect"
        offer = _collect(plugin)
        record = replace(record, name=offer.name, types=offer.types, note=offer.note)
        phase = "register"
        _check_conflicts(offer, taken, record)
        _register(offer, registry)
        taken.plugins[offer.name] = entry_point.name
        if offer.server_name:
            taken.servers[tool_prefix(offer.server_name)] = offer.name
    except KeyboardInterrupt:
        raise
    except InvalidPlugin as error:
        state = State.CONFLICT if isinstance(error, _Conflict) else State.INVALID
        record = replace(record, state=state, reason=str(error), remedy=error.remedy)
    except BaseException as error:
        # SystemExit and the like are a plugin's failure, not the host's end.
        record = replace(record, state=State.FAILED, reason=_one_line(error, phase), remedy=_remedy(error, record))
        logger.debug("plugin %s failed in phase %s", entry_point.name, phase, exc_info=True)
    return replace(record, phase=phase, milliseconds=round((perf_counter() - started) * 1000, 2))


def _collect(plugin: Any) -> _Offer:
    """Ask the plugin for everything that can be asked now, and validate all of it."""
    types = tuple(word for word, plugin_type in PLUGIN_TYPES if isinstance(plugin, plugin_type))
    if not types:
        raise InvalidPlugin(
            f"{type(plugin).__name__} extends no plugin type",
            "derive it from RuntimePlugin, ChannelPlugin, McpPlugin, SkillPlugin, HookPlugin or ToolPlugin",
        )
    name = check_name(plugin)
    server_name = None
    matches, note = True, ""
    if isinstance(plugin, RuntimePlugin):
        matches, note = _platform(plugin)
    if isinstance(plugin, McpPlugin):
        server_name = check_server_spec(plugin.mcp_server_spec()).name
    if isinstance(plugin, SkillPlugin):
        check_skill_paths(plugin.skill_paths())
    if isinstance(plugin, HookPlugin):
        check_hooks(plugin.agent_hooks())
    if isinstance(plugin, ToolPlugin):
        check_tools(plugin.tools())
    return _Offer(plugin, name, types, server_name, matches, note)


def _platform(plugin: RuntimePlugin) -> tuple[bool, str]:
    matches = bool(plugin.platform_matches())
    priority = plugin.priority
    if not isinstance(priority, int):
        raise InvalidPlugin(f"its priority is {priority!r}", "return a whole number from `priority`")
    reason = plugin.platform_reason
    if matches:
        return True, reason
    logger.debug("runtime plugin %s does not match this platform: %s", plugin.name, reason)
    return False, "does not match this platform" + (f": {reason}" if reason else "")


def _check_conflicts(offer: _Offer, taken: _Taken, record: PluginRecord) -> None:
    if holder := taken.plugins.get(offer.name):
        raise _Conflict(
            f"the name {offer.name!r} already belongs to the plugin of entry point {holder!r}",
            f"uninstall one of the two ({record.distribution or record.target} is this one), or rename one",
        )
    if offer.server_name and (holder := taken.servers.get(tool_prefix(offer.server_name))):
        raise _Conflict(
            f"the tools of its MCP server would be called {tool_prefix(offer.server_name)}*, as those of plugin "
            f"{holder!r} are",
            "uninstall one of the two, or give the server another name",
        )


def _register(offer: _Offer, registry: PluginRegistry) -> None:
    plugin = offer.plugin
    if isinstance(plugin, RuntimePlugin):
        (registry.runtimes if offer.runtime_matches else registry.unmatched_runtimes).append(plugin)
    if isinstance(plugin, ChannelPlugin):
        registry.channels.append(plugin)
    if isinstance(plugin, McpPlugin):
        registry.mcp_servers.append(plugin)
    if isinstance(plugin, SkillPlugin):
        registry.skills.append(plugin)
    if isinstance(plugin, HookPlugin):
        registry.hooks.append(plugin)
    if isinstance(plugin, ToolPlugin):
        registry.tools.append(plugin)


def _one_line(error: BaseException, phase: str) -> str:
    doing = {"load": "importing it", "create": "creating it", "collect": "asking what it offers"}
    return f"{doing.get(phase, phase)} raised {_words(error)}"


def _words(error: BaseException) -> str:
    text = " ".join(_attempt(lambda: str(error), "").split())
    return type(error).__name__ + (f": {text[:300]}" if text else "")


def _remedy(error: BaseException, record: PluginRecord) -> str:
    package = record.distribution or record.target.split(":")[0]
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"install what is missing, or reinstall {package}"
    return f"update or uninstall {package}, or report it to its author"


def _attempt(action: Callable[[], str], otherwise: str) -> str:
    try:
        return action()
    except Exception:
        return otherwise


def _with_distribution(record: PluginRecord, dist: Distribution | None) -> PluginRecord:
    """Where an entry point comes from; empty strings where its metadata is broken."""
    if dist is None:
        return record
    return replace(
        record,
        distribution=_attempt(lambda: dist.name or "", ""),
        version=_attempt(lambda: dist.version or "", ""),
        origin=_attempt(lambda: _origin(dist.read_text("direct_url.json")), ""),
    )


def _origin(direct_url: str | None) -> str:
    """How it was installed, by PEP 610: `index`, `editable PATH`, `git URL` or the URL itself."""
    if not direct_url:
        return "index"
    data = json.loads(direct_url)
    url = str(data["url"])
    if url.startswith("file://"):
        url = unquote(url.removeprefix("file://"))
    if data.get("dir_info", {}).get("editable"):
        return f"editable {url}"
    if vcs := data.get("vcs_info", {}).get("vcs"):
        return f"{vcs} {url}"
    return url
