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
commands = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        commands.append(open(f"/proc/{pid}/cmdline").read())
    except OSError:
        continue  # it has ended meanwhile
print(json.dumps([len(seen), [one for one in commands if one.startswith("sleep")]]))
