"""How a CPU's threads are shared out among the patches of a batch: measured at load, fixed while the process lives.

Every patch is a run of its own. Several runs side by side with few threads each wait less for each other than one run
with all threads, unless the patches are fewer than the CPUs; which is best depends on network and machine.

Noise must not decide a score. How many threads share one run can change the order of its sums, and with it the last
bits; so a share is only taken if it gives the golden patches the bits of the reference, which follows from the number
of CPUs alone. That the bits are the same for all other patches is then very likely, as the order of sums depends on
shapes and not on values, and it is no proof.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.backend import Features
from engine.cpus import available_cpus
from engine.golden import read_golden

BUDGET_S = 1.5  # for all measurements; one that has begun still ends
RUNS_MAX = 20  # of one share, so that small networks do not fill the budget
AS_FAST = 1.05  # times the best: not worth another thread, which decoding can use

Run = Callable[[NDArray[np.uint8]], Features]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Patches that run side by side, and the threads that work at each of them, which it has for itself."""

    streams: int
    threads: int

    def __str__(self) -> str:
        return f"{self.streams} x {self.threads}"

    @property
    def total(self) -> int:
        """Threads that work at a time."""
        return self.streams * self.threads


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One share that was tried: its best time of a batch, and whether it gave the bits of the reference."""

    share: Share
    batch_s: float
    same_bits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The share taken and the trials that led to it, the reference first; none where there was nothing to choose."""

    share: Share
    trials: tuple[Trial, ...] = ()


def reference(cpus: int, *, patches: int) -> Share:
    """As many patches side by side as there are CPUs for.

    Args:
        cpus: that may be used, at least 1.
        patches: runs of a batch, at least 1.

    Raises:
        ValueError: there is no CPU.
    """
    if cpus < 1:
        raise ValueError(f"threads must be at least 1, got {cpus}")
    streams = min(cpus, patches)
    return Share(streams=streams, threads=cpus // streams)


def shares(cpus: int, *, patches: int) -> Iterator[Share]:
    """What is worth trying: all CPUs, half of them, and so on, each in as many streams as it goes and in one."""
    total = cpus
    while total:
        widest = reference(total, patches=patches)
        yield widest
        if widest.streams > 1:
            yield Share(streams=1, threads=total)
        total //= 2


def tune(
    build: Callable[[Share], Run],
    bundle: Path,
    *,
    threads: int | None,
    patches: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Tuning:
    """The share for `threads`, or the fastest within the CPUs of the process, measured on the golden patches.

    Of those that are about as fast the one with the fewest threads is taken.

    Args:
        build: what runs a batch with a given share; it is dropped before the next one is built.
        bundle: whose golden patches are run.
        threads: to use, at least 1; None measures.
        patches: runs of a batch.
        clock: seconds.

    Raises:
        ValueError: fewer than one thread.
        BundleError: the golden patches cannot be read.
    """
    if threads is not None:
        return Tuning(share=reference(threads, patches=patches))
    candidates = list(shares(available_cpus(), patches=patches))
    if len(candidates) == 1:
        return Tuning(share=candidates[0])
    golden = read_golden(bundle).pixels
    pixels = np.resize(golden, (patches, *golden.shape[1:]))
    deadline = clock() + BUDGET_S
    trials: list[Trial] = []
    expected: Features | None = None
    run: Run | None = None
    for done, share in enumerate(candidates):
        if trials and clock() >= deadline:
            break
        run = None  # before the next one is built: two graphs at a time would be twice the memory
        run = build(share)
        features = run(pixels)  # pays for the memory
        expected = expected or features
        until = clock() + (deadline - clock()) / (len(candidates) - done)
        batch_s = _best_s(run, pixels, until=until, clock=clock)
        trials.append(Trial(share=share, batch_s=batch_s, same_bits=_same_bits(features, expected)))
    return Tuning(share=_fastest(trials), trials=tuple(trials))


def _best_s(run: Run, pixels: NDArray[np.uint8], *, until: float, clock: Callable[[], float]) -> float:
    """The shortest time of a run, which other work on the machine disturbed least."""
    best = float("inf")
    for _ in range(RUNS_MAX):
        start = clock()
        run(pixels)
        best = min(best, clock() - start)
        if clock() >= until:
            break
    return best


def _same_bits(left: Features, right: Features) -> bool:
    return all(
        getattr(left, field.name).tobytes() == getattr(right, field.name).tobytes() for field in fields(Features)
    )


def _fastest(trials: Sequence[Trial]) -> Share:
    allowed = [trial for trial in trials if trial.same_bits]
    limit = AS_FAST * min(trial.batch_s for trial in allowed)
    return min(
        (trial for trial in allowed if trial.batch_s <= limit), key=lambda trial: (trial.share.total, trial.batch_s)
    ).share
