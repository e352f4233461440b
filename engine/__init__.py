"""What a bundle is, how a screen is cut, and the runtimes that execute it.

Importing this package loads numpy alone; a runtime is imported by `load`, in its own file. What `training` makes a
bundle with, such as `engine.export`, needs onnx or torch and is imported by name.
"""

from pathlib import Path

from engine.backend import NO_GUARD, Backend, Batch, Features, infer, load, load_all, recover, stream
from engine.batches import Batches
from engine.copies import changed_copy, seen_whole
from engine.cpus import available_cpus
from engine.errors import (
    BundleError,
    DeviceLost,
    EngineError,
    InferenceError,
    NotExported,
    ParityError,
    PlanError,
    RuntimeUnavailable,
)
from engine.fake import FakeBackend, fake_manifest
from engine.golden import MAP_TOLERANCE, Golden, made_as, read_golden, self_test
from engine.locks import alone
from engine.looks import NO_GLANCE, NO_SECOND_LOOK, NO_TURNED_LOOK, Glance, SecondLook, TurnedLook
from engine.manifest import (
    GLANCE_FILE,
    LABEL,
    RELEASE_FILE,
    FrameLimits,
    LabelLimits,
    Manifest,
    bundle_sha256,
    graph_precision,
)
from engine.parity import Difference, check_finite, check_parity
from engine.pixels import to_grey
from engine.running import RunsAs, runs_as, would_run_as
from engine.second_look import look_again
from engine.slots import measure_slots, slot_patches
from engine.tuning import Tuning, tuning_of
from engine.turned_look import POSITIONS, averaged, in_doubt, look_turned, turned
from engine.warmth import warm_cells
from engine.windows import Window, cover, cut

DEFAULT_BUNDLE = Path(__file__).parent / "bundles" / "default"

__all__ = [
    "DEFAULT_BUNDLE",
    "GLANCE_FILE",
    "LABEL",
    "MAP_TOLERANCE",
    "NO_GLANCE",
    "NO_GUARD",
    "NO_SECOND_LOOK",
    "NO_TURNED_LOOK",
    "POSITIONS",
    "RELEASE_FILE",
    "Backend",
    "Batch",
    "Batches",
    "BundleError",
    "DeviceLost",
    "Difference",
    "EngineError",
    "FakeBackend",
    "Features",
    "FrameLimits",
    "Glance",
    "Golden",
    "InferenceError",
    "LabelLimits",
    "Manifest",
    "NotExported",
    "ParityError",
    "PlanError",
    "RunsAs",
    "RuntimeUnavailable",
    "SecondLook",
    "Tuning",
    "TurnedLook",
    "Window",
    "alone",
    "available_cpus",
    "averaged",
    "bundle_sha256",
    "changed_copy",
    "check_finite",
    "check_parity",
    "cover",
    "cut",
    "fake_manifest",
    "graph_precision",
    "in_doubt",
    "infer",
    "load",
    "load_all",
    "look_again",
    "look_turned",
    "made_as",
    "measure_slots",
    "read_golden",
    "recover",
    "runs_as",
    "seen_whole",
    "self_test",
    "slot_patches",
    "stream",
    "to_grey",
    "tuning_of",
    "turned",
    "warm_cells",
    "would_run_as",
]
