"""What agents can do in Telegram's chats beside answering: each tool works in the chat of the agent that calls it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from pynchy.plugin import HostTool, NotConnected, Refused, ToolCall
from pynchy_plugin_telegram.addresses import Address

if TYPE_CHECKING:
    from pynchy_plugin_telegram.channel import TelegramChannel

#: Seconds a call may take: a flood may have to be waited for, and a file takes its time.
_WITHIN = 120.0


class TelegramTools:
    """The tools of one plugin; `channel` gives its channel once there is one."""

    def __init__(self, channel: Callable[[], TelegramChannel | None]) -> None:
        self._channel = channel

    def all(self) -> list[HostTool]:
        """As Pynchy takes them."""
        tool = partial(HostTool, timeout=_WITHIN, chats="telegram:")
        return [
            tool(
                "send_photo",
                "Send a picture (JPEG or PNG, at most 10 MB) to this Telegram chat, shown as a photo.",
                _schema(("path",), path=_PATH, caption=_CAPTION),
                self._send_photo,
                file="path",
            ),
            tool(
                "send_document",
                "Send a file to this Telegram chat as it is, a picture too.",
                _schema(("path",), path=_PATH, caption=_CAPTION),
                self._send_document,
                file="path",
            ),
            tool(
                "send_poll",
                "Ask this Telegram chat to vote. What people choose is shown in the chat, and to you it is not told.",
                _schema(
                    ("question", "options"),
                    question=_text("The question.", 300, 1),
                    options={
                        "type": "array",
                        "items": _text("What can be chosen.", 100, 1),
                        "minItems": 2,
                        "maxItems": 10,
                        "uniqueItems": True,
                    },
                    multiple={"type": "boolean", "description": "Whether several can be chosen; false by default."},
                    anonymous={"type": "boolean", "description": "Whether votes have no names; true by default."},
                ),
                self._send_poll,
            ),
            tool(
                "edit_message",
                "Change what you have said in this Telegram chat, in a message or with a file, by the number that a "
                "tool has told you or that somebody's `reply_to` names.",
                _schema(("message", "text"), message=_MESSAGE, text=_text("The whole new text, as Markdown.", 4096, 1)),
                self._edit_message,
            ),
            tool(
                "react",
                "React to a message of this Telegram chat with an emoji.",
                _schema(("message", "emoji"), message=_MESSAGE, emoji=_text("One emoji, as in 👍.", 16, 1)),
                self._react,
            ),
            tool(
                "chat_description",
                "Say what this Telegram chat is called and about, how many are in it, and what is pinned.",
                _schema(()),
                self._chat_description,
            ),
        ]

    async def _send_photo(self, arguments: dict[str, Any], call: ToolCall) -> str:
        return await self._send(arguments, call, as_photo=True)

    async def _send_document(self, arguments: dict[str, Any], call: ToolCall) -> str:
        return await self._send(arguments, call, as_photo=False)

    async def _send(self, arguments: dict[str, Any], call: ToolCall, as_photo: bool) -> str:
        channel, to = self._where(arguments, call)
        if call.file is None or call.file.data is None:
            raise ValueError("there is no file: name one by `path`")
        file = call.file
        caption = arguments.get("caption", "")
        number = await _said(channel.outgoing.file(to, file.name, call.file.data, caption, as_photo))
        return f"Sent as message {number}."

    async def _send_poll(self, arguments: dict[str, Any], call: ToolCall) -> str:
        channel, to = self._where(arguments, call)
        bot = channel.connection.bot
        message = await _said(
            channel.outgoing.do(
                to,
                lambda: bot.send_poll(
                    to.chat,
                    arguments["question"],
                    arguments["options"],
                    is_anonymous=arguments.get("anonymous", True),
                    allows_multiple_answers=arguments.get("multiple", False),
                    message_thread_id=to.thread,
                ),
            )
        )
        channel.seen.note(to, message.message_id)
        return f"Sent as message {message.message_id}."

    async def _edit_message(self, arguments: dict[str, Any], call: ToolCall) -> str:
        channel, to = self._where(arguments, call)
        number = _number(channel, to, arguments["message"])
        await _said(channel.outgoing.edit(to, number, arguments["text"]))
        return "Changed."

    async def _react(self, arguments: dict[str, Any], call: ToolCall) -> str:
        channel, to = self._where(arguments, call)
        number = _number(channel, to, arguments["message"])
        from telegram import ReactionTypeEmoji

        bot = channel.connection.bot
        reaction = ReactionTypeEmoji(arguments["emoji"].removesuffix("\ufe0f"))  # Telegram knows ❤, and not ❤️
        await _said(
            channel.outgoing.do(to, lambda: bot.set_message_reaction(to.chat, number, reaction)),
            invalid="Telegram takes only some emoji as reactions: 👍 👎 ❤ 🔥 🎉 😁 🤔 😢 👏 🙏 👌 👀 and others",
        )
        return "Done."

    async def _chat_description(self, arguments: dict[str, Any], call: ToolCall) -> str:
        channel, to = self._where(arguments, call)
        bot = channel.connection.bot
        chat = await _said(channel.outgoing.do(to, lambda: bot.get_chat(to.chat)))
        members = await _said(channel.outgoing.do(to, lambda: bot.get_chat_member_count(to.chat)))
        name = chat.title or " ".join(filter(None, (chat.first_name, chat.last_name)))
        lines = [f"Title: {name}", f"Members: {members}"]
        if about := chat.description or chat.bio:
            lines.append(f"Description: {about}")
        pinned = chat.pinned_message
        if pinned and (pinned.message_thread_id if pinned.is_topic_message else None) == to.thread:
            lines.append(f"Pinned: {pinned.text or pinned.caption or 'a message without a text'}")
        return "\n".join(lines)

    def _where(self, arguments: dict[str, Any], call: ToolCall) -> tuple[TelegramChannel, Address]:
        """The channel and the chat; a ValueError or PermissionError where this agent cannot act there."""
        channel = self._channel()
        if channel is None:
            raise ValueError("Telegram is not connected here: only the service, `pynchy run`, does that")
        if not channel.is_open:
            raise ValueError("the bot is not connected to Telegram now")
        jid = arguments.get("chat", call.group.jid)
        if jid != call.group.jid:
            if not call.group.is_main:
                raise PermissionError("this works for this chat alone: only the main chat may name another")
            if jid not in channel.context.registered_groups():
                raise ValueError("that chat is no group: list_groups lists those there are")
        if (address := Address.parse(jid)) is None:
            raise ValueError("this is no Telegram chat" + (": name one by `chat`" if call.group.is_main else ""))
        return channel, address


def _number(channel: TelegramChannel, to: Address, message: str) -> int:
    """A message's number. Topics of one chat share their numbers, so there it must be known whose it is."""
    number = int(message.partition("+")[0])
    groups = filter(None, map(Address.parse, channel.context.registered_groups()))
    if any(other.chat == to.chat and other != to for other in groups) and not channel.seen.knows(to, number):
        raise PermissionError(f"no message {number} of this topic is known since Pynchy was started")
    return number


async def _said(action: Any, invalid: str = "") -> Any:
    """What was asked for; what went wrong reaches the agent in its words, which hold no secret."""
    try:
        return await action
    except (Refused, NotConnected) as error:
        text = str(error)
        raise ValueError(invalid if invalid and "reaction" in text.lower() else text) from None


def _text(description: str, most: int, least: int = 0) -> dict[str, Any]:
    return {"type": "string", "description": description, "minLength": least, "maxLength": most}


def _schema(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**properties, "chat": _CHAT},
        "required": list(required),
        "additionalProperties": False,
    }


_PATH = _text("The file, in your working directory or anywhere you can read.", 4096, 1)
_CAPTION = _text("What to say with it, as Markdown.", 4096)
_MESSAGE = {
    "type": "string",
    "description": "The message's number: its `id`, or what a tool has told.",
    "pattern": r"^[1-9][0-9]{0,14}(\+[0-9]{1,15})?$",
}
_CHAT = {
    "type": "string",
    "description": "For the main chat alone: another group's address instead of this chat, as in telegram:-100123.",
    "pattern": r"^telegram:-?[1-9][0-9]{0,18}(/[1-9][0-9]{0,17})?$",
}
