"""`pynchy plugins check`: load a plugin as a start would, and try each of its parts where it will run.

The host's part is loaded in a process of its own, which may die of it. The agent's part is tried inside a container
of the runtime that would run the agent. Of an installed plugin that works, an earlier death is forgotten.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import uuid
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import uv

from pynchy.agent_setup import agent_owner
from pynchy.cli.output import complain, complain_of_system, configure_logging, tell
from pynchy.config import SettingsError, load_settings
from pynchy.container_runner import spawn
from pynchy.home import pynchy_home
from pynchy.plugin import GROUP, ContainerRuntime, RuntimeUnavailable, discover_plugins
from pynchy.plugin._crashes import CrashLog
from pynchy.plugin._discovery import DISABLED, SAFE_MODE, SLOW_IMPORT, readable_entry_points
from pynchy.runtime import agent_image, get_runtime
from pynchy.types import ContainerInput, Group, RunSpec, VolumeMount
from pynchy.wire import WireError, encode, json_frame, read_frames
from pynchy.workspace import group_mounts, stage_runner

_LOAD_WITHIN = 60.0  # seconds
_INSTALL_WITHIN = 300.0  # seconds
_CONTAINER_WITHIN = 150.0  # seconds


@dataclass
class _Findings:
    """What was found of one plugin: the lines to print, and whether it works."""

    lines: list[str] = field(default_factory=list)
    works: bool = True

    def ok(self, text: str) -> None:
        """A part that works."""
        self.lines.append(f"ok     {text}")

    def warn(self, text: str) -> None:
        """What does not keep it from working."""
        self.lines.append(f"note   {text}")

    def wrong(self, text: str, remedy: str = "") -> None:
        """What does."""
        self.works = False
        self.lines.append(f"WRONG  {text}")
        if remedy:
            self.lines.append(f"       -> {remedy}")


class _CannotCheck(Exception):
    """The check itself cannot be made; the message says why."""


def check(target: str) -> int:
    """Check the installed plugin of that name, or the project in that directory; 0 where everything works."""
    configure_logging("critical")
    try:
        with tempfile.TemporaryDirectory(prefix="pynchy-check-") as directory:
            findings = _check(target, Path(directory))
    except (_CannotCheck, SettingsError) as error:
        return complain(str(error))
    except OSError as error:
        return complain_of_system(error)
    for line in findings.lines:
        print(line)
    return 0 if findings.works else 1


def _check(target: str, directory: Path) -> _Findings:
    path = Path(target)
    is_project = path.is_dir() and ("/" in target or (path / "pyproject.toml").is_file())
    if is_project:
        installed = directory / "installed"
        _install(path, installed)
        loading = _Loading(directory, ("--only", str(installed)), str(installed))
    else:
        loading = _Loading(directory, ("--entry-point", _entry_point_name(target)))
    findings = _Findings()
    for result in _load(loading, findings):
        _judge_record(result, loading, findings)
        if result["record"]["state"] == "ready":
            _judge_parts(result, directory, findings)
    if findings.works and not is_project:
        _forget_death(loading.chosen[1])
    return findings


# --- the host's part ----------------------------------------------------------------------------------------


def _entry_point_name(target: str) -> str:
    """The entry point that is meant by its own name, its distribution's, or the name the plugin gives itself."""
    points = {point.name: point for point in readable_entry_points(GROUP)[0]}
    if target in points:
        return target
    for name, point in points.items():
        if point.dist and point.dist.name == target:
            return name
    for record in discover_plugins().records:
        if record.name == target:
            return record.entry_point
    raise _CannotCheck(
        f"No plugin is called {target!r}; installed are: {', '.join(sorted(points)) or 'none'}. "
        "A directory is checked by its path, as in `pynchy plugins check ./my-plugin`."
    )


def _install(project: Path, target: Path) -> None:
    """Build the project and unpack it into a directory of its own, as an installation would."""
    tell(f"Building {project} ...")
    command = [uv.find_uv_bin(), "pip", "install", "--quiet", "--no-config", "--no-deps", "--python", sys.executable]
    if _has_build_backend(project):
        command.append("--no-build-isolation")
    try:
        done = subprocess.run(
            [*command, "--target", str(target), str(project.absolute())],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_INSTALL_WITHIN,
        )
    except subprocess.TimeoutExpired:
        raise _CannotCheck(f"{project} was not built within {_INSTALL_WITHIN:.0f} s.") from None
    if done.returncode:
        raise _CannotCheck(f"{project} cannot be built: {_tail(done.stderr)}")


def _has_build_backend(project: Path) -> bool:
    """Whether what builds the project is here already, and need not be fetched."""
    try:
        backend = tomllib.loads((project / "pyproject.toml").read_text())["build-system"]["build-backend"]
        return find_spec(str(backend).partition(":")[0].partition(".")[0]) is not None
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _load(loading: _Loading, findings: _Findings) -> list[dict[str, Any]]:
    try:
        done = loading.run()
    except subprocess.TimeoutExpired:
        findings.wrong(
            f"loading it did not end within {_LOAD_WITHIN:.0f} s", "move what takes so long out of the import"
        )
        return []
    output = loading.output
    if not output.exists():
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        said = f": {_tail(done.stderr)}" if done.stderr.strip() else ""
        findings.wrong(f"loading it ended the process ({how}){said}", "a start would leave it out from then on")
        return []
    results = json.loads(output.read_text())
    if not results:
        findings.wrong(
            f"it has no entry point in the group {GROUP}", f'add [project.entry-points."{GROUP}"] to its pyproject.toml'
        )
    return results


@dataclass(frozen=True)
class _Loading:
    """The process that loads what is `chosen`, with `search` first on its import path, and writes to `directory`."""

    directory: Path
    chosen: tuple[str, str]
    search: str = ""

    @property
    def output(self) -> Path:
        """What it writes; missing where it did not come to its end."""
        return self.directory / "output"

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run it with options of the interpreter; subprocess.TimeoutExpired where it does not end."""
        uid, gid = agent_owner(load_settings())
        home = str(self.directory / "home")
        paths = [path for path in (self.search, os.environ.get("PYTHONPATH")) if path]
        env = {name: value for name, value in os.environ.items() if name not in (DISABLED, SAFE_MODE, "PYTHONPATH")}
        env |= {"PYNCHY_HOME": home} | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})
        command = [sys.executable, *options, "-m", "pynchy.cli.plugin_check_process"]
        return subprocess.run(
            [*command, str(self.output), home, f"{uid}:{gid}", *self.chosen],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_LOAD_WITHIN,
            env=env,
        )


def _judge_record(result: dict[str, Any], loading: _Loading, findings: _Findings) -> None:
    record = result["record"]
    subject = f"{record['entry_point']} = {record['target']}"
    if record["state"] != "ready":
        findings.wrong(f"{subject}: {record['reason']}", record["remedy"])
        return
    findings.ok(f"{subject} is the plugin {record['name']!r}: {', '.join(record['types'])}")
    milliseconds = record["import_milliseconds"]
    if milliseconds > SLOW_IMPORT:
        try:
            slow = _slowest(loading.run("-X", "importtime").stderr)
        except subprocess.TimeoutExpired:
            slow = ""
        findings.warn(
            f"its import takes {milliseconds:.0f} ms, which every start pays{slow}; import it where it is used"
        )
    if "runtime" in record["types"] and record["note"]:
        findings.warn(f"its runtime: {record['note']}")


def _slowest(importtime: str) -> str:
    """The module that takes longest by itself, of what `-X importtime` has written."""
    modules = re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s*(\S+)$", importtime, re.MULTILINE)
    ours = ("pynchy.", "encodings", "site")
    timed = [(int(microseconds), module) for microseconds, module in modules if not module.startswith(ours)]
    if not timed:
        return ""
    microseconds, module = max(timed)
    return f", {microseconds / 1000:.0f} ms of it {module}"


def _forget_death(name: str) -> None:
    with CrashLog.open(pynchy_home()) as crashes:
        for point in readable_entry_points(GROUP)[0]:
            if point.name == name:
                crashes.forget(point)


# --- the agent's part ---------------------------------------------------------------------------------------


def _judge_parts(result: dict[str, Any], directory: Path, findings: _Findings) -> None:
    offers = result["record"]["offers"]
    for part, trouble in result["troubles"].items():
        findings.wrong(f"its {part}: {trouble}")
    if offers.get("skills"):
        findings.ok(f"skills: {', '.join(offers['skills'])}")
    if offers.get("tools"):
        findings.ok(f"host tools: {', '.join(offers['tools'])}")
    if "channel" in offers and "channel" not in result["troubles"]:
        findings.ok("channel: it can be created; `pynchy run` connects it")
    if "runtime" in offers and "runtime" not in result["troubles"]:
        findings.ok("runtime: it can be created")
    for path in result["binaries"]:
        findings.warn(f"{path} is built for this machine and may not run in the container: see the `container` extra")
    if not result["mcp_servers"] and not result["hooks"]:
        return
    try:
        checked = asyncio.run(_in_container(result, directory))
    except (RuntimeUnavailable, RuntimeError, WireError) as error:
        findings.wrong(f"its agent-side parts could not be tried in a container: {error}")
        return
    for name, server in checked["servers"].items():
        if server["trouble"]:
            said = f"; it wrote: {_tail(server['stderr'])}" if server.get("stderr") else ""
            findings.wrong(f"the MCP server {name} does not start: {server['trouble']}{said}", _MISSING)
            continue
        tools = [tool["name"] for tool in server["tools"]]
        findings.ok(f"the MCP server {name} offers: {', '.join(tools) or 'no tools'}")
        for tool in server["tools"]:
            if not tool["description"].strip():
                findings.warn(f"the tool {tool['name']} of {name} has no description for the model")
    for trouble in checked["hooks"].values():
        if trouble:
            findings.wrong(f"its hooks: {trouble}", _MISSING)
    if result["hooks"] and not any(checked["hooks"].values()):
        findings.ok(f"hooks: {', '.join(result['hooks'])}")


_MISSING = (
    "in the container there are the standard library, the agent's packages, `pynchy.plugin` and what the plugin's "
    "`container` extra names (`pynchy image build`); import what only the host has inside the method that needs it"
)


async def _in_container(result: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Run the plugin's servers and hooks in a container of the runtime that agents have, and return what came of it."""
    settings = load_settings()
    owner = agent_owner(settings)
    runtime = await asyncio.to_thread(_ready_runtime)
    home, group = directory / "home", Group("check:", "check", "check")
    mounts = group_mounts(home, group, stage_runner(home), owner)
    spec = RunSpec(
        mounts=(*mounts, *(VolumeMount(**mount) for mount in result["mounts"])),
        container_name=f"pynchy-check-{uuid.uuid4().hex[:12]}",
        image=agent_image(),
        user=owner,
    )
    given = ContainerInput(
        "", "check", "check:", plugin_mcp_servers=result["mcp_servers"], plugin_hooks=result["hooks"]
    )
    process = await spawn(runtime, spec)
    try:
        async with asyncio.timeout(_CONTAINER_WITHIN):
            return await _ask(process, given)
    except TimeoutError:
        raise RuntimeError(f"it gave no answer within {_CONTAINER_WITHIN:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
        if stop := getattr(runtime, "stop", None):
            await asyncio.to_thread(stop, spec.container_name)
        await process.communicate()  # which closes its pipes


async def _ask(process: asyncio.subprocess.Process, given: ContainerInput) -> dict[str, Any]:
    assert process.stdin
    assert process.stdout
    assert process.stderr
    for piece in encode(json_frame("check", given.to_dict(), id="check")):
        process.stdin.write(piece)
    said = asyncio.ensure_future(process.stderr.read())
    async for frame in read_frames(process.stdout):
        if frame.type == "checked":
            said.cancel()
            return frame.json_body()
        if frame.type == "error":
            raise RuntimeError(str(frame.fields.get("reason"))[:500])
    raise RuntimeError(_tail((await said).decode("utf-8", "replace")) or "the container ended without an answer")


def _ready_runtime() -> ContainerRuntime:
    runtime = get_runtime(discover_plugins())
    runtime.ensure_running()
    if check_image := getattr(runtime, "check_image", None):
        check_image(agent_image())
    return runtime


def _tail(text: str) -> str:
    """The end of what a program wrote, on one line."""
    return " ".join(text.split())[-600:]
