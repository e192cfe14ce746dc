"""Reach the host: its loopback under all its names, its other addresses, its abstract sockets."""

import json
import os
import socket
import sys
import urllib.error
import urllib.request

given = json.loads(sys.argv[1])
HOSTS = ("127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "127.1")
HOSTS += ("172.17.0.1", "10.0.2.2", "169.254.169.254", "metadata.google.internal", "host.docker.internal")
HOSTS += ("gateway.docker.internal", "host.containers.internal", *given["addresses"])

proxy = os.environ["http_proxy"].partition("//")[2]
through = []
for host in HOSTS:
    for by_proxy in (False, True):
        request = urllib.request.Request(f"http://{host}:{given['port']}/")
        if by_proxy:  # past the variable that keeps loopback from it: the host must refuse by itself
            request.set_proxy(proxy, "http")
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=3).read()
            through.append([host, by_proxy])
        except urllib.error.HTTPError as error:
            if error.code not in (400, 403, 502, 504):
                through.append([host, error.code])
        except OSError:
            pass
try:
    socket.socket(socket.AF_UNIX).connect("\0" + given["abstract"])
    through.append("an abstract socket")
except OSError:
    pass
for family in (socket.AF_PACKET, socket.AF_INET):
    try:
        socket.socket(family, socket.SOCK_RAW, 1)
        through.append("a raw socket")
    except OSError:
        pass
interfaces = os.listdir("/sys/class/net") if os.path.exists("/sys/class/net") else ["lo"]
print(json.dumps([through, interfaces]))
