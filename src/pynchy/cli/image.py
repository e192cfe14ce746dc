"""`pynchy image build`: have the runtime make what agents run from."""

from __future__ import annotations

import os

from pynchy.cli.output import complain, complain_of_system, configure_logging, tell
from pynchy.plugin import ContainerRuntime, RuntimeUnavailable, discover_plugins
from pynchy.runtime import agent_image, get_runtime


def build(if_missing: bool, runtime_name: str | None) -> int:
    """Build for the chosen runtime, or for the named one."""
    configure_logging("warning")
    if runtime_name:
        os.environ["CONTAINER_RUNTIME"] = runtime_name
    try:
        build_for(get_runtime(discover_plugins()), if_missing)
    except (RuntimeError, RuntimeUnavailable) as error:
        return complain(f"{error}.")
    except OSError as error:
        return complain_of_system(error)
    return 0


def build_for(runtime: ContainerRuntime, if_missing: bool) -> None:
    """Build the image; with `if_missing` only where an agent could not start without."""
    if if_missing and (check := getattr(runtime, "check_image", None)):
        try:
            check(agent_image())
        except RuntimeUnavailable:
            pass
        else:
            return
    make = getattr(runtime, "build_image", None)
    if make is None:
        raise RuntimeUnavailable(f"the runtime {runtime.name} builds no images", "build one with its own tools")
    tell(f"Making what agents run from, for {runtime.name} (about a minute the first time) ...")
    make(agent_image())
