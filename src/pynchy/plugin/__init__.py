"""What a plugin author imports: the contracts, the specs they return, and discovery.

A plugin is a Python package with an entry point in the group `pynchy.plugins` that names a class derived from
one or more of the plugin types below. Installing the package activates it at the next start, uninstalling it
removes it. Everything here needs the standard library alone.
"""

from pynchy.plugin._contracts import (
    GATING_EVENTS,
    HOOK_EVENTS,
    AgentHook,
    ChannelPlugin,
    HookItem,
    HookPlugin,
    HostTool,
    McpPlugin,
    McpServerSpec,
    PluginContext,
    RuntimePlugin,
    SkillPlugin,
    ToolCall,
    ToolPlugin,
)
from pynchy.plugin._discovery import GROUP, GROUP_OF_COMMANDS, discover_plugins
from pynchy.plugin._errors import InvalidPlugin
from pynchy.plugin._oci import OciRuntime
from pynchy.plugin._registry import PluginRecord, PluginRegistry, State
from pynchy.plugin._runtimes import (
    Candidate,
    ContainerRuntime,
    RuntimeUnavailable,
    runtime_candidates,
    select_runtime,
)
from pynchy.plugin._settings import plugin_config, plugin_data_dir
from pynchy.types import (
    Attachment,
    Channel,
    Group,
    NewMessage,
    NotConnected,
    Refused,
    RunSpec,
    VolumeMount,
    tool_prefix,
)

__all__ = [
    "GATING_EVENTS",
    "GROUP",
    "GROUP_OF_COMMANDS",
    "HOOK_EVENTS",
    "AgentHook",
    "Attachment",
    "Candidate",
    "Channel",
    "ChannelPlugin",
    "ContainerRuntime",
    "Group",
    "HookItem",
    "HookPlugin",
    "HostTool",
    "InvalidPlugin",
    "McpPlugin",
    "McpServerSpec",
    "NewMessage",
    "NotConnected",
    "OciRuntime",
    "PluginContext",
    "PluginRecord",
    "PluginRegistry",
    "Refused",
    "RunSpec",
    "RuntimePlugin",
    "RuntimeUnavailable",
    "SkillPlugin",
    "State",
    "ToolCall",
    "ToolPlugin",
    "VolumeMount",
    "discover_plugins",
    "plugin_config",
    "plugin_data_dir",
    "runtime_candidates",
    "select_runtime",
    "tool_prefix",
]
