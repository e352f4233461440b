"""The same bundle, frames and machine behind what people would use instead: who is ahead, and by how much.

Every peer runs ONNX Runtime on the bundle's float32 graphs and answers the same verdict, by what `model` shares. MONAI,
which only slides, is also tried on the session that our service has by default, and takes it where it is faster. A peer
gets the raw bodies that we get, three at a time. Each of its settings is tried, and the fastest measured. None of them
tests itself or keeps a record, as our service does.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from engine import NO_GLANCE, available_cpus, seen_whole
from service.bench.peers.processes import Watch, none_left
from service.bench.peers.setting import Setting
from service.bench.report import BenchError, Row, latency
from service.bench.work import Work
from service.client import ClientError, Served, post_frame
from service.traffic import Traffic

AHEAD = 1.25  # times the screens/s of the best peer
TRIAL = 0.1  # of a measurement's time, for each setting of a peer
ONNXRUNTIME = {"INSPECT_RUNTIME": "onnxruntime"}
WATCH = 0.2  # of a measurement's time, after it, in which memory is read: reading it costs time

Verdicts = list[tuple[str, frozenset[str]]]  # of the frames in turn: outcome, and labels present


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """What people would use.

    Attributes:
        name: for people.
        module: of the server.
        package: without which it does not run.
        settings: to be tried.
        environment: that its documentation advises.
    """

    name: str
    module: str
    package: str
    settings: Sequence[Setting]
    environment: Mapping[str, str]

    @property
    def installed(self) -> bool:
        """Whether its package is there; it is not loaded for it."""
        return find_spec(self.package) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was measured of one server.

    Attributes:
        traffic: for the time of a measurement.
        peak_bytes: memory of all its processes.
        verdicts: of the frames.
    """

    traffic: Traffic
    peak_bytes: int
    verdicts: Verdicts

    @property
    def screens_per_s(self) -> float:
        """Answered, by the time that it took."""
        return self.traffic.screens_per_s

    @property
    def p99_s(self) -> float:
        """Of a screen, as its line waited."""
        return latency(self.traffic.durations)["p99_s"]


def peers(cpus: int) -> list[Peer]:
    """All of them, for a machine with so many CPUs.

    A batch of the peers' own is of whole screens, which a worker takes one after the other: their windows are many
    enough for a run of their own, and reasoning must see one screen alone.
    """
    one = Setting(workers=1, threads=cpus)  # all CPUs for one patch
    side_by_side = Setting(workers=1, threads=1)  # as many patches as there are requests
    apart = Setting(workers=cpus, threads=1)  # a process a CPU
    rows = Setting(workers=1, threads=1, patches=5)  # a row of windows a run
    all_rows = Setting(workers=1, threads=cpus, patches=5)
    plain = [side_by_side, one, apart, rows]
    ours = Setting(workers=1, threads=cpus, patches=5, ours=True)  # a row of windows shares out the threads
    batching = [
        setting.model_copy(update={"screens": screens})
        for setting, screens in ((one, 2), (one, 4), (apart, 2), (all_rows, 2))
    ]
    package = __name__
    return [
        Peer(
            name="FastAPI and a loop",
            module=f"{package}.fastapi",
            package="fastapi",
            settings=plain,
            environment={},
        ),
        Peer(
            name="MONAI SlidingWindowInferer behind FastAPI",
            module=f"{package}.monai",
            package="monai",
            settings=[*plain, ours],
            environment={},
        ),
        Peer(
            name="LitServe with batching",
            module=f"{package}.litserve",
            package="litserve",
            settings=batching,
            environment={},
        ),
        Peer(
            name="Ray Serve with @serve.batch",
            module=f"{package}.ray",
            package="ray",
            settings=batching,
            environment={
                "RAY_SERVE_ENABLE_HA_PROXY": "1",
                "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
                "RAY_USAGE_STATS_ENABLED": "0",
            },
        ),
    ]


def measure(work: Work) -> Iterator[Row]:
    """Our service beside four that people would use instead, on the same bundle, windows, frames and machine.

    The whole network sees every window once, for all of them; ours is measured after a glance as well, where the bundle
    has one, and held to the same verdicts.
    """
    glanced = None
    if work.manifest.glance != NO_GLANCE:
        with work.looking_once() as once:
            glanced = _measured(once, ["service"], ONNXRUNTIME)
    with seen_whole(work.bundle) as whole, replace(work, bundle=whole).looking_once() as once:
        yield from _compared(once, glanced)


def _compared(work: Work, glanced: Found | None) -> Iterator[Row]:
    auto = _measured(work, ["service"], {})
    yield _row("ours, default runtime", auto)
    ours = _measured(work, ["service"], ONNXRUNTIME)
    yield _row("ours, ONNX Runtime", ours)
    yield _gain(auto, ours)
    if glanced is not None:
        yield _row("ours, ONNX Runtime after a glance", glanced, beside=ours.verdicts)
    found: dict[str, Found] = {}
    for peer in peers(available_cpus()):
        if not peer.installed:
            yield Row(name=peer.name, found=f"not measured: {peer.package} is not installed (see the extra `bench`)")
            continue
        try:
            setting, trials = fastest(work, peer)
            found[peer.name] = _measured(work, [peer.module], _environment(peer, setting))
        except BenchError as error:
            yield Row(name=peer.name, found=f"not measured: {error}", limit="the verdicts of ours", passed=False)
        else:
            yield _row(peer.name, found[peer.name], beside=ours.verdicts, setting=setting, trials=trials)
    yield from ahead("ours, ONNX Runtime", ours, found)
    yield from ahead("ours, default runtime", auto, found)
    if glanced is not None:
        yield from ahead("ours, ONNX Runtime after a glance", glanced, found)


def fastest(work: Work, peer: Peer) -> tuple[Setting, dict[str, float]]:
    """The setting of a peer with the highest rate, and the screens/s of all that could be run.

    Raises:
        BenchError: none of them could.
    """
    if len(peer.settings) == 1:
        return peer.settings[0], {}
    rates: dict[Setting, float] = {}
    errors: list[BenchError] = []
    for setting in peer.settings:
        try:
            with _served(work, [peer.module], _environment(peer, setting)) as served:
                _verdicts(served, work)
                traffic = _loaded(served, work, TRIAL * work.seconds)
        except BenchError as error:
            errors.append(error)
        else:
            rates[setting] = traffic.screens_per_s
    if not rates:
        raise errors[0]
    return max(rates, key=lambda setting: rates[setting]), {str(setting): rate for setting, rate in rates.items()}


def ahead(name: str, ours: Found, found: Mapping[str, Found]) -> Iterator[Row]:
    """Ours, by `name`, against the peer that is best in what a row is about; nothing is claimed where no peer ran."""
    if not found:
        return
    quickest = max(found, key=lambda name: found[name].screens_per_s)
    ratio = ours.screens_per_s / found[quickest].screens_per_s
    yield Row(
        name=f"{name}, times the best peer's screens/s",
        found=f"{ratio:.2f} ({ours.screens_per_s:.2f}; {quickest}: {found[quickest].screens_per_s:.2f})",
        limit=f"{AHEAD:g}",
        passed=ratio >= AHEAD,
        figures={"ratio": ratio, "best": quickest, "of": sorted(found)},
    )
    steadiest = min(found, key=lambda name: found[name].p99_s)
    ratio = ours.p99_s / found[steadiest].p99_s
    yield Row(
        name=f"{name}, times the best peer's p99",
        found=f"{ratio:.2f} ({ours.p99_s:.3f} s; {steadiest}: {found[steadiest].p99_s:.3f} s)",
        limit="1",
        passed=ratio <= 1,
        figures={"ratio": ratio, "best": steadiest, "of": sorted(found)},
    )


def _measured(work: Work, module: Sequence[str], environment: Mapping[str, str]) -> Found:
    """One server under load, then for a while longer with an eye on its memory.

    Raises:
        BenchError: it could not be started, or answered no screen.
    """
    with _served(work, module, environment) as served:
        verdicts = _verdicts(served, work)
        traffic = _loaded(served, work, work.seconds)
        with Watch(served.pid) as watch:
            _loaded(served, work, WATCH * work.seconds)
    return Found(traffic=traffic, peak_bytes=watch.peak_bytes, verdicts=verdicts)


@contextmanager
def _served(work: Work, module: Sequence[str], environment: Mapping[str, str]) -> Iterator[Served]:
    height, width = work.frames[0].shape
    agreed = {"INSPECT_FRAME_SIZE": f"{width}x{height}"}  # which a line sets, and a peer reads raw pixels by
    try:
        with none_left(), work.served({**agreed, **environment}, module=module) as served:
            yield served
    except OSError as error:  # its folder could not be removed under processes that went on writing
        raise BenchError(f"{module[0]}: {error}") from error


def _verdicts(served: Served, work: Work) -> Verdicts:
    """Of each frame, one after the other; the server is warm then.

    Raises:
        BenchError: it refused one.
    """
    try:
        answers = [
            json.loads(post_frame(served.client, f"first-{number}", frame)) for number, frame in enumerate(work.frames)
        ]
    except ClientError as error:
        raise BenchError(str(error)) from error
    return [
        (answer["verdict"], frozenset(label for label, said in answer["labels"].items() if said["present"]))
        for answer in answers
    ]


def _loaded(served: Served, work: Work, seconds: float) -> Traffic:
    return replace(work, seconds=seconds).loaded(served)


def _environment(peer: Peer, setting: Setting) -> dict[str, str]:
    return {**peer.environment, **setting.environment()}


def _row(
    name: str,
    found: Found,
    *,
    beside: Verdicts | None = None,
    setting: Setting | None = None,
    trials: Mapping[str, float] | None = None,
) -> Row:
    """One server, held to the verdicts `beside` it where there are such."""
    waits = latency(found.traffic.durations)
    told = (
        f"{found.screens_per_s:.2f} screens/s, p50 {waits['p50_s']:.3f} s, p99 {waits['p99_s']:.3f} s, "
        f"{found.peak_bytes / 2**20:.0f} MiB"
    )
    figures: dict[str, Any] = {
        "screens_per_s": found.screens_per_s,
        **waits,
        "peak_bytes": found.peak_bytes,
        **found.traffic.figures(),
    }
    failed = len(found.traffic.failures)
    told += f", {failed} failed ({found.traffic.failures[0]})" if failed else ", none failed"
    if beside is None:
        return Row(name=name, found=told, limit="none failed", passed=not failed, figures=figures)
    equal = sum(a == b for a, b in zip(found.verdicts, beside, strict=True))
    told += f"; {equal} of {len(beside)} verdicts as ours"
    figures["equal_verdicts"] = equal
    if setting is not None:
        told += f"; {setting}"
        figures.update(setting=str(setting), trials_screens_per_s=trials)
    return Row(
        name=name,
        found=told,
        limit="none failed, the verdicts of ours",
        passed=not failed and equal == len(beside),
        figures=figures,
    )


def _gain(auto: Found, ours: Found) -> Row:
    ratio = auto.screens_per_s / ours.screens_per_s
    return Row(name="default runtime, times ONNX Runtime", found=f"{ratio:.2f}", figures={"ratio": ratio})
