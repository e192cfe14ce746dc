"""`pynchy status`, `stop`, `clear` and `tasks`: what the running service says, line by line.

Tasks can be seen and changed without a service too, for it is their times that count.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pynchy.chat_commands import change_task
from pynchy.cli.output import complain, complain_of_system, visible
from pynchy.config import Settings, SettingsError, load_settings
from pynchy.control import ControlError, ask
from pynchy.groups import Groups
from pynchy.home import control_socket
from pynchy.starting import AlreadyRunning, CannotStart, home_lock
from pynchy.store import Store, StoreError


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
    try:
        lines = asyncio.run(_lines(load_settings(), request))
    except AlreadyRunning:
        return complain("The service is just starting or stopping; try again in a moment.")
    except (CannotStart, ControlError, SettingsError, StoreError) as error:
        return complain(str(error))
    except ValueError as error:
        return complain(f"{error}.")
    except OSError as error:
        return complain_of_system(error)
    for line in lines:
        print("\n".join(visible(part) for part in line.split("\n")))
    return 0


async def _lines(settings: Settings, request: dict[str, Any]) -> list[str]:
    answer = await ask(control_socket(settings.home), **request)
    if answer is None and request["op"] in ("tasks", "task"):
        return await _without_service(settings, request)
    if answer is None:
        raise ControlError("No service runs here: `pynchy run` starts one.")
    if answer["event"] == "error":
        raise ControlError(answer["message"])
    return answer["lines"] or ["There are none."]


async def _without_service(settings: Settings, request: dict[str, Any]) -> list[str]:
    """The same of a home that no service has; ValueError."""
    with home_lock(settings.home):
        async with Store.open(settings.home / "pynchy.db") as store:
            groups = Groups(settings, store)
            await groups.load()
            if request["op"] == "tasks":
                folder = request["group"]
                if folder is not None and groups.in_folder(folder) is None:
                    known = ", ".join(sorted(group.folder for group in groups.by_jid.values()))
                    raise ControlError(f"There is no group {folder!r}; there are: {known or 'none'}.")
                tasks = await store.tasks.of(folder)
                return [one.in_words(groups.zone_of(one.folder), True) for one in tasks] or ["There are none."]
            found = await store.tasks.get(request["id"])
            if found is None:
                raise ControlError(f"There is no task {request['id']}; `pynchy tasks list` lists those there are.")
            zone = groups.zone_of(found.folder)
            if request["action"] == "runs":
                return [run.in_words(zone) for run in await store.tasks.runs(found.id)] or ["There are none."]
            return [(await change_task(store, request["action"], found, zone)).in_words(zone, True)]
