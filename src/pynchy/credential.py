"""The model's credential while it is refused: said once, in the main chat, and work goes on once it is accepted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from pynchy.config import Settings, SettingsError, reread_model
from pynchy.model_gateway import ModelGateway, Upstream

log = structlog.get_logger(__name__)

#: How often `.env` is looked at while the credential is refused, in seconds.
_LOOK_EVERY = 2.0
#: And how long it takes at most until the same credential is tried again: it may have been renewed elsewhere.
_LONGEST_PAUSE = 300.0


class Credential:
    """Whether the model's API takes the credential. `watch` is a task for the life of the service.

    `say` tells the user, once; `held_up` hears of it each time, for those who wait for an answer; `resume`
    is called when it is worth trying again. A credential is looked for in `.env` if it is `replaceable`.
    """

    def __init__(
        self,
        settings: Settings,
        gateway: ModelGateway,
        say: Callable[[str], Awaitable[None]],
        held_up: Callable[[str], None],
        resume: Callable[[], Awaitable[None]],
        replaceable: bool,
    ) -> None:
        self._settings = settings
        self._gateway = gateway
        self._say = say
        self._held_up = held_up
        self._resume = resume
        self._replaceable = replaceable
        self._refused = asyncio.Event()
        self._pause = settings.retry_pause
        self._refusals = 0
        self._said = False

    @property
    def trouble(self) -> str:
        """What to say while it is refused."""
        return (
            "The model's API does not accept my credential (HTTP 401), so I cannot answer anybody. "
            f"Put a new one into {self._settings.home / '.env'}: I notice it and go on by myself, "
            "and no message is lost."
        )

    @property
    def known_refused(self) -> bool:
        """Whether it has been said that the credential is refused, and it still is."""
        return self._said and not self.usable

    @property
    def usable(self) -> bool:
        """Whether to ask the model anything now."""
        return not self._refused.is_set()

    def refused(self) -> None:
        """The API did not take it."""
        self._refused.set()

    def accepted(self) -> None:
        """The API took it."""
        self._refusals = 0
        self._said = False
        self._pause = self._settings.retry_pause

    async def watch(self) -> None:
        """While it is refused, wait for another, or try the same again after a while; until cancelled."""
        while True:
            await self._refused.wait()
            self._refusals += 1
            if not self._replace():
                if self._refusals > 1:
                    if not self._said:
                        self._said = True
                        await self._say(self.trouble)
                    self._held_up(self.trouble)
                await self._wait_for_another()
            self._refused.clear()
            await self._resume()

    async def _wait_for_another(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pause):
                while not self._replace():  # noqa: ASYNC110 - nothing tells when a file changes
                    await asyncio.sleep(_LOOK_EVERY)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _replace(self) -> bool:
        """Take the credential that `.env` has now, if it is another."""
        if not self._replaceable:
            return False
        try:
            upstream = Upstream.from_settings(reread_model(self._settings))
        except SettingsError as error:
            log.warning("cannot look for a new credential", error=str(error))
            return False
        if upstream is None or upstream == self._gateway.upstream:
            return False
        log.info("the credential was replaced")
        self._gateway.upstream = upstream
        return True
