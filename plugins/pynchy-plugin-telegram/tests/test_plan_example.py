"""The composite plugin of Pynchy's plan: a package of its own around this channel, installed, found and at work."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import uv
from bot_api import BotApi, until

import pynchy_plugin_telegram

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "pynchy-plugin-telegram"
version = "99"

[project.entry-points."pynchy.plugins"]
telegram = "pynchy_plugin_telegram:TelegramPlugin"

[tool.hatch.build.targets.wheel]
packages = ["src/pynchy_plugin_telegram"]
"""

# The class is the plan's, with `ctx=ctx` for its `...`.
INIT = """
import os
from pathlib import Path

from pynchy.plugin import ChannelPlugin, McpPlugin, McpServerSpec


def TelegramChannel(**given):
    from pynchy_plugin_telegram.channel import TelegramChannel

    return TelegramChannel(**given)


class TelegramPlugin(ChannelPlugin, McpPlugin):
    name = "telegram"

    def create_channel(self, ctx):
        return TelegramChannel(bot_token=os.environ["TELEGRAM_BOT_TOKEN"], ctx=ctx)

    def mcp_server_spec(self):
        return McpServerSpec(
            name="telegram",
            command="python",
            args=["-m", "pynchy_plugin_telegram.mcp"],
            env={},
            host_source=Path(__file__).parent,
        )
"""

MCP = '''
from mcp.server import MCPServer

server = MCPServer("telegram")


@server.tool(structured_output=False)
def count_letters(text: str) -> str:
    """Count letters."""
    return str(len(text))


if __name__ == "__main__":
    server.run()
'''

USER = """
import asyncio, json, os, sys
from pathlib import Path
from mcp import Client, StdioServerParameters
from pynchy.agent_plugins import server_mounts
from pynchy.channel_host import create_channel
from pynchy.plugin import discover_plugins

home = Path(os.environ["PYNCHY_HOME"])
stored = asyncio.Queue()

class Behind:
    async def on_message(self, message):
        await stored.put(message)
    async def on_chat_metadata(self, jid, name): ...
    def registered_groups(self):
        return {}
    send_text = wake_outbox = None

async def main():
    registry = discover_plugins()
    record = next(one for one in registry.records if one.entry_point == "telegram")
    found = {"state": record.state.value, "version": record.version, "types": record.types}
    channel = create_channel(registry, registry.channels[0], home, Behind())
    await channel.connect()
    message = await stored.get()
    await channel.send_message(message.chat_jid, f"You said **{message.content}**")
    await channel.disconnect()
    spec = next(plugin for plugin in registry.mcp_servers if plugin.name == "telegram").mcp_server_spec()
    mount = server_mounts(spec, {})[0]
    inside = home / mount.container_path.lstrip("/")
    inside.parent.mkdir(parents=True)
    inside.symlink_to(mount.host_path)
    paths = os.pathsep.join((str(inside.parent), os.environ["PYNCHY_SOURCES"]))
    command = StdioServerParameters(command=sys.executable, args=spec.args, env={"PYTHONPATH": paths})
    async with Client(command) as client:
        found["answer"] = (await client.call_tool("count_letters", {"text": "four"})).content[0].text
    print(json.dumps(found))

asyncio.run(main())
"""


def test_the_plans_example_loads_and_works_unchanged(tmp_path: Path) -> None:
    package = tmp_path / "project/src/pynchy_plugin_telegram"
    ours = Path(pynchy_plugin_telegram.__file__).parent
    shutil.copytree(ours, package, ignore=shutil.ignore_patterns("__pycache__", "plugin.py", "tools.py", "__init__.py"))
    (package / "__init__.py").write_text(INIT)
    (package / "mcp.py").write_text(MCP)
    (tmp_path / "project/pyproject.toml").write_text(PYPROJECT)
    site = tmp_path / "site"
    options = [
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--offline",
        "--no-config",
        "--python",
        sys.executable,
    ]
    subprocess.run(
        [uv.find_uv_bin(), "pip", "install", "--quiet", *options, "--target", str(site), str(tmp_path / "project")],
        check=True,
        timeout=100,
    )

    async def body() -> dict[str, object]:
        async with BotApi() as api:
            api.write(5, "hello")
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                USER,
                stdout=subprocess.PIPE,
                env={
                    **os.environ,
                    "PYTHONPATH": str(site),
                    "PYNCHY_SOURCES": os.pathsep.join(path for path in sys.path if path),
                    "TELEGRAM_BOT_TOKEN": api.token,
                    "PYNCHY_TELEGRAM_API": api.url,
                },
            )
            output, _ = await process.communicate()
            await until(lambda: api.sent)
            assert [(one.chat, one.text) for one in api.sent] == [(5, "You said hello")]
            return json.loads(output)

    found = asyncio.run(body())
    assert found == {"state": "ready", "version": "99", "types": ["channel", "mcp"], "answer": "4"}
