"""The host's side: one class a plugin type, and one that is several at once."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pynchy.plugin import (
    AgentHook,
    ChannelPlugin,
    HookItem,
    HookPlugin,
    HostTool,
    McpPlugin,
    McpServerSpec,
    NewMessage,
    PluginContext,
    SkillPlugin,
    ToolCall,
    ToolPlugin,
)
from pynchy_sample import hooks

HERE = Path(__file__).parent
#: Where the host tool finds its secret; it must not be found inside a container.
SECRET_VARIABLE = "PYNCHY_VAULT_SECRET"


class Shelf(McpPlugin):
    """A server in the plan's own shape: notes that outlive it, and what it sees of its environment."""

    name = "shelf"

    def mcp_server_spec(self) -> McpServerSpec:
        return McpServerSpec(
            name="shelf",
            command="python",
            args=["-m", "pynchy_sample.mcp"],
            env={"SHELF_COLOUR": "green"},
            host_source=HERE,
        )


class Broken(McpPlugin):
    """A server that does not start."""

    name = "broken"

    def mcp_server_spec(self) -> McpServerSpec:
        return McpServerSpec("broken", "python", ["-m", "pynchy_sample.not_there"], {}, HERE)


class Manners(SkillPlugin):
    """A skill with a file of its own."""

    name = "manners"

    def skill_paths(self) -> list[Path]:
        return [HERE / "skills" / "sample-manners"]


class Watch(HookPlugin):
    """Hooks that leave marks in the group's folder, one that denies, and some that fail."""

    name = "watch"

    def agent_hooks(self) -> Mapping[str, list[HookItem]]:
        return {
            "PreToolUse": [
                hooks.mark,
                AgentHook(hooks.forbid, matcher="Bash"),
                AgentHook(hooks.raises, matcher="Write"),
                AgentHook(hooks.raises, matcher="Edit", fail_closed=True),
                AgentHook("pynchy_sample.hooks:hangs", matcher="Glob", timeout=0.5),
                AgentHook("pynchy_sample.hooks:dies", matcher="Grep"),
            ],
            "PostToolUse": ["pynchy_sample.hooks:mark"],
            "Stop": [hooks.mark],
            "UserPromptSubmit": [hooks.mark],
        }


class Vault(ToolPlugin):
    """Host tools, of which one knows a secret."""

    name = "vault"

    def tools(self) -> list[HostTool]:
        nothing = {"type": "object", "properties": {}, "additionalProperties": False}
        word = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
        return [
            HostTool("sign", "Sign a word with the secret.", word, _sign),
            HostTool("sleep", "Take too long.", nothing, _sleep, timeout=0.2),
            HostTool("fail", "Fail.", nothing, _fail),
            HostTool("leave", "End the process.", nothing, _leave),
            HostTool("refuse", "Refuse.", nothing, _refuse),
            HostTool("count", "Answer with a number.", nothing, _count),  # pyright: ignore[reportArgumentType]
        ]


async def _sign(arguments: dict[str, Any], call: ToolCall) -> str:
    secret = os.environ[SECRET_VARIABLE]
    return f"{arguments['word']} is signed with {len(secret)} characters"


async def _sleep(arguments: dict[str, Any], call: ToolCall) -> str:
    await asyncio.Event().wait()
    return "never"


async def _fail(arguments: dict[str, Any], call: ToolCall) -> str:
    raise RuntimeError(f"a secret in an error: {os.environ[SECRET_VARIABLE]}")


async def _leave(arguments: dict[str, Any], call: ToolCall) -> str:
    raise SystemExit(3)


async def _refuse(arguments: dict[str, Any], call: ToolCall) -> str:
    raise PermissionError("not on a Sunday")


async def _count(arguments: dict[str, Any], call: ToolCall) -> Any:
    return 7


class Pigeon:
    """A channel in this process: what a test puts in arrives, what is sent can be looked at."""

    name = "pigeon"
    max_message_length = 60

    def __init__(self, context: PluginContext) -> None:
        self.context = context
        self.sent: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.typing: list[bool] = []
        self.failures: list[BaseException] = []
        self.connections = 0
        self._connected = False
        self._count = 0

    async def connect(self) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.connections += 1
        self._connected = True

    async def disconnect(self) -> None:
        self._connected = False

    def is_connected(self) -> bool:
        return self._connected

    def owns_jid(self, jid: str) -> bool:
        return jid.startswith("pigeon:")

    async def send_message(self, jid: str, text: str) -> None:
        await self.sent.put((jid, text))

    async def set_typing(self, jid: str, on: bool) -> None:
        self.typing.append(on)

    async def sync_metadata(self) -> None:
        await self.context.on_chat_metadata("pigeon:loft", "The loft")

    async def arrive(self, text: str, jid: str = "pigeon:loft", **changes: Any) -> None:
        """A message comes in; returns once the host has it."""
        self._count += 1
        values: dict[str, Any] = {
            "id": f"{jid}-{self._count}",
            "chat_jid": jid,
            "sender": "ada",
            "sender_name": "Ada",
            "content": text,
            "timestamp": datetime.now(UTC),
        }
        await self.context.on_message(NewMessage(**{**values, **changes}))


class PigeonPost(ChannelPlugin):
    """Remembers its channel, for the test to use."""

    name = "pigeon"

    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self.channel: Pigeon | None = None

    def create_channel(self, ctx: PluginContext) -> Pigeon:
        self.channel = Pigeon(ctx)
        self.channel.failures = self.failures
        return self.channel


class Everything(Shelf, Manners, Watch, Vault, PigeonPost):
    """All of it in one plugin."""

    name = "everything"

    def mcp_server_spec(self) -> McpServerSpec:
        spec = super().mcp_server_spec()
        return McpServerSpec("everything-shelf", spec.command, spec.args, spec.env, spec.host_source)


def marks(folder: Path) -> list[dict[str, Any]]:
    """What the hooks have written."""
    path = folder / "marks"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
