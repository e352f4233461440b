"""Other limits for a bundle, from other screens or other costs, without training: the graphs stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from engine import NO_GLANCE, Manifest, load
from training.calibration import Calibration, calibrate
from training.card import CARD_FILE, recalibrated_card
from training.costs import Costs
from training.datasets import refuse_known
from training.drafts import drafted
from training.evaluation import Report, bundle_probability, fitting_patches, report
from training.folder import data_id, learnt_by_bundle


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recalibrated:
    """A bundle with other limits.

    Attributes:
        manifest: of it.
        calibration: its limits, and what they do.
        report: of the same patches, at its thresholds.
    """

    manifest: Manifest
    calibration: Calibration
    report: Report


def recalibrate(
    bundle: Path, folders: Sequence[Path], out: Path, *, version: str, costs: Costs, part: str | None = None
) -> Recalibrated:
    """Write a bundle with the graphs of another one and limits of its own.

    Its manifest has other limits under the next version of them, its card says what they were chosen on; a record of
    release is not carried over, for it was of other verdicts.

    Args:
        bundle: whose graphs, golden patches and precisions are taken.
        folders: cut folders with the bundle's labels and patch size, in the shares of the line, not learnt from.
        out: folder of the new bundle, which must not exist.
        version: of the new bundle: with other limits it gives other verdicts, so it must not be called the same.
        costs: of the line.
        part: train, validation or test; None takes all screens.

    Raises:
        ValueError: the version is the bundle's own, `out` exists, the bundle has a glance, or the data does not fit the
            bundle or is what it has learnt from.
        BundleError: the bundle is not whole, or the version is no name.
    """
    before = Manifest.read(bundle)
    if version == before.version:
        raise ValueError(f"--version {version} is that of {bundle}: other limits need another one")
    if out.exists():
        raise ValueError(f"{out} exists: name another folder for the new bundle")
    if before.glance != NO_GLANCE:  # which was chosen by the limits
        raise ValueError(f"{bundle} has a glance: calibrate the bundle that it was added to, and add it again")
    refuse_known(folders, [])
    learnt = set(learnt_by_bundle(before))
    chosen_on = data_id(folders)
    for folder in folders if part in (None, "train") else ():
        if not learnt.isdisjoint({data_id([folder]), chosen_on}):
            raise ValueError(f"{bundle} has learnt from {folder}: take other screens, or --part validation or test")
    patches = fitting_patches(before, folders, part=part)
    with closing(load(bundle)) as backend:
        probability = bundle_probability(backend, patches, group="screen", look=before.turned_look)
    found = calibrate(probability, patches.labels, patches.screens, labels=patches.label_names, costs=costs)
    manifest = replace(
        before,
        version=version,
        limits_version=before.limits_version + 1,
        labels=found.limits,
        training={
            **before.training,
            **found.facts(),
            "limits_data_id": chosen_on,
            "limits_before": f"{before.name} {before.version}",
        },
    )
    _write(bundle, out, before, manifest, found)
    thresholds = [limits.threshold for limits in found.limits.values()]
    return Recalibrated(
        manifest=Manifest.read(out),
        calibration=found,
        report=report(probability, patches.labels, labels=patches.label_names, thresholds=thresholds),
    )


def _write(bundle: Path, out: Path, before: Manifest, manifest: Manifest, found: Calibration) -> None:
    """Write it beside `out`, and move it there once it is whole."""
    with drafted(bundle, out) as draft:
        card = draft / CARD_FILE
        card.write_text(recalibrated_card(card.read_text(), manifest, found, before=before))
        manifest.sign(draft)
