"""How the cost of a screen grows: with the frame's area, the labels, the patches reasoned together, the load.

Cost is seconds of one screen, wall and CPU, and the stages of the verdict's `timing`, as medians with quartiles; where
a curve bends, `Curve.bends` says by its rule. Area and labels are measured by the inspector within this process, with
nothing else to do; labels need networks that have so many, which `training untrained` makes with random weights, since
cost follows from shapes alone; their screens are clean. Patches together are random features, reasoned over. Screens in
flight go over HTTP to a service of its own, from as many clients on the same CPUs; `wall` is then what a client waits,
and `CPU` the service's own. The picture of all four, where one is asked for, needs the extra `bench`.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine import Backend, load
from service.bench import picture
from service.bench.curves import Panel, curves_of
from service.bench.line import cpu_s
from service.bench.report import BenchError, Row
from service.bench.work import SEED, Work
from service.client import ClientError, Served, post_frame
from service.files import inspector
from service.images import RAW, Source
from service.inspector import Inspector
from service.settings import Settings
from service.verdict import STAGES

AREAS = ((1, 1), (2, 1), (5, 1), (5, 2), (5, 4), (10, 5), (20, 5), (40, 5))  # rows and columns of patches: to 210 Mpx
LABELS = (2, 4, 8, 16, 32, 64)
TOGETHER = (1, 2, 5, 10, 20, 50, 100, 200, 512, 1024, 2048, 4096)
IN_FLIGHT = (1, 2, 4, 8, 16, 32)
REPEATS = (3, 40)  # of one size: at least, and at most
NO_HURRY_S = 300.0
# of a screen by itself within this process, where nothing is received and nothing waits
STAGES_ALONE = tuple(stage for stage in STAGES if stage not in ("receive", "queue"))

Sample = dict[str, float]


def measure(work: Work) -> Iterator[Row]:
    """What a screen costs as frames, labels, patches and load grow."""
    if work.picture is not None:
        picture.require()  # before the minutes, not after them
    panels: list[Panel] = []
    for question in (_area, _labels, _together, _in_flight):
        try:
            panel = question(work)
        except BenchError as error:
            yield Row(name=question.__doc__ or "", found=f"not measured: {error}", passed=False)
            continue
        panels.append(panel)
        yield Row(name=f"{panel.title}, {panel.unit}", found=panel.describe(), figures=panel.as_dict())
    if work.picture is not None and panels:
        picture.draw(panels, work.picture)
        yield Row(name="picture", found=str(work.picture))


def _area(work: Work) -> Panel:
    """Growth with the frame's area."""
    side = work.manifest.patch_px
    samples: dict[float, list[Sample]] = {}
    with inspector(_settings(work.bundle)) as ready:
        for rows, columns in AREAS:
            frame = _frame(work, rows * side, columns * side)
            megapixels = frame.size / 1e6
            work.tell(f"{megapixels:.0f} Mpx")
            samples[megapixels] = _repeated(partial(_inspected, ready, frame), work.seconds / len(AREAS))
    return Panel(title="Frame area", unit="Mpx", curves=curves_of(samples), figures=_counts(samples))


def _labels(work: Work) -> Panel:
    """Growth with the number of labels."""
    samples: dict[float, list[Sample]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work.tell("making networks of " + ", ".join(map(str, LABELS)) + " labels")
        _make_untrained(Path(folder), LABELS, work.manifest.patch_px)
        frame = work.frames[0]
        for count in LABELS:
            work.tell(f"{count} labels")
            with inspector(_settings(Path(folder) / str(count))) as ready:
                samples[count] = _repeated(partial(_inspected, ready, frame), work.seconds / len(LABELS))
    return Panel(title="Labels", unit="labels", curves=curves_of(samples), figures=_counts(samples))


def _together(work: Work) -> Panel:
    """Growth with the patches reasoned together."""
    samples: dict[float, list[Sample]] = {}
    backend = load(work.bundle, "onnxruntime", precision="fp32", threads=1)
    try:
        side = work.manifest.patch_px
        form = backend.features(np.zeros((1, 1, side, side), np.uint8)).label_features.shape[1:]
        for patches in TOGETHER:
            work.tell(f"{patches} patches together")
            samples[patches] = _repeated(_reasoning(backend, patches, form), work.seconds / len(TOGETHER))
    finally:
        backend.close()
    return Panel(title="Reasoning", unit="patches together", curves=curves_of(samples), figures=_counts(samples))


def _in_flight(work: Work) -> Panel:
    """Growth with the screens in flight."""
    most = max(IN_FLIGHT)
    settings = {
        "INSPECT_MAX_SCREENS_IN_FLIGHT": str(most),
        "INSPECT_MAX_QUEUE_PATCHES": str(most * len(work.windows)),
        "INSPECT_MAX_MEMORY_BYTES": str(4 * most * work.frames[0].nbytes),
        "INSPECT_DEADLINE_S": str(NO_HURRY_S),
    }
    samples: dict[float, list[Sample]] = {}
    rates: list[float] = []
    with work.served(settings) as served:
        for clients in (1, *IN_FLIGHT):  # the first for nothing but warmth, and measured again
            work.tell(f"{clients} screens in flight")
            samples[clients], rate = _loaded(served, work, clients, work.seconds / len(IN_FLIGHT))
            rates.append(rate)
    return Panel(
        title="Screens in flight",
        unit="screens",
        curves=curves_of(samples),
        figures={**_counts(samples), "screens_per_s": rates[1:]},
    )


def _repeated(take: Callable[[], Sample], seconds: float) -> list[Sample]:
    """As often as there is time for, within `REPEATS`; what the first one pays for memory is not counted."""
    least, most = REPEATS
    take()
    until = time.monotonic() + seconds
    samples: list[Sample] = []
    while len(samples) < least or (len(samples) < most and time.monotonic() < until):
        samples.append(take())
    return samples


def _inspected(ready: Inspector, frame: NDArray[np.uint8]) -> Sample:
    source = Source(data=frame.reshape(-1).data, media_type=RAW, size=(frame.shape[0], frame.shape[1]))
    deadline_at = time.monotonic() + NO_HURRY_S
    with _Stopwatch() as watch:
        inspection = ready.inspect("growth", source, deadline_at=deadline_at)
    assert inspection.verdict is not None  # it keeps no record
    seconds = inspection.verdict.timing.by_stage
    return {**watch.sample, **{stage: seconds[stage] for stage in STAGES_ALONE}}


def _reasoning(backend: Backend, patches: int, form: Sequence[int]) -> Callable[[], Sample]:
    rng = np.random.default_rng(SEED)
    label_features = rng.standard_normal((patches, *form), np.float32)
    stage1 = rng.uniform(-1, 1, (patches, form[0])).astype(np.float32)

    def take() -> Sample:
        with _Stopwatch() as watch:
            backend.reason(label_features, stage1)
        return watch.sample

    return take


def _loaded(served: Served, work: Work, clients: int, seconds: float) -> tuple[list[Sample], float]:
    """What each screen took that was answered, and how many were a second; each client posts at least once.

    Raises:
        BenchError: one was not answered.
    """
    samples: list[Sample] = []
    numbers = iter(range(2**62))
    lock = threading.Lock()
    used_s, begun_at = cpu_s(served.pid), time.monotonic()

    def client(_: int) -> None:
        while True:
            with lock:
                name = f"{clients}-{begun_at:.0f}-{next(numbers)}"
            posted_at = time.monotonic()
            timing: Mapping[str, float] = json.loads(post_frame(served.client, name, work.frames[0]))["timing"]
            wall_s = time.monotonic() - posted_at
            samples.append({"wall": wall_s, **{stage: timing[f"{stage}_s"] for stage in STAGES}})
            if time.monotonic() - begun_at > seconds:
                return

    try:
        with ThreadPoolExecutor(clients) as threads:
            list(threads.map(client, range(clients)))
    except ClientError as error:
        raise BenchError(f"with {clients} screens in flight: {error}") from error
    # no screen's own: the service's whole, shared out
    each_s = (cpu_s(served.pid) - used_s) / len(samples)
    rate = len(samples) / (time.monotonic() - begun_at)
    return [{"wall": sample["wall"], "CPU": each_s, **sample} for sample in samples], rate


def _make_untrained(folder: Path, labels: Sequence[int], patch_px: int) -> None:
    """Bundles by the command that anybody has.

    Raises:
        BenchError: they could not be made, for want of the extra `training` perhaps.
    """
    options = [word for count in labels for word in ("--labels", str(count))]
    command = [sys.executable, "-m", "training", "untrained", *options, "--patch", str(patch_px), "--out", str(folder)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    if answer.returncode != 0:
        last = (answer.stderr or answer.stdout).strip().splitlines()[-1:]
        raise BenchError(f"`training untrained` failed: {' '.join(last)}")


def _settings(bundle: Path) -> Settings:
    return Settings(bundle=bundle, max_pixels=10**9, max_queue_patches=10**5, self_test_interval_s=119)


def _frame(work: Work, height: int, width: int) -> NDArray[np.uint8]:
    """Rendered pixels of any size: the first frame, again and again."""
    frame = work.frames[0]
    down, across = -(-height // frame.shape[0]), -(-width // frame.shape[1])
    return np.ascontiguousarray(np.tile(frame, (down, across))[:height, :width])


def _counts(samples: Mapping[float, Sequence[Sample]]) -> dict[str, list[int]]:
    return {"samples": [len(repeats) for repeats in samples.values()]}


class _Stopwatch:
    """Seconds of a block: `wall`, and `CPU` of all the process's threads."""

    def __enter__(self) -> "_Stopwatch":
        self._begun = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        wall, cpu = self._begun
        self.sample: Sample = {"wall": time.perf_counter() - wall, "CPU": time.process_time() - cpu}
