"""Podman does what every runtime must."""

from __future__ import annotations

import pytest

from pynchy.plugin import ContainerRuntime
from pynchy.testing import RuntimeConformance
from pynchy_plugin_podman.runtime import PodmanRuntime


@pytest.mark.podman
class TestPodman(RuntimeConformance):
    """As whoever runs the tests."""

    def create_runtime(self) -> ContainerRuntime:
        """Podman, with whatever it finds on this machine."""
        return PodmanRuntime()
