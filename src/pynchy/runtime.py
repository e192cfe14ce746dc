"""The built-in container runtime, Docker, and the choice of the runtime that is used."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from pynchy.plugin import ContainerRuntime, OciRuntime, PluginRegistry, RuntimeUnavailable, discover_plugins
from pynchy.plugin import select_runtime as _select_runtime

DEFAULT_IMAGE = "pynchy-agent:latest"
_PACKAGES_LABEL = "io.pynchy.plugin-packages"


def agent_image() -> str:
    """The image that agents run from: `CONTAINER_IMAGE`, or `pynchy-agent:latest`."""
    return os.environ.get("CONTAINER_IMAGE", "").strip() or DEFAULT_IMAGE


class DockerRuntime(OciRuntime):
    """Docker: the only runtime in the core."""

    name = "docker"
    cli = "docker"

    def ensure_running(self) -> None:
        """Verify that the engine answers, telling apart: not installed, not running, no permission."""
        if shutil.which(self.cli) is None:
            raise RuntimeUnavailable("Docker is not installed", _install_hint())
        try:
            done = subprocess.run(
                [self.cli, "version", "--format", "{{.Server.Version}}"],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=20,
                stdin=subprocess.DEVNULL,
            )
        except OSError as error:
            raise RuntimeUnavailable(f"Docker cannot be started: {error}", "reinstall Docker") from None
        except subprocess.TimeoutExpired:
            raise RuntimeUnavailable("Docker did not answer within 20 s", "restart Docker") from None
        if done.returncode == 0:
            return
        problem = done.stderr.strip()
        if "permission denied" in problem.lower():
            raise RuntimeUnavailable(
                "this user may not talk to Docker",
                "add the user to the `docker` group (`sudo usermod -aG docker $USER`) and log in again",
            )
        if "cannot connect" in problem.lower() or "failed to connect" in problem.lower():
            raise RuntimeUnavailable("Docker is installed but not running", _start_hint())
        raise RuntimeUnavailable(f"Docker does not work: {problem[-300:]}", "see `docker info`")

    def has_image(self, image: str) -> bool:
        """Whether the engine answers and holds the image."""
        if shutil.which(self.cli) is None:
            return False
        try:
            self.command("image", "inspect", "--format", "{{.Id}}", image, timeout=10)
        except RuntimeUnavailable:
            return False
        return True

    def check_image(self, image: str) -> None:
        """Raise RuntimeUnavailable, with the command that builds it, when the image is missing."""
        self.ensure_running()
        if not self.has_image(image):
            raise RuntimeUnavailable(f"the agent image {image} is missing", "build it with `pynchy image build`")

    def image_packages(self, image: str) -> frozenset[str] | None:
        """What of plugins the image was built with, by its label; None where it has none."""
        from pynchy.plugin_packages import from_text

        try:
            label = f'{{{{index .Config.Labels "{_PACKAGES_LABEL}"}}}}'
            return from_text(self.command("image", "inspect", "--format", label, image, timeout=10))
        except RuntimeUnavailable:
            return None

    def build_image(self, image: str, lock: Path, packages: frozenset[str]) -> None:
        """Build the agent image through `container/build.sh`, its output shown as it comes.

        `PYNCHY_IMAGE_OPTIONS` may hold further options of that script.
        """
        from pynchy.home import container_dir
        from pynchy.plugin_packages import to_text

        self.ensure_running()
        script = container_dir() / "build.sh"
        given = os.environ.get("PYNCHY_IMAGE_OPTIONS", "")
        try:
            options = ["--tag", image, "--lock", str(lock), "--plugin-packages", to_text(packages), *shlex.split(given)]
        except ValueError as error:
            raise RuntimeUnavailable(f"PYNCHY_IMAGE_OPTIONS={given!r} cannot be read: {error}", "correct it") from None
        if subprocess.run(["bash", str(script), *options]).returncode:
            raise RuntimeUnavailable(f"building the image {image} failed", f"see the output above, or {script}")


def _install_hint() -> str:
    if sys.platform == "darwin":
        return "install Docker Desktop or OrbStack"
    return "install it (Debian, Ubuntu: `sudo apt-get install docker.io`), or `pynchy-plugin-bubblewrap`"


def _start_hint() -> str:
    if sys.platform == "darwin":
        return "start Docker Desktop"
    return "start it with `sudo systemctl start docker`"


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
