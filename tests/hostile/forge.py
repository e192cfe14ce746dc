"""Find a way to the wire: open what other processes have open, or look into their memory."""

import json
import os

FRAME = b'{"type":"request","id":1,"name":"send_message","bytes":17}\n{"text":"forged"}'

touched = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        command = open(f"/proc/{pid}/cmdline").read().split("\0")
    except OSError:
        continue
    # Its own shells are its own, and so is the process that calls its tools: neither has the wire.
    if int(pid) == os.getpid() or ("/opt/pynchy" not in command and pid != "1"):
        continue
    for number in range(64):
        for flags in (os.O_WRONLY | os.O_NONBLOCK, os.O_RDONLY | os.O_NONBLOCK):
            try:
                descriptor = os.open(f"/proc/{pid}/fd/{number}", flags)
            except OSError:
                continue
            touched.append([pid, command, number, flags])
            if flags & os.O_WRONLY:
                os.write(descriptor, FRAME)
    for name in ("mem", "environ"):
        try:
            with open(f"/proc/{pid}/{name}", "rb") as file:
                file.read(0 if name == "mem" else 1)
            touched.append([pid, command, name])
        except OSError:
            pass
print(json.dumps(touched))
