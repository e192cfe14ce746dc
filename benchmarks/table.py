"""A figure beside its floor, and the table of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A measured figure and its floor, both in `unit`.

    `target` is the ratio that is aimed at, if any: at most that, or where `more_is_better`, at least. `most` is
    a bound for the figure itself.
    """

    what: str
    value: float
    floor: float
    floor_is: str
    target: float | None = None
    unit: str = "s"
    more_is_better: bool = False
    most: float | None = None

    @property
    def ratio(self) -> float:
        """How many times the floor."""
        return self.value / self.floor

    @property
    def missed(self) -> bool:
        """Whether a target is not reached."""
        if self.most is not None and self.value > self.most:
            return True
        if self.target is None:
            return False
        return self.ratio < self.target if self.more_is_better else self.ratio > self.target

    @property
    def aim(self) -> str:
        """The targets in words."""
        words = []
        if self.target is not None:
            words.append(f"at {'least' if self.more_is_better else 'most'} {self.target:.1f}")
        if self.most is not None:
            words.append(f"at most {self.most:g} {self.unit}")
        return f"{', '.join(words) or '-'}{' MISSED' if self.missed else ''}"


def markdown(rows: Iterable[Row]) -> str:
    """The rows as a table."""
    lines = ["| what | measured | floor | ratio | target | the floor is |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row.what} | {_quantity(row.value, row.unit)} | {_quantity(row.floor, row.unit)} "
        f"| {row.ratio:.2f} | {row.aim} | {row.floor_is} |"
        for row in rows
    ]
    return "\n".join(lines)


def _quantity(value: float, unit: str) -> str:
    if isinstance(value, int):
        return f"{value:,} {unit}"
    if unit == "s" and value < 0.1:
        value, unit = 1000 * value, "ms"
    return f"{value:,.{0 if value >= 1000 else 1 if value >= 10 else 3}f} {unit}"
