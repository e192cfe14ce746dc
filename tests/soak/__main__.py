"""The long random runs: `make soak`. Prints what was done and what came of it; fails where anything was lost."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from pynchy.config import MODEL_VARIABLES
from soak.runs import Report, everything_fails, hosts_killed

MESSAGES, KILLS, GROUPS, TROUBLES = 2000, 200, 20, 200


def main(only: list[str]) -> int:
    """Run what is asked for, or everything."""
    for name in MODEL_VARIABLES:
        os.environ.pop(name, None)
    logging.disable(logging.INFO)
    seed = int(os.environ.get("PYNCHY_SOAK_SEED", time.time_ns() % 10**6))
    print(f"seed {seed} (PYNCHY_SOAK_SEED repeats it)", flush=True)
    failed = False
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        for runtime in ("bubblewrap", "docker"):
            for name, run in (("hosts", hosts_killed), ("everything", everything_fails)):
                if only and f"{runtime}-{name}" not in only:
                    continue
                home = Path(directory, f"{runtime}-{name}", "home")
                number = KILLS if run is hosts_killed else TROUBLES
                failed |= _report(f"{runtime}-{name}", run(home, runtime, MESSAGES, number, GROUPS, seed))
    return int(failed)


def _report(name: str, run: Coroutine[Any, Any, Report]) -> bool:
    began = time.monotonic()
    report = asyncio.run(run)
    account = report.account
    print(f"{name}: {time.monotonic() - began:.0f} s, {report.starts} starts, {report.kills} host kills", flush=True)
    if report.troubles:
        print("  troubles: " + ", ".join(f"{count} {what}" for what, count in report.troubles.items()))
    print(
        f"  {account.messages} messages: {account.answered} answered, {account.failed} with a notice instead, "
        f"{len(account.lost)} lost, {account.repeated} texts sent twice, {len(account.wrong)} wrong"
    )
    for reason, count in account.reasons.most_common():
        print(f"    {count} x {reason}")
    for line in [*account.lost, *account.wrong][:20]:
        print(f"    {line}")
    # A text may be repeated only where the host died between sending it and writing that down.
    return bool(account.lost or account.wrong or account.repeated > report.kills)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
