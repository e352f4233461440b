"""`python -m engine check BUNDLE`: what a bundle is, and whether it is what it says."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from engine import DEFAULT_BUNDLE
from engine.backend import Backend, load
from engine.errors import BundleError, EngineError
from engine.golden import read_golden, self_test
from engine.manifest import MANIFEST_FILE
from engine.slots import measure_slots

SPEED_TEST_S = 2.0
PLAIN: dict[str, Any] = {"markup": False, "emoji": False}  # a manifest's texts are texts

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Bundles and the runtimes that execute them."""


@app.command()
def check(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")] = DEFAULT_BUNDLE,
    runtime: Annotated[str, typer.Option(help="auto, tensorrt, openvino, onnxruntime or fake.")] = "auto",
    as_json: Json = False,
) -> None:
    """Verify a bundle's hashes, graphs and golden patches, and say what it is."""
    try:
        report = examine(bundle, runtime)
    except EngineError as error:
        if as_json:
            key = error.key if isinstance(error, BundleError) else None
            print(json.dumps({"bundle": str(bundle), "ok": False, "error": str(error), "key": key}, indent=2))
        else:
            Console(stderr=True, **PLAIN).print(f"{bundle}: {error}", style="red", soft_wrap=True)
        raise typer.Exit(1) from error
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        show(report, Console(**PLAIN))


def examine(bundle: Path, runtime: str = "auto") -> dict[str, Any]:
    """Load a bundle, run its self-test, compare the slots of its batch and time it.

    Returns:
        The manifest's facts, and beside them what was measured; ready for JSON.

    Raises:
        EngineError: the bundle must not be served, or cannot be run here.
    """
    golden = read_golden(bundle)
    backend = load(bundle, runtime)
    try:
        difference = self_test(backend, golden)
        slots = measure_slots(backend, golden.pixels)
        speed = patches_per_s(backend)
    finally:
        backend.close()
    facts = asdict(backend.manifest)
    files = {
        name: {"sha256": sha256, "size_bytes": (bundle / name).stat().st_size}
        for name, sha256 in facts.pop("files").items()
    }
    tested = {"patches": len(golden.pixels), "difference": difference, "tolerance": golden.tolerance}
    tuned = getattr(backend, "tuned", None)  # a GPU has no threads to choose
    measured = {
        "runtime": backend.runtime,
        "threads": None if tuned is None else str(tuned.share),
        "golden": tested,
        "slots": asdict(slots),
        "patches_per_s": round(speed, 1),
    }
    return {"bundle": str(bundle), "ok": True, **facts, "files": files, **measured}


def patches_per_s(backend: Backend) -> float:
    """A quick figure of the features graph's speed; no benchmark, other work on the machine slows it."""
    manifest = backend.manifest
    shape = (backend.batch_size, 1, manifest.patch_px, manifest.patch_px)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    backend.features(pixels)  # the first batch pays for the memory
    start, batches = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < SPEED_TEST_S:
        backend.features(pixels)
        batches += 1
    return batches * backend.batch_size / elapsed


def show(report: dict[str, Any], console: Console) -> None:
    """Print what `examine` found for people."""
    facts = Table(title=f"{report['name']} {report['version']}", show_header=False, title_justify="left")
    golden = report["golden"]
    rows = {
        "bundle": report["bundle"],
        "patch": f"{report['patch_px']} px, windows overlap by {report['overlap_px']} px",
        "batch": f"{report['batch_size']} patches",
        "frame": (
            f"at most {report['frame']['saturated_ratio_max']:.1%} saturated, "
            f"contrast of at least {report['frame']['contrast_min']:g} grey levels"
        ),
        "trained on": report["data_id"],
        **{f"training: {name}": str(value) for name, value in report["training"].items()},
        "runtime": f"{report['runtime']}, about {report['patches_per_s']:.0f} patches/s"
        + (f", {report['threads']} threads" if report["threads"] else ""),
        "self-test": (
            f"{golden['patches']} golden patches differ by {golden['difference']:.1e} "
            f"(tolerance {golden['tolerance']:g})"
        ),
        "slots of the batch": (
            f"probabilities differ by {max(report['slots']['probability'].values()):.1e}, features "
            + ("are equal bit for bit" if report["slots"]["same_bits"] else "differ")
        ),
    }
    for name, value in rows.items():
        facts.add_row(name, value)
    labels = Table("label", "present from", "review from", "fail from")
    for name, limits in report["labels"].items():
        low, high = limits["review"]
        labels.add_row(name, f"{limits['threshold']:.3f}", f"{low:.3f}", f"{high:.3f}")
    files = Table("file", "size", "SHA-256")
    for name, file in report["files"].items():
        files.add_row(name, f"{file['size_bytes'] / 1e6:.2f} MB", f"{file['sha256'][:12]} verified")
    for table in (facts, labels, files):
        console.print(table)
    console.print(f"{MANIFEST_FILE}, hashes, graphs and golden patches agree.", style="green")


if __name__ == "__main__":
    app()
