"""From the outbox to the channels: what is queued is sent in order, once its channel can take it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from pynchy.router import outbound_text
from pynchy.store import Outgoing, Store
from pynchy.types import Channel, NotConnected

log = structlog.get_logger(__name__)

_ATTEMPTS = 5
_FIRST_PAUSE = 0.5  # seconds, doubled after each attempt


class Outbox:
    """One task a channel, woken when something was queued or a channel connected."""

    def __init__(self, store: Store, channels: Sequence[Channel], assistant_name: str) -> None:
        self._store = store
        self._channels = channels
        self._assistant_name = assistant_name
        self._wakes = {id(channel): asyncio.Event() for channel in channels}
        self._idle = asyncio.Condition()
        self._busy: set[int] = set()

    def wake(self) -> None:
        """Look at the queue again. Never waits."""
        for event in self._wakes.values():
            event.set()

    async def run(self) -> None:
        """Send until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for channel in self._channels:
                tasks.create_task(self._serve(channel))

    async def flush(self) -> None:
        """Wake every channel and return once each has sent what it can."""
        self._busy.update(self._wakes)
        self.wake()
        async with self._idle:
            await self._idle.wait_for(lambda: not self._busy)

    async def _serve(self, channel: Channel) -> None:
        wake = self._wakes[id(channel)]
        while True:
            try:
                await self._send_queued(channel)
            except Exception:
                log.exception("sending failed", channel=channel.name)
            async with self._idle:
                if not wake.is_set():
                    self._busy.discard(id(channel))
                    self._idle.notify_all()
            await wake.wait()
            wake.clear()

    async def _send_queued(self, channel: Channel) -> None:
        unreachable: set[str] = set()
        after = 0
        while channel.is_connected() and (batch := await self._store.queued(after)):
            after = batch[-1].id  # what stays queued, or is another channel's, holds up nothing behind it
            for outgoing in batch:
                if outgoing.chat_jid in unreachable or not channel.owns_jid(outgoing.chat_jid):
                    continue
                if not await self._send(channel, outgoing):
                    unreachable.add(outgoing.chat_jid)

    async def _send(self, channel: Channel, outgoing: Outgoing) -> bool:
        """Send one text; False where this chat cannot be reached now, so that its order is kept."""
        text = outbound_text(channel, outgoing.text, self._assistant_name)
        pause = _FIRST_PAUSE
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await channel.send_message(outgoing.chat_jid, text)
            except NotConnected:
                return False
            except Exception as error:
                log.warning("a channel could not send", channel=channel.name, attempt=attempt, error=str(error))
                if attempt == _ATTEMPTS:
                    await self._store.mark_unsendable(outgoing.id, f"{type(error).__name__}: {error}")
                    return True
                await asyncio.sleep(pause)
                pause *= 2
            else:
                await self._store.mark_sent(outgoing.id)
                return True
        return True
