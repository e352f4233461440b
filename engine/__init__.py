"""What a bundle is, how a screen is cut, and the runtimes that execute it.

Importing this package loads numpy alone; a runtime is imported by `load`, in its own file. `engine.export`
needs torch and is imported by name.
"""

from pathlib import Path

from engine.backend import NO_GUARD, Backend, Features, infer, load
from engine.cpus import available_cpus
from engine.errors import BundleError, EngineError, InferenceError, ParityError, RuntimeUnavailable
from engine.fake import FakeBackend, fake_manifest
from engine.golden import Golden, read_golden, self_test
from engine.manifest import FrameLimits, LabelLimits, Manifest
from engine.parity import Difference
from engine.pixels import to_grey
from engine.slots import Spread, measure_slots, slot_spread
from engine.windows import Window, cover, cut

DEFAULT_BUNDLE = Path(__file__).parent / "bundles" / "default"

__all__ = [
    "DEFAULT_BUNDLE",
    "NO_GUARD",
    "Backend",
    "BundleError",
    "Difference",
    "EngineError",
    "FakeBackend",
    "Features",
    "FrameLimits",
    "Golden",
    "InferenceError",
    "LabelLimits",
    "Manifest",
    "ParityError",
    "RuntimeUnavailable",
    "Spread",
    "Window",
    "available_cpus",
    "cover",
    "cut",
    "fake_manifest",
    "infer",
    "load",
    "measure_slots",
    "read_golden",
    "self_test",
    "slot_spread",
    "to_grey",
]
