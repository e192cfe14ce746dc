"""The container's side: an MCP server on stdin and stdout, started with `python -m pynchy_plugin_hello.mcp`."""

from mcp.server import MCPServer

server = MCPServer("hello")


@server.tool(structured_output=False)  # plain text is what the agent should read
def greet(name: str) -> str:
    """Greet somebody by name."""
    return f"Hello, {name}! The hello plugin sends this greeting."


if __name__ == "__main__":
    server.run()
