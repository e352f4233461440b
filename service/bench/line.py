"""What a line gets: the rate of the bundle, end to end, and where the time of a screen goes."""

import os
import statistics
from collections.abc import Collection, Iterator
from pathlib import Path

from engine.cpus import openvino_vectors
from service.bench.report import Row, latency
from service.bench.work import Work
from service.client import Served
from service.traffic import Traffic
from service.verdict import STAGES

FLOOR_PATCHES_PER_S = 156.0  # the paper's rate, on four GPUs
WIDE_VECTORS = ("avx512f", "avx_vnni", "amx_tile")  # with which twice the rate is asked for


def least_patches_per_s(vectors: Collection[str]) -> float:
    """The rate that is asked of two CPUs that may use these vector instructions."""
    return FLOOR_PATCHES_PER_S * (1 + any(name in WIDE_VECTORS for name in vectors))


def measure(work: Work) -> Iterator[Row]:
    """The bundle over HTTP, raw frames, verdicts recorded."""
    least = least_patches_per_s(openvino_vectors())
    with work.served() as served:
        traffic, profile = profiled("bundle", work, served)
    yield rate("bundle end to end", work, traffic, least=least, limit=f"{least:.0f} patches/s, none failed")
    yield profile


def rate(name: str, work: Work, traffic: Traffic, *, least: float, limit: str) -> Row:
    """Patches/s of screens that were answered."""
    found = len(work.windows) * traffic.screens_per_s
    return Row(
        name=name,
        found=f"{found:.0f} patches/s; {traffic.describe()}",
        limit=limit,
        passed=found >= least and not traffic.failures,
        figures={"patches_per_s": found, **latency(traffic.durations), **traffic.figures()},
    )


def profiled(name: str, work: Work, served: Served) -> tuple[Traffic, Row]:
    """What was posted for the work's time, and where that went.

    A stage is wall time, and stages overlap: a raw frame is computed while it is received.
    """
    before = cpu_s(served.pid), cpu_s(os.getpid())
    traffic = work.loaded(served)
    screens = len(traffic.durations)
    server_s, client_s = ((cpu_s(pid) - b) / screens for pid, b in zip((served.pid, os.getpid()), before, strict=True))
    stages = {stage: statistics.median(timing[f"{stage}_s"] for timing in traffic.timings) for stage in STAGES}
    told = ", ".join(f"{stage} {seconds * 1e3:.0f}" for stage, seconds in stages.items())
    return traffic, Row(
        name=f"{name}: a screen's time",
        found=f"CPU {server_s * 1e3:.0f} ms, of its client {client_s * 1e3:.0f}; stages (median, ms): {told}",
        figures={"server_cpu_s": server_s, "client_cpu_s": client_s, "stages_s": stages},
    )


def cpu_s(pid: int) -> float:
    """CPU time of a process and all its threads, after Linux's proc(5); the name in brackets may hold anything."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
