"""From the outbox to the channels: what is queued is sent, in order within each chat, once it can be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog

from pynchy.fault_points import reached
from pynchy.outgoing import Outgoing
from pynchy.plugin_calls import PluginRaised, ask_async
from pynchy.router import next_part
from pynchy.store import Store
from pynchy.types import Channel, NotConnected, Refused

log = structlog.get_logger(__name__)

_ATTEMPTS = 5
_FIRST_PAUSE = 0.5  # seconds, doubled after each attempt
_SEND_WITHIN = 120.0  # seconds
#: After a chat was away, or our own code has failed, the queue is looked at again in so many seconds.
_LOOK_AGAIN_AFTER = 5.0


class Outbox:
    """One task a chat for as long as something can be sent to it, so that no chat holds up another.

    `owner_of` names the connected channel of a chat; `main` says which chat hears of what could not be sent. Files
    are below the home's `sent` folder.
    """

    def __init__(
        self,
        store: Store,
        owner_of: Callable[[str], Channel | None],
        assistant_name: str,
        main: Callable[[], str],
        home: Path,
    ) -> None:
        self._store = store
        self._owner_of = owner_of
        self._assistant_name = assistant_name
        self._main = main
        self._files = home / "sent"
        self._woken = asyncio.Event()
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        self._ended = False

    def wake(self) -> None:
        """Look at the queue again. Never waits."""
        self._woken.set()

    async def run(self) -> None:
        """Send until cancelled; what is under way then stays queued."""
        self.wake()
        try:
            while True:
                await self._woken.wait()
                self._woken.clear()
                try:
                    await self._look()
                except Exception:
                    log.exception("cannot look for what is to be sent")
                    self._look_again_later()
        finally:
            self._ended = True
            tasks = list(self._sending.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def flush(self, jid: str) -> None:
        """Return once everything that can be sent to a chat now has been."""
        await self._look()
        if task := self._sending.get(jid):
            await asyncio.wait([task])

    async def _look(self) -> None:
        for jid in await self._store.chats_with_queued():
            if self._ended:
                return
            if jid in self._sending:
                self._again.add(jid)  # it may have looked just before the latest was queued
            elif channel := self._owner_of(jid):
                task = asyncio.get_running_loop().create_task(self._send_all(channel, jid))
                self._sending[jid] = task

    def _look_again_later(self) -> None:
        asyncio.get_running_loop().call_later(_LOOK_AGAIN_AFTER, self.wake)

    async def _send_all(self, channel: Channel, jid: str) -> None:
        try:
            while True:
                self._again.discard(jid)
                while outgoing := await self._store.next_queued(jid):
                    if not await self._send(channel, outgoing):
                        break
                if jid not in self._again:
                    return
        except Exception:
            log.exception("sending failed", channel=channel.name, jid=jid)
            self._look_again_later()
        finally:
            del self._sending[jid]
            self._again.discard(jid)

    async def _send(self, channel: Channel, outgoing: Outgoing) -> bool:
        """Send one text, or the next part of one; False where this chat cannot be reached now, to keep its order."""
        send, sent = self._next_of(channel, outgoing)
        pause = _FIRST_PAUSE
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with asyncio.timeout(_SEND_WITHIN):
                    await ask_async(send)
            except (PluginRaised, TimeoutError) as raised:
                if self._ended:
                    raise asyncio.CancelledError from None  # which the channel has made something else of
                away = isinstance(raised.__cause__, NotConnected)
                if away or self._owner_of(outgoing.chat_jid) is not channel:
                    if away:  # and if its channel goes on saying that it is connected, nobody else would look again
                        self._look_again_later()
                    return False
                reason = str(raised) or f"it took longer than {_SEND_WITHIN:.0f} s"
                log.warning("a channel could not send", channel=channel.name, attempt=attempt, error=reason)
                if attempt == _ATTEMPTS or isinstance(raised.__cause__, Refused):
                    await self._give_up(channel, outgoing, reason)
                    return True
                await asyncio.sleep(pause)
                pause *= 2
            else:
                reached("sent")
                # Only this stands between a text that was sent and one that is sent twice.
                await self._store.until_stored(lambda: self._mark(outgoing, sent))
                reached("delivered")
                return True
        return True

    def _next_of(self, channel: Channel, outgoing: Outgoing) -> tuple[Callable[[], Awaitable[Any]], int]:
        """What to have the channel do next, and how many characters of the text have been sent then."""
        text = outgoing.text
        if outgoing.file:
            path = self._files / outgoing.file
            if send_file := getattr(channel, "send_file", None):
                return lambda: send_file(outgoing.chat_jid, path, text), len(text)
            text = f"{text}\n[This channel carries no files. {path.name} is kept where Pynchy runs: {path}]".strip()
            return lambda: channel.send_message(outgoing.chat_jid, text), len(outgoing.text)
        part, sent = next_part(channel, text, outgoing.sent, self._assistant_name)
        return lambda: channel.send_message(outgoing.chat_jid, part), sent

    async def _mark(self, outgoing: Outgoing, sent: int) -> None:
        if sent < len(outgoing.text):
            await self._store.mark_part_sent(outgoing.id, sent)
        else:
            await self._store.mark_sent(outgoing.id)

    async def _give_up(self, channel: Channel, outgoing: Outgoing, reason: str) -> None:
        tell = None
        if outgoing.chat_jid != (main := self._main()):
            tell = (
                main,
                f"I could not send a text to {outgoing.chat_jid} through {channel.name} ({reason}). "
                f"It was: {outgoing.text[:500]}",
            )
        await self._store.until_stored(lambda: self._store.mark_unsendable(outgoing.id, reason, tell))
        if tell:
            self.wake()
