"""Pynchy: a personal Claude assistant that grows by plugins.

Nothing is imported here: plugin packages import `pynchy.plugin` inside the container too, where only the
standard library can be relied on.
"""

__version__ = "0.1.0"
