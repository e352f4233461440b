"""What the service holds: bounded with eight screens in flight, and no more after a thousand than after two hundred.

Three services, each with eight clients that post all the time: raw frames, and the two worst kinds of file, colour
TIFF, whose body is three times a frame, and colour PNG, which comes small and is as large decoded. The peak is the
kernel's own mark of the process, which no sampling misses. Then one more, for growth: `SCREENS` screens through the
bundle, the memory of the last tenth against that of the second, the first being what allocators and caches need.
A run of fewer than `FULL_S` seconds a measurement posts for that long instead: it tells what it found, and judges no
growth, which so few screens do not show.
"""

import io
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import cv2
from PIL import Image

from service.bench.report import BenchError, Row
from service.bench.work import Work
from service.client import ANSWER_WITHIN_S, ClientError, Served, Unreachable, post_body, post_frame
from service.memory import peak_bytes, resident_bytes
from service.traffic import SENDERS

MIB = 2**20
IN_FLIGHT = 8
PEAK_BYTES = 1536 * MIB
SCREENS = 1000
GROWTH_RATIO = 0.02
FULL_S = 60.0  # seconds of a measurement from which all `SCREENS` are posted
SAMPLE_S = 0.05
PATIENT = {"INSPECT_DEADLINE_S": f"{ANSWER_WITHIN_S:g}"}  # memory is the question, on however slow a machine

Post = Callable[[Served, str], str]  # one screen under a name; its answer
Samples = list[tuple[int, int]]  # screens answered, and bytes in RAM then


def measure(work: Work) -> Iterator[Row]:
    """Peak memory with eight screens in flight, and growth over a thousand."""
    for kind, prepared in BODIES.items():
        work.tell(f"{IN_FLIGHT} {kind}")
        yield _peak(work, kind, prepared(work))
    work.tell(f"{SCREENS} screens")
    yield _growth(work)


@dataclass(slots=True, eq=False)
class Posted:
    """What became of the screens of some clients: how many were answered, when, and what failed."""

    answered: int = 0
    failures: list[str] = field(default_factory=list)
    elapsed_s: float = 0.0


def _peak(work: Work, kind: str, post: Post) -> Row:
    with work.served(PATIENT) as served:
        resting = resident_bytes(served.pid)
        posted = Posted()
        _post(served, post, posted, clients=IN_FLIGHT, seconds=work.seconds / 3, screens=SCREENS)
        peak = peak_bytes(served.pid)
    told = f"{posted.failures[0]}" if posted.failures else "none failed"
    return Row(
        name=f"peak memory, {IN_FLIGHT} {kind} in flight",
        found=f"{peak / MIB:.0f} MiB, {resting / MIB:.0f} at rest; "
        f"{posted.answered} screens, {posted.answered / posted.elapsed_s:.2f}/s, {told}",
        limit=f"{PEAK_BYTES / MIB:.0f} MiB, none failed",
        passed=peak <= PEAK_BYTES and not posted.failures,
        figures={
            "peak_bytes": peak,
            "resting_bytes": resting,
            "screens": posted.answered,
            "failures": posted.failures[:20],
            "elapsed_s": posted.elapsed_s,
        },
    )


def _growth(work: Work) -> Row:
    whole = work.seconds >= FULL_S
    posted = Posted()
    with work.served(PATIENT) as served, _sampled(served.pid, posted) as samples:
        limit_s = float("inf") if whole else work.seconds
        _post(served, _raw(work), posted, clients=SENDERS, seconds=limit_s, screens=SCREENS)
    return grown(samples, posted, whole=whole)


def grown(samples: Samples, posted: Posted, *, whole: bool) -> Row:
    """What the memory that was sampled tells of growth; judged only of a `whole` run."""
    tenth = max(1, posted.answered // 10)
    by_tenth = [_middle(samples, start, start + tenth) for start in range(0, posted.answered, tenth)][:10]
    second, last = by_tenth[min(1, len(by_tenth) - 1)], by_tenth[-1]
    growth = last / second - 1
    shorter = "" if whole else f"; no judgement: a run of under {FULL_S:.0f} s is too short"
    failed = f"; {posted.failures[0]}" if posted.failures else ""
    return Row(
        name=f"growth of memory over {SCREENS} screens",
        found=f"{growth:+.1%}: {second / MIB:.0f} MiB in the second tenth of {posted.answered} screens, "
        f"{last / MIB:.0f} in the last{shorter}{failed}",
        limit=f"{GROWTH_RATIO:.0%}, none failed",
        passed=(growth <= GROWTH_RATIO and not posted.failures) if whole else None,
        figures={
            "growth_ratio": growth,
            "resident_bytes_by_tenth": by_tenth,
            "screens": posted.answered,
            "failures": posted.failures[:20],
            "elapsed_s": posted.elapsed_s,
        },
    )


def _post(served: Served, post: Post, posted: Posted, *, clients: int, seconds: float, screens: int) -> None:
    """Post from some clients at a time, each at least once, until the time is over or all screens are answered.

    Raises:
        BenchError: no screen was answered.
    """
    numbers = iter(range(screens))
    lock = threading.Lock()
    begun_at = time.monotonic()

    def client(_: int) -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                post(served, f"memory-{number}")
            except ClientError as error:
                posted.failures.append(str(error))
                if isinstance(error, Unreachable):
                    return
            else:
                with lock:
                    posted.answered += 1
            if time.monotonic() - begun_at > seconds:
                return

    with ThreadPoolExecutor(clients, thread_name_prefix="client") as threads:
        list(threads.map(client, range(clients)))
    posted.elapsed_s = time.monotonic() - begun_at
    if not posted.answered:
        raise BenchError(f"no screen was answered: {posted.failures[:1]}")


@contextmanager
def _sampled(pid: int, posted: Posted) -> Iterator[Samples]:
    """While the block runs: how many screens were answered, and the process's resident memory then."""
    samples: Samples = []
    ended = threading.Event()

    def sample() -> None:
        while True:
            samples.append((posted.answered, resident_bytes(pid)))
            if ended.wait(SAMPLE_S):
                return

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def _middle(samples: Samples, first: int, end: int) -> float:
    """Median memory while the screens from `first` on, and before `end`, were answered.

    A screen more or less is under way from one moment to the next, and is 50 MiB: no single sample tells anything.
    """
    near = [resident for answered, resident in samples if first <= answered < end]
    return statistics.median(near or [resident for _, resident in samples])  # of so few screens none was sampled


def _raw(work: Work) -> Post:
    def post(served: Served, name: str) -> str:
        return post_frame(served.client, name, work.frames[int(name.rpartition("-")[2]) % len(work.frames)])

    return post


def _tiff(work: Work) -> Post:
    """Uncompressed: the largest body that a frame can come in."""
    file = io.BytesIO()
    Image.fromarray(work.frames[0]).convert("RGB").save(file, "TIFF")
    return _file(file.getvalue(), "image/tiff")


def _png(work: Work) -> Post:
    colour = cv2.cvtColor(work.frames[0], cv2.COLOR_GRAY2BGR)
    return _file(cv2.imencode(".png", colour, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes(), "image/png")


def _file(body: bytes, media_type: str) -> Post:
    return lambda served, name: post_body(served.client, name, body, media_type=media_type)


BODIES: dict[str, Callable[[Work], Post]] = {"raw frames": _raw, "colour TIFF": _tiff, "colour PNG": _png}
