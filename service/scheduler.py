"""Screens to devices: steps 4 and 5 of an inspection.

A screen waits whole or is refused whole. One thread a device takes screens in the order of their arrival and runs
each in batches of its own patches alone, so that a score cannot depend on what else is going on. Between batches
the device looks whether its self-test is due, and whether anybody still waits for the screen.

The only place of the service, besides the last resort around a request, that catches every exception: whatever a
batch does, it fails its own screen, and the thread lives on.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import structlog
from numpy.typing import NDArray

from engine import Backend, Features, Golden, InferenceError, Window, cut
from service.errors import DeadlineExceeded, ImageTooLarge, NotReady, QueueFull
from service.selftest import SelfTest, SelfTestReport

# a guess until the first screen has been timed, for the first refusals
FIRST_GUESS_PATCHES_PER_S = 100.0

log: structlog.stdlib.BoundLogger = structlog.get_logger("service.scheduler")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Computed:
    """The features of one screen, rows in the order of its windows, and how they came about.

    Attributes:
        features: of all K windows.
        self_test: of the device that computed them, as it was known at the end.
        queue_s: time in which the screen waited.
        features_s: time in which the device worked on it.
    """

    features: Features
    self_test: SelfTestReport
    queue_s: float
    features_s: float


@dataclass(slots=True, eq=False)
class _Job:
    """One screen in the queue."""

    frame: NDArray[np.uint8]
    windows: Sequence[Window]
    deadline_at: float
    queued_at: float
    done: "Future[Computed]" = field(default_factory=Future)


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
        self.clock = clock
        self._max_patches = max_patches
        self._lock = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._patches = 0  # of the screens that wait or run
        self._patches_per_s = FIRST_GUESS_PATCHES_PER_S * len(backends)
        self._closing = False
        self._devices = [
            _Device(self, backend, SelfTest(golden, interval_s=self_test_interval_s, clock=clock), number)
            for number, backend in enumerate(backends)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def compute(self, frame: NDArray[np.uint8], windows: Sequence[Window], *, deadline_at: float) -> Computed:
        """Wait for the features of one screen; called by the screen's own thread.

        Args:
            frame: (H, W) grey; not changed until this returns.
            windows: K windows of the frame, in row order.
            deadline_at: on the scheduler's clock.

        Raises:
            ImageTooLarge: more patches than the queue could ever hold.
            QueueFull: no room for all of its patches now.
            NotReady: the service is stopping.
            DeadlineExceeded: the deadline passed; what had not begun is dropped.
            InferenceError: the device failed on it.
        """
        job = self._enqueue(frame, windows, deadline_at)
        try:
            return job.done.result(max(0.0, deadline_at - self.clock()))
        except FutureTimeout as error:
            job.done.cancel()
            raise DeadlineExceeded("the deadline passed before the features were there") from error

    @property
    def waiting_patches(self) -> int:
        """Patches that wait or run."""
        return self._patches

    def report(self) -> SelfTestReport:
        """The self-test of the device that is worst off: one stale device makes the service stale."""
        reports = [device.report() for device in self._devices]
        return max(reports, key=lambda r: (not r.ok, float("inf") if r.age_s is None else r.age_s))

    def close(self) -> None:
        """Refuse what comes, fail what waits, end the threads and close the backends; twice is harmless."""
        with self._lock:
            self._closing = True
            waiting, self._jobs = list(self._jobs), deque()
            self._lock.notify_all()
        for job in waiting:
            self._finish(job, NotReady("the service is stopping"))
        for device in self._devices:
            device.join()

    def _enqueue(self, frame: NDArray[np.uint8], windows: Sequence[Window], deadline_at: float) -> _Job:
        count = len(windows)
        if count > self._max_patches:
            raise ImageTooLarge(f"{count} patches are over the limit of {self._max_patches}")
        with self._lock:
            if self._closing:
                raise NotReady("the service is stopping")
            over = self._patches + count - self._max_patches
            if over > 0:
                retry_after_s = over / self._patches_per_s
                raise QueueFull(f"{self._patches} of {self._max_patches} places are taken", retry_after_s=retry_after_s)
            job = _Job(frame, windows, deadline_at, self.clock())
            self._jobs.append(job)
            self._patches += count
            self._lock.notify()
        return job

    def take(self, timeout_s: float) -> _Job | None:
        """The next screen, or None when there is none within `timeout_s`, or none will come any more."""
        with self._lock:
            if not self._jobs and not self._closing:
                self._lock.wait(timeout_s)
            return self._jobs.popleft() if self._jobs else None

    @property
    def closing(self) -> bool:
        """Whether the devices should end."""
        return self._closing

    def finish(self, job: _Job, outcome: Computed | Exception) -> None:
        """Hand the outcome to whoever still waits for it, and free the screen's places."""
        if isinstance(outcome, Computed) and outcome.features_s > 0:
            rate = len(job.windows) / outcome.features_s * len(self._devices)
            self._patches_per_s += 0.2 * (rate - self._patches_per_s)
        self._finish(job, outcome)

    def _finish(self, job: _Job, outcome: Computed | Exception) -> None:
        with self._lock:
            self._patches -= len(job.windows)
        try:
            if isinstance(outcome, Computed):
                job.done.set_result(outcome)
            else:
                job.done.set_exception(outcome)
        except InvalidStateError:
            log.info("nobody waits for the screen any more", patches=len(job.windows))


class _Device:
    """One backend and its thread."""

    def __init__(self, scheduler: Scheduler, backend: Backend, self_test: SelfTest, number: int) -> None:
        self._scheduler = scheduler
        self._backend = backend
        self._self_test = self_test
        self._thread = threading.Thread(target=self._run, name=f"device-{number}", daemon=True)
        self._thread.start()

    def report(self) -> SelfTestReport:
        """What is known of the device now."""
        return self._self_test.report()

    def join(self) -> None:
        """Wait for the batch under way, then for the end of the thread."""
        self._thread.join()

    def _run(self) -> None:
        while not self._scheduler.closing:
            self._test_if_due()
            job = self._scheduler.take(self._self_test.due_in_s())
            if job is not None:
                self._scheduler.finish(job, self._compute(job))
        self._backend.close()

    def _compute(self, job: _Job) -> Computed | Exception:
        clock = self._scheduler.clock
        size = self._backend.manifest.batch_size
        batches: list[Features] = []
        features_s = 0.0
        try:
            for start in range(0, len(job.windows), size):
                self._test_if_due()
                if job.done.cancelled() or clock() >= job.deadline_at:
                    return DeadlineExceeded("the deadline passed before all patches were computed")
                started_at = clock()
                patches = cut(job.frame, job.windows[start : start + size], self._backend.manifest.patch_px)
                batch = self._backend.features(patches)
                if len(batch.stage1) != len(patches):
                    raise InferenceError(f"{len(batch.stage1)} answers for {len(patches)} patches")
                batches.append(batch)
                features_s += clock() - started_at
        except InferenceError as error:
            return error
        except Exception as error:
            log.exception("the device failed in a way that nobody expected")
            failure = InferenceError("the device failed in a way that nobody expected")
            failure.__cause__ = error
            return failure
        return Computed(
            features=Features(
                label_features=np.concatenate([batch.label_features for batch in batches]),
                stage1=np.concatenate([batch.stage1 for batch in batches]),
                activation=np.concatenate([batch.activation for batch in batches]),
            ),
            self_test=self._self_test.report(),
            queue_s=clock() - job.queued_at - features_s,
            features_s=features_s,
        )

    def _test_if_due(self) -> None:
        if self._self_test.due_in_s() <= 0:
            self._self_test.run(self._backend)
