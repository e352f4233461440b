"""Judgements as tables for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from training.judging import Judgement, Share


def print_judgement(found: Judgement, console: Console) -> None:
    """Screens, labels, boxes and contrast bands, shares with their 95 % intervals."""
    screens = Table("of screens", "count", "share", "95 % interval", title=f"{found.screens} screens")
    for name, share in (
        ("escape: defective, passed", found.escape),
        ("overkill: clean, failed", found.overkill),
        ("review", found.review),
        ("review of clean ones", found.review_of_clean),
    ):
        screens.add_row(name, *_cells(share))
    console.print(screens)
    if found.unanswered:
        console.print(f"[red]{found.unanswered} screens have no verdict[/]")

    labels = Table("label", "precision", "recall", "F", "screens", "boxes found", "95 % interval", "false boxes")
    for name, r in found.labels.items():
        figures = (f"{v:.3f}" for v in (r.precision, r.recall, r.f_measure))
        count, _, interval = _cells(r.boxes_found)
        labels.add_row(name, *figures, str(r.screens_with), count, interval, str(r.false_boxes))
    labels.add_row("macro", "", "", f"{found.f_measure:.3f}", style="bold")
    console.print(labels)

    bands = sorted(
        {band for r in found.labels.values() for band in r.by_contrast}, key=lambda b: float(b.split("-")[0])
    )
    if bands:
        table = Table("boxes found by contrast (in noise)", *bands)
        for name, r in found.labels.items():
            table.add_row(name, *(_cells(r.by_contrast[b])[0] if b in r.by_contrast else "" for b in bands))
        console.print(table)
    for wrong in found.wrong:
        console.print(f"{wrong['error']}: {wrong['screen']}")


def _cells(share: Share) -> tuple[str, str, str]:
    interval = f"{share.low:.1%} - {share.high:.1%}"
    return f"{share.hits}/{share.total}", f"{share.ratio:.1%}", interval
