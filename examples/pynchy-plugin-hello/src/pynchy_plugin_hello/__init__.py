"""An example plugin: an MCP server with one tool, `greet`."""

from pynchy_plugin_hello.plugin import HelloPlugin

__all__ = ["HelloPlugin"]
