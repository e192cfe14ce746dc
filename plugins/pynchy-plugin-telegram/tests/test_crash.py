"""A process that is killed in the middle of a burst loses no message."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest
from bot_api import BotApi, until

RECEIVER = '''
"""Appends each message to a file that a crash does not undo, as a store does, and takes its time."""
import asyncio, json, os, sys
from pathlib import Path
from pynchy.plugin import PluginContext
from pynchy_plugin_telegram.channel import TelegramChannel
import logging

api, token, folder = sys.argv[1:]
file = os.open(Path(folder, "stored.jsonl"), os.O_APPEND | os.O_CREAT | os.O_WRONLY)

async def on_message(message):
    await asyncio.sleep(0.002)
    os.write(file, (json.dumps([message.id, message.content]) + "\\n").encode())

async def nothing(*arguments):
    pass

async def main():
    context = PluginContext(nothing, dict, {"api": api}, on_message, nothing, Path(folder), logging.getLogger())
    await TelegramChannel(bot_token=token, ctx=context).connect()
    await asyncio.Event().wait()

asyncio.run(main())
'''


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kills", [3])
def test_what_was_not_confirmed_at_a_kill_comes_again(tmp_path: Path, kills: int) -> None:
    stored = tmp_path / "stored.jsonl"

    def lines() -> list[list[str]]:
        whole = stored.read_text().split("\n")[:-1] if stored.exists() else []
        return [json.loads(line) for line in whole]

    def count() -> int:
        return stored.read_bytes().count(b"\n") if stored.exists() else 0

    async def body() -> None:
        async with BotApi() as api:
            for number in range(1000):
                api.write(5, str(number))
            for kill in range(kills + 1):
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-c", RECEIVER, api.url, api.token, str(tmp_path)
                )
                if kill < kills:
                    wanted = count() + 155  # in the middle of a hundred
                    await until(lambda wanted=wanted: count() >= wanted, 90)
                else:
                    await until(lambda: api.waiting == 0, 90)
                process.send_signal(signal.SIGKILL)
                await process.wait()

    asyncio.run(body())
    texts = [text for _, text in dict.fromkeys((number, text) for number, text in lines())]
    assert texts == [str(number) for number in range(1000)]
    assert 1000 < len(lines()) <= 1000 + kills * 100
