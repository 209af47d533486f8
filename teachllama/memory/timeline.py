"""Named snapshots of this process's memory. `Timeline.plot` uses `teachllama.show` to draw them."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from teachllama.errors import ParameterError
from teachllama.memory.measuring import Usage, settle, usage


class Snapshot(NamedTuple):
    """A measurement and its name."""

    name: str
    usage: Usage


@dataclass(repr=False)
class Timeline:
    """Named snapshots of this process's memory, oldest first. Displays as a table, and plots as a staircase."""

    entries: list[Snapshot] = field(default_factory=list)

    def take(self, name: str, settled: bool = True) -> Usage:
        """Measures now and stores the result under `name`. Prints nothing.

        Args:
            name: the step's label, which says what has just happened.
            settled: call `settle()` first, so that the step shows only memory that is held. Use False to see memory as
                the program left it, including reference cycles that the collector has not freed yet.
        """
        if settled:
            settle()
        self.entries.append(Snapshot(name, usage()))
        return self.entries[-1].usage

    def __getitem__(self, name: str) -> Usage:
        """The last snapshot of that name. Raises ParameterError if there is none."""
        for entry in reversed(self.entries):
            if entry.name == name:
                return entry.usage
        raise ParameterError(f"no snapshot is named {name!r}; those taken: {[entry.name for entry in self.entries]}")

    def __len__(self) -> int:
        return len(self.entries)

    def since_first(self) -> dict[str, int]:
        """Each snapshot's resident bytes minus the first one's, by name (the last, if names repeat)."""
        return {name: now.resident - self.entries[0].usage.resident for name, now in self.entries}

    def plot(self, ax: Any = None) -> Any:
        """Draws the staircase with matplotlib (the `lab` extra). Returns the figure, which a notebook displays."""
        from teachllama.show.memory_plot import staircase

        return staircase(self, ax)

    def _rows(self) -> list[list[str]]:
        rows = [["step", "resident MB", "change", "since first", "private MB", "file-backed MB"]]
        for i, (name, now) in enumerate(self.entries):
            earlier = [self.entries[j].usage.resident for j in (i - 1, 0)] if i else []
            deltas = [f"{(now.resident - x) / 1e6:+,.1f}" for x in earlier] or ["", ""]
            file_backed = "not told" if now.file_backed is None else f"{now.file_backed / 1e6:,.1f}"
            rows.append([name, f"{now.resident / 1e6:,.1f}", *deltas, f"{now.private / 1e6:,.1f}", file_backed])
        return rows

    def __repr__(self) -> str:
        rows = self._rows()
        first, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join([row[0].ljust(first), *(cell.rjust(w) for cell, w in zip(row[1:], widths, strict=True))]).rstrip()
            for row in rows
        )

    def _repr_html_(self) -> str:
        head, *body = [[html.escape(cell) for cell in row] for row in self._rows()]
        lines = [f"<th style='text-align:left'>{name}</th><td>" + "</td><td>".join(cells) for name, *cells in body]
        return f"<table><tr><th>{'</th><th>'.join(head)}</th></tr><tr>{'</td></tr><tr>'.join(lines)}</td></tr></table>"
