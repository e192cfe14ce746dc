"""One group's end of the wire: everything that its agent can reach of the host, and for whom it is done.

Whatever comes through the pipe of a group's container is that group's. A plugin's tool can be called only by the
agents of groups that have the plugin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from pynchy.agent_plugins import AgentPlugins
from pynchy.costs import Costs
from pynchy.credential import Credential
from pynchy.egress import Egress
from pynchy.host_tools import HostTools, with_file
from pynchy.model_gateway import ModelFailure, ModelGateway
from pynchy.plugin import HostTool, ToolCall
from pynchy.plugin._validation import compile_schema
from pynchy.plugin_calls import PluginRaised, ask_async
from pynchy.plugin_reports import PluginReports
from pynchy.router import visible_text
from pynchy.store import Store
from pynchy.tunnel import Tunnel
from pynchy.types import Attachment, ContainerOutput, Group, PluginReport
from pynchy.wire import Frame, FrameWriter

log = structlog.get_logger(__name__)

_MAX_ANSWER = 1_000_000  # characters, of a plugin's tool


class GroupHost:
    """Everything that one group's agent can reach of the host. `group` is as it is now, whenever it is asked."""

    def __init__(
        self,
        group: Callable[[], Group],
        store: Store,
        gateway: ModelGateway,
        credential: Credential,
        wake_outbox: Callable[[], None],
        reports: PluginReports,
        egress: Egress,
        tools: HostTools,
        costs: Costs,
    ) -> None:
        self._ask_group = group
        self._egress = egress
        self._tools = tools
        self._costs = costs
        self._reports = reports
        self._store = store
        self._gateway = gateway
        self._credential = credential
        self._wake_outbox = wake_outbox
        #: What plugins have added to the agent that runs now.
        self.plugins = AgentPlugins()
        #: How the agent's last model request failed; None where it was answered.
        self.model_failure: ModelFailure | None = None

    @property
    def _group(self) -> Group:
        return self._ask_group()

    @property
    def task_id(self) -> int:
        """The scheduled task that the agent works for, 0 for the chat itself."""
        return 0

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The tools of the server `pynchy`, as the container's side is told of them."""
        return self._tools.offered_to(self._group)

    async def call_tool(self, plugin: str | None, name: str, arguments: Any, file: Attachment | None = None) -> str:
        """Run a plugin's host tool, or one of the server `pynchy`; ValueError and PermissionError are refusals."""
        if plugin is None:
            return await self._tools.call(self._group, name, arguments, file, by_task=self.task_id != 0)
        tool = self.plugins.tools.get(plugin, {}).get(name)
        if tool is None:
            raise PermissionError(f"this chat has no tool {name[:80]!r} of a plugin {plugin[:80]!r}")
        arguments = compile_schema(tool.input_schema)(with_file(arguments, tool.file, file))
        call = ToolCall(self._group, file)
        try:
            async with asyncio.timeout(tool.timeout):
                return _text(tool, await ask_async(lambda: tool.handler(arguments, call)))
        except TimeoutError:
            raise ValueError(f"{name} gave no answer within {tool.timeout:g} s, and was stopped") from None
        except PluginRaised as raised:
            log.warning("a host tool failed", plugin=plugin, tool=name, group=self._group.folder, error=str(raised))
            cause = raised.__cause__
            if isinstance(cause, ValueError | PermissionError):
                raise ValueError(str(cause)) from None
            raise ValueError(f"{name} failed ({type(cause).__name__})") from None

    async def note_plugin_parts(self, servers: Mapping[str, str], hooks: Mapping[str, str]) -> None:
        """What the agent's side says of MCP servers by name, and of hooks by plugin; an empty trouble is none."""
        given = self.plugins
        reports = [
            PluginReport(given.servers_of[name], "mcp", trouble)
            for name, trouble in servers.items()
            if name in given.servers_of
        ]
        reports += [PluginReport(name, "hooks", text) for name, text in hooks.items() if name in given.hook_plugins]
        await self._reports.note(reports)

    async def note_acting(self, ids: tuple[int, ...]) -> None:
        """From now on, repeating these messages could act twice."""
        await self._store.mark_acted(ids)

    async def unsolicited(self, output: ContainerOutput) -> None:
        """What the agent says of its own accord goes to its chat."""
        if text := visible_text(output.text):
            await self._store.enqueue(self._group.jid, text, "message", unseen=self.task_id != 0)
            self._wake_outbox()

    async def append_transcript(self, session_id: str, subpath: str, entries: list[dict[str, Any]]) -> int:
        """Store transcript entries of this group."""
        return await self._store.until_stored(
            lambda: self._store.transcripts.append(self._group.folder, session_id, subpath, entries)
        )

    async def load_transcript(
        self, session_id: str, subpath: str, after: int
    ) -> tuple[list[dict[str, Any]], int | None]:
        """A page of a transcript of this group."""
        return await self._store.transcripts.load(self._group.folder, session_id, subpath, after)

    async def transcript_subpaths(self, session_id: str) -> list[str]:
        """The sub-agent transcripts of a session of this group."""
        return await self._store.transcripts.subpaths(self._group.folder, session_id)

    async def connect(self, host: str, port: int, tunnel: Tunnel) -> None:
        """Open a connection to the internet, as far as this group's policy goes."""
        await self._egress.serve(self._group, host, port, tunnel)

    async def forward_model_request(self, frame: Frame, out: FrameWriter) -> None:
        """Answer a model request on the wire."""
        await self._gateway.forward(frame, out, self._note_model, self._costs.meter(self._group, self.task_id))

    def _note_model(self, failure: ModelFailure | None) -> None:
        self.model_failure = failure
        if failure is None:
            self._credential.accepted()


def _text(tool: HostTool, answer: Any) -> str:
    if not isinstance(answer, str):
        raise ValueError(f"{tool.name} answered with {type(answer).__name__}, not with text")
    if len(answer) > _MAX_ANSWER:
        raise ValueError(
            f"{tool.name} answered with {len(answer)} characters, more than the {_MAX_ANSWER} there can be"
        )
    return answer
