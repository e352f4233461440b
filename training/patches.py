"""What `cut` writes of its patches besides their pixels: the tables of a cut folder. numpy only."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine import Window
from training.rows import write_rows
from training.truth import PARTS
from training.visible import Visible, write_visible

DROPPED = "was cut by --rule paper, which drops patches that the service looks at"


@dataclass(frozen=True, slots=True, kw_only=True)
class CutSummary:
    """What `cut` wrote: patches by part, present labels by part, and patches dropped by the paper's rule."""

    patches: dict[str, int]
    labels: dict[str, dict[str, int]]
    dropped: int


@dataclass(frozen=True, slots=True)
class Patches:
    """The patches of one screen: windows, names, labels (K, L), map cells (n, 5): patch, label, row, column, value.

    `visible` is what lies in each.
    """

    windows: list[Window]
    names: list[str]
    labels: NDArray[np.int8]
    cells: NDArray[np.int32]
    visible: list[list[Visible]]
    dropped: int


def write_tables(out: Path, done: dict[str, Patches], labels: list[str], parts: dict[str, str]) -> None:
    """Write all tables of a cut folder but for cut.json, from the patches of each screen and its part."""
    patches = [(screen, cut_, k) for screen, cut_ in done.items() for k in range(len(cut_.names))]
    write_rows(out / "labels.csv", ["img_names", *labels], ([f"{c.names[k]}.png", *c.labels[k]] for _, c, k in patches))
    write_rows(
        out / "windows.csv",
        ["img_names", "screen", "row", "column", "left", "top"],
        (
            [f"{c.names[k]}.png", s, c.windows[k].row, c.windows[k].column, c.windows[k].left, c.windows[k].top]
            for s, c, k in patches
        ),
    )
    write_visible(out, ((f"{c.names[k]}.png", c.visible[k]) for _, c, k in patches))
    write_rows(out / "splits.csv", ["screen", "part"], parts.items())
    first, shifted = 0, []
    for cut_ in done.values():
        cells = cut_.cells.copy()
        cells[:, 0] += first
        shifted.append(cells)
        first += len(cut_.names)
    np.savez_compressed(out / "maps.npz", cells=np.concatenate(shifted))


def refuse_other_windows(folders: Sequence[Path], *, overlap_px: int) -> None:
    """Refuse cut folders whose patches are not the windows that the service looks at, where limits are chosen on them.

    Args:
        folders: cut.
        overlap_px: by how much the service's windows overlap.

    Raises:
        ValueError: a folder is not cut, screens were shrunk, or windows overlap otherwise.
    """
    for folder in folders:
        facts = cut_facts(folder)
        if overlap_px >= (patch_px := facts["patch_px"]):
            raise ValueError(f"--overlap {overlap_px} must be below the patches' side, {patch_px} px")
        for told in other_windows(folder, overlap_px=overlap_px):
            remedy = f"by --stride {patch_px - overlap_px}, or export with --overlap {patch_px - facts['stride_px']}"
            remedy = "without --shrink" if facts.get("shrink", 1) != 1 else remedy
            raise ValueError(f"{told}, and limits are chosen on windows as they are served: cut it {remedy}")


def other_windows(folder: Path, *, overlap_px: int) -> Iterator[str]:
    """In what the windows of a cut folder are not those that the service looks at, in words.

    Raises:
        ValueError: the folder is not cut.
    """
    facts = cut_facts(folder)
    if (shrink := facts.get("shrink", 1)) != 1:
        yield f"{folder} was cut from screens {shrink} times smaller, and the service shrinks none"
    elif (overlap := facts["patch_px"] - facts["stride_px"]) != overlap_px:
        yield f"the windows of {folder} overlap by {overlap} px, those of the service by {overlap_px}"


def dropped(folders: Sequence[Path]) -> list[Path]:
    """The cut folders from which patches were dropped: a screen's highest score may lie in one of those.

    Raises:
        ValueError: a folder is not cut.
    """
    return [folder for folder in folders if cut_facts(folder)["rule"] == "paper"]


def refuse_dropped(folders: Sequence[Path]) -> None:
    """Refuse such folders where limits are to be chosen by whole screens.

    Raises:
        ValueError: there is one, or a folder is not cut.
    """
    if found := dropped(folders):
        remedy = "choose limits on screens cut by --rule known (--calibrate)"
        raise ValueError(f"{found[0]} {DROPPED}: {remedy}")


def cut_facts(folder: Path) -> dict[str, Any]:
    """What `cut` tells of a folder.

    Raises:
        ValueError: it is not cut, or cut.json is none that `cut` wrote.
    """
    file = folder / "cut.json"
    if not file.is_file():
        raise ValueError(f"{folder} holds no cut.json: make it by `python -m training cut`")
    try:
        facts: dict[str, Any] = json.loads(file.read_text())
        patch_px, *_ = (facts[key] for key in ("patch_px", "stride_px", "rule", "source"))  # which every version wrote
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is none that `cut` wrote: {error!r}") from error
    if not isinstance(patch_px, int) or patch_px < 1:
        raise ValueError(f"{file}: patch_px is {patch_px!r}")
    return facts


def summarise(done: dict[str, Patches], labels: list[str], parts: dict[str, str]) -> CutSummary:
    """Count patches and labels by part."""
    patches = dict.fromkeys(PARTS, 0)
    present = {part: dict.fromkeys(labels, 0) for part in patches}
    for screen, cut_ in done.items():
        part = parts[screen]
        patches[part] += len(cut_.names)
        for label, count in zip(labels, (cut_.labels == 1).sum(axis=0), strict=True):
            present[part][label] += int(count)
    return CutSummary(patches=patches, labels=present, dropped=sum(c.dropped for c in done.values()))
