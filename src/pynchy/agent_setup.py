"""What an agent is started with: its mounts, its limits, its tools, its input."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from pynchy.agent_plugins import AgentPlugins, plugin_parts
from pynchy.agent_wire import HostServices
from pynchy.config import Settings
from pynchy.container_runner import AgentFailed, AgentRun, Limits
from pynchy.mount_security import MountRefused, extra_mounts
from pynchy.plugin import ContainerRuntime, PluginRegistry
from pynchy.plugin_reports import PluginReports
from pynchy.runtime import agent_image
from pynchy.store import Store
from pynchy.types import ContainerInput, Group, RunSpec, VolumeMount
from pynchy.workspace import group_mounts, stage_runner

_PLUGINS_ANSWER_WITHIN = 30.0  # seconds

#: Labels that say whose containers these are.
LABEL_INSTALLATION = "io.pynchy.installation"
LABEL_GROUP = "io.pynchy.group"


@contextmanager
def preparing() -> Iterator[None]:
    """What keeps an agent from being started, as AgentFailed."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise AgentFailed(f"its container could not be prepared: {error}") from error


class AgentSetup:
    """Prepares the agents of every group. `groups` are the registered ones, as they are now, by jid."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        runtime: ContainerRuntime,
        registry: PluginRegistry,
        reports: PluginReports,
        groups: Callable[[], Mapping[str, Group]],
    ) -> None:
        self.settings = settings
        self._store = store
        self._runtime = runtime
        self._registry = registry
        self._reports = reports
        self._groups = groups
        self._runner = stage_runner(settings.home)
        self._limits = Limits(start=settings.start_timeout, answer=settings.hard_timeout)
        self._asking: dict[str, asyncio.Future[AgentPlugins]] = {}
        #: The names of the containers that are in use, or about to be.
        self.containers: set[str] = set()

    async def plugins(self, group: Group) -> AgentPlugins:
        """What plugins add to a group's next agent; ValueError where one of them does not answer.

        Asked in a thread, for their code may take its time, and of each group's once at a time, for a thread
        cannot be ended.
        """
        asking = self._asking.pop(group.jid, None)
        if asking is None or asking.done():
            home, owner = self.settings.home, agent_owner(self.settings)
            asking = asyncio.ensure_future(asyncio.to_thread(plugin_parts, self._registry, home, group, owner))
        done, _ = await asyncio.wait([asking], timeout=_PLUGINS_ANSWER_WITHIN)
        if not done:
            self._asking[group.jid] = asking
            raise ValueError(f"a plugin did not say within {_PLUGINS_ANSWER_WITHIN:.0f} s what it offers")
        plugins = asking.result()
        await self._reports.note(plugins.reports)
        return plugins

    async def new_run(self, group: Group, plugins: AgentPlugins, services: HostServices) -> AgentRun:
        """An agent that can be started; OSError where its folders cannot be made, AgentFailed where it never can be."""
        if unmet := await asyncio.to_thread(_cannot, self._runtime, group):  # a runtime may have to ask the system
            raise AgentFailed(f"the runtime {self._runtime.name} {unmet}", hopeless=True)
        settings = self.settings
        spec = RunSpec(
            mounts=(*await asyncio.to_thread(self._mounts, group, list(self._groups().values())), *plugins.mounts),
            container_name=f"{container_prefix(self._store)}{group.folder[:40]}-{uuid.uuid4().hex[:8]}",
            image=agent_image(),
            labels={LABEL_INSTALLATION: self._store.installation_id, LABEL_GROUP: group.folder},
            memory_bytes=group.memory_bytes or settings.agent_memory,
            cpus=group.cpus or settings.agent_cpus,
            pids=group.pids or settings.agent_pids,
            user=agent_owner(settings),
            network="bridge" if group.network == "bridge" else "none",
        )
        self.containers.add(spec.container_name)
        return AgentRun(self._runtime, spec, services, self._limits)

    async def end_run(self, run: AgentRun) -> None:
        """End an agent, and everything in its container."""
        await run.stop()
        self.containers.discard(run.name)

    def _mounts(self, group: Group, everyone: list[Group]) -> tuple[VolumeMount, ...]:
        home, owner = self.settings.home, agent_owner(self.settings)
        try:
            extra = extra_mounts(home, group, everyone, owner)
        except MountRefused as refused:
            raise AgentFailed(str(refused), hopeless=True) from None
        return (*group_mounts(home, group, self._runner, owner), *extra)

    def input(
        self,
        group: Group,
        plugins: AgentPlugins,
        prompt: str,
        session_id: str | None,
        images: list[str],
        host_tools: list[dict[str, object]],
        is_scheduled_task: bool = False,
    ) -> ContainerInput:
        """The first frame that the agent gets."""
        return ContainerInput(
            prompt=prompt,
            group_folder=group.folder,
            chat_jid=group.jid,
            is_main=group.is_main,
            session_id=session_id,
            is_scheduled_task=is_scheduled_task,
            plugin_mcp_servers=dict(plugins.mcp_servers) or None,
            plugin_hooks=dict(plugins.hooks) or None,
            plugin_tools=plugins.tool_descriptions() or None,
            plugin_skills=list(plugins.skills),
            assistant_name=self.settings.assistant_name,
            model=group.model or self.settings.model,
            network=group.network,
            host_tools=host_tools,
            images=images or None,
        )


def _cannot(runtime: ContainerRuntime, group: Group) -> str:
    """What a group asks of its runtime that this one does not do, and what to do about it; empty where it does all."""
    supported = getattr(runtime, "supports", frozenset())
    if group.network == "bridge" and "bridge" not in supported:
        return "gives no agent a network of its own: set another network policy, or use another runtime"
    limits = (("memory", group.memory_bytes), ("cpus", group.cpus), ("pids", group.pids))
    unmet = [name for name, value in limits if value is not None and name not in supported]
    if unmet:
        return (
            f"cannot limit {', '.join(unmet)} here, as is set for this chat: remove the limit, or use another runtime"
        )
    return ""


def container_prefix(store: Store) -> str:
    """How the names of all containers of this installation begin, and of no other's."""
    return f"pynchy-{store.installation_id}-"


def agent_owner(settings: Settings) -> tuple[int, int]:
    """Whom agents run as: this user, or where that is root, a uid that is nobody's."""
    if os.geteuid() == 0:
        return settings.agent_uid, settings.agent_uid
    return os.geteuid(), os.getegid()
