"""What a real container keeps in, and what gets through."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path

import pytest
from podman_containers import AGENT, PREFIX, client, left

from pynchy.plugin import RunSpec, VolumeMount
from pynchy.runtime import agent_image
from pynchy_plugin_podman.runtime import PodmanRuntime

pytestmark = pytest.mark.usefixtures("clean_environment")


def output(podman: PodmanRuntime, spec: RunSpec, script: str, env: dict[str, str] | None = None) -> list[str]:
    """What a script that succeeds says, by lines; afterwards nothing is left of it."""
    with client(podman, spec, script, env) as process:
        said, complaint = process.communicate(timeout=100)
    assert (process.returncode, complaint) == (0, ""), said
    assert left(podman, spec.container_name) == []
    return said.splitlines()


def owned(directory: Path) -> Path:
    """A folder of the agent's."""
    directory.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(directory, *AGENT)
    return directory


@pytest.mark.podman
def test_inside_there_is_no_way_out(podman: PodmanRuntime) -> None:
    script = """
    id -u; id -g; echo home > ~/x && cat ~/x; echo tmp > /tmp/x && cat /tmp/x
    grep -E '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status | tr '\\t' ' '
    for d in / /etc /usr /opt /workspace /dev /run /run/lock /var /sys /sys/fs/cgroup /proc/sys/kernel; do
        touch $d/x 2>/dev/null && echo wrote $d
    done
    ls /sys/class/net | grep -v -E '^(tunl|gre|erspan|ip_vti|ip6|sit)'
    for path in /proc/kcore /proc/sysrq-trigger; do echo b 2>/dev/null > $path && echo wrote $path; done
    df -B1 --output=size /tmp /var/tmp /home/agent | tail -n 3 | tr -d ' '
    true
    """
    none = "0" * 16
    said = output(podman, RunSpec((), PREFIX + "inside", agent_image(), user=AGENT), script)
    assert said == [
        str(AGENT[0]),
        str(AGENT[1]),
        "home",
        "tmp",
        *(f"Cap{which}: {none}" for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")),
        "NoNewPrivs: 1",
        "Seccomp: 2",
        "lo",
        *[str(1024**3)] * 3,
    ]


@pytest.mark.podman
def test_nothing_of_the_hosts_environment_or_names_gets_in(
    podman: PodmanRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = f"secret-{uuid.uuid4().hex}"
    # More than an agent's client ever sees.
    leaks: dict[str, str] = {}
    for name in ("HTTP_PROXY", "https_proxy", "ALL_PROXY", "FTP_PROXY", "PYNCHY_SECRET"):
        leaks[name] = f"http://ada:{secret}@proxy:1"
    spec = RunSpec((), PREFIX + "environment", agent_image(), user=AGENT, env={"GIVEN": "a b"})
    said = output(podman, spec, "env; cat /proc/1/environ | tr '\\0' '\\n'; hostname; cat /etc/hosts", leaks)
    assert secret not in "\n".join(said)
    assert "GIVEN=a b" in said
    assert "HOME=/home/agent" in said
    hosts = (Path(sys.modules[PodmanRuntime.__module__].__file__ or "").parent / "hosts").read_text().splitlines()
    assert said[-1 - len(hosts) :] == ["agent", *hosts]


@pytest.mark.podman
def test_its_own_names_can_be_looked_up(podman: PodmanRuntime) -> None:
    spec = RunSpec((), PREFIX + "names", agent_image(), user=AGENT)
    script = "import socket; print(socket.gethostbyname('localhost'), socket.gethostbyname(socket.gethostname()))"
    assert output(podman, spec, f'exec python3 -c "{script}"') == ["127.0.0.1 127.0.0.1"]


@pytest.mark.podman
def test_the_limits_are_the_kernels_where_they_are_claimed(podman: PodmanRuntime) -> None:
    spec = RunSpec((), PREFIX + "limits", agent_image(), memory_bytes=123 << 20, cpus=1.5, pids=99, user=AGENT)
    script = """
    cd /sys/fs/cgroup
    if [ -e cgroup.controllers ]; then cat memory.max pids.max cpu.max
    else cat memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us; fi
    """
    limits = podman.supports - {"bridge"}
    if limits != {"memory", "cpus", "pids"}:
        pytest.skip(f"podman: only {sorted(limits)} can be limited on this machine by this user")
    found = " ".join(output(podman, spec, script)).split()
    assert found == [str(123 << 20), "99", "150000", "100000"]


@pytest.mark.podman
def test_a_fork_bomb_and_a_memory_hog_meet_their_limits(podman: PodmanRuntime, tmp_path: Path) -> None:
    if not podman.supports >= {"memory", "pids"}:
        pytest.skip("podman: nothing can be limited on this machine by this user")
    spec = RunSpec((), PREFIX + "hog", agent_image(), memory_bytes=64 << 20, pids=20, user=AGENT)
    hog = "python3 -c 'bytearray(200 << 20)'; echo $?"
    forks = """python3 -c '
import os, time
made = 0
try:
    while made < 100:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
except BlockingIOError:
    print(made < 20)
os.killpg(0, 9)'"""
    # Podman's monitor notes in the working directory of its client that memory ran out.
    with client(podman, spec, f"{hog}; {forks}", cwd=tmp_path) as process:
        said, _ = process.communicate(timeout=60)
    assert said.split()[:2] == ["137", "True"]


@pytest.mark.podman
@pytest.mark.parametrize("name", ["plain", "with a space", "com,ma", 'quo"te', "ünïcödé 🎉", "a=b,readonly"])
def test_a_folder_is_mounted_whatever_its_name(name: str, podman: PodmanRuntime, tmp_path: Path) -> None:
    folder = owned(tmp_path / name)
    (folder / "file").write_text("found\n")
    (folder / "file").chmod(0o644)
    mounts = (
        VolumeMount(str(folder), "/workspace/group"),
        VolumeMount(str(folder), f"/workspace/plugins/{name}", readonly=True),
    )
    script = """
    cat /workspace/plugins/*/file
    touch /workspace/plugins/*/x 2>/dev/null || echo refused
    echo new > /workspace/group/made && chmod 4755 /workspace/group/made
    """
    spec = RunSpec(mounts, PREFIX + "mount", agent_image(), user=AGENT)
    assert output(podman, spec, script) == ["found", "refused"]
    assert sorted(path.name for path in folder.iterdir()) == ["file", "made"]
    made = (folder / "made").stat()
    assert (made.st_uid, made.st_gid) == AGENT
    assert (folder / "made").read_text() == "new\n"


@pytest.mark.podman
def test_a_mount_whose_source_is_missing_fails_and_makes_nothing(podman: PodmanRuntime, tmp_path: Path) -> None:
    spec = RunSpec((VolumeMount(str(tmp_path / "missing"), "/x"),), PREFIX + "missing", agent_image(), user=AGENT)
    with client(podman, spec, "true") as process:
        _, complaint = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "missing" in complaint
    assert not (tmp_path / "missing").exists()
    podman.stop(spec.container_name)
    assert left(podman, spec.container_name) == []


@pytest.mark.podman
def test_what_goes_in_comes_out_and_its_end_is_the_containers_end(podman: PodmanRuntime) -> None:
    spec = RunSpec((), PREFIX + "pipe", agent_image(), user=AGENT)
    text = "0123456789abcdef\n" * (1 << 18)
    with client(podman, spec, "cat; exit 7") as process:
        said, complaint = process.communicate(text, timeout=60)
    assert (process.returncode, complaint) == (7, "")
    assert said == text
