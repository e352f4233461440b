"""The acceptance of a bundle on one machine: the one command that a person with a GPU runs, and the report it writes.

Every step is a command or a request that anybody could type; this file only runs them, one after the other, and holds
what they answer against its limits. A step that fails is said, and the next one runs all the same.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape

from engine import EngineError, Manifest, graph_precision, seen_whole
from service.agreement import Comparison, agree, too_many
from service.client import ClientError, serving
from service.memory import resident_bytes
from service.rendering import RenderingError, read_frame, render
from service.tables import RESULTS
from service.traffic import Traffic
from service.verdict import Verdict, from_json

SCREENS, SEED, SIZE = 6, 1, (10240, 5120)  # that are rendered where none are given; size as (height, width)
BUNDLES = ("a", "b")  # the one to be accepted, and its copy of another version
SETTLED_AFTER = 2  # swaps, after which memory is not to grow any more
READINGS = 5  # of the memory at rest, after as many swaps
MEMORY_GROWTH = 0.05  # share of the memory then, that it may grow by until the end: allocators keep some


class AcceptanceError(Exception):
    """A step could not be run at all; the message says which command, and what it printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that was tried.

    Attributes:
        name: what.
        found: what was found, for people.
        passed: whether it is within its limits; None where there is nothing to do on this runtime.
        figures: the same for machines.
    """

    name: str
    found: str
    passed: bool | None = True
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to accept, and how hard to try it.

    Attributes:
        bundle: to be accepted.
        runtime: that it is to run in.
        precision: of the features graph.
        batch: patches in a batch; None: the manifest's.
        patches_per_s: the least rate, of the features graph alone and of the service under full load.
        bench_s: time of the throughput test.
        soak_s: time under full load.
        swaps: under load.
        frames: folder of screens, as `training render` writes them.
    """

    bundle: Path
    runtime: str
    precision: str
    batch: int | None
    patches_per_s: float
    bench_s: float
    soak_s: float
    swaps: int
    frames: Path


def run(plan: Plan, console: Console, out: Path) -> list[Step]:
    """Every step, in order; a line is shown as each ends, and `out` holds the report of those that have.

    Raises:
        OSError: the report cannot be written, which is found before the first step.
    """
    steps = (_build, _check, _throughput, _equality, _soak, _swap)
    done: list[Step] = []
    out.write_text(report(plan, done, missing=len(steps)))
    for step in steps:
        with console.status(step.__doc__ or step.__name__):
            try:
                made = step(plan)
            except (AcceptanceError, ClientError, EngineError, RenderingError) as error:
                made = Step(name=step.__name__.strip("_"), passed=False, found=str(error))
            except (httpx.HTTPError, OSError) as error:
                made = Step(name=step.__name__.strip("_"), passed=False, found=f"{type(error).__name__}: {error}")
        done.append(made)
        out.write_text(report(plan, done, missing=len(steps) - len(done)))
        console.print(f"{RESULTS[made.passed]} {made.name}: {escape(made.found)}", soft_wrap=True)
    return done


@contextmanager
def frames_for(folder: Path | None, console: Console) -> Iterator[Path]:
    """A folder of screens: the one that was given, or one of full-size ones that are rendered and last as the block.

    Raises:
        RenderingError: they cannot be rendered.
    """
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as rendered:
        with console.status("Rendering screens."):
            render(Path(rendered), screens=SCREENS, seed=SEED, size=SIZE)
        yield Path(rendered)


def report(plan: Plan, steps: Sequence[Step], *, missing: int = 0) -> str:
    """The report as Markdown, to be attached to an issue; `missing` steps have not been run yet."""
    verdict = "accepted" if not missing else f"{missing} steps missing"
    if any(step.passed is False for step in steps):
        verdict = "not accepted"
    words = {True: "pass", False: "**fail**", None: "nothing to do"}
    lines = [
        f"# Acceptance of {plan.bundle.name}: {verdict}",
        "",
        f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, {platform.platform()}, Python "
        f"{platform.python_version()}, {os.cpu_count()} CPUs, runtime `{plan.runtime}` in {plan.precision}, batches of "
        f"{plan.batch or 'the size of its manifest'}.",
        "",
        "| step | result | found |",
        "| --- | --- | --- |",
        *(f"| {step.name} | {words[step.passed]} | {_cell(step.found)} |" for step in steps),
        "",
        "```json",
        json.dumps([asdict(step) for step in steps], indent=2),
        "```",
        "",
    ]
    return "\n".join(lines)


def _build(plan: Plan) -> Step:
    """Building the plan."""
    if plan.runtime != "tensorrt":
        return Step(name="build", passed=None, found=f"{plan.runtime} builds no plan")
    answer = _engine("build", str(plan.bundle), *_graph(plan), "--json")
    guard = max(answer["guard"].values())
    found = f"really {answer['real_precision']} on {answer['gpu']}, guard band {guard:.1e}"
    return Step(name="build", found=found, figures=answer)


def _check(plan: Plan) -> Step:
    """Hashes, graphs, golden patches."""
    answer = _engine("check", str(plan.bundle), *_as_run(plan), "--json")
    golden = answer["golden"]  # over their tolerance the command has ended with another code
    found = f"golden patches differ by {golden['difference']:.1e} (tolerance {golden['tolerance']:g})"
    return Step(name="parity", found=found, figures=golden)


def _throughput(plan: Plan) -> Step:
    """Throughput of the features graph."""
    answer = _engine("bench", str(plan.bundle), *_as_run(plan), "--seconds", f"{plan.bench_s:g}", "--json")
    if not answer["results"]:
        raise AcceptanceError(f"nothing could be timed: {answer['missing']}")
    rate = float(answer["results"][0]["patches_per_s"])
    return Step(
        name="throughput",
        passed=rate >= plan.patches_per_s,
        found=f"{rate:.0f} patches/s (at least {plan.patches_per_s:g})",
        figures=answer,
    )


def _equality(plan: Plan) -> Step:
    """Verdicts of the runtime beside those of the CPU in float32, the whole network seeing every window for both."""
    with seen_whole(plan.bundle) as whole:
        of_whole, settings = replace(plan, bundle=whole), _settings(plan)
        mine = _verdicts(of_whole, settings)
        reference = _verdicts(of_whole, {**settings, "INSPECT_RUNTIME": "onnxruntime", "INSPECT_PRECISION": "fp32"})
    manifest = Manifest.read(plan.bundle)
    tolerance = manifest.parity_tolerance[graph_precision(plan.runtime, plan.precision)]

    def beside(one: Verdict, other: Verdict) -> Comparison:
        # as far as a verdict tells
        looks = [(said.proof.windows_extra, said.proof.windows_turned) for said in (one, other)]
        same_windows = looks[0] == looks[1]
        return agree(one, other, manifest, tolerance=tolerance, same_windows=same_windows)

    found = {name: beside(verdict, reference[name]) for name, verdict in mine.items()}
    different, rounded = (
        [name for name, one in found.items() if one.agreement == wanted] for wanted in ("different", "rounded")
    )
    why = {name: one.why for name, one in found.items() if one.why}
    same = len(found) - len(different) - len(rounded)
    return Step(
        name="verdicts equal those of the CPU",
        passed=not different and not too_many(len(rounded), len(found)),
        found=f"{same} of {len(found)} ({len(rounded)} more with a score at a limit)",
        figures={"different": different, "rounded": rounded, "why": why},
    )


def _soak(plan: Plan) -> Step:
    """Full load."""
    with _traffic(plan) as traffic:
        traffic.load_for(plan.soak_s)
        rate = traffic.patches / traffic.elapsed_s
        return Step(
            name="soak",
            passed=not traffic.failures and rate >= plan.patches_per_s,
            found=f"{traffic.describe()} in {plan.soak_s:.0f} s: "
            f"{rate:.0f} patches/s (at least {plan.patches_per_s:g})",
            figures={**traffic.figures(), "patches_per_s": round(rate, 1)},
        )


def _swap(plan: Plan) -> Step:
    """Swaps under load."""
    memory: list[dict[str, int]] = []  # at rest: a frame under way is 50 MiB
    with _traffic(plan) as traffic:
        for number in range(plan.swaps):
            with traffic.under_load():
                _activate(traffic, BUNDLES[(number + 1) % 2])
            memory.append(_memory(plan, traffic.served.pid))
    # the least of some: what an allocator keeps for a while is no leak
    some = min(READINGS, plan.swaps - SETTLED_AFTER)
    settled, last = (
        {where: min(reading[where] for reading in readings) for where in memory[0]}
        for readings in (memory[SETTLED_AFTER - 1 :][:some], memory[-some:])
    )
    grown = {where: last[where] / settled[where] - 1 for where in settled}
    told = "".join(
        f"; memory of the {where} at rest {settled[where] / 2**20:.0f} MiB from {SETTLED_AFTER} swaps on and "
        f"{last[where] / 2**20:.0f} MiB in the end ({share:+.1%}), each the least of {some}"
        for where, share in grown.items()
    )
    return Step(
        name="swaps under load",
        passed=not traffic.failures and len(traffic.versions) == len(BUNDLES) and max(grown.values()) <= MEMORY_GROWTH,
        found=f"{plan.swaps} swaps, {traffic.describe()}, by version {dict(traffic.versions)}{told}",
        figures={**traffic.figures(), "versions": dict(traffic.versions), "memory_bytes": memory},
    )


def _activate(traffic: Traffic, bundle: str) -> None:
    answer = traffic.served.client.put("/v1/models/active", json={"bundle": bundle, "without_release": True})
    if not answer.is_success:
        raise AcceptanceError(f"swap to {bundle}: {answer.status_code} {answer.text}")


@contextmanager
def _traffic(plan: Plan) -> Iterator[Traffic]:
    """A service of the bundle in which a copy of it, `b`, may take its place, and what is posted to it.

    The copy has the same graphs, so that its labels and scores have to be the same, and another version, by which its
    verdicts are told from those of the bundle.
    """
    frames = [read_frame(path) for path in _files(plan)]
    with tempfile.TemporaryDirectory() as folder:
        bundles = Path(folder) / "bundles"
        for name in BUNDLES:
            shutil.copytree(plan.bundle, bundles / name)
        manifest = Manifest.read(bundles / "b")
        replace(manifest, version="other" if manifest.version == "another" else "another").write(bundles / "b")
        settings = {
            "INSPECT_BUNDLE": str(bundles / "a"),
            "INSPECT_BUNDLES": str(bundles),
            "INSPECT_LOG_LEVEL": "warning",
            **_settings(plan),
        }
        with serving(settings) as served:
            yield Traffic(served, frames)


def _verdicts(plan: Plan, settings: dict[str, str]) -> dict[str, Verdict]:
    """The verdict on each screen, by `service inspect`."""
    files = [str(path) for path in _files(plan)]
    answers = _command("service", "inspect", *files, "--bundle", str(plan.bundle), "--json", settings=settings)
    return {answer["screen_id"]: from_json(json.dumps(answer)) for answer in answers}


def _as_run(plan: Plan) -> list[str]:
    return ["--runtime", plan.runtime, *_graph(plan)]


def _graph(plan: Plan) -> list[str]:
    """The features graph as `engine` is to run it."""
    batch = [] if plan.batch is None else ["--batch", str(plan.batch)]
    return ["--precision", plan.precision, *batch]


def _settings(plan: Plan) -> dict[str, str]:
    """The same for `service`; an empty one counts as unset, whatever this process has."""
    batch = "" if plan.batch is None else str(plan.batch)
    return {"INSPECT_RUNTIME": plan.runtime, "INSPECT_PRECISION": plan.precision, "INSPECT_BATCH": batch}


def _engine(*words: str) -> Any:  # noqa: ANN401 - JSON
    return _command("engine", *words, settings={})


def _command(*words: str, settings: dict[str, str]) -> Any:  # noqa: ANN401 - JSON
    """The JSON that `python -m words` prints.

    Raises:
        AcceptanceError: another exit code, or no JSON.
    """
    command = [sys.executable, "-m", *words]
    answer = subprocess.run(  # noqa: S603 - our own
        command, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    output = (answer.stderr or answer.stdout)[-500:]
    told = f"`python -m {' '.join(words[:2])}` ended with {answer.returncode}: {output}"
    if answer.returncode != 0:
        raise AcceptanceError(told)
    try:
        return json.loads(answer.stdout)
    except ValueError as error:
        raise AcceptanceError(told) from error


def _files(plan: Plan) -> list[Path]:
    files = sorted((plan.frames / "screens").glob("*.png"))
    if not files:
        raise AcceptanceError(f"{plan.frames / 'screens'} holds no PNG: render some by `python -m training render`")
    return files


def _memory(plan: Plan, pid: int) -> dict[str, int]:
    """Bytes in use, of the service's process and, where it runs on them, of the GPUs."""
    if plan.runtime != "tensorrt":
        return {"process": resident_bytes(pid)}
    return {"process": resident_bytes(pid), "GPUs": _gpu_bytes()}


def _gpu_bytes() -> int:
    """Memory in use on all GPUs of this machine, by whomever: in a container nvidia-smi tells no processes apart."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]  # MiB
    answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    try:
        return sum(int(line) for line in answer.stdout.splitlines() or [""]) * 2**20
    except ValueError as error:
        raise AcceptanceError(f"nvidia-smi tells no memory: {answer.stdout or answer.stderr}") from error


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
