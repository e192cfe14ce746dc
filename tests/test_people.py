"""Who is answered, who may command, and what an agent sees of a chat: as a table, through a whole service."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loft import JID, database, loft, seen
from stored import rows
from support import RogueRuntime

from pynchy.plugin import PluginRecord, PluginRegistry, State
from pynchy.types import Group, PluginReport, VolumeMount

pytestmark = pytest.mark.anyio

FAMILY = Group(JID, "Family", "family")


@dataclass(frozen=True)
class Said:
    """A message: who says what; `mine` where it is the user's own."""

    sender: str
    text: str
    mine: bool = False


@dataclass(frozen=True)
class Case:
    """A group, what is said in it one after the other, and what its agent sees each time that it is asked."""

    id: str
    said: list[Said]
    seen: list[list[tuple[str, str, bool]]]
    group: Group = field(default=FAMILY)


def ada(text: str) -> Said:
    return Said("ada", text)


def bob(text: str) -> Said:
    return Said("bob", text)


def me(text: str) -> Said:
    return Said("me", text, mine=True)


_ANYTHING = replace(FAMILY, needs_trigger=False)
_ONLY_ADA = replace(FAMILY, senders=("ada",))
_BIRD = replace(FAMILY, trigger="@Bird")

CASES = [
    Case("nobody asked", [ada("hello"), bob("hi Ada")], []),
    Case(
        "what was said before is context",
        [ada("dinner?"), bob("at eight"), ada("@Pynchy remind us")],
        [[("Ada", "dinner?", True), ("Bob", "at eight", True), ("Ada", "@Pynchy remind us", False)]],
    ),
    Case(
        "and is so once",
        [ada("dinner?"), ada("@Pynchy one"), bob("later"), bob("@Pynchy two")],
        [
            [("Ada", "dinner?", True), ("Ada", "@Pynchy one", False)],
            [("Bob", "later", True), ("Bob", "@Pynchy two", False)],
        ],
    ),
    Case(
        "in whatever case, with space before it and any mark behind it",
        [ada("@pYNCHY a"), ada("  @pynchy: b"), ada("@Pynchy, c"), ada("@PYNCHY"), ada("\n@Pynchy\nd")],
        [[("Ada", text, False)] for text in ("@pYNCHY a", "  @pynchy: b", "@Pynchy, c", "@PYNCHY", "\n@Pynchy\nd")],
    ),
    Case(
        "not in the middle, not as a part of a word, not without its sign",
        [ada("hello @Pynchy"), ada("@Pynchybot hello"), ada("@Pynchy_2 hi"), ada("Pynchy hello"), ada("@ Pynchy")],
        [],
    ),
    Case(
        "a word of its own",
        [ada("@Pynchy hi"), ada("@bird hi")],
        [[("Ada", "@Pynchy hi", True), ("Ada", "@bird hi", False)]],
        _BIRD,
    ),
    Case("none needed", [ada("hello"), bob("hi")], [[("Ada", "hello", False)], [("Bob", "hi", False)]], _ANYTHING),
    Case(
        "others are context, and their asking is nothing",
        [bob("@Pynchy what is Ada's pin?"), ada("@Pynchy hello")],
        [[("Bob", "@Pynchy what is Ada's pin?", True), ("Ada", "@Pynchy hello", False)]],
        _ONLY_ADA,
    ),
    Case(
        "what people call themselves is nothing",
        [Said("mallory", "@Pynchy it is me"), ada("@Pynchy hello")],
        [[("Mallory", "@Pynchy it is me", True), ("Ada", "@Pynchy hello", False)]],
        _ONLY_ADA,
    ),
    Case("the user is always allowed", [me("@Pynchy hello")], [[("Me", "@Pynchy hello", False)]], _ONLY_ADA),
    Case("the user needs the word as well", [me("hello")], [], _ONLY_ADA),
    Case("nobody but the user", [ada("@Pynchy hi")], [], replace(FAMILY, senders=())),
    Case(
        "none needed, but only of some",
        [bob("hello"), ada("hi")],
        [[("Bob", "hello", True), ("Ada", "hi", False)]],
        replace(_ONLY_ADA, needs_trigger=False),
    ),
    Case("a command that is none", [ada("/dance")], [], FAMILY),
    Case("a command that is none, to the agent", [ada("@Pynchy /dance")], [[("Ada", "@Pynchy /dance", False)]], FAMILY),
    Case(
        "a command that is none, where none needs a word",
        [ada("/dance now")],
        [[("Ada", "/dance now", False)]],
        _ANYTHING,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
async def test_an_agent_is_asked_by_those_who_may_and_sees_all_that_was_said(case: Case) -> None:
    async with loft(case.group) as channel:
        expected = list(case.seen)
        for one in case.said:
            row_id = await channel.arrive(one.text, one.sender, is_from_me=one.mine)
            assert row_id
            if expected and expected[0][-1][1] == one.text and expected[0][-1][0] == one.sender.title():
                assert seen(await channel.hear()) == expected.pop(0)
        await channel.silence()
        assert expected == []


_COMMANDS: list[tuple[Group, Said, str | None]] = [
    (FAMILY, ada("/help"), "/help: say what commands there are"),
    (FAMILY, ada("/HELP"), "/help: say what commands there are"),
    (FAMILY, ada("@Pynchy /help"), "/help: say what commands there are"),
    (FAMILY, ada("/help@pynchy_bot"), "/help: say what commands there are"),
    (FAMILY, ada("/stop"), "Nothing is being done here."),
    (FAMILY, ada("/clear"), "The next message begins a new conversation."),
    (FAMILY, ada("/compact"), "There is no conversation to be compacted yet."),
    (FAMILY, ada("/tasks"), "No tasks are scheduled."),
    (FAMILY, ada("/tasks pause 3"), "There is no task 3 here; /tasks lists those there are."),
    (FAMILY, ada("/tasks eat 3"), "Write /tasks, or /tasks pause, resume or cancel with a task's number"),
    (FAMILY, ada("/groups"), "/groups works in the main chat alone."),
    (FAMILY, ada("/plugins"), "/plugins works in the main chat alone."),
    (FAMILY, ada("/status"), "Agents: "),
    (replace(FAMILY, commanders=("ada",)), ada("/clear"), "The next message begins a new conversation."),
    (replace(FAMILY, commanders=("ada",)), bob("/clear"), "You may use no commands in this chat."),
    (replace(FAMILY, commanders=("ada",)), bob("@Pynchy /stop"), "You may use no commands in this chat."),
    (replace(FAMILY, commanders=("ada",)), me("/clear"), "The next message begins a new conversation."),
    (replace(FAMILY, commanders=()), ada("/help"), "You may use no commands in this chat."),
    (replace(FAMILY, senders=("ada",)), bob("/help"), "/help: say what commands there are"),
]


@pytest.mark.parametrize(("group", "said", "answer"), _COMMANDS)
async def test_a_command_is_answered_by_the_host_for_those_who_may(group: Group, said: Said, answer: str) -> None:
    async with loft(group) as channel:
        await channel.arrive(said.text, said.sender, is_from_me=said.mine)
        assert (await channel.hear()).startswith(answer)
        await channel.silence()


async def test_a_command_that_comes_twice_is_carried_out_once() -> None:
    async with loft(FAMILY) as channel:
        for _ in range(2):
            await channel.arrive("/help", id="same")
        await channel.hear()
        await channel.silence()


async def test_main_needs_no_word_and_hears_of_everything() -> None:
    async with loft(FAMILY) as channel:
        service = channel.service
        assert service
        heard: asyncio.Queue[str] = asyncio.Queue()
        with service.terminal.attached("terminal:main", heard.put):
            await service.say("terminal:main", "hello")
            assert seen(await heard.get())[-1][1] == "hello"
            await service.say("terminal:main", "/groups")
            assert await heard.get() == (
                "main (main): main, terminal:main, all plugins, network public\n"
                "family: Family, loft:1, trigger default, all plugins, network public"
            )
            await service.say("terminal:main", "/plugins")
            assert "hello: installed; restart to activate it" in (await heard.get()).splitlines()


async def test_a_chat_of_the_users_own_on_a_channel_administers_and_hears_of_troubles() -> None:
    async with loft(FAMILY) as channel:
        service = channel.service
        assert service
        assert service.groups.main_jid == "terminal:main"
        await service.update_group(replace(FAMILY, is_main=True))
        await channel.arrive("hello")
        assert seen(await channel.hear()) == [("Ada", "hello", False)]
        await channel.arrive("/groups")
        assert "family (main): Family, loft:1, all plugins" in await channel.hear()
        await service._say_to_main("The roof leaks.")
        assert await channel.hear() == "The roof leaks."
        await service.update_group(replace(FAMILY, is_main=True, senders=("ada",), commanders=("ada",)))
        await channel.arrive("/groups", "mallory")
        assert await channel.hear() == "You may use no commands in this chat."
        await channel.arrive("I am Ada", "mallory")
        await channel.silence()


async def test_there_is_one_such_chat_beside_the_terminals() -> None:
    async with loft(replace(FAMILY, is_main=True)) as channel:
        service = channel.service
        assert service
        await service.register_group(Group("loft:2", "Mine", "mine", is_main=True))
        assert [group.folder for group in service.groups.by_jid.values() if group.is_main] == ["main", "mine"]
        assert service.groups.main_jid == "loft:2"
        main = service.groups.by_jid["terminal:main"]
        with pytest.raises(ValueError, match="stays a main one"):
            await service.update_group(replace(main, is_main=False))


async def test_chats_of_every_channel_are_listed_by_their_names_and_those_without_one_by_their_address() -> None:
    async with loft(None) as channel:
        await channel.arrive("psst", jid="loft:2")
        assert channel.service
        await channel.service.on_chat_metadata("loft:3", "Neighbours")
        await channel.service.on_chat_metadata("terminal:x", "Terminal")
        assert await channel.service.known_chats() == {"loft:2": "", "loft:3": "Neighbours", "terminal:x": "Terminal"}


async def test_what_was_said_before_a_chat_became_a_group_is_context_unless_it_was_just_asked() -> None:
    async with loft(None) as channel:
        assert channel.service
        old = datetime.now(UTC) - timedelta(hours=2)
        await channel.arrive("@Pynchy long ago", timestamp=old)
        await channel.arrive("dinner?")
        await channel.service.register_group(FAMILY)
        await channel.silence()
        await channel.arrive("@Pynchy hello")
        assert [text for _, text, _ in seen(await channel.hear())] == ["@Pynchy long ago", "dinner?", "@Pynchy hello"]


async def test_what_was_just_asked_when_a_chat_becomes_a_group_is_answered() -> None:
    async with loft(None) as channel:
        assert channel.service
        await channel.arrive("@Pynchy are you there?")
        await channel.service.register_group(FAMILY)
        assert seen(await channel.hear()) == [("Ada", "@Pynchy are you there?", False)]


async def test_who_is_allowed_from_now_on_is_answered_for_what_was_just_asked() -> None:
    async with loft(replace(FAMILY, senders=())) as channel:
        assert channel.service
        await channel.arrive("@Pynchy please")
        await channel.silence()
        await channel.service.update_group(FAMILY)
        assert seen(await channel.hear()) == [("Ada", "@Pynchy please", False)]


async def test_much_that_nobody_asked_about_is_a_file_and_very_much_is_left_to_the_history(tmp_path: Path) -> None:
    async with loft(FAMILY) as channel:
        for number in range(1150):
            await channel.arrive(f"line {number}")
        await channel.arrive("@Pynchy hello")
        prompt = await channel.hear()
    shown = seen(prompt)
    assert [text for _, text, _ in shown] == [*(f"line {number}" for number in range(1050, 1150)), "@Pynchy hello"]
    (file,) = (tmp_path / "home/attachments/family").iterdir()
    assert f'<earlier path="/workspace/attachments/{file.name}"/>' in prompt
    assert [text for _, text, _ in seen(file.read_text())] == [f"line {number}" for number in range(150, 1050)]
    assert rows(database(tmp_path), "SELECT state, count(*) FROM messages GROUP BY state") == [("done", 1151)]


async def test_context_of_a_message_that_was_not_answered_is_context_for_the_next(tmp_path: Path) -> None:
    class Fickle(RogueRuntime):
        """Its first agent answers nothing."""

        def build_run_args(self, mounts: list[VolumeMount], container_name: str, image: str) -> list[str]:
            arguments = super().build_run_args(mounts, container_name, image)
            self.kind = "echoes"
            return arguments

    async with loft(FAMILY, Fickle("exits-after-a-tool")) as channel:
        await channel.arrive("dinner?")
        await channel.arrive("@Pynchy one")
        assert "I could not answer" in await channel.hear()
        await channel.arrive("@Pynchy two")
        assert [text for _, text, _ in seen(await channel.hear())] == ["dinner?", "@Pynchy two"]


_anything = st.text(max_size=200) | st.sampled_from(
    [
        "/stop",
        "/clear",
        "@Pynchy",
        "@Pynchy /tasks cancel 1",
        "/tasks pause 999999999999999999",
        "<messages>",
        "/",
        "//",
    ]
)


async def test_no_text_ends_in_anything_but_an_answer_and_reaches_another_chat(tmp_path: Path) -> None:
    said: list[tuple[str, str]] = []

    @settings(max_examples=150, database=None)
    @given(_anything, st.text(max_size=30))
    def collect(text: str, sender: str) -> None:
        said.append((text, sender))

    await asyncio.get_running_loop().run_in_executor(None, collect)
    other = Group("loft:2", "Work", "work")
    async with loft(FAMILY) as channel:
        assert channel.service
        await channel.service.register_group(other)
        for text, sender in said:
            assert await channel.arrive(text, sender)
        async with asyncio.timeout(60):
            while await channel.service._store.chats_with_pending():
                await asyncio.sleep(0.01)
    assert set(rows(database(tmp_path), "SELECT chat_jid FROM outbox WHERE kind != 'notice'")) <= {(JID,)}
    assert rows(database(tmp_path), "SELECT count(*) FROM outbox WHERE chat_jid NOT IN (?, 'terminal:main')", JID) == [
        (0,)
    ]
    failed = set(rows(database(tmp_path), "SELECT error FROM messages WHERE state = 'failed'"))
    assert failed <= {("I was stopped before I had answered",)}, "nothing fails but what somebody stops"
    assert rows(database(tmp_path), "SELECT count(*) FROM groups") == [(3,)]


async def test_plugins_are_listed_with_what_is_wrong_and_what_comes_and_goes_at_the_next_start() -> None:
    async with loft(FAMILY) as channel:
        service = channel.service
        assert service
        service._registry = PluginRegistry(
            records=[
                PluginRecord("hello", "pynchy_plugin_hello:HelloPlugin", State.READY, name="hello"),
                PluginRecord("gone", "pynchy_plugin_gone:Gone", State.FAILED, reason="ImportError: no"),
            ]
        )
        await service.reports.note([PluginReport("hello", "mcp", "Connection closed")])
        lines = await service.plugin_lines()
    assert lines[:2] == ["hello: mcp: Connection closed", "gone: failed, ImportError: no"]
    assert "gone: uninstalled; gone at the next start" in lines
    assert not [line for line in lines if line.startswith("hello: installed")]
