"""The file to read first: what happens to one screen, from its bytes to its recorded verdict.

No HTTP here. The routes call `inspect` in a thread of the screen's own, and so does the command line; whatever goes
wrong is an exception of `service.errors` or `engine`, and never a verdict.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog
import xxhash
from pydantic import TypeAdapter

from engine import Backend, Window, cover
from service.aggregation import Observed, aggregate
from service.errors import Conflict
from service.images import Frame, Source, decode
from service.scheduler import Scheduler
from service.store import Answered
from service.verdict import Model, Timing, Verdict

_VERDICT = TypeAdapter(Verdict)

log: structlog.stdlib.BoundLogger = structlog.get_logger("service.inspector")


class Record(Protocol):
    """Where answers are kept; `service.store.Store` is the real one."""

    def find(self, screen_id: str) -> Answered | None:
        """The answer given for a screen before."""

    def record(self, answered: Answered) -> None:
        """Keep an answer durably, or raise."""


class Forgetful:
    """A record that keeps nothing: for inspecting files without a service."""

    def find(self, screen_id: str) -> Answered | None:
        """Nothing was answered before."""

    def record(self, answered: Answered) -> None:
        """Forget it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inspection:
    """What became of one screen.

    Attributes:
        answer: the JSON text to send.
        frame: what was inspected.
        verdict: what the text says; None where the answer had been given before.
        record_s: time to record it.
    """

    answer: str
    frame: Frame
    verdict: Verdict | None
    record_s: float


class Inspector:
    """Inspects screens with one bundle.

    Args:
        backend: reasons over a screen; any device's will do, they are of the same bundle.
        scheduler: computes features.
        record: of what was answered.
        frame_size: (height, width) agreed for the line; None leaves it to the sender.
        max_pixels: largest frame.
        clock: monotonic seconds, the scheduler's.
    """

    def __init__(
        self,
        backend: Backend,
        scheduler: Scheduler,
        record: Record,
        *,
        frame_size: tuple[int, int] | None,
        max_pixels: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._scheduler = scheduler
        self._record = record
        self._frame_size = frame_size
        self._max_pixels = max_pixels
        self._clock = clock

    def inspect(self, screen_id: str, source: Source, *, deadline_at: float, receive_s: float = 0.0) -> Inspection:
        """One screen: decode, cover, compute, reason, judge, record.

        The same id with the same pixels gets the answer that it got before. Two calls for one id never run at the
        same time; `service.admission` sees to that.

        Args:
            screen_id: as the line named it.
            source: its bytes.
            deadline_at: when the answer is no longer of use.
            receive_s: how long the bytes took to arrive, for the record.

        Raises:
            ServiceError: it cannot be inspected, or not now.
            InferenceError: the device failed.
            StoreError: the record failed.
        """
        manifest = self._backend.manifest
        lap = _Lap(self._clock)

        frame = decode(source, agreed=self._frame_size, patch_px=manifest.patch_px, max_pixels=self._max_pixels)
        digest = xxhash.xxh3_128_hexdigest(frame.pixels.data)
        decode_s = lap()

        known = self._record.find(screen_id)
        if known is not None:
            if known.digest != digest:
                raise Conflict(f"screen {screen_id} was answered before, for other pixels")
            return Inspection(answer=known.answer, frame=frame, verdict=None, record_s=0.0)

        windows = self._cover(*frame.pixels.shape)
        computed = self._scheduler.compute(frame.pixels, windows, deadline_at=deadline_at)

        lap()
        probability = self._backend.reason(computed.features.label_features, computed.features.stage1)
        reasoning_s = lap()

        seen = Observed(
            frame=frame.pixels,
            size_from=frame.size_from,
            expected=self._cover(*(self._frame_size or frame.pixels.shape)),
            windows=windows,
            probability=probability,
            activation=computed.features.activation,
            self_test=computed.self_test,
        )
        judgement = aggregate(seen, manifest)
        aggregate_s = lap()

        verdict = Verdict(
            screen_id=screen_id,
            verdict=judgement.verdict,
            reasons=judgement.reasons,
            model=Model(name=manifest.name, version=manifest.version),
            labels=judgement.labels,
            defects=judgement.defects,
            proof=judgement.proof,
            timing=Timing(
                receive_s=receive_s,
                decode_s=decode_s,
                queue_s=computed.queue_s,
                features_s=computed.features_s,
                reasoning_s=reasoning_s,
                aggregate_s=aggregate_s,
            ),
        )
        answer = to_json(verdict)
        lap()
        self._record.record(Answered(screen_id=screen_id, digest=digest, verdict=verdict.verdict, answer=answer))
        log.info("inspected", screen_id=screen_id, verdict=verdict.verdict, reasons=verdict.reasons)
        return Inspection(answer=answer, frame=frame, verdict=verdict, record_s=lap())

    def _cover(self, height: int, width: int) -> tuple[Window, ...]:
        manifest = self._backend.manifest
        return cover(height, width, patch_px=manifest.patch_px, overlap_px=manifest.overlap_px)


def to_json(verdict: Verdict) -> str:
    """The JSON text of a verdict, on one line."""
    return _VERDICT.dump_json(verdict).decode()


def from_json(text: str) -> Verdict:
    """The verdict of such a text.

    Raises:
        ValueError: it is no verdict.
    """
    return _VERDICT.validate_json(text)


class _Lap:
    """A stopwatch: each call gives the seconds since the last one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = clock()

    def __call__(self) -> float:
        before, self._since = self._since, self._clock()
        return self._since - before
