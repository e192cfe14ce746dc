"""Real containers of whoever runs the tests: root those of root's Podman, an ordinary user rootless ones."""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path

from pynchy.container_runner import CLIENT_VARIABLES
from pynchy.plugin import RunSpec
from pynchy_plugin_podman.monitors import monitors
from pynchy_plugin_podman.runtime import PodmanRuntime

#: Whom a root host's agents run as; an ordinary user's as that user.
AGENT = (60999, 60999) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
#: No test may see another's containers, nor those of a service that runs on this machine.
PREFIX = f"pynchy-test-{uuid.uuid4().hex[:8]}-"


def client(
    podman: PodmanRuntime, spec: RunSpec, script: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[str]:
    """Start a shell where the agent would be, with the environment that the agent's client has."""
    args = podman.run_args(spec)
    return subprocess.Popen(
        [podman.cli, *args[:-1], "--entrypoint", "sh", args[-1], "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**{name: os.environ[name] for name in CLIENT_VARIABLES if name in os.environ}, **(env or {})},
    )


def left(podman: PodmanRuntime, name: str) -> list[str]:
    """What is there of a container, in Podman's eyes or in the kernel's."""
    listed = podman.command("ps", "--all", "--external", "--filter", f"name={name}", "--format", "{{.Names}}").split()
    # The filter lets through every external one, such as one that another process is making just now.
    return [one for one in listed if name in one] + [container for _, container in monitors() if container == name]
