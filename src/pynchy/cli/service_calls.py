"""`pynchy status`, `stop`, `clear` and `tasks`: what the running service says, line by line.

Tasks can be seen and changed without a service too, for it is their times that count.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pynchy.cli.homes import guarded, without_service
from pynchy.cli.output import visible
from pynchy.config import Settings
from pynchy.control import ControlError, ask
from pynchy.groups import Groups
from pynchy.home import control_socket
from pynchy.store import Store


def status() -> int:
    """Print how the service is; 1 where none runs."""
    return _guarded(op="status")


def stop(group: str) -> int:
    """End what a group's agents do, and say what was ended."""
    return _guarded(op="stop", group=group)


def clear(group: str) -> int:
    """Let a group's next message begin a new conversation."""
    return _guarded(op="clear", group=group)


def tasks(group: str | None) -> int:
    """Print the scheduled tasks of one group or of all."""
    return _guarded(op="tasks", group=group)


def task(action: str, number: int) -> int:
    """Pause, resume or cancel a task, or print its latest runs."""
    return _guarded(op="task", action=action, id=number)


def _guarded(**request: Any) -> int:
    async def action(settings: Settings) -> int:
        for line in await _lines(settings, request):
            print("\n".join(visible(part) for part in line.split("\n")))
        return 0

    return guarded(action)


async def _lines(settings: Settings, request: dict[str, Any]) -> list[str]:
    answer = await ask(control_socket(settings.home), **request)
    if answer is None and request["op"] in ("tasks", "task"):
        async with without_service(settings) as (store, groups):
            return await _tasks_of(store, groups, request) or ["There are none."]
    if answer is None:
        raise ControlError("No service runs here: `pynchy run` starts one.")
    if answer["event"] == "error":
        raise ControlError(answer["message"])
    return answer["lines"] or ["There are none."]


async def _tasks_of(store: Store, groups: Groups, request: dict[str, Any]) -> list[str]:
    """What the service would say; ControlError, ValueError."""
    if request["op"] == "tasks":
        folder = request["group"]
        if folder is not None and groups.in_folder(folder) is None:
            known = ", ".join(sorted(group.folder for group in groups.by_jid.values()))
            raise ControlError(f"There is no group {folder!r}; there are: {known or 'none'}.")
        return [one.in_words(groups.zone_of(one.folder), True) for one in await store.tasks.of(folder)]
    found = await store.tasks.get(request["id"])
    if found is None:
        raise ControlError(f"There is no task {request['id']}; `pynchy tasks list` lists those there are.")
    zone = groups.zone_of(found.folder)
    if request["action"] == "runs":
        return [run.in_words(zone) for run in await store.tasks.runs(found.id)]
    changed = await store.tasks.act(request["action"], found.id, zone, datetime.now(UTC))
    return [changed.in_words(zone, True)]
