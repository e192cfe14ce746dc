"""Plant links and pipes where the host or the next start might follow or wait for them."""

import json
import os
import sys

given = json.loads(sys.argv[1])
targets = [given["family"], given["outside"], "../family", "/proc/1/root", "/etc/passwd"]
names = [".claude", "plugins", "skills", "attachments", ".mcp.json", "..data", "group"]
for number, name in enumerate(names):
    os.symlink(targets[number % len(targets)], name)
os.symlink(given["family"] + "/diary.txt", "CLAUDE.md")
os.mkfifo("pipe")
os.mkfifo("message-1.txt")
print(json.dumps("planted"))
