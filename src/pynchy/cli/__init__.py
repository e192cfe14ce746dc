"""The command line. Each command imports what it needs when it is called, so that `--help` is quick."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class _WithPluginCommands(TyperGroup):
    """Our own commands, and those that plugins bring; none of ours can be taken by a plugin."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by its name; a plugin's is looked for only where we have none."""
        if (own := super().get_command(ctx, cmd_name)) is not None:
            return own
        from pynchy.cli import plugin_commands

        points = plugin_commands.installed_commands().get(cmd_name)
        return _plugin_command(cmd_name, points) if points else None

    def list_commands(self, ctx: Any) -> list[str]:
        """The names for `--help`."""
        from pynchy.cli import plugin_commands

        own = super().list_commands(ctx)
        return [*own, *sorted(set(plugin_commands.installed_commands()) - set(own))]


app = typer.Typer(
    cls=_WithPluginCommands,
    name="pynchy",
    help="A personal Claude assistant that grows by plugins.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
plugins_app = typer.Typer(help="The installed plugins.", no_args_is_help=True, rich_markup_mode=None)
groups_app = typer.Typer(help="The chats that are answered.", no_args_is_help=True, rich_markup_mode=None)
history_app = typer.Typer(help="What was said.", no_args_is_help=True, rich_markup_mode=None)
image_app = typer.Typer(help="What agents run from.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(plugins_app, name="plugins")
app.add_typer(groups_app, name="groups")
app.add_typer(history_app, name="history")
app.add_typer(image_app, name="image")


def _leave_plugins_out(chosen: bool) -> None:
    if chosen:
        os.environ["PYNCHY_SAFE_MODE"] = "1"


Demo = Annotated[bool, typer.Option("--demo", help="Let the scripted demo model answer; it is no language model.")]
SafeMode = Annotated[
    bool,
    typer.Option("--safe-mode", help="Without plugins that are not Pynchy's own.", callback=_leave_plugins_out),
]
GroupName = Annotated[str, typer.Option("--group", help="The group to talk to.")]


@app.command()
def run(demo: Demo = False, safe_mode: SafeMode = False) -> None:
    """Run the service until it is stopped (Ctrl-C)."""
    from pynchy.cli import talk

    _end(talk.run_service(demo))


@app.command()
def chat(demo: Demo = False, group: GroupName = "main", safe_mode: SafeMode = False) -> None:
    """Chat in the terminal; starts a service for as long where none runs."""
    from pynchy.cli import talk

    _end(talk.chat(group, demo))


@app.command()
def ask(
    text: Annotated[str, typer.Argument(help="The message.")],
    demo: Demo = False,
    group: GroupName = "main",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.", min=0.1)] = 600,
    safe_mode: SafeMode = False,
) -> None:
    """Send one message and print the answer."""
    from pynchy.cli import talk

    _end(talk.ask(text, group, demo, timeout))


@app.command()
def doctor() -> None:
    """Say what is wrong, and the command that mends it."""
    from pynchy.cli import diagnosis

    _end(diagnosis.doctor())


@plugins_app.command("list")
def plugins_list(
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON array with every detail.")] = False,
    safe_mode: SafeMode = False,
) -> None:
    """List every installed plugin, and why one does not work."""
    from pynchy.cli import plugin_list

    _end(plugin_list.show_all(as_json))


@plugins_app.command("show")
def plugins_show(name: Annotated[str, typer.Argument(help="A plugin.")]) -> None:
    """Say what a plugin offers, where each part runs, and what it may do."""
    from pynchy.cli import plugin_list

    _end(plugin_list.show_one(name))


@plugins_app.command("check")
def plugins_check(
    target: Annotated[str, typer.Argument(help="An installed plugin, or a project's directory.")],
) -> None:
    """Load a plugin and try every part of it where it will run."""
    from pynchy.cli import plugin_check

    _end(plugin_check.check(target))


@plugins_app.command("why")
def plugins_why() -> None:
    """Say which container runtime is used, and why not another."""
    from pynchy.cli import plugin_list

    _end(plugin_list.why())


Plugins = Annotated[str, typer.Option("--plugins", help="Names with commas between them, or `all`.")]


@groups_app.command("list")
def groups_list() -> None:
    """List the groups, and the chats that could become one."""
    from pynchy.cli import groups

    _end(groups.show())


@groups_app.command("add")
def groups_add(
    jid: Annotated[str, typer.Argument(help="The chat's address, as `pynchy groups list` shows it.")],
    folder: Annotated[str, typer.Argument(help="The group's folder, a name of its own.")],
    name: Annotated[str | None, typer.Option(help="What the chat is called.")] = None,
    plugins: Plugins = "all",
) -> None:
    """Answer a chat from now on."""
    from pynchy.cli import groups

    _end(groups.add(jid, folder, name, plugins))


@groups_app.command("plugins")
def groups_plugins(
    folder: Annotated[str, typer.Argument(help="The group's folder.")],
    plugins: Annotated[str, typer.Argument(help="Names with commas between them, `all`, or an empty text.")],
) -> None:
    """Say which plugins a group's agent has."""
    from pynchy.cli import groups

    _end(groups.set_plugins(folder, plugins))


@history_app.command("export")
def history_export(
    group: Annotated[str, typer.Argument(help="The group's folder.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file, instead of stdout.")] = None,
) -> None:
    """Write a group's conversations as Markdown."""
    from pynchy.cli import history

    _end(history.export(group, output))


@image_app.command("build")
def image_build(
    if_missing: Annotated[bool, typer.Option("--if-missing", help="Do nothing where it is there already.")] = False,
    runtime: Annotated[str | None, typer.Option(help="For this runtime instead of the chosen one.")] = None,
) -> None:
    """Build the agent's image (or, for bubblewrap, fill its environment)."""
    from pynchy.cli import image

    _end(image.build(if_missing, runtime))


def _plugin_command(name: str, points: list[Any]) -> Any:
    """A command that hands everything after its name to the plugin."""
    one = typer.Typer(add_completion=False, rich_markup_mode=None)
    everything = {"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False}

    @one.command(name, context_settings=everything, add_help_option=False, help="(from a plugin)")
    def run_plugin_command(ctx: typer.Context) -> None:
        from pynchy.cli import plugin_commands

        _end(plugin_commands.call(name, points, ctx.args))

    return typer.main.get_command(one)


def _end(code: int) -> None:
    raise typer.Exit(code)


def main() -> None:
    """The entry point of `pynchy`."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
