"""A channel that does everything right, the office that it works for, and many that each do one thing wrong."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pynchy.plugin import Channel, ChannelPlugin, NewMessage, NotConnected, PluginContext
from pynchy.testing import FarSide


class Office(FarSide):
    """A post office in this process: keeps what was written until it is acknowledged."""

    jid = "courier:ada"

    def __init__(self, make: Callable[[PluginContext, Office], Channel]) -> None:
        self.plugin = CourierPlugin(self, make)
        self.waiting: dict[int, str] = {}
        self.delivered: list[str] = []
        self.open = True
        self._count = 0
        self._news = asyncio.Event()

    async def write(self, text: str) -> None:
        """Post a letter."""
        self._count += 1
        self.waiting[self._count] = text
        self._news.set()

    def read(self) -> list[str]:
        """What couriers have brought."""
        return list(self.delivered)

    async def vanish(self) -> None:
        """Close for good."""
        self.open = False

    async def oldest(self) -> tuple[int, str]:
        """The oldest letter that nobody has acknowledged, once there is one."""
        while not self.waiting:
            self._news.clear()
            await self._news.wait()
        return next(iter(self.waiting.items()))

    def acknowledge(self, number: int) -> None:
        """Keep a letter no longer."""
        self.waiting.pop(number, None)

    def deliver(self, text: str) -> str:
        """Bring a text to its reader."""
        if not self.open:
            raise NotConnected("the office is closed")
        self.delivered.append(text)
        return str(len(self.delivered))

    def change(self, number: str, text: str) -> None:
        """Replace what was brought."""
        self.delivered[int(number) - 1] = text


class CourierPlugin(ChannelPlugin):
    """The plugin of an office."""

    name = "courier"

    def __init__(self, office: Office, make: Callable[[PluginContext, Office], Channel]) -> None:
        self._office = office
        self._make = make

    def create_channel(self, ctx: PluginContext) -> Channel:
        """A courier."""
        return self._make(ctx, self._office)


class Courier:
    """A channel that does everything right."""

    name = "courier"
    max_message_length = 1000

    def __init__(self, ctx: PluginContext, office: Office) -> None:
        self.ctx = ctx
        self.office = office
        self.working: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        if not self.office.open:
            raise NotConnected("the office is closed")
        self.working = asyncio.create_task(self.work())

    async def disconnect(self) -> None:
        if self.working:
            self.working.cancel()
            await asyncio.wait([self.working])

    def is_connected(self) -> bool:
        return self.working is not None and not self.working.done()

    def owns_jid(self, jid: str) -> bool:
        return jid.startswith("courier:")

    async def send_message(self, jid: str, text: str) -> str | None:
        if not self.is_connected():
            raise NotConnected("the courier is at home")
        return self.office.deliver(text)

    async def edit_message(self, jid: str, message_id: str, text: str) -> None:
        self.office.change(message_id, text)

    async def set_typing(self, jid: str, on: bool) -> None:
        """Shows nothing."""

    async def send_file(self, jid: str, path: Path, caption: str) -> None:
        self.office.deliver(f"{path.name}: {path.read_text()} {caption}")

    async def sync_metadata(self) -> None:
        await self.ctx.on_chat_metadata(self.office.jid, "Ada")

    async def work(self) -> None:
        while True:
            number, text = await self.office.oldest()
            try:
                await self.hand_over(number, text)
            except Exception:
                self.ctx.log.exception("cannot hand over %s", number)
                await asyncio.sleep(0.02)

    async def hand_over(self, number: int, text: str) -> None:
        await self.ctx.on_message(self.message(number, text))
        self.office.acknowledge(number)

    def message(self, number: int, text: str) -> NewMessage:
        return NewMessage(
            id=str(number),
            chat_jid=self.office.jid,
            sender="ada",
            sender_name="Ada",
            content=text,
            timestamp=datetime.now(UTC),
        )


# --- channels that do wrong -------------------------------------------------------------------------------------------


class Hasty(Courier):
    """Acknowledges what is not stored yet."""

    async def hand_over(self, number: int, text: str) -> None:
        self.office.acknowledge(number)
        await super().hand_over(number, text)


class Careless(Courier):
    """Acknowledges what could not be stored."""

    async def hand_over(self, number: int, text: str) -> None:
        try:
            await super().hand_over(number, text)
        except Exception:
            self.office.acknowledge(number)


class Hoarder(Courier):
    """Takes everything in at once, and keeps it in memory until it is stored."""

    async def work(self) -> None:
        held: list[tuple[int, str]] = []
        while True:
            held.append(await self.office.oldest())
            while self.office.waiting:
                number, text = await self.office.oldest()
                self.office.acknowledge(number)
                held.append((number, text))
            for number, text in dict(held).items():
                await self.ctx.on_message(self.message(number, text))
            held.clear()


class Hurried(Courier):
    """Hands over everything at the same time."""

    async def work(self) -> None:
        tasks: dict[int, asyncio.Task[None]] = {}
        try:
            while True:
                await self.office.oldest()
                for number, text in self.office.waiting.items():
                    if number not in tasks:
                        tasks[number] = asyncio.create_task(self.hand_over(number, text))
                await asyncio.sleep(0.01)
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)


class Flighty(Courier):
    """Goes on to the next message where one could not be stored, and comes back to it later."""

    async def work(self) -> None:
        while True:
            await self.office.oldest()
            for number, text in list(self.office.waiting.items()):
                with suppress(Exception):
                    await self.hand_over(number, text)


class Latest(Courier):
    """Begins with the latest."""

    async def work(self) -> None:
        while True:
            await self.office.oldest()
            number, text = list(self.office.waiting.items())[-1]
            await self.hand_over(number, text)


class Forgetful(Courier):
    """Throws away what came while it was away."""

    async def connect(self) -> None:
        self.office.waiting.clear()
        await super().connect()


class Foreign(Courier):
    """Calls Pynchy from an event loop in a thread."""

    async def hand_over(self, number: int, text: str) -> None:
        await asyncio.to_thread(asyncio.run, super().hand_over(number, text))


class Fancier(Courier):
    """Gives a new id at each delivery."""

    def message(self, number: int, text: str) -> NewMessage:
        return replace(super().message(number, text), id=uuid.uuid4().hex)


class Repeating(Courier):
    """Hands everything over twice, under two ids."""

    async def hand_over(self, number: int, text: str) -> None:
        await self.ctx.on_message(self.message(-number, text))
        await super().hand_over(number, text)


def writing(**changes: Callable[[NewMessage], Any]) -> type[Courier]:
    """A courier with some fields of its messages made anew."""

    class Writing(Courier):
        def message(self, number: int, text: str) -> NewMessage:
            message = super().message(number, text)
            return replace(message, **{name: change(message) for name, change in changes.items()})

    return Writing


def reading(change: Callable[[str], str]) -> type[Courier]:
    """A courier that sends another text than it was given."""

    class Reading(Courier):
        async def send_message(self, jid: str, text: str) -> str | None:
            return await super().send_message(jid, change(text))

    return Reading


class Swapping(Courier):
    """Sends the first text after the second."""

    held: list[str] | None = None

    async def send_message(self, jid: str, text: str) -> str | None:
        if self.held is None:
            self.held = [text]
            return None
        sent = await super().send_message(jid, text)
        while self.held:
            await super().send_message(jid, self.held.pop())
        return sent


class Echoing(Courier):
    """Sends everything twice."""

    async def send_message(self, jid: str, text: str) -> str | None:
        await super().send_message(jid, text)
        return await super().send_message(jid, text)


class Strict(Courier):
    """Refuses what it has announced that it takes."""

    async def send_message(self, jid: str, text: str) -> str | None:
        if len(text) > 500:
            raise ValueError("too long")
        return await super().send_message(jid, text)


class Silent(Courier):
    """Says of nothing that it was not sent."""

    async def send_message(self, jid: str, text: str) -> str | None:
        with suppress(NotConnected):
            return await super().send_message(jid, text)


class Telepathic(Courier):
    """Sends without a connection."""

    async def send_message(self, jid: str, text: str) -> str | None:
        return self.office.deliver(text)


class Puzzling(Courier):
    """Says that it is not connected in words of its own."""

    async def send_message(self, jid: str, text: str) -> str | None:
        assert self.working
        return await super().send_message(jid, text)


class Optimist(Courier):
    """Always connected, if one believes it."""

    def is_connected(self) -> bool:
        return True


class Pessimist(Courier):
    """Never connected."""

    def is_connected(self) -> bool:
        return False


class Single(Courier):
    """Connects once in its life."""

    async def disconnect(self) -> None:
        await super().disconnect()
        self.connect = self.refuse

    async def refuse(self) -> None:
        raise RuntimeError("used up")


class Lazy(Courier):
    """Connects again, and then does not listen."""

    async def connect(self) -> None:
        if self.working:
            self.work = self.dream
        await super().connect()

    async def dream(self) -> None:
        await asyncio.Event().wait()


class Sleepy(Courier):
    """Sleeps, and everybody with it."""

    async def hand_over(self, number: int, text: str) -> None:
        if number == 3:
            time.sleep(2)
        await super().hand_over(number, text)


class Clinging(Courier):
    """Does not leave."""

    async def disconnect(self) -> None:
        await asyncio.Event().wait()


class Stubborn(Courier):
    """Does not leave, even when it is told to, before what it does is done."""

    async def disconnect(self) -> None:
        if self.working:
            while not self.working.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([self.working])


class Patient(Courier):
    """Leaves when what it does is done."""

    leaving = False

    async def disconnect(self) -> None:
        self.leaving = True
        if self.working:
            await asyncio.sleep(0.05)
            await asyncio.wait([self.working])

    async def work(self) -> None:
        while not self.leaving:
            if self.office.waiting:
                await self.hand_over(*await self.office.oldest())
            await asyncio.sleep(0.01)


class Presuming(Courier):
    """Leaves only what it had."""

    async def disconnect(self) -> None:
        assert self.working
        await super().disconnect()
        self.working = None


class Cancelled(Courier):
    """Ends as what it has ended."""

    async def disconnect(self) -> None:
        if self.working:
            self.working.cancel()
            await self.working


class Untidy(Courier):
    """Leaves a task running."""

    async def connect(self) -> None:
        await super().connect()
        self.beating = asyncio.create_task(asyncio.sleep(1000))


class Uncertain(Courier):
    """Starts what nobody ends where it fails to connect, or is stopped before it has."""

    async def connect(self) -> None:
        self.beating = asyncio.create_task(asyncio.sleep(1000))
        await asyncio.sleep(0.01)
        await super().connect()
        self.beating.cancel()


class Denying(Courier):
    """Connects to what is not there."""

    async def connect(self) -> None:
        self.working = asyncio.create_task(self.work())


class Threaded(Courier):
    """Leaves a thread running."""

    async def connect(self) -> None:
        await super().connect()
        threading.Thread(target=time.sleep, args=(20,), name="courier-1", daemon=True).start()


class Parental(Courier):
    """Leaves a process running."""

    async def connect(self) -> None:
        await super().connect()
        self.child = subprocess.Popen(["sleep", "20"])


class Open(Courier):
    """Leaves a file open."""

    async def connect(self) -> None:
        await super().connect()
        FILES.append((self.ctx.data_dir / "notes").open("w"))


#: What is held on to, so that nobody closes it.
FILES: list[Any] = []


class Unclosed(Courier):
    """Leaves it to the garbage collector to close a socket."""

    async def disconnect(self) -> None:
        await super().disconnect()
        socket.socket()


def owning(owns: Callable[[str], Any]) -> type[Courier]:
    """A courier with a rule of its own for addresses."""

    class Owning(Courier):
        def owns_jid(self, jid: str) -> bool:
            return owns(jid)

    return Owning


def longest(length: Any) -> type[Courier]:
    """A courier with this limit."""
    return type("Long", (Courier,), {"max_message_length": length})


class Raising(Courier):
    """Has what it does not have."""

    async def set_typing(self, jid: str, on: bool) -> None:
        raise NotImplementedError

    async def send_file(self, jid: str, path: Path, caption: str) -> None:
        raise NotImplementedError

    async def sync_metadata(self) -> None:
        await self.ctx.on_chat_metadata(self.office.jid, None)  # type: ignore[arg-type]


class Unchanging(Courier):
    """Edits nothing."""

    async def edit_message(self, jid: str, message_id: str, text: str) -> None:
        """Nothing."""


class Unknown(Courier):
    """Does not say what it has sent."""

    async def send_message(self, jid: str, text: str) -> str | None:
        await super().send_message(jid, text)


class Uncreated:
    """No channel."""

    def __init__(self, ctx: PluginContext, office: Office) -> None:
        raise KeyError("COURIER_TOKEN")


class Bare:
    """No more than a channel must have."""

    name = "courier"
    prefix_assistant_name = False

    def __init__(self, ctx: PluginContext, office: Office) -> None:
        courier = Courier(ctx, office)
        self.connect, self.disconnect, self.is_connected = courier.connect, courier.disconnect, courier.is_connected
        self.owns_jid, self.send_message = courier.owns_jid, courier.send_message
