"""Whatever comes out of a container: the host stays up, its messages end, and no other group notices."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from internet import Internet
from stored import raw, rows
from structlog.testing import capture_logs
from support import CREDENTIAL

from pynchy.agent_plugins import plugin_parts
from pynchy.app import Service
from pynchy.channels.terminal import terminal_jid
from pynchy.config import load_settings
from pynchy.model_gateway import Upstream
from pynchy.plugin import PluginRegistry
from pynchy.testing import ScriptedModel
from pynchy.types import Group, NewMessage, VolumeMount
from pynchy.wire import MAX_BYTES

pytestmark = pytest.mark.timeout(300)

_ENDS_WITHIN = 60.0  # seconds: a run that takes longer hangs
_MINE, _THEIRS = terminal_jid("mine"), terminal_jid("theirs")
_SESSION = "5a1efb2e-eae2-40e6-bfea-50b4ec022edb"
_THEIR_SESSION = "7e57ab1e-0000-4000-8000-000000000001"
#: In everything that the other group has.
_SECRET = "what-only-they-know"

_THEIR_ROWS = f"""
    INSERT INTO messages (chat_jid, message_id, sender, sender_name, content, timestamp, is_from_me, state, acted)
    SELECT '{_THEIRS}', state || acted, 'eve', 'Eve', '{_SECRET}', '2026-01-01T00:00:00+00:00', 0, state, acted
    FROM (SELECT 'pending' AS state UNION SELECT 'claimed' UNION SELECT 'done' UNION SELECT 'failed'),
         (SELECT 0 AS acted UNION SELECT 1);
    INSERT INTO outbox (chat_jid, text, kind, created_at)
    VALUES ('{_THEIRS}', '{_SECRET}', 'reply', '2026-01-01T00:00:00+00:00');
    INSERT INTO transcripts (folder, session_id, subpath, uuid, entry)
    VALUES ('theirs', '{_THEIR_SESSION}', '', 'u1', '{{"text": "{_SECRET}"}}'),
           ('theirs', '{_THEIR_SESSION}', 'subagents/theirs', 'u2', '{{"text": "{_SECRET}"}}');
    UPDATE groups SET session_id = '{_THEIR_SESSION}', session_end = (SELECT max(id) FROM transcripts)
    WHERE jid = '{_THEIRS}';
"""


class Recorded:
    """A runtime of the plan's five members alone. Its containers print a file; some listen until `last` is answered."""

    name = "recorded"

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output"
        self.heard = folder / "heard"
        self.cli = "cat"

    def listen(self, on: bool) -> None:
        """Let the next containers listen, or not."""
        self.cli = "sh" if on else "cat"

    def ensure_running(self) -> None:
        """Always."""

    def list_running_containers(self, prefix: str = "pynchy-") -> list[str]:
        """None that outlive their client."""
        return []

    def build_run_args(self, mounts: list[VolumeMount], container_name: str, image: str) -> list[str]:
        if self.cli == "cat":
            return [str(self.output)]
        script = 'cat "$1"; exec sed "/last\\"/q" >"$2"'
        return ["-c", script, "sh", str(self.output), str(self.heard)]


@dataclass(frozen=True)
class Raw:
    """A frame as the text that it is made of; `@OWN@` and `@THEIRS@` stand for the row ids of messages."""

    type: str
    fields: dict[str, str]  # each value is JSON, or is meant to be
    body: str | bytes = b""
    pieces: int = 1

    def encoded(self, own: Sequence[int], theirs: Sequence[int]) -> list[bytes]:
        """What travels: so many pieces, each of them a line and a part of the body."""

        def filled(text: str) -> bytes:
            for name, ids in (("OWN", own), ("FIRST", own[:1]), ("THEIRS", theirs)):
                text = text.replace(f"@{name}@", ",".join(map(str, ids)))
            return text.encode("utf-8", "surrogatepass")

        body = filled(self.body) if isinstance(self.body, str) else self.body
        size = min(MAX_BYTES, max(1, -(-len(body) // self.pieces)))
        parts = [body[start : start + size] for start in range(0, max(1, len(body)), size)]
        heads = [
            f'"type":{json.dumps(self.type)}',
            *(f"{json.dumps(name)}:{text}" for name, text in self.fields.items()),
        ]
        return [
            filled("{" + ",".join([*heads, f'"bytes":{len(part)}', *(['"more":true'] if more else [])]) + "}\n") + part
            for part, more in ((part, number < len(parts) - 1) for number, part in enumerate(parts))
        ]


READY = Raw("ready", {"session": f'"{_SESSION}"'}, '{"mcp_servers": [{"name": "pynchy", "status": "connected"}]}')
_ANSWER = '{"ids": [@OWN@], "text": "fine", "error": null, "session_id": null}'
ANSWER = Raw("result", {"id": '"r"'}, _ANSWER)
#: Its reply is what an agent that listens waits for: what reads the database does so one after the other.
LAST = Raw("session.subkeys", {"id": '"last"'}, '{"session": "none"}')


@dataclass
class Account:
    """How the messages of an example ended, and what the agent heard; whether it was found to break the protocol."""

    states: list[str]
    reasons: list[str | None]
    texts: list[str]
    heard: bytes
    refused: bool


class World:
    """A service with the chats `mine` and `theirs`, and an agent of `mine` that prints what it is given."""

    def __init__(self, folder: Path, home: Path) -> None:
        self._runner = asyncio.Runner()
        self._home = home
        self._database = home / "pynchy.db"
        self._runtime = Recorded(folder)
        self._exits = contextlib.AsyncExitStack()
        self._looked = 0
        self._asyncio_troubles: list[dict[str, Any]] = []
        self._texts: list[str] = []

    def open(self) -> None:
        self._runner.get_loop().set_exception_handler(lambda _, context: self._asyncio_troubles.append(context))
        self._runner.run(self._open())
        self._theirs = [row[0] for row in rows(self._database, f"SELECT id FROM messages WHERE chat_jid = '{_THEIRS}'")]
        self._before = self._all_of_theirs()
        assert len(self._before) == 8 + 1 + 2 + 1
        self._files = self._all_files()

    async def _open(self) -> None:
        model = await self._exits.enter_async_context(ScriptedModel())
        upstream = Upstream(model.base_url, ("x-api-key", CREDENTIAL))
        starting = Service.start(load_settings(), upstream, PluginRegistry(), self._runtime)
        self._service = await self._exits.enter_async_context(starting)
        # Not through the service, which would answer what waits there.
        await self._service._store.register_group(Group(_THEIRS, "theirs", "theirs"), lambda *_: True)
        await self._service.register_group(Group(_MINE, "mine", "mine", needs_trigger=False))
        # Laid out by the first agent's start, and the same from then on.
        plugin_parts(PluginRegistry(), self._database.parent, Group(_MINE, "mine", "mine"), None)
        self._exits.enter_context(self._service.terminal.attached(_MINE, self._hear))
        with raw(self._database) as db:
            db.executescript(_THEIR_ROWS)

    async def _hear(self, text: str) -> None:
        self._texts.append(text)

    def close(self) -> None:
        self._runner.run(self._exits.aclose())
        gc.collect()  # an error that nobody took is told when its task goes
        self._runner.run(asyncio.sleep(0))
        self._runner.close()
        assert self._asyncio_troubles == []

    # --- one example ----------------------------------------------------------------------------------------

    def print_bytes(self, output: bytes) -> Account:
        """Let an agent print this, and end."""
        return self._example(lambda _: output, said=1, listens=False)

    def print_frames(
        self, frames: Sequence[Raw], said: int = 1, mixed_by: random.Random | None = None, last: Raw = LAST
    ) -> Account:
        """Let an agent send these for so many messages, their pieces mixed if asked for, and hear the last reply."""

        def output(own: Sequence[int]) -> bytes:
            waiting = [frame.encoded(own, self._theirs) for frame in frames]
            pieces = []
            while waiting:
                one = mixed_by.choice(waiting) if mixed_by else waiting[0]
                pieces.append(one.pop(0))
                if not one:
                    waiting.remove(one)
            return b"".join([*pieces, *last.encoded(own, self._theirs)])

        return self._example(output, said, listens=True)

    def answers_now_and_then(self) -> None:
        """Every tenth time, see that an agent that does everything right is heard."""
        self._looked += 1
        if self._looked % 10 == 0:
            account = self.print_frames([READY, ANSWER])
            assert (account.states, account.texts) == (["done"], ["fine"])

    def _example(self, output: Callable[[Sequence[int]], bytes], said: int, listens: bool) -> Account:
        (last,) = rows(self._database, "SELECT seq FROM sqlite_sequence WHERE name = 'messages'")[0]
        own = range(last + 1, last + 1 + said)
        self._runtime.output.write_bytes(output(own))
        self._runtime.heard.write_bytes(b"")
        self._runtime.listen(listens)
        self._texts.clear()
        with capture_logs() as logged:
            self._runner.run(self._say(own))
        account = self._account(own, logged)
        self._check(account, logged)
        return account

    async def _say(self, own: Sequence[int]) -> None:
        """Let the messages come in, and wait until they have ended and the agent too."""
        service = self._service
        async with asyncio.timeout(_ENDS_WITHIN):
            for row_id in own:
                message = NewMessage(str(row_id), _MINE, "ada", "Ada", "hello", datetime.now(UTC))
                # All but the last are there when the agent is started.
                add = service.on_message if row_id == own[-1] else service._store.add_message
                assert await add(message) == row_id
            for row_id in own:
                await service.settlement(row_id)
            while service.groups_running:
                await asyncio.sleep(0.001)
            await service.flush_outbox(_MINE)

    def _account(self, own: Sequence[int], logged: Sequence[Any]) -> Account:
        found = rows(self._database, "SELECT state, error FROM messages WHERE id >= ? ORDER BY id", own[0])
        return Account(
            [state for state, _ in found],
            [reason for _, reason in found],
            self._texts.copy(),
            self._runtime.heard.read_bytes(),
            any(entry["event"] == "an agent broke the protocol" for entry in logged),
        )

    def _check(self, account: Account, logged: Sequence[Any]) -> None:
        assert self._asyncio_troubles == []
        assert [entry for entry in logged if entry.get("exc_info") or entry["log_level"] in ("error", "critical")] == []
        assert set(account.states) <= {"done", "failed"}
        assert self._all_of_theirs() == self._before
        chats = "SELECT DISTINCT chat_jid FROM {} ORDER BY 1"
        for table in ("messages", "outbox"):
            assert rows(self._database, chats.format(table)) == [(_MINE,), (_THEIRS,)]
        assert {row[0] for row in rows(self._database, "SELECT DISTINCT folder FROM transcripts")} <= {"mine", "theirs"}
        assert rows(self._database, "SELECT count(*) FROM groups") == [(3,)]
        assert rows(self._database, f"SELECT DISTINCT content FROM messages WHERE chat_jid = '{_MINE}'") == [("hello",)]
        assert _SECRET.encode() not in account.heard
        assert CREDENTIAL.encode() not in account.heard
        assert self._all_files() == self._files

    def _all_of_theirs(self) -> list[tuple[Any, ...]]:
        where = {
            "messages": f"chat_jid = '{_THEIRS}'",
            "outbox": f"chat_jid = '{_THEIRS}'",
            "transcripts": "folder = 'theirs'",
            "groups": f"jid = '{_THEIRS}'",
        }
        return [
            (table, *row)
            for table, condition in where.items()
            for row in rows(self._database, f"SELECT * FROM {table} WHERE {condition} ORDER BY 1")
        ]

    def _all_files(self) -> set[str]:
        """Everything in the home but the group's own folders."""
        names = {str(path.relative_to(self._home)) + "/" for path in self._home.rglob("*")} - {
            *("groups/", "attachments/", "sent/", "global/"),
        }
        return {name for name in names if not name.startswith(("groups/mine/", "attachments/mine/", "sent/mine/"))}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A service for all examples of a test."""
    for name, value in {"ATTEMPTS": "1", "RETRY_PAUSE": "0.01", "IDLE_TIMEOUT": "0.01"}.items():
        monkeypatch.setenv(f"PYNCHY_{name}", value)
    Internet().replace_the_real_one(monkeypatch)  # in which nobody answers
    world = World(tmp_path, tmp_path / "home")
    world.open()
    yield world
    world.close()


# --- what is printed ------------------------------------------------------------------------------------------


def deep(levels: int, opening: str = "[", closing: str = "]") -> str:
    """JSON in JSON in JSON."""
    return opening * levels + closing * levels


_characters = st.text(st.characters(categories=["L", "N", "P", "Cs", "Cc"]), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _characters,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_characters, inner, max_size=3),
    max_leaves=4,
).map(json.dumps)
#: JSON, as Python takes it, that is not what anybody means.
odd_values = st.sampled_from(
    [
        *("NaN", "-Infinity", "1e999", "-0.0", "9" * 40, "9" * 4299, str(2**63), str(-(2**63) - 1), "true", "1.0"),
        *('"\\ud800"', '"\ud800"', '"\\u0000"', '"' + "x" * 30_000 + '"', '"\\u001b[2J"', '"<internal>"', '"é"'),
        *(deep(100), deep(800), deep(700, '{"a":', "}"), '{"a": 1, "a": 2}'),
    ]
)
values = json_values | odd_values
#: Also what is no JSON, or breaks what reads it.
anything = values | st.sampled_from(
    ["9" * 5000, "nul", "", '"', '"\x00"', deep(990), deep(5000), deep(990, '{"a":', "}")]
)

texts = st.sampled_from(['"well"', '"on it"', '""', '"half \\ud83d"', '"<internal>hm</internal>"'])
id_lists = st.sampled_from(
    [
        *("[@OWN@]", "[@OWN@]", "[@FIRST@]", "[]", "[@OWN@, @THEIRS@]", "[@THEIRS@]", "[@OWN@, @OWN@]"),
        *("[true]", "[@FIRST@.0]", '["@FIRST@"]', "[-1]", "[1e400]", "{}"),
    ]
)
sessions = st.sampled_from([f'"{_SESSION}"', f'"{_SESSION}"', f'"{_THEIR_SESSION}"', '""', '"../theirs"'])
subpaths = st.sampled_from(["null", '""', '"subagents/a"', '"subagents/theirs"', '"../../theirs"'])
streams = st.sampled_from(["1", "2", '"1"', "true", "null", '"\\ud800"']) | st.integers(10, 10**6).map(str)
targets = st.sampled_from(
    [
        *('"/v1/messages"', '"/v1/messages"', '"/v1/messages?beta=true"', '"/v1/messages/count_tokens"'),
        *('"/v1/messages?\\ud800"', '"/v1/messages?\\u0000#x"', '"//evil.example/v1/messages"', '"/v1/files"'),
        '"/v1/messages?' + "q" * 30_000 + '"',
    ]
)
headers = st.sampled_from(
    [
        *("[]", '[["accept", "*/*"]]', '[["accept", "a\\nb: c"]]', '[["user-agent", "\\ud800"]]', '[["accept", {}]]'),
        *('[["x-api-key", "mine"], ["host", "evil.example"], ["transfer-encoding", "chunked"]]', '{"accept": 1}'),
        '[["anthropic-beta", ' + deep(800) + "]]",
    ]
)
_ASKED = '{"model": "m", "messages": [{"role": "user", "content": "hello"}]}'


def objects(**parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """JSON objects of these."""
    return st.fixed_dictionaries(parts).map(
        lambda drawn: "{" + ",".join(f'"{name}":{text}' for name, text in drawn.items()) + "}"
    )


def lists(of: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """JSON lists."""
    return st.lists(of, max_size=3).map(lambda drawn: f"[{','.join(drawn)}]")


#: What travels in a frame of each type, and beside it, in words that its reader can make something of ...
hosts = st.sampled_from(['"example.com"', '"127.0.0.1"', '"nowhere.example"', '"../x"', '""', '"\\ud800"']) | values
ports = st.sampled_from(["80", "443", "0", "-1", "70000"])
keys = st.sampled_from(['"u1"', '"u2"', "7", '"\\ud800"'])
whens = st.sampled_from(["0", "1", "-1", "null", str(2**63 - 1), str(2**63)])
bodies = {
    "ready": objects(mcp_servers=lists(objects(name=values, status=values, error=values)), hooks=objects(watch=values)),
    "trouble": st.just(""),
    "accepted": st.just(""),
    "doing": st.just(""),
    "file": st.just("bytes") | values,
    "progress": objects(ids=id_lists, tool=values) | anything,
    "result": objects(ids=st.just("[]"), text=texts, error=st.just("null"), session_id=sessions),
    "session.append": lists(objects(uuid=keys, text=values)),
    "session.load": objects(session=sessions, subpath=subpaths, after=whens) | anything,
    "session.subkeys": objects(session=sessions) | anything,
    "request": objects(text=texts) | objects(text=values) | anything,
    "http.request": st.just(_ASKED) | anything,
    "http.cancel": st.just(""),
    "net.open": st.just(""),
    "net.data": st.just("bytes"),
    "net.end": st.just(""),
    "net.close": st.just(""),
    "error": st.just(""),
    "log": st.just(""),
}
fields: dict[str, dict[str, st.SearchStrategy[str]]] = {
    "session.append": {"session": sessions, "subpath": subpaths},
    "request": {
        "name": st.sampled_from(['"send_message"', '"send_message"']) | values,
        "plugin": st.just("null") | values,
    },
    "doing": {"tool": values, "detail": texts | values},
    "file": {
        "name": st.sampled_from(['"a.txt"', '"../../a"', '"\\ud800/\\u001b"']) | values,
        "arguments": st.sampled_from(['"{}"', '"{\\"caption\\": \\"look\\"}"', '"[]"', '"{\\"path\\": 7}"']) | values,
    },
    "trouble": {"plugin": values, "text": texts},
    "http.request": {
        "method": st.just('"POST"') | values,
        "target": targets | values,
        "headers": headers | values,
    },
    "net.open": {"host": hosts, "port": ports},
    "error": {"reason": values | st.just('"No conversation found with session id x"')},
    "log": {"text": values, "level": values},
}
#: ... and results that may be none: wrong ids, wrong types, a part too few.
outcomes = st.fixed_dictionaries(
    {"ids": id_lists},
    optional={"text": texts | values, "error": st.just("null") | texts, "session_id": st.just("null") | sessions},
).map(lambda drawn: "{" + ",".join(f'"{name}":{text}' for name, text in drawn.items()) + "}")


@st.composite
def tame(draw: st.DrawFn) -> Raw:
    """A frame that is one, whatever it asks for."""
    kind = draw(st.sampled_from(sorted(bodies)))
    its_fields = {name: draw(strategy) for name, strategy in fields.get(kind, {}).items()}
    if kind not in ("ready", "log", "error", "doing") or draw(st.booleans()):
        its_fields["id"] = draw(streams)
    return Raw(kind, its_fields, draw(bodies[kind]), draw(st.sampled_from([1, 1, 1, 2, 5])))


@st.composite
def wild(draw: st.DrawFn) -> Raw:
    """A frame of which one part is anything at all."""
    frame = draw(tame() | st.builds(lambda body: replace(ANSWER, body=body), outcomes))
    what = draw(st.sampled_from(["type", "body", "field", "nothing"]))
    if what == "type":
        return replace(frame, type=draw(_characters))
    if what == "body":
        return replace(frame, body=draw(anything | st.binary(max_size=50)))
    if what == "field":
        name = draw(st.sampled_from(["type", "bytes", "more", "id", *frame.fields]))
        return replace(frame, fields={**frame.fields, name: draw(anything)})
    return frame


@st.composite
def conversations(draw: st.DrawFn) -> list[Raw]:
    """Frames of every type, some of them more than once, at times an answer that counts, at times one that is wild."""
    sent = [READY, *draw(st.lists(tame(), max_size=8))]
    sent += draw(st.lists(st.sampled_from(sent), max_size=2))
    for strange in draw(st.lists(wild() | st.just(ANSWER), max_size=3)):
        sent.insert(draw(st.integers(0, len(sent))), strange)
    return sent


fuzzing = settings(
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@given(st.binary(max_size=400) | st.lists(st.binary(max_size=40)).map(b"\n".join))
@settings(fuzzing, max_examples=60)
def test_bytes_that_are_no_frames_fail_their_message_and_nothing_else(world: World, output: bytes) -> None:
    assert world.print_bytes(output).states == ["failed"]


@given(conversations(), st.integers(1, 3), st.none() | st.randoms(use_true_random=False))
@settings(fuzzing, max_examples=200)
def test_frames_of_every_kind_do_nothing_that_they_may_not(
    world: World, sent: list[Raw], said: int, mixed_by: random.Random | None
) -> None:
    account = world.print_frames(sent, said, mixed_by)
    event(", ".join(account.states))
    event(str(account.reasons[0])[:40])
    assert len(account.states) == said
    world.answers_now_and_then()


@given(conversations(), st.data())
@settings(fuzzing, max_examples=50)
def test_frames_with_something_else_between_them_do_nothing_that_they_may_not(
    world: World, sent: list[Raw], data: st.DataObject
) -> None:
    pieces = [piece for frame in sent for piece in frame.encoded([10**6], [1])]
    place = data.draw(st.integers(0, len(pieces)))
    pieces[place:place] = data.draw(st.lists(st.binary(max_size=60) | st.just(b"\n"), max_size=3))
    output = b"".join(pieces)
    account = world.print_bytes(output[: data.draw(st.integers(0, len(output)))])
    assert account.states == ["failed"]
    world.answers_now_and_then()


# --- what chance does not find --------------------------------------------------------------------------------


def test_what_an_agent_asks_of_another_group_it_does_not_get(world: World) -> None:
    theirs = {"session": f'"{_THEIR_SESSION}"', "subpath": '""'}
    asked = [
        Raw("session.load", {"id": "1"}, f'{{"session": "{_THEIR_SESSION}", "after": 0}}'),
        Raw("session.subkeys", {"id": "2"}, f'{{"session": "{_THEIR_SESSION}"}}'),
        Raw("progress", {"id": "3"}, '{"ids": [@OWN@, @THEIRS@]}'),
        Raw("request", {"id": "4", "name": '"send_message"'}, f'{{"text": "hello", "chat_jid": "{_THEIRS}"}}'),
    ]
    account = world.print_frames([READY, *asked])
    assert not account.refused
    assert b'"id":1,"ok":true,"bytes":29}\n{"entries": [], "next": null}' in account.heard
    assert b'"id":2,"ok":true,"bytes":2}\n[]' in account.heard
    assert b'"id":3,"ok":false' in account.heard
    assert b'"id":4,"ok":false' in account.heard
    assert world.print_frames([READY, replace(ANSWER, body='{"ids": [@THEIRS@]}')]).refused
    # By itself: what it stores under their session's name is its own, and it may read that.
    assert not world.print_frames([READY, Raw("session.append", theirs, '[{"uuid": "u1", "text": "planted"}]')]).refused


_WRONG = [
    *(Raw("ready", {}, body) for body in ("", "null", "[1]", "{}", '{"mcp_servers": 1}', '{"mcp_servers": {"a": 1}}')),
    *(Raw("ready", {}, f'{{"mcp_servers": [], "hooks": {hooks}}}') for hooks in ("1", "[1]", '"x"', "null")),
    *(Raw("ready", {}, body) for body in ('{"mcp_servers": [1]}', '{"mcp_servers": [{"name": "x"}]}', deep(5000))),
    *(Raw("result", {}, body) for body in ("null", "[]", "{}", '"text"', "1e5", "{", b"\xff")),
    *(replace(ANSWER, body=_ANSWER.replace('"fine"', text)) for text in ("1", "[]", "true", "9" * 5000)),
    *(replace(ANSWER, body=_ANSWER.replace("[@OWN@]", ids)) for ids in ("@OWN@", "[@OWN@.0]", "[true]", "{}")),
    *(replace(ANSWER, body=_ANSWER.replace("[@OWN@]", ids)) for ids in ("[@THEIRS@]", "[@OWN@, @OWN@]", "[-1]")),
    *(Raw("session.append", {"session": '"s"'}, body) for body in ("", "null", "{}", "[1]", "[[]]", '"text"')),
    *(Raw("session.append", {"session": name}, "[]") for name in ("1", "null", '"é"', '"' + "s" * 101 + '"')),
    Raw("session.append", {}, "[]"),
    Raw("session.append", {"session": '"s"', "subpath": "1"}, "[]"),
    Raw("reply", {}),
    Raw("input", {}),
]


def test_a_frame_of_the_wrong_shape_ends_the_run(world: World) -> None:
    for frame in _WRONG:
        account = world.print_frames([READY, frame])
        assert account.refused, frame
        assert (account.reasons[0] or "").startswith("it broke the protocol: "), frame


def test_what_is_nested_is_stored_and_given_back_or_refused_at_every_depth(world: World) -> None:
    refused = set()
    for levels in range(_depth_limit() - 60, _depth_limit() + 5):
        session = f'"deep-{levels}"'
        append = Raw("session.append", {"session": session}, f'[{{"uuid": "{levels}", "deep": {deep(levels)}}}]')
        account = world.print_frames([READY, append])
        refused.add(account.refused)
        if not account.refused:
            load = Raw("session.load", {"id": "1"}, f'{{"session": {session}, "after": 0}}')
            assert f'"uuid": "{levels}"'.encode() in world.print_frames([READY, load]).heard, levels
    assert refused == {True, False}


def _depth_limit() -> int:
    """How deep what Python reads as JSON may be, here: it depends on its version."""
    below, above = 1, 60_000
    while above - below > 1:
        middle = (below + above) // 2
        try:
            json.loads(deep(middle))
            below = middle
        except RecursionError:
            above = middle
    return below


def test_a_call_is_answered_or_refused_however_long_its_name_is(world: World) -> None:
    for kind in ("request", "file", "session.load", "progress", "http.request"):
        for length in (100, 60_000, 65_400, 65_430, 65_450):
            name = "n" * length + "last"
            account = world.print_frames([READY], last=Raw(kind, {"id": f'"{name}"'}, "{}"))
            assert account.refused != (name.encode() in account.heard), (kind, length)


@pytest.mark.parametrize("seed", range(3))
def test_pieces_belong_together_by_type_and_id_in_whatever_order_they_come(world: World, seed: int) -> None:
    said = [f"word {number} " + str(number) * 1000 for number in range(5)]
    calls = [
        Raw("request", {"id": str(number), "name": '"send_message"'}, json.dumps({"text": text}), pieces=7)
        for number, text in enumerate(said)
    ]
    account = world.print_frames([READY, *calls, ANSWER], mixed_by=random.Random(seed))
    assert account.states == ["done"]
    assert sorted(account.texts) == sorted(["fine", *said])


@pytest.mark.parametrize("kind", ["request", "file", "session.load", "progress", "http.request"])
def test_a_call_that_is_cut_short_before_it_began_leaves_nothing_behind(world: World, kind: str) -> None:
    call = Raw(kind, {"id": "1"}, "{}")
    assert world.print_frames([READY, call, Raw("http.cancel", {"id": "1"}), ANSWER]).states == ["done"]
    # The second of the same name ends the run while the first one waits for its turn.
    assert world.print_frames([READY, call, call]).states == ["failed"]
