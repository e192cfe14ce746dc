"""The command line. Each command imports what it needs when it is called, so that `--help` is quick."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

app = typer.Typer(
    name="pynchy",
    help="A personal Claude assistant that grows by plugins.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
plugins_app = typer.Typer(help="The installed plugins.", no_args_is_help=True, rich_markup_mode=None)
image_app = typer.Typer(help="What agents run from.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(plugins_app, name="plugins")
app.add_typer(image_app, name="image")

Demo = Annotated[bool, typer.Option("--demo", help="Let the scripted demo model answer; it is no language model.")]
GroupName = Annotated[str, typer.Option("--group", help="The group to talk to.")]


@app.command()
def run(demo: Demo = False) -> None:
    """Run the service until it is stopped (Ctrl-C)."""
    from pynchy.cli import talk

    _end(talk.run_service(demo))


@app.command()
def chat(demo: Demo = False, group: GroupName = "main") -> None:
    """Chat in the terminal; starts a service for as long where none runs."""
    from pynchy.cli import talk

    _end(talk.chat(group, demo))


@app.command()
def ask(
    text: Annotated[str, typer.Argument(help="The message.")],
    demo: Demo = False,
    group: GroupName = "main",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.", min=0.1)] = 600,
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
) -> None:
    """List every installed plugin, and why one does not work."""
    from pynchy.cli import plugin_list

    _end(plugin_list.show(as_json))


@image_app.command("build")
def image_build(
    if_missing: Annotated[bool, typer.Option("--if-missing", help="Do nothing where it is there already.")] = False,
    runtime: Annotated[str | None, typer.Option(help="For this runtime instead of the chosen one.")] = None,
) -> None:
    """Build the agent's image (or, for bubblewrap, fill its environment)."""
    from pynchy.cli import image

    _end(image.build(if_missing, runtime))


def _end(code: int) -> None:
    raise typer.Exit(code)


def main() -> None:
    """The entry point of `pynchy`."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
