"""When Apple's `container` is used: on macOS, and there before Docker."""

from __future__ import annotations

import sys

from pynchy.plugin import ContainerRuntime, RuntimePlugin
from pynchy_plugin_apple_container.runtime import AppleContainerRuntime


class AppleContainerPlugin(RuntimePlugin):
    """Whoever installs it on a Mac wants it: whether the program is there too is what its runtime checks."""

    name = "apple-container"

    def create_runtime(self) -> ContainerRuntime:
        """A runtime; whether it works here is checked by its `ensure_running`."""
        return AppleContainerRuntime()

    def platform_matches(self) -> bool:
        """Whether this is macOS."""
        return sys.platform == "darwin"

    @property
    def platform_reason(self) -> str:
        """Why it does not match; empty where it does."""
        return "" if self.platform_matches() else "Apple's container needs macOS"

    @property
    def priority(self) -> int:
        """Above Docker and Podman."""
        return 20
