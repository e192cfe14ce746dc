"""A backup of a home in use, and the home that is made of it."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import socket
import sqlite3
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from stored import column, damage, raw, rows
from support import RUNTIMES, Chat, StartService, pynchy, until

from pynchy.cli import backup as backup_room
from pynchy.cli.backup import BackupError, read_archive, write_archive
from pynchy.schema import MIGRATIONS, migrate
from pynchy.starting import home_lock
from pynchy.store import Store
from pynchy.types import NewMessage

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a database."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    with raw(home / "pynchy.db") as db:
        migrate(db)
    return home


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Where it is restored."""
    return tmp_path / "elsewhere"


def restored(archive: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """`pynchy restore` into this home."""
    return pynchy("restore", str(archive), env={"PYNCHY_HOME": str(home)})


def tree(folder: Path) -> dict[str, tuple[str, int, object]]:
    """Everything in a folder: its kind, mode, and content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        kind = stat.filemode(status.st_mode)[0]
        content: object = path.readlink() if kind == "l" else path.read_bytes() if kind == "-" else None
        found[str(path.relative_to(folder))] = (kind, stat.S_IMODE(status.st_mode), content)
    return found


def message(number: int) -> NewMessage:
    """One of a flood."""
    return NewMessage(f"m{number}", "chat:1", "ada", "Ada", f"message {number} " + "x" * 500, datetime.now(UTC))


# --- there and back -----------------------------------------------------------------------------------------


def test_everything_but_what_passes_is_there_again(home: Path, elsewhere: Path, tmp_path: Path) -> None:
    (home / ".env").write_text("ANTHROPIC_API_KEY=sk-x\n")
    (home / ".env").chmod(0o600)
    cat = home / "groups/cat"
    (cat / "deep/er").mkdir(parents=True)
    (cat / "deep/er/tool").write_bytes(b"\0\x01" * 1000)
    (cat / "deep/er/tool").chmod(0o755)
    (cat / "closed").mkdir()
    (cat / "closed/inside").write_text("in there")
    (cat / "closed").chmod(0o500)
    os.utime(cat / "deep/er/tool", (1_000_000_000, 1_000_000_000))
    (cat / os.fsdecode(b"caf\xe9\n;=")).write_text("a name")
    for name, target in (("out", "/etc/passwd"), ("loop", "."), ("dangling", "../../../nowhere")):
        (cat / name).symlink_to(target)
    (home / "logs").mkdir()
    (home / "logs/2026-01-01.jsonl").write_text("{}\n")
    kept = {name: one for name, one in tree(home).items() if name != "pynchy.db"}
    for name in ("runner/x", "skills/x", "smoke-abc/x", "loading/x"):
        (home / name).mkdir(parents=True)
    (home / "service.lock").write_text("1")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(home / "control.sock"))
    os.mkfifo(cat / "pipe")
    done = pynchy("backup", str(tmp_path / "b.tar.gz"))
    listener.close()
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "b.tar.gz").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if "pynchy" in path.name] == []  # nothing of its own is left
    done = restored(tmp_path / "b.tar.gz", elsewhere)
    assert (done.returncode, done.stderr) == (0, "")
    assert {name: one for name, one in tree(elsewhere).items() if name != "pynchy.db"} == kept
    assert damage(elsewhere / "pynchy.db") == []
    assert (elsewhere / "groups/cat/deep/er/tool").stat().st_mtime == 1_000_000_000
    assert elsewhere.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@as_root
def test_files_keep_their_owners_and_no_program_keeps_its_powers(home: Path, elsewhere: Path, tmp_path: Path) -> None:
    folder = home / "groups/cat"
    folder.mkdir(parents=True)
    (folder / "file").write_text("x")
    (folder / "link").symlink_to("file")
    for path in (folder, folder / "file", folder / "link"):
        os.chown(path, 60999, 60998, follow_symlinks=False)
    (folder / "file").chmod(0o6755)
    assert pynchy("backup", str(tmp_path / "b.tar.gz")).returncode == 0
    assert restored(tmp_path / "b.tar.gz", elsewhere).returncode == 0
    for name in ("", "file", "link"):
        status = (elsewhere / "groups/cat" / name).lstat()
        assert (status.st_uid, status.st_gid) == (60999, 60998)
    assert stat.S_IMODE((elsewhere / "groups/cat/file").stat().st_mode) == 0o755


def test_a_backup_goes_through_a_pipe(home: Path, elsewhere: Path) -> None:
    (home / "groups").mkdir()
    (home / "groups/note").write_text("x")
    program = [sys.executable, "-m", "pynchy"]
    with subprocess.Popen([*program, "backup", "-"], stdout=subprocess.PIPE) as one:
        environment = {**os.environ, "PYNCHY_HOME": str(elsewhere)}
        subprocess.run([*program, "restore", "-"], stdin=one.stdout, env=environment, check=True)
    assert one.returncode == 0
    assert (elsewhere / "groups/note").read_text() == "x"


@pytest.mark.anyio
async def test_a_backup_in_the_middle_of_writes_is_of_one_moment(home: Path, elsewhere: Path, tmp_path: Path) -> None:
    async with Store.open(home / "pynchy.db") as store:
        stored = 0

        async def flood() -> None:
            nonlocal stored
            while True:
                await asyncio.gather(*(store.add_message(message(stored + one)) for one in range(20)))
                stored += 20

        writing = asyncio.create_task(flood())
        await until(lambda: stored >= 200)
        before = stored
        taken = await asyncio.to_thread(pynchy, "backup", str(tmp_path / "b.tar.gz"))
        after = stored + 20
        writing.cancel()
    assert (taken.returncode, after > before + 20) == (0, True)
    assert restored(tmp_path / "b.tar.gz", elsewhere).returncode == 0
    assert damage(elsewhere / "pynchy.db") == []
    ids = column(elsewhere / "pynchy.db", "SELECT id FROM messages ORDER BY id")
    assert ids == list(range(1, len(ids) + 1))
    assert before <= len(ids) <= after
    assert rows(elsewhere / "pynchy.db", "SELECT count(*) FROM messages_text WHERE messages_text MATCH 'message'") == [
        (len(ids),)
    ]


@pytest.mark.bubblewrap
@pytest.mark.anyio
async def test_a_conversation_goes_on_in_the_restored_home(
    start_service: StartService, tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = RUNTIMES["bubblewrap"]()
    call = '/tool Bash {"command": "echo kept >note.txt; cat note.txt"}'
    async with start_service(runtime) as service:
        assert await Chat(service).ask(call) == "kept"
        taken = await asyncio.to_thread(pynchy, "backup", str(tmp_path / "b.tar.gz"))
        installation = column(tmp_path / "home/pynchy.db", "SELECT value FROM meta WHERE key = 'installation_id'")
    assert taken.returncode == 0
    assert restored(tmp_path / "b.tar.gz", elsewhere).returncode == 0
    # Both may run on one machine, and each ends only its own containers.
    assert column(elsewhere / "pynchy.db", "SELECT value FROM meta WHERE key = 'installation_id'") != installation
    session = column(elsewhere / "pynchy.db", "SELECT session_id FROM groups")
    assert session != [None]
    monkeypatch.setenv("PYNCHY_HOME", str(elsewhere))
    async with start_service(runtime) as service:
        assert await Chat(service).ask('/tool Bash {"command": "cat note.txt"}') == "kept"
    assert column(elsewhere / "pynchy.db", "SELECT session_id FROM groups") == session
    sessions = column(elsewhere / "pynchy.db", "SELECT DISTINCT session_id FROM transcripts")
    assert sessions == session


def test_a_database_of_a_plugin_is_copied_as_it_is_between_two_transactions(
    home: Path, elsewhere: Path, tmp_path: Path
) -> None:
    folder = home / "plugins/post"
    folder.mkdir(parents=True)
    (folder / "note-wal").write_text("no database is beside this")
    with raw(folder / "keys.db") as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE keys (value TEXT)")
        db.execute("INSERT INTO keys VALUES ('in the log that is beside it')")
        assert (folder / "keys.db-wal").stat().st_size > 0
        assert pynchy("backup", str(tmp_path / "b.tar.gz")).returncode == 0
    assert restored(tmp_path / "b.tar.gz", elsewhere).returncode == 0
    assert sorted(path.name for path in (elsewhere / "plugins/post").iterdir()) == ["keys.db", "note-wal"]
    assert column(elsewhere / "plugins/post/keys.db", "SELECT value FROM keys") == ["in the log that is beside it"]


def test_what_only_looks_like_a_database_is_copied_as_it_is(home: Path, elsewhere: Path, tmp_path: Path) -> None:
    for name in ("plugins", "groups"):
        (home / name).mkdir()
        (home / name / "fake").write_bytes(b"SQLite format 3\0" + b"nothing of the kind" * 100)
    assert pynchy("backup", str(tmp_path / "b.tar.gz")).returncode == 0
    assert restored(tmp_path / "b.tar.gz", elsewhere).returncode == 0
    assert tree(elsewhere / "plugins") == tree(home / "plugins")
    assert tree(elsewhere / "groups") == tree(home / "groups")


# --- what agents do meanwhile -------------------------------------------------------------------------------


def test_no_link_is_followed_and_a_link_of_the_users_own_is_named(home: Path, elsewhere: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_text("nobody may read this")
    (home / "groups/cat").mkdir(parents=True)
    (home / "groups/cat/file").symlink_to(tmp_path / "secret/key")
    (home / "groups/cat/folder").symlink_to(tmp_path / "secret")
    (home / "attachments").symlink_to(tmp_path / "secret")
    (home / "groups/dog").symlink_to(tmp_path / "secret")
    done = pynchy("backup", str(tmp_path / "b.tar.gz"))
    for name in ("attachments", "groups/dog"):
        assert f"{name} is a link, and what it leads to is not in the backup." in done.stderr
    assert "groups/cat" not in done.stderr
    with tarfile.open(tmp_path / "b.tar.gz") as archive:
        kinds = {member.name: member.type for member in archive}
    assert kinds["attachments"] == kinds["groups/cat/file"] == kinds["groups/cat/folder"] == tarfile.SYMTYPE
    assert b"nobody may read this" not in gzip.decompress((tmp_path / "b.tar.gz").read_bytes())


def a_link_for_a_file(victim: Path, secret: Path) -> None:
    victim.unlink()
    victim.symlink_to(secret / "key")


def a_link_for_a_folder(victim: Path, secret: Path) -> None:
    victim.rmdir()
    victim.symlink_to(secret)


def a_pipe_for_a_file(victim: Path, secret: Path) -> None:
    victim.unlink()
    os.mkfifo(victim)


@pytest.mark.parametrize("swap", [a_link_for_a_file, a_link_for_a_folder, a_pipe_for_a_file])
def test_what_is_swapped_between_the_look_and_the_opening_is_not_taken(
    swap: Callable[[Path, Path], None], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_text("nobody may read this")
    victim = home / "groups/cat/victim"
    victim.parent.mkdir(parents=True)
    victim.mkdir() if swap is a_link_for_a_folder else victim.write_text("x" * 20)
    look = os.stat

    def look_and_swap(path: Any, **given: Any) -> os.stat_result:
        status = look(path, **given)
        if path == victim.name:
            swap(victim, tmp_path / "secret")
        return status

    monkeypatch.setattr(os, "stat", look_and_swap)
    taken = io.BytesIO()
    write_archive(home, taken, tmp_path, lambda _: None)
    monkeypatch.undo()
    assert b"nobody may read this" not in gzip.decompress(taken.getvalue())
    with tarfile.open(fileobj=io.BytesIO(taken.getvalue())) as archive:
        assert "groups/cat/victim" not in archive.getnames()


@pytest.mark.anyio
async def test_an_agent_that_swaps_files_for_links_and_cuts_them_off_gets_nothing_in(
    home: Path, elsewhere: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").mkdir()
    for number in range(20):
        (tmp_path / f"secret/{number}").write_text("nobody may read this")
    folder = home / "groups/cat"
    folder.mkdir(parents=True)
    code = """
import os, shutil, sys
folder, secret = sys.argv[1:]
os.chdir(folder)
print("begun", flush=True)
while True:
    for kind in range(4):
        for number in range(20):
            name = str(number)
            shutil.rmtree("d" + name, ignore_errors=True) if not os.path.islink("d" + name) else os.unlink("d" + name)
            if os.path.lexists(name):
                os.unlink(name)
            if kind == 0:
                open(name, "w").write("x" * 300_000)
                os.mkdir("d" + name)
                open("d" + name + "/0", "w").write("y")
            elif kind == 1:
                open(name, "w").write("x" * 10)
            elif kind == 2:
                os.symlink(secret + "/" + name, name)
                os.symlink(secret, "d" + name)
            else:
                os.mkfifo(name)
"""
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "secret")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        agent.stdout.readline()
        for number in range(15):
            with (tmp_path / f"b{number}.tar.gz").open("wb") as stream:
                scratch = tmp_path / f"scratch{number}"
                scratch.mkdir()
                write_archive(home, stream, scratch, lambda _: None)
        agent.kill()
    for number in range(15):
        packed = (tmp_path / f"b{number}.tar.gz").read_bytes()
        assert b"nobody may read this" not in gzip.decompress(packed)
        (tmp_path / f"e{number}").mkdir()
        read_archive(io.BytesIO(packed), tmp_path / f"e{number}")


def test_a_file_is_as_long_as_it_was_when_its_turn_came(home: Path, tmp_path: Path) -> None:
    for now, expected in ((b"abc", b"abc\0\0"), (b"abcdefgh", b"abcde")):
        source = tmp_path / "source"
        source.write_bytes(now)
        member = tarfile.TarInfo("x")
        member.size = 5
        packed = io.BytesIO()
        with source.open("rb") as file, tarfile.open(fileobj=packed, mode="w") as archive:
            archive.addfile(member, backup_room._Steady(file))
        packed.seek(0)
        with tarfile.open(fileobj=packed) as archive:
            content = archive.extractfile("x")
            assert content is not None
            assert content.read() == expected


def too_deep(folder: Path) -> None:
    here = os.open(folder, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


def too_long(folder: Path) -> None:
    here = os.open(folder, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("n" * 255, dir_fd=here)
        inner = os.open("n" * 255, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


def full_of_holes(folder: Path) -> None:
    with (folder / "huge").open("wb") as file:
        file.truncate(2**43)


def at_a_time_that_is_none(folder: Path) -> None:
    (folder / "file").write_text("x")
    for when in (-(2**31), 2**40):
        os.utime(folder / "file", (when, when))


@pytest.mark.parametrize(
    ("trick", "words"),
    [
        (too_deep, "... is left out from 200 folders down: it is too deep."),
        (too_long, " folders down: it is too deep."),
        (full_of_holes, "groups/cat/huge is left out: it claims 8796093022208 bytes"),
        (at_a_time_that_is_none, ""),
    ],
)
def test_what_an_agent_leaves_in_its_folder_hinders_neither_backup_nor_restoring(
    trick: Callable[[Path], None], words: str, home: Path, elsewhere: Path, tmp_path: Path
) -> None:
    folder = home / "groups/cat"
    folder.mkdir(parents=True)
    (folder / "note").write_text("mine")
    trick(folder)
    done = pynchy("backup", str(tmp_path / "b.tar.gz"))
    # What pytest removes afterwards has limits as well.
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    assert done.returncode == 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    done = restored(tmp_path / "b.tar.gz", elsewhere)
    assert (done.returncode, done.stderr) == (0, "")
    assert (elsewhere / "groups/cat/note").read_text() == "mine"
    subprocess.run(["rm", "-rf", str(elsewhere)], check=True)


def test_what_cannot_be_read_is_named_and_left_out(home: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root can read everything")
    (home / "groups/cat/closed").mkdir(parents=True)
    (home / "groups/cat/closed").chmod(0)
    (home / "groups/cat/file").write_text("x")
    (home / "groups/cat/file").chmod(0)
    done = pynchy("backup", str(tmp_path / "b.tar.gz"))
    (home / "groups/cat/closed").chmod(0o700)
    assert done.returncode == 0
    assert "groups/cat/closed is left out: Permission denied." in done.stderr
    assert "groups/cat/file is left out: Permission denied." in done.stderr


# --- refusals -----------------------------------------------------------------------------------------------


def test_a_backup_overwrites_nothing_and_does_not_contain_itself(home: Path, tmp_path: Path) -> None:
    taken = tmp_path / "b.tar.gz"
    taken.write_text("an earlier one")
    done = pynchy("backup", str(taken))
    assert (done.returncode, done.stderr) == (1, f"pynchy: {taken} is there already: choose another name.\n")
    assert taken.read_text() == "an earlier one"
    inside = home / "b.tar.gz"
    done = pynchy("backup", str(inside))
    assert (done.returncode, done.stderr) == (1, f"pynchy: {inside} lies in {home} itself: choose a place outside.\n")
    done = pynchy("backup", str(tmp_path / "nowhere/b.tar.gz"))
    assert done.returncode == 1
    assert done.stderr.endswith("No such file or directory.\n")
    assert not inside.exists()


def test_a_home_without_anything_has_no_backup(tmp_path: Path) -> None:
    done = pynchy("backup", str(tmp_path / "b.tar.gz"))
    assert done.returncode == 1
    assert done.stderr == f"pynchy: There is nothing to back up: {tmp_path / 'home'} has no pynchy.db.\n"
    assert not (tmp_path / "b.tar.gz").exists()


def test_a_database_that_is_broken_is_said_and_no_backup_made(home: Path, tmp_path: Path) -> None:
    (home / "pynchy.db").write_bytes(b"something else entirely" * 100)
    done = pynchy("backup", str(tmp_path / "b.tar.gz"))
    assert done.returncode == 1
    assert "pynchy.db cannot be copied: file is not a database." in done.stderr
    assert not (tmp_path / "b.tar.gz").exists()


def test_a_home_with_anything_in_it_is_not_restored_into(home: Path, tmp_path: Path) -> None:
    assert pynchy("backup", str(tmp_path / "b.tar.gz")).returncode == 0
    before = tree(home)
    done = restored(tmp_path / "b.tar.gz", home)
    assert done.returncode == 1
    assert f"{home} is not empty: move it away (stop its service first)" in done.stderr
    assert tree(home) == before
    (tmp_path / "empty").mkdir()
    assert restored(tmp_path / "b.tar.gz", tmp_path / "empty").returncode == 0


def test_a_service_that_begins_meanwhile_keeps_its_home(
    home: Path, elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pynchy("backup", str(tmp_path / "b.tar.gz")).returncode == 0
    monkeypatch.setenv("PYNCHY_HOME", str(elsewhere))
    adopt = backup_room._adopt

    def begin(database: Path) -> None:
        adopt(database)
        with home_lock(elsewhere):
            pass

    monkeypatch.setattr(backup_room, "_adopt", begin)
    assert backup_room.restore(str(tmp_path / "b.tar.gz")) == 1
    assert f"{elsewhere} cannot be replaced (Directory not empty)" in capsys.readouterr().err
    assert [path.name for path in elsewhere.iterdir()] == ["service.lock"]


def packed(*members: tuple[str, dict[str, object], bytes]) -> bytes:
    """A compressed tar of members: a name, what is unusual about it, and its content."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for name, fields, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in fields.items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(content))
    return target.getvalue()


LINK = {"type": tarfile.SYMTYPE, "linkname": "/tmp"}
FOLDER: dict[str, object] = {"type": tarfile.DIRTYPE, "mode": 0o755}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(packed(("../outside", {}, b"x")), id="up-and-out"),
        pytest.param(packed(("/outside", {}, b"x")), id="absolute"),
        pytest.param(packed(("a/../../outside", {}, b"x")), id="up-in-the-middle"),
        pytest.param(packed(("./a", {}, b"x")), id="dot"),
        pytest.param(packed(("link", LINK, b""), ("link/outside", {}, b"x")), id="through-a-link"),
        pytest.param(
            packed(("link", LINK, b""), ("link", FOLDER, b""), ("link/x", {}, b"x")), id="through-a-link-made-a-folder"
        ),
        pytest.param(
            packed(("d", FOLDER, b""), ("d", LINK, b""), ("d/x", {}, b"x")), id="through-a-folder-made-a-link"
        ),
        pytest.param(packed(("a", {}, b"x"), ("a", {}, b"y")), id="twice"),
        pytest.param(packed(("no-folder/a", {}, b"x")), id="in-no-folder"),
        pytest.param(packed(("hard", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}, b"")), id="hard-link"),
        pytest.param(packed(("device", {"type": tarfile.CHRTYPE}, b"")), id="device"),
        pytest.param(packed(("pipe", {"type": tarfile.FIFOTYPE}, b"")), id="pipe"),
        pytest.param(packed(("something", {}, b"x")), id="unknown-file"),
        pytest.param(packed(("pynchy.db", LINK, b"")), id="database-link"),
        pytest.param(packed(("pynchy.db", {}, b"no database" * 100)), id="damaged-database"),
        pytest.param(gzip.compress(b"no tar"), id="no-tar"),
        pytest.param(b"no gzip", id="no-gzip"),
        pytest.param(b"", id="empty"),
    ],
)
def test_an_archive_that_no_backup_made_is_refused_and_leaves_nothing(
    content: bytes, elsewhere: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.tar.gz").write_bytes(content)
    before = sorted(tmp_path.iterdir())
    done = restored(tmp_path / "bad.tar.gz", elsewhere)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_damaged_backup_is_refused_wherever_the_damage_is(home: Path, tmp_path: Path) -> None:
    (home / "groups").mkdir()
    (home / "groups/noise").write_bytes(os.urandom(200_000))
    whole = tmp_path / "b.tar.gz"
    assert pynchy("backup", str(whole)).returncode == 0
    good = whole.read_bytes()
    other = bytes([good[-100_000] ^ 1])
    for number, bad in enumerate(
        (good[:-4], good[: len(good) // 2], good[:-8] + bytes(8), good[:-100_000] + other + good[-99_999:])
    ):
        (tmp_path / f"e{number}").mkdir()
        with pytest.raises(BackupError, match="This is no backup, or a damaged one"):
            read_archive(io.BytesIO(bad), tmp_path / f"e{number}")


def test_a_backup_of_a_newer_version_is_refused(home: Path, elsewhere: Path, tmp_path: Path) -> None:
    with raw(home / "pynchy.db") as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    assert pynchy("backup", str(tmp_path / "b.tar.gz")).returncode == 0
    done = restored(tmp_path / "b.tar.gz", elsewhere)
    assert done.returncode == 1
    assert "The backup was made by a newer pynchy; upgrade pynchy, and restore it then." in done.stderr
    assert not elsewhere.exists()


def test_a_backup_of_an_older_version_is_brought_up_to_date(home: Path, elsewhere: Path, tmp_path: Path) -> None:
    (home / "pynchy.db").unlink()
    with raw(home / "pynchy.db") as db:
        db.executescript(f"{MIGRATIONS[0]}; PRAGMA user_version = 1")
        db.execute("INSERT INTO chats VALUES ('a', 'A', 'x')")
    assert pynchy("backup", str(tmp_path / "b.tar.gz")).returncode == 0
    assert restored(tmp_path / "b.tar.gz", elsewhere).returncode == 0
    assert rows(elsewhere / "pynchy.db", "SELECT jid FROM chats") == [("a",)]
    with pytest.raises(sqlite3.OperationalError):
        rows(home / "pynchy.db", "SELECT * FROM tasks")
    assert rows(elsewhere / "pynchy.db", "SELECT * FROM tasks") == []
