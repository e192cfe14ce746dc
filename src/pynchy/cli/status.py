"""`pynchy status`: how the running service is."""

from __future__ import annotations

import asyncio

from pynchy.cli.output import complain, complain_of_system
from pynchy.config import SettingsError, load_settings
from pynchy.control import ControlError, ask
from pynchy.home import control_socket


def show() -> int:
    """Print it; 1 where no service runs."""
    try:
        answer = asyncio.run(ask(control_socket(load_settings().home), op="status"))
    except (ControlError, SettingsError) as error:
        return complain(str(error))
    except OSError as error:
        return complain_of_system(error)
    if answer is None:
        return complain("No service runs here: `pynchy run` starts one.")
    if answer["event"] == "error":
        return complain(answer["message"])
    print("\n".join(answer["lines"]))
    return 0
