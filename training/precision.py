"""The other precisions of a bundle, made at export, each only if it holds: fp16, bf16, int8 for CPUs and for TensorRT.

Each is refused if it differs from float32 by more than its tolerance, on the telling patches or anywhere on the test
part (without one, on the validation part, on which thresholds were chosen), if it loses F there, or gives something on
extreme patches that is not finite; those for CPUs also if they are not faster. What is refused is not offered: a line
gains nothing from a graph that is worse, or no faster.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich import get_console

from engine import (
    MAP_TOLERANCE,
    Backend,
    Manifest,
    ParityError,
    check_finite,
    check_parity,
    load,
    read_golden,
    self_test,
)
from engine.bfloat import write_bfloat
from engine.half import write_half
from engine.quantise import convolutions, quantise
from engine.speed import FASTER_BY, Speed, speed_by_turns
from training.datasets import PatchSet
from training.evaluation import bundle_probability
from training.fidelity import Fidelity, compare, opened, runtime_of
from training.network import FeaturesGraph

# Largest difference of a probability on any patch. 0.05 is what a review band reaches at least above the threshold, so
# that no score crosses from below the one to above the other. A trunk in half precision has moved a faint defect of the
# embedded network by 0.08, one patch in two thousand, so that 0.05 cannot be promised of what was not seen.
TOLERANCES = {"fp16": 0.1, "bf16": 0.1, "int8": 0.05, "int8-trt": 0.05}
# of the tolerance, which the part that is judged may use where it is chosen how much is narrowed: a patch of the line
# may move by more than any of that part
ROOM = 0.5
ONCE = "Each patch looked at once, also where the bundle asks for turned looks."
F_LOSS = 0.003  # of macro F, 0.3 points
CALIBRATION_PATCHES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a precision is made from and held against.

    Attributes:
        features: the module.
        calibration: (K, 1, P, P) patches of the training part.
        pixels: (K, 1, P, P) telling patches.
        expected: (K, L) probabilities that float32 gives them, reasoned together.
        activation: (K, L, h, w) maps that float32 gives them.
        patches: the part that differences and F are measured on.
        reference: (N, L) probabilities of that part by float32, reasoned by screen.
    """

    features: FeaturesGraph
    calibration: NDArray[np.uint8]
    pixels: NDArray[np.uint8]
    expected: NDArray[np.float32]
    activation: NDArray[np.float32]
    patches: PatchSet
    reference: NDArray[np.float32]


class Made(NamedTuple):
    """A precision that holds.

    `kept`: how many of the trunk's convolutions stay in float32, and how many there are; None for fp16, where none
    does. `speed` is known of what runs on this CPU.
    """

    fidelity: Fidelity
    kept: tuple[int, int] | None
    speed: Speed | None


def add_precisions(bundle: Path, precisions: Sequence[str], proof: Proof) -> dict[str, Made]:
    """Make other precisions of a bundle and sign it again.

    Args:
        bundle: a whole float32 bundle.
        precisions: of fp16, bf16, int8 and int8-trt.
        proof: what they are made from and held against.

    Raises:
        ParityError: one of them does not hold; the bundle is then not to be used.
        RuntimeUnavailable: bf16 cannot be tried here: it takes OpenVINO and a CPU that has it.
    """
    made = {}
    with TemporaryDirectory() as scratch:
        for precision in dict.fromkeys(precisions):
            manifest = Manifest.read(bundle)
            tolerances = {**manifest.parity_tolerance, precision: TOLERANCES[precision]}
            manifest = replace(manifest, parity_tolerance=tolerances)
            if precision == "fp16":
                write_half(bundle, proof.features, part=proof.features.TRUNK, patch_px=manifest.patch_px)
                manifest.sign(bundle)
                kept, found = None, _measured(bundle, precision, proof)
            else:
                kept, found = _narrow_what_holds(bundle, manifest, precision, proof, ranges=Path(scratch) / "ranges")
            made[precision] = Made(found, kept, _proven(bundle, precision, proof, found))
    manifest = Manifest.read(bundle)
    facts = {name: value for precision, one in made.items() for name, value in _facts(precision, one).items()}
    with (bundle / "MODEL_CARD.md").open("a") as card:
        card.write(_section(made, manifest))
    replace(manifest, training={**manifest.training, **facts}).sign(bundle)
    return made


def calibration_patches(patches: PatchSet, *, seed: int) -> NDArray[np.uint8]:
    """Patches (K, 1, P, P) to take ranges from: half of them with a label where there are so many."""
    labelled = (patches.labels == 1).any(axis=1)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(patches))
    half = CALIBRATION_PATCHES // 2
    first = [*order[labelled[order]][:half], *order[~labelled[order]][:half]]
    chosen = list(dict.fromkeys([*first, *order]))[:CALIBRATION_PATCHES]
    return patches.pixels(chosen)


def _narrow_what_holds(
    bundle: Path, manifest: Manifest, precision: str, proof: Proof, *, ranges: Path
) -> tuple[tuple[int, int], Fidelity]:
    """Narrow as much of the trunk as half of the tolerance allows; the other half is for patches that were not seen.

    Found on the telling patches by halving: keeping one more is taken to lose no more. What that finds is measured on
    the whole part, and one more is kept as long as a patch there moves by more. Where no number leaves the half, the
    first that holds at all is taken, and where none does, the last.

    Returns:
        How many convolutions stay in float32, and of how many; and what the whole part shows of the graph.
    """
    part = proof.features.TRUNK
    count = convolutions(bundle, part)

    def write(keep: int) -> None:
        with get_console().status(f"{precision}: {count - keep} of {count} convolutions"):
            if precision == "bf16":
                write_bfloat(bundle, part=part, keep=keep)
            else:
                quantise(bundle, precision, pixels=proof.calibration, part=part, keep=keep, ranges=ranges)
            manifest.sign(bundle)

    def holds(keep: int) -> bool:
        write(keep)
        with opened(bundle, precision) as backend:
            try:
                _check_telling(backend, proof, room=ROOM)
            except ParityError:
                return False
        return True

    keep = bisect_left(range(count - 1), True, key=holds)
    first: tuple[int, Fidelity] | None = None
    while True:
        write(keep)
        found = _measured(bundle, precision, proof)
        if found.largest <= ROOM * found.tolerance:
            return (keep, count), found
        if found.holds and first is None:
            first = keep, found
        if keep >= count - 1:
            break
        keep += 1
    if first is not None:
        keep, found = first
        write(keep)
    return (keep, count), found


def _measured(bundle: Path, precision: str, proof: Proof) -> Fidelity:
    """A precision against float32 on the whole part."""
    with opened(bundle, precision) as backend:
        probability = bundle_probability(backend, proof.patches, group="screen")
    return compare(probability, proof.reference, proof.patches, Manifest.read(bundle), precision=precision)


def _check_telling(backend: Backend, proof: Proof, *, room: float = 1.0) -> None:
    tolerance = room * TOLERANCES[backend.precision]
    check_parity(
        backend, proof.pixels, proof.expected, proof.activation, tolerance=tolerance, map_tolerance=MAP_TOLERANCE
    )


def _proven(bundle: Path, precision: str, proof: Proof, found: Fidelity) -> Speed | None:
    """Hold a precision against float32; how fast it is, where that is known.

    Raises:
        ParityError: it does not hold.
    """
    with opened(bundle, precision) as backend:
        check_finite(backend)
        _check_telling(backend, proof)
    if not found.holds:
        raise ParityError(
            f"{precision} is refused: on {found.patches} patches a probability differs from that of fp32 by "
            f"{found.largest:.4f}, over the tolerance of {found.tolerance:g}"
        )
    if found.f_loss > F_LOSS:
        raise ParityError(
            f"{precision} is refused: its macro F is {found.f_measure:.4f}, that of fp32 {found.f_measure_fp32:.4f} "
            f"on {found.patches} patches; {100 * F_LOSS:g} points may be lost"
        )
    with closing(load(bundle, runtime_of(precision), precision=precision)) as served:
        self_test(served, read_golden(bundle, precision))
        return _faster(bundle, served) if precision in ("bf16", "int8") else None


def _faster(bundle: Path, served: Backend) -> Speed:
    with closing(load(bundle, served.runtime, precision="fp32")) as fp32:
        speed = speed_by_turns(fp32, served, in_row=2)  # as many are under way in service
    if not speed.faster:
        raise ParityError(
            f"{served.precision} is refused: it does {speed.other:.0f} patches/s here, fp32 {speed.reference:.0f}; it "
            f"must be {FASTER_BY:g} times as fast"
        )
    return speed


def _facts(precision: str, made: Made) -> dict[str, float | str]:
    """What the manifest keeps of it."""
    found = made.fidelity
    facts: dict[str, float | str] = {
        f"{precision}_f_measure": round(found.f_measure, 4),
        f"{precision}_largest_difference": round(found.largest, 5),
        f"{precision}_flipped_verdicts": float(sum(found.flipped_verdicts.values())),
    }
    if made.kept is not None:
        facts[f"{precision}_float_convolutions"] = "{} of {}".format(*made.kept)
    facts[f"{precision}_speed"] = _speed_text(made.speed)
    return facts


def _speed_text(speed: Speed | None) -> str:
    if speed is None:
        return "not measured: it takes a GPU"
    return f"{speed.other / speed.reference:.2f} times fp32 where it was exported"


def _section(made: Mapping[str, Made], manifest: Manifest) -> str:
    """The model card's section."""
    lines = [
        "",
        "## Precisions beside float32",
        "",
        ONCE,
        "",
        "| precision | tolerance | largest difference | mean | verdicts that differ | macro F (fp32) "
        "| convolutions in float32 | speed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for precision, one in made.items():
        r = one.fidelity
        kept = "-" if one.kept is None else "{} of {}".format(*one.kept)
        lines.append(
            f"| {precision} | {manifest.parity_tolerance[precision]:g} | {r.largest:.4f} | {r.mean:.6f} "
            f"| {sum(r.flipped_verdicts.values())} of {r.screens} | {r.f_measure:.4f} ({r.f_measure_fp32:.4f}) "
            f"| {kept} | {_speed_text(one.speed)} |"
        )
    return "\n".join([*lines, ""])
