"""What a line gets: the rate of the bundle, end to end."""

from collections.abc import Collection, Iterator

from engine.cpus import openvino_vectors
from service.bench.profile import profiled
from service.bench.report import Row, latency
from service.bench.work import Work
from service.lines import Lines

FLOOR_PATCHES_PER_S = 156.0  # the paper's rate, on four GPUs
WIDE_VECTORS = ("avx512f", "avx_vnni", "amx_tile")  # with which twice the rate is asked for


def least_patches_per_s(vectors: Collection[str]) -> float:
    """The rate that is asked of two CPUs that may use these vector instructions."""
    return FLOOR_PATCHES_PER_S * (1 + any(name in WIDE_VECTORS for name in vectors))


def measure(work: Work) -> Iterator[Row]:
    """The bundle over HTTP, raw frames, verdicts recorded."""
    least = least_patches_per_s(openvino_vectors())
    with work.served() as served:
        lines, profile = profiled("bundle", work, served)
    yield rate("bundle end to end", work, lines, least=least, limit=f"{least:.0f} patches/s, none failed")
    yield profile


def rate(name: str, work: Work, lines: Lines, *, least: float, limit: str) -> Row:
    """Patches/s of lines that were answered."""
    found = len(work.windows) * len(lines.durations) / lines.elapsed_s
    return Row(
        name=name,
        found=f"{found:.0f} patches/s; {lines.describe()}",
        limit=limit,
        passed=found >= least and not lines.failures,
        figures={"patches_per_s": found, **latency(lines.durations), **lines.figures()},
    )
