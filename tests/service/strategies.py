"""Screens that were inferred, for the tests of what is made of them."""

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from engine import FrameLimits, LabelLimits, Manifest, cover, fake_manifest
from service.aggregation import Judgement, Observed, aggregate
from service.meter import Brightness
from service.selftest import SelfTestReport

PATCH_PX = 16
LABELS = ("bubble", "scratch")
FRESH = SelfTestReport(ok=True, age_s=5.0, difference=0.0, detail="")
# scores on, just under and far from the limits of `manifest()`
SCORES = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, float(np.nextafter(np.float32(0.75), np.float32(0)))])
ANY_SCORE = SCORES | st.floats(0, 1, width=32)
# few levels, so that maps have shapes and not only noise
HEAT = st.sampled_from([0.0, 0.0, 0.0, 1.0, 0.4])


@dataclass(frozen=True, slots=True, eq=False)
class Screen:
    """What was seen, and the bundle that judges it."""

    seen: Observed
    manifest: Manifest

    def judge(self) -> Judgement:
        return aggregate(self.seen, self.manifest)

    def scored(self, probability: NDArray[np.float32]) -> "Screen":
        return replace(self, seen=replace(self.seen, probability=probability))


def manifest(*, overlap_px: int = 0, threshold: float = 0.5) -> Manifest:
    """Limits that float32 holds exactly: review from a quarter, fail from three quarters."""
    return replace(
        fake_manifest(LABELS, patch_px=PATCH_PX, overlap_px=overlap_px),
        labels={label: LabelLimits(threshold=threshold, review=(0.25, 0.75)) for label in LABELS},
        frame=FrameLimits(saturated_ratio_max=0.5, contrast_min=4.0),
    )


def frame_of(height: int, width: int) -> NDArray[np.uint8]:
    """A frame that passes the frame checks."""
    return np.random.default_rng(0).integers(100, 140, (height, width), np.uint8)


def showing(seen: Observed, frame: NDArray[np.uint8]) -> Observed:
    """The same screen with the pixels of another frame."""
    return replace(seen, brightness=Brightness.of(frame))


def screen(
    height: int = 3 * PATCH_PX,
    width: int = 5 * PATCH_PX,
    *,
    overlap_px: int = 0,
    cells: tuple[int, int] = (4, 4),
) -> Screen:
    """A clean screen with a complete proof: no score, flat maps."""
    windows = cover(height, width, patch_px=PATCH_PX, overlap_px=overlap_px)
    form = (len(windows), len(LABELS))
    seen = Observed(
        brightness=Brightness.of(frame_of(height, width)),
        size_from="setting",
        expected=windows,
        windows=windows,
        windows_turned=0,
        windows_cleared=0,
        probability=np.zeros(form, np.float32),
        activation=np.zeros((*form, *cells), np.float32),
        self_test=FRESH,
    )
    return Screen(seen, manifest(overlap_px=overlap_px))


@st.composite
def screens(
    draw: st.DrawFn, *, scores: st.SearchStrategy[float] = ANY_SCORE, heat: st.SearchStrategy[float] = HEAT
) -> Screen:
    """Screens of any size with a complete proof; frames are often no multiple of the patch, so windows shift."""
    height, width = draw(st.tuples(*[st.integers(PATCH_PX, 3 * PATCH_PX)] * 2))
    cells = draw(st.tuples(*[st.integers(1, 6)] * 2))
    clean = screen(height, width, overlap_px=draw(st.sampled_from([0, 0, 3, 8])), cells=cells)
    probability = draw(hnp.arrays(np.float32, clean.seen.probability.shape, elements=scores))
    activation = draw(hnp.arrays(np.float32, clean.seen.activation.shape, elements=heat))
    return replace(clean, seen=replace(clean.seen, probability=probability, activation=activation))
