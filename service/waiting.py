"""The screens that wait for a device, are still coming or run: in the order of their arrival, whole or not at all."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np
import structlog
from numpy.typing import NDArray

from engine import Features, Window, averaged
from service.errors import ImageTooLarge, NotReady, QueueFull
from service.selftest import SelfTestReport, worst

# what a device needs for a patch, until the first screen has been timed: a guess, for the first refusals
FIRST_GUESS_S = 0.01
STOPPING = "the service is stopping"
NEWEST = 0.2  # share of the newest screen in the running mean of that time

log: structlog.stdlib.BoundLogger = structlog.get_logger("service.waiting")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Computed:
    """The features of one screen, rows in the order of its windows, and how they came about.

    Attributes:
        features: of all K windows.
        guard: guard band by label of the device that computed them: the scores are to be judged with it and no other.
        self_test: of the device that computed them, the worst that was known at the end of any look.
        queue_s: time in which the screen waited.
        features_s: time in which the device worked on it.
        device: which it was: the screen stays there.
    """

    features: Features
    guard: Mapping[str, float]
    self_test: SelfTestReport
    queue_s: float
    features_s: float
    device: object

    def joined(self, again: "Computed") -> "Computed":
        """The same screen with the windows of a second look, by the same device, behind its own."""
        return self._after(again, Features.joined([self.features, again.features]))

    def averaged(self, window: int, again: "Computed") -> "Computed":
        """The same screen, one of whose windows was looked at in its other positions by the same device."""
        return self._after(again, averaged(self.features, window, again.features))

    def _after(self, again: "Computed", features: Features) -> "Computed":
        return Computed(
            features=features,
            guard=again.guard,
            self_test=worst([self.self_test, again.self_test]),  # either may be the later one
            queue_s=self.queue_s + again.queue_s,
            features_s=self.features_s + again.features_s,
            device=again.device,
        )


@dataclass(slots=True, eq=False)
class Job:
    """One screen, from its arrival to its answer.

    Attributes:
        ready: windows whose lines are there.
        whole_at: when the last of them was.
        begun: windows that its device has taken.
        device: which took the first; the others follow there. One that is queued with its device is a further look at
            a screen whose turn it was already.
        glance: whether a glance may clear its windows.
        running: batches that are at the device now.
        batches: answers, in order.
        features_s: time that the device worked on it.
        abandoned: nobody waits for the answer any more; one that stayed here would keep the frame, by its traceback.
        over: it has its answer or nobody wants one, and its places are free.
    """

    frame: NDArray[np.uint8]
    windows: Sequence[Window]
    deadline_at: float
    queued_at: float
    ready: int = 0
    whole_at: float = 0.0
    begun: int = 0
    device: object = None
    glance: bool = True
    running: int = 0
    batches: list[Features] = field(default_factory=list)
    features_s: float = 0.0
    abandoned: bool = False
    over: bool = False
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


class Queue:
    """The screens that wait, come in or run, and their places: all of a screen's patches have one, or none has.

    A screen leaves by its answer (`finish`), by `refuse`, or by its sender (`withdraw`): that one keeps its places
    while a batch of it is at a device.

    Attributes:
        patches: of the screens that wait or run.
        closed: a screen that runs is to end at its next batch.
    """

    def __init__(self, *, max_patches: int, devices: int, patch_px: int) -> None:
        self._patch_px = patch_px
        self._max_patches = max_patches
        self._devices = devices
        self._patch_s = FIRST_GUESS_S
        self._changed = threading.Condition()
        self._jobs: list[Job] = []  # in the order of their arrival
        self._refusal = ""  # why no screen is taken any more
        self.patches = 0
        self.closed = False

    def put(self, job: Job) -> None:
        """Append a screen; the exceptions are those of `Scheduler.queue`."""
        count, again = len(job.windows), job.device is not None
        if count > self._max_patches and not again:
            raise ImageTooLarge(f"{count} patches are over the limit of {self._max_patches}")
        with self._changed:
            if self._refusal and (self.closed or not again):  # a screen that is under way ends as usual
                raise NotReady(self._refusal)
            over = self.patches + count - self._max_patches
            if over > 0 and not again:
                taken = f"{self.patches} of {self._max_patches} places are taken"
                raise QueueFull(taken, retry_after_s=over * self._patch_s / self._devices)
            self._jobs.insert(0 if again else len(self._jobs), job)
            self.patches += count

    def arrived(self, job: Job, lines: int, now: float) -> None:
        """Take note of the lines of a screen, and wake the devices where they complete a window."""
        with self._changed:
            before = job.ready
            while job.ready < len(job.windows) and job.windows[job.ready].top + self._patch_px <= lines:
                job.ready += 1
            if job.ready > before:
                job.whole_at = now
                self._changed.notify_all()

    def take(self, device: object, size: int, timeout_s: float) -> tuple[Job, int] | None:
        """The next batch of `size` windows: its screen and its first window.

        None where there is none within `timeout_s`, or none will come any more.
        """
        with self._changed:
            found = self._next(device, size)
            if found is None and timeout_s > 0 and not self.closed:
                self._changed.wait(timeout_s)
                found = self._next(device, size)
            if found is None or self.closed:
                return None
            job, first = found
            job.device = device
            job.begun = min(first + size, len(job.windows))
            job.running += 1
            return job, first

    def idles(self, device: object, size: int) -> bool:
        """Whether a device has nothing to do: nothing runs there, and no batch of `size` windows is to be had."""
        with self._changed:
            runs = any(job.running for job in self._jobs if job.device is device)
            return not runs and self._next(device, size) is None

    @property
    def free_places(self) -> int:
        """Patches that there is room for."""
        return self._max_patches - self.patches

    def _next(self, device: object, size: int) -> tuple[Job, int] | None:
        for job in self._jobs:
            whole = min(job.begun + size, len(job.windows))
            if job.device in (None, device) and job.begun < whole <= job.ready and not job.abandoned:
                return job, job.begun
        return None

    def answered(self, job: Job, outcome: Computed | Exception | None = None) -> None:
        """A batch has left the device; with an `outcome` its screen is done with, and nobody else's batch is lost."""
        with self._changed:
            job.running -= 1
            if isinstance(outcome, Computed):
                self._patch_s += NEWEST * (outcome.features_s / len(job.windows) - self._patch_s)
        if outcome is not None or (job.abandoned and not job.running):
            self.finish(job, outcome or NotReady(STOPPING))

    def finish(self, job: Job, outcome: Computed | Exception) -> None:
        """Free the places of a screen, first, so that whoever has the answer finds them free; once for each."""
        with self._changed:
            if job.over:
                return
            self._free(job)
        job.settle(outcome)

    def withdraw(self, job: Job) -> None:
        """Forget a screen that nobody waits for any more; a device that is at it leaves it at its next batch."""
        with self._changed:
            if job.over:
                return
            job.abandoned = True
            if not job.running:
                self._free(job)

    def _free(self, job: Job) -> None:
        job.over = True
        self._jobs.remove(job)
        self.patches -= len(job.windows)

    def refuse(self, reason: str) -> None:
        """Take no more screens and answer those that wait, as not ready; what runs ends as usual."""
        with self._changed:
            self._refusal = reason
            waiting = [job for job in self._jobs if job.device is None]
        for job in waiting:
            self.finish(job, NotReady(reason))

    def leave(self, device: object) -> None:
        """Answer what a device began and will not end, as it stops."""
        with self._changed:
            begun = [job for job in self._jobs if job.device is device]
        for job in begun:
            self.finish(job, NotReady(STOPPING))

    def close(self) -> None:
        """Refuse, stop what runs, and wake the devices."""
        self.refuse(STOPPING)
        with self._changed:
            self.closed = True
            self._changed.notify_all()
