"""Make processes until no more can be made, and write down how many; they end with this one."""

import os
import time

made = []
try:
    while len(made) < 5000:
        pid = os.fork()
        if not pid:
            time.sleep(60)
            os._exit(0)
        made.append(pid)
except OSError:
    pass
with open("/workspace/group/made", "w") as file:
    file.write(str(len(made)))
for pid in made:
    os.kill(pid, 9)
