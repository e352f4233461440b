"""The file to read first: what happens to one screen, from its bytes to its recorded verdict.

    1  receive    service.bodies        body -> bytes, or lines as they come
    2  decode     service.images        bytes -> frame (H, W)
    3  cover      engine.windows        frame -> K windows
    4  queue      service.scheduler     all K patches, or none
    5  features   engine.backend        batches of one screen, on the device's own thread
    6  reason     service.reasoning     all K patches together -> (K, C) probabilities
                  engine.second_look    where a border may cut a defect, once more 4 to 6
                  engine.turned_look    windows in doubt in all positions, once more 4 to 6
                  service.early         either of them while lines still come
    7  aggregate  service.aggregation   probabilities -> verdict, with the proof of a pass
    8  record     service.store         and only then answer

One bundle does it all: a screen takes the one that is in service as step 2 begins, and `service.models` swaps between
screens. A raw frame needs no decoding: its windows are computed as soon as their lines are there, steps 1 and 5 at the
same time. No HTTP here: step 1 and the answer are the routes'. They call `inspect` in a thread of the screen's own, and
so does the command line. Whatever goes wrong is an exception of `service.errors`, `service.store` or `engine`, and
never a verdict.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from engine import NO_GUARD, Backend, Manifest, Window, cover
from service.aggregation import Judgement, Observed, aggregate
from service.early import EarlyLooks
from service.errors import BodyTooSlow, Conflict, DeadlineExceeded
from service.images import RAW, Frame, Source, decode
from service.meter import Brightness, FrameMeter
from service.reasoning import Reasoned, Reasoner
from service.room import Decoding
from service.scheduler import Scheduler
from service.stopwatch import Stopwatch
from service.store import Answered
from service.verdict import Model, Timing, Verdict, to_json

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
        answered: what is recorded of it.
        frame: what was inspected.
        verdict: what the text says; None where the answer had been given before.
        record_s: time to record it.
        guard: guard band by label that it was judged with; empty where nothing was judged now.
        windows: K that it was judged by, those of a second look last; none where nothing was judged now.
        turned: places among them of those that were looked at turned, too.
        cleared: (K,) which of them a glance alone has seen.
        probability: (K, C) their scores.
    """

    answered: Answered
    frame: Frame
    verdict: Verdict | None
    record_s: float
    guard: Mapping[str, float]
    windows: tuple[Window, ...]
    turned: tuple[int, ...]
    cleared: NDArray[np.bool_]
    probability: NDArray[np.float32]

    @property
    def answer(self) -> str:
        """The JSON text to send."""
        return self.answered.answer


class Inspector:
    """Inspects screens with one bundle.

    Args:
        backend: reasons over a screen: any device's will do, as it does so in float32 on the CPU for all of them. The
            guard band is not one for all: it comes with the features, from the device that computed them.
        scheduler: computes features.
        record: of what was answered.
        frame_size: (height, width) agreed for the line; None leaves it to the sender.
        max_pixels: largest frame.
        decoding: what it shares with all others that decode files; by default it has its own, without a bound.
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
        decoding: Decoding | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._scheduler = scheduler
        self._record = record
        self._frame_size = frame_size
        self._max_pixels = max_pixels
        self._clock = clock
        self._decoding = decoding or Decoding()
        self._reasoner = Reasoner(backend, scheduler, clock=clock)

    def inspect(self, screen_id: str, source: Source, *, deadline_at: float, receive_s: float = 0.0) -> Inspection:
        """One screen: decode, cover, compute, reason, judge, record.

        The same id with the same pixels gets the answer that it got before. Two calls for one id never run at the
        same time; `service.admission` sees to that.

        Args:
            screen_id: as the line named it.
            source: its bytes, let go once they are decoded; raw lines may still be coming.
            deadline_at: when the answer is no longer of use.
            receive_s: how long the bytes took to arrive, for the record; of raw lines what passed before this call.

        Raises:
            ServiceError: it cannot be inspected, or not now.
            InferenceError: the device failed.
            StoreError: the record failed.
        """
        manifest, spent = self._backend.manifest, Stopwatch(self._clock)
        spent.seconds["receive"] = receive_s

        # 2 decode
        with spent("decode"):
            frame = self._decode(source, deadline_at, spent)
        pixels = frame.pixels

        # what is done until the last line was looked at is a part of decoding a file, and of receiving lines
        with spent("decode" if frame.arrival is None else "receive"):
            meter = FrameMeter(pixels)
            if (before := self._record.find(screen_id)) is not None:
                for lines in self._arriving(frame, deadline_at):
                    meter.arrived(lines)
                return _again(before, frame, meter.end().digest)

            # 3 cover
            windows = self._cover(*pixels.shape)

            # 4 queue, 5 features
            with self._scheduler.queue(pixels, windows, deadline_at=deadline_at) as queued:
                early = EarlyLooks(
                    self._backend, self._scheduler, queued, pixels, windows, deadline_at=deadline_at, clock=self._clock
                )
                for lines in self._arriving(frame, deadline_at, queued.check):
                    queued.arrived(lines)  # first: a device may begin with them
                    early.look(lines)
                    meter.arrived(lines)
                measured = meter.end()
                with spent("device"):
                    computed = queued.features()
        spent.seconds["receive"] -= early.took_s

        # 6 reason
        found = self._reasoner.reason(pixels, windows, computed, deadline_at=deadline_at, early=early.found)

        # 7 aggregate
        with spent("aggregate"):
            cleared = manifest.glance.clears(found.computed.features.doubt)
            observed = self._observed(frame, measured.brightness, found, cleared)
            judgement = aggregate(observed, manifest, found.computed.guard)

        # what the device and the reasoning took they tell themselves
        spent.seconds["queue"] += found.computed.queue_s
        spent.seconds["features"] = found.computed.features_s
        spent.seconds["reasoning"] = found.took_s
        verdict = _verdict(screen_id, manifest, judgement, Timing.of(spent.seconds))

        # 8 record, and only then answer
        answered = Answered(
            screen_id=screen_id, digest=measured.digest, verdict=verdict.verdict, answer=to_json(verdict)
        )
        if self._clock() >= deadline_at:
            raise DeadlineExceeded("the deadline passed before the verdict could be recorded")
        with spent("record"):
            self._record.record(answered)

        log.info(
            "inspected",
            screen_id=screen_id,
            verdict=verdict.verdict,
            reasons=verdict.reasons,
            model=manifest.name,
            version=manifest.version,
        )
        return Inspection(
            answered=answered,
            frame=frame,
            verdict=verdict,
            record_s=spent.seconds["record"],
            guard=found.computed.guard,
            windows=found.windows,
            turned=found.turned,
            cleared=cleared,
            probability=found.probability,
        )

    def _decode(self, source: Source, deadline_at: float, spent: Stopwatch) -> Frame:
        """The frame of a source, which is let go.

        Raises:
            ServiceError: it cannot be decoded, or not in time.
        """
        with self._turn_to_decode(source, deadline_at, spent):
            frame = decode(
                source,
                agreed=self._frame_size,
                patch_px=self._backend.manifest.patch_px,
                max_pixels=self._max_pixels,
                room=partial(self._room_to_decode, deadline_at=deadline_at, spent=spent),
            )
        source.drop()
        return frame

    @contextmanager
    def _turn_to_decode(self, source: Source, deadline_at: float, spent: Stopwatch) -> Iterator[None]:
        """A place among those that decode; whatever comes raw needs none.

        Raises:
            DeadlineExceeded: none came free in time, or the time was over before.
        """
        if source.media_type == RAW:
            yield
            return
        with spent("queue"):
            came = self._decoding.turns.acquire(timeout=max(0.0, deadline_at - self._clock()))
        if not came:
            raise DeadlineExceeded("the deadline passed before the image could be decoded")
        try:
            if self._clock() >= deadline_at:
                raise DeadlineExceeded("the deadline passed before the image was decoded")
            yield
        finally:
            self._decoding.turns.release()

    @contextmanager
    def _room_to_decode(self, size: int, *, deadline_at: float, spent: Stopwatch) -> Iterator[None]:
        """Hold so many bytes.

        Raises:
            DeadlineExceeded: they did not come free in time.
        """
        with ExitStack() as held:
            with spent("queue"):
                held.enter_context(self._decoding.room.hold(size, timeout_s=deadline_at - self._clock()))
            yield

    def _arriving(self, frame: Frame, deadline_at: float, check: Callable[[], None] = lambda: None) -> Iterator[int]:
        """How many lines are there, whenever more are, until all are; `check` raises once it is in vain to wait.

        Raises:
            BodyTooSlow: the deadline passed before the last line.
            ServiceError: the rest will not come.
        """
        height, lines = len(frame.pixels), 0
        if frame.arrival is None:
            yield height
            return
        while lines < height:
            try:
                lines = frame.arrival.wait(lines, max(0.0, deadline_at - self._clock()), check)
            except TimeoutError as error:
                raise BodyTooSlow(f"the deadline passed after {lines} lines of {height}") from error
            yield lines

    def _observed(self, frame: Frame, brightness: Brightness, found: Reasoned, cleared: NDArray[np.bool_]) -> Observed:
        """All that is known of a screen once its windows are reasoned."""
        return Observed(
            brightness=brightness,
            size_from=frame.size_from,
            expected=self._cover(*(self._frame_size or frame.pixels.shape)),
            windows=found.windows,
            windows_turned=len(found.turned),
            windows_cleared=int(cleared.sum()),
            probability=found.probability,
            activation=found.computed.features.activation,
            self_test=found.computed.self_test,
        )

    def _cover(self, height: int, width: int) -> tuple[Window, ...]:
        manifest = self._backend.manifest
        return cover(height, width, patch_px=manifest.patch_px, overlap_px=manifest.overlap_px)


def _verdict(screen_id: str, manifest: Manifest, judgement: Judgement, timing: Timing) -> Verdict:
    return Verdict(
        screen_id=screen_id,
        verdict=judgement.verdict,
        reasons=judgement.reasons,
        model=Model(name=manifest.name, version=manifest.version, limits=manifest.limits_version),
        labels=judgement.labels,
        defects=judgement.defects,
        proof=judgement.proof,
        timing=timing,
    )


def _again(before: Answered, frame: Frame, digest: str) -> Inspection:
    """The answer that the screen got before, byte for byte.

    Raises:
        Conflict: it was given for other pixels.
    """
    if before.digest != digest:
        raise Conflict(f"screen {before.screen_id} was answered before, for other pixels")
    return Inspection(
        answered=before,
        frame=frame,
        verdict=None,
        record_s=0.0,
        guard=NO_GUARD,
        windows=(),
        turned=(),
        cleared=np.zeros(0, np.bool_),
        probability=np.zeros((0, 0), np.float32),
    )
