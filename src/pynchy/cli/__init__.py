"""The command line. Each command imports what it needs when it is called, so that each starts quickly.

On argparse, because the libraries that would read nicer take longer to import than a list of plugins may take.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pynchy.types import GROUP_SETTINGS

Action = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """No abbreviated options: they would break when another one is added."""

    def __init__(self, **given: object) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, **given)  # pyright: ignore[reportArgumentType]


class _Help(argparse.HelpFormatter):
    """Commands and options in one column each, however long a name is."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=100)


def main() -> None:
    """The entry point of `pynchy`."""
    try:
        try:
            code = _main(sys.argv[1:])
        finally:
            if sys.stdout:
                sys.stdout.flush()
        sys.exit(code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # nobody reads what is printed; Python would say so once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)


def _main(words: list[str]) -> int:
    if words and not words[0].startswith("-") and words[0] not in _COMMANDS:
        from pynchy.cli import plugin_commands

        if points := plugin_commands.installed_commands().get(words[0]):
            return plugin_commands.call(words[0], points, words[1:])
    parser = _parser(with_plugins=words in ([], ["--help"], ["-h"]))
    arguments = parser.parse_args(words)
    if getattr(arguments, "safe_mode", False):
        os.environ["PYNCHY_SAFE_MODE"] = "1"
    if not hasattr(arguments, "action"):
        arguments.parser.print_help()
        return 2
    return arguments.action(arguments)


# --- what the commands do -----------------------------------------------------------------------------------


def _run(given: argparse.Namespace) -> int:
    from pynchy.cli import talk

    return talk.run_service(given.demo)


def _chat(given: argparse.Namespace) -> int:
    from pynchy.cli import talk

    return talk.chat(given.group, given.demo)


def _ask(given: argparse.Namespace) -> int:
    from pynchy.cli import talk

    return talk.ask(given.text, given.group, given.demo, given.timeout)


def _doctor(given: argparse.Namespace) -> int:
    from pynchy.cli import diagnosis

    return diagnosis.doctor()


def _plugins_list(given: argparse.Namespace) -> int:
    from pynchy.cli import plugin_list

    return plugin_list.show_all(given.json)


def _plugins_show(given: argparse.Namespace) -> int:
    from pynchy.cli import plugin_list

    return plugin_list.show_one(given.name)


def _plugins_check(given: argparse.Namespace) -> int:
    from pynchy.cli import plugin_check

    return plugin_check.check(given.target)


def _plugins_why(given: argparse.Namespace) -> int:
    from pynchy.cli import plugin_list

    return plugin_list.why()


def _status(given: argparse.Namespace) -> int:
    from pynchy.cli import service_calls

    return service_calls.status()


def _stop(given: argparse.Namespace) -> int:
    from pynchy.cli import service_calls

    return service_calls.stop(given.group)


def _clear(given: argparse.Namespace) -> int:
    from pynchy.cli import service_calls

    return service_calls.clear(given.group)


def _tasks_list(given: argparse.Namespace) -> int:
    from pynchy.cli import service_calls

    return service_calls.tasks(given.group)


def _task(given: argparse.Namespace) -> int:
    from pynchy.cli import service_calls

    return service_calls.task(given.what, given.number)


def _groups_list(given: argparse.Namespace) -> int:
    from pynchy.cli import groups

    return groups.show()


def _groups_add(given: argparse.Namespace) -> int:
    from pynchy.cli import groups

    return groups.add(given.jid, given.folder, _wishes(given))


def _groups_set(given: argparse.Namespace) -> int:
    from pynchy.cli import groups

    return groups.change(given.folder, _wishes(given))


def _groups_people(given: argparse.Namespace) -> int:
    from pynchy.cli import groups

    return groups.people(given.folder)


def _groups_remove(given: argparse.Namespace) -> int:
    from pynchy.cli import groups

    return groups.remove(given.folder)


def _wishes(given: argparse.Namespace) -> dict[str, str]:
    return {name: text for name in GROUP_SETTINGS if (text := getattr(given, name)) is not None}


def _usage(given: argparse.Namespace) -> int:
    from pynchy.cli import usage

    return usage.show(given.days, given.group, given.json)


def _history_export(given: argparse.Namespace) -> int:
    from pynchy.cli import history

    return history.export(given.group, given.output)


def _history_search(given: argparse.Namespace) -> int:
    from pynchy.cli import history

    return history.search(" ".join(given.words), given.group, given.most)


def _logs(given: argparse.Namespace) -> int:
    from pynchy.cli import logs

    return logs.show(given.group, given.lines, given.follow)


def _service(given: argparse.Namespace) -> int:
    from pynchy.cli import service

    return getattr(service, given.what)()


def _backup(given: argparse.Namespace) -> int:
    from pynchy.cli import backup

    return backup.backup(given.file)


def _restore(given: argparse.Namespace) -> int:
    from pynchy.cli import backup

    return backup.restore(given.file)


def _smoke(given: argparse.Namespace) -> int:
    from pynchy.cli import smoke

    return smoke.smoke(given.demo)


def _image_build(given: argparse.Namespace) -> int:
    from pynchy.cli import image

    return image.build(given.if_missing, given.runtime)


# --- how they are called ------------------------------------------------------------------------------------

_COMMANDS = {
    "run": "Run the service until it is stopped (Ctrl-C).",
    "chat": "Chat in the terminal; starts a service for as long where none runs.",
    "ask": "Send one message and print the answer.",
    "status": "How the running service is: agents at work, and where they connect to.",
    "stop": "End what a group's agents do.",
    "clear": "Let a group's next message begin a new conversation.",
    "tasks": "What is scheduled.",
    "doctor": "Say what is wrong, and the command that mends it.",
    "plugins": "The installed plugins.",
    "groups": "The chats that are answered, and what each may have.",
    "history": "What was said.",
    "usage": "What the model has taken and cost.",
    "image": "What agents run from.",
    "service": "Have the system run the service.",
    "logs": "What the service has logged.",
    "backup": "Write everything that is kept into one file, also while the service runs.",
    "restore": "Make a new home of a backup.",
    "smoke": "Send one message through everything, to see that all of it works.",
}


def _parser(with_plugins: bool) -> argparse.ArgumentParser:
    parser = _Parser(prog="pynchy", description="A personal Claude assistant that grows by plugins.")
    parser.set_defaults(parser=parser)
    commands = _Commands(parser, dict(_COMMANDS))
    for name, action in (("run", _run), ("chat", _chat), ("ask", _ask)):
        one = commands.add(name, action)
        one.add_argument("--demo", action="store_true", help="let the scripted demo model answer; no language model")
        _safe_mode(one)
        if name != "run":
            one.add_argument("--group", default="main", help="the group to talk to (main)")
        if name == "ask":
            one.add_argument("text", help="the message")
            one.add_argument("--timeout", type=_seconds, default=600, help="seconds to wait for the answer (600)")
    commands.add("status", _status)
    for name, action in (("stop", _stop), ("clear", _clear)):
        commands.add(name, action).add_argument("group", help="the group's folder")
    _tasks(commands)
    commands.add("doctor", _doctor)
    _plugins(commands)
    _groups(commands)
    history = commands.group(
        "history",
        {
            "export": "Write a group's conversations as Markdown.",
            "search": "Find what was said, by its words, newest first.",
        },
    )
    export = history.add("export", _history_export)
    export.add_argument("group", help="the group's folder")
    export.add_argument("--output", "-o", type=Path, help="a file, instead of stdout")
    search = history.add("search", _history_search)
    search.add_argument("words", nargs="+", metavar="WORD", help="words that must all occur; the last may go on")
    search.add_argument("--group", help="in the group of this folder alone")
    search.add_argument(
        "--most", type=_number(1, 1000, "number of results from 1 to 1000"), default=20, help="so many results (20)"
    )
    usage = commands.add("usage", _usage)
    usage.add_argument(
        "--days",
        type=_number(1, 36500, "number of days from 1 to 36500"),
        default=7,
        help="so many days, today included (7)",
    )
    usage.add_argument("--group", help="of the group in this folder alone")
    usage.add_argument("--json", action="store_true", help="as a JSON object")
    image = commands.group("image", {"build": "Build the agent's image (or, for bubblewrap, fill its environment)."})
    build = image.add("build", _image_build)
    build.add_argument("--if-missing", action="store_true", help="do nothing where it is there already")
    build.add_argument("--runtime", help="for this runtime instead of the chosen one")
    _operations(commands)
    if with_plugins:
        from pynchy.cli import plugin_commands

        for name, points in sorted(plugin_commands.usable_commands().items()):
            if name not in _COMMANDS:
                commands.mention(name, f"From the plugin {plugin_commands.owners(points)}.")
    return parser


def _plugins(commands: _Commands) -> None:
    plugins = commands.group(
        "plugins",
        {
            "list": "List every installed plugin, and why one does not work.",
            "show": "Say what a plugin offers, where each part runs, and what it may do.",
            "check": "Load a plugin and try every part of it where it will run.",
            "why": "Say which container runtime is used, and why not another.",
        },
    )
    listing = plugins.add("list", _plugins_list)
    listing.add_argument("--json", action="store_true", help="as a JSON array with every detail")
    _safe_mode(listing)
    plugins.add("show", _plugins_show).add_argument("name", help="a plugin")
    plugins.add("check", _plugins_check).add_argument("target", help="an installed plugin, or a project's directory")
    plugins.add("why", _plugins_why)


def _tasks(commands: _Commands) -> None:
    tasks = commands.group(
        "tasks",
        {
            "list": "List the scheduled tasks, and when each is next due.",
            "runs": "Say what became of a task's latest runs.",
            "pause": "Let a task rest.",
            "resume": "Let a paused task go on.",
            "cancel": "End a task for good.",
        },
    )
    tasks.add("list", _tasks_list).add_argument("--group", help="of the group in this folder alone")
    for what in ("runs", "pause", "resume", "cancel"):
        one = tasks.add(what, _task)
        one.set_defaults(what=what)
        one.add_argument(
            "number",
            type=_number(1, 10**15 - 1, "number from 1 on"),
            help="the task's number, as `pynchy tasks list` has it",
        )


def _groups(commands: _Commands) -> None:
    groups = commands.group(
        "groups",
        {
            "list": "List the groups, and the chats that could become one.",
            "add": "Answer a chat from now on.",
            "set": "Say what a group's agent has and may do.",
            "people": "List who has written in a group's chat, by their ids.",
            "remove": "Answer a chat no longer; its folder and history are kept.",
        },
    )
    for name, action in (("people", _groups_people), ("remove", _groups_remove)):
        groups.add(name, action).add_argument("folder", help="the group's folder")
    groups.add("list", _groups_list)
    add = groups.add("add", _groups_add)
    add.add_argument("jid", help="the chat's address, as `pynchy groups list` shows it")
    add.add_argument("folder", help="the group's folder, a name of its own")
    change = groups.add("set", _groups_set)
    change.add_argument("folder", help="the group's folder")
    for command in (add, change):
        for name, meaning in GROUP_SETTINGS.items():
            command.add_argument(f"--{name.replace('_', '-')}", help=meaning)


def _operations(commands: _Commands) -> None:
    service = commands.group(
        "service",
        {
            "install": "Start it now and with each log-in; as root, with the machine.",
            "uninstall": "Stop it, and start it no more.",
            "restart": "End it and start it again, with the plugins and the version that are installed now.",
            "status": "Whether it is installed and runs, since when, and what it last logged.",
        },
    )
    for what in ("install", "uninstall", "restart", "status"):
        service.add(what, _service).set_defaults(what=what)
    logs = commands.add("logs", _logs)
    logs.add_argument("group", nargs="?", help="of the group in this folder alone")
    logs.add_argument(
        "--lines", "-n", type=_number(0, 10**12, "number of lines"), default=50, help="so many of the last lines (50)"
    )
    logs.add_argument("--follow", "-f", action="store_true", help="and those to come, until Ctrl-C")
    commands.add("backup", _backup).add_argument("file", help="a new file, such as pynchy.tar.gz; `-` for stdout")
    commands.add("restore", _restore).add_argument("file", help="a backup; `-` for stdin")
    smoke = commands.add("smoke", _smoke)
    smoke.add_argument("--demo", action="store_true", help="let the scripted demo model answer; nothing is spent")


def _safe_mode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--safe-mode", action="store_true", help="without plugins that are not Pynchy's own")


class _Commands:
    """The commands of one parser, each with its sentence for `--help`."""

    def __init__(self, parser: argparse.ArgumentParser, sentences: dict[str, str]) -> None:
        self._sentences = sentences
        self._adding = parser.add_subparsers(title="Commands", metavar="COMMAND", parser_class=_Parser)

    def add(self, name: str, action: Action | None) -> argparse.ArgumentParser:
        """A command, to be given its arguments."""
        sentence = self._sentences[name]
        one = self._adding.add_parser(name, help=sentence, description=sentence)
        one.set_defaults(parser=one, **({"action": action} if action else {}))
        return one

    def group(self, name: str, sentences: dict[str, str]) -> _Commands:
        """A command that has commands itself."""
        return _Commands(self.add(name, None), sentences)

    def mention(self, name: str, sentence: str) -> None:
        """A command that is carried out elsewhere."""
        self._adding.add_parser(name, help=sentence)


def _number(least: int, most: int, what: str) -> Callable[[str], int]:
    """A parser of whole numbers."""

    def parse(text: str) -> int:
        if not text.isdecimal() or len(text) > len(str(most)) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no {what}")
        return int(text)

    return parse


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.1 <= seconds < 10**9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.1 on")
    return seconds
