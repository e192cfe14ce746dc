"""Make processes until no more can be made, and write down how many; they end with this one."""

import os
import time

made = []
file = os.open("/workspace/group/made", os.O_WRONLY | os.O_CREAT, 0o644)
try:
    while len(made) < 5000:
        pid = os.fork()
        if not pid:
            time.sleep(60)
            os._exit(0)
        made.append(pid)
        # After each, for the agent may be what ends first.
        os.pwrite(file, str(len(made)).encode(), 0)
except OSError:
    pass
for pid in made:
    os.kill(pid, 9)
