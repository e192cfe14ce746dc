"""The data that crosses rooms: messages, groups, mounts, what goes into a container and what comes out.

Standard library only: plugin packages and the agent's side import this where nothing else is installed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

FOLDER_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_CONTAINER_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")


def valid_folder(name: str) -> bool:
    """Whether `name` may name a group's folder: lower-case letters, digits, `_` and `-`, at most 64."""
    return FOLDER_PATTERN.fullmatch(name) is not None


# --- chat ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that came with a message: its bytes, or a path on the host to read them from."""

    name: str
    media_type: str
    data: bytes | None = None
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A chat message as a channel received it.

    `id` is the channel's own id and makes a redelivery harmless: the same (`chat_jid`, `id`) is stored once.
    `timestamp` is aware, in UTC. `reply_to` is the id of the message that it replies to, and `quote` that one's text,
    as far as the channel knows it. `edits` is the id of an earlier message that this one, with an id of its own, puts
    right.
    """

    id: str
    chat_jid: str
    sender: str
    sender_name: str
    content: str
    timestamp: datetime
    is_from_me: bool = False
    reply_to: str | None = None
    thread: str | None = None
    attachments: tuple[Attachment, ...] = ()
    quote: str | None = None
    edits: str | None = None


@dataclass(frozen=True, slots=True)
class ExtraMount:
    """A folder of the host that a group's agent sees beside its own, as far as the allowlist lets it."""

    host_path: str
    readonly: bool = True


@dataclass(frozen=True, slots=True)
class Group:
    """A registered chat: `jid` is its address on a channel, `folder` its name on disk.

    Where it `needs_trigger`, a message is answered only if it begins with `trigger` (None for the settings' word)
    and comes from one of `senders`, by their ids on the channel (what people call themselves proves nothing); all
    others are context. `commanders` may use commands such as `/clear`; None is everyone, there and here.

    `plugins` names those whose agent-side parts and host tools its agent has, None for all that are installed.
    `network` is what it may reach: `none`, `public`, `bridge`, or hosts with commas between them. `memory_bytes`,
    `cpus` and `pids` limit its agent, `usd_a_day` what its model requests may cost, `model` is the one it has and
    `time_zone` (IANA) where its people are; None where the settings say it.
    """

    jid: str
    name: str
    folder: str
    is_main: bool = False
    needs_trigger: bool = True
    trigger: str | None = None
    senders: tuple[str, ...] | None = None
    commanders: tuple[str, ...] | None = None
    plugins: tuple[str, ...] | None = None
    network: str = "public"
    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int | None = None
    mounts: tuple[ExtraMount, ...] = ()
    model: str | None = None
    time_zone: str | None = None
    usd_a_day: float | None = None

    def has_plugin(self, name: str) -> bool:
        """Whether its agent has what this plugin offers."""
        return self.plugins is None or name in self.plugins


#: What of a group can be set: the options of the command line, and the arguments of the agent's tools.
GROUP_SETTINGS: Mapping[str, str] = {
    "name": "what the chat is called",
    "main": "`yes` for a chat that is your own: it needs no trigger, administers the others, and hears of troubles. "
    "One chat beside the terminal's can be so",
    "needs_trigger": "`yes` where only messages that begin with the trigger are answered, `no` where all are",
    "trigger": "the word that such a message begins with, as in `@pynchy`, or `default`",
    "senders": "whom it answers beside yourself: ids with commas between them (`pynchy groups people` lists them), "
    "or `all`",
    "commanders": "who may use commands such as /clear beside yourself: ids with commas between them, or `all`",
    "plugins": "those whose tools, skills and hooks it has: names with commas between them, `all`, or an empty text",
    "network": "what it may reach: `none`, `public`, hosts with commas between them (NAME, *.NAME, NAME:PORT), or "
    "`bridge`, the runtime's own network, your local one included",
    "mounts": "folders of this machine that it sees, where the allowlist lets it: paths with commas between them, "
    "each with `:rw` where it may write there, or an empty text",
    "memory": "as in 512m or 2g, or `default`, as PYNCHY_AGENT_MEMORY has it",
    "cpus": "processors, as in 1.5, or `default`, as PYNCHY_AGENT_CPUS has it",
    "pids": "processes and threads, or `default`, as PYNCHY_AGENT_PIDS has it",
    "model": "the model that answers, or `default`, as ANTHROPIC_MODEL has it",
    "time_zone": "where its people are, as in Europe/Berlin, or `default`, as PYNCHY_TIME_ZONE has it",
    "usd_a_day": "what its model requests may cost in a day, in US dollars, or `default` for no limit of its own",
}


class NotConnected(Exception):
    """A channel cannot reach a chat now; what was to be sent stays queued until it can. The message says why."""


class Refused(Exception):
    """A messaging service will not take this, now or later; the message says why, and it is not tried again."""


@runtime_checkable
class Channel(Protocol):
    """A connection to a messaging service.

    Optional members, found by attribute: `prefix_assistant_name: bool` (default true),
    `max_message_length: int` (characters), `async set_typing(jid, on)`, `async send_file(jid, path, caption)`,
    `async edit_message(jid, message_id, text)` for texts whose id `send_message` has returned, and
    `async sync_metadata()`, which is called after each connection and passes on what chats are called.
    """

    name: str

    async def connect(self) -> None:
        """Connect; return when messages can be sent."""
        ...

    async def disconnect(self) -> None:
        """Disconnect and release everything."""
        ...

    def is_connected(self) -> bool:
        """Whether messages can be sent now."""
        ...

    def owns_jid(self, jid: str) -> bool:
        """Whether chats with this address belong to this channel."""
        ...

    async def send_message(self, jid: str, text: str) -> str | None:
        """Send a text; may return the message's id. Raise if it was not sent: NotConnected to keep it queued."""
        ...


# --- containers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """A host path that a container sees at `container_path`."""

    host_path: str
    container_path: str
    readonly: bool = False


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Everything a runtime needs to know to run one agent.

    `memory_bytes`, `cpus` and `pids` are upper limits, None where there is none. `user` is `(uid, gid)` on the
    host, the owner of what the agent writes. `network` is `none`, or `bridge` where the user has said so.
    ValueError for a name or an image that a command line could take for something else.
    """

    mounts: tuple[VolumeMount, ...]
    container_name: str
    image: str
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int | None = 2 * 1024**3
    cpus: float | None = 2.0
    pids: int | None = 512
    user: tuple[int, int] | None = None
    network: Literal["none", "bridge"] = "none"

    def __post_init__(self) -> None:
        if not _CONTAINER_NAME.fullmatch(self.container_name):
            raise ValueError(
                f"a container cannot be called {self.container_name[:80]!r}: use at most 128 letters, digits, "
                "`_`, `.` and `-`, the first of them a letter or a digit"
            )
        if self.image.startswith("-") or any(character.isspace() for character in self.image):
            raise ValueError(f"an image cannot be called {self.image[:80]!r}; correct CONTAINER_IMAGE")


@dataclass(frozen=True, slots=True)
class ContainerInput:
    """What an agent is started with: the first frame that crosses the wall.

    `plugin_mcp_servers` maps a server's name to `{"command", "args", "env", "data"}`, the last being the name of
    its data folder; `plugin_hooks` an event to its hooks, each `{"plugin", "function", "matcher", "timeout",
    "fail_closed"}`; `plugin_tools` a plugin's name to its host tools, each `{"name", "description",
    "input_schema"}`. `plugin_skills` lists the plugins that have skills. `session_id` names the conversation to
    resume, None for a new one. `network` is the group's, and says whether there is a proxy to use. `host_tools`
    describes the tools of the server `pynchy` as `plugin_tools` does those of a plugin. `images` are paths below
    the attachments' folder, which the model sees with the prompt.
    """

    prompt: str
    group_folder: str
    chat_jid: str
    is_main: bool = False
    session_id: str | None = None
    is_scheduled_task: bool = False
    plugin_mcp_servers: dict[str, dict[str, Any]] | None = None
    plugin_hooks: dict[str, list[dict[str, Any]]] | None = None
    plugin_tools: dict[str, list[dict[str, Any]]] | None = None
    plugin_skills: list[str] | None = None
    assistant_name: str = "Pynchy"
    model: str | None = None
    network: str = "none"
    host_tools: list[dict[str, Any]] | None = None
    images: list[str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON object with every field."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ContainerInput:
        """The reverse of `to_dict`; unknown keys are an error, for host and runner always match."""
        known = {item.name for item in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ValueError(f"unknown ContainerInput fields: {', '.join(unknown)}")
        return cls(**data)


#: The `ContainerOutput.error` of an answer that the host has asked the agent to stop.
INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class ContainerOutput:
    """How the agent answered the messages `ids`.

    `text` is None when there is nothing to say. `error` is why there is no answer, in the words of the SDK or
    the model's API. `transcript_end` is added by the host: up to where the stored transcript belongs to it.
    """

    ids: tuple[int, ...]
    text: str | None = None
    session_id: str | None = None
    error: str | None = None
    transcript_end: int | None = None


@dataclass(frozen=True, slots=True)
class PluginReport:
    """How a part of a plugin is: `trouble` is empty where it works.

    `part` is one of the words for plugin types (runtime, channel, mcp, skills, hooks, tools), or `load`.
    """

    plugin: str
    part: str
    trouble: str = ""


def tool_prefix(server_name: str) -> str:
    """The prefix of a server's tools as the model sees them: `mcp__{name}__`, other characters made `_`."""
    return f"mcp__{re.sub(r'[^A-Za-z0-9_-]', '_', server_name)}__"
