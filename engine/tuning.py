"""How a CPU's threads are shared out among the patches of a batch: measured at load, fixed while the process lives.

Every patch is a run of its own. Several runs side by side with few threads each wait less for each other than one run
with all threads, unless the patches are fewer than the CPUs; which is best depends on network and machine.

**Measured as it is served**: a batch is begun before the one before it ends. Batch by batch, five patches in two
streams leave a CPU idle for a sixth of the time, and one stream looks faster that is slower in service.

**Noise must not cost a CPU.** What is measured is measured once, perhaps beside other work, and holds for the life of
the process. One with fewer threads looks as fast while something else holds the other CPUs, and leaves them idle
afterwards. So only shares that use all CPUs are tried, and another than the reference is taken only where that is
slower both before it and after it. And a bundle that is loaded beside one in service, which holds the CPUs, is not
judged by time at all: it takes the other's share where runtime, precision, CPUs and patches are the same.

**Noise must not decide a score.** How many threads share one run can change the order of its sums, and with it the last
bits; so a share is only taken if it gives the golden patches the bits of the reference, which follows from the numbers
of CPUs and patches alone. That the bits are the same for all other patches is then very likely, as the order of sums
depends on shapes and not on values, and it is no proof.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from engine.backend import Backend, Batch, Features
from engine.batches import Batches
from engine.golden import read_golden
from engine.speed import FASTER_BY

TRIAL_S = 0.75  # of runs with one share; where a batch alone takes longer nothing else is tried
RUNS_MAX = 5  # of one share, so that small networks do not fill the time
BATCHES = 4  # of a run, one begun before the other ends; a run that has begun still ends


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
class Conditions:
    """What a share is good for: bundles of which all of this is the same may have the same one.

    Attributes:
        runtime: that runs the features graph.
        precision: of that graph.
        cpus: that may be used.
        patches: runs of a batch.
        glance: whether a smaller network runs before each of them.
    """

    runtime: str
    precision: str
    cpus: int
    patches: int
    glance: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One share that was tried: the best time of its batches, and whether it gave the bits of the reference."""

    share: Share
    batch_s: float
    same_bits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The share taken, under what conditions, and the trials that led to it, the reference first.

    There are no trials where nothing was timed.
    """

    share: Share
    conditions: Conditions
    trials: tuple[Trial, ...] = ()


@runtime_checkable
class Tuned(Protocol):
    """A backend whose threads were shared out: one on a CPU."""

    @property
    def tuned(self) -> Tuning:
        """How, and why."""


def tuning_of(backend: Backend) -> Tuning | None:
    """How a backend's threads were shared out; None on a GPU, which has none."""
    return backend.tuned if isinstance(backend, Tuned) else None


def reference(cpus: int, *, patches: int) -> Share:
    """As many patches side by side as share out the CPUs evenly, so that none is left idle.

    Args:
        cpus: that may be used, at least 1.
        patches: runs of a batch, at least 1.

    Raises:
        ValueError: there is no CPU.
    """
    if cpus < 1:
        raise ValueError(f"threads must be at least 1, got {cpus}")
    streams = max(count for count in range(1, min(cpus, patches) + 1) if cpus % count == 0)
    return Share(streams=streams, threads=cpus // streams)


def tune(
    build: Callable[[Share], Batches],
    bundle: Path,
    conditions: Conditions,
    *,
    threads: int | None = None,
    beside: Tuning | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Tuning:
    """The share for `threads`; else that of the bundle in service; else the faster one of the two that use all CPUs.

    These are the reference and one stream with all the threads, which is only taken where it is clearly faster than
    the reference was before it, and is again after it.

    Args:
        build: what runs batches with a given share; it is dropped before the next one is built.
        bundle: whose golden patches are run.
        conditions: of what is built.
        threads: to use, at least 1; None takes all CPUs.
        beside: of the bundle in service beside which this one is loaded; under other conditions it is of no effect.
        clock: seconds.

    Raises:
        ValueError: fewer than one thread.
        BundleError: the golden patches cannot be read.
        InferenceError: the runtime failed on them.
    """
    if threads is not None:
        return Tuning(share=reference(threads, patches=conditions.patches), conditions=conditions)
    settled = None if beside is None or beside.conditions != conditions else beside.share
    first = reference(conditions.cpus, patches=conditions.patches)
    other = settled or Share(streams=1, threads=conditions.cpus)
    if other == first:
        return Tuning(share=first, conditions=conditions)
    golden = read_golden(bundle).pixels
    batch = Batch(np.resize(golden, (conditions.patches, *golden.shape[1:])))
    if settled is not None:
        same = _same_bits(build(first).run(batch), build(settled).run(batch))
        return Tuning(share=settled if same else first, conditions=conditions)
    expected, first_s = _try(build(first), batch, clock, slow_s=TRIAL_S)
    trials = [Trial(share=first, batch_s=first_s, same_bits=True)]
    if first_s > TRIAL_S:
        return Tuning(share=first, conditions=conditions, trials=tuple(trials))
    features, other_s = _try(build(other), batch, clock)
    allowed = _same_bits(features, expected)
    trials.append(Trial(share=other, batch_s=other_s, same_bits=allowed))
    taken = allowed and first_s > FASTER_BY * other_s
    if taken:  # unless it was something else that slowed the reference down
        _, again_s = _try(build(first), batch, clock)
        trials.append(Trial(share=first, batch_s=again_s, same_bits=True))
        taken = again_s > FASTER_BY * other_s
    return Tuning(share=other if taken else first, conditions=conditions, trials=tuple(trials))


def _try(
    batches: Batches, batch: Batch, clock: Callable[[], float], *, slow_s: float = float("inf")
) -> tuple[Features, float]:
    """What it answers, and the time of a batch in the shortest run, which other work on the machine disturbed least.

    Where a batch alone takes longer than `slow_s`, that is its time.
    """
    features = batches.run(batch)  # pays for the memory
    start = clock()
    batches.run(batch)
    if (alone_s := clock() - start) > slow_s:
        return features, alone_s
    best, until = float("inf"), clock() + TRIAL_S
    for _ in range(RUNS_MAX):
        start = clock()
        for _ in batches.stream([batch] * BATCHES):
            pass
        best = min(best, (clock() - start) / BATCHES)
        if clock() >= until:
            break
    return features, best


def _same_bits(left: Features, right: Features) -> bool:
    return all(
        getattr(left, field.name).tobytes() == getattr(right, field.name).tobytes() for field in fields(Features)
    )
