"""What a glance clears: as a bundle with that limit is served, and chosen without the screens that judge it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from engine import (
    DEFAULT_BUNDLE,
    GLANCE_FILE,
    NO_GLANCE,
    Glance,
    Manifest,
    TurnedLook,
    changed_copy,
    load,
    read_golden,
    self_test,
)
from engine.manifest import parse
from tests.bundles import tiny_bundle
from tests.training.spots import LABELS, cut_spots
from tests.training.test_calibration import many
from training.calibration import Calibration, Glancing, calibrate
from training.clearing import Clearing, clearing
from training.costs import Costs
from training.cutting import cut
from training.datasets import PatchSet
from training.evaluation import bundle_probability
from training.folder import data_id
from training.glance import CLEARS_ALL, SECTION, doubts_of
from training.measures import wilson
from training.recalibration import recalibrate
from training.zones import Zones

TURNED = TurnedLook(score_min=0.0, score_max=1.0, ratio_max=0.25)  # in doubt of everything
Rows = NDArray[np.int64]


@pytest.fixture(scope="module")
def golden_screens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Screens of two golden patches of the embedded bundle, turned, the second of which is clean."""
    base = tmp_path_factory.mktemp("golden")
    (base / "source" / "screens").mkdir(parents=True)
    *shown, clean = read_golden(DEFAULT_BUNDLE).pixels[:, 0]
    tells = read_golden(DEFAULT_BUNDLE).probability > 0.5
    names = list(Manifest.read(DEFAULT_BUNDLE).labels)
    boxes, parts = ["screen,label,left,top,right,bottom,area_px"], ["screen,part"]
    for turns in range(4):
        for number, pixels in enumerate([*shown, clean]):
            name = f"g{turns}{number}"
            image = np.hstack([np.rot90(pixels, turns), np.rot90(clean[::-1], turns)])
            cv2.imwrite(str(base / "source" / "screens" / f"{name}.png"), image)
            parts.append(f"{name},test")
            boxes += [f"{name},{names[k]},400,400,600,600,40000" for k in np.flatnonzero(tells[number])]
    (base / "source" / "boxes.csv").write_text("\n".join(boxes) + "\n")
    (base / "source" / "splits.csv").write_text("\n".join(parts) + "\n")
    cut(base / "source", base / "cut", patch_px=1024, labels=names)
    return base / "cut"


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cut_spots(tmp_path_factory.mktemp("spots"))


@pytest.fixture(scope="module")
def glancing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose glance doubts what it sees as much as the whole network does."""
    made = tiny_bundle(tmp_path_factory.mktemp("glancing") / "bundle", labels=LABELS, glance=Glance(doubt_min=0.9))
    (made / "MODEL_CARD.md").write_text(f"# tiny 1.0.0\n\n{SECTION}\n\nold glance\n\n## Data\n\nsome\n")
    facts: dict[str, float | str] = {"glance_found": 12.0, "glance_lost": 3.0, "glance_data_id": "old"}
    manifest = parse((made / "manifest.json").read_bytes())
    replace(manifest, training={**manifest.training, **facts}).sign(made)
    return made


def test_screens_score_as_a_bundle_with_that_limit_gives_them(golden_screens: Path) -> None:
    """Whatever the limit is, turned looks and all."""
    patches = PatchSet([golden_screens], None)
    with changed_copy(DEFAULT_BUNDLE, turned_look=TURNED) as bundle, clearing(bundle, patches, lost=0) as seen:
        with changed_copy(bundle, glance=CLEARS_ALL) as copy:
            doubt = np.sort(doubts_of(copy, patches).windows)
        low = doubt[doubt < 0.5]
        widest = int(np.argmax(np.diff(low)))  # so that no runtime has a doubt on its other side
        for limit in (float(low[widest : widest + 2].mean()), 0.5):
            with changed_copy(bundle, glance=Glance(doubt_min=limit)) as copy, closing(load(copy)) as backend:
                expected = bundle_probability(backend, patches, group="screen", look=TURNED)
            np.testing.assert_allclose(seen.served_all(limit), expected, atol=1e-6)
            assert np.abs(expected - seen.probability).max() > 5e-5  # so much does it change


def test_a_limit_is_chosen_without_the_screens_that_judge_it(glancing: Path, spots: Path) -> None:
    """The faintest spots, with a doubt of a half, set the limit where they are known; elsewhere they are cleared."""
    patches = PatchSet([spots], None)
    zones = np.array([[0.01, 0.9], [0.01, 0.9]])
    everything = np.arange(len(patches))
    with clearing(glancing, patches, lost=0) as seen:
        faint = [rows for rows in patches.by_screen() if 0.4 < seen.probability[rows].max() < 0.6]
        assert len(faint) == 2
        whole = [seen.probability[rows].max(axis=0) for rows in faint]
        known = seen.highest(everything, zones, faint)
        np.testing.assert_allclose(known, whole, atol=0.05)  # by their neighbours alone
        assert (known > zones[:, 0]).any(axis=1).all()
        left_out = seen.highest(np.setdiff1d(everything, np.concatenate(faint)), zones, faint)
        assert (left_out < zones[:, 0]).all()
        clean = patches.by_screen()[:1]
        none_known = seen.highest(clean[0], zones, faint)  # which show nothing to choose a limit by
        np.testing.assert_array_equal(none_known, whole)
        assert seen.highest(everything, zones, []).shape == (0, 2)


def hiding(faint: Sequence[int]) -> Glancing:
    """A glance that clears all of some screens, two patches each, unless its limit was chosen on them."""
    probability, *_ = many(0, screens=600)

    def highest(chosen_on: Rows, zones: Zones, screens: Sequence[Rows]) -> NDArray[np.float64]:
        hidden = [rows[0] // 2 in faint and rows[0] not in chosen_on for rows in screens]
        seen = np.array([probability[rows].max(axis=0) for rows in screens])
        return np.where(np.array(hidden)[:, None], 0.0, seen)

    return highest


def test_what_escapes_by_a_glance_counts_in_what_is_proven() -> None:
    """Of the screens left out, by a limit chosen without them."""
    costs = Costs(escape_cap=0.05)
    without = calibrate(*many(0, screens=600), labels=["a", "b"], costs=costs)
    assert without.held_out is not None
    assert without.intervals is not None
    assert without.proven
    faint = range(0, 100, 2)  # defective ones are even
    found = calibrate(*many(0, screens=600), labels=["a", "b"], costs=costs, glancing=hiding(faint))
    assert found.tally.escapes == without.tally.escapes  # all screens chose it
    assert found.held_out is not None
    assert found.held_out.escapes >= len(faint)
    assert found.escape_bound >= wilson(len(faint), 300).high
    assert not found.proven
    assert found.limits == without.limits  # bands that are wider would not catch them
    (said,) = (said for said in found.warnings() if "prove no more than" in said)
    more = found.held_out.escapes - without.held_out.escapes
    assert f"; {more} of them by the glance alone, which no band catches. Where it may clear less (--lost)" in said
    assert found.intervals is not None
    assert found.intervals.escape.mean > without.intervals.escape.mean + 0.1


def test_a_screen_is_judged_by_the_worse_of_both_ways_to_see_it() -> None:
    """A glance that lifts clean screens is held against the bundle, one that lowers them is not to its credit."""
    probability, target, screens = many(0, screens=60)

    def told(of_clean: float, of_defective: float) -> Calibration:
        def highest(chosen_on: Rows, zones: Zones, screens: Sequence[Rows]) -> NDArray[np.float64]:
            return np.array([[of_defective if target[rows].any() else of_clean] * 2 for rows in screens])

        return calibrate(probability, target, screens, labels=["a", "b"], costs=Costs(), glancing=highest)

    whole = calibrate(probability, target, screens, labels=["a", "b"], costs=Costs())
    assert told(of_clean=0.0, of_defective=1.0).tally == whole.tally
    assert told(of_clean=1.0, of_defective=1.0).tally.overkills == whole.tally.clean
    assert told(of_clean=0.0, of_defective=0.0).tally.escapes == whole.tally.defective


def test_reviews_that_a_glance_adds_count_in_the_capacity() -> None:
    """It gives clean screens a score between the limits, and the bands are not the narrower for it."""
    probability, target, screens = many(0, screens=60)
    lifted = np.flatnonzero([not target[screens == number].any() for number in range(60)])[:15]

    def highest(chosen_on: Rows, zones: Zones, screens: Sequence[Rows]) -> NDArray[np.float64]:
        seen = np.array([probability[rows].max(axis=0) for rows in screens])
        doubtful = np.array([rows[0] // 2 in lifted for rows in screens])
        return np.where(doubtful[:, None], zones.mean(axis=1), seen)

    costs = Costs(review_capacity=0.2)
    whole = calibrate(probability, target, screens, labels=["a", "b"], costs=costs)
    found = calibrate(probability, target, screens, labels=["a", "b"], costs=costs, glancing=highest)
    assert whole.tally.review(costs) <= costs.review_capacity < found.tally.review(costs)
    (said,) = (said for said in found.warnings() if "over the capacity" in said)
    alone = f"{found.whole[0].review(costs):.1%} without the glance. Where it may clear less"
    assert alone in said
    shown = found.screens.highest[[not found.has[k].any() for k in range(len(found.has))]]
    low, high = found.limits["a"].review
    assert ((shown[:, 0] > low) & (shown[:, 0] < high)).sum() >= len(lifted)  # what the picture draws


def test_a_limit_that_these_screens_chose_does_not_help_where_they_judge(glancing: Path, spots: Path) -> None:
    """Else a glance that was added by the faintest of them would be told to clear none of them elsewhere."""
    patches = PatchSet([spots], None)
    zones = np.array([[0.01, 0.9], [0.01, 0.9]])
    with changed_copy(glancing, glance=Glance(doubt_min=0.3)) as careful:
        with clearing(careful, patches, lost=0) as seen:
            faint = [rows for rows in patches.by_screen() if 0.4 < seen.probability[rows].max() < 0.6]
            others = np.setdiff1d(np.arange(len(patches)), np.concatenate(faint))
            assert (seen.highest(others, zones, faint) > zones[:, 0]).any(axis=1).all()
        with clearing(careful, patches, lost=0, blind=False) as seen:
            assert (seen.highest(others, zones, faint) < zones[:, 0]).all()
            assert seen.choose(zones[:, 0]).doubt_min == pytest.approx(0.3)


def test_which_screens_chose_the_limit_is_known(
    glancing: Path, spots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []

    def noted(*arguments: object, blind: bool, **more: object) -> object:
        told.append(blind)
        return clearing(*arguments, blind=blind, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("training.recalibration.clearing", noted)
    recalibrate(glancing, [spots], tmp_path / "second", version="2", costs=Costs())
    recalibrate(tmp_path / "second", [spots], tmp_path / "third", version="3", costs=Costs())
    assert told == [True, False]
    assert Manifest.read(tmp_path / "second").training["glance_data_id"] == f"old {data_id([spots])}"


def test_windows_that_may_have_a_label_choose_the_limit_too() -> None:
    """A screen of which nobody knows what it has judges nothing, and a glance must not clear it all the same."""
    probability, target, screens = many(0, screens=40)
    unknown = np.flatnonzero(screens == 7)
    target[unknown] = -1
    seen: list[set[int]] = []

    def highest(chosen_on: Rows, zones: Zones, screens: Sequence[Rows]) -> NDArray[np.float64]:
        seen.append(set(chosen_on.tolist()))
        assert not any(set(rows) & set(unknown) for rows in screens)
        return np.array([probability[rows].max(axis=0) for rows in screens])

    calibrate(probability, target, screens, labels=["a", "b"], costs=Costs(), glancing=highest)
    assert all(set(unknown.tolist()) <= one for one in seen)
    assert set(range(len(target))) in seen


def test_the_embedded_bundle_is_calibrated_glance_and_all(golden_screens: Path, tmp_path: Path) -> None:
    before = Manifest.read(DEFAULT_BUNDLE)
    done = recalibrate(DEFAULT_BUNDLE, [golden_screens], tmp_path / "new", version="7", costs=Costs())
    after = Manifest.read(tmp_path / "new")
    assert after == done.manifest
    assert after.limits_version == before.limits_version + 1
    assert after.labels == done.calibration.limits
    assert done.glance is not None
    # of so few windows all have more doubt, and its own limit was chosen on many
    assert after.glance == before.glance == Glance(doubt_min=done.glance.doubt_min)
    changed = {name for name in before.files if before.files[name] != after.files[name]}
    assert changed == {"MODEL_CARD.md"}  # the graph of the glance is the same
    assert (done.glance.windows, done.glance.found, done.glance.lost) == (24, 8, 0)
    assert done.glance.cleared > 0
    assert after.training["glance_windows"] == 24
    assert after.training["limits_data_id"] == data_id([golden_screens])
    assert after.training["glance_data_id"] == f"{before.training['glance_data_id']} {data_id([golden_screens])}"
    card = (tmp_path / "new" / "MODEL_CARD.md").read_text()
    assert card.count(SECTION) == 1
    assert f"doubt of {after.glance.doubt_min:.4f} or more" in card
    assert "20000 windows" not in card


def test_its_limit_follows_from_the_new_bands_and_its_escapes_count(
    glancing: Path, spots: Path, tmp_path: Path
) -> None:
    """Of twelve windows with a spot it may clear three, as where it was chosen; two are fainter than the rest."""
    done = recalibrate(glancing, [spots], tmp_path / "new", version="2", costs=Costs())
    assert done.glance is not None
    assert (done.glance.found, done.glance.lost, done.glance.screens_lost) == (12, 2, 2)
    assert done.manifest.glance.doubt_min == pytest.approx(0.625)
    assert done.calibration.tally.escapes == 2
    assert any("2 of 12 defective screens escape" in said for said in done.calibration.warnings())
    assert done.report.per_label["bubble"].recall * done.report.per_label["pinhole"].recall < 1
    strict = recalibrate(glancing, [spots], tmp_path / "strict", version="2", costs=Costs(), lost=0)
    assert strict.glance is not None
    assert strict.glance.lost == strict.calibration.tally.escapes == 0
    assert strict.manifest.glance.doubt_min == pytest.approx(0.5)
    card = (tmp_path / "strict" / "MODEL_CARD.md").read_text()
    assert "old glance" not in card
    assert "is no higher than it was, and counts in the shares of screens there" in card
    told = shutil.copytree(glancing, tmp_path / "told")
    facts: dict[str, float | str] = {"glance_share": 0.25, "glance_found": 12.0, "glance_lost": 0.0}
    replace(Manifest.read(told), training=facts).sign(told)
    again = recalibrate(told, [spots], tmp_path / "again", version="2", costs=Costs())
    assert again.glance == done.glance
    assert again.manifest.training["glance_share"] == done.manifest.training["glance_share"] == 0.25


def test_its_limit_is_never_raised(glancing: Path, spots: Path, tmp_path: Path) -> None:
    """Another bundle may know fainter spots, which these screens lack."""
    careful = shutil.copytree(glancing, tmp_path / "careful")
    replace(Manifest.read(careful), glance=Glance(doubt_min=0.3)).sign(careful)
    done = recalibrate(careful, [spots], tmp_path / "new", version="2", costs=Costs())
    assert done.manifest.glance == Glance(doubt_min=0.3)
    assert done.glance is not None
    assert done.glance.lost == done.calibration.tally.escapes == 0


def test_it_may_be_left_out(glancing: Path, spots: Path, tmp_path: Path) -> None:
    done = recalibrate(glancing, [spots], tmp_path / "new", version="2", costs=Costs(), drop_glance=True)
    assert done.glance is None
    after = Manifest.read(tmp_path / "new")
    assert after.glance == NO_GLANCE
    assert GLANCE_FILE not in after.files
    assert not any(fact.startswith("glance_") for fact in after.training)
    assert SECTION not in (tmp_path / "new" / "MODEL_CARD.md").read_text()
    with closing(load(tmp_path / "new", "onnxruntime")) as backend:
        golden = read_golden(tmp_path / "new")
        assert self_test(backend, golden) <= golden.tolerance
    plain = tiny_bundle(tmp_path / "plain", labels=LABELS)
    whole = recalibrate(plain, [spots], tmp_path / "whole", version="2", costs=Costs())
    assert done.manifest.labels == whole.manifest.labels
    with pytest.raises(ValueError, match="give one of them"):
        recalibrate(glancing, [spots], tmp_path / "both", version="2", costs=Costs(), drop_glance=True, lost=0.01)
    for wish in ({"drop_glance": True}, {"lost": 0.01}):
        with pytest.raises(ValueError, match="has no glance"):
            recalibrate(plain, [spots], tmp_path / "no", version="2", costs=Costs(), **wish)


def test_where_no_limit_can_be_chosen_it_is_told_how_to_go_on(glancing: Path, spots: Path, tmp_path: Path) -> None:
    clean = shutil.copytree(spots, tmp_path / "clean")
    header, *rows = (spots / "labels.csv").read_text().splitlines()
    (clean / "labels.csv").write_text("\n".join([header, *(f"{row.split(',')[0]},0,0" for row in rows), ""]))
    with pytest.raises(ValueError, match=r"finds no labelled defect .*; --drop-glance leaves it out"):
        recalibrate(glancing, [clean], tmp_path / "new", version="2", costs=Costs())
    assert not (tmp_path / "new").exists()


def test_what_stands_for_a_cleared_window_must_pass(glancing: Path, spots: Path) -> None:
    patches, low = PatchSet([spots], None), np.array([0.01, 0.01])
    with changed_copy(glancing, glance=CLEARS_ALL) as copy, closing(load(copy, "onnxruntime")) as backend:
        doubts = doubts_of(copy, patches)
        for row in (np.argmin(doubts.windows), np.argmax(doubts.windows)):
            stands = backend.features(patches.patch(int(row))[None, None], glance=False)
            seen = Clearing(backend, patches, doubts, stands, lost=0, most=1.0, blind=True)
            if doubts.windows[row] == 0:
                assert seen.choose(low).cleared > 0
            else:
                with pytest.raises(ValueError, match=r"what stands for a cleared window has the scores .*, and would"):
                    seen.choose(low)


@pytest.mark.slow
def test_the_command_tells_what_the_glance_clears(glancing: Path, spots: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", "calibrate", str(glancing), "--data", str(spots), "--version", "2"]
    command += ["--out", str(tmp_path / "new")]
    done = subprocess.run([*command, "--json", str(tmp_path / "f.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "its glance looks from a doubt of 0.6250 on: clears" in done.stdout
    figures = json.loads((tmp_path / "f.json").read_text())
    assert (figures["glance"]["lost"], figures["screens"]["escapes"]) == (2, 2)
    for wish in (["--lost", "0.01"], ["--drop-glance"]):
        refused = subprocess.run([*command, "--thresholds", *wish], capture_output=True, text=True)
        assert refused.returncode == 2
        assert "leaves the glance" in " ".join(refused.stderr.split())
