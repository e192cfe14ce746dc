"""What every runtime must do: on the stand-in, whether the arguments ask for it, and on a Mac, whether it is so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from pynchy.plugin import ContainerRuntime
from pynchy.testing import RuntimeConformance
from pynchy_plugin_apple_container.runtime import AppleContainerRuntime

NAMES = ["with a space", 'quo"te', "apo'strophe", "ünïcödé 🎉", "co:lon", "$HOME", "--flag", "a\\b"]


def missing(reason: str) -> None:
    """Skip, or fail where PYNCHY_REQUIRE lists bubblewrap."""
    if "bubblewrap" in os.environ.get("PYNCHY_REQUIRE", "").split(","):
        pytest.fail(f"bubblewrap is required and missing: {reason}")
    pytest.skip(f"bubblewrap: {reason}")


class AppleContainer(RuntimeConformance):
    """What the real program and the stand-in share."""

    cannot: ClassVar[Mapping[str, str]] = {
        "test_there_are_no_capabilities_and_no_way_to_gain_any": "Apple's container has no option for no_new_privs",
        "test_a_setuid_program_of_roots_gains_nothing": "Apple's container has no option for no_new_privs",
        "test_labels_are_accepted": "Apple's container takes no equals sign in the value of a label",
        "test_there_is_no_more_processor_time_than_allowed": "Apple's container gives whole processors only",
    }

    def create_runtime(self) -> ContainerRuntime:
        """Apple's container, whichever that is."""
        return AppleContainerRuntime()

    # Without a comma and an equals sign, which it refuses: test_run_args.py has these.
    @pytest.mark.parametrize("name", NAMES)
    def test_a_mount_has_any_name(self, bench: Any, name: str) -> None:
        """All but those."""
        super().test_a_mount_has_any_name(bench, name)


@pytest.mark.bubblewrap
class TestOnTheStandIn(AppleContainer):
    """Its sandbox does what the arguments ask for, and nothing else that would keep an agent in."""

    cannot: ClassVar[Mapping[str, str]] = {
        **AppleContainer.cannot,
        "test_a_bridge_is_a_network": "the stand-in has no network but the machine's own",
        "test_a_program_that_takes_too_much_memory_is_ended": "the stand-in is no machine with a memory of its own",
        "test_the_limit_on_memory_is_one_for_all_processes": "the stand-in is no machine with a memory of its own",
        "test_there_are_no_more_processes_than_allowed": "a user's processes would be counted on this whole machine",
    }

    @pytest.fixture(autouse=True)
    def apple(self, stand_in: Any) -> None:
        """The stand-in, where a sandbox starts."""
        if not stand_in.bwrap:
            missing("bubblewrap is not installed")
        command = [stand_in.bwrap, "--ro-bind", "/", "/", "--unshare-net", "true"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            missing(f"no sandbox starts here: {done.stderr.strip()[-300:]}")


if sys.platform == "darwin":  # elsewhere they would be some sixty skips for one and the same reason

    class TestOnAMac(AppleContainer):
        """The real program; `PYNCHY_REQUIRE=apple` makes it a failure that it cannot be used."""
