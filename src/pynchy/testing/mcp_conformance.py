"""What every plugin's MCP server must do, as tests that the plugin's package inherits."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import fastjsonschema
import pytest
from mcp import MCPError
from mcp_types import Tool

from pynchy.plugin import McpPlugin
from pynchy.testing._mcp_bench import (
    ENDS_WITHIN,
    Mode,
    Server,
    ServerBench,
    container_python,
    describe,
)
from pynchy.testing._outcome import fail, innermost

#: A tool's name and its arguments.
Call = tuple[str, Mapping[str, Any]]

#: A value of each JSON type.
_RIGHT: Mapping[str, Any] = {
    "string": "text",
    "integer": 1,
    "number": 1,
    "boolean": True,
    "array": [],
    "object": {},
    "null": None,
}
_AT_ONCE = 8
#: What runs each plugin's servers, made once.
_PYTHONS: dict[type[McpPlugin], Path] = {}


class McpConformance:
    """Inherit it as a class whose name begins with `Test`, define `plugin` and say what `bad_call` is.

    The server is laid out in a folder as in the container, with a copy of its source, and started in an environment
    that has nothing of the host's, by a Python that finds the agent's packages and those of the plugin's `container`
    extra, in the versions that are installed where the tests run. A Python of another version, a missing system
    library and a file of another user are found by `pynchy plugins check` alone, which uses a real container.
    """

    #: A call that the server must answer with an error, and with words that say why.
    bad_call: ClassVar[Call | None] = None
    #: A call that works, in what `prepare` has laid out.
    good_call: ClassVar[Call | None] = None

    # --- what a subclass says ---------------------------------------------------------------------------

    def plugin(self) -> McpPlugin:
        """A new object of the plugin."""
        raise NotImplementedError("define plugin in the class that inherits McpConformance")

    def prepare(self, workspace: Path) -> None:
        """Put into the workspace, the container's /workspace, what `good_call` needs."""

    @pytest.fixture
    def bench(self, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerBench]:
        """Where one test starts its server; whatever it leaves is ended."""
        plugin = self.plugin()
        if type(plugin) not in _PYTHONS:
            _PYTHONS[type(plugin)] = container_python(tmp_path_factory.mktemp("python"), plugin)
        bench = ServerBench(plugin, tmp_path / "container", _PYTHONS[type(plugin)])
        self.prepare(bench.workspace)
        yield bench
        bench.end()

    # --- it starts --------------------------------------------------------------------------------------

    @pytest.mark.parametrize("mode", ["auto", "legacy"])
    def test_it_starts_and_lists_its_tools(self, bench: ServerBench, mode: Mode) -> None:
        async def body(server: Server) -> None:
            assert server.client.server_info is not None

        _run(bench, body, mode)
        tools = _tools(bench)
        if not tools:
            fail("the server offers no tools: register one, for the agent can use nothing else of it")

    def test_stdout_carries_nothing_but_the_protocol(self, bench: ServerBench) -> None:
        async def body(server: Server) -> None:
            await server.tools()
            for call in (self.bad_call, self.good_call):
                if call:
                    await _call(server, *call)
            if server.noise:
                fail(
                    f"{server.noise[0]!r} was written to stdout, which carries the protocol alone: print to stderr, "
                    "and keep libraries from printing"
                )

        _run(bench, body)

    # --- what it offers ---------------------------------------------------------------------------------

    def test_each_tool_has_a_name_of_its_own_that_a_model_can_call(self, bench: ServerBench) -> None:
        names = [tool.name for tool in _tools(bench)]
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
                fail(f"a tool is called {name!r}: name it with at most 64 letters, digits, `-` and `_`")
            if names.count(name) > 1:
                fail(f"{names.count(name)} tools are called {name!r}: give each a name of its own")

    def test_each_tool_is_described(self, bench: ServerBench) -> None:
        for tool in _tools(bench):
            if not (tool.description or "").strip():
                fail(f"the tool {tool.name!r} has no description: say in a docstring what it does, for the model")

    def test_each_tools_arguments_have_a_valid_schema(self, bench: ServerBench) -> None:
        for tool in _tools(bench):
            _validator(tool)

    # --- what it cannot serve ---------------------------------------------------------------------------

    def test_wrong_arguments_are_refused_and_the_server_lives_on(self, bench: ServerBench) -> None:
        async def body(server: Server) -> None:
            before = await server.tools()
            for tool in before:
                for arguments in _wrong_arguments(tool):
                    await _expect_error(server, tool.name, arguments, "arguments that its schema forbids")
            await _expect_same(server, before)

        _run(bench, body)

    def test_an_unknown_tool_is_an_error_and_the_server_lives_on(self, bench: ServerBench) -> None:
        async def body(server: Server) -> None:
            before = await server.tools()
            await _expect_error(server, "no-such-tool", {}, "a tool that does not exist")
            await _expect_same(server, before)

        _run(bench, body)

    def test_a_bad_call_is_refused_in_words_and_the_server_lives_on(self, bench: ServerBench) -> None:
        name, arguments = self._bad_call()

        async def body(server: Server) -> None:
            before = await server.tools()
            words = await _expect_error(server, name, arguments, "`bad_call`")
            reason = words.removeprefix(f"Error executing tool {name}").strip(" :.")
            if not reason:
                fail(
                    f"the error of {name}({json.dumps(dict(arguments))}) is {words!r}, which says nothing: raise "
                    "mcp.server.mcpserver.exceptions.ToolError with words for the model"
                )
            if "Traceback (most recent call last)" in words:
                fail(f"the error of {name} is a traceback: say in one sentence what is wrong, and what to do")
            await _expect_same(server, before)

        _run(bench, body)

    def test_several_calls_at_once_are_answered(self, bench: ServerBench) -> None:
        name, arguments = self.good_call or self._bad_call()

        async def body(server: Server) -> None:
            results = await asyncio.gather(*(_call(server, name, arguments) for _ in range(_AT_ONCE)))
            errors = [words for failed, words in results if failed]
            if self.good_call and errors:
                fail(f"of {_AT_ONCE} calls of {name} at once {len(errors)} failed, one with: {errors[0]}")

        _run(bench, body)

    def test_the_good_call_works(self, bench: ServerBench) -> None:
        if self.good_call is None:
            pytest.skip("set `good_call` to have a call tried that works")
        name, arguments = self.good_call

        async def body(server: Server) -> None:
            failed, words = await _call(server, name, arguments)
            if failed:
                fail(f"{name}({json.dumps(dict(arguments))}) failed: {words}{server.said()}")

        _run(bench, body)

    # --- it ends, and leaves nothing --------------------------------------------------------------------

    @pytest.mark.parametrize("state", ["idle", "after a call", "during a call"])
    def test_the_end_of_its_stdin_is_its_end_and_no_process_is_left(self, bench: ServerBench, state: str) -> None:
        call = self.good_call or self.bad_call
        if call is None and state != "idle":
            pytest.skip("set `bad_call`")

        async def body(server: Server) -> None:
            assert server.process.stdin
            calling = asyncio.ensure_future(_call(server, *call)) if call and state != "idle" else None
            if calling and state == "after a call":
                await calling
            elif calling:
                await server.tools()  # by then the call has been read
            server.process.stdin.close()
            begun = time.monotonic()
            # Not by wait(), which waits for whoever else holds its stdout, too.
            while server.process.returncode is None and time.monotonic() - begun < ENDS_WITHIN:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            if server.process.returncode is None:
                fail(
                    f"the server still runs {ENDS_WITHIN:.0f} s after its stdin has ended ({state}): end with it, and "
                    "keep no thread waiting"
                )
            while (left := bench.left(server.process.pid)) and time.monotonic() - begun < ENDS_WITHIN:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            if left:
                fail(f"the server has left processes ({state}): {', '.join(left)}; end them when the server ends")
            if calling:
                await asyncio.gather(calling, return_exceptions=True)  # whatever has become of it

        _run(bench, body)

    def test_it_changes_no_file_but_in_its_data_folder_and_its_home(self, bench: ServerBench) -> None:
        before = bench.contents()

        async def body(server: Server) -> None:
            await server.tools()
            if self.bad_call:
                await _call(server, *self.bad_call)

        _run(bench, body)
        after = bench.contents()
        if changed := sorted(name for name in before | after if before.get(name) != after.get(name)):
            fail(f"{', '.join(changed)} changed before any tool was called for it: keep files in $PYNCHY_DATA")

    def test_it_needs_no_network_and_no_other_place_to_write(self, bench: ServerBench) -> None:
        if trouble := bench.wall_trouble():
            pytest.skip(f"no wall can be put around it here: {trouble}")

        async def body(server: Server) -> None:
            await server.tools()
            if self.bad_call:
                await _expect_error(server, *self.bad_call, "`bad_call`")
            if self.good_call:
                failed, words = await _call(server, *self.good_call)
                if failed:
                    fail(
                        f"without network, and with nothing to write to but its own, {self.good_call[0]} fails: {words}"
                    )

        _run(bench, body, walled=True)

    def _bad_call(self) -> Call:
        if self.bad_call is None:
            pytest.skip("set `bad_call` to a tool and arguments that it must refuse")
        return self.bad_call


def _run(
    bench: ServerBench, body: Callable[[Server], Awaitable[None]], mode: Mode = "auto", walled: bool = False
) -> None:
    """Start the server and do that with it."""

    async def run() -> None:
        async with bench.running(mode, walled) as server:
            await body(server)

    try:
        asyncio.run(run())
    except BaseExceptionGroup as group:  # pytest's outcomes come out of a task group in one
        raise innermost(group) from None


def _tools(bench: ServerBench) -> list[Tool]:
    found: list[Tool] = []

    async def body(server: Server) -> None:
        found.extend(await server.tools())

    _run(bench, body)
    return found


async def _call(server: Server, name: str, arguments: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a call failed, and what the agent reads; the test fails where no answer comes."""
    try:
        result = await server.client.call_tool(name, dict(arguments))
    except MCPError as error:
        if server.process.returncode is not None or "closed" in str(error).lower():
            fail(f"the server died of {name}({json.dumps(dict(arguments))}): {error}{server.said()}")
        if "timed out" in str(error).lower():
            fail(f"{name}({json.dumps(dict(arguments))}) was not answered: {error}{server.said()}")
        return True, str(error)
    return bool(result.is_error), describe(result)


async def _expect_error(server: Server, name: str, arguments: Mapping[str, Any], what: str) -> str:
    failed, words = await _call(server, name, arguments)
    if not failed:
        fail(
            f"{name}({json.dumps(dict(arguments))}), {what}, was answered as if it were right, with {words[:200]!r}: "
            "answer with an error, or the model believes it"
        )
    return words


async def _expect_same(server: Server, before: list[Tool]) -> None:
    """The server still lists what it listed before an error."""
    try:
        after = await server.tools()
    except MCPError as error:
        fail(f"after an error the server answers no more: {error}{server.said()}")
    if [tool.name for tool in after] != [tool.name for tool in before]:
        fail(f"after an error the server lists {[tool.name for tool in after]}: keep its tools as they were")


def _validator(tool: Tool) -> Callable[[Any], Any]:
    try:
        return fastjsonschema.compile(tool.input_schema)
    except Exception as error:  # whatever a wrong schema makes of it
        fail(f"the schema of {tool.name}'s arguments is no JSON Schema: {type(error).__name__}: {error}")


def _wrong_arguments(tool: Tool) -> Iterator[dict[str, Any]]:
    """Arguments that the tool's schema forbids: a required one is missing, or one has another type."""
    validate, properties = _validator(tool), tool.input_schema.get("properties", {})
    right = {name: _RIGHT.get(_kind(properties.get(name)), "text") for name in tool.input_schema.get("required", [])}
    tried = [{}, *({**right, name: _wrong(_kind(schema))} for name, schema in properties.items())]
    for arguments in tried:
        try:
            validate(arguments)
        except fastjsonschema.JsonSchemaException:
            yield arguments


def _kind(schema: Any) -> str:
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    return kind if isinstance(kind, str) else ""


def _wrong(kind: str) -> Any:
    return "text" if kind in ("object", "array") else {"of": "another type"}
