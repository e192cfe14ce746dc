"""`pynchy smoke`: one message through everything, with the real settings and credential, in a home of its own.

Its agent is to run a command whose output no model can work out by itself: where that is found in what the
container has written down, the wire, the model and a tool have done their part.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynchy.app import Service
from pynchy.cli.output import complain, complain_of_system, configure_logging, tell, visible
from pynchy.config import Settings, SettingsError, load_settings
from pynchy.costs import in_usd
from pynchy.home import database, make_private
from pynchy.model_gateway import Upstream
from pynchy.plugin import discover_plugins
from pynchy.reading import reading
from pynchy.starting import CannotStart, check_image, choose_runtime
from pynchy.testing import ScriptedModel
from pynchy.usage import usage_rows

_ANSWERED_WITHIN = 300.0  # seconds
_MOST_WORDS = 300
_REQUEST = (
    "This is a check of the installation. Run exactly this command with the Bash tool, once, and answer with "
    "nothing but its whole output:\n\n{}"
)


class _Failed(Exception):
    """A step did not go well; what follows on it is not tried."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried: seconds, where they were measured, and why it failed."""

    name: str
    ok: bool
    seconds: float | None = None
    words: str = ""

    def __str__(self) -> str:
        took = "" if self.seconds is None else f"{self.seconds:.1f} s"
        return f"{self.name:12}  {'ok' if self.ok else 'FAILED':6}  {took:>7}  {visible(self.words)}".rstrip()


class _Table:
    """Prints each step as it ends."""

    def __init__(self) -> None:
        self.all_ok = True

    def add(self, step: Step) -> None:
        """Print it, and remember whether it went well."""
        self.all_ok = self.all_ok and step.ok
        print(step, flush=True)

    def look(self, name: str, ok: bool, words: str) -> None:
        """What there should be a trace of."""
        self.add(Step(name, ok, words=words if ok else "no trace of it"))

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """A step that fails with an error that is ours or the system's; to the list go words about it."""
        words: list[str] = []
        begun = time.monotonic()
        try:
            yield words
        except _Failed:
            raise
        except Exception as error:
            why = str(error) or type(error).__name__
            self.add(Step(name, False, time.monotonic() - begun, " ".join(why.split())[:_MOST_WORDS]))
            raise _Failed from None
        self.add(Step(name, True, time.monotonic() - begun, "; ".join(words)))


def smoke(demo: bool) -> int:
    """Try everything once; 0 where all of it worked."""
    configure_logging(os.environ.get("PYNCHY_LOG_LEVEL", "critical"))
    try:
        settings = load_settings(demo)
        own = Path(tempfile.mkdtemp(prefix="smoke-", dir=make_private(settings.home)))
    except SettingsError as error:
        return complain(str(error))
    except OSError as error:
        return complain_of_system(error)
    if demo:
        tell("A scripted model answers one message; nothing is spent.")
    else:
        tell("This sends one message to the real model, which costs some cents.")
    table = _Table()
    os.environ["PYNCHY_HOME"] = str(own)  # as a container's command line is started from there
    try:
        asyncio.run(_try_everything(settings, settings.model_copy(update={"home": own}), demo, table))
    except _Failed:
        pass
    except Exception as error:  # a check that breaks has failed, and says so like the others
        table.add(Step("check", False, words=f"{type(error).__name__}: {error}"))
    finally:
        _say_what_it_took(own)
        shutil.rmtree(own, ignore_errors=True)
    return 0 if table.all_ok else 1


async def _try_everything(real: Settings, settings: Settings, demo: bool, table: _Table) -> None:
    async with AsyncExitStack() as stack:
        with table.step("credential") as words:
            upstream = Upstream.from_settings(settings)
            if demo:
                upstream = Upstream((await stack.enter_async_context(ScriptedModel())).base_url)
                words.append("none, a script answers")
            elif upstream is None:
                raise CannotStart(f"none: set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN in {real.home / '.env'}")
            else:
                words.append(f"for {upstream.base_url}")
        with table.step("runtime") as words:
            registry = discover_plugins()
            runtime = (await asyncio.to_thread(choose_runtime, registry, sandbox_optional=False)).runtime
            await asyncio.to_thread(check_image, runtime)
            words.append(runtime.name)
        running = AsyncExitStack()
        with table.step("service"):
            starting = Service.start(settings, upstream, registry, runtime, demo, plugin_channels=False)
            service = await running.enter_async_context(starting)
        try:
            await _exchange(service, real, demo, table)
        finally:
            with table.step("stop"):
                await running.aclose()
                if left := await asyncio.to_thread(runtime.list_running_containers, service.container_prefix):
                    raise CannotStart(f"still running: {', '.join(left)}")


async def _exchange(service: Service, real: Settings, demo: bool, table: _Table) -> None:
    """Send the message, and look for its traces everywhere on its way."""
    nonce = secrets.token_hex(8)
    command = f"printf %s {nonce} | sha256sum"
    expected = hashlib.sha256(nonce.encode()).hexdigest()
    said = f"/tool Bash {json.dumps({'command': command})}" if demo else _REQUEST.format(command)
    texts: list[str] = []

    async def take(text: str) -> None:
        texts.append(text)

    with suppress(_Failed), table.step("message"):
        jid = await service.group_jid("main")
        with service.terminal.attached(jid, take):
            async with asyncio.timeout(_ANSWERED_WITHIN):
                error = await service.settlement(await service.say(jid, said))
                await service.flush_outbox(jid)
        if error is not None:
            raise CannotStart(error.replace(str(service.settings.home), str(real.home)))
    with reading(database(service.settings.home)) as db:
        entries = [json.loads(entry) for (entry,) in db.execute("SELECT entry FROM transcripts ORDER BY id")]
    table.look("wire", len(entries) > 0, "the container has sent what it wrote down")
    models = {name for entry in entries if (name := _model(entry)) is not None}
    table.look("model", len(models) > 0, f"{', '.join(sorted(models))} has answered")
    ran = any(entry.get("type") == "user" and expected in json.dumps(entry) for entry in entries)
    table.look("tool", ran, "a command ran in the container, and its output is right")
    table.look("outbox", len(texts) > 0, "what came of it was delivered")


def _model(entry: Any) -> str | None:
    """The model that wrote an entry. What the client writes in its place is nobody's."""
    message = entry.get("message")
    if entry.get("type") != "assistant" or not isinstance(message, dict) or entry.get("isApiErrorMessage"):
        return None
    name = message.get("model")
    return name if isinstance(name, str) and not name.startswith("<") else None


def _say_what_it_took(home: Path) -> None:
    """Tokens and spend, as far as there were any; those of a demo are not counted."""
    try:
        with reading(database(home)) as db:
            rows = usage_rows(db, "0000-01-01", "9999-12-31")
    except sqlite3.Error:
        return  # it did not get so far
    if not rows:
        return
    given = sum(row.input_tokens + row.cache_read_tokens + row.cache_write_tokens for row in rows)
    made = sum(row.output_tokens for row in rows)
    unpriced = sum(row.unpriced for row in rows)
    words = "of unknown price" if unpriced else in_usd(sum(row.micro_usd for row in rows))
    print(f"model requests: {sum(row.requests for row in rows)}, {given} tokens in, {made} out: {words}")
