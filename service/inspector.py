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
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import structlog
from numpy.typing import NDArray
from pydantic import TypeAdapter

from engine import NO_GUARD, Backend, Window, cover
from service.aggregation import Observed, aggregate
from service.brightness import Brightness, BrightnessMeter
from service.digest import FrameDigest
from service.early import EarlyLooks
from service.errors import BodyTooSlow, Conflict, DeadlineExceeded
from service.images import RAW, Frame, Source, decode
from service.reasoning import Reasoner
from service.room import Decoding
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
        manifest = self._backend.manifest
        lap = _Lap(self._clock)

        # 2 decode
        waits: list[float] = []
        with self._turn_to_decode(source, deadline_at):
            waited_s = lap()
            frame = decode(
                source,
                agreed=self._frame_size,
                patch_px=manifest.patch_px,
                max_pixels=self._max_pixels,
                room=partial(self._room_to_decode, deadline_at=deadline_at, waits=waits),
            )
        source.drop()
        room_s = sum(waits)
        waited_s, decode_s = waited_s + room_s, lap() - room_s

        if (before := self._record.find(screen_id)) is not None:
            return _again(before, frame, self._look(frame, deadline_at, lambda lines: None, lambda: None))

        # 3 cover
        windows = self._cover(*frame.pixels.shape)

        # 4 queue, 5 features
        with self._scheduler.queue(frame.pixels, windows, deadline_at=deadline_at) as queued:
            early = EarlyLooks(
                self._backend,
                self._scheduler,
                queued,
                frame.pixels,
                windows,
                deadline_at=deadline_at,
                clock=self._clock,
            )

            def told(lines: int) -> None:
                queued.arrived(lines)
                early.look(lines)

            look = self._look(frame, deadline_at, told, queued.check)
            if frame.arrival is None:
                decode_s += lap()
            else:
                receive_s += lap() - early.took_s
            computed = queued.features()

        # 6 reason
        found = self._reasoner.reason(frame.pixels, windows, computed, deadline_at=deadline_at, early=early.found)
        computed = found.computed

        # 7 aggregate
        lap()
        cleared = manifest.glance.clears(computed.features.doubt)
        seen = Observed(
            brightness=look.brightness,
            size_from=frame.size_from,
            expected=self._cover(*(self._frame_size or frame.pixels.shape)),
            windows=found.windows,
            windows_turned=len(found.turned),
            windows_cleared=int(cleared.sum()),
            probability=found.probability,
            activation=computed.features.activation,
            self_test=computed.self_test,
        )
        judgement = aggregate(seen, manifest, computed.guard)
        aggregate_s = lap()

        verdict = Verdict(
            screen_id=screen_id,
            verdict=judgement.verdict,
            reasons=judgement.reasons,
            model=Model(name=manifest.name, version=manifest.version, limits=manifest.limits_version),
            labels=judgement.labels,
            defects=judgement.defects,
            proof=judgement.proof,
            timing=Timing(
                receive_s=receive_s,
                decode_s=decode_s,
                queue_s=waited_s + computed.queue_s,
                features_s=computed.features_s,
                reasoning_s=found.took_s,
                aggregate_s=aggregate_s,
            ),
        )

        # 8 record, and only then answer
        answered = Answered(screen_id=screen_id, digest=look.digest, verdict=verdict.verdict, answer=to_json(verdict))
        if self._clock() >= deadline_at:
            raise DeadlineExceeded("the deadline passed before the verdict could be recorded")
        lap()
        self._record.record(answered)
        record_s = lap()

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
            record_s=record_s,
            guard=computed.guard,
            windows=found.windows,
            turned=found.turned,
            cleared=cleared,
            probability=found.probability,
        )

    def _look(
        self, frame: Frame, deadline_at: float, told: Callable[[int], None], check: Callable[[], None]
    ) -> "_Look":
        """Look at every line once, as it comes; `told` hears how many are there, `check` raises once it is in vain.

        Raises:
            BodyTooSlow: the deadline passed before the last line.
            ServiceError: the rest will not come.
        """
        height, width = frame.pixels.shape
        digest, meter, seen = FrameDigest(), BrightnessMeter(height, width), 0
        while seen < height:
            lines = self._lines_after(seen, frame, deadline_at, check)
            told(lines)  # first: a device may begin with them
            digest.add(frame.pixels[seen:lines])
            meter.add(frame.pixels[seen:lines])
            seen = lines
        return _Look(digest=digest.end(height, width), brightness=meter.brightness)

    def _lines_after(self, seen: int, frame: Frame, deadline_at: float, check: Callable[[], None]) -> int:
        if frame.arrival is None:
            return len(frame.pixels)
        try:
            return frame.arrival.wait(seen, max(0.0, deadline_at - self._clock()), check)
        except TimeoutError as error:
            raise BodyTooSlow(f"the deadline passed after {seen} lines of {len(frame.pixels)}") from error

    @contextmanager
    def _turn_to_decode(self, source: Source, deadline_at: float) -> Iterator[None]:
        """A place among those that decode; whatever comes raw needs none.

        Raises:
            DeadlineExceeded: none came free in time, or the time was over before.
        """
        if source.media_type == RAW:
            yield
            return
        if not self._decoding.turns.acquire(timeout=max(0.0, deadline_at - self._clock())):
            raise DeadlineExceeded("the deadline passed before the image could be decoded")
        try:
            if self._clock() >= deadline_at:
                raise DeadlineExceeded("the deadline passed before the image was decoded")
            yield
        finally:
            self._decoding.turns.release()

    @contextmanager
    def _room_to_decode(self, size: int, *, deadline_at: float, waits: list[float]) -> Iterator[None]:
        """Hold so many bytes; `waits` hears how long it took to get them.

        Raises:
            DeadlineExceeded: they did not come free in time.
        """
        begun_at = self._clock()
        with self._decoding.room.hold(size, timeout_s=deadline_at - begun_at):
            waits.append(self._clock() - begun_at)
            yield

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What is known of a frame once every line was looked at: its digest, and how bright it is."""

    digest: str
    brightness: Brightness


def _again(before: Answered, frame: Frame, look: _Look) -> Inspection:
    """The answer that the screen got before, byte for byte.

    Raises:
        Conflict: it was given for other pixels.
    """
    if before.digest != look.digest:
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


class _Lap:
    """A stopwatch: each call gives the seconds since the last one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = clock()

    def __call__(self) -> float:
        before, self._since = self._since, self._clock()
        return self._since - before
