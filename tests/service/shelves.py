"""Folders of bundles for swaps: whole ones that differ, and each way of being broken."""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from engine import RunsAs, bundle_sha256
from engine.manifest import file_sha256
from service.released import Count, Device, Release, Tally, keep
from tests.bundles import GAIN, tiny_bundle

GAINS = {"1": GAIN, "2": 0.6 * GAIN}  # by version: every score differs
ON_THIS_CPU = RunsAs(
    runtime="onnxruntime",
    precision="fp32",
    batch_size=5,
    versions=f"onnxruntime {onnxruntime.__version__}",
    gpu="",
    plan="",
)


def shelf(folder: Path) -> Path:
    """A folder with `one` (version 1) and `two` (version 2)."""
    for name, version in (("one", "1"), ("two", "2")):
        tiny_bundle(folder / name, version=version, gain=GAINS[version])
    return folder


def change_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def released(bundle: Path, runs: RunsAs, *, active: Path) -> None:
    """Leave the record of a release, as the gate does."""
    none = Count(count=0, of=1)
    tally = Tally(escape=none, overkill=none, review=none)
    record = Release(
        manifest_sha256=bundle_sha256(bundle),
        sealed_sha256="0" * 64,
        released_at=datetime.now(UTC),
        runs_as=runs,
        screens=2,
        different=[],
        rounded=[],
        tolerance=1e-5,
        devices=[Device(slot_spread={}, guard={}, finite=True)],
        tally=tally,
        active="tiny 1",
        active_sha256=bundle_sha256(active),
        active_tally=tally,
    )
    keep(bundle, record)


def altered(bundle: Path) -> str:
    """A graph that is not the one that was exported."""
    with (bundle / "features.onnx").open("ab") as file:
        file.write(b"\0")
    return "files.features.onnx: was altered"


def without_manifest(bundle: Path) -> str:
    (bundle / "manifest.json").unlink()
    return "manifest.json: cannot be read"


def without_a_graph(bundle: Path) -> str:
    (bundle / "reasoning.onnx").unlink()
    return "files.reasoning.onnx: cannot be read"


def with_an_unknown_key(bundle: Path) -> str:
    change_manifest(bundle, lambda manifest: manifest.update(colour="red"))
    return "colour: "


def sealed(bundle: Path, name: str) -> None:
    """Make the manifest true to the file again."""
    change_manifest(bundle, lambda manifest: manifest["files"].update({name: file_sha256(bundle / name)}))


def no_graph_inside(bundle: Path) -> str:
    """What it lists is there, but is no graph."""
    (bundle / "features.onnx").write_bytes(b"no graph")
    sealed(bundle, "features.onnx")
    return "features.onnx: "


def wrong_golden(bundle: Path) -> str:
    """Whole, but it does not compute what was trained."""
    with np.load(bundle / "golden.npz") as arrays:
        wrong = dict(arrays)
    wrong["probability"] = np.clip(wrong["probability"] + 0.01, 0, 1)
    np.savez_compressed(bundle / "golden.npz", **wrong)
    sealed(bundle, "golden.npz")
    return "self-test: the golden patches differ by 0.01"


BREAKERS = (altered, without_manifest, without_a_graph, with_an_unknown_key, no_graph_inside, wrong_golden)


def broken(folder: Path, breaker: Callable[[Path], str]) -> tuple[str, str]:
    """Name of a copy of `two` that is broken in this way, and what is to be said of it."""
    name = breaker.__name__
    return name, breaker(shutil.copytree(folder / "two", folder / name))
