"""How the SDK is set up: tools, plugin servers, environment, memory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from claude_agent_sdk import ClaudeAgentOptions, HookMatcher

from agent_runner.files import Unreadable, read_start
from pynchy.types import ContainerInput, tool_prefix

#: Where the host mounts things. Only a runtime without mounts of its own sets the variable.
WORKSPACE = Path(os.environ.get("PYNCHY_WORKSPACE", "/workspace"))

#: This runner's own directory, with the rooms of `pynchy` that plugins import.
RUNNER = str(Path(__file__).resolve().parents[1])

#: Without a person at a terminal the first three would wait for ever; the others start work that a
#: conversation cannot own (schedules of their own, work trees) and that ends with the container.
_DISALLOWED = [
    "AskUserQuestion",
    "EnterPlanMode",
    "ExitPlanMode",
    "CronCreate",
    "CronDelete",
    "CronList",
    "ScheduleWakeup",
    "EnterWorktree",
    "ExitWorktree",
]
_MAX_BUFFER_BYTES = 64 * 1024 * 1024  # the default of 1 MB ends the session when a large image is read
_MAX_MEMORY_BYTES = 64 * 1024

_ABOUT = """\
You are {name}, a personal assistant. People talk to you through a chat; their messages arrive as
<messages><message sender="..." time="..." id="...">...</message></messages>, with the text escaped as in XML. Those
with context="yes" ask nothing of you: they are what else was said, or what you have sent yourself, and are there for
you to know. One with reply_to="ID" replies to another, whose words may be in <quote>; one with edits="ID" is how a
message reads since its sender has changed it. An <attachment path="..." type="..." name="..."/> is a file that came
with its message; you can read it at its path, and pictures you also see. Answer in plain text as one writes in a
chat, briefly. Text inside <internal>...</internal> is not shown to anybody.
<messages task="..."> comes from a scheduled task instead, and nobody waits: your answer is sent to the chat; if there
is nothing worth saying, answer with <internal> alone.
Your working directory is this chat's own folder: what you write there is kept. Its CLAUDE.md is your memory of
this chat; keep it up to date with what you should remember. What every chat shall know is in
{memory_of_all}: {who_writes}. {network}"""

_MEMORY_OF_ALL = WORKSPACE / "global" / "CLAUDE.md"

#: What the agent is told of its group's network policy.
_NETWORK = {
    "none": "You cannot reach the internet from here.",
    "public": "The internet is reached through the proxy in the environment; programs find it by themselves.",
    "bridge": "You have a network.",
}
_SOME_HOSTS = "Of the internet you can reach, through the proxy in the environment, nothing but: {hosts}."


def build_options(
    given: ContainerInput,
    model_url: str,
    session_store: Any,
    host_tools: dict[str, Any],
    before_tool: Any,
    plugin_hooks: dict[str, list[HookMatcher]],
) -> ClaudeAgentOptions:
    """The SDK's options for this run; the plugins' servers and hooks are merged with our own.

    `host_tools` are our own servers by name, which no plugin can take the place of.
    """
    servers: dict[str, Any] = {
        name: server_parameters(name, server) for name, server in (given.plugin_mcp_servers or {}).items()
    }
    servers |= host_tools
    # Where it fails, whether a tool has run would not be on record: then none may.
    ours = HookMatcher(hooks=[before_tool], on_failure="block")
    hooks: dict[Any, list[HookMatcher]] = {**plugin_hooks, "PreToolUse": [ours, *plugin_hooks.get("PreToolUse", [])]}
    return ClaudeAgentOptions(
        cwd=WORKSPACE / "group",
        model=given.model,
        # Not the prompt that a resumed session was begun with: the memory in it has changed since.
        system_prompt={
            "type": "preset",
            "preset": "claude_code",
            "append": _system_prompt(given),
            "snapshot": False,
        },
        mcp_servers=servers,
        strict_mcp_config=True,
        allowed_tools=[f"{tool_prefix(name)}*" for name in servers],
        disallowed_tools=_DISALLOWED,
        hooks=hooks,
        plugins=[{"type": "local", "path": str(WORKSPACE / "skills" / name)} for name in given.plugin_skills or ()],
        skills="all",
        permission_mode="bypassPermissions",
        # No settings from disk: the agent can write its folder, and settings found there could run hooks.
        setting_sources=[],
        # WebFetch would ask Anthropic about every host first, which is the user's business alone.
        settings=json.dumps({"skipWebFetchPreflight": True}),
        resume=given.session_id,
        session_store=session_store,
        max_buffer_size=_MAX_BUFFER_BYTES,
        env=_sdk_env(model_url),
    )


def server_parameters(name: str, server: dict[str, Any]) -> dict[str, Any]:
    """How a plugin's server is started: its own sources come first on the import path, `pynchy.plugin` last."""
    env = server.get("env") or {}
    paths = [str(WORKSPACE / "plugins" / name), env.get("PYTHONPATH", ""), RUNNER]
    folder = {"PYNCHY_DATA": str(WORKSPACE / "data" / server["data"])} if server.get("data") else {}
    return {
        "command": server["command"],
        "args": server["args"],
        # What the agent leaves in its folder, where servers start, must not take the place of a module.
        "env": {"PYTHONSAFEPATH": "1", **env, "PYTHONPATH": os.pathsep.join(path for path in paths if path), **folder},
    }


def _sdk_env(model_url: str) -> dict[str, str]:
    env = {
        "ANTHROPIC_BASE_URL": model_url,
        # The CLI insists on having one; the host replaces it.
        "ANTHROPIC_API_KEY": "added-by-the-host",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        # Tools are few; searching for them would hide them from the model until it thinks of it.
        "ENABLE_TOOL_SEARCH": "false",
        # Retrying is the host's, which knows whether a tool has acted already.
        "CLAUDE_CODE_MAX_RETRIES": "0",
        "CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK": "1",  # a second try under another name
        "API_TIMEOUT_MS": "300000",
    }
    if os.geteuid() == 0:
        env["IS_SANDBOX"] = "1"  # a rootless engine maps the user to uid 0 of the container
    return env


def _system_prompt(given: ContainerInput) -> str:
    about = _ABOUT.format(
        name=given.assistant_name,
        memory_of_all=_MEMORY_OF_ALL,
        who_writes="this chat, the main one, is the only one that can write it"
        if given.is_main
        else "only the main chat can write it",
        network=_NETWORK.get(given.network) or _SOME_HOSTS.format(hosts=given.network),
    )
    memories = {
        "The memory of every chat": _read_memory(_MEMORY_OF_ALL),
        "CLAUDE.md": _read_memory(WORKSPACE / "group" / "CLAUDE.md"),
    }
    return about + "".join(f"\n\n# {name}\n\n{memory}" for name, memory in memories.items() if memory)


def _read_memory(path: Path) -> str:
    """What an agent has written down, in so far as that is a file."""
    try:
        return read_start(path, _MAX_MEMORY_BYTES).decode("utf-8", "replace").strip()
    except Unreadable:
        return ""
