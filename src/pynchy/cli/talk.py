"""`run`, `chat` and `ask`: through the door of the running service, or with one of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from pynchy.app import Service
from pynchy.cli.output import complain, complain_of_system, configure_logging, logging_into, tell
from pynchy.config import Settings, SettingsError, load_settings
from pynchy.control import ControlError, Peer, connect
from pynchy.home import control_socket
from pynchy.model_gateway import Upstream
from pynchy.plugin import RuntimeUnavailable, discover_plugins
from pynchy.starting import AlreadyRunning, CannotStart, check_image, choose_runtime
from pynchy.store import StoreError

#: How long another process may take to open its door, or to close it.
_DOOR_SECONDS = 20.0

Talk = Callable[[Peer], Awaitable[int]]


def run_service(demo: bool) -> int:
    """`pynchy run`: serve until SIGINT or SIGTERM."""

    async def serve() -> int:
        settings = load_settings(demo)
        configure_logging(settings.log_level)
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        with logging_into(settings.home, settings.log_level):
            async with own_service(settings, demo, at_terminal=False):
                tell("pynchy is ready; `pynchy chat` talks to it, Ctrl-C stops it.")
                await stop.wait()
                tell("pynchy is stopping.")
        return 0

    return _guarded(serve)


def ask(text: str, group: str, demo: bool, timeout: float, label: str = "") -> int:
    """`pynchy ask`: one message, its answer on stdout, with `label` before it."""

    async def talk(peer: Peer) -> int:
        try:
            async with asyncio.timeout(timeout):
                await peer.send(op="ask", group=group, text=text)
                return await _print_answer(peer, label)
        except TimeoutError:
            return complain(
                f"No answer within {timeout:g} s. The message is kept: `pynchy chat` will show what comes of it."
            )

    if not text.strip():
        return complain("The message is empty: there is nothing to answer.")
    return _guarded(lambda: _reach(demo, talk))


async def _print_answer(peer: Peer, label: str = "") -> int:
    while (event := await peer.receive()) is not None:
        if event["event"] == "text":
            if event.get("earlier"):
                tell(f"(from earlier) {event['text']}")
            else:
                print(label + event["text"], flush=True)
        elif event["event"] == "note":
            tell(event["text"])
        elif event["event"] == "settled":
            return 0 if event["error"] is None else 1
        elif event["event"] == "error":
            return complain(event["message"])
    return complain("The service stopped before it had answered; the message is kept.")


def chat(group: str, demo: bool) -> int:
    """`pynchy chat`: until the end of input."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        from pynchy.cli.terminal import chat_in_terminal as talk_to
    else:
        talk_to = chat_through_pipes
    return _guarded(lambda: _reach(demo, lambda peer: talk_to(peer, group)))


async def chat_through_pipes(peer: Peer, group: str) -> int:
    """Without a terminal: one message a line of stdin, the next once the last one is answered."""
    loop = asyncio.get_running_loop()
    code = 0
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        if line.strip():
            await peer.send(op="ask", group=group, text=line.rstrip("\n"))
            code |= await _print_answer(peer)
    return code


# --- reaching a service -------------------------------------------------------------------------------------


async def _reach(demo: bool, talk: Talk) -> int:
    """Talk to the service of this home; where none runs, to one that lives as long as it is needed."""
    settings = load_settings(demo)
    configure_logging(os.environ.get("PYNCHY_LOG_LEVEL", "error"))
    path = control_socket(settings.home)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)

    deadline = asyncio.get_running_loop().time() + _DOOR_SECONDS
    while True:
        if peer := await connect(path):
            async with peer:  # a service that nobody uses any more may end
                if await _same_model(peer, demo):
                    return await talk(peer)
        try:
            with logging_into(settings.home, settings.log_level):
                async with own_service(settings, demo, at_terminal=True) as service:
                    if not (peer := await connect(path)):
                        raise ControlError("The service has stopped.")
                    async with peer:
                        code = await talk(peer)
                    await service.door.unused()  # another command may be using it by now
                    return code
        except AlreadyRunning:
            # It holds the lock and has no door: it is just starting, or just stopping.
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.05)


async def _same_model(peer: Peer, demo: bool) -> bool:
    """A demo and a real service must not be taken for each other; False where the service is just stopping."""
    hello = None
    with suppress(ConnectionError):
        hello = await peer.ask(op="hello")
    if hello is None:
        return False
    if demo and not hello.get("demo"):
        raise ControlError(
            "The service that runs on this home uses the real model: stop it, or set another PYNCHY_HOME for --demo."
        )
    if hello.get("demo"):
        tell("The service runs with --demo: a script answers, not a language model.")
    return True


@asynccontextmanager
async def own_service(settings: Settings, demo: bool, *, at_terminal: bool) -> AsyncIterator[Service]:
    """A service in this process. CannotStart says what is missing.

    `at_terminal`: it lives only as long as somebody sits at the terminal.
    """
    async with AsyncExitStack() as stack:
        upstream = await _upstream(settings, demo, stack)
        registry = discover_plugins()
        chosen = await asyncio.to_thread(choose_runtime, registry, sandbox_optional=demo and at_terminal)
        try:
            await asyncio.to_thread(check_image, chosen.runtime)
        except RuntimeUnavailable as error:
            raise CannotStart(f"No agent can start: {error}.") from None
        # A demo, and a command that ends in a moment, are for whoever sits at the terminal.
        channels = not demo and not at_terminal
        service = await stack.enter_async_context(
            Service.start(settings, upstream, registry, chosen.runtime, demo, plugin_channels=channels)
        )
        if demo:
            tell(demo_notice(settings))
        if chosen.warning:
            tell(chosen.warning)
        yield service


async def _upstream(settings: Settings, demo: bool, stack: AsyncExitStack) -> Upstream:
    if demo:
        from pynchy.testing import ScriptedModel

        model = await stack.enter_async_context(ScriptedModel())
        return Upstream(model.base_url)
    upstream = Upstream.from_settings(settings)
    if upstream is None:
        raise CannotStart(
            "No model credential: set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN (or ANTHROPIC_BASE_URL for an "
            f"endpoint of your own) in the environment or in {settings.home / '.env'}, or try --demo."
        )
    return upstream


def demo_notice(settings: Settings) -> str:
    """The one line that says who answers, and how to have a real model."""
    return (
        "The scripted demo model answers, no language model; for a real one set ANTHROPIC_API_KEY or "
        f"CLAUDE_CODE_OAUTH_TOKEN in the environment or in {settings.home / '.env'}."
    )


def _guarded(action: Callable[[], Any]) -> int:
    """Run it; what a user can mend is one sentence, never a traceback."""
    try:
        return asyncio.run(action())
    except (CannotStart, ControlError, SettingsError, StoreError) as error:
        return complain(str(error))
    except BrokenPipeError:
        return 1  # nobody reads what is printed
    except ConnectionError:
        return complain("The service has stopped.")
    except asyncio.CancelledError:
        return 143
    except OSError as error:
        return complain_of_system(error)
