"""What the service leaves of a device: on simulated ones, whose rates tell of the service alone."""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from service.bench.line import profiled, rate
from service.bench.report import Row, latency
from service.bench.simulated import SimulatedDevice, golden_of
from service.bench.work import SEED, Work
from service.client import ClientError, Served, post_frame
from service.scheduler import Scheduler
from service.traffic import SENDERS

BATCH_S, PATCH_S = 0.002, 0.002  # a simulated device: 2 + 2n ms for a batch of n
INSTANT_PATCHES_PER_S = 1000.0
OF_CEILING = 0.97  # of a device's own rate
P99_OF_IDEAL = 1.3
TWO_DEVICES = 1.9  # times one
LOAD = 0.8  # of the device's rate, for arrivals that do not wait for answers
BURST = 5  # screens that arrive at once
CLIENTS = 16  # that may wait for an answer at a time


def measure(work: Work) -> Iterator[Row]:
    """Devices that answer at once, and such that take 2 + 2n ms for a batch of n."""
    yield from _instant(work)
    yield from _one_device(work)
    yield _two_devices(work)
    yield from _arrivals(work)


def _instant(work: Work) -> Iterator[Row]:
    with _simulated(work, batch_s=0.0, patch_s=0.0) as served:
        traffic, profile = profiled("device that answers at once", work, served)
    limit = f"{INSTANT_PATCHES_PER_S:.0f} patches/s"
    yield rate("device that answers at once", work, traffic, least=INSTANT_PATCHES_PER_S, limit=limit)
    yield profile


def _one_device(work: Work) -> Iterator[Row]:
    """With three screens in flight."""
    screen_s = _screen_s(work)
    with _simulated(work, batch_s=BATCH_S, patch_s=PATCH_S) as served:
        traffic = work.loaded(served)
    ceiling, found = 1 / screen_s, traffic.screens_per_s
    waits, ideal = latency(traffic.durations), SENDERS * screen_s
    yield Row(
        name="share of a device's rate",
        found=f"{found / ceiling:.1%}; {traffic.describe()}",
        limit=f"{OF_CEILING:.0%}",
        passed=found >= OF_CEILING * ceiling and not traffic.failures,
        figures={"of_ceiling": found / ceiling, **traffic.figures()},
    )
    yield Row(
        name="p99 of a screen, times the ideal",
        found=f"{waits['p99_s'] / ideal:.2f} ({waits['p99_s']:.3f} s, ideal {ideal:.3f} s)",
        limit=f"{P99_OF_IDEAL:g}",
        passed=waits["p99_s"] <= P99_OF_IDEAL * ideal,
        figures={**waits, "ideal_s": ideal},
    )


def _two_devices(work: Work) -> Row:
    """In one process, without HTTP."""
    rates = [_driven(work, devices, work.seconds / 2) for devices in (1, 2)]
    return Row(
        name="two devices, times one",
        found=f"{rates[1] / rates[0]:.2f} ({rates[0]:.2f} and {rates[1]:.2f} screens/s)",
        limit=f"{TWO_DEVICES:g}",
        passed=rates[1] >= TWO_DEVICES * rates[0],
        figures={"screens_per_s": rates},
    )


def _arrivals(work: Work) -> Iterator[Row]:
    """Screens that come whether or not the ones before were answered."""
    screen_s = _screen_s(work)
    count = max(BURST, round(work.seconds * LOAD / screen_s))
    gaps = np.random.default_rng(SEED).exponential(screen_s / LOAD, count)
    patterns = {
        f"Poisson at {LOAD:.0%} load": np.cumsum(gaps).tolist(),
        f"bursts of {BURST} at {LOAD:.0%} load": [index // BURST * BURST * screen_s / LOAD for index in range(count)],
    }
    for name, arrivals in patterns.items():
        with _simulated(work, batch_s=BATCH_S, patch_s=PATCH_S) as served:
            durations, failures = _posted_at(served, work, arrivals)
        waits = latency(durations)
        failed = f", {len(failures)} failed ({failures[0]})" if failures else ", none failed"
        yield Row(
            name=name,
            found=f"p50 {waits['p50_s']:.3f} s, p99 {waits['p99_s']:.3f} s of {len(durations)} screens{failed}",
            limit="none failed",
            passed=not failures,
            figures={**waits, "screens": len(durations), "failures": failures[:20]},
        )


def _posted_at(served: Served, work: Work, arrivals: Sequence[float]) -> tuple[list[float], list[str]]:
    """Seconds from each arrival to its answer, and what failed; a client that comes late does not hide the wait."""
    durations: list[float] = []
    failures: list[str] = []
    begun_at = time.monotonic()

    def post(number: int, due_at: float) -> None:
        try:
            post_frame(served.client, f"arrival-{number}", work.frames[number % len(work.frames)])
        except ClientError as error:
            failures.append(str(error))
        else:
            durations.append(time.monotonic() - due_at)

    with ThreadPoolExecutor(CLIENTS, thread_name_prefix="line") as lines:
        for number, after_s in enumerate(arrivals):
            time.sleep(max(0.0, begun_at + after_s - time.monotonic()))
            lines.submit(post, number, begun_at + after_s)
    return durations, failures


def _driven(work: Work, devices: int, seconds: float) -> float:
    """Screens/s of simulated devices that a scheduler drives, with enough screens waiting."""
    manifest, windows, frame = work.manifest, work.windows, work.frames[0]
    backends = [SimulatedDevice(manifest, batch_s=BATCH_S, patch_s=PATCH_S) for _ in range(devices)]
    done: queue.SimpleQueue[float] = queue.SimpleQueue()
    with Scheduler(backends, golden_of(manifest), max_patches=1000, self_test_interval_s=60.0) as scheduler:
        scheduler.tested()
        until = time.monotonic() + seconds

        def screens() -> None:
            while time.monotonic() < until:
                scheduler.compute(frame, windows, deadline_at=time.monotonic() + 60.0)
                done.put(time.monotonic())

        begun_at = time.monotonic()
        threads = [threading.Thread(target=screens, daemon=True) for _ in range(SENDERS * devices)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return done.qsize() / (time.monotonic() - begun_at)


def _screen_s(work: Work) -> float:
    """What a simulated device takes for a screen."""
    size, windows = work.manifest.batch_size, len(work.windows)
    return -(-windows // size) * BATCH_S + windows * PATCH_S


@contextmanager
def _simulated(work: Work, *, batch_s: float, patch_s: float) -> Iterator[Served]:
    with work.served(module=["service.bench.simulated", str(batch_s), str(patch_s)]) as served:
        yield served
