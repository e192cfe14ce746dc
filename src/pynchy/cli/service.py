"""`pynchy service`: have the system run the service, by a unit of systemd, or on macOS an agent of launchd.

As root it is a unit of the machine, otherwise one of the user. The unit confines nothing: in a user's unit
nearly every such option implies NoNewPrivileges, without which rootless Podman cannot map its uids, and most
others cover a part of /proc, on which an unprivileged sandbox can then mount none of its own.
"""

from __future__ import annotations

import asyncio
import os
import plistlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol
from xml.sax.saxutils import escape

from dotenv import dotenv_values

from pynchy.cli.logs import last_lines
from pynchy.cli.output import complain, complain_of_system, tell
from pynchy.config import MODEL_VARIABLES
from pynchy.container_runner import CLIENT_VARIABLES
from pynchy.control import ControlError, ask
from pynchy.home import control_socket, make_private, pynchy_home
from pynchy.logs import log_folder

#: In every file that is ours to replace or to remove.
MARK = "Written by `pynchy service install`"
_UNIT = "pynchy.service"
_LABEL = "io.pynchy"

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

_STARTS_AGAIN_AFTER = 15  # seconds
#: An engine that starts with the machine may need a while: so often, within this time.
_STARTS, _STARTS_WITHIN = 20, 600  # seconds
#: Agents are asked to close first; what is left after this is killed.
_STOPS_WITHIN = 60  # seconds
_PATIENCE = _STOPS_WITHIN + 30


class ServiceError(Exception):
    """What was asked cannot be done; one sentence says why and what to do."""


@dataclass(frozen=True, slots=True)
class Job:
    """What the system is to run, and with which variables beside those that it sets itself."""

    command: tuple[str, ...]
    environment: Mapping[str, str]


class Supervisor(Protocol):
    """The part of the system that runs services. Its methods raise ServiceError where it does not do as asked."""

    @property
    def path(self) -> Path:
        """The file from which it knows ours."""
        ...

    def text(self, job: Job) -> bytes:
        """What that file says."""
        ...

    def is_for(self, text: bytes, home: Path) -> bool:
        """Whether the service of that file has this home."""
        ...

    def active(self) -> bool:
        """Whether it runs ours, or is about to."""
        ...

    def start(self) -> None:
        """Read the file anew, run the service from now on, and again after the next start of the system."""
        ...

    def stop(self) -> None:
        """Run it no more."""
        ...

    def restart(self) -> None:
        """End it and run it again."""
        ...

    def advice(self) -> list[str]:
        """What else the user may want to know."""
        ...

    def why_not(self) -> str:
        """How it last went, of a service that does not run, and where more is said about it."""
        ...


def chosen() -> Supervisor:
    """The supervisor of this system, for this user."""
    if sys.platform == "darwin":
        return Launchd(Path.home() / "Library/LaunchAgents" / f"{_LABEL}.plist", os.getuid())
    if os.geteuid() == 0:
        return Systemd(Path("/etc/systemd/system") / _UNIT, of_user=False)
    config = os.environ.get("XDG_CONFIG_HOME", "").strip() or Path.home() / ".config"
    return Systemd(Path(config) / "systemd/user" / _UNIT, of_user=True)


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


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the system's; what it says is in the result. ServiceError where there is no such program."""
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE)
    except FileNotFoundError:
        raise ServiceError(f"there is no `{command[0]}` on this system: `pynchy run` runs without one.") from None
    except subprocess.TimeoutExpired:
        raise ServiceError(f"`{' '.join(command)}` did not end within {_PATIENCE} s.") from None


def _words(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]


# --- systemd ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Systemd:
    """systemd.service(5): the user's instance of it, or the machine's."""

    path: Path
    of_user: bool

    def text(self, job: Job) -> bytes:
        """The unit; ServiceError where a word cannot be in one."""
        lines = [
            f"# {MARK}, which replaces it. `{self._program} edit pynchy` makes changes that stay.",
            "[Unit]",
            "Description=Pynchy, a personal Claude assistant",
            *(() if self.of_user else ("Wants=network-online.target", "After=network-online.target docker.service")),
            f"StartLimitIntervalSec={_STARTS_WITHIN}",
            f"StartLimitBurst={_STARTS}",
            "",
            "[Service]",
            "Type=exec",
            f"ExecStart={_exec_start(job.command)}",
            *(_assignment(name, value) for name, value in job.environment.items()),
            "WorkingDirectory=/",
            "Restart=on-failure",
            f"RestartSec={_STARTS_AGAIN_AFTER}",
            "KillMode=mixed",
            f"TimeoutStopSec={_STOPS_WITHIN}",
            "# An agent that takes too much memory is not the service.",
            "OOMPolicy=continue",
            "",
            "[Install]",
            f"WantedBy={'default' if self.of_user else 'multi-user'}.target",
        ]
        try:
            return "\n".join([*lines, ""]).encode()
        except UnicodeEncodeError as error:
            raise ServiceError(f"{error.object[:200]!r} cannot be in a unit: it is not UTF-8.") from None

    def is_for(self, text: bytes, home: Path) -> bool:
        """Whether the unit sets this PYNCHY_HOME."""
        return _assignment("PYNCHY_HOME", str(home)).encode() in text.splitlines()

    def active(self) -> bool:
        """Whether it runs or starts."""
        return self._state().get("ActiveState") in ("active", "activating", "reloading")

    def start(self) -> None:
        """Have it run, also after a start of the machine or of the user's instance."""
        for words in (("daemon-reload",), ("enable", _UNIT), ("restart", _UNIT)):
            self._do(*words)

    def stop(self) -> None:
        """Stop and forget it. The file must still be there."""
        self._do("disable", "--now", _UNIT)

    def restart(self) -> None:
        """Restart it, also where it had failed too often."""
        self._control("reset-failed", _UNIT)
        self._do("restart", _UNIT)

    def advice(self) -> list[str]:
        """An ordinary user's services end when the user logs out, unless that is changed."""
        if not self.of_user:
            return []
        try:
            lingers = _call("loginctl", "show-user", str(os.getuid()), "--property=Linger").stdout.strip()
        except ServiceError:
            return []
        if lingers == "Linger=yes":
            return []
        return ["It ends when you log out, and starts when you log in: `loginctl enable-linger` lets it run always."]

    def why_not(self) -> str:
        """In systemd's words."""
        state = self._state()
        if not state:
            return "no systemd answers here"
        words = [
            state.get("ActiveState", "unknown"),
            state.get("Result", ""),
            f"started {state.get('NRestarts')} times again",
        ]
        journal = f"journalctl {'--user ' if self.of_user else ''}-u pynchy"
        return f"{', '.join(word for word in words if word)}; `{journal}` says why"

    @property
    def _program(self) -> str:
        return "systemctl --user" if self.of_user else "systemctl"

    def _state(self) -> dict[str, str]:
        try:
            done = self._control("show", _UNIT, "--property=ActiveState,Result,NRestarts")
        except ServiceError:
            return {}
        pairs = (line.partition("=") for line in done.stdout.splitlines())
        return {name: value for name, _, value in pairs} if done.returncode == 0 else {}

    def _control(self, *words: str) -> subprocess.CompletedProcess[str]:
        return _call(*self._program.split(), *words)

    def _do(self, *words: str) -> None:
        done = self._control(*words)
        if done.returncode != 0:
            raise ServiceError(
                f"`{self._program} {' '.join(words)}` says: {_words(done).rstrip('.')}. "
                f"Where systemd runs, `{self._program} enable --now pynchy` starts it; elsewhere `pynchy run` does."
            )


def _exec_start(words: tuple[str, ...]) -> str:
    """A command line. The program itself may have neither quotes nor backslashes, and its `$` is ambiguous."""
    if any(character in words[0] for character in "\"'\\$"):
        words = ("/bin/sh", "-c", 'exec "$0" "$@"', *words)
    return " ".join(_quoted(word).replace("$", "$$") for word in words)


def _assignment(name: str, value: str) -> str:
    return f"Environment={_quoted(f'{name}={value}')}"


def _quoted(text: str) -> str:
    """A word in systemd's quotes (systemd.syntax(7), QUOTING), and without specifiers."""
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ServiceError(f"{text!r} cannot be in a unit: it has a control character.")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


# --- launchd ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Launchd:
    """launchd.plist(5): an agent of the user's, from log-in on."""

    path: Path
    uid: int

    def text(self, job: Job) -> bytes:
        """The property list, with our mark as a comment."""
        home = Path(job.environment["PYNCHY_HOME"])
        plist = {
            "Label": _LABEL,
            "ProgramArguments": list(job.command),
            "EnvironmentVariables": dict(job.environment),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": _STARTS_AGAIN_AFTER,
            "ExitTimeOut": _STOPS_WITHIN,
            "StandardErrorPath": str(_errors(home)),
        }
        try:
            head, separator, rest = plistlib.dumps(plist).partition(b"<plist")
        except (ValueError, UnicodeEncodeError):
            raise ServiceError("A path of the service cannot be in a property list: it is no plain text.") from None
        return head + f"<!-- {MARK}, which replaces it. -->\n".encode() + separator + rest

    def is_for(self, text: bytes, home: Path) -> bool:
        """Whether the list sets this PYNCHY_HOME."""
        return f"<key>PYNCHY_HOME</key>\n\t\t<string>{escape(str(home))}</string>".encode() in text

    def active(self) -> bool:
        """Whether it is loaded: launchd then keeps it running."""
        try:
            return _call("launchctl", "print", self._target).returncode == 0
        except ServiceError:
            return False

    def start(self) -> None:
        """Load it, in place of an earlier one."""
        make_private(_errors(pynchy_home()).parent)
        deadline = time.monotonic()
        if self.active():
            _call("launchctl", "bootout", self._target)
            deadline += _STOPS_WITHIN  # it may still be ending, and then no other can begin
        while (done := _call("launchctl", "bootstrap", f"gui/{self.uid}", str(self.path))).returncode != 0:
            if time.monotonic() > deadline:
                raise ServiceError(f"`launchctl bootstrap gui/{self.uid} {self.path}` says: {_words(done)}")
            time.sleep(1)

    def stop(self) -> None:
        """Unload it, which ends it."""
        done = _call("launchctl", "bootout", self._target)
        if done.returncode != 0 and self.active():
            raise ServiceError(f"`launchctl bootout {self._target}` says: {_words(done)}")

    def restart(self) -> None:
        """End it and have it started at once."""
        done = _call("launchctl", "kickstart", "-k", self._target)
        if done.returncode != 0:
            raise ServiceError(f"`launchctl kickstart -k {self._target}` says: {_words(done)}")

    def advice(self) -> list[str]:
        """It is there from log-in on, and nothing changes that."""
        return []

    def why_not(self) -> str:
        """Where it says so itself."""
        return f"{_errors(pynchy_home())} says why"

    @property
    def _target(self) -> str:
        return f"gui/{self.uid}/{_LABEL}"


def _errors(home: Path) -> Path:
    """Where launchd puts what the service says before it can log."""
    return log_folder(home) / "launchd.log"
