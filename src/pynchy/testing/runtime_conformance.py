"""What every container runtime must do, as tests that a runtime's package inherits."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pynchy.plugin import ContainerRuntime, RuntimeUnavailable
from pynchy.runtime import agent_image
from pynchy.testing import _runtime_probe as probe
from pynchy.testing._outcome import fail
from pynchy.testing._runtime_bench import STOP_WITHIN, Bench, Container
from pynchy.types import VolumeMount

MEGABYTE = 1 << 20
#: What the kernel itself puts into each network namespace, down and without an address.
_TUNNELS = ("tunl", "gre", "erspan", "ip_vti", "ip6_vti", "sit", "ip6tnl", "ip6gre")
#: Whom agents run as under a root host.
_AGENT = 60999
#: The limit that is tried, in bytes.
_MEMORY = 200 * MEGABYTE
#: What a path of the host may hold, and a command line may trip over.
_ODD_NAMES = (
    "with a space",
    "com,ma",
    'quo"te',
    "apo'strophe",
    "a=b",
    "ünïcödé 🎉",
    "co:lon",
    "$HOME",
    "--flag",
    "\\n",
)


def folder_mount(path: Path, readonly: bool = False) -> VolumeMount:
    """A folder, where the probe looks for it."""
    return VolumeMount(str(path), probe.FOLDER, readonly)


class RuntimeConformance:
    """Inherit it as a class whose name begins with `Test`, and define `create_runtime`.

    A test is skipped where the runtime cannot be used now, or lacks the optional member that it is about; the
    first is a failure where `PYNCHY_REQUIRE` lists the runtime's name.
    """

    #: What a stand-in for the real runtime cannot do: the names of tests, each with the reason for its skip.
    cannot: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if unknown := sorted(name for name in cls.cannot if not callable(getattr(cls, name, None))):
            raise TypeError(f"{cls.__name__}.cannot names what is no test: {', '.join(unknown)}")

    # --- what a subclass says ---------------------------------------------------------------------------

    def create_runtime(self) -> ContainerRuntime:
        """A new object of the runtime. Called once a test, and more often for what a restart of the host does."""
        raise NotImplementedError("define create_runtime in the class that inherits RuntimeConformance")

    def image(self) -> str:
        """The image of the containers: one with a `python3` that starts what lies in /opt/pynchy."""
        return agent_image()

    def user(self) -> tuple[int, int]:
        """Whom the program runs as, on the host: who runs the tests, or where that is root, nobody's uid."""
        return (_AGENT, _AGENT) if os.geteuid() == 0 else (os.geteuid(), os.getegid())

    @pytest.fixture
    def bench(self, request: pytest.FixtureRequest) -> Iterator[Bench]:
        """Where one test starts its containers; whatever it leaves is ended."""
        if reason := self.cannot.get(request.function.__name__):
            pytest.skip(reason)
        runtime = self.create_runtime()
        try:
            runtime.ensure_running()
            if check_image := getattr(runtime, "check_image", None):
                check_image(self.image())
        except RuntimeUnavailable as error:
            if runtime.name in os.environ.get("PYNCHY_REQUIRE", "").split(","):
                fail(f"{runtime.name} is required and missing: {error}")
            pytest.skip(f"{runtime.name}: {error}")
        bench = Bench(runtime, self.image(), self.user())
        try:
            yield bench
        finally:
            bench.close()

    # --- it starts, and it ends -------------------------------------------------------------------------

    @pytest.mark.parametrize("code", [0, 3])
    def test_the_programs_exit_code_is_the_clients(self, bench: Bench, code: int) -> None:
        seen = bench.start(probe.end_with, arguments={"code": code}).code()
        assert seen == code, f"the program ended with {code}, and the client with {seen}"

    def test_a_program_that_is_killed_by_a_signal_shows_in_the_exit_code(self, bench: Bench) -> None:
        container = bench.start(probe.kill_itself)
        code = container.code()
        assert code in (128 + 9, -9), f"the program was killed by SIGKILL, and the client ended with {code}, not 137"

    def test_the_end_of_stdin_reaches_the_program(self, bench: Bench) -> None:
        container = bench.start(probe.wait).up()
        assert container.process.poll() is None, "the container ended before the end of its stdin"
        assert container.answer() == "ended"
        bench.expect_none_soon()

    def test_stderr_is_apart_from_stdout(self, bench: Bench) -> None:
        container = bench.start(probe.speak_on_stderr)
        container.close_stdin()
        stdout = container.read(MEGABYTE)
        container.code()
        assert stdout == b'"for stdout"\n', f"stdout, which carries frames alone, has {stdout!r}"
        assert "for stderr\n" in container.stderr, f"the line is not on stderr, which has {container.stderr!r}"

    # --- its stdin and stdout ---------------------------------------------------------------------------

    def test_ten_megabytes_go_each_way_at_once(self, bench: Bench) -> None:
        size, given = 10 * MEGABYTE, probe.pattern(1, 10 * MEGABYTE)
        container = bench.start(probe.pour_and_swallow, arguments={"seed": 2, "size": size})
        container.feed(given)
        _expect_same(container.read(size), probe.pattern(2, size), "to the host")
        _expect_swallowed(container.answer(), given)

    def test_a_slow_reader_on_the_host_loses_nothing(self, bench: Bench) -> None:
        size = 10 * MEGABYTE
        container = bench.start(probe.pour, arguments={"seed": 3, "size": size})
        data = bytearray()
        while len(data) < MEGABYTE and (chunk := container.read(8192)):
            data += chunk
            time.sleep(0.005)
        data += container.read(size - len(data))
        _expect_same(bytes(data), probe.pattern(3, size), "to a slow host")
        assert container.answer() == "ended"

    def test_a_slow_reader_inside_holds_up_the_host_and_loses_nothing(self, bench: Bench) -> None:
        given = probe.pattern(4, 64 * MEGABYTE)
        container = bench.start(probe.swallow_when_told).up()
        container.feed(given)
        taken = container.settled(lambda: container.fed, "the host's writing to a program that does not read")
        assert taken < len(given), f"{taken} bytes went to a program that reads nothing: what holds them, and for long?"
        container.go()
        _expect_swallowed(container.answer(), given)

    def test_much_output_comes_while_stdin_is_open(self, bench: Bench) -> None:
        size = 10 * MEGABYTE
        container = bench.start(probe.pour, arguments={"seed": 5, "size": size})
        _expect_same(container.read(size), probe.pattern(5, size), "while stdin was open")
        assert container.process.poll() is None, "the container ended before the end of its stdin"
        assert container.answer() == "ended"

    def test_what_was_written_right_before_the_end_arrives(self, bench: Bench) -> None:
        size = 10 * MEGABYTE
        container = bench.start(probe.pour_and_end, arguments={"seed": 6, "size": size})
        _expect_same(container.read(size + 1), probe.pattern(6, size), "before the program ended")
        code = container.code()
        assert code == 0, f"the program ended with 0, and the client with {code}"

    # --- stop -------------------------------------------------------------------------------------------

    def test_stop_ends_everything_inside(self, bench: Bench) -> None:
        bench.need("stop")
        container, folder = _clinging(bench)
        bench.stop(container.name)
        bench.expect_gone(container.name, folder)
        container.code(STOP_WITHIN)

    def test_stop_ends_a_container_whose_client_was_killed(self, bench: Bench) -> None:
        bench.need("stop")
        container, folder = _clinging(bench)
        container.kill_client()
        bench.stop(container.name)
        bench.expect_gone(container.name, folder)

    def test_stop_ends_a_container_whose_stdout_is_full(self, bench: Bench) -> None:
        bench.need("stop")
        folder = bench.folder()
        container = bench.start(probe.flood, folder_mount(folder))
        container.settled(lambda: _number(folder / "written"), "a program whose stdout nobody reads")
        container.kill_client()  # as Pynchy does first
        bench.stop(container.name)
        bench.expect_gone(container.name, folder)

    def test_stop_of_a_container_that_has_ended_does_nothing(self, bench: Bench) -> None:
        bench.need("stop")
        container = bench.start(probe.end_with, arguments={"code": 0})
        container.code()
        bench.stop(container.name)
        bench.stop(container.name)
        bench.expect_gone(container.name)

    def test_stop_of_a_name_that_never_was_does_nothing(self, bench: Bench) -> None:
        bench.need("stop")
        other = bench.start(probe.wait).up()
        bench.stop(bench.prefix + "never")
        bench.stop(other.name[:-1])
        assert other.answer() == "ended"

    def test_stop_can_be_called_twice_at_once(self, bench: Bench) -> None:
        bench.need("stop")
        container, folder = _clinging(bench)
        bench.stop(container.name, container.name)
        bench.expect_gone(container.name, folder)

    def test_stop_leaves_other_containers_alone(self, bench: Bench) -> None:
        bench.need("stop")
        one, other, longer = (bench.start(probe.wait, name=name).up() for name in ("a.b", "axb", "a.b.c"))
        one.kill_client()
        bench.stop(one.name)
        left = bench.list()
        assert left == [longer.name, other.name], f"after stop({one.name!r}) the list has {left}"
        assert [other.answer(), longer.answer()] == ["ended", "ended"]

    def test_an_orphan_is_found_by_the_next_host_and_ended(self, bench: Bench) -> None:
        bench.need("stop")
        container, folder = _clinging(bench)
        container.kill_client()
        bench.runtime = self.create_runtime()
        bench.stop(*(bench.list() or [container.name]))
        bench.expect_gone(container.name, folder)

    # --- the list ---------------------------------------------------------------------------------------

    def test_the_list_has_what_runs_by_exactly_its_prefix(self, bench: Bench) -> None:
        for name in ("a.b-one", "a.b-two", "axb-one"):
            bench.start(probe.wait, name=name).up()
        inner = bench.start(probe.wait, name=f"pynchy-of-another-{bench.prefix}inner").up()
        for prefix, expected in (("", ["a.b-one", "a.b-two", "axb-one"]), ("a.b", ["a.b-one", "a.b-two"])):
            names = [bench.prefix + name for name in expected]
            found = bench.list(bench.prefix + prefix)
            assert found == names, f"for the prefix {bench.prefix + prefix!r} the list has {found} instead of {names}"
        everything = bench.runtime.list_running_containers()
        missed = {*bench.list(), inner.name} - set(everything)
        assert not missed, f"without a prefix, which means `pynchy-`, the list lacks {sorted(missed)}"

    def test_what_has_ended_is_in_no_list(self, bench: Bench) -> None:
        for name, code in (("good", 0), ("bad", 3)):
            bench.start(probe.end_with, name=name, arguments={"code": code}).code()
        bench.start(probe.kill_itself, name="killed").code()
        bench.expect_none_soon()

    # --- mounts -----------------------------------------------------------------------------------------

    def test_nothing_of_a_read_only_mount_can_be_changed(self, bench: Bench) -> None:
        folder = bench.folder()
        file = folder / "file"
        file.write_text("as it was")
        file.chmod(0o666)  # only the mount is to forbid it
        if os.geteuid() == 0:
            os.chown(file, *bench.user)
        before = _state(folder)
        altered = bench.ask(probe.alter, folder_mount(folder, readonly=True), arguments={"directory": probe.FOLDER})
        assert altered == [], f"in a read-only mount {', '.join(altered)}"
        assert _state(folder) == before, "a read-only mount has changed on the host"

    def test_what_is_written_to_a_read_write_mount_stays(self, bench: Bench) -> None:
        folder = bench.folder()
        bench.ask(probe.keep, folder_mount(folder), arguments={"text": "kept"})
        try:
            text = (folder / "kept").read_text()
        except OSError as error:
            fail(f"the host cannot read what was written to a read-write mount: {error}")
        assert text == "kept"
        read = bench.ask(probe.read, folder_mount(folder), arguments={"path": f"{probe.FOLDER}/kept"})
        assert read == "kept", "the next container reads something else than the last one wrote"

    def test_what_it_writes_belongs_to_the_specs_user_and_is_closed_to_others(self, bench: Bench) -> None:
        bench.need("run_args")
        folder = bench.folder()
        before = folder.stat()
        bench.ask(probe.keep, folder_mount(folder), arguments={"text": "kept"})
        kept, after = (folder / "kept").stat(), folder.stat()
        owner = (kept.st_uid, kept.st_gid)
        assert kept.st_uid != 0, "what the container writes belongs to root on the host"
        assert owner == bench.user, f"what the container writes belongs to {owner} on the host, not to {bench.user}"
        assert kept.st_mode & 0o077 == 0, f"a file that the program closed to others has mode {kept.st_mode & 0o777:o}"
        assert (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid), "the folder's mode or owner changed"

    @pytest.mark.parametrize("name", _ODD_NAMES)
    def test_a_mount_has_any_name(self, bench: Bench, name: str) -> None:
        folder = bench.folder(name)
        (folder / "file").write_text("found")
        (folder / "file").chmod(0o644)
        mount = VolumeMount(str(folder), f"/workspace/plugins/{name}", readonly=True)
        found = bench.ask(probe.read, mount, arguments={"path": f"{mount.container_path}/file"})
        assert found == "found", f"the mount of {str(folder)!r} holds {found!r}"

    def test_a_mount_with_a_newline_in_its_name_works_or_is_refused(self, bench: Bench) -> None:
        folder = bench.folder("line\nbreak")
        (folder / "file").write_text("found")
        (folder / "file").chmod(0o644)
        mount = folder_mount(folder, readonly=True)
        refusal, found = bench.refusal(probe.read, mount, arguments={"path": f"{mount.container_path}/file"})
        assert refusal or found == "found", f"the mount of {str(folder)!r} holds {found!r}"
        bench.expect_none_soon()

    @pytest.mark.parametrize("readonly", [True, False])
    def test_a_mount_that_has_vanished_is_refused_and_made_by_nobody(self, bench: Bench, readonly: bool) -> None:
        gone = bench.folder() / "vanished"
        refusal, _ = bench.refusal(probe.end_with, folder_mount(gone, readonly), arguments={"code": 0})
        assert refusal, f"a container started though its mount {gone} does not exist"
        assert not gone.exists(), f"{gone} did not exist, and the runtime made it"
        bench.expect_none_soon()

    # --- what it sees of the host -----------------------------------------------------------------------

    def test_nothing_of_the_hosts_environment_gets_in(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        secret, client = f"secret-{bench.prefix}", f"client-{bench.prefix}"
        monkeypatch.setenv("ANTHROPIC_API_KEY", secret)
        monkeypatch.setenv("PYNCHY_CONFORMANCE_SECRET", secret)
        monkeypatch.setenv("CONTAINER_SSHKEY", client)  # the client itself is given this one, and no image has it
        seen = bench.ask(probe.environment, arguments={"needles": [secret]})
        leaked = sorted(name for name, value in seen["own"].items() if secret in value or client in value)
        assert not leaked, f"the program sees the host's variables {', '.join(leaked)}"
        assert not seen["found"], "the host's environment can be read from a process in the container"

    def test_the_specs_environment_arrives_as_it_is(self, bench: Bench) -> None:
        bench.need("run_args")
        given = {"PLAIN": "1", "ODD": " a b,c=d \"e\" 'f' $HOME \\ ünï", "EMPTY": "", "LINES": "one\ntwo"}
        own = bench.ask(probe.environment, arguments={"needles": []}, env=given)["own"]
        seen = {name: own.get(name) for name in given}
        assert seen == given, f"the environment {given} arrived as {seen}"

    def test_home_and_tmp_can_be_written_and_are_empty_at_the_next_start(self, bench: Bench) -> None:
        for seen in [bench.ask(probe.write_everywhere, arguments={"token": bench.prefix}) for _ in range(2)]:
            assert seen["home"], "HOME is not set"
            assert not seen["refused"], f"nothing can be written to {seen['refused']}"
            assert seen["program"] == 7, f"a program that was put into HOME does not run: {seen['program']}"
            left = [place for place, was_left in seen["left"].items() if was_left]
            assert not left, f"what the last container wrote is still in {', '.join(left)}"

    def test_nothing_else_can_be_written(self, bench: Bench) -> None:
        written = bench.ask(probe.write_everywhere, arguments={"token": bench.prefix})["written"]
        assert not written, f"files can be written in {', '.join(written)}"

    def test_no_file_of_the_host_is_there_but_what_was_mounted(self, bench: Bench) -> None:
        folder, home = bench.folder(), Path.home()
        (bench.place / "secret").touch(0o644)
        paths = [bench.place, bench.place / "secret", folder, home / ".ssh", home / ".cache", home / ".bash_history"]
        paths += [Path("/var/run/docker.sock"), Path("/run/docker.sock")]
        seen = bench.ask(probe.exists, folder_mount(folder), arguments={"paths": [str(path) for path in paths]})
        assert not seen, f"the container shows the host's {', '.join(seen)}"

    def test_no_process_of_the_host_can_be_seen_or_signalled(self, bench: Bench) -> None:
        marker = f"bystander-{bench.prefix}"
        code = "import sys; sys.stdin.read()"
        with subprocess.Popen([sys.executable, "-c", code, marker], stdin=subprocess.PIPE) as bystander:
            seen = bench.ask(probe.others, arguments={"marker": marker, "pid": bystander.pid})
            assert bystander.stdin is not None
            bystander.stdin.close()
        assert not seen, "; ".join(seen)

    def test_no_other_process_shows_its_hold_on_the_wire(self, bench: Bench) -> None:
        container = bench.start(probe.wire_holders)
        found = container.line()  # with stdin open
        assert not found, f"whoever runs as the program's user can write into its frames: through {'; '.join(found)}"

    # --- its rights -------------------------------------------------------------------------------------

    def test_there_are_no_capabilities_and_no_way_to_gain_any(self, bench: Bench) -> None:
        rights = bench.ask(probe.rights)
        assert rights.pop("NoNewPrivs", "") == "1", "the program can gain privileges: NoNewPrivs is not set"
        held = {name: value for name, value in rights.items() if int(value, 16)}
        assert not held, f"the program has capabilities: {held}"

    def test_a_setuid_program_of_roots_gains_nothing(self, bench: Bench) -> None:
        if os.geteuid() != 0:
            pytest.skip("only a root host can put a setuid program of root's into a folder")
        bench.need("run_args")
        folder = bench.folder()
        container = bench.start(probe.copy_id, folder_mount(folder))
        if (said := container.line()) != "up":
            pytest.skip(f"the image has {said}")
        os.chown(folder / "id", 0, 0)
        (folder / "id").chmod(0o4755)
        assert container.answer() != "0", "a setuid program runs as root"

    def test_no_device_file_can_be_made_or_is_a_disk(self, bench: Bench) -> None:
        found = bench.ask(probe.special_files, folder_mount(bench.folder()))
        assert not found, f"device files in the container: {', '.join(found)}"

    def test_nothing_can_be_mounted(self, bench: Bench) -> None:
        done = bench.ask(probe.mount, folder_mount(bench.folder()))
        assert not done, "; ".join(done)

    # --- the network ------------------------------------------------------------------------------------

    def test_there_is_no_network_but_its_own_loopback(self, bench: Bench) -> None:
        names = bench.ask(probe.interfaces)
        assert "lo" in names, f"there is no loopback, which the agent's SDK needs; there is {names}"
        extra = [name for name in names if name != "lo" and not name.startswith(_TUNNELS)]
        assert not extra, f"the container has the network interfaces {', '.join(extra)}"

    def test_its_own_loopback_works(self, bench: Bench) -> None:
        assert bench.ask(probe.own_loopback) == "connected"

    def test_the_host_cannot_be_reached(self, bench: Bench) -> None:
        abstract = f"{bench.prefix}abstract" if sys.platform == "linux" else ""
        with ExitStack() as stack:
            servers = [stack.enter_context(one) for one in _listening(socket.SOCK_STREAM)]
            listeners = [stack.enter_context(one) for one in _listening(socket.SOCK_DGRAM)]
            if abstract:
                unix = stack.enter_context(socket.socket(socket.AF_UNIX))
                unix.bind(f"\0{abstract}")
                unix.listen()
            tcp, udp = [one.getsockname() for one in servers], [one.getsockname() for one in listeners]
            arguments = {"tcp": tcp, "udp": udp, "abstract": abstract, "datagram": bench.prefix}
            reached = bench.ask(probe.knock, arguments=arguments)
            reached += [f"{one.getsockname()[0]} by UDP" for one in listeners if _heard(one, bench.prefix)]
        assert not reached, f"from the container one reaches {', '.join(reached)}"

    def test_a_bridge_is_a_network(self, bench: Bench) -> None:
        bench.need_support("bridge")
        names = bench.ask(probe.interfaces, network="bridge")
        assert set(names) - {"lo"}, f"with network='bridge' there is only {names}"

    # --- limits -----------------------------------------------------------------------------------------

    @pytest.mark.parametrize("task", [probe.allocate, probe.allocate_on_disk], ids=["memory", "disk"])
    def test_a_program_that_takes_too_much_memory_is_ended(self, bench: Bench, task: Callable[[int], str]) -> None:
        bench.need_support("memory")
        container = bench.start(task, arguments={"size": 3 * _MEMORY}, memory_bytes=_MEMORY).up()
        container.close_stdin()
        said = container.read(MEGABYTE)
        code = container.code()
        assert not said, f"with a limit of {_MEMORY} bytes, three times that could be filled"
        assert code != 0, "a program ran out of memory, and the host saw the exit code 0"
        bench.expect_none_soon()

    def test_the_limit_on_memory_is_one_for_all_processes(self, bench: Bench) -> None:
        bench.need_support("memory")
        arguments = {"size": _MEMORY * 3 // 4, "children": 4}
        container = bench.start(probe.allocate_together, arguments=arguments, memory_bytes=_MEMORY)
        container.close_stdin()
        said = container.read(MEGABYTE)
        # Which process ends is the kernel's choice.
        assert container.code() != 0 or int(said) <= 1, (
            f"with a limit of {_MEMORY} bytes, {said.decode().strip()} processes filled three quarters of it at once"
        )

    def test_there_are_no_more_processes_than_allowed(self, bench: Bench) -> None:
        bench.need_support("pids")
        children = bench.ask(probe.fork, arguments={"most": 200}, pids=50)
        assert children < 50, f"with a limit of 50 processes, at least {children + 1} ran at once"

    def test_there_is_no_more_processor_time_than_allowed(self, bench: Bench) -> None:
        bench.need_support("cpus")
        # Little, for on a busy machine four processes may get no more of it without any limit.
        share = bench.ask(probe.burn, arguments={"processes": 4}, cpus=0.2)
        assert share < 0.4, f"with a limit of 0.2 processors, four busy processes had {share:.2f}"

    # --- many of them -----------------------------------------------------------------------------------

    def test_an_orphaned_process_is_collected(self, bench: Bench) -> None:
        found = bench.ask(probe.orphan_a_zombie)
        assert found == "gone", f"process 1 does not collect a process whose parent has ended: {found!r}"

    def test_ten_at_once_start_answer_and_end(self, bench: Bench) -> None:
        containers = [bench.start(probe.wait, name=f"ten-{number}") for number in range(10)]
        for container in containers:
            container.up()
        listed = bench.list()
        assert listed == [one.name for one in containers], f"ten containers run, and the list has {listed}"
        assert [container.answer() for container in containers] == ["ended"] * 10
        bench.expect_none_soon()

    def test_a_killed_client_changes_nothing_for_another_container(self, bench: Bench) -> None:
        one, other = bench.start(probe.wait, name="one").up(), bench.start(probe.wait, name="other").up()
        one.kill_client()
        if bench.has("stop"):
            bench.stop(one.name)
        listed = bench.list()
        assert other.name in listed, f"the list lacks a container that runs: {listed}"
        assert one.name not in listed or not bench.has("stop"), f"{one.name} was stopped, and is listed"
        assert other.answer() == "ended"

    def test_a_name_of_128_characters_works_or_is_refused(self, bench: Bench) -> None:
        name = bench.prefix + "n" * (128 - len(bench.prefix))
        try:
            container = bench.start(probe.wait, name=name)
        except (OSError, ValueError, RuntimeUnavailable):
            return
        if container.read(1):
            container.read(len(b'up"\n'))
            assert name in bench.list(), "the list lacks a container with a name of 128 characters"
            assert container.answer() == "ended"
        else:
            assert container.code() != 0, "a container with a name of 128 characters ended at once, with exit code 0"
        bench.expect_none_soon()

    def test_labels_are_accepted(self, bench: Bench) -> None:
        bench.need("run_args")
        labels = {"io.pynchy.installation": bench.prefix, "io.pynchy.group": 'a b=c,d "e" ünï', "empty": ""}
        assert bench.ask(probe.end, labels=labels) == "ended"

    def test_of_two_with_one_name_the_second_fails_and_the_first_lives(self, bench: Bench) -> None:
        first = bench.start(probe.wait, name="one").up()
        refusal, _ = bench.refusal(probe.end, name="one")
        assert refusal, f"a second container called {first.name} started while the first one ran"
        assert first.process.poll() is None, "a second container with the same name has ended the first one"
        assert bench.list() == [first.name], f"the first container runs, and the list has {bench.list()}"
        assert first.answer() == "ended"


# --- what the tests share -----------------------------------------------------------------------------------


def _expect_same(got: bytes, sent: bytes, way: str) -> None:
    if got != sent:
        at = next((i for i, (a, b) in enumerate(zip(got, sent, strict=False)) if a != b), min(len(got), len(sent)))
        fail(f"of {len(sent)} bytes {way} {len(got)} arrived, and from byte {at} on they are others")


def _expect_swallowed(answer: object, sent: bytes) -> None:
    expected = [len(sent), probe.digest(sent)]
    assert answer == expected, f"what the program read from stdin is not what went in: {answer} instead of {expected}"


def _clinging(bench: Bench) -> tuple[Container, Path]:
    """A container that does not want to end, and the folder in which its processes hold locks."""
    folder = bench.folder()
    container = bench.start(probe.cling, folder_mount(folder)).up()
    # Where containers run in a virtual machine, their locks do not show out here.
    if sys.platform == "linux":
        assert bench.held(folder) == 4, "the locks of the container's processes do not show in its read-write mount"
    listed = bench.list()
    assert listed == [container.name], f"{container.name} runs, and the list has {listed}"
    return container, folder


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _state(folder: Path) -> list[Any]:
    """What a change would show in."""
    paths = [folder, *sorted(folder.iterdir())]
    stats = [path.lstat() for path in paths]
    state = [(str(path), one.st_mode, one.st_mtime_ns, one.st_size) for path, one in zip(paths, stats, strict=True)]
    return [*state, (folder / "file").read_text()]


def _own_addresses() -> set[str]:
    """This machine's IPv4 addresses, as far as they can be found."""
    found = {"127.0.0.1"}
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("192.0.2.1", 9))  # sends nothing, but chooses an address
        found.add(one.getsockname()[0])
    with contextlib.suppress(OSError):
        routes = Path("/proc/net/fib_trie").read_text()
        found.update(re.findall(r"\|-- (\S+)\n\s+/32 host LOCAL", routes))
    return found


def _listening(kind: socket.SocketKind) -> Iterator[socket.socket]:
    """A socket of this kind on each of this machine's addresses."""
    for address in _own_addresses():
        listener = socket.socket(socket.AF_INET, kind)
        try:
            listener.bind((address, 0))
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRNOTAVAIL:  # it was of a network of containers that has just been removed
                raise
            continue
        if kind == socket.SOCK_STREAM:
            listener.listen()
        listener.setblocking(False)
        yield listener


def _heard(listener: socket.socket, text: str) -> bool:
    try:
        return listener.recv(1024) == text.encode()
    except BlockingIOError:
        return False
