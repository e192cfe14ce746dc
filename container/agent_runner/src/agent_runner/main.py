"""The agent runner: read the input, start the SDK, answer messages until the host closes the wire."""

from __future__ import annotations

import asyncio
import contextlib
import os
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from claude_agent_sdk import ClaudeSDKClient

from agent_runner.conversation import Conversation, Prompt
from agent_runner.host_link import HostLink, open_link
from agent_runner.host_tools import host_tools
from agent_runner.model_bridge import model_bridge
from agent_runner.network_proxy import network_proxy
from agent_runner.options import RUNNER, WORKSPACE, build_options
from agent_runner.plugin_hooks import plugin_hooks
from agent_runner.session_store import HostSessionStore
from pynchy.types import ContainerInput
from pynchy.wire import PROTOCOL_VERSION, Frame, WireError

#: How long the SDK's process may take to end. Nothing is lost when it is cut short: the host has it all.
_DISCONNECT_SECONDS = 2.0


def main(read_fd: int, write_fd: int) -> None:
    """Run one agent on the wire behind these two descriptors. Ends the process."""
    code = asyncio.run(_run(read_fd, write_fd))
    os._exit(code)  # a thread of a tool must not keep the container alive


async def _run(read_fd: int, write_fd: int) -> int:
    async with open_link(read_fd, write_fd) as (link, frames), AsyncExitStack() as stack:
        try:
            first = await anext(frames, None)
            if first is None:
                return 0
            if first.type == "check":
                from agent_runner.check import check

                await check(link, ContainerInput.from_dict(first.json_body()))
                return 0
            ids, given = _read_input(first)
            await stack.enter_async_context(_network(link, given.network))
            hooks = plugin_hooks(given.plugin_hooks or {}, str(WORKSPACE), RUNNER, _reporter(link))
            async with model_bridge(link) as bridge, hooks as running_hooks:
                conversation = Conversation(link, running_hooks.troubles)
                options = build_options(
                    given,
                    bridge.base_url,
                    HostSessionStore(link),
                    host_tools(link, given.host_tools or [], given.plugin_tools or {}),
                    conversation.before_tool,
                    running_hooks.matchers(),
                )
                conversation.accept(Prompt(ids, given.prompt, tuple(given.images or ())))
                await _converse(link, frames, conversation, ClaudeSDKClient(options))
        except Exception as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}"
            link.send(Frame("error", {"reason": reason[:4000]}))
            return 1
    return 0


@asynccontextmanager
async def _network(link: HostLink, policy: str) -> AsyncIterator[None]:
    """Serve the proxy and have every program that is started find it; `bridge` needs none."""
    if policy == "bridge":
        yield
        return
    async with network_proxy(link) as environment:
        os.environ.update(environment)
        yield


def _read_input(frame: Frame) -> tuple[tuple[int, ...], ContainerInput]:
    if frame.type != "input" or frame.fields.get("version") != PROTOCOL_VERSION:
        raise WireError(f"expected an input frame of version {PROTOCOL_VERSION}, got {frame.type!r}")
    return tuple(frame.fields["ids"]), ContainerInput.from_dict(frame.json_body())


def _prompt(frame: Frame) -> Prompt:
    return Prompt(tuple(frame.fields["ids"]), frame.body.decode(), tuple(frame.fields.get("images", ())))


def _reporter(link: HostLink) -> Callable[[str, str], None]:
    def report(plugin: str, trouble: str) -> None:
        link.send(Frame("trouble", {"plugin": plugin, "text": trouble[:1000]}))

    return report


async def _converse(
    link: HostLink, frames: AsyncIterator[Frame], conversation: Conversation, client: ClaudeSDKClient
) -> None:
    """Connect the SDK and serve the wire until the host closes it or the SDK dies."""
    loop = asyncio.get_running_loop()
    listening = loop.create_task(_listen(link, frames, conversation))
    answering = loop.create_task(_connect_and_answer(client, conversation))
    try:
        await asyncio.wait({listening, answering}, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            answering.result()
        else:
            listening.result()
    finally:
        listening.cancel()
        answering.cancel()
        await asyncio.gather(listening, answering, return_exceptions=True)
        with contextlib.suppress(Exception, TimeoutError):
            async with asyncio.timeout(_DISCONNECT_SECONDS):
                await client.disconnect()


async def _connect_and_answer(client: ClaudeSDKClient, conversation: Conversation) -> None:
    await client.connect()
    await conversation.run(client)


async def _listen(link: HostLink, frames: AsyncIterator[Frame], conversation: Conversation) -> None:
    """Take frames from the host until `close` or the end of the pipe. Never waits for anything but them."""
    async for frame in frames:
        if link.deliver(frame):
            continue
        if frame.type == "message":
            conversation.accept(_prompt(frame))
        elif frame.type == "interrupt":
            conversation.interrupt()
        elif frame.type == "close":
            return
        else:
            link.send(Frame("log", {"level": "warning", "text": f"unknown frame {frame.type[:80]!r}"}))
