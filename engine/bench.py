"""How fast, against what the machine can do: every runtime and precision of a bundle side by side in one run.

All take turns, batch by batch, the machine's ceilings among them, so that whatever else the machine does slows all
alike. The roofline is the time that a patch's multiply-adds need at the speed of a matrix product, or its layers'
values at the speed of a copy, whichever is longer; caches can beat the copy, and fewer sums than counted the product.
Best times are compared with it, those that other work disturbed least.
"""

import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
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

from engine.backend import BEST_FIRST, PRECISIONS, Backend, Features, load
from engine.cpus import available_cpus
from engine.errors import EngineError, RuntimeUnavailable
from engine.manifest import Manifest

FLOOR_PATCHES_PER_S = 156.0  # of the paper: three screens a second on four GPUs
MATRIX_SIDE, PRODUCTS = 64, 200
COPY_BYTES = 64 * 2**20  # larger than caches
MIN_ROUNDS = 5
CPU_INFO = Path("/proc/cpuinfo")
VECTORS = re.compile(r"fma|avx\w*|amx\w*|asimd\w*|sve\w*|i8mm|bf16")


@runtime_checkable
class Timed(Protocol):
    """A backend whose device has a clock of its own, such as a GPU's events."""

    def timed_features(self, pixels: NDArray[np.uint8]) -> tuple[Features, float]:
        """As `Backend.features`, and the seconds from the first byte up to the last down, on the device's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """Something that runs batches.

    Attributes:
        name: of the runtime.
        precision: of its features graph.
        threads: how it shares out the CPU, for people; empty where there is nothing to say.
        batch_size: patches of a batch.
        run: one batch; the seconds it took.
        on_cpu: whether the CPU's ceilings are its own.
    """

    name: str
    precision: str
    threads: str
    batch_size: int
    run: Callable[[], float]
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
        latency: of a batch.
        patches_per_s: at the median.
        of_floor_ratio: of 156 patches/s.
        gflop_per_s: arithmetic done at the median; None where the graph's work is not known.
        of_roofline_ratio: best time that the ceilings allow in float32 by the best one taken; None on a device that is
            not the CPU.
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
    """What the CPU does at best in the same rounds: products of float32 matrices, and copies of memory."""

    gflop_per_s: float
    copy_gb_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of one run; `missing` says by runtime and precision why something did not take part.

    `patch_gflop` and `patch_mb` are the work of one patch; None where ONNX Runtime did not count it.
    """

    cpu: str
    vectors: list[str]
    ceilings: Ceilings
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
            manifest = Manifest.read(bundle)
            work = _work(bundle, manifest)
            for backend in _backends(bundle, manifest, runtimes, precisions, batch_size, absent):
                stack.enter_context(closing(backend))
                contestants.append(_contestant(backend))
        if not contestants:
            raise RuntimeUnavailable("; ".join(absent.values()) or "there is nothing to time")
        rivals = [contestant.run for contestant in contestants]
        *taken, product, copy = _take_turns(
            [*rivals, _matrix_product(), _memory_copy()], seconds * len(rivals), console
        )
    ceilings = Ceilings(
        gflop_per_s=2 * MATRIX_SIDE**3 * PRODUCTS * available_cpus() / min(product) / 1e9,
        copy_gb_per_s=2 * COPY_BYTES / min(copy) / 1e9,
    )
    return Report(
        cpu=cpu_name(),
        vectors=vector_instructions(),
        ceilings=ceilings,
        patch_gflop=None if work is None else work[0],
        patch_mb=None if work is None else work[1],
        results=[_result(one, times, work, ceilings) for one, times in zip(contestants, taken, strict=True)],
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


def _contestant(backend: Backend) -> Contestant:
    side = backend.manifest.patch_px
    pixels = np.random.default_rng(0).integers(0, 256, (backend.batch_size, 1, side, side), np.uint8)

    def by_the_host() -> float:
        start = time.perf_counter()
        backend.features(pixels)
        return time.perf_counter() - start

    tuned = getattr(backend, "tuned", None)  # a GPU has no threads to choose
    return Contestant(
        name=backend.runtime,
        precision=backend.precision,
        threads="" if tuned is None else str(tuned.share),
        batch_size=backend.batch_size,
        run=(lambda: backend.timed_features(pixels)[1]) if isinstance(backend, Timed) else by_the_host,
        on_cpu=backend.runtime != "tensorrt",
    )


def _work(bundle: Path, manifest: Manifest) -> tuple[float, float] | None:
    """GFLOP and MB of one patch; None without ONNX Runtime."""
    try:
        from engine.graphs import count_work
    except ImportError:
        return None
    work = count_work(bundle, manifest)
    return 2 * work.multiply_adds / 1e9, work.moved_bytes / 1e6


def _matrix_product() -> Callable[[], float]:
    """On each CPU, products too small for BLAS to share out: threads that wait for each other are no ceiling."""
    pool = ThreadPoolExecutor(available_cpus())
    left = np.random.default_rng(0).random((PRODUCTS, MATRIX_SIDE, MATRIX_SIDE), np.float32)
    outs = [np.empty_like(left) for _ in range(available_cpus())]
    return lambda: _timed(lambda: list(pool.map(lambda out: np.matmul(left, left[0], out=out), outs)))


def _memory_copy() -> Callable[[], float]:
    source = np.ones(COPY_BYTES, np.uint8)
    out = np.empty_like(source)
    return lambda: _timed(lambda: np.copyto(out, source))


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _take_turns(runs: Sequence[Callable[[], float]], seconds: float, console: Console | None) -> list[list[float]]:
    """The times of each, in seconds; a first turn, in which memory is got, does not count."""
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    with Progress(console=console, disable=console is None or not console.is_terminal) as progress:
        task = progress.add_task("bench", total=seconds)
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds or len(times[0]) < MIN_ROUNDS:
            for run, taken in zip(runs, times, strict=True):
                taken.append(run())
            progress.update(task, completed=min(elapsed, seconds))
    return times


def _result(
    contestant: Contestant, times: Sequence[float], work: tuple[float, float] | None, ceilings: Ceilings
) -> Result:
    p5_s, median_s, p95_s = map(float, np.percentile(times, [5, 50, 95]))
    patches_per_s = contestant.batch_size / median_s
    gflop_per_s = of_roofline = None
    if work is not None:
        gflop, megabytes = work
        gflop_per_s = gflop * patches_per_s
        if contestant.on_cpu:
            least_s = max(gflop / ceilings.gflop_per_s, megabytes / 1e3 / ceilings.copy_gb_per_s)
            of_roofline = least_s * contestant.batch_size / min(times)
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


def cpu_name() -> str:
    """The CPU's model."""
    found = re.search(r"^model name\s*:\s*(.+)$", _cpu_info(), re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def vector_instructions() -> list[str]:
    """Names of the CPU's vector instructions that multiply and add."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpu_info(), re.MULTILINE)
    return [] if found is None else sorted(name for name in found[1].split() if VECTORS.fullmatch(name))


def _cpu_info() -> str:
    return CPU_INFO.read_text() if CPU_INFO.is_file() else ""


def show(report: Report, console: Console) -> None:
    """Print a report for people."""
    table = Table(
        "runtime", "threads", "batch", "patches/s", "x 156", "ms a batch", "p5 - p95", "roofline", box=box.SIMPLE
    )
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
    console.print(table)
    for name, reason in report.missing.items():
        console.print(f"no {name}: {reason}", soft_wrap=True)
