"""The built-in container runtime, Docker, and the choice of the runtime that is used."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from pynchy.home import container_dir
from pynchy.plugin import ContainerRuntime, OciRuntime, PluginRegistry, RunSpec, RuntimeUnavailable, discover_plugins
from pynchy.plugin import select_runtime as _select_runtime
from pynchy.plugin._oci import ARCHITECTURES

#: There where systemd runs the machine (sd_booted(3)).
_SYSTEMD = Path("/run/systemd/system")
DEFAULT_IMAGE = "pynchy-agent:latest"


def agent_image() -> str:
    """The image that agents run from: `CONTAINER_IMAGE`, or `pynchy-agent:latest`."""
    return os.environ.get("CONTAINER_IMAGE", "").strip() or DEFAULT_IMAGE


#: What an engine says of itself where it keeps a limit; a rootless one often cannot.
_KEPT = {"memory": "MemoryLimit", "cpus": "CpuCfsQuota", "pids": "PidsLimit"}


@dataclass(frozen=True, slots=True)
class _Engine:
    """What `docker info` says: the processor, the names of its security options, the limits that it keeps."""

    architecture: str
    security: frozenset[str] = frozenset()
    limits: frozenset[str] = frozenset(_KEPT)


class DockerRuntime(OciRuntime):
    """Docker: the only runtime in the core."""

    name = "docker"
    cli = "docker"
    build_script = container_dir() / "build.sh"

    def __init__(self) -> None:
        self._engine: _Engine | None = None

    def ensure_running(self) -> None:
        """Verify that the engine answers, telling apart: not installed, not running, no permission."""
        self._engine = self._ask_engine()

    @property
    def supports(self) -> frozenset[str]:
        """The limits that the engine keeps, and a network where one is asked for."""
        return self._ask().limits | {"bridge"}

    def architecture(self) -> str:
        """The processor of the engine's machine, which need not be this one."""
        return self._ask().architecture

    def container_user(self, spec: RunSpec) -> tuple[int, int] | None:
        """The user of a rootless engine is uid 0 of its containers, and every other uid in there nobody's out here."""
        return (0, 0) if "rootless" in self._ask().security else spec.user

    def engine_args(self, spec: RunSpec) -> list[str]:
        """What the engine's own set-up would otherwise keep the agent from: its folder."""
        args = []
        security = self._ask().security
        if "userns" in security:  # the engine maps all uids elsewhere, so that the folder would be another's
            args += ["--userns", "host"]
        if "selinux" in security:  # else the folder's label would have to be changed for good
            args += ["--security-opt", "label=disable"]
        return args

    def _ask(self) -> _Engine:
        if self._engine is None:
            try:
                self._engine = self._ask_engine()
            except RuntimeUnavailable:
                return _Engine(super().architecture())  # whoever starts a container is told why it cannot be
        return self._engine

    def _ask_engine(self) -> _Engine:
        if shutil.which(self.cli) is None:
            raise RuntimeUnavailable("Docker is not installed", _install_hint())
        try:
            done = self._run("info", "--format", "{{json .}}", timeout=20)
        except RuntimeUnavailable as error:
            raise RuntimeUnavailable(error.args[0].replace(f"`{self.cli} info`", "Docker"), "restart Docker") from None
        try:
            info = json.loads(done.stdout)
        except ValueError:
            info = {}
        if info.get("ServerVersion"):
            machine = str(info.get("Architecture"))
            options = {option.partition("name=")[2].partition(",")[0] for option in info.get("SecurityOptions") or ()}
            kept = frozenset(limit for limit, name in _KEPT.items() if info.get(name, True))
            return _Engine(ARCHITECTURES.get(machine, machine), frozenset(options), kept)
        problem = done.stderr.strip() or "; ".join(info.get("ServerErrors") or ())
        if "permission denied" in problem.lower():
            raise RuntimeUnavailable(
                "this user may not talk to Docker",
                "add the user to the `docker` group (`sudo usermod -aG docker $USER`) and log in again",
            )
        if any(words in problem.lower() for words in ("cannot connect", "failed to connect", "connection refused")):
            raise RuntimeUnavailable("Docker is installed but not running", _start_hint())
        raise RuntimeUnavailable(f"Docker does not work: {problem[-300:]}", "see `docker info`")


def _install_hint() -> str:
    if sys.platform == "darwin":
        return "install Docker Desktop or OrbStack"
    return "install it (Debian, Ubuntu: `sudo apt-get install docker.io`), or `pynchy-plugin-bubblewrap`"


def _start_hint() -> str:
    """The command that starts the engine on this system."""
    if sys.platform == "darwin":
        return "start it with `open -a Docker`, or whatever else you have Docker from"
    if os.environ.get("DOCKER_HOST", "").startswith(f"unix:///run/user/{os.getuid()}/"):  # a rootless engine
        return "start it with `systemctl --user start docker`"
    if _SYSTEMD.is_dir():
        return "start it with `sudo systemctl start docker`"
    if shutil.which("rc-service"):
        return "start it with `sudo rc-service docker start`"
    return "start it with `sudo service docker start`"


_runtime: ContainerRuntime | None = None


def detect_runtime(registry: PluginRegistry | None = None) -> ContainerRuntime:
    """Choose a runtime among the registry's plugins and Docker; without a registry, Docker."""
    return DockerRuntime() if registry is None else _select_runtime(registry)


def get_runtime(registry: PluginRegistry | None = None) -> ContainerRuntime:
    """The runtime of this process, chosen once. Without a registry the first call discovers the plugins."""
    global _runtime
    if _runtime is None:
        _runtime = detect_runtime(discover_plugins() if registry is None else registry)
    return _runtime


def reset_runtime() -> None:
    """Forget the choice, so that the next `get_runtime` makes it again. For tests."""
    global _runtime
    _runtime = None
