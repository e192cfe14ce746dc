"""Write into everything that is read-only, after trying to make it writable."""

import ctypes
import json
import os

READ_ONLY = ("/opt/pynchy", "/opt/agent-env", "/workspace/plugins", "/workspace/skills", "/workspace/hooks")
READ_ONLY += ("/workspace/attachments", "/usr", "/etc", "/", "/workspace", "/proc/sys/kernel")
OWN = ("/proc", "/sys", "/dev", "/tmp", "/home/agent", "/workspace/group", "/workspace/data", "/workspace/global")
MS_RDONLY, MS_REMOUNT, MS_BIND = 1, 32, 4096
MNT_DETACH = 2

libc = ctypes.CDLL(None, use_errno=True)
wrote = []


def attempt(action, path):
    try:
        action()
    except OSError:
        return
    wrote.append(path)


for top in READ_ONLY:
    for flags in (MS_REMOUNT, MS_REMOUNT | MS_BIND, MS_BIND):
        if libc.mount(b"none", top.encode(), None, flags, None) == 0:
            wrote.append(f"mounted {top}")
    if libc.umount2(top.encode(), MNT_DETACH) == 0:
        wrote.append(f"unmounted {top}")
    for number, (folder, directories, names) in enumerate(os.walk(top)):
        if folder.startswith(OWN) or number > 400:
            directories[:] = []
            continue
        attempt(lambda: open(os.path.join(folder, "planted"), "w"), folder)
        attempt(lambda: os.chmod(folder, 0o777), folder)
        attempt(lambda: os.mkdir(os.path.join(folder, "planted-d")), folder)
        attempt(lambda: os.symlink("/", os.path.join(folder, "planted-l")), folder)
        for name in names[:50]:
            path = os.path.join(folder, name)
            attempt(lambda: os.close(os.open(path, os.O_WRONLY)), path)
            attempt(lambda: os.unlink(path), path)
            attempt(lambda: os.rename(path, path + "x"), path)
attempt(lambda: open("/proc/sys/kernel/core_pattern", "w").write("|/bin/sh"), "core_pattern")
print(json.dumps(wrote[:20]))
