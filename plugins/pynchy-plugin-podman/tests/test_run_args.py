"""What a container is started with, for root, for an ordinary user and in a virtual machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from podman_answers import info, mapping

from pynchy.plugin import RunSpec, VolumeMount
from pynchy_plugin_podman.runtime import PodmanRuntime

pytestmark = pytest.mark.usefixtures("clean_environment")

#: What all agents are allowed, where nothing else is said.
LIMITS = {"--memory": ["2147483648"], "--memory-swap": ["2147483648"], "--cpus": ["2.0"], "--pids-limit": ["512"]}


def options(args: list[str]) -> dict[str, list[str]]:
    """The options of `podman run` with their values, `yes` for those without."""
    found: dict[str, list[str]] = {}
    words = iter(args[1:-1])
    for word in words:
        assert word.startswith("--"), f"{word} is no option"
        if "=" in word:
            word, _, value = word.partition("=")
        elif word in ("--rm", "--interactive", "--read-only", "--no-hosts"):
            value = "yes"
        else:
            value = next(words)
        found.setdefault(word, []).append(value)
    return found


_SPEC = RunSpec((VolumeMount("/host/a", "/inside/a"),), "pynchy-x-main-1", "pynchy-agent:latest", user=(1000, 1001))


def test_as_root_it_differs_from_docker_in_little(stand_in: Callable[[str], None]) -> None:
    stand_in(info())
    args = PodmanRuntime().run_args(_SPEC)
    assert (args[0], args[-1]) == ("run", "pynchy-agent:latest")
    given = options(args)
    assert given["--user"] == ["1000:1001"]
    assert not {"--userns", "--privileged", "--cap-add"} & set(given)
    assert given["--security-opt"] == ["no-new-privileges"]
    assert (given["--network"], given["--cap-drop"], given["--pull"]) == (["none"], ["ALL"], ["never"])
    assert {name: given[name] for name in LIMITS} == LIMITS
    assert (given["--stop-timeout"], given["--http-proxy"]) == (["0"], ["false"])


def test_an_ordinary_users_agent_is_that_user(stand_in: Callable[[str], None]) -> None:
    stand_in(info(rootless=True, idMappings=mapping(1, 65536)))
    given = options(PodmanRuntime().run_args(_SPEC))
    assert (given["--userns"], given["--user"]) == (["keep-id"], ["1000:1001"])


def test_a_virtual_machines_user_stands_for_ours(stand_in: Callable[[str], None]) -> None:
    stand_in(info(rootless=True, serviceIsRemote=True, selinux=True, idMappings=mapping(1, 1000000)))
    given = options(PodmanRuntime().run_args(_SPEC))
    assert (given["--userns"], given["--user"]) == (["keep-id:uid=1000,gid=1001"], ["1000:1001"])
    # Nothing of this machine's packages is mounted into it: it need not see where they are.
    assert given["--mount"] == ["type=bind,source=/host/a,target=/inside/a"]
    assert "--no-hosts" not in given


def test_labels_of_selinux_do_not_keep_the_agent_from_its_folder(stand_in: Callable[[str], None]) -> None:
    stand_in(info(selinux=True))
    given = options(PodmanRuntime().run_args(_SPEC))
    assert given["--security-opt"] == ["no-new-privileges", "label=disable"]


@pytest.mark.parametrize(
    ("host", "kept"),
    [
        ({"rootless": True}, {"memory", "cpus", "pids"}),
        ({"rootless": True, "cgroupControllers": ["memory", "pids"]}, {"memory", "pids"}),
        ({"rootless": True, "cgroupControllers": []}, set()),
        ({"rootless": True, "cgroupControllers": None}, set()),
        ({"rootless": True, "cgroupVersion": "v1"}, set()),
        ({"rootless": True, "cgroupManager": "cgroupfs"}, set()),
        ({"cgroupManager": "cgroupfs", "cgroupVersion": "v1"}, {"memory", "cpus", "pids"}),
        ({"cgroupControllers": ["cpu", "pids"]}, {"cpus", "pids"}),
    ],
)
def test_a_limit_is_claimed_and_asked_for_only_where_the_kernel_will_keep_it(
    host: dict[str, Any], kept: set[str], stand_in: Callable[[str], None]
) -> None:
    stand_in(info(**host))
    runtime = PodmanRuntime()
    assert runtime.supports == kept | {"bridge"}
    given = options(runtime.run_args(_SPEC))
    asked = {"--memory": "memory", "--memory-swap": "memory", "--cpus": "cpus", "--pids-limit": "pids"}
    assert {name for name in asked if name in given} == {name for name, limit in asked.items() if limit in kept}


def test_where_podman_does_not_answer_its_limits_are_not_the_reason(stand_in: Callable[[str], None]) -> None:
    stand_in("exit 1")
    runtime = PodmanRuntime()
    assert runtime.supports == {"memory", "cpus", "pids", "bridge"}
    stand_in(info(rootless=True, cgroupVersion="v1"))
    assert runtime.supports == {"bridge"}, "what it said once it answered counts"
