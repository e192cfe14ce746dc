"""The chat at a real terminal: a prompt below, texts above it as they come."""

from __future__ import annotations

import asyncio

from prompt_toolkit import PromptSession
from prompt_toolkit.patch_stdout import patch_stdout

from pynchy.control import Peer


async def chat_in_terminal(peer: Peer, group: str) -> int:
    """Until Ctrl-D or Ctrl-C."""
    await peer.send(op="chat", group=group)
    print("Type a message; Ctrl-D ends the chat.")
    with patch_stdout():
        reading = asyncio.ensure_future(_show(peer))
        typing = asyncio.ensure_future(_type(peer))
        try:
            await asyncio.wait({reading, typing}, return_when=asyncio.FIRST_COMPLETED)
            return reading.result() if reading.done() else typing.result()
        finally:
            for task in (reading, typing):
                task.cancel()
            await asyncio.gather(reading, typing, return_exceptions=True)


async def _type(peer: Peer) -> int:
    session: PromptSession[str] = PromptSession()
    while True:
        try:
            text = await session.prompt_async("> ")
        except (EOFError, KeyboardInterrupt):
            return 0
        if text.strip():
            await peer.send(say=text)


async def _show(peer: Peer) -> int:
    while (event := await peer.receive()) is not None:
        text = event.get("text") or event.get("message", "")
        print(f"({text})" if event["event"] == "note" else text)
        if event["event"] == "error":
            return 1
    print("The service has stopped.")
    return 1
