"""Apple's `container` as a container runtime for Pynchy: on macOS, a virtual machine for each agent."""

from pynchy_plugin_apple_container.plugin import AppleContainerPlugin

__all__ = ["AppleContainerPlugin"]
