"""run.json: what a run learns from and, for each time it was begun or resumed, by which code, command and machine."""

import hashlib
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from engine.cpus import available_cpus, cpu_name
from training.cut_folder import CutFolder
from training.datasets import PatchSet
from training.whole import replace

RECORD_FILE = "run.json"
LIBRARIES = ("torch", "torchvision", "numpy", "lightning-fabric", "opencv-python-headless", "screen-inspection")
CODE = Path(__file__).resolve().parents[1]


def begin_session(run: Path, *, seed: int, data: dict[str, Any], fabric: Fabric) -> None:
    """Add to the record that the run was begun, or resumed, now and here.

    Args:
        run: the run's folder, already begun.
        seed: of the run.
        data: what `describe_data` gives.
        fabric: of the devices that train it.
    """
    file = run / RECORD_FILE
    sessions = json.loads(file.read_text())["sessions"] if file.is_file() else []
    commit, changed = revision()
    session = {
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "revision": commit,
        "changed": changed,
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {
            "cpu": cpu_name(),
            "cpus": available_cpus(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
            "learns_on": str(fabric.device.type),
            "processes": fabric.world_size,
            "precision": str(fabric.strategy.precision.precision),
        },
    }
    text = json.dumps({"seed": seed, "data": data, "sessions": [*sessions, session]}, indent=2)
    replace(file, lambda partial: partial.write_text(text + "\n"))


def describe_data(
    data_id: str, folders: Sequence[Path], validation: PatchSet, training: Mapping[str, PatchSet]
) -> dict[str, Any]:
    """What is learnt from and judged by: identities, patches, screens and labels of each part.

    Runs with the same `validation_id` are judged by the same patches with the same labels. It is of names and labels,
    and after a dash, where folder and version tell of them, of the pixels.

    Args:
        data_id: of all that is learnt from and judged by.
        folders: that the validation part lies in, cut.
        validation: that part.
        training: what each phase learns from.
    """
    judged = hashlib.sha256(json.dumps([validation.label_names, validation.screen_names, validation.names]).encode())
    judged.update(validation.labels.tobytes())
    parts = {"validation": validation, **training}
    return {
        "id": data_id,
        "validation_id": judged.hexdigest()[:16] + _judged_pixels(folders),
        "parts": {name: _counts(patches) for name, patches in parts.items()},
    }


def _judged_pixels(folders: Sequence[Path]) -> str:
    """Of how the folders' screens were cut, and of the pixels of those that are for validation; empty if unknown."""
    told = []
    for cut in map(CutFolder, folders):
        pixels = [cut.pixels_of.get(screen) for screen in sorted({cut.screens[k] for k in cut.rows_of("validation")})]
        if None in pixels:
            return ""
        told.append([cut.patch_px, cut.stride_px, cut.shrink, pixels])
    return "-" + hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]


def _counts(patches: PatchSet) -> dict[str, Any]:
    present = (patches.labels == 1).sum(axis=0).tolist()
    return {
        "patches": len(patches),
        "screens": len(patches.by_screen()),
        "labels": dict(zip(patches.label_names, present, strict=True)),
    }


def revision(code: Path = CODE) -> tuple[str | None, bool | None]:
    """The git revision of the folder that holds this code, and whether its files differ from it; None without git."""
    git = shutil.which("git")
    if git is None or not (code / ".git").exists():
        return None, None
    told = []
    for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "engine", "training"]):
        answer = subprocess.run([git, "-C", str(code), *words], capture_output=True, text=True, check=False)  # noqa: S603
        if answer.returncode:
            return None, None
        told.append(answer.stdout.strip())
    return told[0], bool(told[1])


def revision_of(run: Path) -> str | None:
    """The revision that a run's last session ran, with a `+` where its files differed; None where it is not known."""
    file = run / RECORD_FILE
    if not file.is_file():
        return None
    last = json.loads(file.read_text())["sessions"][-1]
    return None if last["revision"] is None else last["revision"] + ("+" if last["changed"] else "")


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
