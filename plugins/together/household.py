"""A family's home for tests: the service with every channel, and the far sides of those."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from bot_api import BotApi
from support import CREDENTIAL, Chat
from whatsapp_side import WhatsAppSide

from pynchy.app import Service
from pynchy.config import load_settings
from pynchy.model_gateway import Upstream
from pynchy.plugin import ContainerRuntime, Group, discover_plugins
from pynchy.testing import ScriptedModel

ADA = 1001


@dataclass
class Home:
    """The service, its terminal, and the far sides of its two other channels, on which Ada writes."""

    service: Service
    terminal: Chat
    telegram: BotApi
    whatsapp: WhatsAppSide

    def on_telegram(self) -> list[str]:
        """The texts that were sent there."""
        return [sent.text for sent in self.telegram.sent]


@asynccontextmanager
async def home_in(folder: Path, runtime: ContainerRuntime, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Home]:
    """A home with all that is installed, found by its entry points; the two chats of Ada's are registered."""
    async with BotApi() as telegram, WhatsAppSide.open(folder) as whatsapp, ScriptedModel() as model:
        telegram.chat(ADA)
        monkeypatch.setenv("TELEGRAM_BOT_TOKEN", telegram.token)
        monkeypatch.setenv("PYNCHY_TELEGRAM_API", telegram.url)
        registry = discover_plugins()
        for plugin in registry.channels:
            if registry.name_of(plugin) == "whatsapp":
                cast("Any", plugin).worker = whatsapp.worker  # only what would speak to WhatsApp is replaced
        upstream = Upstream(model.base_url, ("x-api-key", CREDENTIAL))
        async with Service.start(load_settings(), upstream, registry, runtime) as service:
            await service.register_group(Group(f"telegram:{ADA}", "Ada", "on-telegram", needs_trigger=False))
            await service.register_group(Group(whatsapp.jid, "Ada", "on-whatsapp", needs_trigger=False))
            yield Home(service, Chat(service), telegram, whatsapp)
