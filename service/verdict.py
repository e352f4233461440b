"""What the line controller receives: frozen values with exactly the keys of the JSON answer.

Boxes are half-open, in pixels of the whole frame. `tests/golden/verdict_*.json` hold the contract.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from pydantic import TypeAdapter

from engine import POSITIONS

Outcome = Literal["pass", "fail", "review"]
FrameSizeFrom = Literal["setting", "query", "header"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Which bundle decided.

    Attributes:
        name: of its model.
        version: of its model.
        limits: version of its thresholds and review bands.
    """

    name: str
    version: str
    limits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelResult:
    """One label over the whole screen.

    Attributes:
        score: highest over the windows, 0 to 1.
        count: merged defects of this label.
        threshold: score from which it is present, of the bundle.
        present: whether the score reaches the threshold.
    """

    score: float
    count: int
    threshold: float
    present: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """Pixels of the frame; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """One defect, merged over the patches that it crosses.

    Attributes:
        label: what it is.
        score: of its strongest patch, 0 to 1.
        row: of that patch in the grid of windows; of a second look, of the upper left of those between which it lies.
        column: of that patch.
        patches: how many patches it crosses.
        box: where it is, as coarse as the activation map.
    """

    label: str
    score: float
    row: int
    column: int
    patches: int
    box: Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Why a pass may be believed.

    Attributes:
        frame_size_from: who agreed the frame's size: the line's setting, the raw frame's query, or the
            file's header.
        windows_expected: windows that cover a frame of the agreed size.
        windows_inferred: how many of those have a score.
        windows_extra: windows with a score besides those: of a second look, where a border may cut a defect.
        windows_turned: how many of all these were in doubt, and looked at in the seven other positions, too.
        windows_cleared: how many of them a glance found clean, so that the whole network has not seen them; their
            features are those of a clean window. 0 where the bundle asks for no glance, and on a GPU.
        covered: whether every pixel of the frame lies in a window with a score.
        finite: whether every score is a number.
        self_test_age_s: time since the golden patches last gave their known answers on the device that
            ran this screen; None when they never did.
    """

    frame_size_from: FrameSizeFrom
    windows_expected: int
    windows_inferred: int
    windows_extra: int
    windows_turned: int
    windows_cleared: int
    covered: bool
    finite: bool
    self_test_age_s: float | None

    @property
    def patches(self) -> int:
        """What a device has computed for it."""
        return self.windows_inferred + self.windows_extra + (POSITIONS - 1) * self.windows_turned


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Where the time went.

    Attributes:
        receive_s: until the body was there, with the wait for room before it was read.
        decode_s: of the file, with the look at every line of its frame.
        queue_s: all the time that the screen waited from then on: to be decoded, for the room that this takes, and for
            its device.
        features_s: time in which the device worked on it.
        reasoning_s: over all its windows together.
        aggregate_s: from scores to the verdict.
    """

    receive_s: float
    decode_s: float
    queue_s: float
    features_s: float
    reasoning_s: float
    aggregate_s: float

    @classmethod
    def of(cls, seconds: Mapping[str, float]) -> "Timing":
        """From the seconds of each of `STAGES`; of others nothing is told."""
        return cls(**{f"{stage}_s": seconds[stage] for stage in STAGES})

    @property
    def by_stage(self) -> dict[str, float]:
        """Seconds by the names of `STAGES`."""
        return {stage: getattr(self, f"{stage}_s") for stage in STAGES}


STAGES = tuple(field.name.removesuffix("_s") for field in fields(Timing))  # of an inspection, in their order


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer for one screen.

    Attributes:
        screen_id: as the line named it.
        verdict: `pass`, `fail` or `review`.
        reasons: stable codes, the one that decided first; none for a pass. See `service.aggregation`.
        model: which bundle decided.
        labels: by name, in the bundle's order.
        defects: the strongest first.
        proof: why a pass may be believed.
        timing: where the time went.
    """

    screen_id: str
    verdict: Outcome
    reasons: tuple[str, ...]
    model: Model
    labels: dict[str, LabelResult]
    defects: tuple[Defect, ...]
    proof: Proof
    timing: Timing


_VERDICT = TypeAdapter(Verdict)


def to_json(verdict: Verdict) -> str:
    """The JSON text of a verdict, on one line."""
    return _VERDICT.dump_json(verdict).decode()


def from_json(text: str) -> Verdict:
    """The verdict of such a text.

    Raises:
        ValueError: it is no verdict.
    """
    return _VERDICT.validate_json(text)
