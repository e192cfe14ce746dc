"""The host's side: it says where the server is and how to start it."""

from pathlib import Path

from pynchy.plugin import McpPlugin, McpServerSpec


class HelloPlugin(McpPlugin):
    """Gives the agent the tool `mcp__hello__greet`."""

    name = "hello"

    def mcp_server_spec(self) -> McpServerSpec:
        """The server in `mcp.py`, run inside the agent's container."""
        return McpServerSpec(
            name="hello",
            command="python",
            args=["-m", "pynchy_plugin_hello.mcp"],
            env={},
            host_source=Path(__file__).parent,
        )
