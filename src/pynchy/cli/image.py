"""`pynchy image build`: have the runtime make what agents run from, with what plugins need in it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pynchy.cli.output import complain, complain_of_system, configure_logging, tell
from pynchy.config import SettingsError, load_settings
from pynchy.plugin import ContainerRuntime, PluginRegistry, RuntimeUnavailable, discover_plugins
from pynchy.plugin_packages import lacking, lock, wanted
from pynchy.runtime import DEFAULT_IMAGE, agent_image, get_runtime


def build(if_missing: bool, runtime_name: str | None) -> int:
    """Build for the chosen runtime, or for the named one."""
    configure_logging("warning")
    try:
        load_settings()
        if runtime_name:
            os.environ["CONTAINER_RUNTIME"] = runtime_name
        registry = discover_plugins()
        build_for(get_runtime(registry), registry, if_missing)
    except SettingsError as error:
        return complain(str(error))
    except (RuntimeError, RuntimeUnavailable) as error:
        return complain(f"{error}.")
    except OSError as error:
        return complain_of_system(error)
    return 0


def build_for(runtime: ContainerRuntime, registry: PluginRegistry, if_missing: bool) -> None:
    """Build the image; with `if_missing` only where an agent, or a plugin in it, could not start without.

    Where CONTAINER_IMAGE names an image of the user's own, it is not replaced for want of a plugin's packages.
    """
    everything = wanted(registry)
    if if_missing and can_start(runtime):
        replaceable = agent_image() == DEFAULT_IMAGE
        if not (replaceable and lacking(everything, runtime, agent_image())):
            return
    make = getattr(runtime, "build_image", None)
    if make is None:
        raise RuntimeUnavailable(f"the runtime {runtime.name} builds no images", "build one with its own tools")
    for plugin, packages in everything.items():
        tell(f"Including {', '.join(packages)}, for the plugin {plugin} ...")
    tell(f"Making what agents run from, for {runtime.name} (about a minute the first time) ...")
    with tempfile.TemporaryDirectory(prefix="pynchy-lock-") as directory:
        asked = frozenset(package for packages in everything.values() for package in packages)
        make(agent_image(), lock(everything, Path(directory)), asked)


def can_start(runtime: ContainerRuntime) -> bool:
    """Whether there is an image that an agent can start from."""
    if check := getattr(runtime, "check_image", None):
        try:
            check(agent_image())
        except RuntimeUnavailable:
            return False
        return True
    return False
