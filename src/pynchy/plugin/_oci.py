"""What Docker, Podman and the like share: a command line that takes Docker's arguments."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from pynchy.plugin._runtimes import RuntimeUnavailable
from pynchy.types import RunSpec, VolumeMount

#: Where the agent's home is in every container: memory only, so nothing outlives a run.
AGENT_HOME = "/home/agent"

#: On the image: which agent.lock it was built from, and what of plugins it has.
_LOCK_LABEL = "io.pynchy.agent-lock"
_PACKAGES_LABEL = "io.pynchy.plugin-packages"
#: How long the command line may take for anything but running a container, and a container to end, in seconds.
_ANSWERS_WITHIN = 30.0
#: What the kernel calls a processor, and what images do.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class OciRuntime:
    """A runtime whose command line takes Docker's arguments.

    A subclass sets `name` and `cli` and says in `ensure_running` what its daemon needs. Where its arguments differ
    from Docker's, it overrides `container_user` and `engine_args`; where it has a `build_script`, an executable that
    takes the options of `container/build.sh`, it can build the agent's image.
    """

    name: str
    cli: str
    build_script: Path | None = None

    @property
    def supports(self) -> frozenset[str]:
        """All of them: a subclass whose engine does not always keep a limit says so."""
        return frozenset({"memory", "cpus", "pids", "bridge"})

    def ensure_running(self) -> None:
        """Verify that the command line is installed."""
        if shutil.which(self.cli) is None:
            raise RuntimeUnavailable(f"{self.cli} is not installed", f"install {self.cli}")

    def list_running_containers(self, prefix: str = "pynchy-") -> list[str]:
        """Return the names of containers that start with `prefix`: those that run, and those that never began to."""
        output = self.command("ps", "--all", "--filter", f"name=^{prefix}", "--format", "{{.Names}}")
        return [name for name in output.split() if name.startswith(prefix)]

    def build_run_args(self, mounts: list[VolumeMount], container_name: str, image: str) -> list[str]:
        """`run_args` with the defaults for everything that only a RunSpec can say."""
        return self.run_args(RunSpec(tuple(mounts), container_name, image))

    def run_args(self, spec: RunSpec) -> list[str]:
        """Arguments for a container without capabilities, a way to gain any, or a writable root.

        It has no network but where the spec says so.
        """
        args = ["run", "--rm", "--interactive", "--pull", "never", "--name", spec.container_name]
        args += ["--network", spec.network, "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        # The default driver would write every byte of the wire to the host's disk.
        args += ["--log-driver", "none", "--read-only", *self.engine_args(spec)]
        if user := self.container_user(spec):
            args += ["--user", f"{user[0]}:{user[1]}"]
        # Docker's own default for a tmpfs is noexec; a home needs to run what it holds. Who the agent's user is only
        # the image may know, and there is no other in the container.
        for path in (AGENT_HOME, "/tmp"):  # noqa: S108 - inside the container
            args += ["--tmpfs", f"{path}:rw,exec,nosuid,nodev,mode=1777,size=1g"]
        if spec.memory_bytes:
            args += ["--memory", str(spec.memory_bytes), "--memory-swap", str(spec.memory_bytes)]
        if spec.cpus:
            args += ["--cpus", str(spec.cpus)]
        if spec.pids:
            args += ["--pids-limit", str(spec.pids)]
        for key, value in sorted(spec.labels.items()):
            args += ["--label", f"{key}={value}"]
        for key, value in sorted(spec.env.items()):
            args += ["--env", f"{key}={value}"]
        for mount in spec.mounts:
            args += ["--mount", mount_argument(mount)]
        return [*args, spec.image]

    def container_user(self, spec: RunSpec) -> tuple[int, int] | None:
        """Whom the agent runs as inside, for its files to be `spec.user`'s outside; None for the image's own."""
        return spec.user

    def engine_args(self, spec: RunSpec) -> list[str]:
        """What this engine needs beside the arguments that all of them take."""
        return []

    def stop(self, name: str) -> None:
        """Kill the container and return once it is gone; RuntimeUnavailable where that cannot be seen."""
        deadline = time.monotonic() + _ANSWERS_WITHIN
        while True:
            # It may be gone already, or another removal may be under way: what counts is what is left.
            self.command("rm", "--force", name, check=False)
            left = self.command("ps", "--all", "--filter", f"name={name}", "--format", "{{.Names}}")
            if name not in left.split():
                return
            if time.monotonic() > deadline:
                raise RuntimeUnavailable(f"the container {name} does not end", f"try `{self.cli} rm --force {name}`")
            time.sleep(0.05)

    # --- images ---------------------------------------------------------------------------------------------

    def has_image(self, image: str) -> bool:
        """Whether the engine answers and holds the image."""
        try:
            return self._inspect(image) is not None
        except RuntimeUnavailable:
            return False

    def check_image(self, image: str) -> None:
        """Raise RuntimeUnavailable where no agent can start from it: missing, too old, another processor's."""
        self.ensure_running()
        found = self._inspect(image)
        if found is None:
            raise RuntimeUnavailable(f"the agent image {image} is missing", "build it with `pynchy image build`")
        built_from = _labels(found).get(_LOCK_LABEL)
        if built_from is not None and built_from != _lock_digest():
            raise RuntimeUnavailable(
                f"the agent image {image} was built for another version of Pynchy",
                "build it anew with `pynchy image build`, and then what you have built on it",
            )
        made_for = found.get("Architecture")
        if made_for != self.architecture() and not self._runs(image):
            raise RuntimeUnavailable(
                f"the agent image {image} is for {made_for} processors, and this machine's are {self.architecture()}",
                "build it here with `pynchy image build`",
            )

    def architecture(self) -> str:
        """The processor of the machine that runs the containers, as images name it."""
        machine = os.uname().machine
        return ARCHITECTURES.get(machine, machine)

    def _runs(self, image: str) -> bool:
        """Whether a container starts at all: a machine can be set up to run another processor's programs."""
        try:
            self.command("run", "--rm", "--network", "none", "--pull", "never", "--entrypoint", "true", image)
        except RuntimeUnavailable:
            return False
        return True

    def image_packages(self, image: str) -> frozenset[str] | None:
        """What of plugins the image was built with, by its label; None where it has none."""
        from pynchy.plugin_packages import from_text

        try:
            found = self._inspect(image)
        except RuntimeUnavailable:
            return None
        return from_text(_labels(found).get(_PACKAGES_LABEL, "")) if found else None

    def build_image(self, image: str, lock: Path, packages: frozenset[str]) -> None:
        """Build the agent image through `build_script`, its output shown as it comes.

        `PYNCHY_IMAGE_OPTIONS` may hold further options of that script.
        """
        import shlex

        from pynchy.home import container_dir
        from pynchy.plugin_packages import to_text

        if self.build_script is None:
            raise RuntimeUnavailable(f"the runtime {self.name} builds no images", f"build {image} with its own tools")
        self.ensure_running()
        given = os.environ.get("PYNCHY_IMAGE_OPTIONS", "")
        try:
            options = ["--tag", image, "--lock", str(lock), "--plugin-packages", to_text(packages), *shlex.split(given)]
        except ValueError as error:
            raise RuntimeUnavailable(f"PYNCHY_IMAGE_OPTIONS={given!r} cannot be read: {error}", "correct it") from None
        # A plugin's script lies elsewhere than what the image is made of.
        env = {**os.environ, "PYNCHY_CONTAINER_DIR": str(container_dir())}
        if subprocess.run(["bash", str(self.build_script), *options], env=env).returncode:
            raise RuntimeUnavailable(
                f"building the image {image} failed", f"see the output above, or {self.build_script}"
            )

    def _inspect(self, image: str) -> dict[str, Any] | None:
        """What the engine knows of an image, None where it has none of this name; RuntimeUnavailable."""
        done = self._run("image", "inspect", image, timeout=10)
        if done.returncode:
            if "no such" in done.stderr.lower() or "not known" in done.stderr.lower():
                return None
            raise self._failed("image", done.stderr)
        try:
            return json.loads(done.stdout)[0]
        except (ValueError, LookupError):
            raise self._failed("image", "its answer is no JSON") from None

    # --- the command line -----------------------------------------------------------------------------------

    def command(self, *args: str, timeout: float | None = None, check: bool = True) -> str:
        """Run the command line and return its stdout; RuntimeUnavailable where it fails or hangs."""
        done = self._run(*args, timeout=timeout)
        if check and done.returncode:
            raise self._failed(args[0], done.stderr)
        return done.stdout

    def _failed(self, verb: str, words: str) -> RuntimeUnavailable:
        return RuntimeUnavailable(
            f"`{self.cli} {verb}` failed: {' '.join(words.split())[-300:]}", f"see `{self.cli} {verb}`"
        )

    def _run(self, *args: str, timeout: float | None) -> subprocess.CompletedProcess[str]:
        timeout = timeout or _ANSWERS_WITHIN
        try:
            return subprocess.run(
                [self.cli, *args],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                stdin=subprocess.DEVNULL,
            )
        except FileNotFoundError:
            raise RuntimeUnavailable(f"{self.cli} is not installed", f"install {self.cli}") from None
        except OSError as error:
            raise RuntimeUnavailable(f"{self.cli} cannot be started: {error}", f"reinstall {self.cli}") from None
        except subprocess.TimeoutExpired:
            raise RuntimeUnavailable(
                f"`{self.cli} {args[0]}` did not answer within {timeout:.0f} s", f"restart {self.cli}"
            ) from None


def _labels(image: dict[str, Any]) -> dict[str, str]:
    return (image.get("Config") or {}).get("Labels") or {}


def _lock_digest() -> str:
    import hashlib  # takes longer than all of the above, and a list of plugins needs none

    from pynchy.home import container_dir

    return hashlib.sha256((container_dir() / "requirements" / "agent.lock").read_bytes()).hexdigest()


def mount_argument(mount: VolumeMount) -> str:
    """A mount as the value of `--mount`: comma-separated fields, quoted as CSV for paths with commas.

    Unlike `-v`, it fails for a source that does not exist instead of making one as root.
    """
    fields = ["type=bind", f"source={mount.host_path}", f"target={mount.container_path}"]
    if mount.readonly:
        fields.append("readonly")
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()
