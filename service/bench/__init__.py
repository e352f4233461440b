"""What the service does end to end, leaves of a device, holds in memory, and costs as things grow: on two CPUs.

Client and server share the CPUs, as on a line's box; every server is a process of its own and stops by itself. A part
is a module here with `measure(work)`, which yields its rows.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.status import Status

from engine.cpus import cpu_name, held_to, vector_instructions
from service.bench import borders, decoders, devices, growth, line, memory, peers, stream
from service.bench.report import BenchError, Report, Row, as_json, show, tell
from service.bench.work import SCREENS, Work, render_frames

__all__ = ["PARTS", "BenchError", "Report", "Row", "as_json", "run", "show"]

CPUS = 2

PARTS: dict[str, Callable[[Work], Iterator[Row]]] = {
    "line": line.measure,
    "devices": devices.measure,
    "stream": stream.measure,
    "borders": borders.measure,
    "decoders": decoders.measure,
    "memory": memory.measure,
    "growth": growth.measure,
    "peers": peers.measure,
}


def run(
    bundle: Path,
    *,
    parts: Sequence[str] = tuple(PARTS),
    seconds: float,
    console: Console,
    picture: Path | None = None,
) -> Report:
    """Measure; a line is shown as each measurement ends.

    Args:
        bundle: to be served, and whose manifest the simulated devices take.
        parts: names of `PARTS`, in the order in which they are to run.
        seconds: of each measurement.
        console: where to show progress.
        picture: to draw the growth in, where that is among the parts.

    Raises:
        RenderingError: no frames could be rendered.
        BenchError: a measurement could not be made.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise BenchError(f"no part {unknown[0]!r}: there are {', '.join(PARTS)}")
    share = sorted(os.sched_getaffinity(0))[:CPUS]
    os.sched_setaffinity(0, share)  # those that it starts inherit it
    with console.status(f"rendering {SCREENS} frames"):
        frames = render_frames()
    rows: list[Row] = []
    for part in parts:
        doc = PARTS[part].__doc__ or part
        with console.status(doc) as status:
            tell_now = partial(_tell_now, status, doc)
            work = Work(bundle=bundle, frames=frames, seconds=seconds, picture=picture, tell=tell_now)
            for row in PARTS[part](work):
                tell(row, console)
                rows.append(row)
    return Report(cpu=cpu_name(), vectors=vector_instructions(), held_to=held_to(), cpus=len(share), rows=rows)


def _tell_now(status: Status, doc: str, text: str) -> None:
    status.update(f"{doc} {text}")
