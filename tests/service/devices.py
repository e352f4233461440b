"""Devices that a test holds in its hand: what they were given is written down, and events decide when they go on."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from engine import Backend, FakeBackend, Golden, Window, cover, fake_manifest
from service.scheduler import Scheduler
from service.waiting import Computed

PATCH_PX = 8
BATCH = 5
GOLDEN_NUMBER = 255  # of no screen
GUARD_S = 20.0  # what a test waits for comes at once; after this it is broken
NEVER_S = 1e9  # on a test's clock

GOLDEN = Golden(
    pixels=np.full((2, 1, PATCH_PX, PATCH_PX), GOLDEN_NUMBER, np.uint8),
    probability=np.full((2, 1), 0.5, np.float32),
    activation=np.zeros((2, 1, 1, 1), np.float32),
    tolerance=0.01,
)

Batch = tuple[int, list[int]]  # number of the screen, and of its patches


def frame_of(number: int, patches: int) -> NDArray[np.uint8]:
    """A row of patches that carry the screen's number, and their own in their first pixel."""
    frame = np.full((PATCH_PX, PATCH_PX * patches), number, np.uint8)
    frame[0, ::PATCH_PX] = np.arange(patches)
    return frame


def windows_of(frame: NDArray[np.uint8]) -> tuple[Window, ...]:
    return cover(*frame.shape, patch_px=PATCH_PX)


class Device:
    """A fake backend's function: a score that grows with the number of the patch, 0.5 for the golden patches.

    Attributes:
        given: every batch, the self-tests' too.
        golden_score: what the golden patches give.
        on_batch: called with the number of the screen before a batch is answered; it may wait, or raise.
    """

    def __init__(self, on_batch: Callable[[int], None] = lambda number: None) -> None:
        self.given: list[Batch] = []
        self.golden_score = 0.5
        self.on_batch = on_batch

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        numbers = {int(number) for number in pixels[:, 0, 1, 1]}
        assert len(numbers) == 1, f"screens {numbers} in one batch"
        number, patches = numbers.pop(), pixels[:, 0, 0, 0].tolist()
        self.given.append((number, patches))
        self.on_batch(number)
        if number == GOLDEN_NUMBER:
            return np.full((len(pixels), 1), self.golden_score)
        return score_of(np.array(patches))[:, None]

    @property
    def screens(self) -> list[Batch]:
        """The batches of screens."""
        return [batch for batch in self.given if batch[0] != GOLDEN_NUMBER]

    @property
    def order(self) -> list[int]:
        """The screens in the order in which they were begun."""
        return list(dict.fromkeys(number for number, _ in self.screens))

    def backend(self) -> FakeBackend:
        return FakeBackend(fake_manifest(["bubble"], patch_px=PATCH_PX, batch_size=BATCH), self)


def score_of(patch: NDArray[np.integer]) -> NDArray[np.float64]:
    """What a `Device` says of a patch of this number."""
    return np.asarray((patch + 1) / 300)


class Gate:
    """Where a device's thread stops until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def stop(self) -> None:
        self.reached.set()
        assert self.opened.wait(GUARD_S)

    def wait_for(self) -> None:
        assert self.reached.wait(GUARD_S)


def held_at(*numbers: int) -> tuple[Device, Gate]:
    """A device that stops at each batch of these screens until the gate is opened."""
    gate = Gate()
    return Device(lambda number: gate.stop() if number in numbers else None), gate


class Line:
    """A scheduler, and the threads of the screens that are sent to it."""

    def __init__(self, scheduler: Scheduler, pool: ThreadPoolExecutor, clock: Callable[[], float]) -> None:
        self.scheduler = scheduler
        self.pool = pool
        self._clock = clock

    def compute(
        self, number: int, patches: int = 1, *, within_s: float = GUARD_S, after: Computed | None = None
    ) -> Computed:
        frame = frame_of(number, patches)
        deadline_at = self._clock() + within_s
        return self.scheduler.compute(frame, windows_of(frame), deadline_at=deadline_at, after=after)

    def send(
        self, number: int, patches: int = 1, *, within_s: float = GUARD_S, after: Computed | None = None
    ) -> "Future[Computed]":
        """A screen from a thread of its own; it has its places when this returns. For a device that is held."""
        before = self.scheduler.waiting_patches
        answer = self.pool.submit(self.compute, number, patches, within_s=within_s, after=after)
        until(lambda: self.scheduler.waiting_patches == before + patches)
        return answer


def until(holds: Callable[[], bool]) -> None:
    """Wait for what has no event of its own."""
    give_up_at = time.monotonic() + GUARD_S
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.001)


@contextmanager
def line(
    *devices: Device | Backend,
    max_patches: int = 100,
    interval_s: float = NEVER_S,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Line]:
    """A line that is closed in the end, whatever came of the test."""
    backends: Sequence[Backend] = [d.backend() if isinstance(d, Device) else d for d in devices]
    with (
        ThreadPoolExecutor(16) as pool,
        Scheduler(backends, GOLDEN, max_patches=max_patches, self_test_interval_s=interval_s, clock=clock) as scheduler,
    ):
        yield Line(scheduler, pool, clock)
