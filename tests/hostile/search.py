"""Look for secrets wherever something can be read."""

import json
import os
import sys

given = json.loads(sys.argv[1])
# In halves, for this program must not be what it finds.
wanted = [left + right for left, right in given["halves"]]
found = []


def look(path):
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            data = file.read(2_000_000) or b""
    except OSError:
        return
    found.extend([path, word] for word in wanted if word.encode() in data)


for top, directories, names in os.walk("/"):
    programs = ("/proc", "/sys", "/usr", "/opt/agent-env")
    directories[:] = [one for one in directories if os.path.join(top, one) not in programs]
    for name in names:
        look(os.path.join(top, name))
for pid in filter(str.isdigit, os.listdir("/proc")):
    for name in ("environ", "cmdline", "stat", "status", "mountinfo"):
        look(f"/proc/{pid}/{name}")
    for link in ("root", "cwd"):
        for path in given["paths"]:
            look(f"/proc/{pid}/{link}{path}")
for path in given["paths"]:
    look(path)
    for climb in range(12):
        look("/workspace/group/" + "../" * climb + path)
found.extend(["environment", word] for word in wanted if word in str(dict(os.environ)))
around = [sorted(os.listdir("/workspace")), os.path.exists("/var/run/docker.sock"), os.listdir("/home")]
print(json.dumps([found, around]))
