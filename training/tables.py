"""Judgements, limits and comparisons as tables for people, on a console without markup: what is told has names."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from training.bands import BORDER_BANDS, CONTRAST, CONTRAST_BANDS, SIZE_BANDS, Bands
from training.borders import Manner
from training.calibration import Calibration
from training.comparison import Comparison, Trained
from training.config import PHASES
from training.intervals import Interval, span
from training.judging import Judgement, Weighed
from training.measures import Share
from training.temperature import Sureness
from training.validation.findings import CHECKS, Report

if TYPE_CHECKING:  # they need torch, which runs are compared without
    from training.mistakes import Sheet
    from training.thresholds import Rethresholded

SPREAD = "2.5-97.5 % of draws"


def print_judgement(found: Judgement, console: Console) -> None:
    """Screens, labels, boxes and contrast bands, shares with their 95 % intervals."""
    screens = Table("of screens", "count", "share", "95 % interval", title=f"{found.screens} screens")
    for name, share in (
        ("escape: defective, passed", found.escape),
        ("overkill: clean, failed", found.overkill),
        ("review of clean ones", found.review_of_clean),
        ("review of defective ones", found.review_of_defective),
    ):
        screens.add_row(name, *_cells(share))
    console.print(screens)
    if (line := found.line) is not None:
        of_line = Table("of the line's screens", "share", "95 % interval", title=f"{line.prevalence:.1%} defective")
        of_line.add_row("escape: defective, passed", *_interval_cells(line.escape, percent=True))
        of_line.add_row("overkill: clean, failed", *_interval_cells(line.overkill, percent=True))
        name = f"review, where people can look at {line.review_capacity:.1%}"
        of_line.add_row(name, *_interval_cells(line.review, percent=True))
        console.print(of_line)
    if found.unanswered:
        console.print(f"{found.unanswered} screens have no verdict", style="red")
    if found.missing:
        console.print(f"{found.missing} screens are not in the list", style="red")

    labels = Table("label", "accuracy", "precision", "recall", "F", "escaped", title="labels of screens")
    boxes_of = Table("label", "boxes found", "95 % interval", "false boxes", title="boxes")
    for name, r in found.labels.items():
        figures = (f"{v:.3f}" for v in (r.accuracy, r.precision, r.recall, r.f_measure))
        count, _, interval = _cells(r.boxes_found)
        labels.add_row(name, *figures, _cells(r.escape)[0])
        boxes_of.add_row(name, count, interval, str(r.false_boxes))
    macro = (found.accuracy, found.precision, found.recall, found.f_measure)
    labels.add_row("macro", *(f"{value:.3f}" for value in macro), style="bold")
    console.print(labels)
    console.print(boxes_of)

    boxes = {name: r.by_contrast for name, r in found.labels.items()}
    escapes = {name: r.escape_by_contrast for name, r in found.labels.items()}
    for title, by_label in (("boxes found, by contrast", boxes), ("screens escaped, by contrast", escapes)):
        _print_bands(title, by_label, CONTRAST_BANDS, console)
    for wrong in found.wrong:
        console.print(f"{wrong['error']}: {wrong['screen']}")


def print_thresholds(found: "Rethresholded", console: Console) -> None:
    """From what score each label is present, before and now, and F; also on screens that had no part in the choice."""
    table = Table("label", "present from", "F", "present from now", "F", "F left out")
    for label, limits in found.manifest.labels.items():
        old, new = found.report_before.per_label[label], found.report.per_label[label]
        before = found.before.labels[label].threshold
        cells = (before, old.f_measure, limits.threshold, new.f_measure)
        left_out = f"{found.left_out[label]:.4f}" if label in found.left_out else "-"
        table.add_row(label, *(f"{value:.4f}" for value in cells), left_out)
    table.add_row(
        "macro", "", f"{found.report_before.f_measure:.4f}", "", f"{found.report.f_measure:.4f}", "", style="bold"
    )
    console.print(table)
    for label, why in found.kept.items():
        console.print(f"{label}: its threshold stays, {why}")


def print_calibration(found: Calibration, console: Console) -> None:
    """The zones of each label, and what they do to the screens that they were chosen on and to others.

    Beside each limit stands its spread over draws of the screens, which is no interval of confidence.
    """
    intervals = found.intervals
    console.print(f"limits for {found.costs}", soft_wrap=True, highlight=False)
    zones = Table("label", "pass below", SPREAD, "present from", "fail from", SPREAD)
    for number, (label, limits) in enumerate(found.limits.items()):
        ends = () if intervals is None else (intervals.lows[number], intervals.highs[number])
        spans = [span(one, " - ") for one in ends] or ["", ""]
        zones.add_row(
            label, f"{limits.review[0]:.3f}", spans[0], f"{limits.threshold:.3f}", f"{limits.review[1]:.3f}", spans[1]
        )
    console.print(zones)

    tally, costs = found.tally, found.costs
    rates = Table("of screens", "chosen on them", "at most (97.5 %)", "left out of them", "95 %")
    escape, overkill, review, cost = (
        ("", "") if intervals is None else _interval_cells(getattr(intervals, name), percent=name != "cost")
        for name in ("escape", "overkill", "review", "cost")
    )
    counted = f"{tally.escapes} of {tally.defective}, {tally.escape:.1%}"
    rates.add_row("escape: defective, passed", counted, f"{found.escape_bound:.1%}", *escape)
    rates.add_row("overkill: clean, failed", f"{tally.overkills} of {tally.clean}, {tally.overkill:.1%}", "", *overkill)
    rates.add_row("review, of the line's", f"{tally.review(costs):.1%}", "", *review)
    rates.add_row("expected cost of a screen", f"{tally.cost(costs):.3f}", "", *cost)
    console.print(rates)

    escaped = Table("left out of the choice", "with it, escaped", "95 %", "with it alone, escaped", "95 %")
    for label, one in found.by_label.items():
        cells = (cell for share in (one.escape, one.alone) for cell in (_cells(share)[0], _cells(share)[2]))
        escaped.add_row(label, *cells)
    console.print(escaped)
    for warning in found.warnings():
        console.print(warning, style="red", soft_wrap=True, highlight=False)


def print_sureness(found: Mapping[str, Sureness], console: Console) -> None:
    """Temperatures, and what they do to patches that they were not fitted on."""
    table = Table("label", "temperature", "calibration error", "after", "log loss", "after")
    for label, one in found.items():
        figures = (one.error_before, one.error_after, one.loss_before, one.loss_after)
        table.add_row(label, f"{one.temperature:.3f}", *(f"{figure:.5f}" for figure in figures))
    console.print(table)


def print_manners(title: str, found: Mapping[str, Manner], console: Console, *, decisions: bool = True) -> None:
    """Ways to place windows side by side: what each costs, what it finds by distance to a border, what it decides.

    Without `decisions`, where the verdicts say nothing, only the first two.
    """
    labels = sorted({label for manner in found.values() for label in manner.found_by_label})
    table = Table(Column(no_wrap=True), *found, title=title)
    manners = found.values()
    table.add_row("windows, times the fewest", *(f"{m.windows:.3f} (at most {m.windows_most:.2f})" for m in manners))
    bands = [band for band in BORDER_BANDS if any(band in m.found for m in manners)]
    for band in bands:
        table.add_row(f"boxes found, {band}", *(_cells(m.found[band])[0] for m in manners), style="bold")
        for label in labels:
            shares = [m.found_by_label[label].get(band) for m in manners]
            if any(shares):
                table.add_row(f"  {label}", *("-" if one is None else _cells(one)[0] for one in shares))
    for band in bands:
        table.add_row(f"overlap of boxes, {band}", *(f"{m.box_overlap[band]:.3f}" for m in manners))
    if decisions:
        _add_decisions(table, list(manners))
    console.print(table)


def print_validation(found: Report, console: Console) -> None:
    """What a folder has by part, and what was found in it, the first of each kind."""
    columns = list(dict.fromkeys(column for count in found.counts.values() for column in count))
    counts = Table("", *found.counts, title=str(found.folder))
    for column in columns:
        counts.add_row(column, *(str(count.get(column, 0)) for count in found.counts.values()))
    console.print(counts)
    table = Table("found", Column("count", justify="right"), "the first of them")
    for key, findings in found.by_check().items():
        colour = "red" if CHECKS[key].level == "error" else "yellow"
        table.add_row(Text(CHECKS[key].title, colour), str(len(findings)), findings[0].text)
    if found.findings:
        console.print(table)
    console.print(f"{found.errors} errors, {found.warnings} warnings. {found.note}".rstrip())


def print_comparison(found: Comparison, console: Console) -> None:
    """Runs side by side: the keys that differ, then what they learnt from, how well and for how long."""
    runs = found.runs
    table = Table(Column(no_wrap=True), *(one.run for one in runs))
    for key in found.differing:
        table.add_row(key, *(_value(one.config.get(key)) for one in runs))
    table.add_section()
    table.add_row("data id", *(one.data_id for one in runs))
    table.add_row("validation id", *(one.validation_id or "-" for one in runs))
    table.add_row("revision", *(_revision(one) for one in runs))
    table.add_row("machine", *(one.machine or "-" for one in runs))
    table.add_row("begun and resumed", *(str(one.sessions or "-") for one in runs))
    table.add_section()
    for phase in PHASES:
        table.add_row(f"{phase}: epochs", *(str(sum(e.phase == phase for e in one.epochs)) for one in runs))
        table.add_row(f"{phase}: validation F of the epoch kept", *(_best(one, phase) for one in runs))
    table.add_row("seconds", *("-" if one.seconds is None else f"{one.seconds:.0f}" for one in runs))
    table.add_section()
    table.add_row("macro F in the end", *(_final(one, None) for one in runs), style="bold")
    for label in dict.fromkeys(label for one in runs if one.finished for label in one.finished["per_label"]):
        table.add_row(f"  {label}: F (P, R)", *(_final(one, label) for one in runs))
    console.print(table)
    for warning in found.warnings:
        console.print(warning, style="yellow")


def _value(value: object) -> str:
    return "-" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _revision(one: Trained) -> str:
    """Its first twelve digits, and whether the code differed from it."""
    return "-" if one.revision is None else one.revision[:12] + ("+" if one.revision.endswith("+") else "")


def _best(one: Trained, phase: str) -> str:
    best = one.best(phase)
    return "-" if best is None else f"{best.f_measure:.4f} (epoch {best.epoch})"


def _final(one: Trained, label: str | None) -> str:
    if one.finished is None:
        return "-"
    if label is None:
        return f"{one.finished['f_measure']:.4f}"
    r = one.finished["per_label"].get(label)
    return "-" if r is None else f"{r['f_measure']:.4f} ({r['precision']:.3f}, {r['recall']:.3f})"


def _add_decisions(table: Table, manners: Sequence[Manner]) -> None:
    for name in ("escape", "overkill", "review"):
        table.add_row(name, *(_cells(getattr(m.judgement, name))[0] for m in manners))
    table.add_row("macro F of screens", *(f"{m.judgement.f_measure:.3f}" for m in manners))
    table.add_row("false boxes (on clean screens)", *(f"{m.false_boxes} ({m.false_boxes_clean})" for m in manners))


def print_mistakes(found: "Sheet", console: Console) -> None:
    """How many mistakes each label has, and the tiles of the sheet in its order."""
    for label, wrong in found.mistakes.items():
        console.print(f"{label}: {len(wrong.missed)} missed, {len(wrong.false_alarms)} false alarms")
    table = Table("label", "mistake", "score", "cleared by the glance", Column("patch", overflow="fold"))
    for tile in found.tiles:
        cleared = "" if tile.doubt is None else f"doubt {tile.doubt:.3g}"
        table.add_row(tile.label, tile.mistake, f"{tile.score:.3f}", cleared, tile.patch)
    console.print(table)


def print_recall(
    bands: Mapping[str, Mapping[str, Mapping[str, Share]]], console: Console, *, shrinks: Iterable[int] = (1,)
) -> None:
    """Recall of patches by size, contrast and distance to a border; see `recall_by_band`.

    Args:
        bands: shares by kind, label and band.
        console: to print to.
        shrinks: how many times smaller screens were taken before they were cut, whose pixels are then larger.
    """
    smaller = " or ".join(str(one) for one in sorted(set(shrinks)))
    unit = "" if smaller == "1" else f", px of screens taken {smaller} times smaller"
    for kind, title, order in (
        ("size", f"recall by the longer side of what lies in the patch{unit}", SIZE_BANDS),
        ("contrast", f"recall by contrast, {CONTRAST}", CONTRAST_BANDS),
        ("border", f"recall by distance to a border of the window{unit}", BORDER_BANDS),
    ):
        _print_bands(title, bands.get(kind, {}), order, console)


def _print_bands(title: str, by_label: Mapping[str, Mapping[str, Share]], order: Bands, console: Console) -> None:
    """Shares by label and band, in the order of the bands; nothing where no band has any."""
    bands = [band for band in order if any(band in shares for shares in by_label.values())]
    if not bands:
        return
    table = Table("label", *bands, title=title)
    for name, shares in by_label.items():
        cells = (shares.get(band) for band in bands)
        table.add_row(name, *("" if share is None else _in_band(share) for share in cells))
    console.print(table)


def _in_band(share: Share) -> Text:
    return Text.assemble(f"{share.hits}/{share.total} ", (f"{share.low:.0%}-{share.high:.0%}", "dim"))


def _cells(share: Share) -> tuple[str, str, str]:
    interval = f"{share.low:.1%} - {share.high:.1%}"
    return f"{share.hits}/{share.total}", f"{share.ratio:.1%}", interval


def _interval_cells(interval: Interval | Weighed, *, percent: bool) -> tuple[str, str]:
    shown = "{:.1%}" if percent else "{:.3f}"
    mean, low, high = (shown.format(value) for value in interval)
    return mean, f"{low} - {high}"
