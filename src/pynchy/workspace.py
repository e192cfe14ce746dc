"""What a group's agent sees of the host's disk, as mounts of its container.

    /workspace/group            the group's own folder, which it can write
    /workspace/attachments      what came with messages, or is too long to be part of one, read-only
    /workspace/global           what every group's agent knows, which main's can write
    /workspace/extra/NAME       folders of the host, as far as the allowlist lets them
    /workspace/plugins/NAME     the sources of an MCP server, read-only
    /workspace/hooks/NAME       the sources of a plugin's hooks, read-only
    /workspace/skills/NAME      the skills of a plugin, and our own under `pynchy`, read-only
    /workspace/data/NAME        what a plugin's MCP server and hooks keep for this group, which they can write
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
from collections.abc import Callable, Iterator
from pathlib import Path

from pynchy.home import container_dir, make_private
from pynchy.types import Group, VolumeMount, valid_folder

RUNNER_PATH = "/opt/pynchy"
GROUP_PATH = "/workspace/group"
PLUGINS_PATH = "/workspace/plugins"
HOOKS_PATH = "/workspace/hooks"
SKILLS_PATH = "/workspace/skills"
DATA_PATH = "/workspace/data"
ATTACHMENTS_PATH = "/workspace/attachments"
GLOBAL_PATH = "/workspace/global"

#: Started as `python3 /opt/pynchy`, which puts that directory first on the import path.
_LAUNCHER = "from agent_runner.__main__ import run\n\nrun()\n"
#: The rooms that both sides run, of this very version.
_SHARED = ("__init__.py", "types.py", "wire.py", "tunnel.py", "loopback.py", "plugin")


def group_folder(home: Path, group: Group, owner: tuple[int, int] | None) -> Path:
    """Create the group's folder, owned by whom its agent runs as, and return it."""
    return _agents_folder(make_private(home / "groups"), group.folder, owner)


def plugin_data_folder(home: Path, plugin: str, group: Group, owner: tuple[int, int] | None) -> Path:
    """Create the folder in which a plugin's agent-side parts keep what is this group's, and return it."""
    if not valid_folder(plugin):
        raise ValueError(f"a plugin's folder cannot be called {plugin!r}")
    return _agents_folder(make_private(make_private(home / "plugin-data") / plugin), group.folder, owner)


def _agents_folder(parent: Path, name: str, owner: tuple[int, int] | None) -> Path:
    if not valid_folder(name):
        raise ValueError(f"a group's folder cannot be called {name!r}")
    folder = parent / name
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink():
        raise ValueError(f"{folder} is a link; it must be a directory")
    if owner and os.geteuid() == 0:
        os.chown(folder, *owner)
    return folder


def global_folder(home: Path, owner: tuple[int, int] | None) -> Path:
    """Create the folder of what all agents know, owned by whom they run as, and return it."""
    return _agents_folder(home, "global", owner)


def attachments_folder(home: Path, group: Group) -> Path:
    """Create the folder of what came with a group's messages, which its agent can read alone, and return it."""
    folder = make_private(home / "attachments") / group.folder
    folder.mkdir(mode=0o755, exist_ok=True)
    folder.chmod(0o755)  # the agent may have another uid; nobody else gets past the folder above
    return folder


def group_mounts(home: Path, group: Group, runner: Path, owner: tuple[int, int] | None) -> tuple[VolumeMount, ...]:
    """The mounts that every agent has, of folders that are made where they are missing; OSError, ValueError."""
    return (
        VolumeMount(str(runner), RUNNER_PATH, readonly=True),
        VolumeMount(str(attachments_folder(home, group)), ATTACHMENTS_PATH, readonly=True),
        VolumeMount(str(global_folder(home, owner)), GLOBAL_PATH, readonly=not group.is_main),
        VolumeMount(str(group_folder(home, group, owner)), GROUP_PATH),
    )


def staged(parent: Path, digest: str, fill: Callable[[Path], None]) -> Path:
    """A directory below `parent`, named after what is in it, readable for any user; filled where it is missing.

    What an agent sees is such a copy, because it must be readable by another user and must not change under a
    running agent.
    """
    final = make_private(parent) / digest
    if final.is_dir():
        return final
    building = Path(tempfile.mkdtemp(prefix="building-", dir=parent))
    try:
        fill(building)
        for path in [building, *building.rglob("*")]:
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        building.rename(final)
    except OSError:
        shutil.rmtree(building, ignore_errors=True)
        if not final.is_dir():  # else another process has just staged the same
            raise
    return final


def stage_runner(home: Path) -> Path:
    """Copy the agent's side to where it can be mounted from, and return that directory.

    Compiled, because the mount is read-only and every start would compile it again.
    """
    digest = hashlib.sha256()
    files = sorted(_runner_files())
    for name, path in files:
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")

    def fill(directory: Path) -> None:
        for name, path in files:
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        (directory / "__main__.py").write_text(_LAUNCHER)
        compileall.compile_dir(
            directory,
            quiet=2,
            stripdir=str(directory),
            prependdir=RUNNER_PATH,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )

    return staged(home / "runner", digest.hexdigest()[:16], fill)


def _runner_files() -> Iterator[tuple[str, Path]]:
    package = Path(__file__).parent
    runner = container_dir() / "agent_runner" / "src" / "agent_runner"
    for source, prefix in ((runner, "agent_runner"), *((package / name, f"pynchy/{name}") for name in _SHARED)):
        if source.is_file():
            yield prefix, source
        else:
            for path in source.rglob("*.py"):
                yield f"{prefix}/{path.relative_to(source)}", path
