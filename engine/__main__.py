"""`python -m engine`: `check` what a bundle is, `build` its plan for a GPU, `bench` how fast it is, `compare` two."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from engine import DEFAULT_BUNDLE
from engine.backend import Backend, load
from engine.check import examine, show
from engine.errors import BundleError, EngineError, InferenceError, PlanError
from engine.golden import made_as, read_golden, self_test
from engine.speed import FASTER_BY, speed_by_turns

if TYPE_CHECKING:  # it needs a GPU's libraries
    from engine.tensorrt import TensorRTBackend

BATCHES_IN_ROW = 10
PLAIN: dict[str, Any] = {"markup": False, "emoji": False}  # a manifest's texts are texts

Batch = Annotated[int | None, typer.Option(min=1, max=1024, help="Patches in a batch; else the manifest's.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Bundles and the runtimes that execute them."""


@app.command()
def check(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")] = DEFAULT_BUNDLE,
    runtime: Annotated[str, typer.Option(help="auto, tensorrt, openvino, onnxruntime or fake.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="Of the features graph; else the runtime's own choice.")] = None,
    batch: Batch = None,
    as_json: Json = False,
) -> None:
    """Verify a bundle's hashes, graphs and golden patches, and say what it is."""
    with _told(as_json, bundle):
        report = examine(bundle, runtime, precision, batch)
    if as_json:
        print(json.dumps(report, indent=2, allow_nan=False))
    else:
        show(report, Console(**PLAIN))


@app.command()
def build(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")] = DEFAULT_BUNDLE,
    precision: Annotated[str | None, typer.Option(help="fp16, fp32 or int8; else fp16 where it was exported.")] = None,
    batch: Batch = None,
    device: Annotated[int | None, typer.Option(min=0, help="Number of the GPU; else the first usable one.")] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Even if a plan for it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Build the TensorRT plan of a bundle for a GPU here, and verify it: real precision, golden patches, slots.

    One in int8 is refused where it is no faster than one in fp16, or in fp32 where fp16 cannot be run.
    """
    console = Console(stderr=as_json, **PLAIN)
    with _told(as_json, bundle), closing(_planned(bundle, precision, device, batch, console, anew=anew)) as backend:
        if backend.plan.unkept:  # which is what it was built for
            raise PlanError(f"the plan cannot be kept: {backend.plan.unkept}")
        golden = read_golden(bundle, made_as(backend), backend.manifest)
        try:
            difference = self_test(backend, golden)
        except InferenceError:  # the next build takes other kernels, and does not find this one
            backend.cache.forget(backend.plan, timing=True)
            raise
        speed = _proven_faster(backend, bundle, console) if backend.precision == "int8" else {}
    record, guard = backend.plan.record, dict(backend.guard)  # measured by the first load
    found = {
        "plan": str(backend.plan.path),
        "built": backend.plan.built,
        "gpu": record.key.gpu,
        "tensorrt": record.key.tensorrt,
        "batch_size": backend.batch_size,
        "real_precision": record.real_precision,
        "layers": record.layers,
        "difference": difference,
        "tolerance": golden.tolerance,
        "guard": guard,
        "speed": speed,
        "notes": backend.notes,
    }
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
        return
    counts = ", ".join(f"{count} in {name}" for name, count in sorted(record.layers.items()))
    console.print(f"{found['plan']} {'built' if found['built'] else 'found, whole and for this GPU'}")
    console.print(f"{found['gpu']}, {found['tensorrt']}, batches of {found['batch_size']}")
    console.print(f"really {record.real_precision}: convolutions and matrix products {counts}")
    console.print(f"{len(golden.pixels)} golden patches differ by {difference:.1e} (tolerance {found['tolerance']:g})")
    console.print(f"guard band, from the same patch in every slot: {max(guard.values()):.1e}")
    if speed:
        console.print("patches/s here: " + ", ".join(f"{rate:.0f} in {name}" for name, rate in speed.items()))
    for note in backend.notes:
        console.print(note, style="yellow")


def _planned(
    bundle: Path, precision: str | None, device: int | None, batch: int | None, console: Console, *, anew: bool = False
) -> "TensorRTBackend":
    """A backend, and how far its build is."""
    from engine.tensorrt import TensorRTBackend

    bar = Progress(TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(), console=console)
    with bar:
        tell = tell_on(bar)
        return TensorRTBackend(bundle, precision=precision, device=device, batch_size=batch, progress=tell, anew=anew)


def _proven_faster(backend: "TensorRTBackend", bundle: Path, console: Console) -> dict[str, float]:
    """Patches/s of a backend in int8 and of one in a wider precision, which it beats; kept in its plan's record.

    Raises:
        PlanError: it is no faster; its plan is removed.
        EngineError: there is none to compare it with.
    """
    with closing(_wider(backend, bundle, console)) as wider:
        if wider.batch_size != backend.batch_size:
            raise PlanError(
                f"beside int8 in batches of {backend.batch_size} the GPU's memory holds {wider.precision} in batches "
                f"of {wider.batch_size} alone: free memory, or build both with --batch {wider.batch_size}"
            )
        speed = speed_by_turns(wider, backend, in_row=BATCHES_IN_ROW)
    if not speed.faster:
        backend.cache.forget(backend.plan)
        raise PlanError(
            f"int8 is refused: it does {speed.other:.0f} patches/s here, {wider.precision} {speed.reference:.0f}; it "
            f"must be {FASTER_BY:g} times as fast"
        )
    found = {wider.precision: speed.reference, backend.precision: speed.other}
    backend.cache.set_speed(backend.plan, found)
    return found


def _wider(backend: "TensorRTBackend", bundle: Path, console: Console) -> "TensorRTBackend":
    """The same in fp16; in fp32 where the bundle or TensorRT has none, which is noted."""
    try:
        return _planned(bundle, "fp16", backend.device, backend.batch_size, console)
    except (BundleError, PlanError) as error:
        backend.notes.append(f"int8 was compared with fp32, as fp16 cannot be run: {error}")
        return _planned(bundle, "fp32", backend.device, backend.batch_size, console)


def tell_on(bar: Progress) -> Callable[[str, int, int], None]:
    """What shows the steps of a build as bars, one a phase; called from any thread."""
    tasks: dict[str, TaskID] = {}

    def tell(phase: str, done: int, steps: int) -> None:
        if phase not in tasks:
            tasks[phase] = bar.add_task(phase, total=steps)
        bar.update(tasks[phase], completed=done, total=steps, visible=done < steps)

    return tell


@app.command()
def bench(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")] = DEFAULT_BUNDLE,
    runtime: Annotated[list[str] | None, typer.Option(help="May be given again; default: all installed.")] = None,
    precision: Annotated[list[str] | None, typer.Option(help="May be given again; default: all there are.")] = None,
    batch: Batch = None,
    seconds: Annotated[float, typer.Option(help="Measured time for each row, on average.", min=0)] = 10.0,
    as_json: Json = False,
) -> None:
    """Time every runtime and precision side by side, against what the machine can do."""
    from engine import bench as benchmark

    with _told(as_json, bundle):
        report = benchmark.bench(
            bundle,
            runtimes=runtime or (),
            precisions=precision or (),
            batch_size=batch,
            seconds=seconds,
            console=Console(stderr=True),
        )
    if as_json:
        print(json.dumps(report.as_dict(), indent=2, allow_nan=False))
    else:
        benchmark.show(report, Console(**PLAIN))


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A bundle.")],
    b: Annotated[Path, typer.Argument(help="Another, or the same in another runtime or precision.")],
    data: Annotated[Path, typer.Option(help="Folder of cut patches: images/*.png and windows.csv.")],
    runtime_a: Annotated[str, typer.Option(help="Of A.")] = "auto",
    runtime_b: Annotated[str, typer.Option(help="Of B.")] = "auto",
    precision_a: Annotated[str | None, typer.Option(help="Of A.")] = None,
    precision_b: Annotated[str | None, typer.Option(help="Of B.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many screens.", min=1)] = None,
    as_json: Json = False,
) -> None:
    """Run two bundles, runtimes or precisions on the same patches: differences, flips, speed."""
    from engine import compare as comparison

    with _told(as_json), ExitStack() as stack:
        left = stack.enter_context(closing(load(a, runtime_a, precision=precision_a)))
        right = stack.enter_context(closing(load(b, runtime_b, precision=precision_b)))
        found = comparison.compare(left, right, data, limit=limit, console=Console(stderr=True))
    names = (_name(left), _name(right))
    if as_json:
        told = {"a": names[0], "b": names[1], **found.as_dict()}
        print(json.dumps(json.loads(json.dumps(told), parse_constant=lambda _: None), indent=2))  # JSON knows no NaN
    else:
        comparison.show(found, names, Console(**PLAIN))


def _name(backend: Backend) -> str:
    manifest = backend.manifest
    return f"{manifest.name} {manifest.version} by {backend.runtime} in {backend.precision}"


@contextmanager
def _told(as_json: bool, bundle: Path | None = None) -> Iterator[None]:
    """What the user can mend is one line, or one JSON object, and no traceback."""
    try:
        yield
    except (EngineError, ValueError, OSError) as error:
        if as_json:
            named = {} if bundle is None else {"bundle": str(bundle)}
            key = error.key if isinstance(error, BundleError) else None
            print(json.dumps({**named, "ok": False, "error": str(error), "key": key}, indent=2))
        else:
            Console(stderr=True, **PLAIN).print(f"{bundle or 'error'}: {error}", style="red", soft_wrap=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
