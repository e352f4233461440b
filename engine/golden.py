"""The golden patches of a bundle: pixels, and the probabilities and maps that they must give on every machine.

They prove that what is loaded computes what was trained: at export, at load, and while a line runs.
"""

import zipfile
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from engine.backend import Backend, infer
from engine.errors import BundleError, InferenceError
from engine.manifest import Manifest, graph_precision
from engine.parity import map_difference, range_of

GOLDEN_FILE = "golden.npz"
ARRAYS = "pixels", "probability", "activation"
# of a map's range; a cell is warm from half of it on. bfloat16 moves the embedded network's by 0.04.
MAP_TOLERANCE = 0.25

# what NumPy, zipfile, zlib and the parser of NumPy's headers raise on archives that were cut off, altered or
# encrypted, or that are absurdly large
BAD_ARCHIVE = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


MOST_BYTES = 2**28  # of its arrays: a patch of 1024 px takes one, and an export keeps two


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Golden:
    """Patches with known answers.

    Attributes:
        pixels: (G, 1, P, P) grey patches, G >= 1.
        probability: (G, C) what they must give when they are reasoned over together.
        activation: (G, C, h, w) the maps that they must give, but for `MAP_TOLERANCE`.
        tolerance: largest allowed difference of a probability.
    """

    pixels: NDArray[np.uint8]
    probability: NDArray[np.float32]
    activation: NDArray[np.float32]
    tolerance: float

    def batch(self, size: int) -> NDArray[np.uint8]:
        """The patch that shows most, `size` times (size, 1, P, P): if any glance clears it, it is blind."""
        most = int(self.probability.max(axis=1).argmax())
        return np.repeat(self.pixels[most : most + 1], size, axis=0)


def read_golden(bundle: Path, precision: str = "fp32", manifest: Manifest | None = None) -> Golden:
    """The golden patches of a bundle, with the tolerance of the features graph that will run.

    Args:
        bundle: folder of the bundle.
        precision: of that graph: fp32, fp16, bf16, int8 (for CPUs) or int8-trt (for TensorRT).
        manifest: of the bundle that was loaded, whose patches they must be: another may lie in the folder by now. None
            reads the folder's.

    Raises:
        BundleError: the bundle is not whole, has no such precision, or its golden patches do not fit its manifest.
    """
    manifest = manifest or Manifest.read(bundle)
    manifest.features_file(precision)  # a tolerance may be stated for what was not made
    arrays = _read_arrays(manifest.verified(bundle, GOLDEN_FILE))
    pixels, probability, activation = (arrays[name] for name in ARRAYS)
    side, count = manifest.patch_px, len(manifest.labels)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (1, side, side) or not len(pixels):
        raise _refused(f"pixels must be (G, 1, {side}, {side}) uint8, are {pixels.shape} {pixels.dtype}")
    if probability.dtype != np.float32 or probability.shape != (len(pixels), count):
        raise _refused(f"probability must be ({len(pixels)}, {count}) float32, is {probability.shape}")
    if not ((probability >= 0) & (probability <= 1)).all():
        raise _refused("probability must be from 0 to 1")
    if activation.dtype != np.float32 or activation.ndim != 4 or activation.shape[:2] != probability.shape:
        raise _refused(f"activation must be ({len(pixels)}, {count}, h, w) float32, is {activation.shape}")
    if not activation.size or not np.isfinite(activation).all():
        raise _refused("activation must be finite numbers")
    tolerance = manifest.parity_tolerance[precision]
    return Golden(pixels=pixels, probability=probability, activation=activation, tolerance=tolerance)


def self_test(backend: Backend, golden: Golden) -> float:
    """Run the golden patches and compare: scores of all, maps of those that no glance cleared.

    A map below every threshold is never drawn. A glance must not clear a patch that shows something.

    Returns:
        The largest difference of a probability.

    Raises:
        InferenceError: it is over the tolerance or not a number, the maps show something else, or the runtime failed.
    """
    features, probability = infer(backend, golden.pixels)
    difference = float(np.abs(probability - golden.probability).max())
    if not difference <= golden.tolerance:  # written so that NaN fails
        raise InferenceError(
            f"the golden patches differ by {difference:.3g}, over the tolerance of {golden.tolerance:g}"
        )
    if backend.runtime == "fake":  # which has no maps
        return difference
    if features.activation.shape != golden.activation.shape:
        raise InferenceError(
            f"the activation maps of the golden patches are {features.activation.shape}, not {golden.activation.shape}"
        )
    seen = ~backend.manifest.glance.clears(features.doubt)
    shown = (golden.probability >= backend.manifest.review_low).any(axis=1)
    if not seen.any() or not seen[shown].all():
        raise InferenceError("a glance clears golden patches that show something, or all of them")
    ranges = _ranges(golden, backend.manifest)
    moved = map_difference(features.activation[seen], golden.activation[seen], ranges)
    if not moved <= MAP_TOLERANCE:
        raise InferenceError(
            f"the activation maps of the golden patches differ by {moved:.3g} of their range, over the tolerance of "
            f"{MAP_TOLERANCE:g}"
        )
    return difference


def _ranges(golden: Golden, manifest: Manifest) -> NDArray[np.float64]:
    """What each label's maps are held against: their own range for a label that a golden patch has.

    Any other's map may vary by rounding alone, so it is held against the widest range of all.
    """
    range_C = range_of(golden.activation)
    thresholds = np.array([limits.threshold for limits in manifest.labels.values()])
    return np.where((golden.probability >= thresholds).any(axis=0), range_C, range_C.max())


def made_as(backend: Backend) -> str:
    """The precision under which a bundle knows the graph that a backend runs."""
    return graph_precision(backend.runtime, backend.precision)


def _read_arrays(raw: bytes) -> dict[str, NDArray[Any]]:
    try:
        arrays = np.load(BytesIO(raw), allow_pickle=False)
        if not isinstance(arrays, NpzFile) or sorted(arrays) != sorted(ARRAYS):
            raise _refused(f"must be an archive of {', '.join(ARRAYS)}, nothing else")
        assert arrays.zip is not None  # it is open
        inflated = sum(entry.file_size for entry in arrays.zip.infolist())
        if inflated > MOST_BYTES:
            raise _refused(f"takes {inflated} bytes of memory, over the limit of {MOST_BYTES}")
        members: dict[str, object] = {name: arrays[name] for name in arrays}  # bytes, where one is no array
        if not all(isinstance(member, np.ndarray) for member in members.values()):
            raise _refused("has a member that is no array")
        return {name: np.asarray(member) for name, member in members.items()}
    except BAD_ARCHIVE as error:
        raise _refused("cannot be read as arrays") from error


def _refused(detail: str) -> BundleError:
    return BundleError(detail, key=GOLDEN_FILE)
