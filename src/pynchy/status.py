"""How the service is, in lines of text: for `/status` in a chat and `pynchy status`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from pynchy.destinations import Destination
from pynchy.types import Group

_MOST_NAMES = 10


@dataclass(frozen=True, slots=True)
class Status:
    """What is looked at: the groups it concerns, those whose agents run or wait, and what is not as it should be.

    `failure` is the chat of the last message that was not answered, when it was sent, and why not; `costs` are lines
    of what was spent, `tasks` the numbers of those at work.
    """

    runtime: str
    groups: Sequence[Group]
    running: frozenset[str]
    waiting: frozenset[str]
    most: int
    destinations: Sequence[Destination]
    troubles: Sequence[str] = ()
    failure: tuple[str, datetime, str] | None = None
    costs: Sequence[str] = ()
    tasks: Sequence[int] = ()

    def lines(self) -> list[str]:
        """One line a subject, and one for each group's network."""
        names = {group.jid: group.folder for group in self.groups}
        running = sorted(names[jid] for jid in self.running if jid in names)
        waiting = sorted(names[jid] for jid in self.waiting - self.running if jid in names)
        lines = [f"Agents: {_listed(running) or 'none'} (at most {self.most} at once), in {self.runtime}"]
        if waiting:
            lines.append(f"Waiting: {_listed(waiting)}")
        if self.tasks and len(self.groups) > 1:
            lines.append(f"Tasks at work: {_listed([str(number) for number in self.tasks])}")
        lines += self.costs
        if self.failure:
            jid, at, why = self.failure
            of = f" in {names[jid]}" if len(self.groups) > 1 and jid in names else ""
            lines.append(f"Last message without an answer{of}, {at.astimezone():%Y-%m-%d %H:%M}: {why}")
        lines += [line for group in self.groups for line in self._network(group)]
        return [*lines, *(f"Plugin {trouble}" for trouble in self.troubles)]

    def _network(self, group: Group) -> Iterable[str]:
        of_this = f" of {group.folder}" if len(self.groups) > 1 else ""
        yield f"Network{of_this}: {group.network}"
        for one in self.destinations:
            if one.folder == group.folder:
                yield f"  {_place(one)}: {', '.join(_counts(one))}"


def _place(one: Destination) -> str:
    host = f"[{one.host}]" if ":" in one.host else one.host
    return f"{host}:{one.port}" if one.port else host


def _counts(one: Destination) -> Iterable[str]:
    if one.connections:
        times = f"{one.connections} connection{'' if one.connections == 1 else 's'}"
        yield f"{times} today, {_size(one.sent)} sent, {_size(one.received)} received"
    if one.refusals:
        yield f"{one.refusals} refused" + (f" ({one.refused})" if one.refused else "")


def _size(size: int) -> str:
    for unit, bytes_each in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= bytes_each:
            return f"{size / bytes_each:.1f} {unit}"
    return f"{size} bytes"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
