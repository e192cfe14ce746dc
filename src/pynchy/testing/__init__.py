"""What the tests of a plugin import: a model that answers by rule, a runtime without a container, and what
every runtime, channel and MCP server must do.

`ScriptedModel` speaks the Anthropic Messages API on loopback; `ProcessRuntime` runs the agent as a plain
process, for machines where no sandbox can start. Neither is for real use: the first is no language model, the
second is no sandbox. `RuntimeConformance`, `ChannelConformance` and `McpConformance` are classes of tests to inherit,
and need pytest, the last `mcp` too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pynchy.testing.channel_conformance import ChannelConformance, FarSide
    from pynchy.testing.mcp_conformance import McpConformance
    from pynchy.testing.process_runtime import ProcessRuntime
    from pynchy.testing.runtime_conformance import RuntimeConformance
    from pynchy.testing.scripted_model import Cut, Fail, ScriptedModel, Stall

#: The room of each name. They are entered when one is asked for: the model needs h11 and the suites pytest.
_ROOMS = {
    "ChannelConformance": "channel_conformance",
    "Cut": "scripted_model",
    "Fail": "scripted_model",
    "FarSide": "channel_conformance",
    "McpConformance": "mcp_conformance",
    "ProcessRuntime": "process_runtime",
    "RuntimeConformance": "runtime_conformance",
    "ScriptedModel": "scripted_model",
    "Stall": "scripted_model",
}
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
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
