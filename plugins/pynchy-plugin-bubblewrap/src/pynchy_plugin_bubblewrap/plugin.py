"""When bubblewrap is used: on Linux, where a sandbox really starts, and Docker could not do better."""

from __future__ import annotations

import os
import sys

from pynchy.plugin import ContainerRuntime, RuntimePlugin, RuntimeUnavailable
from pynchy.runtime import DockerRuntime, agent_image
from pynchy_plugin_bubblewrap.runtime import BubblewrapRuntime


class BubblewrapPlugin(RuntimePlugin):
    """The embedded default: it runs no OCI image, so it steps aside wherever one is to be used."""

    name = "bubblewrap"

    def __init__(self) -> None:
        self._reason = ""

    def create_runtime(self) -> ContainerRuntime:
        """A runtime; whether a sandbox can start is checked by its `ensure_running`."""
        return BubblewrapRuntime()

    def platform_matches(self) -> bool:
        """Whether bubblewrap is what should run agents here."""
        self._reason = self._mismatch()
        return not self._reason

    @property
    def platform_reason(self) -> str:
        """Why it does not match; empty where it does."""
        return self._reason

    @property
    def priority(self) -> int:
        """Above Docker, which it has made sure cannot run an agent now; below every other runtime."""
        return 5

    def _mismatch(self) -> str:
        if sys.platform != "linux":
            return "bubblewrap needs Linux"
        if os.environ.get("CONTAINER_IMAGE", "").strip():
            return "CONTAINER_IMAGE is set, and bubblewrap runs no images"
        if DockerRuntime().has_image(agent_image()):
            return f"Docker has the agent image {agent_image()}"
        try:
            BubblewrapRuntime().ensure_running()
        except RuntimeUnavailable as error:
            return str(error)
        return ""
