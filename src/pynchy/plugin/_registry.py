"""What discovery found: the plugins that work, and a record of every one that was looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

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
    CONFLICT = "conflict"  # its name, or its server's, was already taken
    INVALID = "invalid"  # it loaded, but what it offers cannot be used
    FAILED = "failed"  # its code raised


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """One entry point of the group `pynchy.plugins`, whatever became of it.

    `phase` is how far it came (find, load, create, collect, register), `milliseconds` how long that took. `reason`
    says what is wrong and `remedy` what to do, each one sentence; both are empty for a ready plugin.
    `note` is what a ready plugin has to say, such as why a runtime does not match here.
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
    distribution: str = ""
    version: str = ""
    origin: str = ""

    def to_dict(self) -> dict[str, Any]:
        """A JSON object with every field."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in ((name, getattr(self, name)) for name in self.__slots__)
        }


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

    def replace_record(self, name: str, record: PluginRecord) -> None:
        """Put a newer record in the place of the ready one of plugin `name`."""
        self.records = [record if old.name == name and old.state is State.READY else old for old in self.records]
