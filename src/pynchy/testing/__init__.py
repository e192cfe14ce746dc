"""What the tests of a plugin import: a model that answers by rule, and a runtime without a container.

`ScriptedModel` speaks the Anthropic Messages API on loopback; `ProcessRuntime` runs the agent as a plain
process, for machines where no sandbox can start. Neither is for real use: the first is no language model, the
second is no sandbox.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pynchy.testing.process_runtime import ProcessRuntime
    from pynchy.testing.scripted_model import Cut, Fail, ScriptedModel, Stall

__all__ = ["Cut", "Fail", "ProcessRuntime", "ScriptedModel", "Stall"]


def __getattr__(name: str) -> Any:
    # Lazily, for the model needs h11 and the runtime does not.
    if name == "ProcessRuntime":
        from pynchy.testing.process_runtime import ProcessRuntime

        return ProcessRuntime
    if name in __all__:
        from pynchy.testing import scripted_model

        return getattr(scripted_model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
