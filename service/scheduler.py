"""Screens to devices: steps 4 and 5 of an inspection.

A screen waits whole or is refused whole. One thread a device takes screens in the order of their arrival and runs
each in batches of its own patches alone, so that a score cannot depend on what else is going on. Between batches
the device looks whether its self-test is due, and whether the screen's deadline has passed.

Whatever a batch does, it fails its own screen, and the thread lives on: with `service.selftest` the only place,
besides the last resort around a request, that catches every exception.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Self

import numpy as np
import structlog
from numpy.typing import NDArray

from engine import Backend, DeviceLost, Features, Golden, InferenceError, Window, cut, stream
from service.errors import DeadlineExceeded, ImageTooLarge, NotReady, QueueFull, ServiceError
from service.selftest import FRESH_S, SelfTest, SelfTestReport, worst

# what a device needs for a patch, until the first screen has been timed: a guess, for the first refusals
FIRST_GUESS_S = 0.01
ENDS_WITHIN_S = 30.0  # a device's batch or self-test; one that takes longer hangs
STOPPING = "the service is stopping"
NEWEST = 0.2  # share of the newest screen in the running mean of that time

log: structlog.stdlib.BoundLogger = structlog.get_logger("service.scheduler")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Computed:
    """The features of one screen, rows in the order of its windows, and how they came about.

    Attributes:
        features: of all K windows.
        guard: guard band by label of the device that computed them: the scores are to be judged with it and no other.
        self_test: of the device that computed them, as it was known at the end.
        queue_s: time in which the screen waited.
        features_s: time in which the device worked on it.
    """

    features: Features
    guard: Mapping[str, float]
    self_test: SelfTestReport
    queue_s: float
    features_s: float

    def joined(self, again: "Computed") -> "Computed":
        """The same screen with the windows of a second look behind its own.

        They may have been on another device: the wider guard band and the worse self-test hold for all of it.
        """
        return Computed(
            features=Features.joined([self.features, again.features]),
            guard={
                label: max(self.guard.get(label, 0.0), again.guard.get(label, 0.0))
                for label in {**self.guard, **again.guard}
            },
            self_test=worst([self.self_test, again.self_test]),
            queue_s=self.queue_s + again.queue_s,
            features_s=self.features_s + again.features_s,
        )


class Scheduler:
    """Devices and the queue before them.

    Args:
        backends: one a device, all of the same bundle; closed by `close`.
        golden: the bundle's golden patches.
        max_patches: patches that may wait or run at a time.
        self_test_interval_s: time between two self-tests of a device.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        backends: Sequence[Backend],
        golden: Golden,
        *,
        max_patches: int,
        self_test_interval_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._queue = _Queue(max_patches=max_patches, devices=len(backends))
        self._devices = [
            _Device(self._queue, backend, SelfTest(golden, interval_s=self_test_interval_s, clock=clock), clock)
            for backend in backends
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def compute(
        self, frame: NDArray[np.uint8], windows: Sequence[Window], *, deadline_at: float, again: bool = False
    ) -> Computed:
        """Wait for the features of one screen; called by the screen's own thread.

        Args:
            frame: (H, W) grey; not changed until this returns.
            windows: K windows of the frame, in row order.
            deadline_at: on the scheduler's clock.
            again: windows of a screen that was computed already: it came before all that wait, and is not refused for
                lack of room now, when most of its work is done.

        Raises:
            ImageTooLarge: more patches than the queue could ever hold.
            QueueFull: no room for all of its patches now.
            NotReady: the service is stopping, or has lost a device for good.
            DeadlineExceeded: the deadline passed; what had not begun is dropped.
            InferenceError: the device failed on it.
        """
        job = _Job(frame, windows, deadline_at, queued_at=self._clock(), again=again)
        self._queue.put(job)
        try:
            return job.wait(max(0.0, deadline_at - self._clock()))
        except Empty:
            self._queue.withdraw(job)
            raise DeadlineExceeded("the deadline passed before the features were there") from None

    @property
    def waiting_patches(self) -> int:
        """Patches that wait or run."""
        return self._queue.patches

    def report(self) -> SelfTestReport:
        """The self-test of the device that is worst off: one stale device makes the service stale."""
        return worst([device.self_test.report() for device in self._devices])

    def tested(self, within_s: float = FRESH_S) -> SelfTestReport:
        """The report, once every device has run its first self-test: it is warm then, and proven or not.

        A device that has not after `within_s` is reported as one that has not run yet.
        """
        give_up_at = time.monotonic() + within_s
        for device in self._devices:
            device.self_test.wait_for_first_run(max(0.0, give_up_at - time.monotonic()))
        return self.report()

    def close(self) -> None:
        """Refuse what comes, fail what waits, end the threads and close the backends; twice is harmless.

        A screen that runs fails at its next batch, so that stopping takes no longer than a batch. A device that hangs
        is left after `ENDS_WITHIN_S`: it holds on to its memory, but neither to a swap nor to the process.
        """
        self._queue.close()
        give_up_at = time.monotonic() + ENDS_WITHIN_S
        for device in self._devices:
            device.join(max(0.0, give_up_at - time.monotonic()))


@dataclass(slots=True, eq=False)
class _Job:
    """One screen, from its arrival to its answer.

    Attributes:
        again: it is the second look of a screen whose turn it was already.
        abandoned: nobody waits for the answer any more; one that stayed here would keep the frame, by its traceback.
    """

    frame: NDArray[np.uint8]
    windows: Sequence[Window]
    deadline_at: float
    queued_at: float
    again: bool = False
    abandoned: bool = False
    _answer: "SimpleQueue[Computed | Exception]" = field(default_factory=SimpleQueue)

    def settle(self, outcome: Computed | Exception) -> None:
        """Hand the outcome to whoever still waits for it."""
        if self.abandoned:
            log.info("nobody waits for the screen any more", patches=len(self.windows))
        else:
            self._answer.put(outcome)

    def wait(self, timeout_s: float) -> Computed:
        """The outcome, returned or raised.

        Raises:
            Empty: there is none within `timeout_s`.
        """
        outcome = self._answer.get(timeout=timeout_s)
        if isinstance(outcome, Computed):
            return outcome
        try:
            raise outcome
        finally:
            del outcome  # it holds this call and with it the frame; held in turn, neither would be freed for long


class _Queue:
    """The screens that wait, and the places of those that run: all of a screen's patches have one, or none has.

    Whoever takes a screen out frees its places: its sender (`withdraw`), `refuse`, or a device once it is done
    (`release`).

    Attributes:
        patches: of the screens that wait or run.
        closed: a screen that runs is to end at its next batch.
    """

    def __init__(self, *, max_patches: int, devices: int) -> None:
        self._max_patches = max_patches
        self._devices = devices
        self._patch_s = FIRST_GUESS_S
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._refusal = ""  # why no screen is taken any more
        self.patches = 0
        self.closed = False

    def put(self, job: _Job) -> None:
        """Append a screen; the exceptions are those of `Scheduler.compute`."""
        count = len(job.windows)
        if count > self._max_patches and not job.again:
            raise ImageTooLarge(f"{count} patches are over the limit of {self._max_patches}")
        with self._changed:
            if self._refusal:
                raise NotReady(self._refusal)
            over = self.patches + count - self._max_patches
            if over > 0 and not job.again:
                taken = f"{self.patches} of {self._max_patches} places are taken"
                raise QueueFull(taken, retry_after_s=over * self._patch_s / self._devices)
            (self._jobs.appendleft if job.again else self._jobs.append)(job)
            self.patches += count
            self._changed.notify()

    def take(self, timeout_s: float) -> _Job | None:
        """The next screen, or None when there is none within `timeout_s`, or none will come any more."""
        with self._changed:
            if not self._jobs and not self.closed:
                self._changed.wait(timeout_s)
            return self._jobs.popleft() if self._jobs else None

    def withdraw(self, job: _Job) -> None:
        """Forget a screen that nobody waits for any more; a device that has it already stops by the deadline."""
        job.abandoned = True
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
                self.patches -= len(job.windows)

    def release(self, job: _Job, outcome: Computed | Exception) -> None:
        """Free the places of a screen that a device has done with."""
        with self._changed:
            self.patches -= len(job.windows)
            if isinstance(outcome, Computed):
                self._patch_s += NEWEST * (outcome.features_s / len(job.windows) - self._patch_s)

    def refuse(self, reason: str) -> None:
        """Take no more screens and answer those that wait, as not ready; what runs ends as usual."""
        with self._changed:
            self._refusal = reason
            waiting = list(self._jobs)
            self._jobs.clear()
            self.patches -= sum(len(job.windows) for job in waiting)
        for job in waiting:
            job.settle(NotReady(reason))

    def close(self) -> None:
        """Refuse, stop what runs, and wake the devices."""
        self.refuse(STOPPING)
        with self._changed:
            self.closed = True
            self._changed.notify_all()


class _Device:
    """One backend and its thread, which alone calls it, but for the reasoning."""

    def __init__(self, queue: _Queue, backend: Backend, self_test: SelfTest, clock: Callable[[], float]) -> None:
        self.self_test = self_test
        self._queue = queue
        self._backend = backend
        self._clock = clock
        self._tested_s = 0.0  # time in self-tests, which is no screen's
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    def join(self, within_s: float) -> None:
        """Wait for the batch or the self-test under way, then for the end of the thread, which closes the backend."""
        self._thread.join(within_s)
        if self._thread.is_alive():
            log.error("the device hangs and is left", runtime=self._backend.runtime)

    def _run(self) -> None:
        while not self._queue.closed:
            self._test_if_due()
            self._serve_next()
        self._backend.close()

    def _serve_next(self) -> None:
        job = self._queue.take(self.self_test.due_in_s())
        if job is None:
            return
        try:
            computed = self._compute(job)
        except DeviceLost as error:
            self.self_test.lost(error)  # first: nobody shall find the service ready after this screen's answer
            self._finish(job, error)
        except (InferenceError, ServiceError) as error:
            self._finish(job, error)
        except Exception as error:
            log.exception("the device failed in a way that nobody expected")
            self._finish(job, _unexpected(error))
        else:
            self._finish(job, computed)

    def _finish(self, job: _Job, outcome: Computed | Exception) -> None:
        self._queue.release(job, outcome)  # first, so that whoever has the answer finds the places free
        job.settle(outcome)

    def _compute(self, job: _Job) -> Computed:
        batches: list[Features] = []
        tested_s, started_at = self._tested_s, self._clock()
        # closed at once, so that no batch of a screen that failed is still running when the next one begins
        with closing(stream(self._backend, self._batches(job))) as answers:
            for answer in answers:
                self._check_whole(answer, job, len(batches))
                batches.append(answer)
        features_s = self._clock() - started_at - (self._tested_s - tested_s)
        return Computed(
            features=Features(
                label_features=np.concatenate([batch.label_features for batch in batches]),
                stage1=np.concatenate([batch.stage1 for batch in batches]),
                activation=np.concatenate([batch.activation for batch in batches]),
            ),
            guard=self._backend.guard,
            self_test=self.self_test.report(),
            queue_s=max(0.0, self._clock() - job.queued_at - features_s),
            features_s=features_s,
        )

    def _check_wanted(self, job: _Job) -> None:
        if self._queue.closed:
            raise NotReady(STOPPING)
        if self._clock() >= job.deadline_at:
            raise DeadlineExceeded("the deadline passed before all patches were computed")

    def _batches(self, job: _Job) -> Iterator[NDArray[np.uint8]]:
        """The batches of a screen, cut when the device can take one; the self-test goes ahead of each."""
        for start in range(0, len(job.windows), self._backend.batch_size):
            self._test_if_due()
            self._check_wanted(job)
            windows = job.windows[start : start + self._backend.batch_size]
            yield cut(job.frame, windows, self._backend.manifest.patch_px)

    def _check_whole(self, answer: Features, job: _Job, index: int) -> None:
        size = self._backend.batch_size
        expected = min(size, len(job.windows) - index * size)
        for rows in (answer.label_features, answer.stage1, answer.activation):
            if len(rows) != expected:  # the scores of one patch would be taken for another's
                raise InferenceError(f"{len(rows)} answers for {expected} patches")

    def _test_if_due(self) -> None:
        if self.self_test.due_in_s() <= 0:
            started_at = self._clock()
            self.self_test.run(self._backend)
            self._tested_s += self._clock() - started_at
            if self.self_test.report().gone:
                # else this device, which fails at once and is always free, would take nearly every screen
                self._queue.refuse("a device is lost for good: the service ends, and a new one has it again")


def _unexpected(error: Exception) -> InferenceError:
    failure = InferenceError("the device failed in a way that nobody expected")
    failure.__cause__ = error
    return failure
