"""What a group's agent sees: its folder, the runner, and the plugins' sources, as mounts of its container.

    /workspace/group            the group's own folder, the only thing it can write
    /workspace/attachments      what came with messages and is too long to be part of one, read-only
    /workspace/plugins/NAME     the sources of an MCP plugin, read-only
    /opt/pynchy                 the runner and the rooms it shares with the host, read-only
    /home/agent, /tmp           memory; nothing in them outlives a run

No mount point lies inside a mount that the agent can write: a link planted there would move it.
"""

from __future__ import annotations

import compileall
import hashlib
import os
import py_compile
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from pynchy.home import container_dir, make_private
from pynchy.plugin import McpPlugin, McpServerSpec, PluginRegistry
from pynchy.plugin._validation import check_server_spec
from pynchy.types import Group, VolumeMount, valid_folder

log = structlog.get_logger(__name__)

RUNNER_PATH = "/opt/pynchy"
GROUP_PATH = "/workspace/group"
PLUGINS_PATH = "/workspace/plugins"
ATTACHMENTS_PATH = "/workspace/attachments"

_EXCERPT = 1000  # characters

#: Started as `python3 /opt/pynchy`, which puts that directory first on the import path.
_LAUNCHER = "from agent_runner.__main__ import run\n\nrun()\n"
#: The rooms that both sides run, of this very version.
_SHARED = ("__init__.py", "types.py", "wire.py", "loopback.py", "plugin")


@dataclass(frozen=True, slots=True)
class AgentPlugins:
    """The plugins' part of a container: mounts, and the servers for `ContainerInput.plugin_mcp_servers`."""

    mounts: tuple[VolumeMount, ...]
    mcp_servers: dict[str, dict[str, Any]]


def group_folder(home: Path, group: Group, owner: tuple[int, int] | None) -> Path:
    """Create the group's folder, owned by whom its agent runs as, and return it."""
    if not valid_folder(group.folder):
        raise ValueError(f"a group's folder cannot be called {group.folder!r}")
    folder = make_private(home / "groups") / group.folder
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink():
        raise ValueError(f"{folder} is a link; a group's folder must be a directory")
    if owner and os.geteuid() == 0:
        os.chown(folder, *owner)
    return folder


def attachments_folder(home: Path, group: Group) -> Path:
    """Create the folder of what came with a group's messages, which its agent can read alone, and return it."""
    folder = make_private(home / "attachments") / group.folder
    folder.mkdir(mode=0o755, exist_ok=True)
    folder.chmod(0o755)  # the agent may have another uid; nobody else gets past the folder above
    return folder


def attach_text(home: Path, group: Group, row_id: int, text: str) -> str:
    """Put a long text where the agent can read it, and return what its message says instead."""
    name = f"message-{row_id}.txt"
    path = attachments_folder(home, group) / name
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)
    return (
        f"{text[:_EXCERPT]}\n[... The whole message has {len(text)} characters: "
        f"it is the file {ATTACHMENTS_PATH}/{name}]"
    )


def group_mounts(folder: Path, runner: Path, attachments: Path) -> tuple[VolumeMount, ...]:
    """The mounts that every agent has."""
    return (
        VolumeMount(str(runner), RUNNER_PATH, readonly=True),
        VolumeMount(str(attachments), ATTACHMENTS_PATH, readonly=True),
        VolumeMount(str(folder), GROUP_PATH),
    )


def plugin_parts(registry: PluginRegistry) -> AgentPlugins:
    """Ask every MCP plugin for its server. One that raises now is left out, with a line in the log."""
    mounts: list[VolumeMount] = []
    servers: dict[str, dict[str, Any]] = {}
    for plugin in registry.mcp_servers:
        try:
            # Checked again, for nothing says that it is what it was when it was discovered.
            spec = check_server_spec(plugin.mcp_server_spec())
            if spec.name in servers:
                raise ValueError(f"another plugin has an MCP server called {spec.name!r}")
            mounts.append(plugin_mount(spec))
            servers[spec.name] = {"command": spec.command, "args": list(spec.args), "env": dict(spec.env)}
        except (Exception, SystemExit) as error:
            _warn(plugin, error)
    return AgentPlugins(tuple(mounts), servers)


def _warn(plugin: McpPlugin, error: BaseException) -> None:
    log.warning("an MCP plugin is left out of this run", plugin=plugin.name, error=str(error))


def plugin_mount(spec: McpServerSpec) -> VolumeMount:
    """A package keeps its name below the server's directory, so that `-m package.module` finds it."""
    source = spec.host_source.resolve(strict=True)
    target = f"{PLUGINS_PATH}/{spec.name}"
    if (source / "__init__.py").is_file():
        # By the name it is imported under, which a link may give it.
        target += f"/{Path(os.path.abspath(spec.host_source)).name}"  # noqa: PTH100 - it must not follow links
    return VolumeMount(str(source), target, readonly=True)


def stage_runner(home: Path) -> Path:
    """Copy the agent's side to a directory named after its content, compiled, and return it.

    A copy, because what is mounted must be readable by another user and must not change under a running
    agent; compiled, because the mount is read-only and every start would compile it again.
    """
    digest = hashlib.sha256()
    files = sorted(_runner_files())
    for name, path in files:
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    staged = make_private(home / "runner") / digest.hexdigest()[:16]
    if staged.is_dir():
        return staged
    building = Path(tempfile.mkdtemp(prefix="building-", dir=staged.parent))
    try:
        for name, path in files:
            target = building / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        (building / "__main__.py").write_text(_LAUNCHER)
        compileall.compile_dir(
            building,
            quiet=2,
            stripdir=str(building),
            prependdir=RUNNER_PATH,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
        for path in [building, *building.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        building.rename(staged)
    except OSError:
        shutil.rmtree(building, ignore_errors=True)
        if not staged.is_dir():  # else another process has just staged the same
            raise
    return staged


def _runner_files() -> Iterator[tuple[str, Path]]:
    package = Path(__file__).parent
    runner = container_dir() / "agent_runner" / "src" / "agent_runner"
    for source, prefix in ((runner, "agent_runner"), *((package / name, f"pynchy/{name}") for name in _SHARED)):
        if source.is_file():
            yield prefix, source
        else:
            for path in source.rglob("*.py"):
                yield f"{prefix}/{path.relative_to(source)}", path
