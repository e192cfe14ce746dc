"""Whether a directory is a skill by the Agent Skills specification, and holds nothing that leads out of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from pynchy.plugin._errors import InvalidPlugin

_MOST_FILES = 1000
_MOST_BYTES = 20 * 1024 * 1024

#: What the specification's own validator accepts in any case: a name, a description of one line, and no more.
_PLAIN = re.compile(r"---\nname: (?P<name>[a-z0-9]+(?:-[a-z0-9]+)*)\ndescription: [A-Za-z][A-Za-z0-9 ,.()/'_-]*\n---\n")
_MOST_DESCRIPTION = 1024  # characters


def check_skill(path: Path) -> str:
    """Return the skill's name; InvalidPlugin where the directory is none that can be used."""
    if not path.is_dir():
        raise InvalidPlugin(f"the skill {path} is not a directory", "return the directories that hold a SKILL.md")
    if not (path / "SKILL.md").is_file():
        raise InvalidPlugin(f"{path} has no SKILL.md", "return the directories that hold a SKILL.md")
    for _ in skill_files(path):
        pass
    if problems := _problems(path):
        raise InvalidPlugin(
            f"the skill {path.name} is none by the Agent Skills specification: {'; '.join(problems)}",
            "correct the front matter of its SKILL.md",
        )
    return path.name


def skill_files(path: Path) -> Iterator[tuple[str, Path]]:
    """Every file of a skill with its path below the skill; InvalidPlugin for what may not be in one."""
    root = path.resolve()
    files = size = 0
    for directory, names, others in os.walk(root):
        for name in (*names, *others):
            found = Path(directory, name)
            if name in names and not found.is_symlink():
                continue
            real = _target(found)
            if found.is_symlink() and (root not in real.parents or not real.is_file()):
                raise InvalidPlugin(
                    f"the skill {path.name} has a link that leaves it, {found.relative_to(root)}",
                    "put a copy of the file in its place",
                )
            if not real.is_file():
                raise InvalidPlugin(
                    f"the skill {path.name} has something that is no file, {found.relative_to(root)}", "remove it"
                )
            files, size = files + 1, size + real.stat().st_size
            if files > _MOST_FILES or size > _MOST_BYTES:
                raise InvalidPlugin(
                    f"the skill {path.name} has more than {_MOST_FILES} files or {_MOST_BYTES // 1024**2} MB",
                    "make it smaller",
                )
            yield str(found.relative_to(root)), real
        names[:] = sorted(name for name in names if name != "__pycache__")


def _target(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a link that leads to itself
        return Path("/")


def _problems(path: Path) -> list[str]:
    try:
        text = (path / "SKILL.md").read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ["SKILL.md is not UTF-8"]
    # The validator's YAML parser takes longer to import than everything else that a list of plugins needs.
    plain = _PLAIN.match(text)
    if plain and plain["name"] == path.name and len(path.name) <= 64 and len(plain[0]) < _MOST_DESCRIPTION:
        return []
    from skills_ref import validate

    return [" ".join(problem.split()) for problem in validate(path)]
