"""Settings: environment variables, and the `.env` file in PYNCHY_HOME that is loaded into the environment.

`PYNCHY_*` for our own, and the names that are public elsewhere: `CONTAINER_RUNTIME`, `CONTAINER_IMAGE`,
`MAX_CONCURRENT_CONTAINERS`, and the model's (`ANTHROPIC_API_KEY`, `ANTHROPIC_AUTH_TOKEN`,
`CLAUDE_CODE_OAUTH_TOKEN`, `ANTHROPIC_BASE_URL`). None of it reaches an agent.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pynchy.group_settings import (
    LEAST_MEMORY,
    LEAST_PIDS,
    as_bytes,
    as_limit,
    check_price,
    check_time_zone,
    check_trigger,
)
from pynchy.home import load_environment, pynchy_home

ANTHROPIC_API = "https://api.anthropic.com"
#: The variables that hold or direct model credentials; a demo never reads them.
MODEL_VARIABLES = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "ANTHROPIC_BASE_URL",
    "ANTHROPIC_MODEL",
)


_CREDENTIALS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")


def _local_zone() -> str:
    """The IANA name of the machine's time zone, UTC where it has none that is known."""
    from tzlocal import get_localzone_name  # here, for it takes its time

    try:
        return check_time_zone(get_localzone_name() or "UTC")
    except (OSError, LookupError, ValueError):
        return "UTC"


class SettingsError(Exception):
    """A setting has a value that cannot be used; the message names it and what it should be."""


class Settings(BaseSettings):
    """What can be set. Times are in seconds."""

    model_config = SettingsConfigDict(env_prefix="PYNCHY_", env_ignore_empty=True, extra="ignore", frozen=True)

    home: Path = Field(default_factory=pynchy_home)
    assistant_name: str = Field("Pynchy", min_length=1, max_length=60)
    #: The word that a message must begin with in most chats; `@` and the assistant's name where it is not set.
    trigger: Annotated[str | None, AfterValidator(check_trigger)] = None
    #: IANA, as in `Europe/Berlin`: where people are, unless their group says otherwise. The machine's by default.
    time_zone: Annotated[str, AfterValidator(check_time_zone)] = Field(default_factory=_local_zone)
    #: Messages, conversations, attachments and logs are removed after so many days; 0 for never.
    keep_days: int = Field(365, ge=0, le=36500)
    #: What came with a message and is larger is not kept.
    attachment_bytes: Annotated[int, BeforeValidator(as_bytes)] = Field(100 * 1024**2, ge=0)
    #: What all model requests of a day may cost together, `off` for no limit; a day is one of `time_zone`. Whoever
    #: can write to an agent can make it work: a loss has an end before anybody looks.
    usd_a_day: Annotated[float | None, BeforeValidator(as_limit)] = Field(50, ge=0, le=10**6)
    #: `INPUT/OUTPUT`, US dollars for a million tokens, of a model whose price is not known.
    model_price: Annotated[str | None, AfterValidator(check_price)] = None
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$")
    #: An agent without work closes after this long.
    idle_timeout: float = Field(600, gt=0)
    #: An answer may take this long; a value below `idle_timeout` counts as `idle_timeout` plus a minute.
    agent_timeout: float = Field(1800, gt=0)
    #: From the start of a container to the agent's first sign of life.
    start_timeout: float = Field(120, gt=0)
    #: How often an answer is tried, and the first pause between two tries; each is four times the one before.
    attempts: int = Field(4, ge=1, le=20)
    retry_pause: float = Field(1, gt=0)
    max_concurrent_containers: int = Field(5, ge=1, le=1000, validation_alias="MAX_CONCURRENT_CONTAINERS")
    #: What one agent may take: bytes (with k, m or g), processors, and processes with threads.
    agent_memory: Annotated[int, BeforeValidator(as_bytes)] = Field(2 * 1024**3, ge=LEAST_MEMORY)
    agent_cpus: float = Field(2, gt=0, le=1024)
    agent_pids: int = Field(512, ge=LEAST_PIDS, le=2**22)
    #: What one group's agents may send and receive in a day (UTC), together.
    network_bytes_a_day: Annotated[int, BeforeValidator(as_bytes)] = Field(10 * 1024**3, ge=0)
    #: The uid that agents have when this program runs as root; any that no user of the machine has.
    agent_uid: int = Field(60999, ge=1, le=2**31 - 2)

    anthropic_base_url: str | None = Field(None, validation_alias="ANTHROPIC_BASE_URL")
    anthropic_api_key: SecretStr | None = Field(None, validation_alias="ANTHROPIC_API_KEY")
    anthropic_auth_token: SecretStr | None = Field(None, validation_alias="ANTHROPIC_AUTH_TOKEN")
    claude_code_oauth_token: SecretStr | None = Field(None, validation_alias="CLAUDE_CODE_OAUTH_TOKEN")
    model: str | None = Field(None, validation_alias="ANTHROPIC_MODEL")

    @property
    def default_trigger(self) -> str:
        """What a message begins with where its group has no word of its own."""
        return self.trigger or "@" + "".join(self.assistant_name.split())

    @property
    def hard_timeout(self) -> float:
        """How long an answer may take; always longer than an agent may be idle."""
        return max(self.agent_timeout, self.idle_timeout + 60)

    @property
    def has_model(self) -> bool:
        """Whether there is a model to talk to: a credential, or an endpoint that may need none."""
        return any(
            (
                self.anthropic_base_url,
                self.anthropic_api_key,
                self.anthropic_auth_token,
                self.claude_code_oauth_token,
            )
        )


def load_settings(demo: bool = False) -> Settings:
    """Read `.env` and the environment. With `demo`, forget every model variable first, for good.

    Raises SettingsError for a value that cannot be used, naming its variable, and for a `.env` that cannot
    be read.
    """
    home = pynchy_home()
    for name in MODEL_VARIABLES:
        if not os.environ.get(name, "").strip():
            os.environ.pop(name, None)  # an empty variable means the same as an unset one: `.env` may set it
    try:
        load_environment(home)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{home / '.env'} cannot be read: {error}") from None
    for name in MODEL_VARIABLES:
        if demo or not os.environ.get(name, "").strip():
            os.environ.pop(name, None)
    try:
        return Settings(home=home)  # pyright: ignore[reportCallIssue] - aliases come from the environment
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        name = field if field.isupper() else f"PYNCHY_{field.upper()}"
        raise SettingsError(f"{name}={first.get('input')!r} cannot be used: {first['msg'].lower()}") from None


def reread_model(settings: Settings) -> Settings:
    """The settings with the model's endpoint and credential as `.env` has them now.

    A credential in the file takes the place of every other one, also of those in the environment.
    SettingsError where the file cannot be read.
    """
    path = settings.home / ".env"
    try:
        found = {name: value for name, value in dotenv_values(path).items() if name in MODEL_VARIABLES and value}
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None
    changed: dict[str, object] = {}
    if any(name in found for name in _CREDENTIALS):
        changed = {name.lower(): SecretStr(found[name]) if name in found else None for name in _CREDENTIALS}
    if base_url := found.get("ANTHROPIC_BASE_URL"):
        changed["anthropic_base_url"] = base_url
    return settings.model_copy(update=changed)
