"""What the service does end to end, and what it leaves of a device: every figure of one run, on two CPUs.

Client and server share the CPUs, as on a line's box; every server is a process of its own and stops by itself. Rates of
simulated devices tell of the service alone: such a device computes nothing, and takes exactly its time.
"""

import json
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine import Manifest, cover
from engine.cpus import cpu_name, vector_instructions
from service.client import ClientError, Served, post_frame, serving
from service.lines import LINES, Lines
from service.rendering import render
from service.scheduler import Scheduler
from service.simulated import SimulatedDevice, golden_of

CPUS = 2
FLOOR_PATCHES_PER_S = 156.0  # the paper's rate, on four GPUs
WIDE_VECTORS = ("avx512f", "avx_vnni", "amx_tile")  # with which twice the rate is asked for
FRAME = (10240, 5120)  # height and width, pixels
SCREENS, SEED = 6, 7
BATCH_S, PATCH_S = 0.002, 0.002  # a simulated device: 2 + 2n ms for a batch of n
INSTANT_PATCHES_PER_S = 1000.0
OF_CEILING = 0.97  # of a device's own rate
P99_OF_IDEAL = 1.3
TWO_DEVICES = 1.9  # times one
LOAD = 0.8  # of the device's rate, for arrivals that do not wait for answers
BURST = 5  # screens that arrive at once
CLIENTS = 16  # that may wait for an answer at a time


class BenchError(Exception):
    """A measurement could not be made at all; the message says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement.

    Attributes:
        name: what was measured.
        found: for people.
        limit: what it is held against; empty where nothing is asked.
        passed: whether it is within; None where nothing is asked.
        figures: for machines.
    """

    name: str
    found: str
    limit: str = ""
    passed: bool | None = None
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of one run."""

    cpu: str
    vectors: list[str]
    cpus: int
    rows: list[Row]

    @property
    def passed(self) -> bool:
        """Whether nothing is out of its limit."""
        return all(row.passed is not False for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def run(bundle: Path, *, seconds: float, console: Console) -> Report:
    """Measure everything; a line is shown as each measurement ends.

    Args:
        bundle: to be served, and whose manifest the simulated devices take.
        seconds: of the bundle under full load, and of each simulated device.
        console: where to show progress.

    Raises:
        RenderingError: no frames could be rendered.
        BenchError: a service could not be started, or answered nothing.
    """
    share = sorted(os.sched_getaffinity(0))[:CPUS]
    os.sched_setaffinity(0, share)  # those that it starts inherit it
    with console.status(f"rendering {SCREENS} frames"):
        frames = _frames()
    rows: list[Row] = []
    measurements: tuple[Callable[[Path, Sequence[NDArray[np.uint8]], float], Sequence[Row]], ...] = (
        _embedded,
        _instant,
        _one_device,
        _two_devices,
        _arrivals,
    )
    for measure in measurements:
        with console.status(measure.__doc__ or measure.__name__):
            made = measure(bundle, frames, seconds)
        for row in made:
            word = {True: "[green]pass[/]", False: "[red]fail[/]", None: "[dim]-[/]"}[row.passed]
            console.print(f"{word} {row.name}: {escape(row.found)}", soft_wrap=True)
        rows += made
    return Report(cpu=cpu_name(), vectors=vector_instructions(), cpus=len(share), rows=rows)


def _embedded(bundle: Path, frames: Sequence[NDArray[np.uint8]], seconds: float) -> Sequence[Row]:
    """The bundle over HTTP, raw frames, verdicts recorded."""
    wide = any(name in WIDE_VECTORS for name in vector_instructions())
    limit = FLOOR_PATCHES_PER_S * (1 + wide)
    with _served({"INSPECT_BUNDLE": str(bundle)}) as served:
        lines = _loaded(served, frames, seconds)
    return [_rate("bundle end to end", bundle, lines, least=limit, limit=f"{limit:.0f} patches/s, none failed")]


def _instant(bundle: Path, frames: Sequence[NDArray[np.uint8]], seconds: float) -> Sequence[Row]:
    """A device that answers at once, over HTTP."""
    with _simulated(bundle, batch_s=0.0, patch_s=0.0) as served:
        lines = _loaded(served, frames, seconds)
    limit = f"{INSTANT_PATCHES_PER_S:.0f} patches/s"
    return [_rate("device that answers at once", bundle, lines, least=INSTANT_PATCHES_PER_S, limit=limit)]


def _one_device(bundle: Path, frames: Sequence[NDArray[np.uint8]], seconds: float) -> Sequence[Row]:
    """A device of 2 + 2n ms a batch, with three screens in flight."""
    screen_s = _screen_s(bundle)
    with _simulated(bundle, batch_s=BATCH_S, patch_s=PATCH_S) as served:
        lines = _loaded(served, frames, seconds)
    ceiling, rate = 1 / screen_s, len(lines.durations) / lines.elapsed_s
    latency, ideal = _latency(lines.durations), LINES * screen_s
    return [
        Row(
            name="share of a device's rate",
            found=f"{rate / ceiling:.1%}; {lines.describe()}",
            limit=f"{OF_CEILING:.0%}",
            passed=rate >= OF_CEILING * ceiling and not lines.failures,
            figures={"of_ceiling": rate / ceiling, **lines.figures()},
        ),
        Row(
            name="p99 of a screen, times the ideal",
            found=f"{latency['p99_s'] / ideal:.2f} ({latency['p99_s']:.3f} s, ideal {ideal:.3f} s)",
            limit=f"{P99_OF_IDEAL:g}",
            passed=latency["p99_s"] <= P99_OF_IDEAL * ideal,
            figures={**latency, "ideal_s": ideal},
        ),
    ]


def _two_devices(bundle: Path, frames: Sequence[NDArray[np.uint8]], seconds: float) -> Sequence[Row]:
    """Two such devices in one process, without HTTP."""
    rates = [_driven(bundle, frames[0], devices, seconds / 2) for devices in (1, 2)]
    return [
        Row(
            name="two devices, times one",
            found=f"{rates[1] / rates[0]:.2f} ({rates[0]:.2f} and {rates[1]:.2f} screens/s)",
            limit=f"{TWO_DEVICES:g}",
            passed=rates[1] >= TWO_DEVICES * rates[0],
            figures={"screens_per_s": rates},
        )
    ]


def _arrivals(bundle: Path, frames: Sequence[NDArray[np.uint8]], seconds: float) -> Sequence[Row]:
    """Screens that come whether or not the ones before were answered."""
    screen_s = _screen_s(bundle)
    count = max(BURST, round(seconds * LOAD / screen_s))
    gaps = np.random.default_rng(SEED).exponential(screen_s / LOAD, count)
    patterns = {
        f"Poisson at {LOAD:.0%} load": np.cumsum(gaps).tolist(),
        f"bursts of {BURST} at {LOAD:.0%} load": [index // BURST * BURST * screen_s / LOAD for index in range(count)],
    }
    rows = []
    for name, arrivals in patterns.items():
        with _simulated(bundle, batch_s=BATCH_S, patch_s=PATCH_S) as served:
            durations, failures = _posted_at(served, frames, arrivals)
        latency = _latency(durations)
        failed = f", {len(failures)} failed ({failures[0]})" if failures else ", none failed"
        rows.append(
            Row(
                name=name,
                found=f"p50 {latency['p50_s']:.3f} s, p99 {latency['p99_s']:.3f} s of {len(durations)} screens{failed}",
                limit="none failed",
                passed=not failures,
                figures={**latency, "screens": len(durations), "failures": failures[:20]},
            )
        )
    return rows


def _posted_at(
    served: Served, frames: Sequence[NDArray[np.uint8]], arrivals: Sequence[float]
) -> tuple[list[float], list[str]]:
    """Seconds from each arrival to its answer, and what failed; a client that comes late does not hide the wait."""
    durations: list[float] = []
    failures: list[str] = []
    begun_at = time.monotonic()

    def post(number: int, due_at: float) -> None:
        try:
            post_frame(served.client, f"arrival-{number}", frames[number % len(frames)])
        except ClientError as error:
            failures.append(str(error))
        else:
            durations.append(time.monotonic() - due_at)

    with ThreadPoolExecutor(CLIENTS, thread_name_prefix="line") as lines:
        for number, after_s in enumerate(arrivals):
            time.sleep(max(0.0, begun_at + after_s - time.monotonic()))
            lines.submit(post, number, begun_at + after_s)
    return durations, failures


def _driven(bundle: Path, frame: NDArray[np.uint8], devices: int, seconds: float) -> float:
    """Screens/s of simulated devices that a scheduler drives, with enough screens waiting."""
    manifest = Manifest.read(bundle)
    backends = [SimulatedDevice(manifest, batch_s=BATCH_S, patch_s=PATCH_S) for _ in range(devices)]
    windows = cover(*FRAME, patch_px=manifest.patch_px, overlap_px=manifest.overlap_px)
    done: queue.SimpleQueue[float] = queue.SimpleQueue()
    with Scheduler(backends, golden_of(manifest), max_patches=1000, self_test_interval_s=60.0) as scheduler:
        scheduler.tested()
        until = time.monotonic() + seconds

        def screens() -> None:
            while time.monotonic() < until:
                scheduler.compute(frame, windows, deadline_at=time.monotonic() + 60.0)
                done.put(time.monotonic())

        begun_at = time.monotonic()
        threads = [threading.Thread(target=screens, daemon=True) for _ in range(LINES * devices)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return done.qsize() / (time.monotonic() - begun_at)


def _loaded(served: Served, frames: Sequence[NDArray[np.uint8]], seconds: float) -> Lines:
    lines = Lines(served, frames)
    lines.load_for(seconds)
    if not lines.durations:
        raise BenchError(f"no screen was answered: {lines.failures[:1]}")
    return lines


def _rate(name: str, bundle: Path, lines: Lines, *, least: float, limit: str) -> Row:
    """Patches/s of lines that were answered."""
    rate = _windows(bundle) * len(lines.durations) / lines.elapsed_s
    return Row(
        name=name,
        found=f"{rate:.0f} patches/s; {lines.describe()}",
        limit=limit,
        passed=rate >= least and not lines.failures,
        figures={"patches_per_s": rate, **_latency(lines.durations), **lines.figures()},
    )


def _windows(bundle: Path) -> int:
    manifest = Manifest.read(bundle)
    return len(cover(*FRAME, patch_px=manifest.patch_px, overlap_px=manifest.overlap_px))


def _screen_s(bundle: Path) -> float:
    """What a simulated device takes for a screen."""
    size, windows = Manifest.read(bundle).batch_size, _windows(bundle)
    return -(-windows // size) * BATCH_S + windows * PATCH_S


def _latency(durations: Sequence[float]) -> dict[str, float]:
    p50_s, p99_s = np.quantile(durations, (0.5, 0.99)).tolist() if durations else (float("inf"), float("inf"))
    return {"p50_s": p50_s, "p99_s": p99_s}


@contextmanager
def _simulated(bundle: Path, *, batch_s: float, patch_s: float) -> Iterator[Served]:
    module = ["service.simulated", str(batch_s), str(patch_s)]
    with _served({"INSPECT_BUNDLE": str(bundle)}, module) as served:
        yield served


@contextmanager
def _served(settings: Mapping[str, str], module: Sequence[str] = ("service",)) -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as folder:
        log_path = Path(folder) / "server.log"
        try:
            with serving({**settings, "INSPECT_LOG_LEVEL": "warning"}, log_path, module=module) as served:
                yield served
        except ClientError as error:  # the log goes with the folder
            raise BenchError(f"{error}; the log ends: {log_path.read_text(errors='replace')[-500:]}") from error


def _frames() -> list[NDArray[np.uint8]]:
    """Rendered frames, by the command that anybody has."""
    with tempfile.TemporaryDirectory() as folder:
        render(Path(folder), screens=SCREENS, seed=SEED, size=FRAME)
        files = sorted((Path(folder) / "screens").glob("*.png"))
        return [np.asarray(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE), np.uint8) for file in files]


def show(report: Report, console: Console) -> None:
    """Print a report for people."""
    table = Table("measured", "found", "asked", "")
    words = {True: "[green]pass[/]", False: "[red]fail[/]", None: ""}
    for row in report.rows:
        table.add_row(row.name, escape(row.found), row.limit, words[row.passed])
    console.print(f"{report.cpu}, {report.cpus} CPUs ({' '.join(report.vectors)})")
    console.print(table)


def as_json(report: Report) -> str:
    """The report for machines."""
    return json.dumps(report.as_dict(), indent=2)
