"""Commands in a chat, `/word`, that the host answers itself: no model, no agent, and none of it costs anything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol
from zoneinfo import ZoneInfo

from pynchy.group_settings import group_lines
from pynchy.router import Command, may_command
from pynchy.store import Store
from pynchy.tasks import Task
from pynchy.types import Group, NewMessage


class Behind(Protocol):
    """What commands reach of the service."""

    def registered_groups(self) -> Mapping[str, Group]:
        """Every group by its jid."""
        ...

    def zone_of(self, folder: str) -> ZoneInfo:
        """Where the people of a group are."""
        ...

    async def known_chats(self) -> dict[str, str]:
        """The names of the chats that channels have seen, by jid."""
        ...

    async def status(self, group: Group | None = None) -> list[str]:
        """How the service is, in lines of text; of one group or of all."""
        ...

    async def plugin_lines(self) -> list[str]:
        """Every installed plugin, what is wrong with it, and what has changed since the start."""
        ...

    async def stop_agents(self, group: Group) -> str | None:
        """End what a group's agents do; what to say of it, None where nothing was to be ended."""
        ...

    async def begin_anew(self, group: Group) -> None:
        """Let a group's next message begin a new conversation."""
        ...

    async def change_task(self, action: str, task: Task) -> Task:
        """Pause, resume or cancel a task; ValueError where that cannot be."""
        ...


@dataclass(frozen=True, slots=True)
class ChatCommand:
    """A command: what it does, in a few words, and whether it is for the main chat alone.

    `answer` is None for what the agent's own side does.
    """

    sentence: str
    answer: Callable[[ChatCommands, Command, Group], Awaitable[str | None]]
    main_only: bool = False


class ChatCommands:
    """Answers the commands of every chat."""

    def __init__(self, store: Store, behind: Behind) -> None:
        self._store = store
        self._behind = behind

    async def answer(self, command: Command, message: NewMessage, group: Group) -> str | None:
        """What the host says to a command and has done; None where the message is for the agent."""
        known = COMMANDS.get(command.word)
        if known is None:
            return None
        if not may_command(group, message.sender, message.is_from_me):
            return "You may use no commands in this chat."
        if known.main_only and not group.is_main:
            return f"/{command.word} works in the main chat alone."
        return await known.answer(self, command, group)

    async def _help(self, command: Command, group: Group) -> str:
        lines = [f"/{word}: {one.sentence}" for word, one in COMMANDS.items() if group.is_main or not one.main_only]
        return "\n".join([*lines, "Anything else is for the assistant."])

    async def _status(self, command: Command, group: Group) -> str:
        return "\n".join(await self._behind.status(None if group.is_main else group))

    async def _stop(self, command: Command, group: Group) -> str:
        return await self._behind.stop_agents(group) or "Nothing is being done here."

    async def _clear(self, command: Command, group: Group) -> str:
        await self._behind.begin_anew(group)
        return "The next message begins a new conversation. What was said before stays in the history."

    async def _compact(self, command: Command, group: Group) -> str | None:
        if await self._store.session(group.jid) is None:
            return "There is no conversation to be compacted yet."
        return None

    async def _tasks(self, command: Command, group: Group) -> str:
        if command.rest:
            return await self._change_task(command.rest, group)
        tasks = await self._store.tasks.of(None if group.is_main else group.folder)
        lines = [task.in_words(self._behind.zone_of(task.folder), group.is_main) for task in tasks]
        return "\n".join(lines) or "No tasks are scheduled."

    async def _change_task(self, words: str, group: Group) -> str:
        action, _, number = words.partition(" ")
        if action not in ("pause", "resume", "cancel") or not number.strip().isdecimal() or len(number) > 15:
            return "Write /tasks, or /tasks pause, resume or cancel with a task's number, as in `/tasks pause 3`."
        task = await self._store.tasks.get(int(number))
        if task is None or (task.folder != group.folder and not group.is_main):
            return f"There is no task {number.strip()} here; /tasks lists those there are."
        try:
            changed = await self._behind.change_task(action, task)
        except ValueError as error:
            return f"{error}."
        return changed.in_words(self._behind.zone_of(task.folder), group.is_main)

    async def _groups(self, command: Command, group: Group) -> str:
        chats = await self._behind.known_chats()
        return "\n".join(group_lines(self._behind.registered_groups().values(), chats))

    async def _plugins(self, command: Command, group: Group) -> str:
        return "\n".join(await self._behind.plugin_lines()) or "No plugins are installed."


COMMANDS: Mapping[str, ChatCommand] = {
    "help": ChatCommand("say what commands there are", ChatCommands._help),
    "status": ChatCommand("say what is going on, and what it has cost today", ChatCommands._status),
    "stop": ChatCommand("end what is being done", ChatCommands._stop),
    "clear": ChatCommand("begin a new conversation", ChatCommands._clear),
    "compact": ChatCommand("go on with a summary of the conversation", ChatCommands._compact),
    "tasks": ChatCommand(
        "list the scheduled tasks; `pause`, `resume` or `cancel` one by its number", ChatCommands._tasks
    ),
    "groups": ChatCommand("list the groups, and the chats that could become one", ChatCommands._groups, main_only=True),
    "plugins": ChatCommand("list the plugins", ChatCommands._plugins, main_only=True),
}
