"""What an agent may ask of the host: every tool for every caller, and nothing beyond the caller's own.

The agent's own side checks the same; here it is one that does not.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import RogueRuntime, StartService, until

from pynchy.app import Service
from pynchy.host_tools import RIGHTS, TOOLS, HostTools
from pynchy.schedule import Schedule
from pynchy.types import GROUP_SETTINGS, Attachment, Group

pytestmark = pytest.mark.anyio

MAIN, FAMILY, WORK = "main", "family", "work"

#: What each tool is called with where it is to succeed.
_WELL: dict[str, dict[str, Any]] = {
    "send_message": {"text": "hello"},
    "send_file": {"path": "list.txt", "caption": "the list"},
    "search_history": {"words": "hello"},
    "schedule_task": {"prompt": "water the plants", "kind": "interval", "schedule": "1h"},
    "list_tasks": {},
    "update_task": {"prompt": "water the herbs"},
    "pause_task": {},
    "resume_task": {},
    "cancel_task": {},
    "list_groups": {},
    "register_group": {"jid": "terminal:new", "folder": "new"},
    "update_group": {"name": "Another"},
    "remove_group": {},
}
_OF_TASKS = ("update_task", "pause_task", "resume_task", "cancel_task")
_CHANGES_NOTHING = ("list_tasks", "list_groups", "search_history", "resume_task")

#: Who may, of the main chat and others, for its own group and another's. Written down once more, on purpose.
_MAY: dict[str, Set[tuple[str, str]]] = {
    **dict.fromkeys(
        ("send_message", "send_file", "schedule_task", "list_tasks", *_OF_TASKS),
        frozenset({("main", "own"), ("main", "foreign"), ("other", "own")}),
    ),
    "search_history": {("main", "own"), ("other", "own")},
    "list_groups": {("main", "own")},
    "register_group": {("main", "foreign")},
    "update_group": {("main", "own"), ("main", "foreign")},
    "remove_group": {("main", "foreign")},
}


class World:
    """A service with the groups main, family and work, a task in each, and a chat that is no group."""

    def __init__(self, service: Service, database: Path) -> None:
        self.service = service
        self.database = database
        self.tools: HostTools = service._tools
        self.tasks: dict[str, int] = {}

    def group(self, folder: str) -> Group:
        group = self.service.groups.in_folder(folder)
        assert group
        return group

    def rows(self, *queries: str) -> list[Any]:
        with closing(sqlite3.connect(self.database)) as db:
            return [db.execute(query).fetchall() for query in queries]

    def facts(self) -> list[Any]:
        """Every row that a tool could change."""
        tables = ("groups", "tasks", "task_runs", "outbox", "messages")
        return self.rows(*(f"SELECT * FROM {table} ORDER BY 1" for table in tables))

    def queued(self) -> list[Any]:
        return self.rows("SELECT chat_jid, text, kind, file, unseen FROM outbox ORDER BY id")[0]

    async def call(self, caller: str, name: str, arguments: Any) -> str:
        file = None
        if name == "send_file" and isinstance(arguments, dict) and isinstance(arguments.get("path"), str):
            file = Attachment(arguments["path"], "text/plain", b"milk\n")
            arguments = {key: value for key, value in arguments.items() if key != "path"}
        return await self.tools.call(self.group(caller), name, arguments, file)


@asynccontextmanager
async def world(start_service: StartService, tmp_path: Path) -> AsyncIterator[World]:
    async with start_service(RogueRuntime("answers")) as service:
        for folder in (FAMILY, WORK):
            await service.register_group(Group(f"terminal:{folder}", folder, folder))
        await service.on_chat_metadata("terminal:new", "New")
        here = World(service, tmp_path / "home/pynchy.db")
        for folder in (MAIN, FAMILY, WORK):
            text = await here.call(folder, "schedule_task", _WELL["schedule_task"])
            here.tasks[folder] = int(text.removeprefix("Scheduled: Task ").split(":")[0])
        yield here


def _arguments(here: World, name: str, caller: str, target: str) -> dict[str, Any]:
    """A call that is right in itself, about the group of `target`."""
    arguments = dict(_WELL[name])
    if name in _OF_TASKS:
        arguments["task"] = here.tasks[target]
    elif name in ("update_group", "remove_group") or (
        target != caller and name in ("send_message", "send_file", "schedule_task", "list_tasks")
    ):
        arguments["group"] = target
    return arguments


def test_every_tool_has_its_rights_and_every_right_its_tool() -> None:
    assert RIGHTS.keys() == TOOLS.keys() == _MAY.keys() == _WELL.keys()


#: Tools that know no other target than this, whatever is asked.
_ALWAYS = {"register_group": "foreign", "list_groups": "own", "search_history": "own"}
_PAIRS = [(MAIN, MAIN), (MAIN, FAMILY), (FAMILY, FAMILY), (FAMILY, WORK), (FAMILY, MAIN)]


@pytest.mark.parametrize("name", TOOLS)
async def test_each_tool_does_what_its_caller_may_and_nothing_else(
    name: str, start_service: StartService, tmp_path: Path
) -> None:
    for caller, target in _PAIRS:
        whose = _ALWAYS.get(name) or ("own" if caller == target else "foreign")
        allowed = ("main" if caller == MAIN else "other", whose) in _MAY[name]
        async with world(start_service, tmp_path) as here:
            before, files = here.facts(), sorted((tmp_path / "home").glob("sent/**/*.txt"))
            arguments = _arguments(here, name, caller, target)
            if allowed:
                assert await here.call(caller, name, arguments)
                assert (here.facts() != before) is (name not in _CHANGES_NOTHING), (caller, target)
            else:
                with pytest.raises((PermissionError, ValueError)) as refused:
                    await here.call(caller, name, arguments)
                assert str(refused.value)
                assert here.facts() == before, (caller, target)
                assert sorted((tmp_path / "home").glob("sent/**/*.txt")) == files
            (tmp_path / "home/pynchy.db").rename(tmp_path / f"{name}-{caller}-{target}")


async def test_what_a_caller_says_of_itself_changes_nothing(start_service: StartService, tmp_path: Path) -> None:
    async with world(start_service, tmp_path) as here:
        before = here.facts()
        for extra in ({"is_main": True}, {"caller": "main"}, {"jid": "terminal:main"}, {"chat_jid": "terminal:main"}):
            with pytest.raises(ValueError, match="must not contain"):
                await here.call(FAMILY, "send_message", {"text": "x", **extra})
        assert here.facts() == before


async def test_only_main_is_told_that_it_may_name_another_group_and_administers(
    start_service: StartService, tmp_path: Path
) -> None:
    async with world(start_service, tmp_path) as here:
        for_main = {one["name"]: one for one in here.tools.offered_to(here.group(MAIN))}
        for_family = {one["name"]: one for one in here.tools.offered_to(here.group(FAMILY))}
    assert for_main.keys() == TOOLS.keys()
    assert TOOLS.keys() - for_family.keys() == {"list_groups", "register_group", "update_group", "remove_group"}
    assert not [name for name, one in for_family.items() if "group" in one["input_schema"]["properties"]]
    assert "group" in for_main["send_message"]["input_schema"]["properties"]


async def test_no_other_chat_learns_which_groups_and_tasks_there_are(
    start_service: StartService, tmp_path: Path
) -> None:
    async with world(start_service, tmp_path) as here:
        refusals = set()
        for folder in (WORK, "nobodys"):
            with pytest.raises(PermissionError) as refused:
                await here.call(FAMILY, "send_message", {"text": "x", "group": folder})
            refusals.add(str(refused.value))
        assert len(refusals) == 1
        for number in (here.tasks[WORK], 10_000):
            with pytest.raises(ValueError, match=f"there is no task {number} in this chat"):
                await here.call(FAMILY, "pause_task", {"task": number})
        (task,) = await here.service._store.tasks.of(FAMILY)
        assert await here.call(FAMILY, "list_tasks", {}) == task.in_words(here.service.zone_of(FAMILY))
        everything = await here.call(MAIN, "list_tasks", {})
    assert [line.split(":")[0] for line in everything.splitlines()] == [
        f"Task {number} of {folder}" for folder, number in here.tasks.items()
    ]


# --- messages and files -------------------------------------------------------------------------------------


async def test_what_main_sends_elsewhere_is_new_to_the_conversation_there(
    start_service: StartService, tmp_path: Path
) -> None:
    async with world(start_service, tmp_path) as here:
        await here.call(MAIN, "send_message", {"text": "to family <internal>hm</internal>", "group": FAMILY})
        await here.call(FAMILY, "send_message", {"text": "to ourselves"})
        assert here.queued() == [
            ("terminal:family", "to family", "message", None, 1),
            ("terminal:family", "to ourselves", "message", None, 0),
        ]


@pytest.mark.parametrize("text", ["", "   ", "<internal>hm</internal>", "<INTERNAL>no end"])
async def test_what_is_internal_or_nothing_is_not_sent(text: str, start_service: StartService, tmp_path: Path) -> None:
    async with world(start_service, tmp_path) as here:
        with pytest.raises(ValueError, match=r"nothing to send|must be longer"):
            await here.call(FAMILY, "send_message", {"text": text})
        assert here.queued() == []


@pytest.mark.parametrize(
    ("name", "kept_as"),
    [
        ("list.txt", "list.txt"),
        ("../../pynchy.db", "pynchy.db"),
        ("/etc/passwd", "passwd"),
        ("..", "file"),
        (".env", "env"),
        ("x\ny\0z.pdf", "x_y_z.pdf"),
        ("ä ö.PDF", "a_o.PDF"),
        ("-rf", "rf"),
        ("a" * 300 + ".jpeg", "a" * 75 + ".jpeg"),
    ],
)
async def test_a_file_is_kept_under_a_name_that_is_only_a_name(
    name: str, kept_as: str, start_service: StartService, tmp_path: Path
) -> None:
    async with world(start_service, tmp_path) as here:
        await here.call(FAMILY, "send_file", {"path": name, "caption": "see <internal>hm</internal>"})
        ((jid, text, _, file, _),) = here.queued()
    assert (jid, text) == ("terminal:family", "see")
    path = tmp_path / "home/sent" / file
    assert (path.name, path.read_bytes()) == (kept_as, b"milk\n")
    assert path.resolve().is_relative_to((tmp_path / "home/sent/family").resolve())


async def test_a_group_cannot_fill_the_disk_with_files(
    start_service: StartService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pynchy.host_tools._MAX_WAITING_FILES", 12)
    async with world(start_service, tmp_path) as here:
        for _ in range(2):
            await here.call(FAMILY, "send_file", {"path": "x"})
        with pytest.raises(ValueError, match="too many files"):
            await here.call(FAMILY, "send_file", {"path": "x"})
        await here.call(WORK, "send_file", {"path": "x"})


# --- tasks --------------------------------------------------------------------------------------------------

_BAD_TASKS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "cron", "schedule": "* * *"}, "cron|field"),
    ({"kind": "cron", "schedule": "0 9 30 2 *"}, "day-of-month"),
    ({"kind": "interval", "schedule": "5s"}, "60|minute"),
    ({"kind": "interval", "schedule": "often"}, "interval|90"),
    ({"kind": "once", "schedule": "2001-01-01T00:00"}, "past|passed"),
    ({"kind": "once", "schedule": "tomorrow"}, "no time"),
    ({"kind": "never", "schedule": "1h"}, "kind"),
    ({"prompt": ""}, "prompt"),
    ({"context": "other"}, "context"),
    ({"missed": "twice"}, "missed"),
]


@pytest.mark.parametrize(("change", "words"), _BAD_TASKS)
async def test_a_task_that_cannot_be_is_refused_with_the_reason(
    change: dict[str, Any], words: str, start_service: StartService, tmp_path: Path
) -> None:
    async with world(start_service, tmp_path) as here:
        before = here.facts()
        with pytest.raises(ValueError, match=f"(?i){words}"):
            await here.call(FAMILY, "schedule_task", {**_WELL["schedule_task"], **change})
        assert here.facts() == before


async def test_a_time_without_an_offset_is_one_of_the_groups_own_zone(
    start_service: StartService, tmp_path: Path
) -> None:
    async with world(start_service, tmp_path) as here:
        await here.call(MAIN, "update_group", {"group": FAMILY, "time_zone": "Australia/Lord_Howe"})
        once = {"prompt": "x", "kind": "once", "schedule": "2030-01-15T09:00"}
        assert "once at 2030-01-15 09:00 Australia/Lord_Howe" in await here.call(FAMILY, "schedule_task", once)
        cron = {"prompt": "x", "kind": "cron", "schedule": "0 9 * * *"}
        assert "09:00)" in await here.call(FAMILY, "schedule_task", cron)


async def test_a_group_that_moves_takes_its_daily_tasks_along(start_service: StartService, tmp_path: Path) -> None:
    async with world(start_service, tmp_path) as here:
        await here.call(MAIN, "update_group", {"group": FAMILY, "time_zone": "UTC"})
        await here.call(FAMILY, "schedule_task", {"prompt": "x", "kind": "cron", "schedule": "0 9 * * *"})
        await here.call(MAIN, "update_group", {"group": FAMILY, "time_zone": "Asia/Kolkata"})
        task = (await here.service._store.tasks.of(FAMILY))[-1]
        assert task.next_run
        assert (task.next_run.hour, task.next_run.minute) == (3, 30)


async def test_another_kind_of_schedule_needs_another_schedule(start_service: StartService, tmp_path: Path) -> None:
    async with world(start_service, tmp_path) as here:
        number = here.tasks[FAMILY]
        with pytest.raises(ValueError, match="needs another schedule"):
            await here.call(FAMILY, "update_task", {"task": number, "kind": "cron"})
        wishes = {"task": number, "kind": "cron", "schedule": "0 9 * * 1", "missed": "skip"}
        assert "cron 0 9 * * 1" in await here.call(FAMILY, "update_task", wishes)
        assert (await here.service._store.tasks.of(FAMILY))[0].schedule == Schedule("cron", "0 9 * * 1")


# --- groups -------------------------------------------------------------------------------------------------


async def test_main_registers_a_chat_that_was_seen_with_all_that_it_may_set(
    start_service: StartService, tmp_path: Path
) -> None:
    wishes = {
        "name": "The new ones",
        "needs_trigger": "yes",
        "trigger": "@bird",
        "senders": "ada@x, bob@x",
        "commanders": "ada@x",
        "plugins": "",
        "network": "example.com",
        "memory": "1g",
        "cpus": "1",
        "pids": "100",
        "model": "claude-haiku-4-5",
        "time_zone": "Europe/Berlin",
        "mounts": "",
    }
    assert wishes.keys() == GROUP_SETTINGS.keys() - {"usd_a_day", "main"}
    async with world(start_service, tmp_path) as here:
        await here.call(MAIN, "register_group", {"jid": "terminal:new", "folder": "new", **wishes})
        group = here.group("new")
    assert group == Group(
        "terminal:new",
        "The new ones",
        "new",
        trigger="@bird",
        senders=("ada@x", "bob@x"),
        commanders=("ada@x",),
        plugins=(),
        network="example.com",
        memory_bytes=1024**3,
        cpus=1.0,
        pids=100,
        model="claude-haiku-4-5",
        time_zone="Europe/Berlin",
    )


_NOT_AN_AGENTS: list[tuple[str, dict[str, Any]]] = [
    ("update_group", {"group": FAMILY, "network": "bridge"}),
    ("update_group", {"group": MAIN, "network": "none"}),
    ("update_group", {"group": FAMILY, "memory": "8g"}),
    ("update_group", {"group": FAMILY, "cpus": "64"}),
    ("update_group", {"group": FAMILY, "pids": "100000"}),
    ("update_group", {"group": FAMILY, "usd_a_day": "1000"}),
    ("update_group", {"group": FAMILY, "is_main": "yes"}),
    ("update_group", {"group": FAMILY, "main": "yes"}),
    ("update_group", {"group": FAMILY, "mounts": "/etc"}),
    ("update_group", {"group": FAMILY, "plugins": "nope"}),
    ("update_group", {"group": FAMILY, "time_zone": "../../etc/passwd"}),
    ("update_group", {"group": FAMILY, "model": "a\nb"}),
    ("register_group", {"jid": "terminal:new", "folder": "../new"}),
    ("register_group", {"jid": "terminal:new", "folder": FAMILY}),
    ("register_group", {"jid": "terminal:family", "folder": "other"}),
    ("register_group", {"jid": "terminal:unseen", "folder": "unseen"}),
    ("register_group", {"jid": "terminal:new", "folder": "new", "network": "bridge"}),
    ("remove_group", {"group": MAIN}),
    ("remove_group", {"group": "nobodys"}),
]


@pytest.mark.parametrize(("name", "arguments"), _NOT_AN_AGENTS)
async def test_what_is_the_users_to_give_not_even_mains_agent_can_take(
    name: str, arguments: dict[str, Any], start_service: StartService, tmp_path: Path
) -> None:
    async with world(start_service, tmp_path) as here:
        before = here.facts()
        with pytest.raises((PermissionError, ValueError)) as refused:
            await here.call(MAIN, name, arguments)
        assert str(refused.value)
        assert here.facts() == before


async def test_a_group_that_is_removed_leaves_its_folder_and_history_and_has_no_tasks(
    start_service: StartService, tmp_path: Path
) -> None:
    async with world(start_service, tmp_path) as here:
        row_id = await here.service.say("terminal:family", "hello")
        assert await here.service.settlement(row_id) is None
        await here.call(MAIN, "remove_group", {"group": FAMILY})
        assert here.service.groups.in_folder(FAMILY) is None
        assert await here.service._store.tasks.of(FAMILY) == []
        assert (tmp_path / "home/groups/family").is_dir()
        assert here.rows("SELECT content FROM messages") == [[("hello",)]]


# --- anything at all ----------------------------------------------------------------------------------------

_words = st.text(max_size=60) | st.sampled_from(["", "main", "family", "work", "../x", "terminal:main", "all"])
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=3),
    max_leaves=6,
)


def _near(name: str) -> st.SearchStrategy[Any]:
    """Arguments that are nearly right."""
    properties = list(TOOLS[name].schema["properties"]) if name in TOOLS else []
    keys = st.sampled_from(properties) if properties else _words
    well = {**_WELL.get(name, {}), **({"task": 2} if name in _OF_TASKS else {})}
    changes = st.just({}) | st.dictionaries(keys, _words | _values, max_size=2)
    return changes.map(lambda changed: {**well, **changed}) | _values


async def test_no_arguments_end_in_anything_but_an_answer_or_a_refusal_or_reach_beyond_the_callers_group(
    start_service: StartService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Any]] = []

    @settings(
        max_examples=400,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.sampled_from([*TOOLS, "nope", ""]).flatmap(lambda name: st.tuples(st.just(name), _near(name))))
    def collect(call: tuple[str, Any]) -> None:
        calls.append(call)

    await asyncio.get_running_loop().run_in_executor(None, collect)
    monkeypatch.setattr("pynchy.host_tools._AT_ONCE", 10_000)
    async with world(start_service, tmp_path) as here:

        def of_others() -> list[Any]:
            return here.rows(
                "SELECT * FROM groups WHERE folder != 'family'",
                "SELECT * FROM tasks WHERE folder != 'family'",
                "SELECT * FROM outbox WHERE chat_jid != 'terminal:family'",
            )

        before = of_others()
        answered, refusals = 0, []
        for name, arguments in calls:
            try:
                assert isinstance(await here.call(FAMILY, name, arguments), str)
                answered += 1
            except (ValueError, PermissionError) as refused:
                refusals.append(str(refused))
        assert answered > 15
        assert all(refusals)
        assert of_others() == before
        assert {path.name for path in (tmp_path / "home/sent").iterdir()} <= {FAMILY}


async def test_an_agent_that_sends_without_end_is_held_up_and_others_are_not(
    start_service: StartService, tmp_path: Path
) -> None:
    async with world(start_service, tmp_path) as here:
        sending = [
            asyncio.ensure_future(here.call(FAMILY, "send_message", {"text": str(number)})) for number in range(200)
        ]
        assert await here.call(WORK, "send_message", {"text": "hello"}) == "Message sent."
        await until(lambda: sum(one.done() for one in sending) >= 20)
        done, waiting = await asyncio.wait(sending, timeout=1)
        assert len(done) <= 35
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
