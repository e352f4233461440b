"""Labels that a trained network does not find, taken out of what a smaller one learns.

A small network cannot learn what a larger one does not see. Such labels are few, but the worse a patch is told the more
often it is drawn, and they are told worst of all: in the end most of what moves the weights would be they, and every
clean patch would look a little like one of them. Unknown (-1), they take part in nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric
from numpy.typing import NDArray

from training.datasets import PatchSet
from training.folder import load_run
from training.inference import network_probability
from training.rows import write_rows

_WRITTEN = ("labels.csv", "maps.npz", "cut.json")  # anew; all else is the same in both folders


@dataclass(frozen=True, slots=True)
class Forgotten:
    """How many present labels of a folder were not found, by label, and how many there were."""

    unfound: dict[str, int]
    present: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def forget_unfound(run: Path, source: Path, out: Path, *, below: float) -> Forgotten:
    """Write a cut folder in which labels that a run's network gives next to no probability are unknown.

    Images and tables that stay as they are are linked, not copied, where the file system can.

    Args:
        run: folder of a finished run with the folder's labels.
        source: a cut folder. Those that the run has learnt from tell little: it finds what it knows.
        out: a folder that does not exist yet.
        below: the probability, patches of a screen reasoned together, from which a label counts as found.

    Raises:
        ValueError: `out` exists, the run is not finished or has other labels, or the source is no cut folder.
    """
    if out.exists():
        raise ValueError(f"{out} exists: name another folder")
    network, _, labels = load_run(run)
    patches = PatchSet([source], part=None)
    if patches.label_names != labels:
        raise ValueError(f"{source} has the labels {', '.join(patches.label_names)}; {run} has {', '.join(labels)}")
    fabric = Fabric(devices=1)
    probability = network_probability(network.to(fabric.device), patches, fabric)
    present = patches.labels == 1
    unfound = present & (probability < below)
    forgotten = Forgotten(unfound=_by_label(unfound, labels), present=_by_label(present, labels))

    shutil.copytree(source, out, copy_function=_link, ignore=shutil.ignore_patterns(*_WRITTEN, "*.lock"))
    rows = np.where(unfound, np.int8(-1), patches.labels)
    write_rows(out / "labels.csv", ["img_names", *labels], ([n, *r] for n, r in zip(patches.names, rows, strict=True)))
    np.savez_compressed(out / "maps.npz", cells=_without(source, unfound))
    facts = json.loads((source / "cut.json").read_text()) | {"unfound": {"below": below, **forgotten.as_dict()}}
    (out / "cut.json").write_text(json.dumps(facts, indent=2) + "\n")
    return forgotten


def _by_label(where: NDArray[np.bool_], labels: Sequence[str]) -> dict[str, int]:
    return dict(zip(labels, where.sum(axis=0).tolist(), strict=True))


def _without(source: Path, unfound: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The cells (n, 5) of the maps, those of what was not found unknown."""
    with np.load(source / "maps.npz", allow_pickle=False) as arrays:
        cells: NDArray[np.int32] = arrays["cells"]
    if len(cells):
        cells[unfound[cells[:, 0], cells[:, 1]], 4] = -1
    return cells


def _link(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:  # another file system, or one that has no links
        shutil.copy2(source, target)
