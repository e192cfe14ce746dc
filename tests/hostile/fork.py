"""Make processes until no more can be made; they end with this one."""

import json
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
for pid in made:
    os.kill(pid, 9)
print(json.dumps(len(made)))
