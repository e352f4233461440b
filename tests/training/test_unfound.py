"""What a network does not find is unknown to those that learn after it; all else is as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.training.data_form import write_screens, write_toy
from training.config import read_config
from training.cutting import cut
from training.datasets import PatchSet
from training.fit import fit
from training.folder import data_id
from training.unfound import Forgotten, forget_unfound

PATCH_PX = 128
NOTHING = [f"t{number:03d}" for number in range(0, 30, 3)]  # screens of `write_screens` without a defect


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network that sees every dot and line."""
    config = read_config(write_toy(tmp_path_factory.mktemp("large"), screens=60), ["phase1.epochs=12"])
    fit(config)
    return config.run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Other screens, cut; some are said to have a dot where nothing is to be seen."""
    screens = write_screens(tmp_path / "screens", seed=7)
    with (screens / "boxes.csv").open("a") as file:
        file.writelines(f"{name},dot,40,40,51,51,81\n" for name in NOTHING)
    cut(screens, tmp_path / "cut", patch_px=PATCH_PX)
    return tmp_path / "cut"


@pytest.fixture
def found(run: Path, source: Path, tmp_path: Path) -> tuple[Forgotten, Path]:
    return forget_unfound(run, source, tmp_path / "found", below=0.1), tmp_path / "found"


def test_what_is_not_there_becomes_unknown_and_what_is_stays(found: tuple[Forgotten, Path], source: Path) -> None:
    forgotten, out = found
    before, after = PatchSet([source], part=None), PatchSet([out], part=None)
    assert after.names == before.names
    changed = before.labels != after.labels
    assert (before.labels[changed] == 1).all()
    assert (after.labels[changed] == -1).all()
    empty = np.isin(before.screen_names, NOTHING)
    dot = before.label_names.index("dot")
    said = empty & (before.labels[:, dot] == 1)
    assert changed[said, dot].mean() > 0.7
    there = (before.labels == 1) & ~empty[:, None]
    assert changed[there].mean() < 0.1
    assert forgotten.unfound == dict(zip(before.label_names, changed.sum(axis=0).tolist(), strict=True))
    assert forgotten.present["dot"] == (before.labels[:, dot] == 1).sum()


def test_maps_know_no_more_than_labels(found: tuple[Forgotten, Path], source: Path) -> None:
    before, after = PatchSet([source], part=None), PatchSet([found[1]], part=None)
    assert (before.labels != after.labels).any()
    for index in range(len(after)):
        gone = before.labels[index] != after.labels[index]
        expected = np.where(gone[:, None, None] & (before.cells(index) != 0), -1, before.cells(index))
        np.testing.assert_array_equal(after.cells(index), expected)


def test_it_is_a_cut_folder_of_its_own_and_the_other_stays(run: Path, source: Path, tmp_path: Path) -> None:
    kept = {file.name: file.read_bytes() for file in source.iterdir() if file.is_file()}
    forget_unfound(run, source, tmp_path / "found", below=0.1)
    assert {name: (source / name).read_bytes() for name in kept} == kept
    assert data_id([tmp_path / "found"]) != data_id([source])
    facts = json.loads((tmp_path / "found" / "cut.json").read_text())
    assert facts["unfound"]["below"] == 0.1
    assert facts["unfound"]["unfound"]["dot"] > 0
    a, b = PatchSet([source], part=None), PatchSet([tmp_path / "found"], part=None)
    assert all(np.array_equal(a.patch(k), b.patch(k)) for k in range(len(a)))


def test_it_refuses_what_does_not_fit(run: Path, source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists"):
        forget_unfound(run, source, source, below=0.1)
    with pytest.raises(ValueError, match="no finished run"):
        forget_unfound(tmp_path, source, tmp_path / "found", below=0.1)
    cut(source.parent / "screens", tmp_path / "other", patch_px=PATCH_PX, labels=["line", "dot"])
    with pytest.raises(ValueError, match="has the labels line, dot"):
        forget_unfound(run, tmp_path / "other", tmp_path / "found", below=0.1)
    assert not (tmp_path / "found").exists()
