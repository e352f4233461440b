"""What another precision changes: probabilities, labels and verdicts of whole screens, beside those of float32."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from engine import NO_GUARD, Backend, Manifest, check_finite, load, seen_whole
from engine.half import rounded_copy
from training.datasets import PatchSet
from training.evaluation import bundle_probability, fitting_patches, report


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """One precision against float32 on the same patches.

    Attributes:
        tolerance: difference of a probability that the bundle states.
        largest: difference of a probability.
        mean: of all differences.
        patches: how many were compared.
        screens: how many they make.
        flipped_labels: probabilities on the other side of their label's threshold, over patches and labels.
        flipped_verdicts: screens by what became of them, such as `review -> pass`, by their scores alone.
        f_measure: macro F of this precision at the bundle's thresholds.
        f_measure_fp32: of float32.
    """

    tolerance: float
    largest: float
    mean: float
    patches: int
    screens: int
    flipped_labels: int
    flipped_verdicts: dict[str, int]
    f_measure: float
    f_measure_fp32: float

    @property
    def holds(self) -> bool:
        """Whether no probability differs by more than is stated."""
        return self.largest <= self.tolerance

    @property
    def f_loss(self) -> float:
        """By how much F is lower than that of float32; negative where it is higher."""
        return self.f_measure_fp32 - self.f_measure


def compare(
    probability: NDArray[np.float32],
    reference: NDArray[np.float32],
    patches: PatchSet,
    manifest: Manifest,
    *,
    precision: str,
) -> Fidelity:
    """Compare the probabilities (N, L) of a precision with those of float32; each set reasoned by screen."""
    gap = np.abs(probability.astype(np.float64) - reference)
    thresholds = np.array([limits.threshold for limits in manifest.labels.values()])  # in float64, as served
    verdicts = zip(*(_outcomes(found, patches, manifest) for found in (reference, probability)), strict=True)
    flips = Counter(f"{before} -> {after}" for before, after in verdicts if before != after)
    macro_f = [
        report(found, patches.labels, labels=patches.label_names, thresholds=thresholds.tolist()).f_measure
        for found in (probability, reference)
    ]
    return Fidelity(
        tolerance=manifest.parity_tolerance[precision],
        largest=float(gap.max()),
        mean=float(gap.mean()),
        patches=len(patches),
        screens=len(patches.by_screen()),
        flipped_labels=int(((probability >= thresholds) != (reference >= thresholds)).sum()),
        flipped_verdicts=dict(sorted(flips.items())),
        f_measure=macro_f[0],
        f_measure_fp32=macro_f[1],
    )


def runtime_of(precision: str) -> str:
    """The runtime for CPUs that computes in a precision, or shows what it gives elsewhere."""
    return "openvino" if precision == "bf16" else "onnxruntime"


@contextmanager
def opened(bundle: Path, precision: str) -> Iterator[Backend]:
    """A backend of one precision, on this CPU, that answers as where it will run: fp16 rounds as a GPU does.

    Without a glance, which would answer the same in every precision.

    Raises:
        BundleError: the bundle is not whole, or has no such precision.
        RuntimeUnavailable: it is bf16, and there is no OpenVINO, or the CPU does not compute in it.
    """
    with (
        seen_whole(bundle) as whole,
        rounded_copy(whole) if precision == "fp16" else nullcontext(whole) as folder,
        closing(load(folder, runtime_of(precision), precision=precision)) as backend,
    ):
        yield backend


def fidelity(bundle: Path, folders: Sequence[Path], *, part: str | None) -> dict[str, Fidelity]:
    """Every other precision of a bundle against its float32 graph.

    Args:
        bundle: a bundle with at least one other precision.
        folders: cut folders with the bundle's labels and patch size.
        part: train, validation or test; None takes all.

    Raises:
        ValueError: the bundle has float32 alone, or does not fit the data.
        ParityError: a precision gives something on extreme patches that is not finite.
    """
    manifest = Manifest.read(bundle)
    others = manifest.precisions[1:]
    if not others:
        raise ValueError(f"{bundle} has float32 alone: export it with --precision")
    patches = fitting_patches(manifest, folders, part=part)
    with opened(bundle, "fp32") as backend:
        reference = bundle_probability(backend, patches, group="screen")
    found = {}
    for precision in others:
        with opened(bundle, precision) as backend:
            check_finite(backend)
            probability = bundle_probability(backend, patches, group="screen")
        found[precision] = compare(probability, reference, patches, manifest, precision=precision)
    return found


def fidelity_table(found: Mapping[str, Fidelity]) -> Table:
    """The figures for people."""
    table = Table(
        "precision", "largest", "tolerance", "mean", "flipped labels", "flipped verdicts", "macro F", "against fp32"
    )
    for name, r in found.items():
        flips = ", ".join(f"{count} {flip}" for flip, count in r.flipped_verdicts.items()) or "none"
        table.add_row(
            name,
            f"{r.largest:.4f}",
            f"{r.tolerance:g} {'holds' if r.holds else '[red]does not hold[/]'}",
            f"{r.mean:.6f}",
            f"{r.flipped_labels} in {r.patches} patches",
            f"{flips}; of {r.screens}",
            f"{r.f_measure:.4f}",
            f"{100 * (r.f_measure - r.f_measure_fp32):+.2f} points",
        )
    return table


def _outcomes(probability: NDArray[np.float32], patches: PatchSet, manifest: Manifest) -> list[str]:
    """What becomes of each screen by its highest scores."""
    return [manifest.outcome(probability[indices].max(axis=0).tolist(), NO_GUARD) for indices in patches.by_screen()]
