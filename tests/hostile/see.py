"""See and end other processes: those of the host, whatever their number is in here."""

import json
import os
import signal
import sys

outsider = json.loads(sys.argv[1])
seen = []
for pid in range(1, 70_000):
    try:
        os.kill(pid, 0)
        seen.append(pid)
    except OSError:
        pass
try:
    os.kill(outsider, signal.SIGKILL)
except OSError:
    pass
commands = [open(f"/proc/{one}/cmdline").read() for one in os.listdir("/proc") if one.isdigit()]
print(json.dumps([len(seen), [one for one in commands if one.startswith("sleep")]]))
