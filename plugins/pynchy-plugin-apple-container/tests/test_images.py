"""What is made of the program's answers on an agent image."""

from __future__ import annotations

from typing import Any

import pytest
from apple_refusals import IMAGE, refused

from pynchy_plugin_apple_container.runtime import AppleContainerRuntime


def test_an_agent_image_of_our_lock_is_fine(runtime: AppleContainerRuntime, stand_in: Any) -> None:
    runtime.check_image(IMAGE)
    assert runtime.has_image(IMAGE)
    assert runtime.image_packages(IMAGE) == frozenset()
    stand_in.set(images={IMAGE: stand_in.agent_image("linux/amd64", "linux/arm64", packages='["pandas>=2"]')})
    runtime.check_image(IMAGE)
    assert runtime.image_packages(IMAGE) == {"pandas>=2"}


@pytest.mark.parametrize(
    "words", ['notFound: "image with reference {}"', "image inspect failed name={} error=image not found"]
)
def test_a_missing_image_is_named_with_the_command_that_makes_it(
    words: str, runtime: AppleContainerRuntime, stand_in: Any
) -> None:
    stand_in.set(images={}, not_found=words)
    assert str(refused(runtime.check_image, IMAGE)) == (
        f"the agent image {IMAGE} is missing; build it with `pynchy image build`"
    )
    assert not runtime.has_image(IMAGE)
    assert runtime.image_packages(IMAGE) is None


@pytest.mark.parametrize("stdout", ["", "[]", "[]\n"])
def test_an_answer_without_images_means_that_it_is_missing(
    stdout: str, runtime: AppleContainerRuntime, stand_in: Any
) -> None:
    stand_in.set(answers={"image inspect": {"stdout": stdout}})
    assert "is missing" in str(refused(runtime.check_image, IMAGE))


def test_an_image_of_another_lock_is_refused(runtime: AppleContainerRuntime, stand_in: Any) -> None:
    stand_in.set(images={IMAGE: stand_in.agent_image(lock="0" * 64)})
    assert "was built for another version of Pynchy" in str(refused(runtime.check_image, IMAGE))


def test_an_image_for_other_processors_is_refused_without_trying_it(
    runtime: AppleContainerRuntime, stand_in: Any
) -> None:
    stand_in.set(images={IMAGE: stand_in.agent_image("linux/amd64")})
    assert refused(runtime.check_image, IMAGE).args[0] == (
        f"the agent image {IMAGE} is for amd64 processors, and this machine's are arm64"
    )
    assert not [call for call in stand_in.calls() if call[0] == "run" and call != ["run", "--help"]]


def test_an_image_of_somebody_elses_has_no_packages_that_are_known(
    runtime: AppleContainerRuntime, stand_in: Any
) -> None:
    stand_in.set(images={IMAGE: stand_in.image(None)})
    runtime.check_image(IMAGE)
    assert runtime.image_packages(IMAGE) in (None, frozenset())


@pytest.mark.parametrize(
    "stdout",
    [
        "no JSON",
        "{}" * 2,
        '[{"Architecture": "arm64"}]',
        '[{"variants": []}]',
        '[{"variants": [{"platform": {"os": "unknown", "architecture": "unknown"}, "config": {}}]}]',
        '[{"variants": [{"platform": null}]}]',
        '{"variants": []}',
    ],
)
def test_an_answer_on_an_image_that_is_not_understood_is_said_to_be(
    stdout: str, runtime: AppleContainerRuntime, stand_in: Any
) -> None:
    stand_in.set(answers={"image inspect": {"stdout": stdout}})
    assert "its answer is none that is known here" in str(refused(runtime.check_image, IMAGE))
    assert not runtime.has_image(IMAGE)


def test_a_failure_to_look_at_images_is_no_missing_image(runtime: AppleContainerRuntime, stand_in: Any) -> None:
    stand_in.set(answers={"image inspect": {"code": 1, "stderr": "Error: the store is locked\n"}})
    assert "`container image` failed: Error: the store is locked" in str(refused(runtime.check_image, IMAGE))
    stand_in.set(answers={}, hangs=["image inspect"])
    runtime.answer_within = 0.5
    assert not runtime.has_image(IMAGE)
