"""Bubblewrap as a container runtime for Pynchy: Linux namespaces, and nothing to install beside it."""

from pynchy_plugin_bubblewrap.plugin import BubblewrapPlugin

__all__ = ["BubblewrapPlugin"]
