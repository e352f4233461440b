"""Limits and temperatures as tables for people."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from training.calibration import Calibration
from training.intervals import Interval
from training.recalibration import Rethresholded
from training.temperature import Sureness


def print_thresholds(found: Rethresholded, console: Console) -> None:
    """From what score each label is present, before and now, and F on the patches that this was chosen on."""
    table = Table("label", "present from", "F", "present from now", "F")
    for label, limits in found.manifest.labels.items():
        old, new = found.report_before.per_label[label], found.report.per_label[label]
        before = found.before.labels[label].threshold
        cells = (before, old.f_measure, limits.threshold, new.f_measure)
        table.add_row(
            f"{label} (no patch has it)" if label in found.kept else label, *(f"{value:.4f}" for value in cells)
        )
    table.add_row(
        "macro", "", f"{found.report_before.f_measure:.4f}", "", f"{found.report.f_measure:.4f}", style="bold"
    )
    console.print(table)


def print_calibration(found: Calibration, console: Console) -> None:
    """The zones of each label, and what they do to the screens that they were chosen on and to others."""
    intervals = found.intervals
    console.print(f"limits for {found.costs}", soft_wrap=True, highlight=False)
    zones = Table("label", "pass below", "95 %", "present from", "fail from", "95 %")
    for number, (label, limits) in enumerate(found.limits.items()):
        low, high = ("", "") if intervals is None else (intervals.lows[number], intervals.highs[number])
        spans = [f"{one.low:.3f} - {one.high:.3f}" if isinstance(one, Interval) else "" for one in (low, high)]
        zones.add_row(
            label, f"{limits.review[0]:.3f}", spans[0], f"{limits.threshold:.3f}", f"{limits.review[1]:.3f}", spans[1]
        )
    console.print(zones)

    tally, costs = found.tally, found.costs
    rates = Table("of screens", "chosen on them", "at most (95 %)", "left out of them", "95 %")
    escape, overkill, review, cost = (
        ("", "") if intervals is None else _cells(getattr(intervals, name), percent=name != "cost")
        for name in ("escape", "overkill", "review", "cost")
    )
    counted = f"{tally.escapes} of {tally.defective}, {tally.escape:.1%}"
    rates.add_row("escape: defective, passed", counted, f"{found.escape_bound:.1%}", *escape)
    rates.add_row("overkill: clean, failed", f"{tally.overkills} of {tally.clean}, {tally.overkill:.1%}", "", *overkill)
    rates.add_row("review, of the line's", f"{tally.review(costs):.1%}", "", *review)
    rates.add_row("expected cost of a screen", f"{tally.cost(costs):.3f}", "", *cost)
    console.print(rates)
    for warning in found.warnings():
        console.print(f"[red]{warning}[/]", soft_wrap=True, highlight=False)


def print_sureness(found: Mapping[str, Sureness], console: Console) -> None:
    """Temperatures, and what they do to patches that they were not fitted on."""
    table = Table("label", "temperature", "calibration error", "after", "log loss", "after")
    for label, one in found.items():
        figures = (one.error_before, one.error_after, one.loss_before, one.loss_after)
        table.add_row(label, f"{one.temperature:.3f}", *(f"{figure:.5f}" for figure in figures))
    console.print(table)


def _cells(interval: Interval, *, percent: bool) -> tuple[str, str]:
    shown = "{:.1%}" if percent else "{:.3f}"
    mean, low, high = (shown.format(value) for value in interval)
    return mean, f"{low} - {high}"
