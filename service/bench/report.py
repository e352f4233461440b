"""What a run of the bench found, for people and for machines."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.tables import RESULTS


class BenchError(Exception):
    """A measurement could not be made at all; the message says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement.

    Attributes:
        name: what was measured.
        found: for people.
        limit: what it is held against; empty where nothing is asked.
        passed: whether it is within; None where nothing is asked.
        figures: for machines.
    """

    name: str
    found: str
    limit: str = ""
    passed: bool | None = None
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of one run.

    Attributes:
        cpu: the CPU's model.
        vectors: names of its vector instructions.
        held_to: those that OpenVINO is held to, and it alone; empty where it is not.
        cpus: that were used.
        rows: what was measured.
    """

    cpu: str
    vectors: list[str]
    held_to: str
    cpus: int
    rows: list[Row]

    @property
    def passed(self) -> bool:
        """Whether nothing is out of its limit."""
        return all(row.passed is not False for row in self.rows)


def latency(durations: Sequence[float]) -> dict[str, float]:
    """`p50_s` and `p99_s`; infinite where nothing was answered."""
    p50_s, p99_s = np.quantile(durations, (0.5, 0.99)).tolist() if durations else (float("inf"), float("inf"))
    return {"p50_s": p50_s, "p99_s": p99_s}


def tell(row: Row, console: Console) -> None:
    """One row in a line, as it is found."""
    console.print(f"{RESULTS[row.passed]} {row.name}: {escape(row.found)}", soft_wrap=True)


def show(report: Report, console: Console) -> None:
    """Print a report for people."""
    table = Table("measured", "found", "asked", "")
    for row in report.rows:
        table.add_row(row.name, escape(row.found), row.limit, RESULTS[row.passed])
    held = f"; OpenVINO is held to {report.held_to}" if report.held_to else ""
    console.print(f"{report.cpu}, {report.cpus} CPUs ({' '.join(report.vectors)}{held})")
    console.print(table)


def as_json(report: Report) -> str:
    """The report for machines."""
    return json.dumps(asdict(report), indent=2)
