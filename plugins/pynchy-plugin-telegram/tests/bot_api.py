"""A Bot API server on loopback, after https://core.telegram.org/bots/api: what a bot's library sees of Telegram."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, unquote, urlsplit

TOKEN = "123456789:AAEc-DummyTokenOfTheLocalServer_0001"
BOT = {"id": 123456789, "is_bot": True, "first_name": "Pynchy", "username": "pynchy_test_bot"}
ADA = {"id": 1001, "is_bot": False, "first_name": "Ada", "last_name": "Lovelace"}


@dataclass(frozen=True)
class Upload:
    """A file of a multipart request."""

    name: str
    data: bytes


@dataclass
class Sent:
    """A message of the bot's, as it is now."""

    number: int
    chat: int
    thread: int | None
    text: str
    entities: list[dict[str, Any]]
    kind: str = "message"
    file: Upload | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    edits: int = 0


@dataclass(frozen=True)
class Answer:
    """What a request gets in the place of an answer; `acted` says whether it is acted on all the same.

    `how` may be to answer with `body`, to reset the connection in the middle of an answer, or to say nothing.
    """

    status: int = 500
    body: bytes = b'{"ok":false,"error_code":500,"description":"Internal Server Error"}'
    acted: bool = False
    how: Literal["answer", "reset", "stall"] = "answer"

    @classmethod
    def error(cls, status: int, description: str, **parameters: Any) -> Answer:
        """As Telegram reports an error."""
        told: dict[str, Any] = {"ok": False, "error_code": status, "description": description}
        if parameters:
            told["parameters"] = parameters
        return cls(status, json.dumps(told).encode())


FLOOD = Answer.error(429, "Too Many Requests: retry after 1", retry_after=1)
BAD_GATEWAY = Answer(502, b"<html><body><h1>502 Bad Gateway</h1></body></html>")
NONSENSE = Answer(200, b'{"ok": tru')
RESET = Answer(how="reset")
RESET_AFTERWARDS = Answer(how="reset", acted=True)
STALL = Answer(how="stall")
STALL_AFTERWARDS = Answer(how="stall", acted=True)
BLOCKED = Answer.error(403, "Forbidden: bot was blocked by the user")
BAD_MARKUP = Answer.error(400, "Bad Request: can't parse entities: Unsupported entity")


class _Wrong(Exception):
    """A request that gets an error."""

    def __init__(self, status: int, description: str) -> None:
        self.answer = Answer.error(status, description)


class BotApi:
    """Use it as an asynchronous context. Everything else is called in the same event loop.

    `sent` are the bot's messages, `calls` the names of the methods that were called, in order. `failing` has the
    answers to a method's next calls, `broken` one for all of them.
    """

    def __init__(self, token: str = TOKEN, host: str = "127.0.0.1") -> None:
        self.token = token
        self.host = host
        self.port = 0
        self.sent: list[Sent] = []
        self.calls: list[str] = []
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.actions: list[dict[str, Any]] = []
        self.reactions: list[dict[str, Any]] = []
        self.failing: defaultdict[str, list[Answer]] = defaultdict(list)
        self.broken: dict[str, Answer] = {}
        self.webhook = ""
        self.chats: dict[int, dict[str, Any]] = {}
        self._updates: list[dict[str, Any]] = []
        self._last_update = 1000
        self._last_message: defaultdict[int, int] = defaultdict(lambda: 10)
        self._files: dict[str, bytes] = {}
        self._news = asyncio.Event()
        self._poll: asyncio.Event | None = None
        self._server: asyncio.Server | None = None
        self._address: socket.socket | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """What `PYNCHY_TELEGRAM_API` is to be."""
        return f"http://{self.host}:{self.port}"

    @property
    def waiting(self) -> int:
        """How many updates the bot has not confirmed."""
        return len(self._updates)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        if self._address:
            self._address.close()

    async def start(self) -> None:
        """Listen; after a `stop` at the same address again, with everything as it was."""
        if self._address is None:  # nobody else gets it meanwhile
            self._address = socket.socket()
            self._address.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._address.bind((self.host, 0))
            self.port = self._address.getsockname()[1]
        self._server = await asyncio.start_server(self._connected, self.host, self.port, reuse_port=True)

    async def stop(self) -> None:
        """Be unreachable, connections that there are included."""
        if self._server:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    # --- what people do -------------------------------------------------------------------------------------

    def chat(self, chat: int, **changes: Any) -> dict[str, Any]:
        """A chat that exists from now on: a person's where the number is positive, else a group."""
        if chat not in self.chats:
            if chat > 0:
                self.chats[chat] = {"id": chat, "type": "private", "first_name": f"Person {chat}"}
            else:
                kind = "supergroup" if str(chat).startswith("-100") else "group"
                self.chats[chat] = {"id": chat, "type": kind, "title": f"Group {-chat}"}
        self.chats[chat].update(changes)
        return self.chats[chat]

    def write(self, chat: int, text: str, sender: Mapping[str, Any] | None = None, **fields: Any) -> int:
        """Somebody writes a text; returns the message's number."""
        return self.post(chat, {"text": text, **fields}, sender)

    def voice(self, chat: int, data: bytes, sender: Mapping[str, Any] | None = None, **fields: Any) -> int:
        """Somebody records a voice message, an OGG file with Opus; returns its number."""
        voice = {**self.file(data, "voice/file.oga"), "duration": 1, "mime_type": "audio/ogg"}
        return self.post(chat, {"voice": voice, **fields}, sender)

    def file(self, data: bytes, path: str = "documents/file") -> dict[str, Any]:
        """A file at Telegram's, as messages name it."""
        number = len(self._files) + 1
        name = f"{path}_{number}"
        self._files[name] = data
        return {"file_id": name, "file_unique_id": f"u{number}", "file_size": len(data)}

    def post(
        self,
        chat: int,
        fields: Mapping[str, Any],
        sender: Mapping[str, Any] | None = None,
        kind: str = "message",
    ) -> int:
        """A message of any kind comes into being; returns its number."""
        message = {
            "message_id": self._next(chat),
            "date": int(time.time()),
            "chat": self.chat(chat),
            **({} if kind == "channel_post" else {"from": dict(sender or ADA)}),
            **fields,
        }
        self.update({kind: message})
        return message["message_id"]

    def update(self, update: Mapping[str, Any]) -> int:
        """An update as it is; returns its number."""
        self._last_update += 1
        self._updates.append({"update_id": self._last_update, **update})
        self._news.set()
        return self._last_update

    def _next(self, chat: int) -> int:
        # A supergroup counts its own messages; the bot's private chats and small groups share one count.
        box = chat if str(chat).startswith("-100") else 0
        self._last_message[box] += 1
        return self._last_message[box]

    # --- HTTP -----------------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        try:
            while await self._serve(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *headers = head.split("\r\n")
        given = {name.lower(): value for name, _, value in (one.partition(": ") for one in headers)}
        body = await reader.readexactly(int(given.get("content-length", 0)))
        _, target, _ = line.split(" ")
        answer = await self._answer(target, given.get("content-type", ""), body, reader)
        if answer.how == "stall":
            await asyncio.sleep(3600)
        head = f"HTTP/1.1 {answer.status} X\r\nContent-Length: {len(answer.body)}\r\n\r\n".encode()
        if answer.how == "reset":
            writer.write(head[:-20])
            await writer.drain()
            writer.transport.abort()
            return False
        writer.write(head + answer.body)
        await writer.drain()
        return True

    async def _answer(self, target: str, content_type: str, body: bytes, reader: asyncio.StreamReader) -> Answer:
        parts = urlsplit(target)
        if parts.path.startswith(f"/file/bot{self.token}/"):
            name = unquote(parts.path.removeprefix(f"/file/bot{self.token}/"))
            return self._unless_failing("file", lambda: Answer(200, self._files[name]))
        if not (match := re.fullmatch(r"/bot([^/]+)/(\w+)", parts.path)):
            return Answer.error(404, "Not Found")
        if match[1] != self.token:
            return Answer.error(401, "Unauthorized")
        method = match[2]
        given: dict[str, Any] = {**dict(parse_qsl(parts.query)), **_form(content_type, body)}
        self.calls.append(method)
        self.requests.append((method, given))
        if method == "getUpdates" and not self.broken.get(method) and not self.failing[method]:
            try:
                return _right(await self._get_updates(given, reader))
            except _Wrong as wrong:
                return wrong.answer
        handler = getattr(self, f"_do_{method}", None)
        if handler is None:
            return Answer.error(404, "Not Found: method not found")
        return self._unless_failing(method, lambda: _right(handler(given)))

    def _unless_failing(self, method: str, handler: Any) -> Answer:
        planned = self.failing[method].pop(0) if self.failing[method] else self.broken.get(method)
        if planned and not planned.acted:
            return planned
        try:
            return planned if planned and handler() else handler()
        except _Wrong as wrong:
            return wrong.answer

    # --- methods --------------------------------------------------------------------------------------------

    async def _get_updates(self, given: dict[str, Any], reader: asyncio.StreamReader) -> list[dict[str, Any]]:
        if self.webhook:
            raise _Wrong(
                409,
                "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook to delete the "
                "webhook first",
            )
        if self._poll:
            self._poll.set()
        mine = self._poll = asyncio.Event()
        offset = int(given.get("offset", 0))
        kinds = json.loads(given.get("allowed_updates", "[]"))
        self._updates = [one for one in self._updates if one["update_id"] >= offset]
        until = time.monotonic() + float(given.get("timeout", 0))
        gone = asyncio.create_task(reader.read(1))  # an end, for nobody sends before an answer
        try:
            while not (found := [one for one in self._updates if not kinds or set(kinds) & set(one)]):
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._news.clear()
                waiting = [asyncio.create_task(self._news.wait()), asyncio.create_task(mine.wait())]
                try:
                    await asyncio.wait([*waiting, gone], timeout=left, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for one in waiting:
                        one.cancel()
                if gone.done():
                    raise ConnectionResetError
                if mine.is_set():
                    self._news.set()
                    raise _Wrong(
                        409,
                        "Conflict: terminated by other getUpdates request; make sure that only one bot instance is "
                        "running",
                    )
            return found[: min(100, int(given.get("limit", 100)))]
        finally:
            gone.cancel()
            await asyncio.wait([gone])
            if self._poll is mine:
                self._poll = None

    def _do_getUpdates(self, given: dict[str, Any]) -> Any:
        return []

    def _do_getMe(self, given: dict[str, Any]) -> Any:
        return {**BOT, "can_join_groups": True, "can_read_all_group_messages": False, "supports_inline_queries": False}

    def _do_sendMessage(self, given: dict[str, Any]) -> Any:
        return self._send(given, given.get("text", ""), json.loads(given.get("entities", "[]")), 4096)

    def _do_sendPhoto(self, given: dict[str, Any]) -> Any:
        upload = _upload(given, "photo")
        if len(upload.data) > 10 * 1024 * 1024:
            raise _Wrong(413, "Request Entity Too Large")
        if b"wrong dimensions" in upload.data:
            raise _Wrong(400, "Bad Request: PHOTO_INVALID_DIMENSIONS")
        size = {**self.file(upload.data, "photos/sent"), "width": 1, "height": 1}
        return self._send_media(given, "photo", upload, {"photo": [size]})

    def _do_sendDocument(self, given: dict[str, Any]) -> Any:
        upload = _upload(given, "document")
        return self._send_media(given, "document", upload, {"document": self.file(upload.data, "documents/sent")})

    def _do_sendVoice(self, given: dict[str, Any]) -> Any:
        upload = _upload(given, "voice")
        voice = {**self.file(upload.data, "voice/sent"), "duration": 1}
        return self._send_media(given, "voice", upload, {"voice": voice})

    def _do_sendPoll(self, given: dict[str, Any]) -> Any:
        options = json.loads(given["options"])
        if not 2 <= len(options) <= 12:
            raise _Wrong(400, "Bad Request: poll must have at least 2 option")
        poll = {
            "id": "1",
            "question": given["question"],
            "options": [{"text": one["text"], "voter_count": 0, "persistent_id": one["text"]} for one in options],
            "total_voter_count": 0,
            "is_closed": False,
            "is_anonymous": given.get("is_anonymous") != "false",
            "type": "regular",
            "allows_multiple_answers": given.get("allows_multiple_answers") == "true",
            "allows_revoting": True,
            "members_only": False,
        }
        return self._add(given, Sent(0, 0, None, given["question"], [], "poll", fields=poll), {"poll": poll})

    def _do_sendChatAction(self, given: dict[str, Any]) -> Any:
        self._known_chat(given)
        self.actions.append(given)
        return True

    def _do_editMessageText(self, given: dict[str, Any]) -> Any:
        return self._edit(given, "text", "entities", 4096)

    def _do_editMessageCaption(self, given: dict[str, Any]) -> Any:
        return self._edit(given, "caption", "caption_entities", 1024)

    def _edit(self, given: dict[str, Any], part: str, marks: str, most: int) -> Any:
        chat = self._known_chat(given)["id"]
        number = int(given["message_id"])
        found = [one for one in self.sent if one.chat == chat and one.number == number]
        if not found:
            raise _Wrong(400, "Bad Request: message to edit not found")
        if (found[0].kind == "message") != (part == "text"):
            raise _Wrong(400, f"Bad Request: there is no {part} in the message to edit")
        text, entities = _checked(given.get(part, ""), json.loads(given.get(marks, "[]")), most)
        if (text, entities) == (found[0].text, found[0].entities):
            raise _Wrong(
                400,
                "Bad Request: message is not modified: specified new message content and reply markup are exactly the "
                "same as a current content and reply markup of the message",
            )
        found[0].text, found[0].entities, found[0].edits = text, entities, found[0].edits + 1
        return self._as_message(found[0], {part: text, "edit_date": int(time.time())})

    def _do_setMessageReaction(self, given: dict[str, Any]) -> Any:
        self._known_chat(given)
        if json.loads(given["reaction"])[0]["emoji"] not in "👍👎❤🔥🎉":
            raise _Wrong(400, "Bad Request: REACTION_INVALID")
        self.reactions.append(given)
        return True

    def _do_getChat(self, given: dict[str, Any]) -> Any:
        return {
            **self._known_chat(given),
            "accent_color_id": 1,
            "max_reaction_count": 11,
            "accepted_gift_types": dict.fromkeys(
                (
                    "unlimited_gifts",
                    "limited_gifts",
                    "unique_gifts",
                    "premium_subscription",
                    "gifts_from_channels",
                ),
                False,
            ),
        }

    def _do_getChatMemberCount(self, given: dict[str, Any]) -> Any:
        self._known_chat(given)
        return 3

    def _do_getFile(self, given: dict[str, Any]) -> Any:
        name = given["file_id"]
        if name not in self._files:
            raise _Wrong(400, "Bad Request: wrong file_id or the file is temporarily unavailable")
        if len(self._files[name]) > 20 * 1024 * 1024:
            raise _Wrong(400, "Bad Request: file is too big")
        return {"file_id": name, "file_unique_id": name, "file_size": len(self._files[name]), "file_path": name}

    # --- the bot's messages ---------------------------------------------------------------------------------

    def _send_media(self, given: dict[str, Any], kind: str, upload: Upload, content: dict[str, Any]) -> Any:
        if len(upload.data) > 50 * 1024 * 1024:
            raise _Wrong(413, "Request Entity Too Large")
        caption, entities = given.get("caption", ""), json.loads(given.get("caption_entities", "[]"))
        if caption:
            caption, entities = _checked(caption, entities, 1024, "message caption is too long")
        return self._add(given, Sent(0, 0, None, caption, entities, kind, upload), {**content, "caption": caption})

    def _send(self, given: dict[str, Any], text: str, entities: list[dict[str, Any]], most: int) -> Any:
        self._known_chat(given)
        text, entities = _checked(text, entities, most)
        return self._add(given, Sent(0, 0, None, text, entities), {"text": text, "entities": entities})

    def _add(self, given: dict[str, Any], sent: Sent, content: dict[str, Any]) -> Any:
        sent.chat = self._known_chat(given)["id"]
        sent.thread = int(given["message_thread_id"]) if "message_thread_id" in given else None
        sent.number = self._next(sent.chat)
        sent.fields = {**given, **sent.fields}
        self.sent.append(sent)
        return self._as_message(sent, content)

    def _as_message(self, sent: Sent, content: dict[str, Any]) -> dict[str, Any]:
        return {
            "message_id": sent.number,
            "date": int(time.time()),
            "chat": self.chats[sent.chat],
            "from": BOT,
            **content,
        }

    def _known_chat(self, given: dict[str, Any]) -> dict[str, Any]:
        if (chat := self.chats.get(int(given["chat_id"]))) is None:
            raise _Wrong(400, "Bad Request: chat not found")
        return chat


def _right(result: Any) -> Answer:
    return Answer(200, json.dumps({"ok": True, "result": result}).encode())


def _checked(
    text: str, entities: list[dict[str, Any]], most: int, too_long: str = "message is too long"
) -> tuple[str, list[dict[str, Any]]]:
    """A text as Telegram stores it, and its entities; 400 where it would refuse them."""
    if not text.strip():
        raise _Wrong(400, "Bad Request: message text is empty")
    units = len(text.encode("utf-16-le")) // 2
    if units > most:
        raise _Wrong(400, f"Bad Request: {too_long}")
    for one in entities:
        if one["offset"] < 0 or one["length"] <= 0 or one["offset"] + one["length"] > units:
            raise _Wrong(400, "Bad Request: entity bounds are wrong")
        if one["type"] == "text_link" and not re.match(r"https?://[^/]+\.|tg://|mailto:|tel:", one["url"]):
            raise _Wrong(400, f"Bad Request: entity URL '{one['url']}' is invalid: Wrong URL host")
    return text.strip(), entities[:100]


def _form(content_type: str, body: bytes) -> dict[str, Any]:
    """The fields and files of a request."""
    if not content_type.startswith("multipart/form-data"):
        return dict(parse_qsl(body.decode(), keep_blank_values=True))
    boundary = b"--" + content_type.partition("boundary=")[2].encode()
    found: dict[str, Any] = {}
    for part in body.split(boundary)[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        said = head.decode("utf-8", "replace")
        name = re.search(r'[; ]name="([^"]*)"', said)
        file = re.search(r'filename="([^"]*)"', said)
        content = content.removesuffix(b"\r\n")
        assert name
        found[name[1]] = Upload(file[1], content) if file else content.decode()
    return found


def _upload(given: dict[str, Any], name: str) -> Upload:
    value = given[name]
    if isinstance(value, str) and value.startswith("attach://"):
        value = given[value.removeprefix("attach://")]
    if not isinstance(value, Upload) or not value.data:
        raise _Wrong(400, "Bad Request: file must be non-empty")
    return value


async def until(condition: Any, seconds: float = 20) -> None:
    """Return once this is so; fails where that takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        await asyncio.sleep(0.01)


def elsewhere(api: BotApi) -> contextlib.AbstractAsyncContextManager[None]:
    """Another program that receives this bot's messages."""
    return _Rival(api)


class _Rival(contextlib.AbstractAsyncContextManager[None]):
    def __init__(self, api: BotApi) -> None:
        self._api = api

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._poll())

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _poll(self) -> None:
        import httpx

        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            while True:
                await client.get(f"{self._api.url}/bot{self._api.token}/getUpdates?timeout=20")
                await asyncio.sleep(0.2)
