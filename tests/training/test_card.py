import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from engine import RELEASE_FILE, Manifest
from tests.bundles import tiny_bundle
from training.card import add_figures
from training.cli import write_json
from training.evaluation import report
from training.judging import judge


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle to write into, released before."""
    made = tiny_bundle(tmp_path / "bundle")
    (made / RELEASE_FILE).write_text("{}")
    return made


@pytest.fixture
def measured(tmp_path: Path) -> tuple[Path, Path]:
    """What `evaluate` and `judge` write for two patches and two screens."""
    source = tmp_path / "source"
    (source / "screens").mkdir(parents=True)
    for name in "ab":
        (source / "screens" / f"{name}.png").write_bytes(b"")
    (source / "boxes.csv").write_text("screen,label,left,top,right,bottom,area_px\na,scratch,1,1,9,9,64\n")
    (source / "conditions.csv").write_text("screen,id,label,contrast,size\na,0,scratch,7.5,8\n")
    answers = [
        {
            "screen_id": name,
            "verdict": "pass",
            "model": {"name": "tiny", "version": "1.0.0", "limits": 1},
            "labels": {"scratch": {"present": False}},
            "defects": [],
        }
        for name in "ab"
    ]
    (tmp_path / "verdicts.json").write_text(json.dumps(answers))
    write_json(tmp_path / "judge.json", judge(tmp_path / "verdicts.json", source))
    probability, target = np.array([[0.9, 0.1], [0.2, 0.1]], np.float32), np.array([[1, 0], [1, 0]], np.int8)
    found = report(probability, target, labels=["scratch", "bubble"], thresholds=[0.5, 0.5])
    write_json(tmp_path / "eval.json", {"models": ["tiny 1.0.0, limits 1"], **asdict(found)})
    return tmp_path / "eval.json", tmp_path / "judge.json"


def test_figures_come_into_the_card_and_the_bundle_stays_whole(bundle: Path, measured: tuple[Path, Path]) -> None:
    evaluation, judgement = measured
    before = (bundle / "MODEL_CARD.md").read_text()
    add_figures(bundle, on="two screens, seed 1", evaluation=evaluation, judgement=judgement)
    card = (bundle / "MODEL_CARD.md").read_text()
    assert card.startswith(before.rstrip())
    assert "## Measured on two screens, seed 1" in card
    assert "| scratch | 1.000 (0.21-1.00) | 0.500 (0.09-0.91) | 0.667 | 2 |" in card
    assert "| escape: defective, passed | 1 of 1 | 100.0% |" in card
    assert "| scratch | 1 | 1 | 0 of 1 | 0 |" in card
    assert "| label | 6-12 |" in card
    assert "| scratch | 0/1, 1/1 |" in card
    Manifest.read(bundle)  # its hash of the card is the new one's


def test_figures_of_the_same_screens_are_replaced_and_of_others_kept(bundle: Path, measured: tuple[Path, Path]) -> None:
    evaluation, judgement = measured
    for on in ("first", "second", "first"):
        add_figures(bundle, on=on, evaluation=evaluation, judgement=judgement)
    card = (bundle / "MODEL_CARD.md").read_text()
    assert card.count("## Measured on first\n") == card.count("## Measured on second\n") == 1
    assert card.index("second") < card.index("first")


@pytest.mark.parametrize("on", ["", "two\nlines"])
def test_a_heading_is_one_line(bundle: Path, measured: tuple[Path, Path], on: str) -> None:
    with pytest.raises(ValueError, match="one line"):
        add_figures(bundle, on=on, evaluation=measured[0], judgement=measured[1])


def test_figures_of_another_model_are_refused(bundle: Path, measured: tuple[Path, Path]) -> None:
    before = (bundle / "MODEL_CARD.md").read_text()
    for file, models in ((measured[0], ["tiny 1.0.0, limits 2"]), (measured[1], ["a", "b"]), (measured[1], [])):
        told = file.read_text()
        file.write_text(json.dumps({**json.loads(told), "models": models}))
        with pytest.raises(ValueError, match=r"json is of .*, not of tiny 1.0.0, limits 1"):
            add_figures(bundle, on="two", evaluation=measured[0], judgement=measured[1])
        file.write_text(told)
    assert (bundle / "MODEL_CARD.md").read_text() == before


def test_other_files_are_refused(bundle: Path, measured: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="are not what"):
        add_figures(bundle, on="two", evaluation=measured[1], judgement=measured[0])
