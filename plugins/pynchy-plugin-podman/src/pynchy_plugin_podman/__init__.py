"""Podman as a container runtime for Pynchy: Docker's images without a daemon, under root or under any user."""

from pynchy_plugin_podman.plugin import PodmanPlugin

__all__ = ["PodmanPlugin"]
