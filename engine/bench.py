"""How fast, against what the machine can do: every runtime and precision of a bundle side by side in one run.

All take turns, batch by batch, the machine's ceilings among them, so that whatever else the machine does slows all
alike. The roofline is the time that a patch's multiply-adds need at the speed of a matrix product, or its layers'
values at the speed of a copy, whichever is longer; caches can beat the copy, and fewer sums than counted the product.
Best times are compared with it, those that other work disturbed least. A GPU has a roofline of its own, measured on it.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from engine.backend import BEST_FIRST, PRECISIONS, Backend, Batch, Features, Streaming, load, stream
from engine.copies import seen_whole
from engine.cpus import cpu_name, vector_instructions
from engine.errors import EngineError, RuntimeUnavailable
from engine.graphs import count_work
from engine.manifest import Manifest
from engine.tuning import tuning_of
from engine.yardstick import Yardstick, cpu_yardstick

FLOOR_PATCHES_PER_S = 156.0  # of the paper: three screens a second on four GPUs
MIN_ROUNDS = 5
BATCHES_IN_ROW = 10  # a screen's
GPU_BYTES = {"fp32": 1.0, "fp16": 0.5, "int8": 0.25}  # moved, of those in float32


@runtime_checkable
class OnDevice(Protocol):
    """A backend on a device with a clock and ceilings of its own, such as a GPU."""

    def timed_features(self, pixels: NDArray[np.uint8]) -> tuple[Features, float]:
        """As `Backend.features`, and the seconds from the first byte up to the last down, on the device's clock."""

    def yardstick(self) -> AbstractContextManager[Yardstick]:
        """What the device does at best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """Something that runs batches.

    Attributes:
        name: of the runtime.
        precision: of its features graph.
        threads: how it shares out the CPU, for people; empty where there is nothing to say.
        batch_size: patches of a batch.
        run: one batch; the seconds it took.
        in_row: batches one after the other as a service sends them, the next under way before the last is done; seconds
            of one. None where that is `run`.
        yardstick: of its device; None where that is the CPU, or its own could not be measured.
        on_cpu: whether the CPU's ceilings are its own.
    """

    name: str
    precision: str
    threads: str
    batch_size: int
    run: Callable[[], float]
    in_row: Callable[[], float] | None = None
    yardstick: Yardstick | None = None
    on_cpu: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds of a batch: the median, what 5 % and 95 % of the batches stay under, and the best."""

    median_s: float
    p5_s: float
    p95_s: float
    best_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One contestant.

    Attributes:
        runtime: its name.
        precision: of its features graph.
        threads: see `Contestant`.
        batch_size: patches of a batch.
        batches: that were timed.
        latency: of a batch alone.
        patches_per_s: at the median, of batches in a row.
        of_floor_ratio: of 156 patches/s.
        gflop_per_s: arithmetic done at the median; None where the graph's work is not known.
        of_roofline_ratio: best time that the ceilings allow by the best one taken. A CPU's are float32's, so that
            bf16 and int8 may pass 1; a GPU's are those of fp16, and of fp32 in fp32, so that int8 may. None where they
            are not known.
    """

    runtime: str
    precision: str
    threads: str
    batch_size: int
    batches: int
    latency: Latency
    patches_per_s: float
    of_floor_ratio: float
    gflop_per_s: float | None
    of_roofline_ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What a device does at best in the same rounds: products of matrices, and copies of memory."""

    gflop_per_s: float
    copy_gb_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of one run; `missing` says by runtime and precision why something did not take part.

    `ceilings` are the CPU's in float32, `device_ceilings` by runtime and precision those of a device of its own.
    `patch_gflop` and `patch_mb` are the work of one patch; None where no bundle is timed.
    """

    cpu: str
    vectors: list[str]
    ceilings: Ceilings
    device_ceilings: dict[str, Ceilings]
    patch_gflop: float | None
    patch_mb: float | None
    results: list[Result]
    missing: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def bench(
    bundle: Path | None,
    *,
    runtimes: Sequence[str] = (),
    precisions: Sequence[str] = (),
    batch_size: int | None = None,
    seconds: float = 10.0,
    others: Sequence[Contestant] = (),
    missing: Mapping[str, str] = MappingProxyType({}),
    console: Console | None = None,
) -> Report:
    """Time whatever can run here.

    Args:
        bundle: a bundle; None times `others` alone.
        runtimes: names; by default all that are installed.
        precisions: by default all that the bundle has.
        batch_size: patches of a batch; by default the manifest's, or the plan's.
        seconds: measured time for each contestant, on average.
        others: more contestants, such as the module that the bundle was made from.
        missing: by name why another one of them does not take part.
        console: shows a progress bar.

    Raises:
        BundleError: the bundle must not be served.
        RuntimeUnavailable: nothing can run.
        InferenceError: a runtime failed.
    """
    absent = dict(missing)
    work: tuple[float, float] | None = None
    with ExitStack() as stack:
        contestants = list(others)
        if bundle is not None:
            bundle = stack.enter_context(seen_whole(bundle))  # it is the features graph that is timed
            manifest = Manifest.read(bundle)
            work = _work(bundle, manifest)
            for backend in _backends(bundle, manifest, runtimes, precisions, batch_size, absent):
                stack.enter_context(closing(backend))
                contestants.append(_contestant(backend, stack, absent))
        if not contestants:
            raise RuntimeUnavailable("; ".join(dict.fromkeys(absent.values())) or "there is nothing to time")
        cpu = cpu_yardstick()
        rivals = [run for one in contestants for run in (one.run, one.in_row) if run is not None]
        yardsticks = [cpu, *(one.yardstick for one in contestants if one.yardstick is not None)]
        limits = [run for yardstick in yardsticks for run in (yardstick.product, yardstick.copy)]
        times = _take_turns([*rivals, *limits], seconds * len(rivals), console)
    ceilings = _ceilings(cpu, times)
    own = {
        f"{one.name} {one.precision}": _ceilings(one.yardstick, times)
        for one in contestants
        if one.yardstick is not None
    }
    return Report(
        cpu=cpu_name(),
        vectors=vector_instructions(),
        ceilings=ceilings,
        device_ceilings=own,
        patch_gflop=None if work is None else work[0],
        patch_mb=None if work is None else work[1],
        results=[
            _result(
                one,
                times[one.run],
                work,
                ceilings if one.on_cpu else own.get(f"{one.name} {one.precision}"),
                in_row=None if one.in_row is None else times[one.in_row],
            )
            for one in contestants
        ],
        missing=absent,
    )


def _backends(
    bundle: Path,
    manifest: Manifest,
    runtimes: Sequence[str],
    precisions: Sequence[str],
    batch_size: int | None,
    missing: dict[str, str],
) -> Iterator[Backend]:
    """Those that load; why the others do not goes to `missing`. A bundle that must not be served has been found out."""
    tolerances = {name.removesuffix("-trt") for name in manifest.parity_tolerance}
    made = [name for name in PRECISIONS if name in tolerances]
    for runtime in runtimes or BEST_FIRST:
        for precision in precisions or made:
            try:
                yield load(bundle, runtime, precision=precision, batch_size=batch_size)
            except EngineError as error:
                missing[f"{runtime} {precision}"] = str(error)


def _contestant(backend: Backend, stack: ExitStack, missing: dict[str, str]) -> Contestant:
    """A backend that is to be timed; what it needs for that is given back by `stack`."""
    side = backend.manifest.patch_px
    pixels = np.random.default_rng(0).integers(0, 256, (backend.batch_size, 1, side, side), np.uint8)

    def by_the_host() -> float:
        start = time.perf_counter()
        backend.features(pixels)
        return time.perf_counter() - start

    def in_row() -> float:
        start = time.perf_counter()
        for _ in stream(backend, [Batch(pixels)] * BATCHES_IN_ROW):
            pass
        return (time.perf_counter() - start) / BATCHES_IN_ROW

    yardstick = None
    if isinstance(backend, OnDevice):
        try:
            yardstick = stack.enter_context(backend.yardstick())
        except EngineError as error:
            missing[f"roofline of {backend.runtime} {backend.precision}"] = str(error)
    tuned = tuning_of(backend)
    return Contestant(
        name=backend.runtime,
        precision=backend.precision,
        threads="" if tuned is None else str(tuned.share),
        batch_size=backend.batch_size,
        run=(lambda: backend.timed_features(pixels)[1]) if isinstance(backend, OnDevice) else by_the_host,
        in_row=in_row if isinstance(backend, Streaming) else None,
        yardstick=yardstick,
        on_cpu=backend.runtime != "tensorrt",
    )


def _work(bundle: Path, manifest: Manifest) -> tuple[float, float]:
    """GFLOP and MB of one patch."""
    work = count_work(bundle, manifest)
    return 2 * work.multiply_adds / 1e9, work.moved_bytes / 1e6


def _take_turns(
    runs: Sequence[Callable[[], float]], seconds: float, console: Console | None
) -> dict[Callable[[], float], list[float]]:
    """The times of each, in seconds; a first turn, in which memory is got, does not count."""
    for run in runs:
        run()
    times: dict[Callable[[], float], list[float]] = {run: [] for run in runs}
    with Progress(console=console, disable=console is None or not console.is_terminal) as progress:
        task = progress.add_task("bench", total=seconds)
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds or len(times[runs[0]]) < MIN_ROUNDS:
            for run, taken in times.items():
                taken.append(run())
            progress.update(task, completed=min(elapsed, seconds))
    return times


def _ceilings(yardstick: Yardstick, times: Mapping[Callable[[], float], list[float]]) -> Ceilings:
    return Ceilings(
        gflop_per_s=yardstick.gflop / min(times[yardstick.product]),
        copy_gb_per_s=yardstick.gigabytes / min(times[yardstick.copy]),
    )


def _result(
    contestant: Contestant,
    times: Sequence[float],
    work: tuple[float, float] | None,
    ceilings: Ceilings | None,
    *,
    in_row: Sequence[float] | None = None,
) -> Result:
    p5_s, median_s, p95_s = map(float, np.percentile(times, [5, 50, 95]))
    rates = times if in_row is None else in_row
    patches_per_s = contestant.batch_size / float(np.median(rates))
    gflop_per_s = of_roofline = None
    if work is not None:
        gflop, megabytes = work
        gflop_per_s = gflop * patches_per_s
        if ceilings is not None:
            moved = megabytes * (1.0 if contestant.on_cpu else GPU_BYTES[contestant.precision])
            least_s = max(gflop / ceilings.gflop_per_s, moved / 1e3 / ceilings.copy_gb_per_s)
            of_roofline = least_s * contestant.batch_size / min(rates)
    return Result(
        runtime=contestant.name,
        precision=contestant.precision,
        threads=contestant.threads,
        batch_size=contestant.batch_size,
        batches=len(times),
        latency=Latency(median_s=median_s, p5_s=p5_s, p95_s=p95_s, best_s=min(times)),
        patches_per_s=patches_per_s,
        of_floor_ratio=patches_per_s / FLOOR_PATCHES_PER_S,
        gflop_per_s=gflop_per_s,
        of_roofline_ratio=of_roofline,
    )


def show(report: Report, console: Console) -> None:
    """Print a report for people."""
    table = Table("runtime", "threads", "batch", "patches/s", "x 156", "ms (p5-p95)", "roofline", box=box.SIMPLE)
    for one in report.results:
        latency = one.latency
        table.add_row(
            f"{one.runtime} {one.precision}",
            one.threads,
            str(one.batch_size),
            f"{one.patches_per_s:.0f}",
            f"{one.of_floor_ratio:.2f}",
            f"{1e3 * latency.median_s:.1f} ({1e3 * latency.p5_s:.1f}-{1e3 * latency.p95_s:.1f})",
            "-" if one.of_roofline_ratio is None else f"{one.of_roofline_ratio:.0%}",
        )
    console.print(f"{report.cpu} ({' '.join(report.vectors)})")
    ceilings = report.ceilings
    console.print(
        f"ceilings: matrix product {ceilings.gflop_per_s:.0f} GFLOP/s, copy {ceilings.copy_gb_per_s:.1f} GB/s"
        + ("" if report.patch_gflop is None else f"; a patch: {report.patch_gflop:.3g} GFLOP, {report.patch_mb:.3g} MB")
    )
    for name, own in report.device_ceilings.items():
        console.print(
            f"ceilings of {name}: matrix product {own.gflop_per_s:.0f} GFLOP/s, copy {own.copy_gb_per_s:.1f} GB/s"
        )
    console.print(table)
    for name, reason in report.missing.items():
        console.print(f"no {name}: {reason}", soft_wrap=True)
