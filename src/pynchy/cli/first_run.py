"""`make run`: whatever is still missing is made, then a chat opens.

Without a model credential the demo model answers. Without a terminal one example message is sent, one that
uses the example plugin's tool.
"""

from __future__ import annotations

import sys

from pynchy.cli import talk
from pynchy.cli.image import build_for, can_start
from pynchy.cli.output import complain, complain_of_system, configure_logging, tell
from pynchy.config import SettingsError, load_settings
from pynchy.plugin import RuntimeUnavailable, discover_plugins
from pynchy.starting import CannotStart, choose_runtime

_DEMO_EXAMPLE = '/tool mcp__hello__greet {"name": "newcomer"}'
_EXAMPLE = "Please greet newcomer with your greet tool and tell me what it answered."


def main() -> int:
    """Returns the exit code."""
    configure_logging("error")
    try:
        demo = not load_settings().has_model
        registry = discover_plugins()
        runtime = choose_runtime(registry, sandbox_optional=demo).runtime
        try:
            build_for(runtime, registry, if_missing=True)
        except RuntimeUnavailable as error:
            complain(f"{error}.")
            if not can_start(runtime):
                return 1
            tell("The agent starts without what plugins need in it ...")
    except (CannotStart, SettingsError) as error:
        return complain(str(error))
    except OSError as error:
        return complain_of_system(error)
    if sys.stdin.isatty() and sys.stdout.isatty():
        return talk.chat("main", demo)
    example = _DEMO_EXAMPLE if demo else _EXAMPLE
    print(f"you:    {example}", flush=True)
    return talk.ask(example, "main", demo, timeout=300, label="pynchy: ")


if __name__ == "__main__":
    sys.exit(main())
