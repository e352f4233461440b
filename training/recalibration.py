"""Other limits for a bundle, from other screens or other costs, without training: the graphs stay as they are.

Review bands decide verdicts, thresholds what labels are called present. What a glance may clear follows from the bands,
so its limit is chosen with them. `training.thresholds` chooses the thresholds alone, and leaves it.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine import GLANCE_FILE, NO_GLANCE, Glance, Manifest, load, seen_whole
from training.calibration import Calibration, calibrate
from training.card import CARD_FILE, card_with, card_without, recalibrated_card
from training.clearing import clearing
from training.costs import Costs
from training.cut_folder import CutFolder
from training.datasets import PatchSet, refuse_known
from training.evaluation import Report, bundle_probability, fitting_patches, report
from training.folder import data_id, learnt_by_bundle
from training.glance import GLANCE_DATA, SECTION, SHARE, Chosen, prove, said
from training.patches import refuse_dropped, refuse_other_windows
from training.whole import drafted

THRESHOLDS_DATA = "thresholds_data_id"  # of a manifest's facts: what they alone were chosen on


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recalibrated:
    """A bundle with other limits.

    Attributes:
        manifest: of it.
        calibration: its limits, and what they do.
        report: of the same patches, at its thresholds, as it is served on CPUs.
        glance: the limit of its glance, and what that does; None where it has none.
    """

    manifest: Manifest
    calibration: Calibration
    report: Report
    glance: Chosen | None


def recalibrate(
    bundle: Path,
    folders: Sequence[Path],
    out: Path,
    *,
    version: str,
    costs: Costs,
    part: str | None = None,
    lost: float | None = None,
    drop_glance: bool = False,
) -> Recalibrated:
    """Write a bundle with the graphs of another one and limits of its own.

    Its manifest has other limits under the next version of them, its card says what they were chosen on; a record of
    release is not carried over, for it was of other verdicts. The limit of a glance is chosen anew for these limits on
    the same data, as `training.glance` does but no higher than it was, and what escapes by it counts in all that is
    told of them. A bundle does not tell whether the validation part of what it has learnt from chose the epoch of its
    weights, or of those that it began with: such screens choose limits, and prove nothing.

    Args:
        bundle: whose graphs, golden patches and precisions are taken.
        folders: cut folders with the bundle's labels and patch size, in the shares of the line, not learnt from.
        out: folder of the new bundle, which must not exist.
        version: of the new bundle: with other limits it gives other verdicts, so it must not be called the same.
        costs: of the line.
        part: train, validation or test; None takes all screens.
        lost: share of the windows in which a defect is found that a glance may clear, below 1; None: the share that the
            limit of its own was chosen by.
        drop_glance: leave its glance out, so that the whole network sees every window on CPUs as well.

    Raises:
        ValueError: the version is the bundle's own, `out` exists, or the data does not fit the bundle or is what it has
            learnt from; the bundle has no glance to lose windows by or to leave out, both are asked for, or no limit of
            it can be chosen on the data.
        BundleError: the bundle is not whole, or the version is no name.
        InferenceError: with its new limit the glance clears golden patches that show something.
    """
    before, patches, chose = fitting(bundle, folders, out, version=version, part=part)
    if before.glance == NO_GLANCE and (drop_glance or lost is not None):
        raise ValueError(f"{bundle} has no glance that could be left out, or lose windows")
    if drop_glance and lost is not None:
        raise ValueError("--lost is of the glance that --drop-glance leaves out: give one of them")
    of_glance: dict[str, float | str] = {}
    if before.glance == NO_GLANCE or drop_glance:
        found, probability = _without_glance(bundle, patches, costs, chose)
        glance, chosen = NO_GLANCE, None
    else:
        share = _share(before) if lost is None else lost
        chosen_on = str(before.training.get(GLANCE_DATA, "")).split()
        blind = {data_id(folders), *(data_id([folder]) for folder in folders)}.isdisjoint(chosen_on)
        found, probability, chosen = _at_a_glance(bundle, patches, costs, chose, share, blind=blind)
        glance = Glance(doubt_min=chosen.doubt_min)
        seen_now = [data_id([folder]) for folder in folders]
        of_glance = {**chosen.facts(), SHARE: share, GLANCE_DATA: " ".join(dict.fromkeys([*chosen_on, *seen_now]))}
    other = THRESHOLDS_DATA, "glance_"  # facts, by how they begin, of limits before
    manifest = replace(
        before,
        version=version,
        limits_version=before.limits_version + 1,
        labels=found.limits,
        glance=glance,
        training={
            **{key: value for key, value in before.training.items() if not key.startswith(other)},
            **found.facts(),
            "limits_data_id": data_id(folders),
            "limits_before": f"{before.name} {before.version}",
            **of_glance,
        },
    )
    write_changed(bundle, out, manifest, lambda card: _card(card, manifest, found, chosen, before=before))
    thresholds = [limits.threshold for limits in found.limits.values()]
    return Recalibrated(
        manifest=Manifest.read(out),
        calibration=found,
        report=report(probability, patches.labels, labels=patches.label_names, thresholds=thresholds),
        glance=chosen,
    )


def _without_glance(
    bundle: Path, patches: PatchSet, costs: Costs, chose: NDArray[np.bool_]
) -> tuple[Calibration, NDArray[np.float32]]:
    """Limits of a bundle whose glance, if it has one, is left out, and its probabilities (N, L)."""
    with seen_whole(bundle) as whole, closing(load(whole)) as backend:
        probability = bundle_probability(backend, patches, group="screen", look=backend.manifest.turned_look)
    found = calibrate(
        probability, patches.labels, patches.screens, labels=patches.label_names, costs=costs, chose_weights=chose
    )
    return found, probability


def _at_a_glance(
    bundle: Path, patches: PatchSet, costs: Costs, chose: NDArray[np.bool_], lost: float, *, blind: bool
) -> tuple[Calibration, NDArray[np.float32], Chosen]:
    """Limits of a bundle, that of its glance, and with that its probabilities (N, L).

    Raises:
        ValueError: no limit of the glance can be chosen.
    """
    with clearing(bundle, patches, lost=lost, blind=blind) as seen:
        found = calibrate(
            seen.probability,
            patches.labels,
            patches.screens,
            labels=patches.label_names,
            costs=costs,
            chose_weights=chose,
            glancing=seen.highest,
        )
        try:
            chosen = seen.choose(np.array([limits.review[0] for limits in found.limits.values()]))
        except ValueError as error:
            told = f"no limit of its glance can be chosen on this data, {error}; --drop-glance leaves it out"
            raise ValueError(told) from error
        return found, seen.served_all(chosen.doubt_min), chosen


def _share(manifest: Manifest) -> float:
    """By what share of windows lost its glance was chosen; where that is not told, of those that it did lose."""
    facts = manifest.training
    return float(facts.get(SHARE, float(facts.get("glance_lost", 0)) / max(1, float(facts.get("glance_found", 1)))))


def _card(card: str, manifest: Manifest, found: Calibration, chosen: Chosen | None, *, before: Manifest) -> str:
    card = recalibrated_card(card_without(card, SECTION), manifest, found, before=before)
    if chosen is None:
        return card
    origin = "It follows from the bands above, is no higher than it was, and counts in the shares of screens there."
    return card_with(card, manifest, SECTION, said(chosen, origin))


def fitting(
    bundle: Path, folders: Sequence[Path], out: Path, *, version: str, part: str | None
) -> tuple[Manifest, PatchSet, NDArray[np.bool_]]:
    """The bundle's manifest, patches that limits of it may be chosen on, and which (N,) may have chosen its epoch.

    A folder that it has learnt from is known by its tables: another cut of the same screens is not recognised.

    Raises:
        ValueError: the version is the bundle's own, `out` exists, or the data does not fit the bundle or is what it has
            learnt from.
        BundleError: there is no bundle.
    """
    before = Manifest.read(bundle)
    if version == before.version:
        raise ValueError(f"--version {version} is that of {bundle}: other limits need another one")
    if out.exists():
        raise ValueError(f"{out} exists: name another folder for the new bundle")
    refuse_known(folders, [])
    refuse_other_windows(folders, overlap_px=before.overlap_px)
    refuse_dropped(folders)
    learnt = set(learnt_by_bundle(before))
    together = data_id(folders)
    known = [not learnt.isdisjoint({data_id([folder]), together}) for folder in folders]
    for folder, is_known in zip(folders, known, strict=True):
        if is_known and part in (None, "train"):
            raise ValueError(f"{bundle} has learnt from {folder}: take other screens, or --part test")
    counts = [len(CutFolder(folder).rows_of(part)) for folder in folders]
    chose = np.repeat([one and part == "validation" for one in known], counts)
    return before, fitting_patches(before, folders, part=part), chose


def write_changed(bundle: Path, out: Path, manifest: Manifest, card_of: Callable[[str], str]) -> None:
    """Write a bundle with another manifest and card beside `out`, and move it there once it is whole.

    Raises:
        BundleError: the bundle is not whole, or the manifest's version is no name.
        InferenceError: its glance clears golden patches that show something, as this CPU computes it.
    """
    with drafted(bundle, out) as draft:
        card = draft / CARD_FILE
        card.write_text(card_of(card.read_text()))
        if manifest.glance == NO_GLANCE:
            (draft / GLANCE_FILE).unlink(missing_ok=True)
        manifest.sign(draft)
        if manifest.glance != NO_GLANCE:
            prove(draft)
