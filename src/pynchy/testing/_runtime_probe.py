"""The program that RuntimeConformance runs in a container in the runner's place: it does one task and says what it saw.

Like the runner it is the container's init where it is process 1, and has the same module for that beside it. It needs
Python and its standard library, and does no harm where there is no wall around it. Which task it does is in
`task.json`, beside it, too; what it says is one line of JSON each.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

#: Nothing that a failed test leaves behind lives longer than this, in seconds.
LIFETIME = 120
#: Where the suite mounts the probe, and a folder of the container's own.
PROBE_PATH = "/opt/pynchy"
FOLDER = "/workspace/group"
CHUNK = 65536
_MS_REMOUNT = 32


def main() -> None:
    """Do the task, and say what it returns."""
    importlib.import_module("init").become_init((0, 1))
    given = json.loads(Path(__file__).with_name("task.json").read_text())
    try:
        answer = globals()[given["task"]](**given["arguments"])
    except OSError as error:
        sys.exit(f"{given['task']}: {error}")
    if answer is not None:
        say(answer)


def say(what: object) -> None:
    """Write a line to stdout."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def pattern(seed: int, size: int) -> bytes:
    """Bytes of every value, the same for the same seed on both sides."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - no secret


def digest(data: bytes) -> str:
    """What two sides compare."""
    return hashlib.sha256(data).hexdigest()


# --- how it runs --------------------------------------------------------------------------------------------


def end() -> str:
    """Say so, and do."""
    return "ended"


def end_with(code: int) -> None:
    """Exit with a code."""
    sys.exit(code)


def kill_itself() -> str:
    """End by a signal."""
    os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def wait() -> str:
    """Say `up`, then wait for the end of stdin."""
    say("up")
    _swallow()
    return "ended"


def speak_on_stderr() -> str:
    """A line on either stream."""
    sys.stderr.write("for stderr\n")
    sys.stderr.flush()
    return "for stdout"


def swallow() -> list[Any]:
    """Read stdin to its end; how much it was, and its digest."""
    data = _swallow()
    return [len(data), digest(data)]


def swallow_when_told() -> list[Any]:
    """The same, once a file called `go` lies beside the probe."""
    say("up")
    go = Path(__file__).with_name("go")
    _until(go.exists)
    return swallow()


def pour(seed: int, size: int) -> str:
    """Write to stdout, then read stdin to its end."""
    _write(pattern(seed, size))
    _swallow()
    return "ended"


def pour_and_end(seed: int, size: int) -> None:
    """Write to stdout, and end at once."""
    _write(pattern(seed, size))


def pour_and_swallow(seed: int, size: int) -> list[Any]:
    """Write to stdout and read stdin at once."""
    pouring = threading.Thread(target=_write, args=(pattern(seed, size),))
    pouring.start()
    answer = swallow()
    pouring.join()
    return answer


def _swallow() -> bytes:
    data = bytearray()
    while chunk := os.read(0, CHUNK):
        data += chunk
    return bytes(data)


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view[:CHUNK]) :]


def _until(condition: Callable[[], object], within: float = LIFETIME) -> bool:
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# --- how it ends --------------------------------------------------------------------------------------------


def cling(descendants: int = 3) -> None:
    """Do what a program can to outlive its container; each process of it holds a lock in the folder."""
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(one, signal.SIG_IGN)
    for number in range(descendants):
        ready, locked = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork():
                os._exit(0)
            _lock(number)
            os.write(locked, b"x")
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)
            time.sleep(LIFETIME)
            os._exit(0)
        os.close(locked)
        os.read(ready, 1)
    _lock(descendants)
    say("up")
    time.sleep(LIFETIME)


def flood() -> None:
    """Write to stdout without end, and note in the folder how much went in."""
    _lock(0)
    note = os.open(f"{FOLDER}/written", os.O_WRONLY | os.O_CREAT, 0o600)
    signal.alarm(LIFETIME)
    written = 0
    while True:
        written += os.write(1, bytes(4096))
        os.pwrite(note, b"%20d" % written, 0)


def _lock(number: int) -> None:
    lock = os.open(f"{FOLDER}/lock-{number}", os.O_WRONLY | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)


def orphan_a_zombie() -> str:
    """Whether somebody collects a process whose parent has ended."""
    ready, told = os.pipe()
    if os.fork() == 0:
        if pid := os.fork():
            os.write(told, b"%d" % pid)
        os._exit(0)
    os.wait()
    orphan = int(os.read(ready, 32))
    gone = _until(lambda: not Path(f"/proc/{orphan}").exists(), within=10)
    return "gone" if gone else Path(f"/proc/{orphan}/stat").read_text()


# --- files --------------------------------------------------------------------------------------------------


def alter(directory: str) -> list[str]:
    """What of a directory with a file `file` could be changed."""
    top = Path(directory)
    file = top / "file"
    if not file.exists():
        return ["the file is missing"]
    attempts: dict[str, Callable[[], object]] = {
        "a file was written to": lambda: file.open("r+").close(),
        "a file was created": lambda: (top / "new").write_text("new"),
        "a directory was created": lambda: (top / "folder").mkdir(),
        "a link was created": lambda: (top / "link").symlink_to("file"),
        "a mode was changed": lambda: file.chmod(0o666),
        "the directory's mode was changed": lambda: top.chmod(0o700),
        "a time was changed": lambda: os.utime(file),
        "a file was cut": lambda: os.truncate(file, 0),
        "a file was moved": lambda: file.rename(top / "moved"),
        "a file was removed": lambda: (top / "moved" if (top / "moved").exists() else file).unlink(),
    }
    return _succeeding(attempts)


def keep(text: str) -> list[Any]:
    """Write a file into the folder, closed to others; whom it belongs to, as seen inside."""
    path = Path(FOLDER) / "kept"
    path.touch(0o600)
    path.write_text(text)
    return [path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)]


def read(path: str) -> str:
    """The text of a file."""
    return Path(path).read_text()


def exists(paths: list[str]) -> list[str]:
    """Which of these paths are there."""
    return [path for path in paths if os.path.lexists(path)]


def write_everywhere(token: str) -> dict[str, Any]:
    """Where something can be written, what HOME and /tmp still hold of a run with the same token, and can do."""
    name = f".pynchy-conformance-{os.getpid()}"
    home = os.environ.get("HOME", "")
    places = ["/", "/bin", "/etc", "/home", "/lib", "/opt", PROBE_PATH, "/root", "/run", "/srv", "/sys", "/usr"]
    places += ["/usr/bin", "/usr/local/bin", "/var", "/workspace", str(Path(sys.executable).parent), sys.prefix]

    def write(place: str) -> None:
        Path(place, name).touch()
        Path(place, name).unlink()

    written = _succeeding({place: lambda place=place: write(place) for place in places if place != home})
    settings = [f"/proc/sys/{one}" for one in ("kernel/hostname", "kernel/core_pattern", "vm/overcommit_memory")]
    written += _succeeding({one: lambda one=one: os.close(os.open(one, os.O_WRONLY)) for one in settings})
    answer: dict[str, Any] = {"home": home, "written": written, "left": {}, "refused": {}}
    for place in (home, "/tmp"):  # noqa: S108 - inside the container
        try:
            path = Path(place, f"pynchy-conformance-{token}")
            answer["left"][place] = path.exists()
            path.unlink() if path.exists() else path.touch()
        except OSError as error:
            answer["refused"][place] = str(error)
    try:
        program = Path(home, "pynchy-conformance-program")
        program.write_text(f"#!{sys.executable}\nraise SystemExit(7)\n")
        program.chmod(0o700)
        answer["program"] = subprocess.run([str(program)]).returncode
    except OSError as error:
        answer["program"] = str(error)
    return answer


def _succeeding(attempts: Mapping[str, Callable[[], object]]) -> list[str]:
    """Those that raise no OSError."""
    done = []
    for name, attempt in attempts.items():
        with contextlib.suppress(OSError):
            attempt()
            done.append(name)
    return done


# --- rights -------------------------------------------------------------------------------------------------


def environment(needles: list[str]) -> dict[str, Any]:
    """The program's environment, and which needles are in what can be read of any process."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            data = entry.read_bytes()
            found.update(needle for needle in needles if needle.encode() in data)
    return {"own": dict(os.environ), "found": sorted(found)}


def rights() -> dict[str, str]:
    """The kernel's words on the capabilities of this process, and on whether it can gain any."""
    status = Path("/proc/self/status").read_text()
    return dict(re.findall(r"^(Cap\w+|NoNewPrivs):\s*(\w+)$", status, re.MULTILINE))


def copy_id() -> str:
    """Copy the program `id` into the folder, run what has become of it when stdin ends, and say whom it runs as."""
    program = shutil.which("id")
    if program is None:
        return "no id"
    shutil.copyfile(program, f"{FOLDER}/id")
    say("up")
    _swallow()
    done = subprocess.run([f"{FOLDER}/id", "-u"], capture_output=True, text=True)
    return done.stdout.strip() or done.stderr


def wire_holders() -> list[str]:
    """Which other processes show this program their hold on its stdin or stdout."""
    own = {str(Path(f"/proc/self/fd/{number}").readlink()) for number in (0, 1)}
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            held = [one.name for one in (entry / "fd").iterdir() if str(one.readlink()) in own]
            if held and int(entry.name) != os.getpid():
                found.append(f"process {entry.name}, {(entry / 'comm').read_text().strip()}")
    return found


def special_files() -> list[str]:
    """What device files there are, or can be made, and what can be mounted."""
    places = (os.environ.get("HOME", ""), "/tmp", FOLDER)  # noqa: S108 - inside the container
    found = [str(path) for path in Path("/dev").glob("*") if path.is_block_device()]

    def make(place: str, kind: int) -> None:
        path = f"{place}/.pynchy-device"
        os.mknod(path, kind | 0o600, os.makedev(1, 3))
        Path(path).unlink()

    kinds = {"a character device": stat.S_IFCHR, "a block device": stat.S_IFBLK}
    return found + _succeeding(
        {
            f"{name} made in {place}": lambda place=place, kind=kind: make(place, kind)
            for name, kind in kinds.items()
            for place in places
        }
    )


def mount() -> list[str]:
    """What of mounting works: a memory disk, a second view of the folder, and writing to the probe."""
    library = ctypes.CDLL(None, use_errno=True)
    target = f"{os.environ.get('HOME', '')}/.pynchy-mount"
    Path(target).mkdir(exist_ok=True)
    done = []
    for name, source, kind, flags in (("a memory disk", b"none", b"tmpfs", 0), ("a bind", FOLDER.encode(), b"", 4096)):
        if library.mount(source, target.encode(), kind, flags, None) == 0:
            library.umount2(target.encode(), 2)
            done.append(f"{name} was mounted")
    if library.mount(b"none", PROBE_PATH.encode(), b"", _MS_REMOUNT | 4096, None) == 0:
        done.append(f"{PROBE_PATH} was made writable")
    return done


def others(marker: str, pid: int) -> list[str]:
    """Whether a process of the host, with `marker` in its command line, can be seen or signalled."""
    seen = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if marker.encode() in entry.read_bytes():
                seen.append(f"the host's process {entry.parent.name} can be seen")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return seen
    except PermissionError:
        pass
    # Another process may have the same number in here.
    return seen if Path(f"/proc/{pid}").exists() and not seen else [*seen, f"the host's process {pid} can be signalled"]


# --- the network --------------------------------------------------------------------------------------------


def interfaces() -> list[str]:
    """The names of the network interfaces."""
    return sorted(name for _, name in socket.if_nameindex())


def knock(tcp: list[list[Any]], udp: list[list[Any]], abstract: str, datagram: str) -> list[str]:
    """Which of these TCP addresses and this abstract UNIX socket can be reached; names are looked up, too."""
    reached = []
    for host, port in tcp:
        with contextlib.suppress(OSError):
            socket.create_connection((host, port), timeout=3).close()
            reached.append(f"{host}:{port}")
    for host, port in udp:
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.sendto(datagram.encode(), (host, port))
    if abstract:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as one:
            one.connect(f"\0{abstract}")
            reached.append("an abstract UNIX socket of the host")
    with contextlib.suppress(OSError):
        reached.append(f"the name server, which says {socket.getaddrinfo('example.com', 80)[0][4][0]}")
    return reached


def own_loopback() -> str:
    """Whether a server on the container's own loopback can be reached, as the SDK reaches the runner."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
    return "connected"


# --- limits -------------------------------------------------------------------------------------------------


def allocate(size: int) -> str:
    """Fill memory, and say so once there is that much of it."""
    say("up")
    _hold(size)
    return "allocated"


def allocate_on_disk(size: int) -> str:
    """Fill a disk that is memory, and say so once there is that much on it."""
    say("up")
    with open("/tmp/pynchy-conformance", "wb") as file:  # noqa: S108, PTH123 - inside the container
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
    return "allocated"


def allocate_together(size: int, children: int) -> int:
    """How many children have so much memory at the same time."""
    have, ended = os.pipe(), os.pipe()
    for _ in range(children):
        if os.fork() == 0:
            os.close(have[0])
            os.close(ended[1])
            held = _hold(size)
            os.write(have[1], b"x" * (len(held) > 0))
            os.close(have[1])
            os.read(ended[0], 1)
            os._exit(0)
    os.close(have[1])
    count = 0
    while os.read(have[0], 1):  # ends when each has closed its end, by success or by its death
        count += 1
    os.close(ended[1])
    return count


def _hold(size: int) -> list[bytes]:
    return [os.urandom(64) * (1 << 14) for _ in range(size >> 20)]


def fork(most: int) -> int:
    """How many children there can be, up to `most`."""
    waiting, end = os.pipe()
    children = []
    with contextlib.suppress(OSError):
        while len(children) < most:
            pid = os.fork()
            if pid == 0:
                os.close(end)
                os.read(waiting, 1)
                os._exit(0)
            children.append(pid)
    os.close(end)
    for pid in children:
        os.waitpid(pid, 0)
    return len(children)


def burn(processes: int) -> float:
    """How many processors' time so many busy processes get."""
    start = time.monotonic()
    children = []
    for _ in range(processes):
        pid = os.fork()
        if pid == 0:
            while time.monotonic() < start + 1:
                pass
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    spent = os.times()
    return (spent.children_user + spent.children_system) / (time.monotonic() - start)


if __name__ == "__main__":
    main()
