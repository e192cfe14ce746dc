"""When Podman is used: on Linux and macOS, where it is installed."""

from __future__ import annotations

import shutil
import sys

from pynchy.plugin import ContainerRuntime, RuntimePlugin
from pynchy_plugin_podman.runtime import PodmanRuntime


class PodmanPlugin(RuntimePlugin):
    """Preferred to Docker: whoever installs this plugin beside a Podman wants it."""

    name = "podman"

    def create_runtime(self) -> ContainerRuntime:
        """A runtime; whether Podman works here is checked by its `ensure_running`."""
        return PodmanRuntime()

    def platform_matches(self) -> bool:
        """Whether there is a Podman, without asking it anything."""
        return not self.platform_reason

    @property
    def platform_reason(self) -> str:
        """Why it does not match; empty where it does."""
        if sys.platform not in ("linux", "darwin"):
            return "Podman is used on Linux and macOS only"
        if shutil.which(PodmanRuntime.cli) is None:
            return "Podman is not installed"
        return ""

    @property
    def priority(self) -> int:
        """Above Docker's 0."""
        return 10
