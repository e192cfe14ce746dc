"""Commands that plugins bring: entry points of the group `pynchy.commands`, loaded when they are called.

`pynchy NAME ARGUMENTS` calls the entry point as the console script of that name would be called: without arguments,
with `sys.argv` set. What it returns, or exits with, is the exit code.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import EntryPoint

from pynchy.cli.output import complain
from pynchy.home import read_environment
from pynchy.plugin import GROUP_OF_COMMANDS
from pynchy.plugin._discovery import disabled_reason, readable_entry_points
from pynchy.plugin._errors import in_words

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def installed_commands() -> dict[str, list[EntryPoint]]:
    """The commands that installed plugins bring, by name; more than one entry point where plugins collide."""
    found: dict[str, list[EntryPoint]] = {}
    points, _ = readable_entry_points(GROUP_OF_COMMANDS)
    for point in points:
        if _NAME.fullmatch(point.name) and point not in found.get(point.name, []):
            found.setdefault(point.name, []).append(point)
    return found


def usable_commands() -> dict[str, list[EntryPoint]]:
    """Those of plugins that are not switched off, for `--help`."""
    read_environment()
    return {
        name: points
        for name, points in installed_commands().items()
        if not any(disabled_reason(point) for point in points)
    }


def call(name: str, points: list[EntryPoint], arguments: list[str]) -> int:
    """Load and run a plugin's command; the exit code."""
    if len(points) > 1:
        return complain(f"`pynchy {name}` is offered by {owners(points)}: uninstall one of them.")
    (point,) = points
    from pynchy.config import SettingsError, load_settings

    try:
        load_settings()  # which reads `.env`, for the plugin's settings may be there
    except SettingsError as error:
        return complain(str(error))
    if why := disabled_reason(point):
        return complain(f"`pynchy {name}` belongs to {_distribution(point)}: {why[0]}; {why[1]}.")
    try:
        command = point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return complain(f"`pynchy {name}` cannot be loaded from {_distribution(point)}: {in_words(error)}.")
    sys.argv = [f"pynchy {name}", *arguments]
    try:
        result = command()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return complain(f"`pynchy {name}` of {_distribution(point)} failed: {in_words(error)}.")
    return result if isinstance(result, int) else 0


def owners(points: list[EntryPoint]) -> str:
    """The distributions that bring a command."""
    return " and ".join(sorted(_distribution(point) for point in points))


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value
