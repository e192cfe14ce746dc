"""The channel: what the worker hands over is stored, then removed there; what Pynchy says is sent through it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pynchy.plugin import Attachment, NewMessage, NotConnected, PluginContext
from pynchy_plugin_whatsapp.addresses import is_address
from pynchy_plugin_whatsapp.formatting import to_whatsapp
from pynchy_plugin_whatsapp.link import Frame, Link

# Seconds.
_CONNECT_WITHIN = 50.0
_SEND_WITHIN = 110.0
_TYPING_WITHIN = 10.0
_DOWNLOAD_WITHIN = 120.0
_LEAVE_WITHIN = 1.0
#: Between two tries to store a message, doubled after each, and at most.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
#: How often a message may be refused as invalid until it is set aside.
_REFUSALS = 3
#: Bytes; what is larger is not fetched.
_LARGEST_FILE = 100 * 1024 * 1024


class WhatsAppTrouble(NotConnected):
    """Why there is no connection, in a sentence."""


class WhatsApp:
    """One linked account. `dedicated` says that it is Pynchy's alone, and not a person's own."""

    name = "whatsapp"
    #: WhatsApp takes 65,536; more than a few screens in one bubble nobody reads.
    max_message_length = 4000

    def __init__(self, ctx: PluginContext, worker: Sequence[str], dedicated: bool = False) -> None:
        self.prefix_assistant_name = not dedicated
        self._ctx = ctx
        self._worker = worker
        self._dedicated = dedicated
        self._link: Link | None = None
        self._connected = False
        self._trouble = ""
        self._failed = False
        self._change = asyncio.Event()
        self._not_before = 0.0
        self._chats: dict[str, deque[Frame]] = {}
        self._names: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # --- the connection -------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Returns once WhatsApp takes messages; WhatsAppTrouble says why it does not."""
        if self._link is not None:
            await self.disconnect()
        if time.time() < self._not_before:
            raise WhatsAppTrouble(self._trouble)
        self._trouble, self._failed, self._change = "", False, asyncio.Event()
        link = self._link = Link(self._worker, self._ctx.data_dir, self._on_frame, self._ctx.log)
        try:
            await link.start("run")
            async with asyncio.timeout(_CONNECT_WITHIN):
                while not self._connected:
                    await self._change.wait()
                    self._change.clear()
                    if not self._connected and (self._failed or not link.alive):
                        break
        except TimeoutError:
            self._trouble = self._trouble or f"WhatsApp has not answered within {_CONNECT_WITHIN:.0f} s"
        except BaseException:
            await self.disconnect()
            raise
        if not self._connected:
            trouble = self._trouble or "the WhatsApp worker ended without saying why: see `pynchy logs`"
            await self.disconnect()
            raise WhatsAppTrouble(trouble)

    async def disconnect(self) -> None:
        """End the worker and what is being stored; the latter comes again with the next connection."""
        link, self._link, self._connected = self._link, None, False
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_LEAVE_WITHIN)
        self._chats.clear()
        if link:
            await link.stop()

    def is_connected(self) -> bool:
        """Whether messages can be sent now."""
        return self._connected and self._link is not None and self._link.alive

    def owns_jid(self, jid: str) -> bool:
        """Whether it is a WhatsApp chat's."""
        return is_address(jid)

    def _on_frame(self, frame: Frame) -> None:
        if self._link is None and frame["is"] in ("message", "chat", "state"):
            return  # it is being ended: stored now, a message would overtake the one whose storing was cancelled
        match frame["is"]:
            case "message":
                self._queue(frame)
            case "chat":
                self._spawn(self._name_chat(frame["jid"], frame["name"]))
            case "state" if not self._failed:  # what has ended it is to be said, not what follows from that
                self._connected, self._trouble = frame["connected"], frame["trouble"]
                if self._trouble:
                    self._ctx.log.warning("%s", self._trouble)
            case "failed":
                self._connected, self._failed = False, True
                self._trouble = self._trouble or frame["why"]
                self._not_before = time.time() + frame.get("seconds", 0)
                self._ctx.log.warning("%s", frame["why"])
            case "ended":
                self._connected, self._failed = False, True
        self._change.set()

    # --- what comes in --------------------------------------------------------------------------------------

    def _queue(self, frame: Frame) -> None:
        if (waiting := self._chats.get(frame["chat"])) is not None:
            waiting.append(frame)
            return
        self._chats[frame["chat"]] = deque([frame])
        self._spawn(self._store_chat(frame["chat"]))

    async def _store_chat(self, chat: str) -> None:
        """Store one chat's messages one after another; chats do not wait for each other."""
        waiting = self._chats[chat]
        while waiting:
            try:
                await self._store(waiting[0])
            except Exception as error:  # one message must not hold up its chat
                self._ctx.log.exception("a message of %s cannot be delivered, and is set aside", chat)
                self._tell({"stored": waiting[0]["seq"], "why": str(error)[:500]})
            waiting.popleft()
        del self._chats[chat]

    async def _store(self, frame: Frame) -> None:
        if frame["chat_name"]:
            await self._name_chat(frame["chat"], frame["chat_name"])
        message = await self._message(frame)
        pause, refusals = _FIRST_PAUSE, 0
        while True:
            try:
                await self._ctx.on_message(message)
                break
            except (TypeError, ValueError) as error:
                refusals += 1
                if refusals >= _REFUSALS:
                    self._ctx.log.error("a message of %s is refused, and set aside: %s", frame["chat"], error)
                    self._tell({"stored": frame["seq"], "why": str(error)[:500]})
                    return
            except Exception as error:
                self._ctx.log.warning("a message of %s is not stored, and kept: %s", frame["chat"], error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        self._tell({"stored": frame["seq"]})
        if self._dedicated and not frame["from_me"] and frame["chat"] in self._ctx.registered_groups():
            self._spawn(self._mark_read(frame))

    async def _message(self, frame: Frame) -> NewMessage:
        text, attachments = frame["text"], ()
        if file := frame["file"]:
            path, why = await self._fetch(frame)
            if path:
                attachments = (Attachment(file["name"], file["media_type"], path=path),)
            else:
                text = f"{text}\n[{file['name']}: {why}]".strip()
        return NewMessage(
            id=frame["id"],
            chat_jid=frame["chat"],
            sender=frame["sender"],
            sender_name=frame["sender_name"],
            content=text,
            timestamp=datetime.fromtimestamp(frame["at"], UTC),
            is_from_me=frame["from_me"],
            reply_to=frame["reply_to"],
            quote=frame["quote"],
            edits=frame["edits"],
            attachments=attachments,
        )

    async def _fetch(self, frame: Frame) -> tuple[Path | None, str]:
        """The path of a message's file, or why there is none."""
        if frame["chat"] not in self._ctx.registered_groups():
            return None, "not fetched, for this chat was not registered"
        if frame["file"]["size"] > _LARGEST_FILE:
            return None, "not fetched, for it is too large"
        while True:
            try:
                path = await self._call("download", _DOWNLOAD_WITHIN, seq=frame["seq"], largest=_LARGEST_FILE)
                return Path(path), ""
            except NotConnected:  # this ends with the connection: without it the message stays in the spool
                await asyncio.sleep(_FIRST_PAUSE)
            except Exception as error:
                self._ctx.log.warning("a file in %s cannot be fetched: %s", frame["chat"], error)
                return None, "it could not be fetched"

    async def _name_chat(self, chat: str, name: str) -> None:
        if self._names.get(chat) == name:
            return
        try:
            await self._ctx.on_chat_metadata(chat, name)
            self._names[chat] = name
        except Exception as error:
            self._ctx.log.warning("the name of %s is not noted: %s", chat, error)

    async def _mark_read(self, frame: Frame) -> None:
        try:
            message = frame["edits"] or frame["id"]
            await self._call("read", _TYPING_WITHIN, jid=frame["chat"], sender=frame["sender"], id=message)
        except Exception as error:
            self._ctx.log.warning("a message of %s is not shown as read: %s", frame["chat"], error)

    def _spawn(self, action: Any) -> None:
        task = asyncio.get_running_loop().create_task(action)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- what goes out --------------------------------------------------------------------------------------

    async def send_message(self, jid: str, text: str) -> str:
        """Send a text; returns its id."""
        return await self._send("send", jid, text=to_whatsapp(text))

    async def edit_message(self, jid: str, message_id: str, text: str) -> None:
        """Put another text in the place of one of ours."""
        await self._send("edit", jid, id=message_id, text=to_whatsapp(text))

    async def send_file(self, jid: str, path: Path, caption: str) -> None:
        """Send a file: a picture, a film, a voice note or a document, by its name."""
        await self._send("file", jid, path=str(path), caption=to_whatsapp(caption or ""))

    async def set_typing(self, jid: str, on: bool) -> None:
        """Show that an answer is on its way."""
        await self._call("typing", _TYPING_WITHIN, jid=jid, on=on, visible=self._dedicated)

    async def sync_metadata(self) -> None:
        """Report the groups that the account is in."""
        for jid, name in await self._call("groups", _SEND_WITHIN / 2):
            if jid and name:
                await self._name_chat(jid, name)

    async def _send(self, what: str, jid: str, **arguments: Any) -> str:
        if not is_address(jid):
            raise ValueError(f"{jid[:80]!r} is no address of a WhatsApp chat")
        return await self._call(what, _SEND_WITHIN, jid=jid, **arguments)

    async def _call(self, what: str, seconds: float, **arguments: Any) -> Any:
        if self._link is None or not self.is_connected():
            raise NotConnected(self._trouble or "WhatsApp is not connected")
        return await self._link.call(what, seconds, **arguments)

    def _tell(self, frame: Frame) -> None:
        if self._link:
            self._link.tell(frame)
