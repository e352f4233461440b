"""Real photographs and line-scan images through the same code, where the variable SCREEN_DATA says that they are."""

import csv
import os
import shutil
from pathlib import Path

import pytest

from engine import DEFAULT_BUNDLE
from service.files import inspect_files, inspector
from service.inspector import Inspection
from service.settings import Settings
from service.verdict import from_json
from training.cutting import cut

SCREEN_DATA = os.environ.get("SCREEN_DATA")
pytestmark = pytest.mark.skipif(
    SCREEN_DATA is None, reason="needs SCREEN_DATA: the folder of phone-screens/ and deeppcb/, which are not shipped"
)


def part_of(name: str, out: Path, *, screens: int) -> Path:
    """The first screens of a real data folder with their rows of its tables."""
    source = Path(str(SCREEN_DATA)) / name
    files = sorted((source / "screens").iterdir())[:screens]
    (out / "screens").mkdir(parents=True)
    for file in files:
        shutil.copy(file, out / "screens")
    kept = {file.stem for file in files}
    for table in source.glob("*.csv"):
        with table.open(newline="") as read, (out / table.name).open("w", newline="") as written:
            rows = csv.DictReader(read)
            writer = csv.DictWriter(written, rows.fieldnames or [])
            writer.writeheader()
            writer.writerows(row for row in rows if row["screen"] in kept)
    return out


def test_photographs_are_cut_with_their_own_labels(tmp_path: Path) -> None:
    source = part_of("phone-screens", tmp_path / "phone", screens=3)
    summary = cut(source, tmp_path / "cut", patch_px=256, stride_px=192, labels=("oil", "scratch", "stain"))
    assert sum(summary.patches.values()) == 3 * 10 * 6
    assert sum(count for labels in summary.labels.values() for count in labels.values()) > 0


def test_one_bit_frames_are_cut_by_fold(tmp_path: Path) -> None:
    source = part_of("deeppcb", tmp_path / "boards", screens=10)
    with (source / "folds.csv").open(newline="") as file:
        fold = int(next(csv.DictReader(file))["fold"])
    summary = cut(source, tmp_path / "cut", patch_px=320, test_fold=fold)
    assert sum(summary.patches.values()) == 10 * 4
    assert summary.patches["test"] > 0


def test_the_embedded_bundle_answers_photographs(tmp_path: Path) -> None:
    source = part_of("phone-screens", tmp_path / "phone", screens=2)
    settings = Settings(bundle=DEFAULT_BUNDLE, state_dir=tmp_path / "state")
    with inspector(settings) as ready:
        results = list(inspect_files(ready, sorted((source / "screens").iterdir()), raw_size=None))
    for result in results:
        assert isinstance(result.outcome, Inspection)
        proof = from_json(result.outcome.answer).proof
        assert (proof.windows_expected, proof.windows_inferred, proof.covered) == (4, 4, True)
