"""`pynchy service`: have the system run the service, as root with the machine, otherwise with the user's log-in."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from pynchy.cli.logs import last_lines
from pynchy.cli.output import complain, complain_of_system, tell
from pynchy.cli.supervisors import MARK, Job, ServiceError, Supervisor, chosen
from pynchy.config import MODEL_VARIABLES
from pynchy.container_runner import CLIENT_VARIABLES
from pynchy.control import ControlError, ask
from pynchy.home import control_socket, pynchy_home
from pynchy.logs import log_folder

#: Another at each log-in, and for the service the system's own.
_OF_A_SESSION = frozenset({"USER", "TMPDIR", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"})
#: What the service takes over from here. No credential is among them: anybody can read a unit.
_CARRIED = (
    *(name for name in CLIENT_VARIABLES if name not in _OF_A_SESSION),
    "XDG_CACHE_HOME",
    "CONTAINER_RUNTIME",
    "CONTAINER_IMAGE",
    "PYNCHY_AGENT_ENV",
)
_CREDENTIALS = tuple(name for name in MODEL_VARIABLES if name != "ANTHROPIC_MODEL")
#: Settings, of which some may be secret: they are named, and stay where they are.
_SETTINGS = (
    "PYNCHY_",
    "ANTHROPIC_",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "MAX_CONCURRENT_CONTAINERS",
    "HTTP_PROXY",
    "HTTPS_PROXY",
)

# --- what the commands do -----------------------------------------------------------------------------------


def install() -> int:
    """Write the unit and start the service; where both are so already, nothing changes."""

    def action(supervisor: Supervisor, home: Path) -> int:
        in_file = _in_file(home)
        _check_credential(home, in_file)
        if not supervisor.active() and _running(home):
            raise ServiceError(f"A service that was started in another way runs on {home}: stop it first.")
        job = Job((sys.executable, "-m", "pynchy", "run"), carried(home))
        changed = write(supervisor.path, supervisor.text(job))
        if waiting := [name for name in only_here(os.environ) if name not in in_file]:
            tell(
                f"Set in this shell alone, and not for the service: {', '.join(waiting)}; {home / '.env'} is the place."
            )
        if changed or not supervisor.active():
            try:
                supervisor.start()
            except ServiceError as error:
                raise ServiceError(f"{supervisor.path} is written, and the service does not run: {error}") from None
        print(f"{supervisor.path} is in place, and the service started; `pynchy service status` says how it is.")
        for sentence in supervisor.advice():
            tell(sentence)
        return 0

    return _guarded(action)


def uninstall() -> int:
    """Stop the service and remove its unit; everything in the home stays."""

    def action(supervisor: Supervisor, home: Path) -> int:
        if _ours(supervisor.path) is None:
            tell("No service is installed.")
            return 0
        try:
            supervisor.stop()
        except ServiceError as error:
            tell(f"It could not be stopped: {error}")
        supervisor.path.unlink(missing_ok=True)
        print(f"{supervisor.path} is removed. {home} stays as it is.")
        return 0

    return _guarded(action)


def restart() -> int:
    """End the service and start it again, so that it has the plugins and the version that are installed now."""

    def action(supervisor: Supervisor, home: Path) -> int:
        if _ours(supervisor.path) is None:
            raise ServiceError("No service is installed: `pynchy service install` installs it.")
        supervisor.restart()
        print("The service was started again.")
        return 0

    return _guarded(action)


def status() -> int:
    """Say whether it is installed and runs, since when, and what it last logged; 1 where it does not run."""

    def action(supervisor: Supervisor, home: Path) -> int:
        text = _ours(supervisor.path)
        print(f"installed: {supervisor.path}" if text else "not installed: `pynchy service install` does it")
        if text and not supervisor.is_for(text, home):
            print(f"           for another PYNCHY_HOME than {home}")
        hello = _running(home)
        if hello:
            print(f"running: since {_since(home)}, process {hello['pid']}, version {hello['version']}")
        else:
            print(f"not running{': ' + supervisor.why_not() if text else ''}")
        print(f"log: {log_folder(home)}, and `pynchy logs`")
        for line in last_lines(home, 5):
            print(f"  {line}")
        return 0 if hello else 1

    return _guarded(action)


def _guarded(action: Callable[[Supervisor, Path], int]) -> int:
    try:
        return action(chosen(), pynchy_home())
    except (ServiceError, ControlError) as error:
        return complain(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        return complain_of_system(error)


# --- what is needed for it ----------------------------------------------------------------------------------


def carried(home: Path) -> dict[str, str]:
    """The variables of the service: its home, and of this environment what leads to programs and engines."""
    return {"PYNCHY_HOME": str(home)} | {name: os.environ[name] for name in _CARRIED if os.environ.get(name)}


def only_here(environment: Mapping[str, str]) -> list[str]:
    """The names of settings that a service will not have unless they are in `.env`."""
    return sorted(
        name
        for name, value in environment.items()
        if value and name.upper().startswith(_SETTINGS) and name not in _CARRIED and name != "PYNCHY_HOME"
    )


def write(path: Path, text: bytes) -> bool:
    """Put a unit in its place; False where it was there already. ServiceError where another file is."""
    if _ours(path) == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".pynchy-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return True


def _ours(path: Path) -> bytes | None:
    """What our unit says, None where there is none."""
    if not os.path.lexists(path):
        return None
    text = path.read_bytes()
    if MARK.encode() not in text:
        raise ServiceError(f"{path} was not written by `pynchy service install`: move it away first.")
    return text


def _in_file(home: Path) -> dict[str, str | None]:
    try:
        return dotenv_values(home / ".env")
    except (OSError, ValueError) as error:
        raise ServiceError(f"{home / '.env'} cannot be read: {error}.") from None


def _check_credential(home: Path, in_file: Mapping[str, str | None]) -> None:
    """A service without a model would only fail, again and again."""
    if any(in_file.get(name) for name in _CREDENTIALS):
        return
    here = [name for name in _CREDENTIALS if os.environ.get(name)]
    if here:
        raise ServiceError(
            f"{here[0]} is set in this shell alone, and anybody can read a unit: write it into {home / '.env'} "
            "(mode 0600), and install again."
        )
    raise ServiceError(
        f"No model credential: write ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN into {home / '.env'} (mode 0600), "
        "and install again."
    )


def _running(home: Path) -> dict[str, Any] | None:
    """What the service of this home says of itself, however it was started."""
    return asyncio.run(ask(control_socket(home), op="hello"))


def _since(home: Path) -> str:
    """A service writes its process's number into its lock when it starts."""
    return f"{datetime.fromtimestamp((home / 'service.lock').stat().st_mtime):%Y-%m-%d %H:%M:%S}"
