"""The container's side: hooks that leave marks, deny, raise, hang and die."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

_MARKS = Path("marks")  # in the group's folder, where hooks run


async def mark(given: dict[str, Any], tool_use_id: str | None, context: Any) -> dict[str, Any]:
    """Write down that the event happened."""
    print("a hook may print")
    with _MARKS.open("a") as marks:
        marks.write(json.dumps({"event": given["hook_event_name"], "tool": given.get("tool_name")}) + "\n")
    return {}


def forbid(given: dict[str, Any], tool_use_id: str | None, context: Any) -> dict[str, Any] | None:
    """Deny a command that says so. A plain function."""
    if "forbidden" not in given["tool_input"].get("command", ""):
        return None
    return {
        "hookSpecificOutput": {
            "hookEventName": "PreToolUse",
            "permissionDecision": "deny",
            "permissionDecisionReason": "the sample hook forbids it",
        }
    }


async def raises(given: dict[str, Any], tool_use_id: str | None, context: Any) -> dict[str, Any]:
    """Fail."""
    raise RuntimeError("the sample hook is broken")


async def hangs(given: dict[str, Any], tool_use_id: str | None, context: Any) -> dict[str, Any]:
    """Block everything in its process."""
    time.sleep(1000)
    return {}


def dies(given: dict[str, Any], tool_use_id: str | None, context: Any) -> dict[str, Any]:
    """Take its process with it."""
    os._exit(1)
