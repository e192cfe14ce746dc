"""`pynchy doctor`: each thing that must be right, what is wrong with it, and what mends it."""

from __future__ import annotations

import os
import shlex
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynchy.agent_setup import agent_owner
from pynchy.cli.output import configure_logging
from pynchy.cli.plugin_list import running_service_records
from pynchy.config import Settings, SettingsError, load_settings
from pynchy.control import ControlError, check_path
from pynchy.group_rows import groups_in
from pynchy.home import control_socket, database
from pynchy.model_gateway import Upstream
from pynchy.mount_security import MountRefused, extra_mounts
from pynchy.plugin import (
    ContainerRuntime,
    PluginRegistry,
    RuntimeUnavailable,
    State,
    discover_plugins,
    runtime_candidates,
)
from pynchy.plugin_inventory import stored_reports
from pynchy.plugin_packages import lacking, unmet, wanted
from pynchy.reading import reading
from pynchy.runtime import DEFAULT_IMAGE, agent_image, get_runtime


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: its name, how it is, and where it is wrong what to do."""

    subject: str
    words: str
    remedy: str = ""


def doctor() -> int:
    """Print all findings; 1 where anything is wrong."""
    configure_logging("critical")
    try:
        settings = load_settings()
    except SettingsError as error:
        findings = [Finding("settings", str(error), "correct the variable or unset it")]
    else:
        registry = discover_plugins()
        running = running_service_records()
        if running is None:
            reports = stored_reports(database(settings.home))
        else:
            reports = {record["name"]: record["reports"] for record in running if record["name"]}
        findings = [
            _home(settings.home),
            _service(registry, running),
            _credential(settings),
            *_runtime(registry),
            *_plugins(registry),
            *_parts(registry, reports),
            *_requirements(registry),
            *_mounts(settings),
        ]
    for finding in findings:
        print(f"{'WRONG' if finding.remedy else 'ok':5}  {finding.subject}: {finding.words}")
        if finding.remedy:
            print(f"       -> {finding.remedy}")
    return 1 if any(finding.remedy for finding in findings) else 0


def _home(home: Path) -> Finding:
    try:
        check_path(control_socket(home))
    except ControlError as error:
        return Finding("home", str(error), "set PYNCHY_HOME to a shorter path")
    nearest = next(path for path in (home, *home.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return Finding("home", f"{nearest} cannot be written", f"`chown` it to yourself, or set PYNCHY_HOME: {home}")
    return Finding("home", str(home) if home.exists() else f"{home} (made at the first start)")


def _service(registry: PluginRegistry, records: list[dict[str, Any]] | None) -> Finding:
    if records is None:
        return Finding("service", "not running")
    known = {record["entry_point"] for record in records}
    new = sorted(record.entry_point for record in registry.records if record.entry_point not in known)
    if new:
        return Finding("service", f"running; installed since it started: {', '.join(new)}", "restart it to activate")
    return Finding("service", "running")


def _credential(settings: Settings) -> Finding:
    upstream = Upstream.from_settings(settings)
    if upstream is None:
        return Finding(
            "credential",
            "none; only --demo works",
            f"set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN in the environment or in {settings.home / '.env'}",
        )
    kind = "none, the endpoint may need none" if upstream.auth_header is None else "set"
    return Finding("credential", f"{kind}, for {upstream.base_url}")


def _runtime(registry: PluginRegistry) -> list[Finding]:
    try:
        runtime = get_runtime(registry)
    except RuntimeError as error:
        return [Finding("runtime", str(error), "set CONTAINER_RUNTIME to one of these, or unset it")]
    override = os.environ.get("CONTAINER_RUNTIME", "").strip()
    ranking = ", ".join(f"{one.name} ({one.priority})" for one in runtime_candidates(registry))
    why = f"CONTAINER_RUNTIME={override}" if override else f"best of {ranking}"
    skipped = [f"{record.name} {record.note}" for record in registry.records if record.note]
    findings = [Finding("runtime", "; ".join([f"{runtime.name}, {why}", _limits(runtime), *skipped]))]
    try:
        runtime.ensure_running()
    except RuntimeUnavailable as error:
        return [Finding("runtime", "; ".join([f"{runtime.name}: {error.args[0]}", *skipped]), error.remedy)]
    try:
        if check := getattr(runtime, "check_image", None):
            check(agent_image())
    except RuntimeUnavailable as error:
        return [*findings, Finding("image", str(error.args[0]), error.remedy)]
    return [*findings, *_image(runtime, registry)]


def _limits(runtime: ContainerRuntime) -> str:
    supported = getattr(runtime, "supports", frozenset())
    kept = [name for name in ("memory", "cpus", "pids") if name in supported]
    missing = [name for name in ("memory", "cpus", "pids") if name not in supported]
    words = (("limits", kept), ("NO LIMIT on", missing))
    return "; ".join(f"{how} {', '.join(names)}" for how, names in words if names)


def _image(runtime: ContainerRuntime, registry: PluginRegistry) -> list[Finding]:
    remedy = "`pynchy image build`"
    if (image := agent_image()) != DEFAULT_IMAGE:
        remedy += f"; where {image} is one of your own: build {DEFAULT_IMAGE} with `CONTAINER_IMAGE= pynchy image "
        remedy += "build`, and yours on that"
    missing = lacking(wanted(registry), runtime, image)
    return [
        Finding("image", "there"),
        *(Finding(f"image for {plugin}", f"without {', '.join(missing[plugin])}", remedy) for plugin in missing),
    ]


def _plugins(registry: PluginRegistry) -> list[Finding]:
    findings = [
        Finding(
            f"plugin {record.name or record.entry_point}",
            f"{record.state}: {record.reason}",
            "" if record.state is State.DISABLED else record.remedy,  # which is as the user wants it
        )
        for record in registry.records
        if record.state is not State.READY
    ]
    ready = [record.name for record in registry.records if record.state is State.READY]
    return [Finding("plugins", ", ".join(ready) or "none"), *findings]


def _parts(registry: PluginRegistry, reports: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """What was last heard of the parts of plugins that could be loaded."""
    return [
        Finding(f"plugin {record.name}", f"{part}: {trouble}", f"`pynchy plugins check {record.name}` says more")
        for record in registry.records
        for part, trouble in reports.get(record.name, {}).items()
        if record.state is State.READY and part != "load" and trouble
    ]


def _mounts(settings: Settings) -> list[Finding]:
    """The folders of this machine that groups ask for and their agents cannot be given."""
    if not database(settings.home).is_file():
        return []
    try:
        with reading(database(settings.home)) as db:
            groups = list(groups_in(db).values())
    except sqlite3.Error:  # it is of an older version, in which nobody had any
        return []
    found = []
    for group in groups:
        try:
            extra_mounts(settings.home, group, groups, agent_owner(settings))
        except MountRefused as refused:
            what, _, remedy = str(refused).rpartition("; ")
            found.append(Finding(f"mounts of {group.folder}", what, remedy))
    return found


def _requirements(registry: PluginRegistry) -> list[Finding]:
    return [
        Finding(
            f"plugin {one.plugin}",
            f"requires {one.requirement}, and {one.installed or 'none'} is installed",
            f"`uv pip install {shlex.quote(one.requirement)}`",
        )
        for one in unmet(registry)
    ]
