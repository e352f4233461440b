import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from engine import RELEASE_FILE, BundleError, Glance, Manifest, fake_manifest
from engine.manifest import parse
from tests.bundles import tiny_bundle
from tests.training.spots import LABELS, cut_spots
from training import calibration_picture, plots
from training.calibration import calibrate
from training.card import MEASURED, THRESHOLDS, recalibrated_card
from training.costs import Costs
from training.datasets import PatchSet
from training.folder import LEARNT_DATA, data_id
from training.recalibration import THRESHOLDS_DATA, Recalibrated, recalibrate
from training.reliability import Bin
from training.thresholds import best_within, rethreshold

CARD = f"""# tiny 1.0.0

Hand-made.

## Review bands

old bands

{MEASURED}others

old figures

## Data

some
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released bundle whose card tells figures of its limits."""
    made = tiny_bundle(tmp_path_factory.mktemp("bundle") / "bundle", labels=LABELS)
    (made / "MODEL_CARD.md").write_text(CARD)
    parse((made / "manifest.json").read_bytes()).sign(made)
    (made / RELEASE_FILE).write_text("{}")
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cut_spots(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def done(bundle: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recalibrated]:
    out = tmp_path_factory.mktemp("out") / "new"
    return out, recalibrate(bundle, [data], out, version="1.1", costs=Costs(escape_cost=50))


def test_the_graphs_stay_and_the_limits_are_new(bundle: Path, done: tuple[Path, Recalibrated]) -> None:
    out, found = done
    before, after = Manifest.read(bundle), Manifest.read(out)
    assert after == found.manifest
    assert (after.name, after.version, after.limits_version) == ("tiny", "1.1", before.limits_version + 1)
    assert after.labels == found.calibration.limits != before.labels
    changed = {name for name in before.files if before.files[name] != after.files[name]}
    assert changed == {"MODEL_CARD.md"}
    assert not (out / RELEASE_FILE).exists()  # it was of other verdicts
    assert after.training["limits_costs"] == str(Costs(escape_cost=50))
    assert after.training["limits_before"] == "tiny 1.0.0"
    assert found.calibration.tally.defective == found.calibration.tally.clean == 12


def test_the_card_tells_the_new_limits_alone(done: tuple[Path, Recalibrated]) -> None:
    card = (done[0] / "MODEL_CARD.md").read_text()
    assert card.startswith("# tiny 1.1\n\nHand-made.\n")
    assert "old bands" not in card
    assert "old figures" not in card
    assert "## Data\n\nsome\n" in card
    assert "Version 2 of the limits, for the graphs of tiny 1.0.0" in card
    assert card.count("| bubble |") == 1


def test_the_card_tells_no_interval_without_width() -> None:
    """Every draw of twenty screens of one score and twenty of another is the same."""
    score = np.repeat(np.array([[0.9], [0.1]], np.float32), 20, axis=0)
    found = calibrate(score, (score > 0.5).astype(np.int8), np.arange(40), labels=["dot"], costs=Costs(escape_cap=0.9))
    manifest = fake_manifest(("dot",))
    card = recalibrated_card("# before\n", manifest, found, before=manifest)
    assert "| label | low | high | spread of low | of high | escaped | escaped, alone |" in card
    assert "no interval of confidence" in card
    assert "| dot | 0.300 | 0.700 | too few screens | too few screens | 0 of 20 (0.0%-16.1%) | 0 of 20" in card
    assert "| review | 0.0% | 0.0% (0.0%-16.1%) |" in card


def test_limits_are_calibrated_again_and_again(done: tuple[Path, Recalibrated], data: Path, tmp_path: Path) -> None:
    again = recalibrate(done[0], [data], tmp_path / "again", version="1.2", costs=Costs(escape_cost=50))
    assert again.manifest.limits_version == 3
    assert again.manifest.labels == done[1].manifest.labels
    assert (tmp_path / "again" / "MODEL_CARD.md").read_text().count("## Review bands") == 1


def test_thresholds_alone_are_chosen_by_f_inside_their_bands(bundle: Path, data: Path, tmp_path: Path) -> None:
    before = Manifest.read(bundle)
    strict = shutil.copytree(bundle, tmp_path / "strict")  # sees few of the spots
    bands = {label: replace(one, threshold=0.97, review=(0.6, 0.98)) for label, one in before.labels.items()}
    replace(before, labels=bands).sign(strict)
    found = rethreshold(strict, [data], tmp_path / "new", version="1.1")
    assert found.report.f_measure > found.report_before.f_measure
    after = Manifest.read(tmp_path / "new")
    assert after == found.manifest
    assert (after.version, after.limits_version) == ("1.1", before.limits_version + 1)
    for label in LABELS:
        assert after.labels[label].review == (0.6, 0.98)
        assert 0.6 <= after.labels[label].threshold < 0.97
    assert {name for name in before.files if before.files[name] != after.files[name]} == {"MODEL_CARD.md"}
    assert not (tmp_path / "new" / RELEASE_FILE).exists()
    card = (tmp_path / "new" / "MODEL_CARD.md").read_text()
    assert card.count(THRESHOLDS) == 1
    assert "old bands" in card
    assert "old figures" not in card

    narrow = {label: replace(one, threshold=0.97, review=(0.96, 0.98)) for label, one in before.labels.items()}
    replace(before, labels=narrow).sign(strict)
    found = rethreshold(strict, [data], tmp_path / "narrow", version="1.1")
    assert found.manifest.labels == narrow
    assert set(found.kept.values()) == {"no better on screens left out"}
    assert "no better on screens left out" in (tmp_path / "narrow" / "MODEL_CARD.md").read_text()


def test_a_threshold_is_judged_on_screens_that_had_no_part_in_it(
    bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fifth of the screens by the threshold of the others."""
    patches = PatchSet([data], None)
    chosen: list[int] = []

    def noted(score: NDArray[np.float32], truth: NDArray[np.bool_], low: float, high: float) -> float:
        chosen.append(len(score))
        return best_within(score, truth, low, high)

    monkeypatch.setattr("training.thresholds.best_within", noted)
    found = rethreshold(bundle, [data], tmp_path / "new", version="1.1")
    for name, count in zip(LABELS, (patches.labels >= 0).sum(axis=0).tolist(), strict=True):
        folds, chosen = chosen[:5], chosen[5:]
        assert sum(folds) == 4 * count
        if name not in found.kept:  # better there: then by all patches
            assert chosen.pop(0) == count
    assert not chosen
    assert found.left_out.keys() == set(LABELS)
    assert all(0 <= f <= 1 for f in found.left_out.values())


def test_a_label_that_no_patch_has_keeps_its_threshold(bundle: Path, data: Path, tmp_path: Path) -> None:
    other = shutil.copytree(data, tmp_path / "other")
    rows = (row.rsplit(",", 1) for row in (data / "labels.csv").read_text().splitlines())
    (other / "labels.csv").write_text("".join(f"{a},{b if a == 'img_names,bubble' else -1}\n" for a, b in rows))
    found = rethreshold(bundle, [other], tmp_path / "new", version="1.1")
    assert found.kept["pinhole"] == "no patch has it"
    assert found.manifest.labels["pinhole"] == Manifest.read(bundle).labels["pinhole"]
    assert "| no patch has it |" in (tmp_path / "new" / "MODEL_CARD.md").read_text()


def test_bands_chosen_after_thresholds_bring_their_own(bundle: Path, data: Path, tmp_path: Path) -> None:
    between = rethreshold(bundle, [data], tmp_path / "between", version="1.1").manifest
    assert between.training[THRESHOLDS_DATA] == data_id([data])
    recalibrate(tmp_path / "between", [data], tmp_path / "after", version="1.2", costs=Costs(escape_cost=50))
    assert THRESHOLDS_DATA not in Manifest.read(tmp_path / "after").training
    assert THRESHOLDS not in (tmp_path / "after" / "MODEL_CARD.md").read_text()


@given(data=st.data(), low=st.floats(0.000001, 0.5), high=st.floats(0.5, 0.999999))
def test_no_threshold_inside_the_band_has_a_better_f(data: st.DataObject, low: float, high: float) -> None:
    count = data.draw(st.integers(1, 30))
    score = data.draw(hnp.arrays(np.float32, count, elements=st.floats(0, 1, width=32)))
    truth = data.draw(hnp.arrays(np.bool_, count))
    if not truth.any():
        with pytest.raises(ValueError, match="no patch has the label"):
            best_within(score, truth, low, high)
        return
    low, high = round(low, 6), round(high, 6)

    def f(threshold: float) -> float:
        return float(2 * (truth & (score >= threshold)).sum() / ((score >= threshold).sum() + truth.sum()))

    best = best_within(score, truth, low, high)
    assert low <= best <= high
    for threshold in np.linspace(low, high, 200):
        if (np.abs(score - threshold) > 2e-4).all():  # four digits can tell it from every score
            assert f(best) >= f(float(threshold))


def test_thresholds_are_chosen_of_a_bundle_with_a_glance(data: Path, tmp_path: Path) -> None:
    glancing = tiny_bundle(tmp_path / "glancing", labels=LABELS, glance=Glance(doubt_min=0.1))
    (glancing / "MODEL_CARD.md").write_text(CARD)
    parse((glancing / "manifest.json").read_bytes()).sign(glancing)
    assert rethreshold(glancing, [data], tmp_path / "new", version="2").manifest.glance == Glance(doubt_min=0.1)
    with pytest.raises(ValueError, match="exists"):
        rethreshold(glancing, [data], tmp_path / "new", version="3")


def test_the_command_chooses_thresholds_alone(bundle: Path, data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", "calibrate", str(bundle), "--data", str(data), "--version", "2"]
    command += ["--out", str(tmp_path / "new"), "--thresholds"]
    answer = subprocess.run([*command, "--json", str(tmp_path / "f.json")], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "present from now" in " ".join(answer.stdout.split())
    assert "tiny 2 in" in " ".join(answer.stdout.split())
    told = json.loads((tmp_path / "f.json").read_text())
    assert told["now"]["report"]["patches"] == 48
    assert told["now"]["thresholds"].keys() == told["before"]["thresholds"].keys() == set(LABELS)
    (tmp_path / "limits.toml").write_text("review_cost = 2\n")
    refused = subprocess.run([*command, "--costs", str(tmp_path / "limits.toml")], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "leaves the bands" in " ".join(refused.stderr.split())


def test_other_limits_need_another_version_and_folder(bundle: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--version 1\.0\.0 is that of"):
        recalibrate(bundle, [data], tmp_path / "new", version="1.0.0", costs=Costs())
    with pytest.raises(ValueError, match="exists"):
        recalibrate(bundle, [data], bundle, version="2", costs=Costs())
    with pytest.raises(BundleError, match="version"):
        recalibrate(bundle, [data], tmp_path / "new", version="a b", costs=Costs())
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_draws_and_writes(bundle: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install '.[training]'")
    (tmp_path / "limits.toml").write_text("review_cost = 2\n")
    answer = subprocess.run(
        [
            *(sys.executable, "-m", "training", "calibrate", str(bundle), "--data", str(data), "--version", "2"),
            *("--costs", "limits.toml", "--out", "new", "--json", "figures.json", "--picture", "picture.png"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert "tiny 2 in new: limits 2" in answer.stdout
    assert "of 12 defective screens, each judged by limits chosen without it, prove no more" in answer.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["costs"]["review_cost"] == 2
    assert figures["escape_cap_proven"] is False
    assert len(figures["intervals"]["labels"]["bubble"]["low"]) == 3
    picture = cv2.imread(str(tmp_path / "picture.png"))
    assert picture is not None
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_a_picture_without_zones_is_a_row_of_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install '.[training]'")
    bins = (Bin(0.1, 0.2, 5), Bin(0.8, 0.7, 4))
    curves = {label: {"before": bins, "after": bins[:1]} for label in ("a", "b", "c")}
    calibration_picture.draw(tmp_path / "curves.png", calibration=None, curves=curves)
    picture = cv2.imread(str(tmp_path / "curves.png"))
    assert picture is not None
    height, width, _ = picture.shape
    assert 2.9 < width / height < 3.1


def test_without_matplotlib_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install '\.\[training\]'"):
        plots.require()


@pytest.mark.parametrize(("part", "refused"), [(None, True), ("train", True), ("test", False)])
def test_limits_are_not_chosen_on_what_the_bundle_has_learnt_from(
    bundle: Path, data: Path, tmp_path: Path, part: str | None, refused: bool
) -> None:
    """Whether it learnt from this folder alone or from others as well."""
    alone, among = (shutil.copytree(bundle, tmp_path / name) for name in ("alone", "among"))
    before = Manifest.read(bundle)
    replace(before, data_id=data_id([data])).write(alone)
    replace(before, training={**before.training, LEARNT_DATA: f"0123 {data_id([data])}"}).write(among)
    for learnt in (alone, among):
        if refused:
            with pytest.raises(ValueError, match=r"has learnt from .*cut: take other screens, or --part test$"):
                recalibrate(learnt, [data], tmp_path / "new", version="2", costs=Costs(), part=part)
        else:
            recalibrate(learnt, [data], tmp_path / f"new-{learnt.name}", version="2", costs=Costs(), part=part)


def test_a_validation_part_that_was_learnt_from_proves_nothing(
    bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have chosen the epoch, which a bundle does not tell; other screens judge where there are any."""
    own, other = (shutil.copytree(data, tmp_path / name) for name in ("own", "other"))
    for folder, rows in ((own, 1), (other, -1)):  # in another order: another folder by its tables
        lines = (folder / "splits.csv").read_text().replace(",test", ",validation").splitlines()
        (folder / "splits.csv").write_text("\n".join([lines[0], *lines[1:][::rows], ""]))
    learnt = shutil.copytree(bundle, tmp_path / "learnt")
    before = Manifest.read(bundle)
    replace(before, training={**before.training, LEARNT_DATA: data_id([own])}).write(learnt)
    monkeypatch.setattr("training.recalibration.refuse_known", lambda *_: None)  # of the same screens
    for number, (of, folders, chose, judging) in enumerate(
        ((learnt, [own], True, 12), (learnt, [other, own], False, 12), (bundle, [own], False, 12))
    ):
        out = tmp_path / f"new-{number}"
        found = recalibrate(of, folders, out, version="2", costs=Costs(escape_cap=0.5), part="validation").calibration
        assert found.held_out is not None
        assert (found.tally.defective, found.held_out.defective) == (12 * len(folders), judging)
        assert found.escape_bound < 0.5
        assert (found.weights_chosen, found.proven) == (chose, not chose)
        assert any("chose the epoch" in said for said in found.warnings()) == chose
        assert Manifest.read(out).training["limits_proven"] == (
            "no: they may have chosen the epoch" if chose else "yes"
        )
