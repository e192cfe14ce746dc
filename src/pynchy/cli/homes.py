"""What commands have in common that reach a home: through its service, or alone where none runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from pynchy.cli.output import complain, complain_of_system
from pynchy.config import Settings, SettingsError, load_settings
from pynchy.control import ControlError
from pynchy.groups import Groups
from pynchy.home import database
from pynchy.starting import AlreadyRunning, CannotStart, home_lock
from pynchy.store import Store, StoreError


def guarded(action: Callable[[Settings], Awaitable[int]]) -> int:
    """Run it with the settings; what a user can mend is one sentence, never a traceback."""

    async def run() -> int:
        return await action(load_settings())

    try:
        return asyncio.run(run())
    except AlreadyRunning:
        return complain("The service is just starting or stopping; try again in a moment.")
    except (CannotStart, ControlError, SettingsError, StoreError) as error:
        return complain(str(error))
    except ValueError as error:
        return complain(f"{error}.")
    except OSError as error:
        return complain_of_system(error)


@asynccontextmanager
async def without_service(settings: Settings) -> AsyncIterator[tuple[Store, Groups]]:
    """The database and the groups of a home that no service has meanwhile; AlreadyRunning where one does."""
    with home_lock(settings.home):
        async with Store.open(database(settings.home)) as store:
            groups = Groups(settings, store)
            await groups.load()
            yield store, groups
