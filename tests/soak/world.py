"""The world outside: it delivers what people say until that is acknowledged, and writes down what they hear."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soak.host import PREFIX

TESTS = Path(__file__).parents[1]
_WORD = re.compile(r"word-\d{5}")
_STARTS_WITHIN = 60.0  # seconds
_ENDS_WITHIN = 60.0


@dataclass
class Account:
    """What came of it all: nothing lost, nothing twice, nothing without a word."""

    messages: int = 0
    answered: int = 0
    failed: int = 0
    #: Why those failed.
    reasons: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    #: Texts that were sent more often than they are in the outbox: the host died between the two.
    repeated: int = 0
    wrong: list[str] = field(default_factory=list)


class World:
    """People who talk to a host in `groups` chats, while it is killed and started again."""

    def __init__(self, home: Path, model_url: str, runtime: str, groups: int = 1, **environment: str) -> None:
        self._home = home
        self._config = {"model": model_url, "runtime": runtime, "groups": groups, "drop": 0, "patience": 30}
        self._environment = environment
        self.groups = groups
        self._host: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self._ready = False
        #: Whether a host runs.
        self.alive = False
        self._count = 0
        self._said: dict[str, tuple[str, str]] = {}
        self._unacknowledged: dict[str, None] = {}
        self.heard: list[tuple[str, str]] = []
        self.killed: list[int] = []
        self.prefix = ""
        self.starts = 0

    # --- the host -------------------------------------------------------------------------------------------

    async def start(self, **config: Any) -> None:
        """Start a host, and deliver to it what no earlier one has acknowledged."""
        self._ready = False
        self.starts += 1
        environment = {**os.environ, "PYTHONPATH": str(TESTS), "PYNCHY_HOME": str(self._home), **self._environment}
        self._host = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "soak.host",
            json.dumps(self._config | config),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**26,
            env=environment,
        )
        self.alive = True
        self._listening = asyncio.create_task(self._listen(self._host))
        await self._until(lambda: self._ready or not self.alive, _STARTS_WITHIN)
        if not self.alive:
            return  # it could not start, or was killed before it had
        for message_id in list(self._unacknowledged):
            self._deliver(message_id)

    async def died(self) -> None:
        """Wait until the host has been killed."""
        assert self._listening
        assert self._host
        await asyncio.wait_for(asyncio.shield(self._listening), _ENDS_WITHIN)
        assert await self._host.wait() == -signal.SIGKILL

    async def kill(self) -> None:
        """Kill the host, if it has not died by itself."""
        assert self._host
        if self._host.returncode is None:
            self._host.send_signal(signal.SIGKILL)
        await self._host.wait()
        assert self._listening
        await asyncio.wait_for(self._listening, _ENDS_WITHIN)

    async def stop(self) -> None:
        """Let the host end by itself."""
        assert self._host
        assert self._host.stdin
        assert self._listening
        self._host.stdin.close()
        await asyncio.wait_for(asyncio.shield(self._listening), _ENDS_WITHIN)
        assert await self._host.wait() == 0

    def command(self, **command: Any) -> None:
        """Tell the host something; a dead one does not hear it."""
        assert self._host
        assert self._host.stdin
        if self._host.returncode is None and not self._host.stdin.is_closing():
            self._host.stdin.write(json.dumps(command).encode() + b"\n")

    async def _listen(self, host: asyncio.subprocess.Process) -> None:
        assert host.stdout
        async for line in host.stdout:
            told = json.loads(line)
            if "ready" in told:
                self._ready, self.prefix = True, told["prefix"]
            elif "acknowledged" in told:
                self._unacknowledged.pop(told["acknowledged"], None)
            elif "refused" in told:
                asyncio.get_running_loop().call_later(0.5, self._deliver, told["refused"])
            elif "sent" in told:
                self.heard.append((told["jid"], told["sent"]))
            elif "killed" in told:
                self.killed.append(told["found"])
            await self._notify()
        await host.wait()
        self.alive = False
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(condition)

    # --- the people -----------------------------------------------------------------------------------------

    def say(self, group: int, text: str = "") -> str:
        """Say something in a chat, now or when there is a host again; returns the word to listen for."""
        self._count += 1
        word = f"word-{self._count:05d}"
        self._said[word] = (f"{PREFIX}{group}", f"{text}\n{word}" if text else word)
        self._unacknowledged[word] = None
        self._deliver(word)
        return word

    def _deliver(self, word: str) -> None:
        jid, text = self._said[word]
        if self._host and self._ready:
            self.command(id=word, jid=jid, text=text)

    async def hears(self, word: str, seconds: float = 60) -> None:
        """Wait until somebody hears this word, or that there will be no answer."""
        await self._until(lambda: any(word in text for _, text in self.heard), seconds)

    async def until_there(self, path: Path, seconds: float = 30) -> None:
        """Wait until an agent has made a file."""
        async with asyncio.timeout(seconds):
            while not path.exists():
                await asyncio.sleep(0.02)

    # --- the account ----------------------------------------------------------------------------------------

    async def settled(self, seconds: float) -> None:
        """Wait until every message has ended and everything queued was sent, by what the database says."""
        async with asyncio.timeout(seconds):
            while self._unacknowledged or not self._all_ended():
                await asyncio.sleep(0.2)

    def _all_ended(self) -> bool:
        with self._database() as db:
            (open_messages,) = db.execute(
                "SELECT count(*) FROM messages WHERE state IN ('pending', 'claimed')"
            ).fetchone()
            (queued,) = db.execute(
                "SELECT count(*) FROM outbox WHERE state = 'queued' AND chat_jid LIKE ?", (PREFIX + "%",)
            ).fetchone()
        return not open_messages and not queued

    def _database(self) -> closing[sqlite3.Connection]:
        return closing(sqlite3.connect(self._home / "pynchy.db", timeout=30))

    def account(self) -> Account:
        """Compare what was said, what is stored, and what was heard."""
        account = Account(messages=len(self._said))
        with self._database() as db:
            rows = db.execute(
                "SELECT message_id, messages.chat_jid, messages.state, answered_by, text, kind"
                " FROM messages LEFT JOIN outbox ON outbox.id = answered_by"
            ).fetchall()
            outbox = db.execute("SELECT chat_jid, text, state FROM outbox WHERE chat_jid LIKE ?", (PREFIX + "%",))
            queued = Counter((jid, text) for jid, text, state in outbox)
        stored = {row[0]: row for row in rows}
        for word, (jid, _) in self._said.items():
            row = stored.get(word)
            if row is None or row[2] not in ("done", "failed"):
                account.lost.append(word)
                continue
            _, chat, state, answered_by, text, kind = row
            if chat != jid or answered_by is None:
                account.wrong.append(f"{word} is {state} without a word")
            elif state == "done":
                account.answered += 1
                if kind != "reply" or word not in text:
                    account.wrong.append(f"{word} is answered by {text!r}")
            else:
                account.failed += 1
                account.reasons[text.partition(". ")[0]] += 1
        replies = Counter(word for _, text in queued.elements() for word in _WORD.findall(text))
        account.wrong += [f"{word} is in {number} replies" for word, number in replies.items() if number > 1]
        heard = Counter(self.heard)
        account.lost += [
            f"{text!r} was never heard" for (_, text), number in (queued - heard).items() for _ in range(number)
        ]
        account.repeated = (heard - queued).total()
        return account


@asynccontextmanager
async def world(home: Path, model_url: str, runtime: str, groups: int = 1, **environment: str) -> AsyncIterator[World]:
    """A world that leaves no host behind."""
    one = World(home, model_url, runtime, groups, **environment)
    try:
        yield one
    finally:
        if one._host:
            await one.kill()
