"""What a bundle says of itself: `manifest.json`, read strictly and written canonically.

A bundle is a folder: two graphs, golden patches, a model card, and this file, which carries every fact
about the model that is not a weight. Reading refuses what it does not understand and names the key, so a
line never runs on a bundle that was altered, cut short or made for another version of this code.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engine.errors import BundleError, NotExported
from engine.fields import Table, parse_object
from engine.looks import NO_GLANCE, NO_TURNED_LOOK, Glance, SecondLook, TurnedLook, refuse_half_a_glance

SCHEMA_VERSION = 4
MANIFEST_FILE = "manifest.json"
REASONING_FILE = "reasoning.onnx"
REQUIRED_FILES = ("features.onnx", REASONING_FILE, "golden.npz", "MODEL_CARD.md")
# the features graph again, in another precision that was made at export
PRECISION_FILES = {
    "features.fp16.onnx": "fp16",
    "features.bf16.onnx": "bf16",
    "features.int8.onnx": "int8",
    "features.int8-trt.onnx": "int8-trt",
}
GLANCE_FILE = "glance.onnx"
OPTIONAL_FILES = (*PRECISION_FILES, GLANCE_FILE)
BUNDLE_FILES = (*REQUIRED_FILES, *OPTIONAL_FILES)
# unsaid where there are none, as before there were any: earlier services read such a manifest still
UNSAID = {"glance": NO_GLANCE, "turned_look": NO_TURNED_LOOK}
BFLOAT_LAYERS = "bfloat16"  # in the metadata of that graph: the names of the layers that may round, one a line
# of the release gate: it lies in the bundle, says of which manifest it is, and is not signed itself
RELEASE_FILE = "release.json"
FEATURES_FILES = {"fp32": "features.onnx", **{precision: name for name, precision in PRECISION_FILES.items()}}
MAX_MANIFEST_BYTES = 2**20
LOOSEST = 0.5  # parity: with more, a graph that always says no would give the golden patches' answers

Outcome = Literal["pass", "fail", "review"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
LABEL = re.compile(r"[a-z][a-z0-9_]{0,31}")
SHA256 = re.compile(r"[0-9a-f]{64}")
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelLimits:
    """Where a label's score is present, and where it is doubtful.

    Attributes:
        threshold: score from which the label counts as present.
        review: (low, high): at or over high the screen fails, from low on a person looks.
    """

    threshold: float
    review: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameLimits:
    """What a frame must be for its verdict to be worth something.

    Attributes:
        saturated_ratio_max: largest share of pixels at 255, in the lines that are looked at: every seventh of a large
            frame.
        contrast_min: grey levels between the darkest and the brightest block, each averaged, below which the frame is
            constant; a block's side is a 32nd of the frame's shorter one.
    """

    saturated_ratio_max: float
    contrast_min: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Every fact about a bundle; labels stand in the order of the graphs' channels.

    Attributes:
        schema_version: version of this form, 4.
        name: of the model.
        version: of the model.
        limits_version: of the limits: 1 as they were exported, one more each time they are calibrated anew.
        labels: limits by label.
        patch_px: side of a patch, P.
        overlap_px: pixels that neighbouring windows share at least.
        glance: which of those the whole network need not see; all are seen in a manifest that does not say.
        second_look: where windows are added to those.
        turned_look: which of all of them are looked at turned, too; none in a manifest that does not say.
        batch_size: patches that the features graph takes at a time, N.
        frame: limits of the frame checks.
        files: SHA-256 by file name.
        parity_tolerance: largest allowed difference of a probability by precision.
        data_id: of the data set that the model was trained on.
        training: figures and origin of the training.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    version: str
    limits_version: int = 1
    labels: dict[str, LabelLimits]
    patch_px: int
    overlap_px: int
    glance: Glance = NO_GLANCE
    second_look: SecondLook
    turned_look: TurnedLook = NO_TURNED_LOOK
    batch_size: int
    frame: FrameLimits
    files: dict[str, str]
    parity_tolerance: dict[str, float]
    data_id: str
    training: dict[str, float | str]

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels, in channel order."""
        return tuple(self.labels)

    @property
    def review_low(self) -> NDArray[np.float64]:
        """By label (C,) the score from which a window does not let its screen pass."""
        return np.array([limits.review[0] for limits in self.labels.values()])

    @property
    def precisions(self) -> tuple[str, ...]:
        """Of the features graphs that the bundle has, fp32 first."""
        return tuple(precision for precision, name in FEATURES_FILES.items() if name in self.files)

    def features_file(self, precision: str) -> str:
        """Name of the features graph of a precision: fp32, fp16, bf16, int8 (for CPUs) or int8-trt (for TensorRT).

        Raises:
            NotExported: it was not made when the bundle was exported.
        """
        if precision not in self.precisions:
            raise NotExported(f"was not exported as {precision}; there are {', '.join(self.precisions)}", key="files")
        return FEATURES_FILES[precision]

    def outcomes(self, scores: Sequence[float], guard: Mapping[str, float]) -> tuple[Outcome, ...]:
        """What the score of each label alone makes of a screen, in channel order.

        A guard band widens the review band on both sides: a score that noise could carry over a limit is looked at. So
        is one that is infinite or no number.

        Args:
            scores: the highest score of each label over the screen, in channel order.
            guard: guard band by label; a label without one has none.
        """

        def outcome(score: float, label: str) -> Outcome:
            low, high = self.labels[label].review
            if score < low - guard.get(label, 0.0):
                return "pass" if math.isfinite(score) else "review"
            return "fail" if high + guard.get(label, 0.0) <= score < math.inf else "review"

        return tuple(outcome(score, label) for score, label in zip(scores, self.labels, strict=True))

    def outcome(self, scores: Sequence[float], guard: Mapping[str, float]) -> Outcome:
        """What a screen's scores make of it; the service asks for proofs before. The arguments are `outcomes`'.

        Review where a score is not finite, whatever the others are: nothing is proven then.
        """
        found = self.outcomes(scores, guard)
        if "fail" in found and all(map(math.isfinite, scores)):
            return "fail"
        return "pass" if set(found) == {"pass"} else "review"

    @classmethod
    def read(cls, bundle: Path) -> "Manifest":
        """Read a bundle's manifest and verify the files that it lists.

        Raises:
            BundleError: the manifest or a file is missing, malformed or altered; `key` says where.
        """
        try:
            with (bundle / MANIFEST_FILE).open("rb") as file:
                manifest = parse(file.read(MAX_MANIFEST_BYTES + 1))
        except OSError as error:
            raise BundleError(
                f"cannot be read: {error.strerror}; is {bundle.name} a bundle?", key=MANIFEST_FILE
            ) from error
        for name in manifest.files:
            try:
                manifest._check(name, file_sha256(bundle / name))
            except OSError as error:
                raise _unreadable(name, error) from error
        return manifest

    def verified(self, bundle: Path, name: str) -> bytes:
        """The bytes of a file, which are those that this manifest was signed with.

        Whoever uses a file takes it from here, whole and once: another bundle may take the folder's place at any time,
        and a file that is read again after it was verified would then be that one's.

        Raises:
            BundleError: it is missing or altered, or of another bundle by now.
        """
        try:
            content = (bundle / name).read_bytes()
        except OSError as error:
            raise _unreadable(name, error) from error
        self._check(name, hashlib.sha256(content).hexdigest())
        return content

    def _check(self, name: str, found: str) -> None:
        if found != self.files[name]:
            raise BundleError("was altered: its SHA-256 is another", key=f"files.{name}")

    def write(self, bundle: Path) -> None:
        """Write `manifest.json`; whatever is written can be read again, and is then written the same.

        Raises:
            BundleError: a value that `read` would refuse.
        """
        canonical = asdict(parse(json.dumps(asdict(self), indent=2).encode()))
        for name in [name for name, none in UNSAID.items() if getattr(self, name) == none]:
            del canonical[name]
        text = json.dumps(canonical, indent=2, ensure_ascii=False) + "\n"
        (bundle / MANIFEST_FILE).write_bytes(text.encode())

    def sign(self, bundle: Path) -> "Manifest":
        """Write this manifest with the hashes of the files that lie in the folder, and return it.

        A release record stays as it is: it holds for the manifest that it names, which may be this one still.

        Raises:
            BundleError: a file that no bundle has, or a value that `read` would refuse.
        """
        there = {path.name for path in bundle.iterdir()} - {MANIFEST_FILE, RELEASE_FILE}
        for name in sorted(there.difference(BUNDLE_FILES)):
            raise BundleError("is no file of a bundle", key=name)
        signed = replace(self, files={name: file_sha256(bundle / name) for name in sorted(there)})
        signed.write(bundle)
        return signed


def graph_precision(runtime: str, precision: str) -> str:
    """The precision under which a bundle knows the graph that a runtime runs: TensorRT has an int8 of its own."""
    return "int8-trt" if (runtime, precision) == ("tensorrt", "int8") else precision


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in lower-case hexadecimal, without holding it in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bundle_sha256(bundle: Path) -> str:
    """Identity of a bundle: SHA-256 of its manifest, which holds the hashes of all else.

    Raises:
        BundleError: it has no manifest.
    """
    try:
        return file_sha256(bundle / MANIFEST_FILE)
    except OSError as error:
        raise BundleError(f"cannot be read: {error.strerror}; is {bundle.name} a bundle?", key=MANIFEST_FILE) from error


def parse(raw: bytes) -> Manifest:
    """Read the manifest's JSON; the bundle's files are not looked at.

    Raises:
        BundleError: the JSON breaks the form; `key` says where.
    """
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BundleError(f"is larger than {MAX_MANIFEST_BYTES} bytes", key=MANIFEST_FILE)
    top = parse_object(raw, path=MANIFEST_FILE)
    top.expect([name for name in Manifest.__slots__ if name not in UNSAID], optional=UNSAID)
    if top.integer("schema_version", low=0, high=2**31) != SCHEMA_VERSION:
        raise BundleError(f"only version {SCHEMA_VERSION} is understood: export the bundle again", key="schema_version")
    patch_px = top.integer("patch_px", low=1, high=2**14)
    files = _files(top.table("files"))
    glance = Glance.parse(top.table("glance")) if "glance" in top.values else NO_GLANCE
    refuse_half_a_glance(glance, made=GLANCE_FILE in files)
    return Manifest(
        name=top.text("name", pattern=NAME),
        version=top.text("version", pattern=NAME),
        limits_version=top.integer("limits_version", low=1, high=2**31),
        labels=_labels(top.table("labels")),
        patch_px=patch_px,
        overlap_px=top.integer("overlap_px", low=0, high=patch_px - 1),
        glance=glance,
        second_look=SecondLook.parse(top.table("second_look")),
        turned_look=TurnedLook.parse(top.table("turned_look")) if "turned_look" in top.values else NO_TURNED_LOOK,
        batch_size=top.integer("batch_size", low=1, high=1024),
        frame=_frame(top.table("frame")),
        files=files,
        parity_tolerance=_parity_tolerance(top.table("parity_tolerance"), files),
        data_id=top.text("data_id"),
        training=_training(top.table("training")),
    )


def _unreadable(name: str, error: OSError) -> BundleError:
    return BundleError(f"cannot be read: {error.strerror}", key=f"files.{name}")


def _labels(table: Table) -> dict[str, LabelLimits]:
    if not table.values:
        raise BundleError("at least one label is needed", key=table.path)
    limits = {}
    for name in table.names(pattern=LABEL):
        entry = table.table(name)
        entry.expect(LabelLimits.__slots__)
        low, high = entry.numbers("review", count=2, low=0.0, high=1.0)
        if low > high:
            raise BundleError(f"low {low} is over high {high}", key=entry.key("review"))
        threshold = entry.number("threshold", low=0.0, high=1.0)
        if threshold == 0:  # which every score reaches
            raise BundleError("must be over 0", key=entry.key("threshold"))
        if not low <= threshold <= high:  # else a screen could pass with a defect present, or fail without one
            raise BundleError(f"{threshold} is outside of the review band", key=entry.key("threshold"))
        limits[name] = LabelLimits(threshold=threshold, review=(low, high))
    return limits


def _frame(table: Table) -> FrameLimits:
    table.expect(FrameLimits.__slots__)
    return FrameLimits(
        saturated_ratio_max=table.number("saturated_ratio_max", low=0.0, high=1.0),
        contrast_min=table.number("contrast_min", low=0.0, high=255.0),
    )


def _files(table: Table) -> dict[str, str]:
    # names from a closed list: no separator, no `..`, no file of another's can be named
    table.expect(REQUIRED_FILES, optional=OPTIONAL_FILES)
    return {name: table.text(name, pattern=SHA256) for name in table.values}


def _parity_tolerance(table: Table, files: dict[str, str]) -> dict[str, float]:
    made = {precision for name, precision in PRECISION_FILES.items() if name in files}
    table.expect(("fp32", *sorted(made)), optional=PRECISION_FILES.values())
    return {precision: table.number(precision, low=0.0, high=LOOSEST) for precision in table.values}


def _training(table: Table) -> dict[str, float | str]:
    values: dict[str, Any] = table.values
    return {
        name: table.text(name) if isinstance(values[name], str) else table.number(name)
        for name in table.names(pattern=KEY)
    }
