"""`pynchy service`: what it writes, as the real systemd reads it, and what it asks of the system."""

from __future__ import annotations

import os
import plistlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from supervisors import StandIns, command_line, complaints, systemd_reads
from support import CREDENTIAL, missing

from pynchy.cli import service
from pynchy.cli.service import carried, only_here, write
from pynchy.cli.supervisors import Job, Launchd, ServiceError, Systemd

ODD = ["plain", "two words", "per%cent %h", "a $HOME ${PATH} $$", "it's", 'qu"ote', "back\\slash\\", "k=v;#", "Zoë 猫"]


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIns:
    """Stand-ins on PATH."""
    stand_ins = StandIns(tmp_path / "stand-ins")
    monkeypatch.setenv("PATH", stand_ins.path)
    return stand_ins


@pytest.fixture
def unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an ordinary user's unit goes, on Linux; the home has a credential."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    credential(tmp_path / "home")
    return tmp_path / "config/systemd/user/pynchy.service"


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user's agent goes, on macOS; the home has a credential."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("HOME", str(tmp_path))
    credential(tmp_path / "home")
    return tmp_path / "Library/LaunchAgents/io.pynchy.plist"


def credential(home: Path) -> None:
    """A home whose service could start."""
    home.mkdir(exist_ok=True)
    (home / ".env").write_text(f"ANTHROPIC_API_KEY={CREDENTIAL}\n")


def job(place: Path) -> Job:
    """A job whose every path is below an odd place, with a program that exists."""
    python = place / "bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    return Job((str(python), "-m", "pynchy", "run"), {"PYNCHY_HOME": str(place), "PATH": f"{place}:/bin"})


# --- the unit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_user", [True, False], ids=["of a user", "of the machine"])
@pytest.mark.parametrize("name", ODD)
def test_systemd_finds_nothing_wrong_with_the_unit(name: str, of_user: bool, tmp_path: Path) -> None:
    unit = tmp_path / "pynchy.service"
    write(unit, Systemd(unit, of_user).text(job(tmp_path / name)))
    assert complaints(unit, of_user) == ""


@pytest.mark.parametrize("name", ODD)
def test_systemd_reads_the_words_that_were_meant(name: str, tmp_path: Path) -> None:
    wanted = job(tmp_path / name)
    unit = tmp_path / "pynchy.service"
    write(unit, Systemd(unit, of_user=True).text(wanted))
    found = systemd_reads(unit)
    assert command_line(found)[-4:] == list(wanted.command)
    assert found["Environment"] == [f"{key}={value}" for key, value in wanted.environment.items()]


def test_a_program_that_systemd_cannot_start_by_its_path_is_started_by_a_shell(tmp_path: Path) -> None:
    program = tmp_path / 'it\'s $HOME "here" \\'
    program.write_text('#!/bin/sh\nprintf "%s|" "$0" "$@"\n')
    program.chmod(0o755)
    unit = tmp_path / "pynchy.service"
    write(unit, Systemd(unit, of_user=True).text(Job((str(program), "a b"), {})))
    done = subprocess.run(command_line(systemd_reads(unit)), capture_output=True, text=True, check=True)
    assert done.stdout == f"{program}|a b|"


def test_systemd_is_told_to_restart_and_to_leave_nothing_behind(tmp_path: Path) -> None:
    unit = tmp_path / "pynchy.service"
    write(unit, Systemd(unit, of_user=True).text(job(tmp_path / "x")))
    found = systemd_reads(unit)
    wanted = {
        "Restart": "on-failure",
        "RestartSec": "15s",
        "KillMode": "mixed",
        "TimeoutStopSec": "1min",
        "OOMPolicy": "continue",
        "WorkingDirectory": "/",
        "ProtectSystem": "no",
        "PrivateUsers": "no",
    }
    assert {name: found[name] for name in wanted} == {name: [value] for name, value in wanted.items()}
    assert "NoNewPrivileges" not in found  # rootless Podman maps its uids with a setuid program


@pytest.mark.parametrize("bad", ["line\nbreak", "escape\x1b", "\udcff"], ids=ascii)
def test_what_no_unit_can_hold_is_an_error_that_names_it(bad: str, tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="cannot be in a unit: it"):
        Systemd(tmp_path / "x", of_user=True).text(Job(("/bin/true",), {"PYNCHY_HOME": bad}))


@pytest.mark.parametrize("name", [*ODD, "<a & b>"])
def test_a_property_list_says_what_was_meant(name: str, tmp_path: Path) -> None:
    wanted = Job((f"/{name}/python", "-m", "pynchy", "run"), {"PYNCHY_HOME": f"/{name}", "PATH": f"/{name}/bin"})
    launchd = Launchd(tmp_path / "io.pynchy.plist", 501)
    text = launchd.text(wanted)
    read = plistlib.loads(text)
    assert (read["Label"], read["ProgramArguments"]) == ("io.pynchy", list(wanted.command))
    assert read["EnvironmentVariables"] == wanted.environment
    assert (read["RunAtLoad"], read["KeepAlive"]) == (True, {"SuccessfulExit": False})
    assert read["StandardErrorPath"] == f"/{name}/logs/launchd.log"
    assert (launchd.is_for(text, Path(f"/{name}")), launchd.is_for(text, Path("/other"))) == (True, False)


# --- what a service takes over ------------------------------------------------------------------------------


def test_no_credential_is_carried_into_a_unit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = (
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "CLAUDE_CODE_OAUTH_TOKEN",
        "PYNCHY_POST_TOKEN",
        "HTTPS_PROXY",
    )
    for name in secret:
        monkeypatch.setenv(name, CREDENTIAL)
    monkeypatch.setenv("CONTAINER_RUNTIME", "podman")
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/user/7/docker.sock")
    found = carried(tmp_path)
    assert CREDENTIAL not in str(found)
    expected = {"PYNCHY_HOME": str(tmp_path), "CONTAINER_RUNTIME": "podman", "PATH": os.environ["PATH"]}
    assert found.items() >= {**expected, "DOCKER_HOST": "unix:///run/user/7/docker.sock"}.items()
    assert set(secret) <= set(only_here(os.environ))
    assert not set(found) & set(only_here(os.environ))


# --- the commands -------------------------------------------------------------------------------------------


def test_install_writes_the_unit_and_starts_it(
    system: StandIns, unit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert service.install() == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{unit} is in place, and the service started")
    assert "`loginctl enable-linger` lets it run always" in printed.err
    assert [call for call in system.calls() if " show" not in call] == [
        "systemctl --user daemon-reload",
        "systemctl --user enable pynchy.service",
        "systemctl --user restart pynchy.service",
    ]
    assert command_line(systemd_reads(unit)) == [sys.executable, "-m", "pynchy", "run"]
    assert (CREDENTIAL in unit.read_text(), unit.stat().st_mode & 0o777) == (False, 0o644)
    assert [path.name for path in unit.parent.iterdir() if path.name != "run"] == ["pynchy.service"]


def test_a_second_install_changes_nothing_and_one_after_a_change_starts_anew(
    system: StandIns, unit: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    system.set("lingers")
    assert service.install() == 0
    assert "linger" not in capsys.readouterr().err
    system.calls()
    before = unit.stat().st_ino
    assert service.install() == 0
    assert (unit.stat().st_ino, [call for call in system.calls() if "restart" in call]) == (before, [])
    monkeypatch.setenv("CONTAINER_RUNTIME", "podman")
    assert service.install() == 0
    assert "systemctl --user restart pynchy.service" in system.calls()
    assert '"CONTAINER_RUNTIME=podman"' in unit.read_text()


def somebody_elses(unit: Path) -> None:
    unit.write_text("[Service]\nExecStart=/bin/true\n")


def masked(unit: Path) -> None:
    unit.symlink_to("/dev/null")


@pytest.mark.parametrize("put", [somebody_elses, masked])
def test_a_unit_of_somebody_else_is_left_alone(
    put: object, system: StandIns, unit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unit.parent.mkdir(parents=True)
    put(unit)  # pyright: ignore[reportCallIssue]
    text = unit.read_bytes()
    for command in (service.install, service.uninstall, service.restart, service.status):
        assert command() == 1
        assert "was not written by `pynchy service install`: move it away first." in capsys.readouterr().err
    assert unit.read_bytes() == text
    assert not [call for call in system.calls() if "show" not in call]


def test_a_credential_of_the_shell_alone_is_named_and_nothing_installed(
    system: StandIns, unit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home/.env").unlink()
    assert service.install() == 1
    assert "No model credential: write ANTHROPIC_API_KEY or" in capsys.readouterr().err
    monkeypatch.setenv("CLAUDE_CODE_OAUTH_TOKEN", CREDENTIAL)
    assert service.install() == 1
    message = capsys.readouterr().err
    assert "CLAUDE_CODE_OAUTH_TOKEN is set in this shell alone" in message
    assert f"write it into {tmp_path / 'home/.env'}" in message
    assert CREDENTIAL not in message
    assert (unit.exists(), system.calls()) == (False, [])


def test_settings_of_the_shell_alone_are_named(
    system: StandIns, unit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYNCHY_POST_TOKEN", CREDENTIAL)
    monkeypatch.setenv("PYNCHY_TIME_ZONE", "Europe/Berlin")
    with (tmp_path / "home/.env").open("a") as file:
        file.write("PYNCHY_TIME_ZONE=Europe/Berlin\n")
    assert service.install() == 0
    message = capsys.readouterr().err
    found = re.search(r"^Set in this shell alone, and not for the service: (.*); (.*) is the place\.$", message, re.M)
    assert found is not None
    assert "PYNCHY_POST_TOKEN" in found[1].split(", ")
    assert "PYNCHY_TIME_ZONE" not in found[1]
    assert found[2] == str(tmp_path / "home/.env")
    assert CREDENTIAL not in message + unit.read_text()


def test_where_no_systemd_answers_the_unit_is_written_and_it_says_what_to_do(
    system: StandIns, unit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    system.set("trouble", "Failed to connect to bus: No medium found\n")
    assert service.install() == 1
    message = capsys.readouterr().err
    assert f"{unit} is written, and the service does not run: " in message
    assert "says: Failed to connect to bus: No medium found. " in message
    assert "`systemctl --user enable --now pynchy` starts it; elsewhere `pynchy run` does." in message
    assert unit.exists()
    assert service.status() == 1
    assert "not running: no systemd answers here" in capsys.readouterr().out


def test_where_there_is_no_systemctl_it_says_so(
    unit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert service.install() == 1
    assert "there is no `systemctl` on this system: `pynchy run` runs without one." in capsys.readouterr().err


def test_uninstall_stops_and_removes_ours_and_keeps_the_home(
    system: StandIns, unit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.install()
    system.calls()
    assert service.uninstall() == 0
    assert system.calls() == ["systemctl --user disable --now pynchy.service"]
    assert (unit.exists(), (tmp_path / "home/.env").exists()) == (False, True)
    assert service.uninstall() == 0
    assert "No service is installed." in capsys.readouterr().err
    assert service.restart() == 1


def test_restart_also_restarts_what_had_failed_too_often(system: StandIns, unit: Path) -> None:
    service.install()
    system.calls()
    assert service.restart() == 0
    assert system.calls() == [
        "systemctl --user reset-failed pynchy.service",
        "systemctl --user restart pynchy.service",
    ]


def test_status_says_how_it_failed_and_what_was_last_logged(
    system: StandIns, unit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service.install()
    (system.directory / "active").unlink()
    (tmp_path / "home/logs").mkdir()
    (tmp_path / "home/logs/2026-01-02.jsonl").write_text(
        '{"time": "2026-01-02T03:04:05Z", "level": "info", "event": "the last"}\n'
    )
    capsys.readouterr()
    assert service.status() == 1
    said = capsys.readouterr().out
    assert said.startswith(f"installed: {unit}\n")
    assert "not running: failed, exit-code, started 20 times again; `journalctl --user -u pynchy` says why\n" in said
    assert f"log: {tmp_path / 'home/logs'}, and `pynchy logs`\n" in said
    assert said.endswith("info     the last\n")
    monkeypatch.setenv("PYNCHY_HOME", str(tmp_path / "other"))
    assert service.status() == 1
    assert f"for another PYNCHY_HOME than {tmp_path / 'other'}" in capsys.readouterr().out


@pytest.mark.usefixtures("system")
def test_status_without_anything_says_how_to_install(unit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert service.status() == 1
    assert capsys.readouterr().out.startswith("not installed: `pynchy service install` does it\nnot running\n")


def test_on_macos_it_is_an_agent_of_launchd(
    system: StandIns, agent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = f"gui/{os.getuid()}/io.pynchy"
    assert service.install() == 0
    assert system.calls()[-1] == f"launchctl bootstrap gui/{os.getuid()} {agent}"
    assert plistlib.loads(agent.read_bytes())["ProgramArguments"] == [sys.executable, "-m", "pynchy", "run"]
    assert (tmp_path / "home/logs").stat().st_mode & 0o777 == 0o700
    assert service.install() == 0
    assert not [call for call in system.calls() if "boot" in call]
    assert service.restart() == 0
    assert system.calls() == [f"launchctl kickstart -k {target}"]
    assert service.uninstall() == 0
    assert system.calls() == [f"launchctl bootout {target}"]
    assert not agent.exists()
    assert service.status() == 1
    capsys.readouterr()


def test_what_launchd_says_is_passed_on(system: StandIns, agent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    system.set("trouble", "Bootstrap failed: 5: Input/output error\n")
    assert service.install() == 1
    assert "says: Bootstrap failed: 5: Input/output error" in capsys.readouterr().err


def test_for_root_it_is_a_unit_of_the_machine(system: StandIns, tmp_path: Path) -> None:
    if os.geteuid() != 0 or not Path("/etc/systemd/system").is_dir():
        missing("mount", "only root installs a unit of the machine, where there is systemd")
    credential(tmp_path / "home")
    (tmp_path / "etc").mkdir()
    script = 'mount --bind "$0" /etc/systemd/system && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, str(tmp_path / "etc"), sys.executable, "-m", "pynchy"]
    done = subprocess.run([*command, "service", "install"], capture_output=True, text=True)
    if "unshare failed" in done.stderr:
        missing("mount", done.stderr.strip())
    assert (done.returncode, "linger" in done.stderr) == (0, False)
    unit = tmp_path / "etc/pynchy.service"
    assert "WantedBy=multi-user.target" in unit.read_text()
    assert complaints(unit, of_user=False) == ""
    assert "systemctl enable pynchy.service" in system.calls()
    assert subprocess.run([*command, "service", "uninstall"]).returncode == 0
    assert not unit.exists()
