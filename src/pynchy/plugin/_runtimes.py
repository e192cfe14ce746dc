"""Container runtimes: the contract, and the choice among them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pynchy.plugin._contracts import RuntimePlugin
from pynchy.plugin._errors import PluginRaised, ask
from pynchy.plugin._registry import PluginRegistry
from pynchy.types import VolumeMount


class RuntimeUnavailable(Exception):
    """A runtime cannot be used now. `remedy` is the command or the step that mends it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.args[0]}; {self.remedy}"


@runtime_checkable
class ContainerRuntime(Protocol):
    """What every container runtime must provide.

    Optional members, found by attribute: `run_args(spec: RunSpec)` where limits, labels and the user matter, with
    `supports`, a frozenset that says which of them it keeps: `memory`, `cpus`, `pids`, and `bridge` for a network;
    `stop(name)`, which returns once no process of the container is left (its client has been killed before);
    `check_image(image)`, which raises RuntimeUnavailable when an agent could not be started from it;
    `build_image(image, lock, packages)`, which makes it of the pinned packages in the file `lock`;
    `image_packages(image)`, which returns the `packages` that it was made with, the requirements of plugins as a
    frozenset of strings, or None where that is not known.
    """

    name: str
    cli: str

    def ensure_running(self) -> None:
        """Verify or start the runtime's daemon; RuntimeUnavailable where that cannot be done."""
        ...

    def list_running_containers(self, prefix: str = "pynchy-") -> list[str]:
        """Return the names of running containers that start with `prefix`."""
        ...

    def build_run_args(self, mounts: list[VolumeMount], container_name: str, image: str) -> list[str]:
        """Return the arguments that follow the binary's name to run a container on its stdin and stdout."""
        ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A runtime that could be used, and how it ranks. `plugin` is None for the built-in Docker."""

    name: str
    priority: int
    plugin: RuntimePlugin | None


def runtime_candidates(registry: PluginRegistry) -> list[Candidate]:
    """The matching runtimes and Docker, best first. A plugin that raises here is recorded and left out."""
    candidates = [Candidate("docker", 0, None)]
    for plugin in list(registry.runtimes):
        name = registry.name_of(plugin)
        try:
            candidates.append(Candidate(name, ask(lambda plugin=plugin: int(plugin.priority)), plugin))
        except PluginRaised as error:
            _record_failure(registry, name, error, "priority")
    return sorted(candidates, key=lambda candidate: (-candidate.priority, candidate.name))


def select_runtime(registry: PluginRegistry) -> ContainerRuntime:
    """Choose the runtime: `CONTAINER_RUNTIME` by name, else the highest priority that matches, else Docker.

    `CONTAINER_RUNTIME=docker` is decided before any plugin is touched. A value that names neither a plugin
    nor a plugin's runtime is a RuntimeError that lists what there is.
    """
    from pynchy.runtime import DockerRuntime

    override = os.environ.get("CONTAINER_RUNTIME", "").strip().lower()
    if override == "docker":
        return DockerRuntime()
    if override:
        return _by_name(registry, override)
    for candidate in runtime_candidates(registry):
        if candidate.plugin is None:
            break
        if runtime := create_runtime(registry, candidate.plugin):
            return runtime
    return DockerRuntime()


def _by_name(registry: PluginRegistry, wanted: str) -> ContainerRuntime:
    known = {"docker"}
    broken = []
    plugins = [*registry.runtimes, *registry.unmatched_runtimes]
    # A plugin's own name first, so that one broken plugin cannot hide another.
    for plugin in sorted(plugins, key=lambda plugin: registry.name_of(plugin) != wanted):
        name = registry.name_of(plugin)
        known.add(name)
        runtime = create_runtime(registry, plugin)
        if runtime is None:
            broken.append(name)
            continue
        known.add(runtime.name)
        if wanted in (name, runtime.name.lower()):
            return runtime
    if wanted in broken:
        reasons = [record.reason for record in registry.records if record.name == wanted and record.reason]
        raise RuntimeError(
            f"CONTAINER_RUNTIME={wanted!r} cannot be used ({'; '.join(reasons) or 'its plugin raised'}); "
            f"available: {', '.join(sorted(known - set(broken)))}. Mend or uninstall the plugin, or unset it."
        )
    raise RuntimeError(
        f"Unknown CONTAINER_RUNTIME={wanted!r}; available: {', '.join(sorted(known - set(broken)))}. "
        f"Set it to one of these, install the plugin that provides it, or unset it."
    )


def create_runtime(registry: PluginRegistry, plugin: RuntimePlugin) -> ContainerRuntime | None:
    """Have a plugin create its runtime; None, and a record that says why, where it cannot."""

    def create() -> ContainerRuntime:
        runtime = plugin.create_runtime()
        if not isinstance(runtime, ContainerRuntime):
            raise TypeError(f"create_runtime() returned {type(runtime).__name__}, which is no ContainerRuntime")
        if not isinstance(runtime.name, str) or not isinstance(runtime.cli, str):
            raise TypeError(f"the name or the cli of {type(runtime).__name__} is no string")
        return runtime

    try:
        return ask(create)
    except PluginRaised as error:
        _record_failure(registry, registry.name_of(plugin), error, "create_runtime")
        return None


def _record_failure(registry: PluginRegistry, name: str, error: PluginRaised, phase: str) -> None:
    import logging

    logging.getLogger("pynchy.plugin").warning("runtime plugin %s: %s raised %s", name, phase, error)
    registry.fail(name, phase, f"{phase} raised {error}")
