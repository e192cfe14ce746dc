"""The log in the home: what is written into it, and how it is read."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import IO

import pytest
import structlog
from stored import raw
from support import CREDENTIAL, RUNTIMES, pynchy

from pynchy.cli.logs import about, in_words, parsed
from pynchy.cli.output import configure_logging, logging_into
from pynchy.logs import LogFile, log_files, log_folder, remove_before
from pynchy.schema import migrate
from pynchy.testing import ScriptedModel

#: The day of a log that is only read.
DAY = date(2026, 1, 2)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home that nothing has been in yet."""
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """What is configured in a test stays in it."""
    root, talkative = logging.getLogger(), [logging.getLogger(name) for name in ("httpx", "httpcore")]
    before = root.handlers[:], root.level, [one.level for one in talkative]
    yield
    root.handlers[:], root.level = before[0], before[1]
    for one, level in zip(talkative, before[2], strict=True):
        one.setLevel(level)
    structlog.reset_defaults()


def today() -> date:
    """Whose file is written now."""
    return datetime.now(UTC).date()


def lines_of(home: Path) -> list[str]:
    """Every line of the log, whatever day it has become meanwhile."""
    return [line for path in log_files(home).values() for line in path.read_text().splitlines()]


def written(home: Path) -> list[dict[str, object]]:
    """And what each says."""
    return [json.loads(line) for line in lines_of(home)]


def put(home: Path, day: date, *events: dict[str, object] | str) -> None:
    """Add lines to the log of a day."""
    log_folder(home).mkdir(parents=True, exist_ok=True)
    with (log_folder(home) / f"{day}.jsonl").open("a") as file:
        file.writelines(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in events)


def with_groups(home: Path, *folders: str) -> None:
    """A database that knows these groups."""
    home.mkdir(exist_ok=True)
    with raw(home / "pynchy.db") as db:
        migrate(db)
        for folder in folders:
            db.execute("INSERT INTO groups (jid, name, folder) VALUES (?, ?, ?)", (f"x:{folder}", folder, folder))


def event(text: str, /, **fields: object) -> dict[str, object]:
    """A line as the service writes it."""
    return {"time": "2026-01-02T03:04:05.000001Z", "level": "info", "event": text, **fields}


# --- writing ------------------------------------------------------------------------------------------------


def test_lines_of_ours_and_of_plugins_are_json_in_the_file_of_the_day(home: Path) -> None:
    configure_logging("critical")
    begun = today()
    with logging_into(home, "info"):
        structlog.get_logger("pynchy.x").warning("something is so", group="main", number=3, path=home)
        logging.getLogger("pynchy.plugins.post").info("%d letters", 2)
        logging.getLogger("pynchy.plugins.post").debug("not from this level on")
    structlog.get_logger("pynchy.x").warning("not any more")
    ours, theirs = written(home)
    assert list(ours)[:3] == ["time", "level", "event"]
    assert ours.items() >= {"level": "warning", "event": "something is so", "group": "main", "number": 3}.items()
    assert ours["path"] == str(home)
    assert theirs.items() >= {"level": "info", "event": "2 letters", "logger": "pynchy.plugins.post"}.items()
    assert abs(datetime.now(UTC) - datetime.fromisoformat(str(ours["time"]))) < timedelta(minutes=1)
    assert log_files(home).keys() <= {begun, today()}


def test_the_file_has_its_own_level_and_stderr_keeps_its_own(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("error")
    with logging_into(home, "info"):
        structlog.get_logger("x").info("for the file")
    assert [line["event"] for line in written(home)] == ["for the file"]
    assert capfd.readouterr().err == ""


def test_only_its_owner_can_read_the_log(home: Path) -> None:
    LogFile(home, logging.INFO).handle(logging.makeLogRecord({"msg": "a"}))
    assert log_folder(home).stat().st_mode & 0o777 == 0o700
    (file,) = log_files(home).values()
    assert file.stat().st_mode & 0o777 == 0o600


def test_an_error_is_written_with_its_traceback(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("info")
    with logging_into(home, "info"):
        for log in (structlog.get_logger("ours"), logging.getLogger("theirs")):
            try:
                raise ValueError("wrong \x1b[31m")
            except ValueError:
                log.exception("it failed")
    for line in written(home):
        assert str(line["exception"]).endswith("ValueError: wrong \x1b[31m")
    stderr = capfd.readouterr().err
    assert stderr.count("ValueError: wrong \\x1b[31m\n") == 2
    assert "\x1b" not in stderr


def test_each_day_has_a_file(home: Path) -> None:
    now = datetime(2026, 3, 1, 23, 59, tzinfo=UTC)
    file = LogFile(home, logging.INFO, now=lambda: now)
    file.handle(logging.makeLogRecord({"msg": "late"}))
    now += timedelta(minutes=2)
    file.handle(logging.makeLogRecord({"msg": "early"}))
    assert {day: path.read_text() for day, path in log_files(home).items()} == {
        date(2026, 3, 1): "late\n",
        date(2026, 3, 2): "early\n",
    }


def nothing_is_a_directory(home: Path) -> None:
    home.mkdir()
    log_folder(home).write_text("")


def the_file_is_a_link(home: Path) -> None:
    log_folder(home).mkdir(parents=True)
    (log_folder(home) / f"{today()}.jsonl").symlink_to(home / "elsewhere")


def the_file_is_a_folder(home: Path) -> None:
    (log_folder(home) / f"{today()}.jsonl").mkdir(parents=True)


@pytest.mark.parametrize("situation", [nothing_is_a_directory, the_file_is_a_link, the_file_is_a_folder])
def test_a_file_that_cannot_be_written_disturbs_nobody(
    situation: Callable[[Path], None], home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    situation(home)
    configure_logging("info")
    with logging_into(home, "info"):
        structlog.get_logger("x").info("it goes on")
    stderr = capfd.readouterr().err
    assert "it goes on" in stderr
    assert "Error" not in stderr
    assert not (home / "elsewhere").exists()


def test_after_a_full_disk_the_next_line_is_a_line(home: Path) -> None:
    code = (
        "import logging, resource, sys; from pathlib import Path; from pynchy.logs import LogFile\n"
        "file = LogFile(Path(sys.argv[1]), 0)\n"
        "def say(text): file.handle(logging.makeLogRecord({'msg': text}))\n"
        "say('a' * 60)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))\n"
        "say('b' * 60); say('c' * 60)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "say('d' * 60)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(home)], check=True)
    assert lines_of(home) == ["a" * 60, "b" * 39, "d" * 60]


def test_arguments_that_do_not_fit_lose_their_own_line_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)  # which is what stderr says of it
    configure_logging("critical")
    with logging_into(home, "info"):
        logging.getLogger("plugin").info("%d", "no number")
        logging.getLogger("plugin").info("%d", 1)
    assert [line["event"] for line in written(home)] == ["1"]


def test_a_day_has_so_much_room_and_the_next_has_it_again(home: Path) -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    file = LogFile(home, logging.INFO, most=1000, now=lambda: now)
    for _ in range(50):
        file.handle(logging.makeLogRecord({"msg": "x" * 99}))
    lines = log_files(home)[now.date()].read_text().splitlines()
    assert len(lines) == 11
    assert json.loads(lines[-1])["event"] == "the log of this day is full; no more is written until the next"
    now += timedelta(days=1)
    file.handle(logging.makeLogRecord({"msg": "again"}))
    assert log_files(home)[now.date()].read_text() == "again\n"


def test_old_days_are_removed_and_nothing_else(home: Path) -> None:
    for day in (1, 2, 3):
        put(home, date(2026, 3, day), event("x"))
    (log_folder(home) / "notes.jsonl").write_text("mine")
    (log_folder(home) / "launchd.log").write_text("")
    assert remove_before(home, date(2026, 3, 3)) == 2
    assert sorted(path.name for path in log_folder(home).iterdir()) == [
        "2026-03-03.jsonl",
        "launchd.log",
        "notes.jsonl",
    ]
    assert remove_before(home / "nothing", date(2026, 3, 3)) == 0


@pytest.mark.bubblewrap
@pytest.mark.anyio
async def test_a_service_logs_into_its_home_and_never_a_credential(
    home: Path, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    RUNTIMES["bubblewrap"]()
    environment = {
        **os.environ,
        "CONTAINER_RUNTIME": "bubblewrap",
        "PYNCHY_LOG_LEVEL": "debug",
        "ANTHROPIC_BASE_URL": model.base_url,
        "ANTHROPIC_API_KEY": CREDENTIAL,
    }
    done = await _ask("hello", environment)
    assert done == 0
    text = "".join(path.read_text() for path in log_files(home).values())
    assert '"event": "ready"' in text
    assert CREDENTIAL not in text


async def _ask(text: str, environment: dict[str, str]) -> int:
    from anyio import run_process

    command = [sys.executable, "-m", "pynchy", "ask", text]
    return (await run_process(command, env=environment, check=False)).returncode


# --- reading ------------------------------------------------------------------------------------------------


def test_a_line_is_read_in_local_time_with_its_fields(home: Path) -> None:
    put(home, DAY, event("it is so", group="main", text="two words", number=2, nothing=None, empty=""))
    done = pynchy("logs", env={"TZ": "Asia/Tokyo"})
    assert (done.returncode, done.stdout) == (
        0,
        '2026-01-02 12:04:05  info     it is so  group=main  text="two words"  number=2  nothing=null  empty=""\n',
    )


@pytest.mark.parametrize(
    "nasty", ["\x1b[2J", "\x9b31m", "\r", "a\nb", "\x07", "\u202eevil", "\udcff", "\x1b]0;title\x07"], ids=ascii
)
def test_words_of_agents_and_chats_do_not_drive_the_terminal(nasty: str) -> None:
    fields = {nasty: "name", "value": nasty, "group": [nasty], "exception": f"{nasty}\nlast"}
    for line in (event(nasty, **fields), {"time": nasty, "level": nasty, "event": 1}):
        assert all(one.isprintable() for one in in_words(line).splitlines())
    assert len(in_words(event("x", **fields)).split("\n")) == 2 + len(nasty.splitlines())
    assert in_words(parsed(nasty.encode("utf-8", "replace"))).isprintable()


def test_a_broken_line_is_shown_as_far_as_it_can_be_read(home: Path) -> None:
    put(home, DAY, '{"time": "2026-', "[1, 2]", event("whole"))
    lines = pynchy("logs").stdout.splitlines()
    assert [line.split("  ", 2)[-1].strip() for line in lines] == [
        '{"time": "2026-',
        "[1, 2]",
        "whole",
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"group": "the-cat"}, True),
        ({"group": "the"}, False),
        ({"container": "pynchy-0123456789ab-the-cat-01234567"}, True),
        ({"container": "pynchy-0123456789ab-the-cat-s-01234567"}, False),
        ({"container": "pynchy-0123456789ab-cat-01234567"}, False),
        ({"container": 7}, False),
        ({"group": "dog", "container": "pynchy-0123456789ab-the-cat-01234567"}, False),
        ({"text": "the-cat"}, False),
    ],
)
def test_a_line_is_about_a_group_by_its_group_or_its_container(fields: dict[str, object], expected: bool) -> None:
    assert about(event("x", **fields), "the-cat") is expected


def test_a_container_has_the_beginning_of_a_long_folder() -> None:
    folder = "f" * 60
    assert about(event("x", container=f"pynchy-0123456789ab-{folder[:40]}-01234567"), folder)


def test_the_lines_of_one_group_and_so_many_of_them(home: Path) -> None:
    with_groups(home, "main", "cat")
    put(home, DAY - timedelta(days=1), *(event(f"old {n}", group="main") for n in range(3)))
    put(home, DAY, *(event(f"new {n}", group=("main", "cat")[n % 2], pad="x" * 50_000) for n in range(6)))

    def shown(*words: str) -> list[str]:
        return [line.split("info     ")[1].split("  ")[0] for line in pynchy("logs", *words).stdout.splitlines()]

    assert shown("main") == ["old 0", "old 1", "old 2", "new 0", "new 2", "new 4"]
    assert shown("main", "--lines", "4") == ["old 2", "new 0", "new 2", "new 4"]
    assert shown("cat", "-n", "1") == ["new 5"]
    assert shown("--lines", "2") == ["new 4", "new 5"]
    assert shown("--lines", "0") == []


def test_an_unknown_group_is_an_error_that_lists_those_there_are(home: Path) -> None:
    with_groups(home, "main", "cat")
    put(home, DAY, event("x"))
    done = pynchy("logs", "dog")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "pynchy: There is no group 'dog'; there are: cat, main.\n"


def test_without_a_log_it_says_who_writes_one(home: Path) -> None:
    done = pynchy("logs")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"pynchy: There is no log in {home / 'logs'} yet: `pynchy run` writes it.\n"


def test_a_number_of_lines_is_a_number() -> None:
    done = pynchy("logs", "--lines", "-3")
    assert done.returncode == 2
    assert "is no number of lines" in done.stderr


@contextmanager
def following(*words: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """`pynchy logs -f`, and what it prints."""
    command = [sys.executable, "-m", "pynchy", "logs", "-f", *words]
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}  # which is not set for everybody
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout
        finally:
            process.kill()


def test_a_log_is_followed_across_the_change_of_day_until_ctrl_c(home: Path) -> None:
    with_groups(home, "main", "cat")
    put(home, DAY, event("before", group="main"))
    with following("main") as (process, output):
        assert "before" in output.readline()
        put(home, DAY, event("a stranger's", group="cat"), event("last of the day", group="main"))
        with (log_folder(home) / f"{DAY}.jsonl").open("a") as file:
            file.write(json.dumps(event("written in", group="main"))[:30])
            file.flush()
            assert "last of the day" in output.readline()
            file.write(json.dumps(event("written in", group="main"))[30:] + "\n")
        assert "written in" in output.readline()
        put(home, DAY + timedelta(days=1), event("first of the next", group="main", pad="x" * 5000))
        assert "first of the next" in output.readline()
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=20)
    assert (process.returncode, rest, errors) == (0, "", "")


def test_a_log_can_be_followed_before_there_is_one(home: Path) -> None:
    with following() as (process, output):
        assert process.stderr is not None
        assert "waiting for one" in process.stderr.readline()
        put(home, DAY, event("the first"))
        assert "the first" in output.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM
