"""A plugin's skills: directories by the Agent Skills specification from which nothing leads out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plugin_modules import Discover, discovery, only, package_in
from skills_ref import validate

from pynchy.plugin import InvalidPlugin, State
from pynchy.plugin import _skills as skills
from pynchy.plugin._skills import check_skill, skill_files

_SKILL = "---\nname: {name}\ndescription: Says what to do.\n---\nDo it.\n"


@pytest.fixture
def discover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Discover:
    """Discover what a text defines."""
    return discovery(tmp_path, monkeypatch)


@pytest.fixture
def skill(tmp_path: Path) -> Path:
    """A skill in the package of the test's plugins."""
    return written(package_in(tmp_path) / "skills" / "sew")


def written(path: Path, text: str = _SKILL) -> Path:
    """A skill with this SKILL.md."""
    path.mkdir(parents=True)
    (path / "SKILL.md").write_text(text.format(name=path.name))
    return path


def offering(value: str) -> str:
    """A plugin with these skills; `S` is where they are."""
    return (
        "S = Path(__file__).parent / 'skills'\n"
        f"class Skills(SkillPlugin):\n    name = 'skills'\n    def skill_paths(self): return {value}"
    )


# --- paths ------------------------------------------------------------------------------------------------------------


def test_a_plugins_skills_are_offered_by_their_names(skill: Path, discover: Discover) -> None:
    written(skill.with_name("knit"))
    (record,) = discover(offering("[S / 'sew', S / 'knit']"), skills="Skills").records
    assert (record.state, record.offers) == (State.READY, {"skills": ("sew", "knit")})


@pytest.mark.parametrize(
    ("value", "reason", "remedy"),
    [
        ("None", "skill_paths() did not return a list of paths", "pathlib.Path"),
        ("(S / 'sew',)", "skill_paths() did not return a list of paths", "pathlib.Path"),
        ("[str(S / 'sew')]", "skill_paths() did not return a list of paths", "pathlib.Path"),
        ("[S / 'gone']", "skills/gone is not a directory", "hold a SKILL.md"),
        ("[S / 'sew' / 'SKILL.md']", "SKILL.md is not a directory", "hold a SKILL.md"),
        ("[S]", "skills has no SKILL.md", "hold a SKILL.md"),
        ("[S / 'sew', S / '..' / 'skills' / 'sew']", "two of its skills are called sew", "a name of its own"),
        ("[S.parent.parent]", "is outside the plugin's own package", "beside the plugin's modules"),
        ("[Path('/')]", "the skill / is outside the plugin's own package", "beside the plugin's modules"),
    ],
)
def test_paths_that_are_no_skills_are_refused(
    value: str, reason: str, remedy: str, skill: Path, discover: Discover
) -> None:
    record = only(discover(offering(value), skills="Skills"))
    assert (record.state, record.phase) == (State.INVALID, "collect")
    assert reason in record.reason
    assert remedy in record.remedy


def test_a_skill_that_is_a_link_out_of_the_package_is_refused(skill: Path, discover: Discover, tmp_path: Path) -> None:
    elsewhere = written(tmp_path / "elsewhere" / "knit")
    skill.with_name("knit").symlink_to(elsewhere)
    record = only(discover(offering("[S / 'knit']"), skills="Skills"))
    assert record.reason.endswith("knit is outside the plugin's own package")


# --- content ----------------------------------------------------------------------------------------------------------


def test_every_file_is_listed_by_its_path_below_the_skill(skill: Path) -> None:
    (skill / "scripts").mkdir()
    (skill / "scripts/sew.py").touch()
    (skill / "also.md").symlink_to("SKILL.md")
    for cache in (skill / "__pycache__", skill / "scripts/__pycache__"):
        cache.mkdir()
        (cache / "sew.pyc").touch()
        os.mkfifo(cache / "fifo")  # not even looked at
    assert dict(skill_files(skill)) == {
        "SKILL.md": skill / "SKILL.md",
        "also.md": skill / "SKILL.md",
        "scripts/sew.py": skill / "scripts/sew.py",
    }
    assert check_skill(skill) == "sew"


def link(target: str) -> Callable[[Path], None]:
    """A link of a skill's, as deep as a link can be hidden."""

    def make(skill: Path) -> None:
        (skill / "a/b").mkdir(parents=True)
        (skill / "a/b/found").symlink_to(target)

    return make


def replaced_by_a_link(skill: Path) -> None:
    """The one file that must be there leads out."""
    (skill / "SKILL.md").rename(skill.with_name("elsewhere.md"))
    (skill / "SKILL.md").symlink_to("../elsewhere.md")


_LEADS_OUT: dict[str, Callable[[Path], None]] = {
    "a link to a file outside": link("/etc/passwd"),
    "a link to a directory outside": link("/etc"),
    "a link to the root by a detour": link("../" * 40),
    "a link to a neighbour that begins alike": link("../../../sew-2/secret"),
    "a link to nothing": link("gone"),
    "a link to itself": link("found"),
    "a link to the directory it is in": link("."),
    "a SKILL.md elsewhere": replaced_by_a_link,
}


@pytest.mark.parametrize("make", _LEADS_OUT.values(), ids=_LEADS_OUT)
def test_a_skill_with_a_link_that_leaves_it_is_refused(make: Callable[[Path], None], skill: Path) -> None:
    skill.with_name("sew-2").mkdir()
    (skill.with_name("sew-2") / "secret").write_text("secret")
    make(skill)
    with pytest.raises(InvalidPlugin, match=r"the skill sew has a link that leaves it, (a/b/found|SKILL.md)") as error:
        check_skill(skill)
    assert error.value.remedy == "put a copy of the file in its place"


def test_a_skill_with_a_fifo_is_refused_and_nobody_waits_for_it(skill: Path) -> None:
    os.mkfifo(skill / "fifo")
    with pytest.raises(InvalidPlugin, match="the skill sew has something that is no file, fifo"):
        check_skill(skill)
    (skill / "fifo").unlink()
    (skill / "SKILL.md").unlink()
    os.mkfifo(skill / "SKILL.md")
    with pytest.raises(InvalidPlugin, match=r"has no SKILL\.md"):
        check_skill(skill)


def test_a_skill_of_too_many_files_is_refused(skill: Path) -> None:
    for number in range(999):
        (skill / f"{number}.md").touch()
    assert check_skill(skill) == "sew"
    (skill / "one-more.md").touch()
    with pytest.raises(InvalidPlugin, match="the skill sew has more than 1000 files or 20 MB"):
        check_skill(skill)


def test_a_skill_of_too_many_bytes_is_refused(skill: Path) -> None:
    with (skill / "large.bin").open("wb") as file:
        file.truncate(20 * 1024**2 - (skill / "SKILL.md").stat().st_size)  # it takes no room on the disk
    assert check_skill(skill) == "sew"
    (skill / "one-more").write_bytes(b"x")
    with pytest.raises(InvalidPlugin, match="the skill sew has more than 1000 files or 20 MB"):
        check_skill(skill)


# --- front matter -----------------------------------------------------------------------------------------------------


_BAD = {
    "none": "Do it.\n",
    "not closed": "---\nname: sew\ndescription: Sews.\n",
    "no YAML": "---\nname: [sew\n---\n",
    "a list": "---\n- sew\n---\n",
    "no name": "---\ndescription: Sews.\n---\n",
    "no description": "---\nname: sew\n---\n",
    "an empty description": "---\nname: sew\ndescription:\n---\n",
    "too long a description": f"---\nname: sew\ndescription: {'x' * 1025}\n---\n",
    "another name": "---\nname: knit\ndescription: Sews.\n---\n",
    "an upper-case name": "---\nname: Sew\ndescription: Sews.\n---\n",
    "an unknown field": "---\nname: sew\ndescription: Sews.\nversion: 1\n---\n",
}


@pytest.mark.parametrize("text", _BAD.values(), ids=_BAD)
def test_front_matter_against_the_specification_is_refused_in_the_words_of_its_validator(
    text: str, skill: Path, discover: Discover
) -> None:
    (skill / "SKILL.md").write_text(text)
    record = only(discover(offering("[S / 'sew']"), skills="Skills"))
    assert record.state is State.INVALID
    words = "; ".join(" ".join(problem.split()) for problem in validate(skill))
    assert words
    assert record.reason == f"the skill sew is none by the Agent Skills specification: {words}"
    assert record.remedy == "correct the front matter of its SKILL.md"


def test_a_skill_that_is_not_text_is_refused(skill: Path) -> None:
    (skill / "SKILL.md").write_bytes(b"---\nname: sew\ndescription: \xff\xfe\n---\n")
    with pytest.raises(InvalidPlugin, match=r"SKILL\.md is not UTF-8"):
        check_skill(skill)


def test_every_field_of_the_specification_may_be_used(skill: Path) -> None:
    (skill / "SKILL.md").write_text(
        "---\nname: sew\ndescription: >\n  Sews: anything,\n  with a needle.\nlicense: MIT\n"
        "compatibility: needs thread\nallowed-tools: Bash Read\nmetadata:\n  version: 1\n---\nDo it.\n"
    )
    assert check_skill(skill) == "sew"


_NAMES = st.from_regex(r"[a-z0-9-]{1,8}|[a-zA-Z0-9-]{60,70}", fullmatch=True)
_DESCRIPTIONS = st.one_of(
    st.text("aZ09 ,.()/'_-:#&*!|>\"%@`{}[]\n\t~", min_size=0, max_size=40),
    st.sampled_from(["null", "yes", "- x", "x" * 1000, "x" * 1024, "x" * 1025, "a --- b", "A: b", "a #b", "a---"]),
    st.text(max_size=20),
)


@given(name=_NAMES, called=st.none() | _NAMES, description=_DESCRIPTIONS, more=st.sampled_from(["", "license: MIT\n"]))
def test_the_short_way_accepts_nothing_that_the_validator_would_not(
    name: str, called: str | None, description: str, more: str
) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / name
        path.mkdir()
        text = f"---\nname: {called or name}\ndescription: {description}\n{more}---\nDo it.\n"
        (path / "SKILL.md").write_bytes(text.encode(errors="replace"))
        try:
            problems = validate(path)
        except Exception as error:  # the validator's own, on what it cannot read
            problems = [str(error)]
        try:
            accepted = check_skill(path) == name
        except Exception:
            accepted = False
        assert accepted == (not problems)


def test_a_plain_skill_is_accepted_without_the_validator(skill: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> list[str]:
        raise AssertionError("its import takes longer than all the rest")

    monkeypatch.setattr("skills_ref.validate", fail)
    assert check_skill(skill) == "sew"
    assert skills._PLAIN.match((skill / "SKILL.md").read_text())
    with pytest.raises(AssertionError, match="longer than all the rest"):
        check_skill(written(skill.with_name("knit"), "---\nname: {name}\ndescription: Knits; well.\n---\n"))
