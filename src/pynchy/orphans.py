"""Containers that an earlier service left behind: ended before the first start, and looked for ever after."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import structlog

from pynchy.plugin import ContainerRuntime, RuntimeUnavailable

log = structlog.get_logger(__name__)

_REAP_EVERY = 180.0  # seconds


def remove_orphans(runtime: ContainerRuntime, prefix: str, in_use: Collection[str]) -> None:
    """End this home's containers that nobody uses, and no others."""
    stop = getattr(runtime, "stop", None)
    if stop is None:
        return
    try:
        for name in runtime.list_running_containers(prefix):
            if name not in in_use:
                log.warning("removing a container that was left behind", container=name)
                stop(name)
    except RuntimeUnavailable as error:
        log.warning("could not look for containers left behind", error=str(error))


async def reap_orphans(runtime: ContainerRuntime, prefix: str, in_use: Collection[str]) -> None:
    """Do so every few minutes, until cancelled."""
    while True:
        await asyncio.sleep(_REAP_EVERY)
        await asyncio.to_thread(remove_orphans, runtime, prefix, in_use)
