"""The plugin types: one abstract base class each, combined by multiple inheritance."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynchy.types import Channel, Group, NewMessage

if TYPE_CHECKING:
    from pynchy.plugin._runtimes import ContainerRuntime


@dataclass(frozen=True)
class McpServerSpec:
    """An MCP server that runs inside the container, beside the agent.

    `host_source` is the directory with the server's code. A package (it has an `__init__.py`) is mounted
    read-only at `/workspace/plugins/{name}/{package}`, any other directory at `/workspace/plugins/{name}`;
    `/workspace/plugins/{name}` is put first on the server's `PYTHONPATH`. The agent can read `env`: a secret
    does not belong there.
    """

    name: str
    command: str
    args: list[str]
    env: dict[str, str]
    host_source: Path


@dataclass(frozen=True)
class HostTool:
    """A tool that the agent calls and the host runs, with the host's rights and secrets.

    `input_schema` is a JSON Schema object; `handler` gets the checked arguments and returns the text the agent
    sees. What it raises reaches the agent as an error.
    """

    name: str
    description: str
    input_schema: Mapping[str, Any]
    handler: Callable[[dict[str, Any]], Awaitable[str]]


@dataclass(frozen=True)
class PluginContext:
    """What the host hands a channel plugin.

    `on_message` returns once the message is stored: only then may the channel acknowledge it upstream.
    `config` holds the plugin's own settings, `PYNCHY_<NAME>_*`, keys lower-case without that prefix.
    `data_dir` is the plugin's own folder, readable by the host's user alone.
    """

    send_message: Callable[[str, str], Awaitable[None]]
    registered_groups: Callable[[], Mapping[str, Group]]
    config: Mapping[str, str]
    on_message: Callable[[NewMessage], Awaitable[None]]
    on_chat_metadata: Callable[[str, str], Awaitable[None]]
    data_dir: Path
    log: logging.Logger


class RuntimePlugin(ABC):
    """Another container runtime than Docker."""

    name: str

    @abstractmethod
    def create_runtime(self) -> ContainerRuntime:
        """Return the runtime. Called when this plugin has been chosen."""

    def platform_matches(self) -> bool:
        """Whether this runtime can be used on this machine. Called during discovery, so it must be quick."""
        return True

    @property
    def platform_reason(self) -> str:
        """Why `platform_matches` says what it says, in a few words for `pynchy doctor`."""
        return ""

    @property
    def priority(self) -> int:
        """The highest of the matching runtimes is used; Docker has 0. Ties are decided by name."""
        return 10


class ChannelPlugin(ABC):
    """A messaging service. It runs on the host with the user's rights."""

    name: str

    @abstractmethod
    def create_channel(self, ctx: PluginContext) -> Channel:
        """Return the channel, not yet connected. Import host-only libraries here, not at the top."""


class McpPlugin(ABC):
    """Tools for the agent, from an MCP server inside its container."""

    name: str

    @abstractmethod
    def mcp_server_spec(self) -> McpServerSpec:
        """Describe the server."""


class SkillPlugin(ABC):
    """Instructions for the agent."""

    name: str

    @abstractmethod
    def skill_paths(self) -> list[Path]:
        """Return directories, each holding a `SKILL.md`."""


class HookPlugin(ABC):
    """Code that runs at events of the agent's life, inside its container."""

    name: str

    @abstractmethod
    def agent_hooks(self) -> dict[str, list[Callable[..., Any] | str]]:
        """Return `{event: [function or "package.module:function"]}`; functions must be module-level."""


class ToolPlugin(ABC):
    """Tools for the agent that run on the host, for those that need a secret or the machine."""

    name: str

    @abstractmethod
    def tools(self) -> list[HostTool]:
        """Return the tools; the agent sees each as `mcp__{plugin}__{tool}`."""
