"""What belongs to one plugin on the host: its settings, and its folder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType


def plugin_config(name: str, environment: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """The plugin's own settings: the variables `PYNCHY_<NAME>_*`, keys lower-case without that prefix.

    In `<NAME>` every character that is no letter or digit is a `_`.
    """
    prefix = f"PYNCHY_{re.sub(r'[^A-Z0-9]', '_', name.upper())}_"
    found = {
        key.removeprefix(prefix).lower(): value
        for key, value in (os.environ if environment is None else environment).items()
        if key.startswith(prefix) and key != prefix
    }
    return MappingProxyType(found)


def plugin_data_dir(name: str, home: Path | None = None) -> Path:
    """The plugin's own folder on the host, made where it is missing, for the host's user alone.

    The same that a channel gets as `PluginContext.data_dir`; a command of the plugin's finds it by this.
    """
    from pynchy.home import make_private, pynchy_home

    return make_private(make_private((home or pynchy_home()) / "plugins") / name)
