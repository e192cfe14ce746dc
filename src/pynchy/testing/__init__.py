"""What the tests of a plugin import: a model that answers by rule, a runtime without a container, and what
every runtime must do.

`ScriptedModel` speaks the Anthropic Messages API on loopback; `ProcessRuntime` runs the agent as a plain
process, for machines where no sandbox can start. Neither is for real use: the first is no language model, the
second is no sandbox. `RuntimeConformance` is a class of tests to inherit, and needs pytest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pynchy.testing.process_runtime import ProcessRuntime
    from pynchy.testing.runtime_conformance import RuntimeConformance
    from pynchy.testing.scripted_model import Cut, Fail, ScriptedModel, Stall

__all__ = ["Cut", "Fail", "ProcessRuntime", "RuntimeConformance", "ScriptedModel", "Stall"]


def __getattr__(name: str) -> Any:
    # Lazily, for the model needs h11, the tests need pytest, and the runtime needs neither.
    if name == "ProcessRuntime":
        from pynchy.testing.process_runtime import ProcessRuntime

        return ProcessRuntime
    if name == "RuntimeConformance":
        from pynchy.testing.runtime_conformance import RuntimeConformance

        return RuntimeConformance
    if name in __all__:
        from pynchy.testing import scripted_model

        return getattr(scripted_model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
