"""The floor: in the very container an agent has, the bare SDK answers one query, then some more.

Mounted in the place of the runner. Prints the seconds of each further query as JSON, after a line for the first.
"""

import asyncio
import json
import os
import sys
import time

from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient


async def main() -> None:
    """Ask once, and then as often as BENCH_QUERIES says."""
    options = ClaudeAgentOptions(
        cwd="/workspace/group",
        system_prompt={"type": "preset", "preset": "claude_code"},
        setting_sources=[],
        permission_mode="bypassPermissions",
        mcp_servers=json.loads(os.environ.get("BENCH_SERVERS", "{}")),
        env={
            "ANTHROPIC_BASE_URL": os.environ["BENCH_MODEL"],
            "ANTHROPIC_API_KEY": "none",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "ENABLE_TOOL_SEARCH": "false",
        },
    )
    client = ClaudeSDKClient(options)
    await client.connect()
    await ask(client)
    print("answered", flush=True)
    print(json.dumps([await ask(client) for _ in range(int(os.environ["BENCH_QUERIES"]))]), flush=True)
    os._exit(0)


async def ask(client: ClaudeSDKClient) -> float:
    """One query; returns the seconds it took."""
    began = time.perf_counter()
    await client.query("hello")
    async for _ in client.receive_response():
        pass
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
