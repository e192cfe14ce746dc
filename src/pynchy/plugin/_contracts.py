"""The plugin types: one abstract base class each, combined by multiple inheritance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pynchy.types import Attachment, Channel, Group, NewMessage

if TYPE_CHECKING:
    import logging

    from pynchy.plugin._runtimes import ContainerRuntime

#: The events of an agent's life that hooks can be given for, as the Claude Agent SDK names them.
HOOK_EVENTS = frozenset(
    {
        "PreToolUse",
        "PostToolUse",
        "PostToolUseFailure",
        "UserPromptSubmit",
        "Stop",
        "SubagentStart",
        "SubagentStop",
        "PreCompact",
        "Notification",
        "PermissionRequest",
    }
)
#: Those whose hooks decide whether something happens at all.
GATING_EVENTS = frozenset({"PreToolUse", "PermissionRequest"})


@dataclass(frozen=True)
class McpServerSpec:
    """An MCP server that runs inside the container, beside the agent.

    `host_source` is the directory with the server's code, inside the plugin's own package. A package (it has
    an `__init__.py`) is mounted read-only at `/workspace/plugins/{name}/{package}`, any other directory at
    `/workspace/plugins/{name}`; `/workspace/plugins/{name}` is put first on the server's `PYTHONPATH`. What the
    server may write and finds again at its next start is the folder named in its variable `PYNCHY_DATA`, one a
    plugin and group. The agent can read `env`: a secret does not belong there.

    `folders` are others that the server reads, a model or a dictionary, wherever the host has them: each is mounted
    read-only at `/workspace/plugins/{name}/{key}`, beside the package, and the agent can read it.
    """

    name: str
    command: str
    args: list[str]
    env: dict[str, str] = field(repr=False)  # it may hold a key all the same, and reprs end up in logs
    host_source: Path
    folders: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolCall:
    """Whose agent calls a host tool, and the file that the call names, where the tool takes one and it does.

    The file's name is printable and without a folder; it is as untrusted as its bytes, which are in `data`.
    """

    group: Group
    file: Attachment | None = None


@dataclass(frozen=True)
class HostTool:
    """A tool that the agent calls and the host runs, with the host's rights and secrets.

    `input_schema` is a JSON Schema object; `handler` gets the checked arguments and whose they are, and returns the
    text the agent sees. A ValueError or PermissionError that it raises reaches the agent in its words, anything else
    only by its type. A call that takes longer than `timeout` seconds is cancelled. `file` is the name of a string
    argument that is a path in the agent's container: the file there, of at most 45 MB, comes with the call. `chats`
    is how the addresses begin of the chats whose agents get the tool, beside the main chat's; None for all.
    """

    name: str
    description: str
    input_schema: Mapping[str, Any]
    handler: Callable[[dict[str, Any], ToolCall], Awaitable[str]]
    timeout: float = 60.0
    file: str | None = None
    chats: str | None = None


@dataclass(frozen=True)
class AgentHook:
    """A hook with more than its function: which tools it is for, how long it may take, what its failure means.

    `function` is a module-level function of the plugin's package or its name, `"package.module:function"`.
    It is called as the SDK calls its hooks, `await function(input, tool_use_id, context)`, and returns the
    SDK's answer (`{}` or None for none); a plain function will do. `matcher` is a regular expression for a
    tool's name, None for all. A call that takes longer than `timeout` seconds (at most 50) ends the plugin's
    hook process; with `fail_closed`, for `PreToolUse` and `PermissionRequest`, a hook that raises, hangs or
    cannot be imported denies what it was asked about, otherwise it is skipped.
    """

    function: Callable[..., Any] | str
    matcher: str | None = None
    timeout: float = 10.0
    fail_closed: bool = False


#: What `agent_hooks` lists for an event.
HookItem: TypeAlias = Callable[..., Any] | str | AgentHook


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
    def agent_hooks(self) -> Mapping[str, list[HookItem]]:
        """Return `{event: [function, "package.module:function" or AgentHook, ...]}`.

        The events are those of `HOOK_EVENTS`; functions must be module-level ones of the plugin's own package,
        for the container imports them by name.
        """


class ToolPlugin(ABC):
    """Tools for the agent that run on the host, for those that need a secret or the machine."""

    name: str

    @abstractmethod
    def tools(self) -> list[HostTool]:
        """Return the tools; the agent sees each as `mcp__{plugin}__{tool}`."""
