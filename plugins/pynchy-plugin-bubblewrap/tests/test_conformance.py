"""Bubblewrap does what every runtime must, for whoever runs the tests and for an ordinary user."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from typing import ClassVar

import pytest
from bwrap_hosts import USER, Host

from pynchy.plugin import ContainerRuntime, RunSpec, VolumeMount
from pynchy.testing import RuntimeConformance
from pynchy_plugin_bubblewrap.runtime import BubblewrapRuntime


@pytest.mark.bubblewrap
class TestBubblewrap(RuntimeConformance):
    """For whoever runs the tests."""

    def create_runtime(self) -> ContainerRuntime:
        """Bubblewrap."""
        return BubblewrapRuntime()


class OrdinaryUsersRuntime:
    """What an ordinary user's BubblewrapRuntime answers, asked in a process of that user's."""

    name = "bubblewrap"

    def __init__(self, host: Host) -> None:
        self._host = host
        self._checked = False
        self.cli, *self._switch = host.switch

    @cached_property
    def supports(self) -> frozenset[str]:
        """The limits that this user can set."""
        return self._host.ask("supports")

    def ensure_running(self) -> None:
        """Whether a sandbox starts for this user, asked once."""
        if not self._checked:
            self._host.ask("ensure_running")
        self._checked = True

    def list_running_containers(self, prefix: str = "pynchy-") -> list[str]:
        """What this user sees."""
        return self._host.ask("list_running_containers", prefix)

    def build_run_args(self, mounts: list[VolumeMount], container_name: str, image: str) -> list[str]:
        """`run_args` with the defaults."""
        return self.run_args(RunSpec(tuple(mounts), container_name, image))

    def run_args(self, spec: RunSpec) -> list[str]:
        """The command of this user's, after the change to that user."""
        return [*self._switch, *self._host.ask("command", spec)]

    def stop(self, name: str) -> None:
        """End a sandbox of this user's."""
        self._host.ask("stop", name)


@pytest.mark.bubblewrap
@pytest.mark.skipif(os.geteuid() != 0, reason="it is TestBubblewrap where root does not run the tests")
class TestBubblewrapForAnOrdinaryUser(RuntimeConformance):
    """For a user whose sandboxes are user namespaces."""

    _runtime: ClassVar[OrdinaryUsersRuntime]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def become(cls, hosts: dict[str, Callable[[], Host]]) -> None:
        """Become that user."""
        cls._runtime = OrdinaryUsersRuntime(hosts["user"]())

    def create_runtime(self) -> ContainerRuntime:
        """The one of that user."""
        return self._runtime

    def user(self) -> tuple[int, int]:
        """Whom it runs as: that user, always."""
        return USER
