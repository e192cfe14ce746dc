"""Where Podman is not Docker: whose files are whose without root, what can be limited, and what may be missing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pynchy.plugin import OciRuntime, RunSpec, RuntimeUnavailable, VolumeMount
from pynchy_plugin_podman.monitors import end, monitors

#: Which limit each of the kernel's controllers keeps.
_KEEPS = {"memory": "memory", "cpu": "cpus", "pids": "pids"}
#: Instead of the host's own, which Podman would copy with all the names in it.
_HOSTS = VolumeMount(str(Path(__file__).with_name("hosts")), "/etc/hosts", readonly=True)
_HOST_NAME = "agent"  # as in that file
_VAR_TMP = "/var/tmp:rw,nosuid,nodev,mode=1777,size=1g"  # noqa: S108 - inside the container


#: What `podman ps` fails with where a container goes while it looks, and how often it is asked.
_GONE = re.compile(r"container not known|no such container|no container with", re.IGNORECASE)
_LOOKS = 10


@dataclass(frozen=True, slots=True)
class Engine:
    """What `podman info` says of the machine that runs the containers.

    `remote`: another one than ours, as always on macOS. `users`: how many uids, or gids if these are fewer, its
    containers can have; None for all. `limits`: those of a RunSpec that it keeps.
    """

    architecture: str
    remote: bool = False
    rootless: bool = False
    selinux: bool = False
    users: int | None = None
    limits: frozenset[str] = frozenset(_KEEPS.values())

    @classmethod
    def from_info(cls, info: dict[str, Any]) -> Engine:
        """Of the JSON's object; KeyError, TypeError and the like where it is something else."""
        host = info["host"]
        security = host["security"]
        rootless = bool(security["rootless"])
        mappings = host.get("idMappings") or {}
        sizes = [sum(one["size"] for one in mappings[kind]) for kind in ("uidmap", "gidmap") if mappings.get(kind)]
        controllers = host.get("cgroupControllers", list(_KEEPS)) or []
        if rootless and (host["cgroupVersion"] != "v2" or host.get("cgroupManager") != "systemd"):
            controllers = []  # only systemd gives cgroups away to ordinary users, and of the old kind not even that
        return cls(
            architecture=str(host["arch"]),
            remote=bool(host.get("serviceIsRemote")),
            rootless=rootless,
            selinux=bool(security.get("selinuxEnabled")),
            users=min(sizes, default=None) if rootless else None,
            limits=frozenset(limit for controller, limit in _KEEPS.items() if controller in controllers),
        )


class PodmanRuntime(OciRuntime):
    """Podman with root or without, on this machine or on a virtual one (macOS)."""

    name = "podman"
    cli = "podman"
    build_script = Path(__file__).with_name("build.sh")
    #: How long `podman info` may take, in seconds.
    answers_within: float = 20

    def __init__(self) -> None:
        self._engine: Engine | None = None

    def ensure_running(self) -> None:
        """Verify that Podman can run an agent, telling apart what it may lack."""
        self._engine = engine = self._ask_engine()
        if engine.users == 1:
            raise _no_subordinate_ids()

    @property
    def supports(self) -> frozenset[str]:
        """The limits that this machine really keeps, and `bridge`."""
        return self._ask().limits | {"bridge"}

    def architecture(self) -> str:
        """The processor of the machine that runs the containers, which need not be this one."""
        return self._ask().architecture

    def run_args(self, spec: RunSpec) -> list[str]:
        """As Docker's, without the limits that nothing would keep: Podman warns of them, or refuses to start."""
        engine = self._ask()
        fields = {"memory_bytes": "memory", "cpus": "cpus", "pids": "pids"}
        changes: dict[str, Any] = {field: None for field, limit in fields.items() if limit not in engine.limits}
        if not engine.remote:
            changes["mounts"] = (*spec.mounts, _HOSTS)
        return super().run_args(replace(spec, **changes))

    def engine_args(self, spec: RunSpec) -> list[str]:
        """What Podman does by itself and Docker does not, undone; and whose the agent's files are."""
        engine = self._ask()
        # Podman's own `rm --force` would wait ten seconds for a process that does not care. It hands on the proxy
        # variables, and a proxy's URL can hold a password. Its /var/tmp would be as large as the memory.
        args = ["--stop-timeout", "0", "--http-proxy=false", "--tmpfs", _VAR_TMP]
        if engine.rootless:
            args += ["--userns", _keep_id(engine, spec)]
        if engine.selinux:  # else the folder's label would have to be changed for good
            args += ["--security-opt", "label=disable"]
        if not engine.remote:  # a virtual machine has an /etc/hosts of its own
            args += ["--no-hosts", "--hostname", _HOST_NAME]
        return args

    def list_running_containers(self, prefix: str = "pynchy-") -> list[str]:
        """The names of containers that start with `prefix`, whatever a killed `podman run` has left of them."""
        external = [] if self._ask().remote else ["--external"]
        listed = self.command("ps", "--all", *external, "--filter", f"name=^{prefix}", "--format", "{{.Names}}").split()
        return sorted({name for name in (*listed, *(name for _, name in monitors())) if name.startswith(prefix)})

    def stop(self, name: str) -> None:
        """Kill the container and return once it is gone; RuntimeUnavailable where that cannot be seen."""
        super().stop(name)
        deadline = time.monotonic() + 10
        while left := [monitor for monitor, container in monitors() if container == name]:
            for monitor in left:
                end(monitor)
            if time.monotonic() > deadline:
                raise RuntimeUnavailable(f"the container {name} does not end", f"see the processes {left}")
            time.sleep(0.02)

    def _run(self, *args: str, timeout: float | None) -> subprocess.CompletedProcess[str]:
        """Run the command line; a list is asked for again where a container was removed while Podman made it."""
        for _ in range(_LOOKS - 1):
            done = super()._run(*args, timeout=timeout)
            if args[0] != "ps" or not done.returncode or not _GONE.search(done.stderr):
                return done
            time.sleep(0.05)
        return super()._run(*args, timeout=timeout)

    def _ask(self) -> Engine:
        if self._engine is None:
            try:
                self._engine = self._ask_engine()
            except RuntimeUnavailable:
                return Engine(super().architecture())  # whoever starts a container is told why it cannot be
        return self._engine

    def _ask_engine(self) -> Engine:
        if shutil.which(self.cli) is None:
            raise RuntimeUnavailable("Podman is not installed", _install_hint())
        try:
            done = self._run("info", "--format", "json", timeout=self.answers_within)
        except RuntimeUnavailable as error:
            raise RuntimeUnavailable(error.args[0].replace(f"`{self.cli} info`", "Podman"), _unlock_hint()) from None
        if done.returncode:
            raise _complaint(done.stderr)
        try:
            return Engine.from_info(json.loads(done.stdout))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise RuntimeUnavailable("Podman does not say what it is", "see `podman info`") from None


def _keep_id(engine: Engine, spec: RunSpec) -> str:
    """The user that Podman runs as, under the same ids in the container.

    The virtual machine's user has ids of its own, and stands for ours.
    """
    if engine.remote and spec.user:
        return f"keep-id:uid={spec.user[0]},gid={spec.user[1]}"
    return "keep-id"


# --- what Podman may lack -------------------------------------------------------------------------------------


def _complaint(stderr: str) -> RuntimeUnavailable:
    """What `podman info` ended with, and what to do about it."""
    words = stderr.lower()
    if "newuidmap" in words or "newgidmap" in words:
        package = "(Debian, Ubuntu: `sudo apt-get install uidmap`; Fedora: `sudo dnf install shadow-utils`)"
        if "not found" in words:
            return RuntimeUnavailable("newuidmap is missing, which Podman needs without root", f"install it {package}")
        if "setuid" in words:
            return RuntimeUnavailable("newuidmap has lost its privileges", f"install it anew {package}")
    if "no subuid ranges" in words or "no subgid ranges" in words:
        return _no_subordinate_ids()
    if "connect to podman" in words:
        if sys.platform == "darwin":
            return RuntimeUnavailable(
                "Podman's machine is not running",
                "start it with `podman machine start`, before the very first time `podman machine init`",
            )
        return RuntimeUnavailable(
            "no Podman answers where CONTAINER_HOST or the default connection leads",
            "start `podman system service` there, or unset the variable",
        )
    last = stderr.strip().splitlines()[-1:]
    message = re.sub(r'^time=\S+ level=\w+ msg="(.*)"$', r"\1", last[0]) if last else "it said nothing"
    return RuntimeUnavailable(f"Podman does not work: {message[-300:]}", "see `podman info`")


def _no_subordinate_ids() -> RuntimeUnavailable:
    return RuntimeUnavailable(
        "this user has no subordinate uids and gids, which Podman needs without root",
        "`sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER` gives it some, "
        "and `podman system migrate` has Podman take them",
    )


def _install_hint() -> str:
    if sys.platform == "darwin":
        return "install it with `brew install podman`, then `podman machine init` and `podman machine start`"
    return "install it (Debian, Ubuntu: `sudo apt-get install podman`; Fedora: `sudo dnf install podman`)"


def _unlock_hint() -> str:
    if sys.platform == "darwin":
        return "restart its machine with `podman machine stop` and `podman machine start`"
    return "look with `ps -C podman` for one that hangs, and end it"
