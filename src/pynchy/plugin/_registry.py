"""What discovery found: the plugins that work, and a record of every one that was looked at."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import lru_cache
from importlib.metadata import Distribution
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

#: Every plugin type with the word that lists use for it, in the order of the plan.
PLUGIN_TYPES: tuple[tuple[str, type], ...] = (
    ("runtime", RuntimePlugin),
    ("channel", ChannelPlugin),
    ("mcp", McpPlugin),
    ("skills", SkillPlugin),
    ("hooks", HookPlugin),
    ("tools", ToolPlugin),
)


class State(StrEnum):
    """How discovery of one entry point ended."""

    READY = "ready"
    DISABLED = "disabled"  # the user said so; its code was not touched
    CONFLICT = "conflict"  # its name, or its server's, was already taken
    INVALID = "invalid"  # it loaded, but what it offers cannot be used
    FAILED = "failed"  # its code raised, or ended the process


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """One entry point of the group `pynchy.plugins`, whatever became of it.

    `phase` is how far it came (find, load, create, collect, register, or a later call into it);
    `milliseconds` how long that took, of which `import_milliseconds` its import. `reason` says what is wrong
    and `remedy` what to do, each one sentence; both are empty for a ready plugin. `note` is what a ready plugin
    has to say, such as why a runtime does not match here. `offers` maps the words of `types` to names: its
    server, skills, hooks' events, tools.
    """

    entry_point: str
    target: str
    state: State
    name: str = ""
    types: tuple[str, ...] = ()
    phase: str = ""
    reason: str = ""
    remedy: str = ""
    note: str = ""
    milliseconds: float = 0.0
    import_milliseconds: float = 0.0
    offers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dist: Distribution | None = field(default=None, repr=False, compare=False)

    # Read when asked for: each means a file or two, and the way to a first answer has no use for them.

    @property
    def distribution(self) -> str:
        """The name of the distribution it comes from; empty where that cannot be read."""
        return _read(lambda dist: _name_and_version(dist)[0], self.dist)

    @property
    def version(self) -> str:
        """That distribution's version; empty where it cannot be read."""
        return _read(lambda dist: _name_and_version(dist)[1], self.dist)

    @property
    def origin(self) -> str:
        """How it was installed, by PEP 610: `index`, `editable PATH`, `git URL`, or the URL itself."""
        return _read(lambda dist: _origin(dist.read_text("direct_url.json")), self.dist)

    def to_dict(self) -> dict[str, Any]:
        """A JSON object with everything there is to know."""
        plain = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "dist"}
        return {
            **plain,
            "types": list(self.types),
            "offers": {word: list(names) for word, names in self.offers.items()},
            "distribution": self.distribution,
            "version": self.version,
            "origin": self.origin,
        }


def _read(what: Callable[[Distribution], str], dist: Distribution | None) -> str:
    try:
        return "" if dist is None else what(dist)
    except Exception:  # broken metadata
        return ""


@lru_cache
def _name_and_version(dist: Distribution) -> tuple[str, str]:
    metadata = dist.metadata  # parsed anew at each look
    return metadata["Name"] or "", metadata["Version"] or ""


def _origin(direct_url: str | None) -> str:
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


@dataclass
class PluginRegistry:
    """The plugins that can be used, by type, and the records of all that were found.

    A composite plugin stands in several lists. `runtimes` holds those that match this platform,
    `unmatched_runtimes` the others, which only `CONTAINER_RUNTIME` can choose.
    """

    runtimes: list[RuntimePlugin] = field(default_factory=list)
    channels: list[ChannelPlugin] = field(default_factory=list)
    mcp_servers: list[McpPlugin] = field(default_factory=list)
    skills: list[SkillPlugin] = field(default_factory=list)
    hooks: list[HookPlugin] = field(default_factory=list)
    tools: list[ToolPlugin] = field(default_factory=list)
    unmatched_runtimes: list[RuntimePlugin] = field(default_factory=list)
    records: list[PluginRecord] = field(default_factory=list)
    #: The names that plugins had when they were registered, by their identity: a later answer counts for nothing.
    names: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    def name_of(self, plugin: Any) -> str:
        """The name under which a plugin was registered."""
        return self.names.get(id(plugin)) or str(plugin.name)

    def record_of(self, name: str) -> PluginRecord | None:
        """The record of the registered plugin of that name."""
        return next((record for record in self.records if record.name == name and record.state is State.READY), None)

    def fail(self, name: str, phase: str, reason: str) -> None:
        """Record that a later call into the ready plugin `name` failed."""
        if record := self.record_of(name):
            remedy = f"update or uninstall {record.distribution or name}"
            failed = replace(record, state=State.FAILED, phase=phase, reason=reason, remedy=remedy)
            self.records = [failed if old is record else old for old in self.records]
