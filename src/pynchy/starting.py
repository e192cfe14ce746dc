"""What must be so before a service starts: a home that is nobody else's, a runtime, and what agents run from."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pynchy.home import make_private
from pynchy.plugin import ContainerRuntime, PluginRegistry, RuntimeUnavailable
from pynchy.runtime import agent_image, get_runtime


class CannotStart(Exception):
    """The service cannot start; one sentence says why and what to do."""


class AlreadyRunning(CannotStart):
    """Another service has this home."""


@dataclass(frozen=True, slots=True)
class ChosenRuntime:
    """The runtime agents run in; `warning` is what the user must know of it."""

    runtime: ContainerRuntime
    warning: str = ""


def choose_runtime(registry: PluginRegistry, *, sandbox_optional: bool) -> ChosenRuntime:
    """The runtime for this machine, with its daemon running; CannotStart where there is none.

    Only a demo at the terminal may do without a sandbox, and only where none can start at all.
    """
    try:
        runtime = get_runtime(registry)
    except RuntimeError as error:
        raise CannotStart(str(error)) from None
    chosen = ChosenRuntime(runtime)
    try:
        runtime.ensure_running()
    except RuntimeUnavailable as error:
        if not sandbox_optional or os.environ.get("CONTAINER_RUNTIME", "").strip():
            raise CannotStart(f"No sandbox for the agent: {_with_mismatches(error, registry)}.") from None
        from pynchy.testing import ProcessRuntime

        why = _with_mismatches(error, registry)
        warning = f"THIS IS NO SANDBOX: the agent runs as a plain process, with your rights. {why}."
        chosen = ChosenRuntime(ProcessRuntime(), warning)
    return chosen


def _with_mismatches(error: RuntimeUnavailable, registry: PluginRegistry) -> str:
    """Why the chosen runtime does not work, and why the other ones were not chosen."""
    return "; ".join([str(error), *(f"{record.name} {record.note}" for record in registry.records if record.note)])


def check_image(runtime: ContainerRuntime) -> None:
    """Raise RuntimeUnavailable where an agent could not start for want of its image or environment."""
    if check := getattr(runtime, "check_image", None):
        check(agent_image())


@contextmanager
def home_lock(home: Path) -> Iterator[None]:
    """Be the only service of this home; AlreadyRunning where there is one."""
    try:
        make_private(home)
        descriptor = os.open(home / "service.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotStart(
            f"PYNCHY_HOME {home} cannot be used ({error.strerror or error}): make it a directory of yours, "
            f"or set another."
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
            raise AlreadyRunning(
                f"A pynchy service (process {pid or 'unknown'}) already runs on {home}: "
                f"use `pynchy chat`, stop it, or set another PYNCHY_HOME."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)
