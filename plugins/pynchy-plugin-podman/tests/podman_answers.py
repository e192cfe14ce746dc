"""What a real Podman has said of itself, for a stand-in to say."""

from __future__ import annotations

import json
from typing import Any


def info(**host: Any) -> str:
    """Lines of shell that answer like root's Podman on a machine with systemd, but for these fields."""
    rootless = host.pop("rootless", False)
    selinux = host.pop("selinux", False)
    answer = {
        "arch": "amd64",
        "cgroupManager": "systemd",
        "cgroupVersion": "v2",
        "cgroupControllers": ["cpuset", "cpu", "io", "memory", "pids"],
        "idMappings": {"uidmap": None, "gidmap": None},
        "security": {"rootless": rootless, "selinuxEnabled": selinux},
        "serviceIsRemote": False,
        **host,
    }
    return f"""[ "$*" = "info --format json" ] && echo '{json.dumps({"host": answer})}'"""


def mapping(*sizes: int) -> dict[str, Any]:
    """The ids that a user has, as `podman info` has them."""
    ranges = [{"container_id": 0, "host_id": 1000, "size": size} for size in sizes]
    return {"uidmap": ranges, "gidmap": ranges}
