"""What the tests of a plugin import: a model that answers by rule, a runtime without a container, and what
every runtime, channel and MCP server must do.

`ScriptedModel` speaks the Anthropic Messages API on loopback; `ProcessRuntime` runs the agent as a plain
process, for machines where no sandbox can start. Neither is for real use: the first is no language model, the
second is no sandbox. `RuntimeConformance`, `ChannelConformance` and `McpConformance` are classes of tests to inherit,
and need pytest, the last `mcp` too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pynchy.testing.channel_conformance import ChannelConformance, FarSide
    from pynchy.testing.mcp_conformance import McpConformance
    from pynchy.testing.process_runtime import ProcessRuntime
    from pynchy.testing.runtime_conformance import RuntimeConformance
    from pynchy.testing.scripted_model import Cut, Fail, ScriptedModel, Stall

__all__ = [
    "ChannelConformance",
    "Cut",
    "Fail",
    "FarSide",
    "McpConformance",
    "ProcessRuntime",
    "RuntimeConformance",
    "ScriptedModel",
    "Stall",
]


def __getattr__(name: str) -> Any:
    # Lazily, for the model needs h11, the tests need pytest, and the runtime needs neither.
    if name == "ProcessRuntime":
        from pynchy.testing.process_runtime import ProcessRuntime

        return ProcessRuntime
    if name in ("ChannelConformance", "FarSide"):
        from pynchy.testing import channel_conformance

        return getattr(channel_conformance, name)
    if name == "McpConformance":
        from pynchy.testing.mcp_conformance import McpConformance

        return McpConformance
    if name == "RuntimeConformance":
        from pynchy.testing.runtime_conformance import RuntimeConformance

        return RuntimeConformance
    if name in __all__:
        from pynchy.testing import scripted_model

        return getattr(scripted_model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
