"""Where RuntimeConformance has its containers: starts them as Pynchy does, talks to them, and leaves none behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pynchy.container_runner import CLIENT_VARIABLES
from pynchy.home import container_dir
from pynchy.plugin import ContainerRuntime, RuntimeUnavailable
from pynchy.testing import _runtime_probe as probe
from pynchy.testing._outcome import fail
from pynchy.types import RunSpec, VolumeMount

#: How long a runtime may take, in seconds: for a whole run of a short program, and to end a container.
RUN_WITHIN = 60.0
STOP_WITHIN = 15.0
#: How long one that has ended by itself may be listed, in seconds.
_FORGET_WITHIN = 20.0


class Container:
    """A container at the end of pipes: what goes in, what comes out, and how it ends."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], runner: Path) -> None:
        self.name = name
        self.process = process
        self.fed = 0
        self._runner = runner
        self._feeding: threading.Thread | None = None
        self._stderr = bytearray()
        self._reader = threading.Thread(target=self._keep_stderr, daemon=True)
        self._reader.start()

    @property
    def stderr(self) -> str:
        """What came on stderr, once that has ended."""
        self._reader.join(5)
        return self._stderr.decode("utf-8", "replace")

    def read(self, size: int, within: float = RUN_WITHIN) -> bytes:
        """So much of stdout, or what there is before its end."""
        assert self.process.stdout is not None
        stdout, data, deadline = self.process.stdout.fileno(), bytearray(), time.monotonic() + within
        while len(data) < size:
            if not select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                fail(f"{self.name} wrote {len(data)} of {size} bytes within {within:.0f} s; {self._last_words()}")
            if not (chunk := os.read(stdout, min(size - len(data), 1 << 20))):
                break
            data += chunk
        return bytes(data)

    def line(self, within: float = RUN_WITHIN) -> Any:
        """The next line of stdout, which is JSON."""
        data, deadline = bytearray(), time.monotonic() + within
        while not data.endswith(b"\n") and (byte := self.read(1, deadline - time.monotonic())):
            data += byte
        try:
            return json.loads(data)
        except ValueError:
            fail(f"{self.name} wrote {bytes(data)!r} instead of a line of JSON; {self._last_words()}")

    def up(self) -> Container:
        """Return once the program has said that it is up."""
        if (said := self.line()) != "up":
            fail(f"{self.name} said {said!r} instead of 'up'")
        return self

    def go(self) -> None:
        """Tell a program that waits for it."""
        (self._runner / "go").touch()

    def feed(self, data: bytes) -> None:
        """Write to stdin in a thread of its own, then close it; `fed` counts the bytes that went in."""

        def write() -> None:
            assert self.process.stdin is not None
            view = memoryview(data)
            with contextlib.suppress(OSError):
                while self.fed < len(data):
                    self.fed += os.write(self.process.stdin.fileno(), view[self.fed : self.fed + probe.CHUNK])
            self.close_stdin()

        self._feeding = threading.Thread(target=write, daemon=True)
        self._feeding.start()

    def close_stdin(self) -> None:
        """Let the program see the end of its stdin."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def answer(self, within: float = RUN_WITHIN) -> Any:
        """Close stdin and take the program's one answer; it must then end with exit code 0."""
        if self._feeding is None:
            self.close_stdin()
        said = self.line(within)
        if code := self.code(within):
            fail(f"{self.name} ended with exit code {code} after {said!r}; {self._last_words()}")
        return said

    def settled(self, read: Callable[[], int], what: str, within: float = RUN_WITHIN) -> int:
        """The number, once it is above zero and has not changed for a second."""
        deadline = time.monotonic() + within
        number, since = 0, time.monotonic()
        while not number or time.monotonic() < since + 1:
            if time.monotonic() > deadline or (not number and self.process.poll() is not None):
                fail(f"{what} did not come to a halt within {within:.0f} s; {self._last_words()}")
            if (now := read()) != number:
                number, since = now, time.monotonic()
            time.sleep(0.01)
        return number

    def code(self, within: float = RUN_WITHIN) -> int:
        """The exit code of the client, once it has ended."""
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            fail(f"the client of {self.name} did not end within {within:.0f} s")

    def kill_client(self) -> None:
        """Kill the runtime's client, as Pynchy does, and as the system may."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Let go of the pipes."""
        self.kill_client()
        for thread in (self._feeding, self._reader):
            if thread:
                thread.join(5)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _last_words(self) -> str:
        try:
            self.process.wait(5)  # what ends its stdout may end it only a moment later
        except subprocess.TimeoutExpired:
            return "it still runs"
        last = [line.strip() for line in self.stderr.splitlines() if line.strip()][-3:]
        return f"its exit code is {self.process.returncode}, and its last words are {' / '.join(last) or 'none'}"

    def _keep_stderr(self) -> None:
        assert self.process.stderr is not None
        with contextlib.suppress(OSError, ValueError):
            while chunk := os.read(self.process.stderr.fileno(), probe.CHUNK):
                self._stderr += chunk
                del self._stderr[:-100_000]


class Bench:
    """One test's containers, and the files that they see."""

    def __init__(self, runtime: ContainerRuntime, image: str, user: tuple[int, int]) -> None:
        self.runtime = runtime
        self.image = image
        self.user = user
        self.prefix = f"pynchy-conformance-{uuid.uuid4().hex[:12]}-"
        # Not pytest's own, which is closed to the users that a sandbox may have.
        self.place = Path(tempfile.mkdtemp(prefix="pynchy-conformance-"))
        self.place.chmod(0o755)
        self._containers: list[Container] = []
        self._names: set[str] = set()

    def has(self, member: str) -> bool:
        """Whether the runtime has an optional member."""
        return callable(getattr(self.runtime, member, None))

    def need(self, member: str) -> None:
        """Skip where the runtime lacks an optional member."""
        if not self.has(member):
            pytest.skip(f"the runtime {self.runtime.name} has no `{member}`")

    def need_support(self, what: str) -> None:
        """Skip where the runtime does not claim to keep a limit, or to have a network."""
        self.need("run_args")
        if what not in getattr(self.runtime, "supports", ()):
            pytest.skip(f"the runtime {self.runtime.name} does not list {what!r} in `supports`")

    # --- files ------------------------------------------------------------------------------------------

    def folder(self, name: str = "") -> Path:
        """A new folder of the agent's own, closed to others as Pynchy's are."""
        folder = self._directory("folder") / (name or "group")
        folder.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(folder, *self.user)
        if not self.has("run_args"):
            folder.chmod(0o777)  # such a runtime is not told whose it is
        return folder

    def _directory(self, kind: str) -> Path:
        directory = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=self.place))
        directory.chmod(0o755)
        return directory

    def held(self, folder: Path) -> int:
        """How many of the locks in a folder are held, which is how many processes of the container live."""
        count = 0
        for path in folder.glob("lock-*"):
            with path.open("r+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    count += 1
        return count

    # --- containers -------------------------------------------------------------------------------------

    def start(
        self,
        task: Callable[..., object],
        *mounts: VolumeMount,
        name: str = "",
        arguments: Mapping[str, Any] | None = None,
        **spec: Any,
    ) -> Container:
        """Start a container with this task, called the prefix and `name`; OSError, RuntimeUnavailable.

        Without a name it gets a new one: that of a container that has just ended may still be in use.
        """
        name = name or f"{len(self._containers) + 1}-one"
        runner = self._directory("runner")
        shutil.copyfile(probe.__file__, runner / "__main__.py")
        shutil.copyfile(container_dir() / "agent_runner" / "src" / "agent_runner" / "init.py", runner / "init.py")
        (runner / "task.json").write_text(json.dumps({"task": task.__name__, "arguments": arguments or {}}))
        for path in runner.iterdir():
            path.chmod(0o644)
        container_name = name if name.startswith("pynchy-") else self.prefix + name
        self._names.add(container_name)
        given = RunSpec(
            (VolumeMount(str(runner), probe.PROBE_PATH, readonly=True), *mounts),
            container_name,
            self.image,
            user=self.user,
            **spec,
        )
        process = subprocess.Popen(
            [self.runtime.cli, *self._arguments(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={name: os.environ[name] for name in CLIENT_VARIABLES if name in os.environ},
            cwd=self.place,  # Podman leaves a file there when a container runs out of memory
            start_new_session=True,
        )
        container = Container(container_name, process, runner)
        self._containers.append(container)
        return container

    def _arguments(self, spec: RunSpec) -> Sequence[str]:
        run_args = getattr(self.runtime, "run_args", None)
        if run_args:
            return run_args(spec)
        return self.runtime.build_run_args(list(spec.mounts), spec.container_name, spec.image)

    def ask(self, task: Callable[..., object], *mounts: VolumeMount, **options: Any) -> Any:
        """What a task answers that needs no input."""
        return self.start(task, *mounts, **options).answer()

    def refusal(self, task: Callable[..., object], *mounts: VolumeMount, **options: Any) -> tuple[str, Any]:
        """Why a container does not start, or an empty string and what its task answers."""
        try:
            container = self.start(task, *mounts, **options)
        except (OSError, ValueError, RuntimeUnavailable) as error:
            return str(error), None
        container.close_stdin()
        data = container.read(1 << 20)
        code = container.code()
        return (f"exit code {code}: {container.stderr.strip()}", None) if code else ("", json.loads(data or b"null"))

    def list(self, prefix: str = "") -> list[str]:
        """The names of the containers that the runtime lists, by this test's prefix or a longer one, sorted."""
        return sorted(self.runtime.list_running_containers(prefix or self.prefix))

    def stop(self, *names: str) -> None:
        """Have the runtime end containers, all at once; each must return in time, without an error."""
        end: Callable[[str], None] = getattr(self.runtime, "stop")  # noqa: B009 - an optional member
        errors: list[str] = []

        def call(name: str) -> None:
            try:
                end(name)
            except Exception as error:
                errors.append(f"stop({name!r}) raised {type(error).__name__}: {error}")

        threads = [threading.Thread(target=call, args=(name,), daemon=True) for name in names]
        deadline = time.monotonic() + STOP_WITHIN
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                errors.append(f"stop did not return within {STOP_WITHIN:.0f} s")
        if errors:
            fail("; ".join(errors))

    def expect_gone(self, name: str, folder: Path | None = None) -> None:
        """Fail where a container is still listed, or a process of it still holds a lock in the folder."""
        if name in self.list():
            fail(f"list_running_containers still lists {name}")
        if folder and (alive := self.held(folder)):
            fail(f"{alive} processes of {name} still run, though it is said to be gone")

    def expect_none_soon(self) -> None:
        """Fail where containers that have ended by themselves stay listed."""
        deadline = time.monotonic() + _FORGET_WITHIN
        while left := self.list():
            if time.monotonic() > deadline:
                fail(f"list_running_containers still lists {', '.join(left)}, which have ended")
            time.sleep(0.02)

    def close(self) -> None:
        """End whatever is left of the test, as far as the runtime can."""
        for container in self._containers:
            container.kill_client()
        if self.has("stop"):
            ends = [threading.Thread(target=self._end, args=(name,), daemon=True) for name in self._names]
            for thread in ends:
                thread.start()
            for thread in ends:
                thread.join(STOP_WITHIN)
        for container in self._containers:
            container.close()
        shutil.rmtree(self.place, ignore_errors=True)

    def _end(self, name: str) -> None:
        with contextlib.suppress(Exception):
            self.runtime.stop(name)  # pyright: ignore[reportAttributeAccessIssue]
