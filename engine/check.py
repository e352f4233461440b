"""What a bundle is, and whether it runs here as it should: for people, and for programs."""

import math
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from engine.backend import Backend, load
from engine.errors import InferenceError
from engine.golden import Golden, made_as, read_golden, self_test
from engine.manifest import MANIFEST_FILE
from engine.slots import measure_slots, slot_patches
from engine.tuning import tuning_of

SPEED_TEST_S = 2.0


def examine(
    bundle: Path, runtime: str = "auto", precision: str | None = None, batch: int | None = None
) -> dict[str, Any]:
    """Load a bundle, run its self-test, compare the slots of its batch and time it.

    Returns:
        The manifest's facts, and beside them what was measured; ready for JSON.

    Raises:
        EngineError: the bundle must not be served, or cannot be run here.
    """
    with closing(load(bundle, runtime, precision=precision, batch_size=batch)) as backend:
        golden = read_golden(bundle, made_as(backend), backend.manifest)
        difference = self_test(backend, golden)
        slots = measure_slots(backend, slot_patches(golden.pixels))
        if not all(math.isfinite(spread) for spread in slots.probability.values()):
            raise InferenceError("probabilities are no numbers on golden or extreme patches")
        speed = patches_per_s(backend, golden)
    facts = asdict(backend.manifest)
    files = {
        name: {"sha256": sha256, "size_bytes": (bundle / name).stat().st_size}
        for name, sha256 in facts.pop("files").items()
    }
    tested = {"patches": len(golden.pixels), "difference": difference, "tolerance": golden.tolerance}
    tuned = tuning_of(backend)
    measured = {
        "runtime": backend.runtime,
        "precision": backend.precision,
        "batch_size": backend.batch_size,
        "threads": None if tuned is None else str(tuned.share),
        "golden": tested,
        "slots": asdict(slots),
        "patches_per_s": round(speed, 1),
    }
    return {"bundle": str(bundle), "ok": True, **facts, "files": files, **measured}


def patches_per_s(backend: Backend, golden: Golden) -> float:
    """A quick figure of the features graph's speed; no benchmark, other work on the machine slows it."""
    pixels = golden.batch(backend.batch_size)
    backend.features(pixels)  # the first batch pays for the memory
    start, batches = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < SPEED_TEST_S:
        backend.features(pixels)
        batches += 1
    return batches * backend.batch_size / elapsed


def _glance(asked: dict[str, float]) -> str:
    if asked["doubt_min"] == 0:
        return "none"
    return f"at every window on a CPU; the whole network sees those of a doubt from {asked['doubt_min']:.4g}"


def _second_look(asked: dict[str, float]) -> str:
    if asked["ratio_max"] == 0:
        return "none"
    return f"where a score from {asked['score_min']:g} lies at a border; at most {asked['ratio_max']:.0%} more windows"


def _turned_look(asked: dict[str, float]) -> str:
    if asked["ratio_max"] == 0:
        return "none"
    doubt = f"where a score is {asked['score_min']:g} to {asked['score_max']:g}"
    return f"{doubt}, at up to {asked['ratio_max']:.0%} of the windows in seven more positions"


def show(report: dict[str, Any], console: Console) -> None:
    """Print what `examine` found for people."""
    facts = Table(title=f"{report['name']} {report['version']}", show_header=False, title_justify="left")
    golden = report["golden"]
    rows = {
        "bundle": report["bundle"],
        "patch": f"{report['patch_px']} px, windows overlap by {report['overlap_px']} px",
        "glance": _glance(report["glance"]),
        "second look": _second_look(report["second_look"]),
        "turned look": _turned_look(report["turned_look"]),
        "batch": f"{report['batch_size']} patches",
        "frame": (
            f"at most {report['frame']['saturated_ratio_max']:.1%} saturated, "
            f"contrast of at least {report['frame']['contrast_min']:g} grey levels"
        ),
        "trained on": report["data_id"],
        **{f"training: {name}": str(value) for name, value in report["training"].items()},
        "runtime": f"{report['runtime']} in {report['precision']}, about {report['patches_per_s']:.0f} patches/s"
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
