"""Screens to devices: steps 4 and 5 of an inspection.

One thread a device takes batches from the queue (`service.waiting`) in the order in which their screens came, and a
batch holds patches of one screen alone, so that a score cannot depend on what else is going on. It is taken as soon as
its lines are there: a screen that is still arriving does not hold the device, which goes on with the next one. A screen
stays on the device that began it. Between batches the device looks whether its self-test is due, and whether the
screen's deadline has passed.

Whatever a batch does, it fails its own screen, and the thread lives on: with `service.selftest` the only place,
besides the last resort around a request, that catches every exception.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty
from typing import Self, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from engine import Backend, Batch, DeviceLost, Features, Golden, InferenceError, Window, cut, stream
from service.errors import DeadlineExceeded, ServiceError
from service.selftest import FRESH_S, SelfTest, SelfTestReport, worst
from service.waiting import Computed, Job, Queue

ENDS_WITHIN_S = 30.0  # a device's batch or self-test, where the service stops; one that takes longer is left
HANGS_AFTER_S = FRESH_S  # a device that is at a batch for so long has proven nothing since, and no screen can pass
LATE_S = 10.0  # between two looks at a device, which the app takes every second

_Done = TypeVar("_Done")

log: structlog.stdlib.BoundLogger = structlog.get_logger("service.scheduler")


class Queued:
    """A screen in the queue or at a device, to the thread that brought it."""

    def __init__(self, queue: Queue, job: Job, clock: Callable[[], float]) -> None:
        self._queue = queue
        self._job = job
        self._clock = clock

    def arrived(self, lines: int) -> None:
        """Tell that so many lines of the frame are there, from its top; never fewer than before."""
        self._queue.arrived(self._job, lines, self._clock())

    @property
    def device(self) -> object:
        """Where it is; None until a device has begun it."""
        return self._job.device

    def idles(self, batch_size: int) -> bool:
        """Whether the device that began it has nothing to do, as all lines that are there are computed."""
        return self._job.device is not None and self._queue.idles(self._job.device, batch_size)

    def so_far(self) -> Features | None:
        """Features of those of its windows, from the first on, that are computed; None where none is."""
        batches = tuple(self._job.batches)  # a device may add to them meanwhile
        return Features.joined(batches) if batches else None

    def check(self) -> None:
        """Raise what `features` would where the screen has its answer: before its last line that is an error."""
        if self._job.over:
            self.features()

    def features(self) -> Computed:
        """Wait for the features of all windows, once every line has arrived.

        Raises:
            DeadlineExceeded: the deadline passed; what had not begun is dropped.
            InferenceError: the device failed on it.
            NotReady: the service is stopping, or has lost a device for good.
        """
        try:
            return self._job.wait(max(0.0, self._job.deadline_at - self._clock()))
        except Empty:
            raise DeadlineExceeded("the deadline passed before the features were there") from None


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
        self._queue = Queue(max_patches=max_patches, devices=len(backends), patch_px=backends[0].manifest.patch_px)
        self._devices = [
            _Device(self._queue, backend, SelfTest(golden, interval_s=self_test_interval_s, clock=clock), clock)
            for backend in backends
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def queue(
        self,
        frame: NDArray[np.uint8],
        windows: Sequence[Window],
        *,
        deadline_at: float,
        after: Computed | Queued | None = None,
    ) -> Iterator[Queued]:
        """A place for one screen, whose lines may still be coming; entered by the screen's own thread.

        Left before its features are there, the screen is withdrawn.

        Args:
            frame: (H, W) grey; what `Queued.arrived` was told of is not changed any more.
            windows: K windows of the frame, in row order.
            deadline_at: on the scheduler's clock.
            after: what was computed of this screen already, or is being computed: it came before all that wait, stays
                on its device, and is not refused for lack of room now, when most of its work is done. What is looked
                at again is for the whole network: no glance clears it.

        Raises:
            ImageTooLarge: more patches than the queue could ever hold.
            QueueFull: no room for all of its patches now.
            NotReady: the service is stopping, or has lost a device for good.
        """
        device = None if after is None else after.device
        job = Job(frame, windows, deadline_at, queued_at=self._clock(), device=device, glance=after is None)
        self._queue.put(job)
        try:
            yield Queued(self._queue, job, self._clock)
        finally:
            self._queue.withdraw(job)

    def compute(
        self,
        frame: NDArray[np.uint8],
        windows: Sequence[Window],
        *,
        deadline_at: float,
        after: Computed | Queued | None = None,
    ) -> Computed:
        """The features of a screen that is there; arguments and exceptions are those of `queue` and of `Queued`."""
        with self.queue(frame, windows, deadline_at=deadline_at, after=after) as screen:
            screen.arrived(len(frame))
            return screen.features()

    @property
    def waiting_patches(self) -> int:
        """Patches that wait or run."""
        return self._queue.patches

    @property
    def free_places(self) -> int:
        """Patches that there is room for."""
        return self._queue.free_places

    def report(self) -> SelfTestReport:
        """The self-test of the device that is worst off: one that is stale, or hangs, makes the service so."""
        return worst([device.report() for device in self._devices])

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


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Some windows of one screen at a device: their patches, and when the device took them."""

    job: Job
    patches: Batch
    begun_at: float


class _Device:
    """One backend and its thread, which alone calls it, but for the reasoning."""

    def __init__(self, queue: Queue, backend: Backend, self_test: SelfTest, clock: Callable[[], float]) -> None:
        self.self_test = self_test
        self._queue = queue
        self._backend = backend
        self._clock = clock
        self._free_at = 0.0  # when the device was done with the batch, or the self-test, before
        self._works_since: float | None = None  # on what it has now; None while it waits for screens
        self._watched_since = self._looked_at = clock()
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    def report(self) -> SelfTestReport:
        """Its self-test; one that hangs is as good as lost, and only a new process has it again."""
        known, since, now = self.self_test.report(), self._works_since, self._clock()
        if now - self._looked_at > LATE_S:  # the whole process stood still, and the device with it
            self._watched_since = now
        self._looked_at = now
        works_s = 0.0 if since is None else now - max(since, self._watched_since)
        if works_s < HANGS_AFTER_S:
            return known
        return replace(known, ok=False, gone=True, detail=f"the device has not answered for {works_s:.0f} s: it hangs")

    def join(self, within_s: float) -> None:
        """Wait for the batch or the self-test under way, then for the end of the thread, which closes the backend."""
        self._thread.join(within_s)
        if self._thread.is_alive():
            log.error("the device hangs and is left", runtime=self._backend.runtime)

    def _run(self) -> None:
        while not self._queue.closed:
            self._serve()
        self._queue.leave(self)
        self._backend.close()

    def _serve(self) -> None:
        """Wait for a batch, and work off all there are, of whatever screens: none waits for the one before to end."""
        running: deque[_Batch] = deque()
        failure = _attempt(lambda: self._work_off(running))
        if isinstance(failure, DeviceLost):
            self._lost(running, failure)
        elif failure is not None:
            self._sort_out(running, failure)
        del failure  # it holds this call, and by the batches a frame

    def _work_off(self, running: deque[_Batch]) -> None:
        with closing(stream(self._backend, self._batches(running))) as answers:
            for answer in answers:
                self._take_in(running.popleft(), answer)

    def _batches(self, running: deque[_Batch]) -> Iterator[Batch]:
        """Patches for the runtime, the first waited for; the self-test goes ahead of each batch.

        What is taken has a name here alone: in a caller it would keep its frame for as long as there is work.
        """
        self._test_if_due()
        batch = self._take(self.self_test.due_in_s())
        while batch is not None:
            self._test_if_due()
            running.append(batch)
            yield batch.patches
            batch = self._take(0.0)

    def _take(self, timeout_s: float) -> _Batch | None:
        """The next batch that is still wanted, cut from its frame; what cannot be cut fails its own screen alone."""
        while (taken := self._taken(timeout_s)) is not None:
            job, first = taken
            if self._clock() < job.deadline_at:
                outcome = _attempt(partial(self._cut, job, first))
            else:
                outcome = DeadlineExceeded("the deadline passed before all patches were computed")
            if isinstance(outcome, _Batch):
                return outcome
            self._queue.answered(job, outcome)
            # the failure holds this call; and each of the others would keep the frame until the next one comes
            del taken, job, outcome
        return None

    def _taken(self, timeout_s: float) -> tuple[Job, int] | None:
        self._works_since = None
        taken = self._queue.take(self, self._backend.batch_size, timeout_s)
        self._works_since = self._clock()
        return taken

    def _cut(self, job: Job, first: int) -> _Batch:
        windows = job.windows[first : first + self._backend.batch_size]
        pixels = cut(job.frame, windows, self._backend.manifest.patch_px)
        return _Batch(job, Batch(pixels, job.glance), self._clock())

    def _take_in(self, batch: _Batch, answer: Features) -> None:
        """An answer to its screen, which is done with its last one."""
        job, now = batch.job, self._clock()
        job.features_s += now - max(batch.begun_at, self._free_at)
        self._free_at = self._works_since = now
        outcome = _attempt(lambda: self._added(job, answer, len(batch.patches.pixels)))
        self._queue.answered(job, outcome)

    def _added(self, job: Job, answer: Features, patches: int) -> Computed | None:
        """What is known of a screen with this answer for so many patches; None while others are to come."""
        for rows in (answer.label_features, answer.stage1, answer.activation, answer.doubt):
            if len(rows) != patches:  # the scores of one patch would be taken for another's
                raise InferenceError(f"{len(rows)} answers for {patches} patches")
        job.batches.append(answer)
        if sum(len(batch.stage1) for batch in job.batches) < len(job.windows):
            return None
        return Computed(
            features=Features.joined(job.batches),
            guard=self._backend.guard,
            self_test=self.self_test.report(),
            queue_s=max(0.0, self._clock() - job.whole_at - job.features_s),
            features_s=job.features_s,
            device=self,
        )

    def _lost(self, running: deque[_Batch], error: DeviceLost) -> None:
        """All that was at the device is lost with it."""
        self.self_test.lost(error)  # first: nobody shall find the service ready after this screen's answer
        while running:
            self._queue.answered(running.popleft().job, error)

    def _sort_out(self, running: deque[_Batch], error: Exception) -> None:
        """Fail the screen whose batch failed and none of its neighbours': where several were there, run each alone."""
        alone = len({id(batch.job) for batch in running}) == 1
        while running:
            batch = running.popleft()
            if alone or batch.job.over:
                self._queue.answered(batch.job, error)
                continue
            pixels, glance = batch.patches
            answer = _attempt(partial(self._backend.features, pixels, glance=glance))
            if isinstance(answer, Features):
                self._take_in(batch, answer)
            elif isinstance(answer, DeviceLost):
                running.appendleft(batch)
                self._lost(running, answer)
            else:
                self._queue.answered(batch.job, answer)

    def _test_if_due(self) -> None:
        if self.self_test.due_in_s() <= 0:
            self._works_since = self._clock()
            self.self_test.run(self._backend)
            self._free_at = self._works_since = self._clock()  # its time is no screen's
            if self.self_test.report().gone:
                # else this device, which fails at once and is always free, would take nearly every screen
                self._queue.refuse("a device is lost for good: the service ends, and a new one has it again")


def _attempt(work: Callable[[], _Done]) -> _Done | Exception:
    """What `work` gives, or what its screen's sender is told of its failure: nothing of one that nobody expected."""
    try:
        return work()
    except (InferenceError, ServiceError) as error:
        return error
    except Exception as error:
        log.exception("the device failed in a way that nobody expected")
        return _unexpected(error)


def _unexpected(error: Exception) -> InferenceError:
    # not in the frame above, which the error's traceback holds
    failure = InferenceError("the device failed in a way that nobody expected")
    failure.__cause__ = error
    return failure
