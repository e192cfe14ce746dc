"""What runs services on this system: systemd, the machine's or the user's own, and on macOS launchd.

The unit confines nothing: in a user's unit nearly every such option implies NoNewPrivileges, without which
rootless Podman cannot map its uids, and most others cover a part of /proc, on which an unprivileged sandbox can
then mount none of its own.
"""

from __future__ import annotations

import os
import plistlib
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from xml.sax.saxutils import escape

from pynchy.home import make_private, pynchy_home
from pynchy.logs import log_folder

#: In every file that is ours to replace or to remove.
MARK = "Written by `pynchy service install`"
_UNIT = "pynchy.service"
_LABEL = "io.pynchy"

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
