"""A figure beside its floor, and the table of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A measured median and its floor, both in `unit`; `target` is the ratio that is aimed at, if any."""

    what: str
    value: float
    floor: float
    floor_is: str
    target: float | None = None
    unit: str = "s"

    @property
    def ratio(self) -> float:
        """How many times the floor."""
        return self.value / self.floor

    @property
    def missed(self) -> bool:
        """Whether the target is not reached."""
        return self.target is not None and self.ratio > self.target


def markdown(rows: Iterable[Row]) -> str:
    """The rows as a table."""
    lines = ["| what | measured | floor | ratio | target | the floor is |", "|---|---|---|---|---|---|"]
    for row in rows:
        target = f"{row.target:.1f}{' MISSED' if row.missed else ''}" if row.target else "-"
        lines.append(
            f"| {row.what} | {row.value:.3f} {row.unit} | {row.floor:.3f} {row.unit} "
            f"| {row.ratio:.2f} | {target} | {row.floor_is} |"
        )
    return "\n".join(lines)
