"""Where the time of a screen goes: CPU of the service and of its clients, and the stages of the verdicts."""

import os
import statistics
from pathlib import Path

from service.bench.report import Row
from service.bench.work import Work
from service.client import Served
from service.lines import Lines

STAGES = ("receive", "decode", "queue", "features", "reasoning", "aggregate")


def profiled(name: str, work: Work, served: Served) -> tuple[Lines, Row]:
    """Three lines that have posted for the work's time, and where it went.

    A stage is wall time, and stages overlap: a raw frame is computed while it is received.
    """
    before = cpu_s(served.pid), cpu_s(os.getpid())
    lines = work.loaded(served)
    screens = len(lines.durations)
    server_s, client_s = ((cpu_s(pid) - b) / screens for pid, b in zip((served.pid, os.getpid()), before, strict=True))
    stages = {stage: statistics.median(timing[f"{stage}_s"] for timing in lines.timings) for stage in STAGES}
    told = ", ".join(f"{stage} {seconds * 1e3:.0f}" for stage, seconds in stages.items())
    return lines, Row(
        name=f"{name}: a screen's time",
        found=f"CPU {server_s * 1e3:.0f} ms, of its client {client_s * 1e3:.0f}; stages (median, ms): {told}",
        figures={"server_cpu_s": server_s, "client_cpu_s": client_s, "stages_s": stages},
    )


def cpu_s(pid: int) -> float:
    """CPU time of a process and all its threads, after Linux's proc(5); the name in brackets may hold anything."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
