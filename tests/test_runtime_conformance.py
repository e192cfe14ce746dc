"""Docker does what every runtime must, and a runtime that does not fails the very test that asks for it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
from suites import outcomes_in
from support import RUNTIMES

from pynchy.plugin import ContainerRuntime, RunSpec, RuntimeUnavailable
from pynchy.runtime import DockerRuntime
from pynchy.testing import ProcessRuntime, RuntimeConformance
from pynchy_plugin_bubblewrap.runtime import BubblewrapRuntime


@pytest.mark.docker
class TestDocker(RuntimeConformance):
    """The built-in runtime."""

    def create_runtime(self) -> ContainerRuntime:
        """Docker."""
        return DockerRuntime()


# --- runtimes that do wrong -------------------------------------------------------------------------------------------


class Altered(BubblewrapRuntime):
    """Bubblewrap, with something wrong about its spec, its arguments or its client."""

    def __init__(
        self,
        spec: Callable[[RunSpec], RunSpec] = lambda spec: spec,
        args: Callable[[list[str]], list[str]] = lambda args: args,
        client: tuple[str, ...] = (),
        supports: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self._spec, self._args, self._client, self._claims = spec, args, client, supports

    @property
    def supports(self) -> frozenset[str]:
        """What it claims."""
        return frozenset(self._claims)

    @property
    def cli(self) -> str:
        """Its client, if it has one of its own."""
        return self._client[0] if self._client else super().cli

    def run_args(self, spec: RunSpec) -> list[str]:
        """Arguments with the fault in them."""
        args = self._args(super().run_args(self._spec(spec)))
        return [*self._client[1:], super().cli, *args] if self._client else args


class Deaf(Altered):
    """Takes note of a stop only when it is said twice, and a sandbox of it outlives its client."""

    def __init__(self) -> None:
        super().__init__(args=_without("--die-with-parent"))
        self._told: set[str] = set()

    def stop(self, name: str) -> None:
        """Nothing, at first."""
        if name in self._told:
            super().stop(name)
        self._told.add(name)


class Fussy(BubblewrapRuntime):
    """Complains about a stop of what does not run."""

    def stop(self, name: str) -> None:
        """The same, for what is there."""
        if name not in self.list_running_containers(name):
            raise RuntimeUnavailable(f"there is no {name}", "look for it")
        super().stop(name)


class Eager(BubblewrapRuntime):
    """Ends what is called alike, too."""

    def stop(self, name: str) -> None:
        """All that begin so."""
        for one in self.list_running_containers(name):
            super().stop(one)


class Careless(BubblewrapRuntime):
    """Finds a prefix anywhere in a name."""

    def list_running_containers(self, prefix: str = "pynchy-") -> list[str]:
        """Those that have it somewhere."""
        return [name for name in super().list_running_containers("") if prefix in name]


class Sentimental(BubblewrapRuntime):
    """Forgets no container."""

    def __init__(self) -> None:
        super().__init__()
        self._started: list[str] = []

    def run_args(self, spec: RunSpec) -> list[str]:
        """The same, with a note."""
        self._started.append(spec.container_name)
        return super().run_args(spec)

    def list_running_containers(self, prefix: str = "pynchy-") -> list[str]:
        """Those that were."""
        return [name for name in self._started if name.startswith(prefix)]


class Helpful(BubblewrapRuntime):
    """Makes what a mount lacks, as `docker run -v` does."""

    def run_args(self, spec: RunSpec) -> list[str]:
        """The same, when all is there."""
        for mount in spec.mounts:
            Path(mount.host_path).mkdir(parents=True, exist_ok=True)
        return super().run_args(spec)


class Lenient(DockerRuntime):
    """Docker with some of its own defaults."""

    def __init__(self, *left_out: str, added: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._left_out, self._added = left_out, added

    def run_args(self, spec: RunSpec) -> list[str]:
        """The arguments without some options and their values, and with others."""
        args = super().run_args(spec)
        for option in self._left_out:
            at = args.index(option)
            del args[at : at + 2]
        return [args[0], *self._added, *args[1:]]


class Five(ProcessRuntime):
    """A runtime of the plan's five members alone, which has no walls either."""

    stop: Any = None


def _without(*words: str) -> Callable[[list[str]], list[str]]:
    return lambda args: [word for word in args if word not in words]


def _adding(*words: str) -> Callable[[list[str]], list[str]]:
    """Options of bwrap's, after all the mounts."""

    def add(args: list[str]) -> list[str]:
        at = args.index("--chdir") - 2  # before the root is closed
        return [*args[:at], *words, *args[at:]]

    return add


def _powerful(args: list[str]) -> list[str]:
    args = _adding("--cap-add", "CAP_SYS_CHROOT")(args)
    if "/usr/bin/setpriv" in args:  # under a root host
        at = args.index("/usr/bin/setpriv")
        args = [*args[:at], *args[args.index("--", at) + 1 :]]
    return args


def _under_another(args: list[str]) -> list[str]:
    """As the child of a process 1 that knows of no other."""
    code = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
    args = _adding("--as-pid-1")(args)
    at = len(args) - args[::-1].index("/opt/pynchy") - 1
    return [*args[:at], "-c", code, args[at - 1], *args[at:]]


def _shell(command: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", command, "sh")


def _unlimited(spec: RunSpec) -> RunSpec:
    return replace(spec, memory_bytes=None, cpus=None, pids=None, network="none")


#: A client that takes in all of stdin, whether it is read inside or not.
_GREEDY = """
import queue, subprocess, sys, threading
inside = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)
waiting = queue.SimpleQueue()
def pass_on():
    while data := waiting.get():
        inside.stdin.write(data)
    inside.stdin.close()
threading.Thread(target=pass_on, daemon=True).start()
while data := sys.stdin.buffer.read1(65536):
    waiting.put(data)
waiting.put(b"")
sys.exit(inside.wait())
"""

_KEPT = tempfile.gettempdir()
#: What is wrong with a runtime; which machines can run it; how it is made; the tests that must say so.
FAULTS: dict[str, tuple[str, Callable[[], Any], list[str]]] = {
    "mounts are all writable": (
        "bubblewrap",
        lambda: Altered(
            spec=lambda spec: replace(spec, mounts=tuple(replace(one, readonly=False) for one in spec.mounts))
        ),
        ["test_nothing_of_a_read_only_mount_can_be_changed"],
    ),
    "mounts are all read-only": (
        "bubblewrap",
        lambda: Altered(args=lambda args: ["--ro-bind" if word == "--bind" else word for word in args]),
        ["test_what_is_written_to_a_read_write_mount_stays"],
    ),
    "a vanished mount is made": (
        "bubblewrap",
        Helpful,
        ["test_a_mount_that_has_vanished_is_refused_and_made_by_nobody[True]"],
    ),
    "a mount's name ends at a comma": (
        "bubblewrap",
        lambda: Altered(
            spec=lambda spec: replace(
                spec, mounts=tuple(replace(one, host_path=one.host_path.partition(",")[0]) for one in spec.mounts)
            )
        ),
        ["test_a_mount_has_any_name[com,ma]"],
    ),
    "the spec's user is ignored": (
        "docker",
        lambda: Lenient("--user"),
        ["test_what_it_writes_belongs_to_the_specs_user_and_is_closed_to_others"],
    ),
    "the client's environment gets in": (
        "bubblewrap",
        lambda: Altered(args=_without("--clearenv")),
        ["test_nothing_of_the_hosts_environment_gets_in"],
    ),
    "the spec's environment is lost": (
        "bubblewrap",
        lambda: Altered(spec=lambda spec: replace(spec, env={})),
        ["test_the_specs_environment_arrives_as_it_is"],
    ),
    "the network is the host's": (
        "bubblewrap",
        lambda: Altered(args=_without("--unshare-net")),
        ["test_there_is_no_network_but_its_own_loopback", "test_the_host_cannot_be_reached"],
    ),
    "the network is the engine's": (
        "docker",
        lambda: Lenient("--network"),
        ["test_there_is_no_network_but_its_own_loopback", "test_the_host_cannot_be_reached"],
    ),
    "it can gain privileges": (
        "docker",
        lambda: Lenient("--security-opt"),
        ["test_there_are_no_capabilities_and_no_way_to_gain_any", "test_a_setuid_program_of_roots_gains_nothing"],
    ),
    "it has capabilities": (
        "bubblewrap",
        lambda: Altered(args=_powerful),
        ["test_there_are_no_capabilities_and_no_way_to_gain_any"],
    ),
    "all of the host's files are there": (
        "bubblewrap",
        lambda: Altered(args=_adding("--bind", _KEPT, _KEPT)),
        [
            "test_no_file_of_the_host_is_there_but_what_was_mounted",
            "test_home_and_tmp_can_be_written_and_are_empty_at_the_next_start",
        ],
    ),
    "the system can be written to": (
        "bubblewrap",
        lambda: Altered(args=_adding("--perms", "0777", "--tmpfs", "/srv")),
        ["test_nothing_else_can_be_written"],
    ),
    "it is root of everything": (
        "docker",
        lambda: Lenient("--user", "--cap-drop", "--security-opt", added=("--cap-add", "SYS_ADMIN", "--user", "0:0")),
        ["test_no_device_file_can_be_made_or_is_a_disk", "test_nothing_can_be_mounted"],
    ),
    "the engine's init has the wire": (
        "docker",
        lambda: Lenient(added=("--init",)),
        ["test_no_other_process_shows_its_hold_on_the_wire"],
    ),
    "process 1 is no init": (
        "bubblewrap",
        lambda: Altered(args=_under_another),
        [
            "test_an_orphaned_process_is_collected",
            "test_a_program_that_is_killed_by_a_signal_shows_in_the_exit_code",
        ],
    ),
    "stop does nothing": (
        "bubblewrap",
        Deaf,
        [
            "test_stop_ends_everything_inside",
            "test_stop_ends_a_container_whose_client_was_killed",
            "test_stop_ends_a_container_whose_stdout_is_full",
            "test_an_orphan_is_found_by_the_next_host_and_ended",
        ],
    ),
    "stop wants something to stop": (
        "bubblewrap",
        Fussy,
        [
            "test_stop_of_a_container_that_has_ended_does_nothing",
            "test_stop_of_a_name_that_never_was_does_nothing",
        ],
    ),
    "stop ends what is called alike": (
        "bubblewrap",
        Eager,
        ["test_stop_of_a_name_that_never_was_does_nothing", "test_stop_leaves_other_containers_alone"],
    ),
    "the list has others": ("bubblewrap", Careless, ["test_the_list_has_what_runs_by_exactly_its_prefix"]),
    "the list has what was": ("bubblewrap", Sentimental, ["test_what_has_ended_is_in_no_list"]),
    "the name is another": (
        "bubblewrap",
        lambda: Altered(spec=lambda spec: replace(spec, container_name=f"pynchy-{uuid.uuid4().hex}")),
        [
            "test_ten_at_once_start_answer_and_end",
            "test_of_two_with_one_name_the_second_fails_and_the_first_lives",
            "test_a_name_of_128_characters_works_or_is_refused",
            "test_a_killed_client_changes_nothing_for_another_container",
        ],
    ),
    "limits are claimed alone": (
        "bubblewrap",
        lambda: Altered(spec=_unlimited, supports=("memory", "cpus", "pids", "bridge")),
        [
            "test_a_program_that_takes_too_much_memory_is_ended[memory]",
            "test_a_program_that_takes_too_much_memory_is_ended[disk]",
            "test_the_limit_on_memory_is_one_for_all_processes",
            "test_there_are_no_more_processes_than_allowed",
            "test_there_is_no_more_processor_time_than_allowed",
            "test_a_bridge_is_a_network",
        ],
    ),
    "the client has a success of its own": (
        "bubblewrap",
        lambda: Altered(client=_shell('"$@"; exit 0')),
        ["test_the_programs_exit_code_is_the_clients[3]"],
    ),
    "stdout is text": (
        "bubblewrap",
        lambda: Altered(client=_shell('"$@" | tr -d "\\r"')),
        ["test_ten_megabytes_go_each_way_at_once"],
    ),
    "stdout is short": (
        "bubblewrap",
        lambda: Altered(client=_shell('"$@" | head -c 5000000')),
        [
            "test_a_slow_reader_on_the_host_loses_nothing",
            "test_much_output_comes_while_stdin_is_open",
            "test_what_was_written_right_before_the_end_arrives",
        ],
    ),
    "stdin is short": (
        "bubblewrap",
        lambda: Altered(client=_shell('head -c 1000000 | "$@"')),
        ["test_ten_megabytes_go_each_way_at_once"],
    ),
    "stdin is taken in unread": (
        "bubblewrap",
        lambda: Altered(client=(sys.executable, "-c", _GREEDY)),
        ["test_a_slow_reader_inside_holds_up_the_host_and_loses_nothing"],
    ),
    "stderr is stdout": (
        "bubblewrap",
        lambda: Altered(client=_shell('exec "$@" 2>&1')),
        ["test_stderr_is_apart_from_stdout"],
    ),
    "it is no container": (
        "bubblewrap",
        ProcessRuntime,
        [
            "test_nothing_of_a_read_only_mount_can_be_changed",
            "test_no_process_of_the_host_can_be_seen_or_signalled",
            "test_no_file_of_the_host_is_there_but_what_was_mounted",
            "test_there_is_no_network_but_its_own_loopback",
        ],
    ),
}


class Absent(BubblewrapRuntime):
    """One that is not there."""

    name = "absent"

    def ensure_running(self) -> None:
        """Say so."""
        raise RuntimeUnavailable("nothing is there", "install it")


class Bad(RuntimeConformance):
    """What the nested pytest collects: each class one of the faults."""

    make: ClassVar[type[Any]]

    def create_runtime(self) -> ContainerRuntime:
        """The one with the fault."""
        return self.make()


def _class(number: int) -> str:
    return f"Bad{number}"


for _number, (_marker, _make, _tests) in enumerate(FAULTS.values()):
    globals()[_class(_number)] = type(_class(_number), (Bad,), {"make": staticmethod(_make), "__module__": __name__})


class BadAbsent(Bad):
    """A runtime that cannot be used here."""

    make = Absent


class BadNothingClaimed(Bad):
    """A runtime that claims to keep no limit."""

    make = Altered


class BadFive(Bad):
    """A runtime without the optional members, whose author has said what else it cannot do."""

    make = Five
    cannot = {"test_nothing_can_be_mounted": "it is a stand-in"}  # noqa: RUF012 - declared a ClassVar


def outcomes(*tests: str, require: str = "") -> dict[str, tuple[str, str]]:
    """How each of these tests ends in a pytest of its own, which collects `Bad...`, and with which words."""
    return outcomes_in(__file__, tests, "-p", "no:xdist", PYNCHY_REQUIRE=require)


#: What every runtime passes, so that what fails does not fail because nothing starts.
_HARMLESS = "test_its_own_loopback_works"


@cache
def _outcomes_of_all(marker: str) -> dict[str, tuple[str, str]]:
    """How the tests of all faults end that the same machines can run: one pytest is much quicker than one for each."""
    return outcomes(
        *(
            f"{_class(number)}::{test}"
            for number, (needed, _, tests) in enumerate(FAULTS.values())
            for test in (*tests, _HARMLESS)
            if needed == marker
        )
    )


@pytest.mark.timeout(400)  # whichever comes first waits for all of its machines
@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=getattr(pytest.mark, marker)) for name, (marker, _, _) in FAULTS.items()]
)
def test_a_fault_fails_the_tests_that_ask_for_it(fault: str) -> None:
    marker, _, tests = FAULTS[fault]
    RUNTIMES[marker]()
    ended, name = _outcomes_of_all(marker), _class(list(FAULTS).index(fault))
    assert ended[f"{name}::{_HARMLESS}"] == ("passed", "")
    for test in tests:
        outcome, words = ended[f"{name}::{test}"]
        assert outcome == "failure", f"{test} {outcome} {words}"
        # The suite's own words, not those of an error on the way.
        assert words.startswith(("AssertionError: ", "Failed: ")), words


@pytest.mark.parametrize(("require", "outcome"), [("", "skipped"), ("docker,absent", "error")])
def test_a_runtime_that_is_not_there_is_skipped_or_where_it_is_required_fails(require: str, outcome: str) -> None:
    test = f"BadAbsent::{_HARMLESS}"
    ended = outcomes(test, require=require)
    assert ended[test][0] == outcome
    assert "nothing is there; install it" in ended[test][1]


@pytest.mark.bubblewrap
def test_what_a_runtime_lacks_or_cannot_do_is_skipped_with_the_reason() -> None:
    RUNTIMES["bubblewrap"]()  # for its environment, which a plain process uses, too
    reasons = {
        "test_stop_ends_everything_inside": "the runtime process has no `stop`",
        "test_the_specs_environment_arrives_as_it_is": "the runtime process has no `run_args`",
        "test_there_are_no_more_processes_than_allowed": "the runtime process has no `run_args`",
        "test_nothing_can_be_mounted": "it is a stand-in",
    }
    ended = outcomes(*(f"BadFive::{test}" for test in reasons))
    assert ended == {f"BadFive::{test}": ("skipped", reason) for test, reason in reasons.items()}


@pytest.mark.bubblewrap
def test_a_limit_that_is_not_claimed_is_not_asked_for() -> None:
    RUNTIMES["bubblewrap"]()
    test = "BadNothingClaimed::test_a_bridge_is_a_network"
    assert outcomes(test)[test] == ("skipped", "the runtime bubblewrap does not list 'bridge' in `supports`")


def test_a_class_cannot_excuse_itself_from_a_test_that_there_is_not() -> None:
    with pytest.raises(TypeError, match=r"Wrong\.cannot names what is no test: test_nothing"):
        type("Wrong", (RuntimeConformance,), {"cannot": {"test_nothing": "why not"}})


def test_pytest_does_not_collect_the_suite_itself(pytestconfig: pytest.Config) -> None:
    assert not any(RuntimeConformance.__name__.startswith(one) for one in pytestconfig.getini("python_classes"))


def test_what_plugins_import_for_their_tests_does_not_need_pytest_unless_it_is_this() -> None:
    code = "import sys; sys.modules['pytest'] = None; from pynchy.testing import ProcessRuntime, ScriptedModel"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
