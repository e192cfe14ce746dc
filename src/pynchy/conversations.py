"""A group's agent, from its pending messages to their recorded answers.

The room between queue, store and container: it claims what is pending, starts or reuses the agent, and
records what came of it, so that every message ends as done or failed and every failure is a notice.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable

import structlog

from pynchy.config import Settings
from pynchy.container_runner import AgentFailed, AgentRun, Limits
from pynchy.group_queue import Place, Wake
from pynchy.host_tools import GroupHost
from pynchy.model_gateway import ModelGateway
from pynchy.plugin import ContainerRuntime, PluginRegistry
from pynchy.router import format_prompt, visible_text
from pynchy.runtime import agent_image
from pynchy.store import Store, StoredMessage
from pynchy.types import ContainerInput, ContainerOutput, Group, RunSpec
from pynchy.workspace import AgentPlugins, group_folder, group_mounts, plugin_parts, stage_runner

log = structlog.get_logger(__name__)

#: Messages answered in one go, and roughly how long their texts may be together, in characters.
_BATCH = 50
#: Labels that say whose containers these are.
LABEL_INSTALLATION = "io.pynchy.installation"
LABEL_GROUP = "io.pynchy.group"

#: What the SDK says when a conversation cannot be resumed.
_LOST_SESSION = ("no conversation found", "session id")

_GATEWAY_HINT = re.compile(r"If it persists, check your inference gateway \([^)]*\)\.?")

Settled = Callable[[tuple[int, ...], str | None], None]


class Conversations:
    """Everything that a group's run needs, for all groups. `work` is what the queue runs."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        gateway: ModelGateway,
        runtime: ContainerRuntime,
        registry: PluginRegistry,
        wake_outbox: Callable[[], None],
        settled: Settled,
    ) -> None:
        self._settings = settings
        self._store = store
        self._gateway = gateway
        self._runtime = runtime
        self._registry = registry
        self._wake_outbox = wake_outbox
        self._settled = settled
        self._runner_dir = stage_runner(settings.home)
        self._limits = Limits(start=settings.start_timeout, answer=settings.hard_timeout)

    async def work(self, place: Place) -> None:
        """Answer a group's messages until it has none for a while, or its place is needed."""
        group = (await self._store.groups()).get(place.jid)
        if group is None:
            return
        run: AgentRun | None = None
        try:
            while True:
                place.has_work.clear()
                messages = await self._store.claim(group.jid, _BATCH)
                if messages:
                    run = await self._answer(group, run, messages)
                elif run is None:
                    return  # without an agent there is nothing to keep a place for
                elif await place.idle(self._settings.idle_timeout) is Wake.LEAVE:
                    return
        finally:
            if run:
                await run.close()

    async def _answer(self, group: Group, run: AgentRun | None, messages: list[StoredMessage]) -> AgentRun | None:
        """Have these messages answered and record it; returns the agent if it can go on."""
        ids = tuple(message.id for message in messages)
        prompt = format_prompt(messages)
        try:
            try:
                if run and run.alive:
                    output = await run.answer(prompt, ids)
                else:
                    plugins = plugin_parts(self._registry)
                    run = self._new_run(group, plugins)
                    output = await run.start(await self._input(group, prompt, plugins), ids)
            except AgentFailed as failure:
                log.warning("an agent failed", group=group.folder, reason=str(failure))
                await self._record_failure(group, ids, str(failure), failure.tools_used)
            else:
                await self._record(group, output)
                if run.alive:
                    return run
        except BaseException:
            # Stopped, or something of ours broke: the messages stay open for the next run.
            if run:
                await run.kill()
            await self._store.release(ids)
            raise
        if run:
            await run.kill()
        return None

    def _new_run(self, group: Group, plugins: AgentPlugins) -> AgentRun:
        owner = agent_owner(self._settings)
        folder = group_folder(self._settings.home, group, owner)
        spec = RunSpec(
            mounts=(*group_mounts(folder, self._runner_dir), *plugins.mounts),
            container_name=f"{container_prefix(self._store)}{group.folder[:40]}-{uuid.uuid4().hex[:8]}",
            image=agent_image(),
            labels={LABEL_INSTALLATION: self._store.installation_id, LABEL_GROUP: group.folder},
            user=owner,
        )
        host = GroupHost(group, self._store, self._gateway, self._wake_outbox)
        return AgentRun(self._runtime, spec, host, self._limits)

    async def _input(self, group: Group, prompt: str, plugins: AgentPlugins) -> ContainerInput:
        return ContainerInput(
            prompt=prompt,
            group_folder=group.folder,
            chat_jid=group.jid,
            is_main=group.is_main,
            session_id=await self._store.session(group.jid),
            plugin_mcp_servers=plugins.mcp_servers or None,
            assistant_name=self._settings.assistant_name,
            model=self._settings.model,
        )

    async def _record(self, group: Group, output: ContainerOutput) -> None:
        if output.error is not None:
            if any(words in output.error.lower() for words in _LOST_SESSION):
                await self._store.clear_session(group.jid)
            await self._record_failure(group, output.ids, output.error, output.tools_used)
            return
        reply = visible_text(output.text)
        await self._store.complete(group.jid, output.ids, reply, output.session_id)
        self._wake_outbox()
        self._settled(output.ids, None)

    async def _record_failure(self, group: Group, ids: tuple[int, ...], reason: str, tools_used: bool) -> None:
        notice = f"I could not answer: {_plain(reason)}."
        if tools_used:
            notice += " I may have done a part of it already; look before you ask again."
        else:
            notice += " Nothing was done. Send it again to have me try again."
        await self._store.fail(group.jid, ids, reason, notice)
        self._wake_outbox()
        self._settled(ids, reason)


def container_prefix(store: Store) -> str:
    """How the names of all containers of this installation begin, and of no other's."""
    return f"pynchy-{store.installation_id}-"


def _plain(reason: str) -> str:
    """A reason as people may read it: the SDK knows the model's API as an address inside the container."""
    return _GATEWAY_HINT.sub("", reason).rstrip(" .")


def agent_owner(settings: Settings) -> tuple[int, int]:
    """Whom agents run as: this user, or where that is root, a uid that is nobody's."""
    if os.geteuid() == 0:
        return settings.agent_uid, settings.agent_uid
    return os.geteuid(), os.getegid()
