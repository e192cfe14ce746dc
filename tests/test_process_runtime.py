"""scratch"""
from __future__ import annotations
import json, os
import pytest
from support import Chat, StartService, missing
from pynchy.plugin import RuntimeUnavailable
from pynchy.testing import ProcessRuntime
pytestmark = pytest.mark.anyio

async def test_x(start_service: StartService) -> None:
    runtime = ProcessRuntime()
    async with start_service(runtime) as service:
        chat = Chat(service)
        cmd = "python3 -c 'import time; time.sleep(12345)' >/dev/null 2>&1 & ps -A -o pid,ppid,pgid,sid,args | grep -E '12345|claude|opt/pynchy|process_runtime' | cut -c1-150; env; pwd; ls -la .."
        print(await chat.ask(f"/tool Bash {json.dumps({'command': cmd})}"))
        print(runtime.list_running_containers())
        runtime.stop(runtime.list_running_containers()[0])
        os.system("ps -A -o pid,ppid,pgid,sid,args | grep -E '12345|claude|opt/pynchy|process_runtime' | cut -c1-150")
    print("after")
    os.system("ps -A -o pid,ppid,pgid,sid,args | grep -E '12345|claude|opt/pynchy|process_runtime' | cut -c1-150")
