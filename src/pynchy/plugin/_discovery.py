"""Finding the installed plugins: each entry point is tried on its own and leaves exactly one record."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path
from time import perf_counter
from typing import Any

from pynchy.plugin._contracts import (
    ChannelPlugin,
    HookPlugin,
    McpPlugin,
    RuntimePlugin,
    SkillPlugin,
    ToolPlugin,
)
from pynchy.plugin._crashes import CrashLog
from pynchy.plugin._errors import InvalidPlugin, in_words, sentence
from pynchy.plugin._registry import PLUGIN_TYPES, PluginRecord, PluginRegistry, State
from pynchy.plugin._validation import (
    OWN_SERVER,
    check_hooks,
    check_name,
    check_server_spec,
    check_skill_paths,
    check_tools,
    own_packages,
)
from pynchy.types import tool_prefix

GROUP = "pynchy.plugins"
#: Commands of `pynchy`, loaded when they are called.
GROUP_OF_COMMANDS = "pynchy.commands"

#: Setting it to `1` (`pynchy --safe-mode`) leaves out every plugin that is not Pynchy's own.
SAFE_MODE = "PYNCHY_SAFE_MODE"
#: Names of entry points or distributions, separated by commas, that are not even imported.
DISABLED = "PYNCHY_PLUGINS_DISABLED"
FIRST_PARTY = frozenset({"pynchy", "pynchy-plugin-bubblewrap"})

SLOW_IMPORT = 200.0  # milliseconds
_ENTRY_POINT = 'write it as `name = "package:Class"` in the pyproject.toml'


class _Conflict(InvalidPlugin):
    """A name that another plugin has already."""


@dataclass(frozen=True)
class _Offer:
    """What one plugin offers, collected and validated, not yet registered."""

    plugin: Any
    name: str
    offers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    runtime_matches: bool = True
    note: str = ""


def discover_plugins() -> PluginRegistry:
    """Load every entry point of the group `pynchy.plugins`, sorted by name, and register what works.

    Nothing a plugin raises gets out of here, `SystemExit` included; it ends in that plugin's record.
    `KeyboardInterrupt` passes. A plugin registers whole or not at all. One that an earlier process died of, or
    that `PYNCHY_PLUGINS_DISABLED` names, is not loaded.
    """
    registry = find_plugins()
    for record in registry.records:
        if record.state not in (State.READY, State.DISABLED):
            _warn(record)
    return registry


def find_plugins() -> PluginRegistry:
    """The same without a line in the log, for whoever shows the records."""
    return discover_entry_points(*readable_entry_points(GROUP))


def discover_entry_points(found: list[EntryPoint], unreadable: Iterable[PluginRecord] = ()) -> PluginRegistry:
    """The same for these entry points, in this order."""
    registry = PluginRegistry(records=list(unreadable))
    holders = _Holders()
    disabled = _Disabled()
    with CrashLog.open(_home() if found else None) as crashes, _stdout_kept():
        for entry_point in found:
            record = PluginRecord(entry_point.name, entry_point.value, State.READY, dist=entry_point.dist)
            if why := disabled.why(record):
                record = replace(record, state=State.DISABLED, phase="find", reason=why[0], remedy=why[1])
            elif crashes.died_of(entry_point):
                record = _died(record)
            else:
                with crashes.loading(entry_point):
                    record = _discover_one(entry_point, record, registry, holders)
            registry.records.append(record)
    return registry


@contextmanager
def _stdout_kept() -> Iterator[None]:
    """What plugins print meanwhile goes to stderr; a stream of its own, for one may close it."""
    try:
        stream = os.fdopen(os.dup(2), "w", errors="replace")
    except OSError:  # there is no stderr
        yield
        return
    try:
        with redirect_stdout(stream):
            yield
    finally:
        with suppress(OSError, ValueError):
            stream.close()


def disabled_reason(entry_point: EntryPoint) -> tuple[str, str] | None:
    """Why an entry point may not be loaded, and what to do about it, where the user has switched it off."""
    return _Disabled().why(PluginRecord(entry_point.name, entry_point.value, State.READY, dist=entry_point.dist))


def _warn(record: PluginRecord) -> None:
    import logging  # only where there is something to say, for its import takes a while

    logging.getLogger("pynchy.plugin").warning("plugin %s: %s; %s", record.entry_point, record.reason, record.remedy)


def _home() -> Path | None:
    try:
        from pynchy.home import pynchy_home

        return pynchy_home()
    except (ImportError, RuntimeError):  # no platformdirs, or nobody's home: nothing is remembered
        return None


class _Disabled:
    """What the user has switched off."""

    def __init__(self) -> None:
        self._names = {_normal(name) for name in os.environ.get(DISABLED, "").split(",") if name.strip()}
        self._safe_mode = os.environ.get(SAFE_MODE, "").strip() not in ("", "0")

    def why(self, record: PluginRecord) -> tuple[str, str] | None:
        """Reason and remedy where the plugin may not be loaded."""
        if self._safe_mode and _normal(record.distribution) not in FIRST_PARTY:
            return "not loaded in safe mode", "start without --safe-mode to have it"
        if self._names and self._names & {_normal(record.entry_point), _normal(record.distribution)}:
            return f"{DISABLED} names it", "take it out of that variable to have it"
        return None


def _normal(name: str) -> str:
    """A name as package indexes compare them."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _died(record: PluginRecord) -> PluginRecord:
    return replace(
        record,
        state=State.FAILED,
        phase="load",
        reason="an earlier start died while it was being loaded, so it is left out",
        remedy=f"`pynchy plugins check {record.entry_point}` tries it again; else update or uninstall "
        f"{record.distribution or record.target}",
    )


def readable_entry_points(group: str) -> tuple[list[EntryPoint], list[PluginRecord]]:
    """A group's entry points by name, and a record of each distribution whose own cannot be read."""
    try:
        found, unreadable = list(entry_points(group=group)), []
    except Exception:
        found, unreadable = _one_by_one(group)
    return sorted(found, key=lambda ep: (ep.name, ep.value)), unreadable


def _one_by_one(group: str) -> tuple[list[EntryPoint], list[PluginRecord]]:
    """The same one by one, so that a distribution with broken metadata is missed alone."""
    found: list[EntryPoint] = []
    unreadable: list[PluginRecord] = []
    seen: set[str] = set()
    for dist in distributions():
        record = PluginRecord("", "", State.FAILED, phase="find", dist=dist)
        name = record.distribution
        if name and _normal(name) in seen:
            continue  # of two distributions of one name the first on the path counts
        seen.add(_normal(name))
        try:
            found += dist.entry_points.select(group=group)
        except Exception as error:
            reason = f"its entry_points.txt cannot be read: {in_words(error)}"
            remedy = f"reinstall or uninstall {name or 'it'}"
            unreadable.append(replace(record, entry_point=name, reason=reason, remedy=remedy))
    return found, unreadable


def _discover_one(
    entry_point: EntryPoint, record: PluginRecord, registry: PluginRegistry, holders: _Holders
) -> PluginRecord:
    started = imported = perf_counter()
    phase = "load"
    try:
        if not entry_point.pattern.match(entry_point.value):
            raise InvalidPlugin(f"the entry point's value {entry_point.value!r} names no object", _ENTRY_POINT)
        loaded = entry_point.load()
        imported = perf_counter()
        phase = "create"
        plugin = loaded()
        phase = "collect"
        offer = _collect(plugin)
        record = replace(record, name=offer.name, types=tuple(offer.offers), offers=offer.offers, note=offer.note)
        phase = "register"
        holders.take(offer, record)
        _register(offer, registry)
    except KeyboardInterrupt:
        raise
    except InvalidPlugin as error:
        state = State.CONFLICT if isinstance(error, _Conflict) else State.INVALID
        # A plugin may raise it as well, and in its own way.
        record = replace(record, state=state, reason=in_words(error), remedy=_said_remedy(error) or _remedy(record))
    except ModuleNotFoundError as error:
        package = record.distribution or record.target.split(":")[0]
        missing = f"install what is missing, or reinstall {package}"
        record = replace(record, state=State.FAILED, reason=_one_line(error, phase), remedy=missing)
    except BaseException as error:
        # SystemExit and the like are a plugin's failure, not the host's end.
        record = replace(record, state=State.FAILED, reason=_one_line(error, phase), remedy=_remedy(record))
    milliseconds = (imported - started) * 1000
    if milliseconds > SLOW_IMPORT and not record.note:
        slow = f"its import takes {milliseconds:.0f} ms: `pynchy plugins check {record.entry_point}` says of what"
        record = replace(record, note=slow)
    return replace(
        record,
        phase=phase,
        milliseconds=round((perf_counter() - started) * 1000, 2),
        import_milliseconds=round(milliseconds, 2),
    )


def _collect(plugin: Any) -> _Offer:
    """Ask the plugin for everything that can be asked now, and validate all of it."""
    types = tuple(word for word, plugin_type in PLUGIN_TYPES if isinstance(plugin, plugin_type))
    if not types:
        raise InvalidPlugin(
            f"{type(plugin).__name__} extends no plugin type",
            "derive it from RuntimePlugin, ChannelPlugin, McpPlugin, SkillPlugin, HookPlugin or ToolPlugin",
        )
    name = check_name(plugin)
    packages = own_packages(plugin)
    offers: dict[str, tuple[str, ...]] = dict.fromkeys(types, ())
    matches, note = True, ""
    if isinstance(plugin, RuntimePlugin):
        matches, note = _platform(plugin)
    if isinstance(plugin, McpPlugin):
        spec = check_server_spec(plugin.mcp_server_spec(), packages)
        offers["mcp"] = (spec.name,)
        if spec.folders:
            shown = sentence(f"agents can read {', '.join(map(str, spec.folders.values()))}", 480)
            note = f"{note}; {shown}" if note else shown
    if isinstance(plugin, SkillPlugin):
        offers["skills"] = tuple(path.name for path in check_skill_paths(plugin.skill_paths(), packages))
    if isinstance(plugin, HookPlugin):
        offers["hooks"] = tuple(check_hooks(plugin.agent_hooks(), packages))
    if isinstance(plugin, ToolPlugin):
        offers["tools"] = tuple(tool.name for tool in check_tools(plugin.tools()))
        if offers["tools"] and tool_prefix(name) in map(tool_prefix, offers.get("mcp", ())):
            raise InvalidPlugin(
                f"the tools of its MCP server and its host tools would all be called {tool_prefix(name)}*",
                "give the server another name than the plugin",
            )
    return _Offer(plugin, name, offers, matches, note)


def _platform(plugin: RuntimePlugin) -> tuple[bool, str]:
    matches = bool(plugin.platform_matches())
    priority = plugin.priority
    if not isinstance(priority, int):
        raise InvalidPlugin(f"its priority is {priority!r}", "return a whole number from `priority`")
    reason = str(plugin.platform_reason)
    if matches:
        return True, reason
    return False, "does not match this platform" + (f": {reason}" if reason else "")


def _source(record: PluginRecord) -> str:
    return record.distribution or record.target


class _Holders:
    """Who has which name. Names of plugins and servers are the beginnings of their tools' names."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._prefixes: dict[str, str] = {tool_prefix(OWN_SERVER): ""}

    def take(self, offer: _Offer, record: PluginRecord) -> None:
        """Give the plugin its names; _Conflict where another has one, or one whose tools could be taken for its."""
        if holder := self._names.get(offer.name):
            raise _Conflict(
                f"the name {offer.name!r} already belongs to the plugin of entry point {holder!r}",
                f"uninstall one of the two ({_source(record)} is this one), or rename one",
            )
        prefixes = sorted({tool_prefix(name) for name in (offer.name, *offer.offers.get("mcp", ()))})
        for prefix in prefixes:
            for taken, holder in self._prefixes.items():
                if prefix.startswith(taken) or taken.startswith(prefix):
                    others = f"those of the plugin of entry point {holder!r}" if holder else "our own"
                    raise _Conflict(
                        f"its tools would be called {prefix}*, as {others} are ({taken}*)",
                        f"uninstall one of the two ({_source(record)} is this one), or give its server another name",
                    )
        self._names[offer.name] = record.entry_point
        self._prefixes |= dict.fromkeys(prefixes, record.entry_point)


def _register(offer: _Offer, registry: PluginRegistry) -> None:
    plugin = offer.plugin
    registry.names[id(plugin)] = offer.name
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
    return f"{doing.get(phase, phase)} raised {in_words(error)}"


def _remedy(record: PluginRecord) -> str:
    package = record.distribution or record.target.split(":")[0]
    return f"update or uninstall {package}, or report it to its author"


def _said_remedy(error: InvalidPlugin) -> str:
    try:
        return sentence(error.remedy)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return ""
