"""What plugins need in the container, and the lock that has all of it.

A plugin names such packages in the `container` extra of its own metadata. The agent's own pins never move for
them: a plugin that does not go with these is refused, and so are two that do not go together.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

from packaging.markers import Marker
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from pynchy.home import container_dir
from pynchy.plugin import ContainerRuntime, PluginRecord, PluginRegistry, RuntimeUnavailable, State

#: The extra of a plugin's distribution that lists what its agent-side parts import.
EXTRA = "container"

#: Requirements by the name of the plugin that has them.
Wanted: TypeAlias = Mapping[str, tuple[str, ...]]

# The container's Python is not always this one, so which of the other markers hold is left to whoever installs.
_ANY_EXTRA = re.compile(r"""\bextra == ["']([^"']+)["']|["']([^"']+)["'] == extra\b""")
_TRUE, _FALSE = 'python_full_version >= "0"', 'python_full_version < "0"'
_EITHER = rf"(?:{_FALSE} or )*{_TRUE}(?: or {_FALSE})*"
#: The oldest Python that Pynchy runs on: the lock is for every later one, as the agent's own is.
_OLDEST_PYTHON = "3.11"
#: What uv says where it has found no versions because it could not ask for them.
_UNASKED = ("network was disabled", "could not be queried")


def wanted(registry: PluginRegistry) -> dict[str, tuple[str, ...]]:
    """What each plugin that can be used wants in the container; plugins that want nothing are left out."""
    found: dict[str, tuple[str, ...]] = {}
    for record in registry.records:
        if record.state is State.READY:
            packages = (_for_container(requirement) for requirement in _requirements(record))
            if named := tuple(dict.fromkeys(package for package in packages if package)):
                found[record.name] = named
    return found


def lacking(wanted: Wanted, runtime: ContainerRuntime, image: str) -> dict[str, tuple[str, ...]]:
    """What of it the runtime's image was built without; nothing where the runtime cannot know."""
    ask = getattr(runtime, "image_packages", None)
    present: frozenset[str] | None = ask(image) if wanted and ask else None
    if present is None:
        return {}
    missing = {plugin: tuple(one for one in packages if one not in present) for plugin, packages in wanted.items()}
    return {plugin: packages for plugin, packages in missing.items() if packages}


def lock(wanted: Wanted, directory: Path) -> Path:
    """A lock of the agent's packages and the wanted ones, with hashes; the agent's own where nothing is wanted.

    RuntimeUnavailable names the plugins that cannot have what they want, or says that it could not be fetched.
    """
    if not wanted:
        return _agent_lock()
    pairs = [(plugin, _checked(plugin, text)) for plugin, packages in wanted.items() for text in packages]
    path = directory / "agent.lock"
    if problem := _resolve([text for _, text in pairs], path):
        raise _blame(pairs, problem, directory / "blame.lock")
    return path


def to_text(packages: frozenset[str]) -> str:
    """How a runtime writes down what it has built in."""
    return json.dumps(sorted(packages))


def from_text(text: str) -> frozenset[str] | None:
    """What was written down; None for anything else."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return frozenset(map(str, found)) if isinstance(found, list) else None


@dataclass(frozen=True, slots=True)
class Unmet:
    """What a plugin's distribution requires of the host's environment, and which version is there, if any."""

    plugin: str
    requirement: str
    installed: str


def unmet(registry: PluginRegistry) -> list[Unmet]:
    """Every such requirement that does not hold, extras aside; also of plugins that cannot be used."""
    found: list[Unmet] = []
    seen: set[str] = set()
    for record in registry.records:
        if record.distribution in seen:
            continue
        seen.add(record.distribution)
        for requirement in _requirements(record):
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            installed = _installed(requirement.name)
            if not installed or not requirement.specifier.contains(installed, prereleases=True):
                requirement.marker = None
                found.append(Unmet(record.name or record.entry_point, str(requirement), installed))
    return found


def uv_environment() -> dict[str, str]:
    """The environment for uv, which reads none of pip's settings: the index is the one that the image's pip uses."""
    env = dict(os.environ)
    if (index := env.get("PIP_INDEX_URL")) and not env.get("UV_INDEX_URL"):
        env.setdefault("UV_DEFAULT_INDEX", index)
    if (others := env.get("PIP_EXTRA_INDEX_URL")) and not env.get("UV_EXTRA_INDEX_URL"):
        env.setdefault("UV_INDEX", others)
    if hosts := env.get("PIP_TRUSTED_HOST"):
        env.setdefault("UV_INSECURE_HOST", hosts)
    return env


def _requirements(record: PluginRecord) -> list[Requirement]:
    """The requirements of the record's distribution, as far as they can be read."""
    try:
        texts = list(record.dist.requires or ()) if record.dist else []
    except Exception:  # broken metadata
        return []
    found = []
    for text in texts:
        try:
            found.append(Requirement(text))
        except InvalidRequirement:
            continue
    return found


def _for_container(requirement: Requirement) -> str:
    """The requirement without the extra, other markers kept; empty where it is none of the container's."""

    def holds(match: re.Match[str]) -> str:
        return _TRUE if canonicalize_name(match[1] or match[2]) == EXTRA else _FALSE

    marker = _ANY_EXTRA.sub(holds, str(requirement.marker or ""))
    if _TRUE not in marker:
        return ""
    marker = re.sub(rf"\({_EITHER}\)|^{_EITHER}$", _TRUE, marker)
    marker = marker.replace(f" and {_TRUE}", "").replace(f"{_TRUE} and ", "")
    requirement.marker = None if marker == _TRUE else Marker(marker)
    return str(requirement)


def _installed(name: str) -> str:
    try:
        return version(name) or ""
    except Exception:  # missing, or its metadata is broken
        return ""


def _agent_lock() -> Path:
    return container_dir() / "requirements" / "agent.lock"


def _checked(plugin: str, text: str) -> str:
    """The requirement, where an index can have it."""
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        requirement = None
    if requirement is None or requirement.url:
        raise RuntimeUnavailable(
            f"the plugin {plugin} wants {text!r} in the container, which no index can have",
            f"name a package and its versions in the `{EXTRA}` extra of its pyproject.toml",
        )
    return str(requirement)


def _resolve(requirements: Sequence[str], path: Path) -> str:
    """Write the lock; returns why it cannot be, in uv's words, where the requirements themselves are the reason."""
    import uv

    own = _agent_lock()
    shutil.copyfile(own, path)  # uv keeps the versions and hashes that it finds in its output
    asked = path.with_suffix(".in")
    asked.write_text("".join(f"{requirement}\n" for requirement in requirements))
    command = [uv.find_uv_bin(), "pip", "compile", "--quiet", "--python", sys.executable]
    command += ["--universal", "--python-version", _OLDEST_PYTHON, "--generate-hashes", "--only-binary", ":all:"]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
    done = subprocess.run(
        [*command, "--output-file", str(path), str(own), str(asked)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=path.parent,  # away from the settings of whatever project the user is in
        env=uv_environment(),
    )
    if done.returncode == 0:
        return ""
    if "No solution found" in done.stderr and not any(words in done.stderr for words in _UNASKED):
        return _reason(done.stderr)
    raise RuntimeUnavailable(
        f"what plugins need in the container could not be fetched: {_reason(done.stderr)}",
        "look at the network, or name an index that can be reached in UV_DEFAULT_INDEX or PIP_INDEX_URL",
    )


def _reason(output: str) -> str:
    """What uv gives as the cause, on one line."""
    words = re.split(r"\n\s*hint:", output, maxsplit=1)[0]
    words = re.split(r"cause:|╰─▶", words, maxsplit=1)[-1]
    words = " ".join(words.split()).removesuffix(", we can conclude that your requirements are unsatisfiable.")
    words = words.removeprefix("Because ")
    return words if len(words) <= 300 else f"{words[:300]} ..."


def _blame(pairs: Sequence[tuple[str, str]], problem: str, scratch: Path) -> RuntimeUnavailable:
    """Who cannot have what: a plugin alone, two together, or, rarely, more."""

    def refused(some: Sequence[tuple[str, str]]) -> str:
        return _resolve([text for _, text in some], scratch)

    if words := refused(()):
        return RuntimeUnavailable(f"the index does not have the agent's own packages: {words}", "use another index")
    end = bisect_left(range(len(pairs)), True, key=lambda last: bool(refused(pairs[: last + 1])))
    plugin, text = pairs[end]
    if words := refused([pairs[end]]):
        return RuntimeUnavailable(
            f"the plugin {plugin} wants {text} in the container, {_own_pin(text) or f'which cannot be had: {words}'}",
            f"update or uninstall {plugin}",
        )
    for other, its in pairs[:end]:
        if not refused([(other, its), pairs[end]]):
            continue
        if other == plugin:
            return RuntimeUnavailable(
                f"the plugin {plugin} wants both {its} and {text} in the container, which contradict each other",
                f"update or uninstall {plugin}",
            )
        return RuntimeUnavailable(
            f"the plugins {other} and {plugin} cannot be used together: in the container {other} wants {its}, "
            f"and {plugin} wants {text}",
            "update or uninstall one of the two",
        )
    everyone = ", ".join(dict.fromkeys(name for name, _ in pairs[: end + 1]))
    return RuntimeUnavailable(
        f"the plugins {everyone} cannot be used together, for what they want in the container: {problem}",
        "update or uninstall one of them",
    )


def _own_pin(text: str) -> str:
    """Words for a requirement that contradicts a package of the agent's own; empty for any other."""
    requirement = Requirement(text)
    for name, pinned in re.findall(r"^([\w.-]+)==([^\s;]+)", _agent_lock().read_text(), re.MULTILINE):
        if canonicalize_name(name) == canonicalize_name(requirement.name):
            if not requirement.specifier.contains(pinned, prereleases=True):
                return f"where the agent itself has {name} {pinned}"
            break
    return ""
