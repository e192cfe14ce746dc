"""A group's end of the wire: a plugin's tool only where its chat has the plugin, and only what fits its schema.

The agent's own side checks the same; here it is one that does not.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from pynchy_sample.plugin import SECRET_VARIABLE, Vault

from pynchy.agent_plugins import AgentPlugins
from pynchy.group_host import GroupHost
from pynchy.plugin import HostTool, ToolCall
from pynchy.types import Attachment, Group, PluginReport

pytestmark = pytest.mark.anyio

_OBJECT = {"type": "object"}


class Reports:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.noted: list[PluginReport] = []

    async def note(self, reports: list[PluginReport]) -> None:
        self.noted += reports


def host(*tools: HostTool, reports: Reports | None = None) -> GroupHost:
    """The host as the agent of a chat with these tools of a plugin `vault` reaches it."""
    nothing = cast("Any", None)
    services = GroupHost(
        lambda: Group("x", "x", "x"),
        *(nothing, nothing, nothing, print),
        cast("Any", reports or Reports()),
        *(nothing, nothing, nothing),
    )
    services.plugins = AgentPlugins(
        tools={"vault": {tool.name: tool for tool in tools}},
        servers_of={"shelf-server": "shelf"},
        hooks={"Stop": [{"plugin": "watch"}]},
    )
    return services


async def test_a_tool_that_the_chat_does_not_have_is_refused() -> None:
    for plugin, name in (("vault", "open"), ("voice", "sign"), ("", ""), ("vault", "__class__"), ("x" * 10_000, "y")):
        with pytest.raises(PermissionError, match="this chat has no tool"):
            await host(*Vault().tools()).call_tool(plugin, name, {})


@pytest.mark.parametrize("arguments", [{}, {"word": 7}, {"word": None}, [], None, "word", 7, {"Word": "tea"}])
async def test_arguments_that_do_not_fit_the_schema_never_reach_the_handler(arguments: Any) -> None:
    called: list[Any] = []

    async def handler(given: dict[str, Any], call: ToolCall) -> str:
        called.append(given)
        return ""

    schema = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
    with pytest.raises(ValueError, match=r"data"):
        await host(HostTool("sign", "Sign.", schema, handler)).call_tool("vault", "sign", arguments)
    assert called == []


async def test_an_error_reaches_the_agent_in_its_words_only_where_they_are_meant_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, "very-secret")
    services = host(*Vault().tools())
    for tool, words in (
        ("refuse", "^not on a Sunday$"),
        ("fail", r"^fail failed \(RuntimeError\)$"),
        ("leave", r"^leave failed \(SystemExit\)$"),
        ("sleep", "^sleep gave no answer within 0.2 s, and was stopped$"),
        ("count", "^count answered with int, not with text$"),
    ):
        with pytest.raises(ValueError, match=words):
            await services.call_tool("vault", tool, {})


@pytest.mark.parametrize("error", [SystemExit(1), asyncio.CancelledError(), TimeoutError(), GeneratorExit()])
async def test_nothing_that_a_handler_raises_ends_more_than_its_call(error: BaseException) -> None:
    async def handler(given: dict[str, Any], call: ToolCall) -> str:
        raise error

    with pytest.raises(ValueError, match=f"failed \\({type(error).__name__}\\)"):
        await host(HostTool("x", "x", _OBJECT, handler)).call_tool("vault", "x", {})


async def test_a_call_that_is_cancelled_by_the_host_ends() -> None:
    began = asyncio.Event()

    async def handler(given: dict[str, Any], call: ToolCall) -> str:
        began.set()
        await asyncio.Event().wait()
        return ""

    call = asyncio.ensure_future(host(HostTool("x", "x", _OBJECT, handler)).call_tool("vault", "x", {}))
    await began.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_handler_hears_whose_agent_calls_and_gets_the_file_that_the_call_names() -> None:
    heard: list[tuple[dict[str, Any], ToolCall]] = []

    async def handler(given: dict[str, Any], call: ToolCall) -> str:
        heard.append((given, call))
        return "done"

    schema = {"type": "object", "properties": {"path": {"type": "string"}, "to": {"type": "string"}}}
    services = host(HostTool("show", "Show.", schema, handler, file="path"), HostTool("see", "See.", schema, handler))
    file = Attachment("a.png", "image/png", b"png")
    await services.call_tool("vault", "show", {"to": "all"}, file)
    await services.call_tool("vault", "show", {})
    assert heard == [
        ({"path": "a.png", "to": "all"}, ToolCall(Group("x", "x", "x"), file)),
        ({}, ToolCall(Group("x", "x", "x"))),
    ]
    for tool, arguments, given, words in (
        ("show", {"path": "/etc/passwd"}, None, "a file comes with its bytes"),
        ("see", {}, file, "takes no file"),
        ("show", [], file, "must be an object"),
    ):
        with pytest.raises(ValueError, match=words):
            await services.call_tool("vault", tool, arguments, given)
    assert len(heard) == 2


async def test_an_answer_of_any_length_is_bounded() -> None:
    async def handler(given: dict[str, Any], call: ToolCall) -> str:
        return "x" * 1_000_001

    with pytest.raises(ValueError, match="more than the 1000000"):
        await host(HostTool("x", "x", _OBJECT, handler)).call_tool("vault", "x", {})


async def test_an_agent_can_report_of_the_plugins_alone_that_it_was_given() -> None:
    reports = Reports()
    services = host(reports=reports)
    await services.note_plugin_parts({"shelf-server": "down", "other": "x"}, {"watch": "", "vault": "x", "": "x"})
    assert reports.noted == [PluginReport("shelf", "mcp", "down"), PluginReport("watch", "hooks", "")]
