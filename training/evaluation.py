"""How good: probabilities against labels, macro as in Zhou et al. 2023. Unknown labels take part in no figure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from engine import NO_TURNED_LOOK, Backend, Features, Manifest, TurnedLook, in_doubt, infer, look_turned, turned
from training.bands import CONTRAST, recall_by_band
from training.datasets import PatchSet, refuse_known
from training.measures import Share, f_measure, wilson
from training.patches import DROPPED, cut_facts, dropped, other_windows
from training.reliability import Bin, calibration_error, reliability


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelReport:
    """One label: accuracy, precision, recall and F-measure in [0, 1], and the known patches by truth.

    The intervals are Wilson's of 95 %. `calibration_error` is the expected one, `reliability` its curve.
    """

    accuracy: float
    precision: float
    recall: float
    f_measure: float
    precision_interval: tuple[float, float]
    recall_interval: tuple[float, float]
    positives: int
    negatives: int
    calibration_error: float
    reliability: tuple[Bin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Macro figures over the labels that a patch has, in [0, 1]: of a label that none has there is no recall.

    `accuracy`, `precision` and `recall` are means over the labels; `f_measure` is 2PR/(P+R) of the averaged P and R
    (not the mean of the labels' F), which gives every F of the paper's tables. `bands` has the recall by size, contrast
    and distance to a border, see `recall_by_band`; it is empty where the folders do not tell these.
    """

    accuracy: float
    precision: float
    recall: float
    f_measure: float
    patches: int
    per_label: dict[str, LabelReport]
    bands: dict[str, dict[str, dict[str, Share]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the figures of a bundle are of, and how they came about.

    Attributes:
        folders: that were measured; `stride_px`, `shrink` and `rule`, by which they were cut, are in their order.
        part: train, validation, test or all.
        group: see `groups`.
        thresholds: from what score each label counts as present, in [0, 1].
        patch_px: side of a patch.
        runtime: that executed the bundle, such as `onnxruntime`.
        precision: of the features graph, see `Backend.precision`.
        contrast: what the values behind the bands of contrast mean.
    """

    folders: list[str]
    part: str
    group: str
    thresholds: dict[str, float]
    patch_px: int
    stride_px: list[int]
    shrink: list[int]
    rule: list[str]
    runtime: str
    precision: str
    contrast: str


def report(
    probability: NDArray[np.float32],
    target: NDArray[np.int8],
    *,
    labels: Sequence[str],
    thresholds: Sequence[float],
) -> Report:
    """Compare probabilities with labels.

    Args:
        probability: (N, L) in [0, 1].
        target: (N, L); 1, 0 or -1 for unknown.
        labels: L names.
        thresholds: L; a label is predicted where its probability is at or over its threshold.
    """
    limits = np.asarray(thresholds, np.float64)  # a score is held against them as in the service
    per_label = {
        name: _label_report(probability[known, column], target[known, column] == 1, threshold=limits[column])
        for column, (name, known) in enumerate(zip(labels, (target >= 0).T, strict=True))
    }
    seen = [r for r in per_label.values() if r.positives]
    precision, recall, accuracy = (
        float(np.mean([getattr(r, figure) for r in seen])) if seen else 0.0
        for figure in ("precision", "recall", "accuracy")
    )
    return Report(
        accuracy=accuracy,
        precision=precision,
        recall=recall,
        f_measure=f_measure(precision, recall),
        patches=len(target),
        per_label=per_label,
    )


def _label_report(probability: NDArray[np.float32], truth: NDArray[np.bool_], *, threshold: np.float64) -> LabelReport:
    """Of the patches in which the label is known."""
    predicted = probability >= threshold
    tp, fp = int((predicted & truth).sum()), int((predicted & ~truth).sum())
    tn, fn = int((~predicted & ~truth).sum()), int((~predicted & truth).sum())
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / (tp + fn) if tp + fn else 0.0
    known = tp + fp + tn + fn
    return LabelReport(
        accuracy=(tp + tn) / known if known else 0.0,
        precision=precision,
        recall=recall,
        f_measure=f_measure(precision, recall),
        precision_interval=wilson(tp, tp + fp)[3:],
        recall_interval=wilson(tp, tp + fn)[3:],
        positives=tp + fn,
        negatives=fp + tn,
        calibration_error=calibration_error(probability, truth),
        reliability=reliability(probability, truth),
    )


def groups(patches: PatchSet, group: str) -> list[NDArray[np.int64]]:
    """Indices of the patches that are reasoned together.

    Args:
        patches: the set.
        group: "screen" as served, "single" each patch alone, or "batch:32" shuffled batches of 32 as in the paper.

    Raises:
        ValueError: any other group.
    """
    everything = np.arange(len(patches))
    if group == "screen":
        return patches.by_screen()
    if group == "single":
        return np.array_split(everything, len(everything))
    kind, _, size = group.partition(":")
    if kind != "batch" or not size.isdigit() or int(size) < 1:
        raise ValueError(f"--group is screen, single or batch:N, not {group!r}")
    shuffled = np.random.default_rng(0).permutation(everything)
    return np.split(shuffled, range(int(size), len(shuffled), int(size)))


def by_image(
    probability: NDArray[np.float32], target: NDArray[np.int8], images: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Patches as whole images: the highest probability of each label, and whether the image has it, both (S, L).

    An image has what one of its patches has; a label that is unknown in a patch and present in none is unknown.

    Args:
        probability: (N, L).
        target: (N, L); 1, 0 or -1.
        images: of each of S, the indices of its patches, see `PatchSet.by_screen`.
    """
    present = np.array([(target[image] == 1).any(axis=0) for image in images])
    unknown = np.array([(target[image] < 0).any(axis=0) for image in images])
    highest = np.array([probability[image].max(axis=0) for image in images])
    return highest, np.where(present, 1, np.where(unknown, -1, 0)).astype(np.int8)


def bundle_probability(
    backend: Backend, patches: PatchSet, *, group: str, look: TurnedLook = NO_TURNED_LOOK
) -> NDArray[np.float32]:
    """Probabilities (N, L) of a set by a bundle, patches reasoned in groups; those in doubt as `look` asks."""
    probability = np.zeros((len(patches), len(patches.label_names)), np.float32)
    with Progress() as progress:
        task = progress.add_task("evaluate", total=len(patches))
        for indices in groups(patches, group):
            probability[indices] = _served(backend, patches.pixels(indices), look)
            progress.advance(task, len(indices))
    return probability


def _served(backend: Backend, pixels: NDArray[np.uint8], look: TurnedLook) -> NDArray[np.float32]:
    """Of patches (K, 1, P, P) that are reasoned together, (K, L)."""

    def see_turned(window: int) -> Features:
        return infer(backend, turned(pixels[window, 0]), glance=False)[0]

    features, once = infer(backend, pixels)
    doubtful = in_doubt(once, look)
    if not doubtful:
        return once
    features = look_turned(features, doubtful, see_turned)
    return backend.reason(features.label_features, features.stage1)


def fitting_patches(manifest: Manifest, folders: Sequence[Path], *, part: str | None) -> PatchSet:
    """One part of cut folders, for the bundle of that manifest.

    Raises:
        ValueError: labels or patch size of folder and bundle differ.
    """
    patches = PatchSet(folders, part)
    if patches.label_names != manifest.label_names or patches.patch_px != manifest.patch_px:
        raise ValueError(
            f"the bundle knows {manifest.label_names} at {manifest.patch_px} px, "
            f"the data {patches.label_names} at {patches.patch_px} px"
        )
    return patches


def measured(backend: Backend, folders: Sequence[Path], *, part: str | None, group: str) -> Measured:
    """What `evaluate` measures by the same arguments.

    Raises:
        ValueError: a folder is not cut.
    """
    facts = [cut_facts(folder) for folder in folders]
    return Measured(
        folders=[str(folder) for folder in folders],
        part=part or "all",
        group=group,
        thresholds={label: limits.threshold for label, limits in backend.manifest.labels.items()},
        patch_px=backend.manifest.patch_px,
        stride_px=[one["stride_px"] for one in facts],
        shrink=[one.get("shrink", 1) for one in facts],
        rule=[one["rule"] for one in facts],
        runtime=backend.runtime,
        precision=backend.precision,
        contrast=CONTRAST,
    )


def not_served(manifest: Manifest, folders: Sequence[Path]) -> Iterator[str]:
    """In what the windows of cut folders are not those that a service with this bundle looks at, in words.

    Raises:
        ValueError: a folder is not cut.
    """
    for folder in folders:
        yield from other_windows(folder, overlap_px=manifest.overlap_px)
        if dropped([folder]):
            yield f"{folder} {DROPPED}"


def evaluate(backend: Backend, folders: Sequence[Path], *, part: str | None, group: str) -> Report:
    """A bundle on cut folders, at the manifest's thresholds; screens as they are served, turned looks and all.

    Their windows are the folders', which may be cut otherwise than the service does, see `not_served`.

    Args:
        backend: a loaded bundle.
        folders: cut folders with the bundle's labels and patch size.
        part: train, validation or test; None takes all.
        group: see `groups`.

    Raises:
        ValueError: labels or patch size of folder and bundle differ, a screen is there twice, or the group is unknown.
    """
    manifest = backend.manifest
    refuse_known(folders, [])
    patches = fitting_patches(manifest, folders, part=part)
    look = manifest.turned_look if group == "screen" else NO_TURNED_LOOK  # its share is one of a screen's windows
    probability = bundle_probability(backend, patches, group=group, look=look)
    thresholds = [limits.threshold for limits in manifest.labels.values()]
    found = report(probability, patches.labels, labels=patches.label_names, thresholds=thresholds)
    if not patches.tells_visible:
        return found
    predicted = probability >= np.asarray(thresholds, np.float64)
    bands = recall_by_band(predicted, patches.labels, patches.visible(), labels=patches.label_names)
    return replace(found, bands=bands)
