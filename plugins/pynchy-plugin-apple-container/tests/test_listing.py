"""What runs, in every shape that it has been listed in, and in those that nobody knows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from apple_refusals import IMAGE, refused

from pynchy.plugin import RunSpec
from pynchy_plugin_apple_container.runtime import AppleContainerRuntime

SHAPES = pytest.mark.parametrize("shape", ["0.x", "1.0", "1.x"])


@SHAPES
def test_containers_are_found_in_every_shape_that_they_have_been_listed_in(
    shape: str, runtime: AppleContainerRuntime, stand_in: Any
) -> None:
    stand_in.set(shape=shape)
    assert runtime.list_running_containers() == []
    stand_in.put("pynchy-a-one", "pynchy-ab-two", "buildkit", supervisor=1 << 30)
    assert runtime.list_running_containers() == ["pynchy-a-one", "pynchy-ab-two"]
    assert runtime.list_running_containers("pynchy-a-") == ["pynchy-a-one"]
    assert runtime.list_running_containers("other-") == []
    stand_in.put("pynchy-a-one", "pynchy-ab-two", "buildkit")


@SHAPES
def test_a_container_that_never_began_to_run_is_found_and_removed(
    shape: str, runtime: AppleContainerRuntime, stand_in: Any
) -> None:
    stand_in.set(shape=shape)
    stand_in.put("pynchy-stuck", "pynchy-stuck-too")
    assert sorted(runtime.list_running_containers()) == ["pynchy-stuck", "pynchy-stuck-too"]
    runtime.stop("pynchy-stuck")
    assert runtime.list_running_containers() == ["pynchy-stuck-too"]


@pytest.mark.parametrize(
    "unknown",
    [
        {"container": {"id": "pynchy-b"}},
        {"configuration": {"name": "pynchy-b"}},
        {"configuration": {"id": 7}},
        {"configuration": "pynchy-b"},
        "pynchy-b",
        None,
    ],
    ids=json.dumps,
)
def test_what_is_listed_in_an_unknown_shape_is_left_alone_with_a_warning(
    unknown: Any, runtime: AppleContainerRuntime, stand_in: Any, caplog: pytest.LogCaptureFixture
) -> None:
    known = {"configuration": {"id": "pynchy-a"}, "status": {"phase": "of the moon"}}
    stand_in.set(answers={"ls": {"stdout": json.dumps([unknown, known])}})
    assert runtime.list_running_containers() == ["pynchy-a"]
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("pynchy.plugin", "WARNING")
    assert json.dumps(unknown) in record.getMessage()


@pytest.mark.parametrize("output", ["no JSON\nat all", "{}", '"pynchy-a"', "[{", "null"])
def test_an_answer_that_is_no_list_is_a_warning(
    output: str, runtime: AppleContainerRuntime, stand_in: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in.set(answers={"ls": {"stdout": output}})
    assert runtime.list_running_containers() == []
    (record,) = caplog.records
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize("output", ["", "\n", "[]", "[]\n"])
def test_nothing_listed_is_nothing(
    output: str, runtime: AppleContainerRuntime, stand_in: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in.set(answers={"ls": {"stdout": output}})
    assert runtime.list_running_containers() == []
    assert not caplog.records


def test_without_services_nothing_is_said_to_run_or_not(runtime: AppleContainerRuntime, stand_in: Any) -> None:
    stand_in.stop_services()
    words = "Apple's container does not run; start it with `container system start`"
    assert str(refused(runtime.list_running_containers)) == words
    assert str(refused(runtime.stop, "pynchy-a")) == words
    assert str(refused(runtime.run_args, RunSpec((), "pynchy-a", IMAGE))) == words
    stand_in.set(answers={"ls": {"code": 1, "stderr": "Error: a thing\nof two lines\n"}})
    assert "`container ls` failed: Error: a thing of two lines;" in str(refused(runtime.list_running_containers))
