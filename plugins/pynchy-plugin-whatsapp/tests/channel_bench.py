"""A channel with the real worker and neonize's real client; only the functions of the Go library are replaced."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from whatsapp_side import ADA, GROUP, WhatsAppSide

from pynchy.plugin import Group, NewMessage, PluginContext
from pynchy_plugin_whatsapp.channel import WhatsApp

CHAT = f"whatsapp:{ADA}@s.whatsapp.net"
GROUP_CHAT = f"whatsapp:{GROUP}@g.us"


class Bench:
    """A channel and what it has said to Pynchy."""

    def __init__(self, side: WhatsAppSide, **config: str) -> None:
        self.side = side
        self.came: list[NewMessage] = []
        self.files: list[bytes] = []
        self.names: dict[str, str] = {}
        self.storing: Callable[[NewMessage], Awaitable[object]] = lambda message: asyncio.sleep(0)
        self.groups = {one: Group(one, "Test", f"test{number}") for number, one in enumerate((CHAT, GROUP_CHAT))}
        context = PluginContext(
            send_message=self._nothing,
            registered_groups=lambda: self.groups,
            config=config,
            on_message=self._on_message,
            on_chat_metadata=self._on_chat,
            data_dir=side.data,
            log=logging.getLogger("test"),
        )
        channel = side.plugin.create_channel(context)
        assert isinstance(channel, WhatsApp)
        self.channel = channel

    async def _nothing(self, chat: str, text: str) -> None:
        pass

    async def _on_message(self, message: NewMessage) -> None:
        await self.storing(message)
        for attachment in message.attachments:
            assert attachment.path
            self.files.append(attachment.path.read_bytes())
        self.came.append(message)

    async def _on_chat(self, chat: str, name: str) -> None:
        self.names[chat] = name

    @property
    def texts(self) -> list[str]:
        return [message.content for message in self.came]


@asynccontextmanager
async def connected(folder: Path, **config: str) -> AsyncIterator[Bench]:
    """A bench whose channel is connected meanwhile."""
    async with WhatsAppSide.open(folder) as side:
        bench = Bench(side, **config)
        await bench.channel.connect()
        try:
            yield bench
        finally:
            await bench.channel.disconnect()


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait until something is so, at most a minute; `what` is said where it is not."""
    deadline = time.monotonic() + 60  # a worker takes a while to start
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test in an event loop of its own."""
    asyncio.run(test())  # pyright: ignore[reportArgumentType]
