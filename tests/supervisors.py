"""Stand-ins for systemctl, loginctl and launchctl, which note down their calls, and the parser of the real systemd."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from support import missing

_PROGRAM = """\
#!/bin/sh
echo "${0##*/} $*" >>"$(dirname "$0")/calls"
cd "$(dirname "$0")" || exit 1
[ ! -s trouble ] || { cat trouble >&2; exit 1; }
case "${0##*/} $*" in
    *" show pynchy.service"*)
        [ -e active ] && echo ActiveState=active || printf 'ActiveState=failed\\nResult=exit-code\\nNRestarts=20\\n' ;;
    *"Linger"*) [ -e lingers ] && echo Linger=yes || echo Linger=no ;;
    *" print "*) [ -e active ] ;;
    *" restart pynchy.service"|*bootstrap*|*kickstart*) touch active ;;
    *" disable --now pynchy.service"|*bootout*) rm -f active ;;
    *enable-linger*) touch lingers ;;
esac
"""


class StandIns:
    """A directory for the front of PATH. What they are to say and do is in its files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        for name in ("systemctl", "loginctl", "launchctl"):
            program = directory / name
            program.write_text(_PROGRAM)
            program.chmod(0o755)

    @property
    def path(self) -> str:
        """PATH with them."""
        return f"{self.directory}{os.pathsep}{os.environ['PATH']}"

    def calls(self) -> list[str]:
        """How they were called since this was last asked."""
        noted = self.directory / "calls"
        lines = noted.read_text().splitlines() if noted.exists() else []
        noted.unlink(missing_ok=True)
        return lines

    def set(self, name: str, text: str = "x") -> None:
        """`active`, `lingers`, or a `trouble`."""
        (self.directory / name).write_text(text)


def systemd_reads(unit: Path) -> dict[str, list[str]]:
    """What the real systemd makes of a unit, by name: it is asked what it would start, and starts nothing."""
    program = next((path for path in ("/usr/lib/systemd/systemd", "/lib/systemd/systemd") if Path(path).exists()), None)
    if program is None or shutil.which("systemd-analyze") is None:
        missing("systemd", "no systemd is installed")
    runtime = unit.parent / "run"
    runtime.mkdir(exist_ok=True)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime), "SYSTEMD_UNIT_PATH": f"{unit.parent}:"}
    # As root it would take itself for the machine's.
    nobody = ["unshare", "--user"] if os.getuid() == 0 else []
    command = [*nobody, program, "--user", "--test", f"--unit={unit.name}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    _, _, dump = (done.stdout + done.stderr).partition(f"-> Unit {unit.name}:")
    found: dict[str, list[str]] = {}
    for line in dump.partition("-> Unit ")[0].splitlines():
        name, _, value = line.strip().partition(": ")
        found.setdefault(name, []).append(value)
    assert found, done.stdout
    return found


def command_line(found: dict[str, list[str]]) -> list[str]:
    """The words of a command as they will be once variables are put in, of which there are none."""
    (line,) = found["Command Line"]
    return shlex.split(line.replace("\\$", "$").replace("$$", "$"))


def complaints(unit: Path, of_user: bool) -> str:
    """What `systemd-analyze verify` finds wrong with a unit."""
    if shutil.which("systemd-analyze") is None:
        missing("systemd", "no systemd is installed")
    runtime = unit.parent / "run"
    runtime.mkdir(exist_ok=True)
    command = ["systemd-analyze", "verify", *(["--user"] if of_user else []), str(unit)]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    return done.stdout + done.stderr + (f"exit code {done.returncode}" if done.returncode else "")
