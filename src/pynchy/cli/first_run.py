"""`make run`: whatever is still missing is made, then a chat opens.

Without a model credential the demo model answers. Without a terminal one example message is sent, one that
uses the example plugin's tool.
"""

from __future__ import annotations

import sys

from pynchy.app import CannotStart, choose_runtime
from pynchy.cli import talk
from pynchy.cli.image import build_for
from pynchy.cli.output import complain, complain_of_system, configure_logging
from pynchy.config import SettingsError, load_settings
from pynchy.plugin import RuntimeUnavailable, discover_plugins

_DEMO_EXAMPLE = '/tool mcp__hello__greet {"name": "newcomer"}'
_EXAMPLE = "Please greet newcomer with your greet tool and tell me what it answered."


def main() -> int:
    """Returns the exit code."""
    configure_logging("error")
    try:
        demo = not load_settings().has_model
        chosen = choose_runtime(discover_plugins(), sandbox_optional=demo)
        build_for(chosen.runtime, if_missing=True)
    except (CannotStart, SettingsError) as error:
        return complain(str(error))
    except RuntimeUnavailable as error:
        return complain(f"{error}.")
    except OSError as error:
        return complain_of_system(error)
    if sys.stdin.isatty() and sys.stdout.isatty():
        return talk.chat("main", demo)
    example = _DEMO_EXAMPLE if demo else _EXAMPLE
    print(f"you:    {example}", flush=True)
    return talk.ask(example, "main", demo, timeout=300, label="pynchy: ")


if __name__ == "__main__":
    sys.exit(main())
