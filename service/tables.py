"""Verdicts and results as words and rows, for people at a terminal."""

from collections.abc import Iterable, Sequence

from rich.table import Column, Table

from service.verdict import Verdict

COLOURS = {"pass": "green", "review": "yellow", "fail": "red"}
# of what was tried; None where nothing is asked
RESULTS = {True: "[green]pass[/]", False: "[red]fail[/]", None: "[dim]-[/]"}


def describe_verdict(verdict: Verdict) -> str:
    """The verdict in its colour, and what decided a review; a fail has its labels to show for it."""
    word = f"[{COLOURS[verdict.verdict]}]{verdict.verdict}[/]"
    return f"{word} {verdict.reasons[0]}" if verdict.verdict == "review" else word


def describe_labels(verdict: Verdict) -> str:
    """Present labels with their counts, or the highest score where there is none."""
    present = [f"{label} {found.count}" for label, found in verdict.labels.items() if found.present]
    if present:
        return ", ".join(present)
    label, found = max(verdict.labels.items(), key=lambda item: item[1].score)
    return f"[dim]none ({label} {found.score:.2f})[/]"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table; every cell may carry colours. A narrow terminal breaks a word, and loses no part of it."""
    made = Table(*(Column(column, overflow="fold") for column in columns))
    for row in rows:
        made.add_row(*row)
    return made
