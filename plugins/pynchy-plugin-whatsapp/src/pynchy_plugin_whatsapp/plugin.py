"""What Pynchy finds. The channel is imported when it is wanted, and neonize in a process of its own only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pynchy.plugin import Channel, ChannelPlugin, PluginContext

NAME = "whatsapp"
_YES = ("1", "on", "true", "yes")
_NO = ("", "0", "off", "false", "no")


class WhatsAppPlugin(ChannelPlugin):
    """The chats of the account that `pynchy whatsapp login` has linked."""

    name = NAME
    #: What Python runs as the worker process.
    worker: ClassVar[Sequence[str]] = ("-m", "pynchy_plugin_whatsapp.worker")

    def create_channel(self, ctx: PluginContext) -> Channel:
        """A channel; whether an account is linked is checked when it connects."""
        from pynchy_plugin_whatsapp.channel import WhatsApp

        return WhatsApp(ctx, self.worker, dedicated=_dedicated(ctx.config.get("dedicated", "")))


def _dedicated(value: str) -> bool:
    if (word := value.strip().lower()) not in _YES + _NO:
        raise ValueError(f"PYNCHY_WHATSAPP_DEDICATED is {value[:40]!r}: write `yes` or `no`")
    return word in _YES
