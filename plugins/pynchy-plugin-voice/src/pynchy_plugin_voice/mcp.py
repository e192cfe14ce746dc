"""The container's side: an MCP server on stdin and stdout, started with `python -m pynchy_plugin_voice.mcp`."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from pynchy_plugin_voice.engines import OFFLINE_QUALITY, WHISPER_QUALITY
from pynchy_plugin_voice.places import Refused
from pynchy_plugin_voice.recogniser import Recogniser

#: This package lies in /workspace/plugins/voice, and the host's model folder beside it.
_MODEL = Path(__file__).parents[1] / "model"
_WORKSPACE = Path(__file__).parents[3]
_LONGEST_MINUTES = int(os.environ.get("PYNCHY_VOICE_MINUTES", "30"))

_recogniser = Recogniser(_WORKSPACE, _MODEL if _MODEL.is_dir() else None)


@asynccontextmanager
async def _lifespan(_: MCPServer[None]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await _recogniser.close()


server = MCPServer("voice", lifespan=_lifespan)

_DESCRIPTION = (
    "Turn the speech in an audio file, such as a voice note from the chat, into text. It takes Ogg/Opus, MP3, WAV, M4A "
    f"and most other formats, up to {_LONGEST_MINUTES} minutes; long recordings take minutes. "
    f"The engine is {WHISPER_QUALITY if _MODEL.is_dir() else OFFLINE_QUALITY}."
)


@server.tool(description=_DESCRIPTION, structured_output=False)
async def transcribe_voice(
    path: Annotated[
        str,
        Field(description="The file: below /workspace/attachments, /workspace/extra or /workspace/group."),
    ],
    ctx: Context,
    language: Annotated[
        str | None, Field(description="The language spoken, as a code like en or de, if you know it.")
    ] = None,
) -> str:
    """Transcribe one recording; the description that the model reads is above."""
    try:
        return await _recogniser.transcribe(path, language, _LONGEST_MINUTES * 60.0, ctx.report_progress)
    except Refused as refused:
        raise ToolError(str(refused)) from None


def main() -> None:
    """Serve; end at once where what the worker would import is not there."""
    if missing := [name for name in ("av", "faster_whisper", "pocketsphinx") if find_spec(name) is None]:
        sys.exit(f"not installed where agents run: {', '.join(missing)}; `pynchy image build` builds them in")
    server.run()


if __name__ == "__main__":
    main()
