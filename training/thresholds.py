"""Other thresholds for a bundle, from which its labels are called present: its bands and its glance stay.

The best F on patches is a flat maximum, and where it lies takes many of them to tell.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine import LabelLimits, Manifest, load
from training.calibration import DIGITS, NEAREST
from training.card import THRESHOLDS, card_with
from training.evaluation import Report, bundle_probability, report
from training.folder import data_id
from training.recalibration import THRESHOLDS_DATA, fitting, write_changed
from training.temperature import FOLDS, folds_by_screen
from training.zones import rounded


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rethresholded:
    """A bundle with other thresholds, the one before, and what patches say at the thresholds of both.

    Attributes:
        before: its manifest before.
        manifest: of it.
        report_before: of the patches, at the thresholds before.
        report: of the same, at its own.
        left_out: by label, F of the same patches, each at a threshold that was chosen without its screen and those of
            its fold; of a label that some patch has.
        kept: labels whose thresholds stay, and why.
    """

    before: Manifest
    manifest: Manifest
    report_before: Report
    report: Report
    left_out: dict[str, float]
    kept: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "before": _at(self.before, self.report_before),
            "now": _at(self.manifest, self.report),
            "left_out": self.left_out,
            "kept": self.kept,
        }


def _at(manifest: Manifest, found: Report) -> dict[str, Any]:
    thresholds = {label: one.threshold for label, one in manifest.labels.items()}
    return {"thresholds": thresholds, "report": asdict(found)}


def rethreshold(
    bundle: Path, folders: Sequence[Path], out: Path, *, version: str, part: str | None = None
) -> Rethresholded:
    """Write a bundle with the graphs, bands and glance of another one and thresholds of its own.

    Each gives the best F on the known patches that there is inside its label's band: where thresholds chosen so without
    a fifth of the screens do no better on it than the one before, that one stays. Verdicts stay, but where a second
    look, which is at scores up to the threshold, shows more or less; labels and boxes become others.

    Args:
        bundle: whose graphs, golden patches, bands and glance are taken.
        folders: cut folders with the bundle's labels and patch size, in the shares of the line, not learnt from.
        out: folder of the new bundle, which must not exist.
        version: of the new bundle.
        part: train, validation or test; None takes all screens.

    Raises:
        ValueError: the version is the bundle's own, `out` exists, or the data does not fit the bundle or is what it has
            learnt from.
        BundleError: the bundle is not whole, or the version is no name.
        InferenceError: its glance clears golden patches that show something, as this CPU computes it.
    """
    before, patches, _ = fitting(bundle, folders, out, version=version, part=part)
    with closing(load(bundle)) as backend:
        probability = bundle_probability(backend, patches, group="screen", look=before.turned_look)
    limits = dict(before.labels)
    left_out: dict[str, float] = {}
    kept: dict[str, str] = {}
    fold = folds_by_screen(patches.screens)
    for (label, old), score, target in zip(before.labels.items(), probability.T, patches.labels.T, strict=True):
        known = target >= 0
        seen, truth = score[known], target[known] == 1
        if not truth.any():
            kept[label] = "no patch has it"
            continue
        left_out[label] = _f(_left_out(seen, truth, fold[known], old), truth)
        if left_out[label] > _f(seen >= np.float64(old.threshold), truth):
            limits[label] = replace(old, threshold=best_within(seen, truth, *old.review))
        else:
            kept[label] = "no better on screens left out"

    def at(those: Mapping[str, LabelLimits]) -> Report:
        thresholds = [one.threshold for one in those.values()]
        return report(probability, patches.labels, labels=patches.label_names, thresholds=thresholds)

    manifest = replace(
        before,
        version=version,
        limits_version=before.limits_version + 1,
        labels=limits,
        training={
            **before.training,
            THRESHOLDS_DATA: data_id(folders),
            "limits_before": f"{before.name} {before.version}",
        },
    )
    found = Rethresholded(
        before=before,
        manifest=manifest,
        report_before=at(before.labels),
        report=at(limits),
        left_out=left_out,
        kept=kept,
    )
    write_changed(bundle, out, manifest, lambda card: card_with(card, manifest, THRESHOLDS, list(_said(found))))
    return replace(found, manifest=Manifest.read(out))


def best_within(score: NDArray[np.floating], truth: NDArray[np.bool_], low: float, high: float) -> float:
    """The threshold with the best F inside a band, in the middle of its gap to four digits; the highest of several.

    Raises:
        ValueError: there is no positive.
    """
    if not truth.any():
        raise ValueError("no patch has the label: no threshold can be chosen")
    low, high = max(low, NEAREST), min(high, 1 - NEAREST)
    ranked, hits = np.sort(score), np.sort(score[truth])
    gaps = ((ranked[1:] + ranked[:-1]) / 2).astype(np.float64)
    inside = np.unique(np.clip(rounded(gaps[(gaps >= low) & (gaps <= high)], DIGITS), low, high))[::-1]
    tried = np.array([*inside, low, high])  # its ends only where they are better than all between
    present = len(ranked) - np.searchsorted(ranked, tried)
    right = len(hits) - np.searchsorted(hits, tried)
    return float(tried[np.argmax(2 * right / (present + len(hits)))])


def _left_out(
    score: NDArray[np.float32], truth: NDArray[np.bool_], fold: NDArray[np.int64], limits: LabelLimits
) -> NDArray[np.bool_]:
    """Whether each patch (N,) reaches the threshold that the other folds would choose; without positives, the old."""
    present = np.zeros(len(score), np.bool_)
    for part in range(FOLDS):
        own, rest = fold == part, fold != part
        threshold = best_within(score[rest], truth[rest], *limits.review) if truth[rest].any() else limits.threshold
        present[own] = score[own] >= np.float64(threshold)
    return present


def _f(present: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return float(2 * (present & truth).sum() / (present.sum() + truth.sum()))


def _said(found: Rethresholded) -> Iterator[str]:
    before = found.before
    yield (
        f"Version {found.manifest.limits_version} of the limits, for the graphs and bands of {before.name} "
        f"{before.version}. The best F inside them on {found.report.patches} patches, and on those of screens that had "
        "no part in the choice. The tables of patches above, and verdicts and F of precisions beside float32, are by "
        "the thresholds before:"
    )
    yield ""
    yield "| label | before | F | threshold | F | F left out |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for label, limits in found.manifest.labels.items():
        old, new = found.report_before.per_label[label].f_measure, found.report.per_label[label].f_measure
        now = found.kept.get(label, f"{new:.3f}")
        other = f"{found.left_out[label]:.3f}" if label in found.left_out else "-"
        yield (
            f"| {label} | {before.labels[label].threshold:.3f} | {old:.3f} | {limits.threshold:.3f} | {now} | {other} |"
        )
    yield ""
