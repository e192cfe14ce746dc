"""The container's side: an MCP server on stdin and stdout."""

import os
from pathlib import Path

from mcp.server import MCPServer

server = MCPServer("shelf")
_NOTES = Path(os.environ["PYNCHY_DATA"]) / "notes"


@server.tool(structured_output=False)
def keep(note: str) -> str:
    """Keep a note, and say all there are."""
    with _NOTES.open("a") as notes:
        notes.write(f"{note}\n")
    return _NOTES.read_text()


@server.tool(structured_output=False)
def surroundings() -> str:
    """Say what this server sees."""
    return f"{os.environ['SHELF_COLOUR']} {os.environ['PYNCHY_DATA']} {os.environ['PYTHONPATH'].split(os.pathsep)[0]}"


if __name__ == "__main__":
    server.run()
