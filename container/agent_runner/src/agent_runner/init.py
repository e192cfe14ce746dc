"""What a container's first process has to do: end with the agent, and clear away what others leave behind.

Not the engine's `--init`: that one runs as the agent's user with the wire as its stdin and stdout, and whoever runs as
that user could write into them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable


def become_init(pipes: Iterable[int]) -> None:
    """Where this is process 1, go on in a child, and stay behind as its parent, without the wire.

    The kernel ends everything that is left in the container when process 1 does.
    """
    if os.getpid() != 1:
        return
    agent = os.fork()  # undumpable, as its parent is
    if not agent:
        return
    for descriptor in pipes:
        os.close(descriptor)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.kill(agent, signal.SIGKILL))
    while True:
        pid, status = os.wait()
        if pid == agent:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
