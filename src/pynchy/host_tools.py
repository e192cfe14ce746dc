"""What an agent may ask of the host by the tools of its server `pynchy`, and who may ask what of whom.

A call comes through the pipe of one group's container, and that group is the caller, whatever the call says. The
target is the group that it names, or the caller's own.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol
from zoneinfo import ZoneInfo

import structlog

from pynchy.attachments import safe_name
from pynchy.config import Settings
from pynchy.group_settings import apply, in_words
from pynchy.history import search_text
from pynchy.home import make_private
from pynchy.plugin._validation import compile_schema
from pynchy.router import visible_text
from pynchy.schedule import Schedule
from pynchy.store import Store
from pynchy.tasks import Task
from pynchy.turns import Turns
from pynchy.types import GROUP_SETTINGS, Attachment, Group, valid_folder

log = structlog.get_logger(__name__)

#: Calls of one group's agents: at once, and then so many each second. Nobody's chat or disk is to be flooded.
_AT_ONCE = 30
_EACH_SECOND = 0.5
_MAX_TEXT = 100_000  # characters
_MAX_CAPTION = 4_000
_MAX_PROMPT = 20_000
#: What one group's agents may have waiting to be sent as files, in bytes.
_MAX_WAITING_FILES = 500 * 1024**2

Caller = Literal["main", "other"]
Target = Literal["own", "foreign"]

_OWN: frozenset[tuple[Caller, Target]] = frozenset({("main", "own"), ("other", "own")})
_OWN_AND_MAIN_ALL: frozenset[tuple[Caller, Target]] = frozenset({*_OWN, ("main", "foreign")})
_MAIN: frozenset[tuple[Caller, Target]] = frozenset({("main", "own"), ("main", "foreign")})

#: Who may do what to whose group. What is not here may nobody do.
RIGHTS: Mapping[str, frozenset[tuple[Caller, Target]]] = {
    "send_message": _OWN_AND_MAIN_ALL,
    "send_file": _OWN_AND_MAIN_ALL,
    "search_history": _OWN,
    "schedule_task": _OWN_AND_MAIN_ALL,
    "list_tasks": _OWN_AND_MAIN_ALL,
    "update_task": _OWN_AND_MAIN_ALL,
    "pause_task": _OWN_AND_MAIN_ALL,
    "resume_task": _OWN_AND_MAIN_ALL,
    "cancel_task": _OWN_AND_MAIN_ALL,
    "list_groups": _MAIN,
    "register_group": frozenset({("main", "foreign")}),
    "update_group": _MAIN,
    "remove_group": frozenset({("main", "foreign")}),
}


class Administration(Protocol):
    """The groups, as the service has them."""

    def registered_groups(self) -> Mapping[str, Group]:
        """Every group by its jid."""
        ...

    def group_in(self, folder: str) -> Group | None:
        """The group of a folder."""
        ...

    def installed_plugins(self) -> frozenset[str]:
        """The plugins that a group can have."""
        ...

    async def known_chats(self) -> dict[str, str]:
        """The names of the chats that channels have seen, by jid."""
        ...

    async def register_group(self, group: Group) -> None:
        """Answer a chat from now on; ValueError where it cannot be a group."""
        ...

    async def update_group(self, group: Group) -> None:
        """Give a group other settings; ValueError where one cannot be."""
        ...

    async def remove_group(self, folder: str) -> None:
        """Answer a chat no longer; ValueError where that cannot be."""
        ...

    def sends_files(self, jid: str) -> bool:
        """Whether the channel of a chat can carry a file."""
        ...

    def zone_of(self, folder: str) -> ZoneInfo:
        """Where the people of a group are."""
        ...

    def wake_outbox(self) -> None:
        """Something may be sent now."""
        ...

    def wake_scheduler(self) -> None:
        """A task may be due at another time now."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool: whose agent makes it, whose group it is about, with what, and the file that it names.

    `task` is the one that it names. `by_task`: a scheduled task makes the call, of which the chat's conversation does
    not know.
    """

    caller: Group
    target: Group
    arguments: dict[str, Any]
    file: Attachment | None = None
    task: Task | None = None
    by_task: bool = False

    @property
    def unseen(self) -> bool:
        """Whether the conversation of the target's chat does not know of it."""
        return self.by_task or self.target.jid != self.caller.jid


_Handler = Callable[["HostTools", Call], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool: what the model reads of it, the schema of its arguments, and who carries it out.

    `file` names the argument that is a path in the container, and comes with what is there.
    """

    description: str
    schema: Mapping[str, Any]
    handler: _Handler
    file: str | None = None

    def described(self, name: str, for_main: bool) -> dict[str, Any]:
        """What the container's side is told of it; only main is told that it may name another group."""
        properties = dict(self.schema["properties"])
        if not for_main and ("main", "foreign") in RIGHTS[name]:
            properties.pop("group", None)
        return {
            "name": name,
            "description": self.description,
            "input_schema": {**self.schema, "properties": properties},
            "file": self.file,
        }


class HostTools:
    """Carries out the calls of every group's agents."""

    def __init__(self, settings: Settings, store: Store, groups: Administration) -> None:
        self._settings = settings
        self._store = store
        self._groups = groups
        self._turns = Turns(_AT_ONCE, _EACH_SECOND)

    def offered_to(self, group: Group) -> list[dict[str, Any]]:
        """The tools that a group's agent sees: those that it may use at all."""
        caller: Caller = "main" if group.is_main else "other"
        return [
            tool.described(name, group.is_main)
            for name, tool in TOOLS.items()
            if any(who == caller for who, _ in RIGHTS[name])
        ]

    async def call(
        self, caller: Group, name: str, arguments: Any, file: Attachment | None = None, by_task: bool = False
    ) -> str:
        """Do what a call asks and return what to tell the agent; ValueError and PermissionError are refusals."""
        tool = TOOLS.get(name)
        if tool is None:
            raise ValueError(f"there is no tool {name[:80]!r}")
        await self._turns.wait(caller.folder)
        arguments = compile_schema(tool.schema)(with_file(arguments, tool.file, file))
        task = await self._task(caller, arguments["task"]) if "task" in arguments else None
        target = self._target(caller, name, arguments, task)
        whose: Target = "own" if target.jid == caller.jid else "foreign"
        if ("main" if caller.is_main else "other", whose) not in RIGHTS[name]:
            raise PermissionError(_refusal(caller, name, whose))
        log.info("a host tool is called", group=caller.folder, tool=name, target=target.folder)
        return await tool.handler(self, Call(caller, target, arguments, file, task, by_task))

    async def _task(self, caller: Group, number: int) -> Task:
        task = await self._store.tasks.get(number)
        if task is None or (task.folder != caller.folder and not caller.is_main):
            raise ValueError(f"there is no task {number} in this chat; list_tasks lists those there are")
        return task

    def _target(self, caller: Group, name: str, arguments: dict[str, Any], task: Task | None) -> Group:
        if name == "register_group":
            return Group(arguments["jid"], arguments["folder"], arguments["folder"])
        if name == "list_groups":
            return caller
        folder = task.folder if task else arguments.get("group")
        if folder is None or folder == caller.folder:
            return caller
        if group := self._groups.group_in(folder):
            return group
        if not caller.is_main:  # which does not learn what groups there are
            raise PermissionError(_refusal(caller, name, "foreign"))
        known = ", ".join(sorted(group.folder for group in self._groups.registered_groups().values()))
        raise ValueError(f"there is no group {folder[:80]!r}; there are: {known}")

    # --- messages -------------------------------------------------------------------------------------------

    async def _send_message(self, call: Call) -> str:
        text = visible_text(call.arguments["text"])
        if not text:
            raise ValueError("there is nothing to send: the text is empty")
        await self._store.enqueue(call.target.jid, text, "message", unseen=call.unseen)
        self._groups.wake_outbox()
        return "Message sent."

    async def _send_file(self, call: Call) -> str:
        if not self._groups.sends_files(call.target.jid):
            raise ValueError("the channel of this chat carries no files: say what is in it instead")
        assert call.file
        data = call.file.data or b""
        name = safe_name(call.file.name)
        caption = visible_text(call.arguments.get("caption", ""))
        file = await asyncio.to_thread(_keep_file, self._settings.home, call.caller.folder, name, data)
        await self._store.enqueue(call.target.jid, caption, "message", file=file, unseen=call.unseen)
        self._groups.wake_outbox()
        return f"File {name} sent, {len(data)} bytes."

    async def _search_history(self, call: Call) -> str:
        return await self._store.look(
            lambda db: search_text(
                db, call.arguments["words"], call.target.jid, self._groups.zone_of(call.target.folder)
            )
        )

    # --- tasks ----------------------------------------------------------------------------------------------

    async def _schedule_task(self, call: Call) -> str:
        given, now = call.arguments, datetime.now(UTC)
        zone = self._groups.zone_of(call.target.folder)
        schedule = Schedule.parse(given["kind"], given["schedule"], zone, now)
        task = await self._store.tasks.add(
            call.target.folder,
            given["prompt"],
            schedule,
            given.get("context", "group"),
            given.get("missed", "once"),
            zone,
            now,
        )
        self._groups.wake_scheduler()
        return f"Scheduled: {self._in_words(task)}"

    async def _list_tasks(self, call: Call) -> str:
        everything = call.caller.is_main and "group" not in call.arguments
        tasks = await self._store.tasks.of(None if everything else call.target.folder)
        return "\n".join(self._in_words(task, everything) for task in tasks) or "There are no tasks."

    async def _update_task(self, call: Call) -> str:
        given, now = call.arguments, datetime.now(UTC)
        task, zone = call.task, self._groups.zone_of(call.target.folder)
        assert task
        schedule = None
        if "schedule" in given:
            schedule = Schedule.parse(given.get("kind", task.schedule.kind), given["schedule"], zone, now)
        elif "kind" in given:
            raise ValueError("another kind needs another schedule with it")
        changed = await self._store.tasks.change(
            task.id,
            zone,
            now,
            prompt=given.get("prompt"),
            schedule=schedule,
            context=given.get("context"),
            missed=given.get("missed"),
        )
        self._groups.wake_scheduler()
        return f"Changed: {self._in_words(changed)}"

    async def _pause_task(self, call: Call) -> str:
        return f"Paused: {self._in_words(await self._store.tasks.pause(call.arguments['task']))}"

    async def _resume_task(self, call: Call) -> str:
        zone = self._groups.zone_of(call.target.folder)
        task = await self._store.tasks.resume(call.arguments["task"], zone, datetime.now(UTC))
        self._groups.wake_scheduler()
        return f"Resumed: {self._in_words(task)}"

    async def _cancel_task(self, call: Call) -> str:
        task = await self._store.tasks.end(call.arguments["task"])
        return f"Cancelled: task {task.id}."

    def _in_words(self, task: Task, with_group: bool = False) -> str:
        return task.in_words(self._groups.zone_of(task.folder), with_group)

    # --- groups ---------------------------------------------------------------------------------------------

    async def _list_groups(self, call: Call) -> str:
        groups = self._groups.registered_groups()
        lines = [
            json.dumps(
                {
                    "folder": group.folder,
                    "jid": group.jid,
                    "name": group.name,
                    "settings": in_words(group),
                    "people": await self._store.people(group.jid),
                },
                ensure_ascii=False,
            )
            for group in groups.values()
        ]
        chats = await self._groups.known_chats()
        lines += [
            json.dumps({"not registered": jid, "name": name}, ensure_ascii=False)
            for jid, name in sorted(chats.items())
            if jid not in groups
        ]
        return "\n".join(lines)

    async def _register_group(self, call: Call) -> str:
        jid, folder = call.arguments["jid"], call.arguments["folder"]
        groups = self._groups.registered_groups()
        if jid in groups:
            raise ValueError(f"that chat is the group {groups[jid].folder!r} already; update_group changes it")
        chats = await self._groups.known_chats()
        if jid not in chats:
            raise ValueError(f"no channel has seen a chat {jid[:200]!r}; list_groups lists those there are")
        before = Group(jid, chats[jid] or folder, folder)
        group = self._changed(before, call.arguments)
        await self._groups.register_group(group)
        return f"Registered: {', '.join([group.folder, group.name, *in_words(group)])}"

    async def _update_group(self, call: Call) -> str:
        group = self._changed(call.target, call.arguments)
        await self._groups.update_group(group)
        return f"Changed: {', '.join([group.folder, group.name, *in_words(group)])}"

    async def _remove_group(self, call: Call) -> str:
        await self._groups.remove_group(call.target.folder)
        return f"{call.target.folder} is no group any more; its folder and its history are kept."

    def _changed(self, group: Group, arguments: dict[str, Any]) -> Group:
        """The group as it is wished for; PermissionError where only the user may wish that, at the command line."""
        wishes = {name: arguments[name] for name in _BY_AGENTS if name in arguments}
        changed = apply(group, wishes, self._groups.installed_plugins())
        if changed.network == "bridge" and group.network != "bridge":
            raise PermissionError("a network of its own is the user's to give: `pynchy groups set`")
        if changed.is_main and changed.network != group.network:
            raise PermissionError("what the main chat may reach is the user's to say: `pynchy groups set`")
        for name in ("memory_bytes", "cpus", "pids"):
            most = getattr(self._settings, f"agent_{name.removesuffix('_bytes')}")
            now, wanted = getattr(group, name) or most, getattr(changed, name) or most
            if wanted > max(now, most):
                raise PermissionError(f"more {name.removesuffix('_bytes')} is the user's to give: `pynchy groups set`")
        return changed


#: What an agent of main's may set; what a group may spend, and whether it is main, is the user's alone to say.
_BY_AGENTS = tuple(name for name in GROUP_SETTINGS if name not in ("main", "usd_a_day"))


def _refusal(caller: Group, name: str, whose: Target) -> str:
    if caller.is_main:
        return f"{name} is for {'other chats' if whose == 'own' else 'this chat'} alone"
    if whose == "own":
        return f"only the main chat may use {name}"
    return f"{name} works for this chat alone: only the main chat may name another"


def _keep_file(home: Path, folder: str, name: str, data: bytes) -> str:
    """Store a file that is to be sent, and return its path below the home's `sent` folder."""
    if not valid_folder(folder):
        raise ValueError(f"a group's folder cannot be called {folder!r}")
    top = make_private(make_private(home / "sent") / folder)
    waiting = sum(path.stat().st_size for path in top.rglob("*") if path.is_file())
    if waiting + len(data) > _MAX_WAITING_FILES:
        raise ValueError("too many files were sent lately; they are removed after a while")
    directory = make_private(top / uuid.uuid4().hex[:12])
    (directory / name).write_bytes(data)
    return f"{folder}/{directory.name}/{name}"


def with_file(arguments: Any, argument: str | None, file: Attachment | None) -> Any:
    """A call's arguments with the file's name in the one that names it; ValueError for a path without its bytes."""
    if file is None:
        if isinstance(arguments, dict) and argument in arguments:
            raise ValueError("a file comes with its bytes")
        return arguments
    if argument is None:
        raise ValueError("this tool takes no file")
    if not isinstance(arguments, dict):
        raise ValueError("the arguments must be an object")
    return {**arguments, argument: file.name}


# --- the tools, as the model sees them ----------------------------------------------------------------------


def _schema(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _text(description: str, most: int, least: int = 0) -> dict[str, Any]:
    return {"type": "string", "description": description, "minLength": least, "maxLength": most}


_GROUP = _text("Another group's folder instead of this chat.", 64)
_TASK = {"type": "integer", "description": "The task's number, as list_tasks has it.", "minimum": 1, "maximum": 2**62}
_PROMPT = _text("What to do then, as a message to yourself that says all that is needed.", _MAX_PROMPT, 1)
_KIND = {
    "enum": ["cron", "interval", "once"],
    "description": "cron: five fields in this chat's time zone. interval: every so long. once: at one time.",
}
_SCHEDULE = _text(
    "cron: as in `0 9 * * 1-5`. interval: as in `90m`, `2h` or `1d`, at least 60s. once: ISO 8601, as in "
    "`2026-03-01T09:00`, in this chat's time zone where it has no offset.",
    200,
    1,
)
_CONTEXT = {
    "enum": ["group", "isolated"],
    "description": "group (the default): it knows this chat's conversation. isolated: only its prompt.",
}
_MISSED = {
    "enum": ["once", "skip"],
    "description": "Where the computer was off at its time: once (the default) does it as soon as possible, skip "
    "leaves it out.",
}
_SETTINGS = {name: _text(GROUP_SETTINGS[name][:1].upper() + GROUP_SETTINGS[name][1:], 2000) for name in _BY_AGENTS}

TOOLS: Mapping[str, Tool] = {
    "send_message": Tool(
        "Send a message to this chat at once, while you are still working. Your final answer is sent by itself; use "
        "this for progress or for an extra message.",
        _schema(("text",), text=_text("What to say, as plain text.", _MAX_TEXT, 1), group=_GROUP),
        HostTools._send_message,
    ),
    "send_file": Tool(
        "Send a file to this chat.",
        _schema(
            ("path",),
            path=_text("The file, in your working directory or anywhere you can read.", 4096, 1),
            caption=_text("What to say with it.", _MAX_CAPTION),
            group=_GROUP,
        ),
        HostTools._send_file,
        file="path",
    ),
    "search_history": Tool(
        "Search all that was said in this chat, by words, also long before this conversation.",
        _schema(("words",), words=_text("Words that must all occur.", 500, 1)),
        HostTools._search_history,
    ),
    "schedule_task": Tool(
        "Have something done later, once or again and again. A run of its own does it; what it answers is sent to the "
        "chat.",
        _schema(
            ("prompt", "kind", "schedule"),
            prompt=_PROMPT,
            kind=_KIND,
            schedule=_SCHEDULE,
            context=_CONTEXT,
            missed=_MISSED,
            group=_GROUP,
        ),
        HostTools._schedule_task,
    ),
    "list_tasks": Tool(
        "List the scheduled tasks, with their numbers and when each is next due.",
        _schema(group=_GROUP),
        HostTools._list_tasks,
    ),
    "update_task": Tool(
        "Change a scheduled task.",
        _schema(
            ("task",),
            task=_TASK,
            prompt=_PROMPT,
            kind=_KIND,
            schedule=_SCHEDULE,
            context=_CONTEXT,
            missed=_MISSED,
        ),
        HostTools._update_task,
    ),
    "pause_task": Tool("Let a task rest until it is resumed.", _schema(("task",), task=_TASK), HostTools._pause_task),
    "resume_task": Tool("Let a paused task go on.", _schema(("task",), task=_TASK), HostTools._resume_task),
    "cancel_task": Tool("End a task for good.", _schema(("task",), task=_TASK), HostTools._cancel_task),
    "list_groups": Tool(
        "List the groups with their settings and people, and the chats that could become one.",
        _schema(),
        HostTools._list_groups,
    ),
    "register_group": Tool(
        "Answer a chat from now on, as a group of its own with a folder, a memory and an agent.",
        _schema(
            ("jid", "folder"),
            jid=_text("The chat's address, as list_groups has it.", 300, 1),
            folder=_text("A short name for it: lower-case letters, digits, `-` and `_`.", 64, 1),
            **_SETTINGS,
        ),
        HostTools._register_group,
    ),
    "update_group": Tool(
        "Change a group's settings.",
        _schema(("group",), group=_text("The group's folder.", 64, 1), **_SETTINGS),
        HostTools._update_group,
    ),
    "remove_group": Tool(
        "Answer a chat no longer.",
        _schema(("group",), group=_text("The group's folder.", 64, 1)),
        HostTools._remove_group,
    ),
}
