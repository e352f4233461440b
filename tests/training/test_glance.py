"""A glance, from a run of a small network to a bundle that is served: what it clears tells nothing."""

import json
import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine import (
    GLANCE_FILE,
    RELEASE_FILE,
    Features,
    Glance,
    Manifest,
    SecondLook,
    fake_manifest,
    load,
    read_golden,
    self_test,
)
from engine.manifest import parse
from tests.bundles import BACKGROUND, grey_of, tiny_bundle
from tests.training.data_form import TOML
from training.config import Config, read_config
from training.cutting import cut
from training.datasets import PatchSet
from training.evaluation import bundle_probability
from training.fit import fit
from training.folder import LEARNT_DATA, data_id, load_run
from training.glance import BEYOND_PX, Doubts, add_glance, choose, telling

LABELS, SIDE = ("bubble", "pinhole"), 64
SMALL = ["network.method=feature_clustering", "network.trunk=glance", "phase2.epochs=0", "phase1.epochs=12"]
LOST = 0.05


def cut_screens(base: Path, *, screens: int, seed: int) -> Path:
    """A cut folder; of each screen's three patches one has a spot, now and then."""
    source, rng = base / "source", np.random.default_rng(seed)
    (source / "screens").mkdir(parents=True)
    boxes = ["screen,label,left,top,right,bottom,area_px"]
    for number in range(screens):
        image = rng.integers(BACKGROUND - 20, BACKGROUND + 21, (SIDE, 3 * SIDE)).astype(np.uint8)
        if number % 2:
            label, left = int(rng.integers(2)), int(rng.integers(3)) * SIDE + int(rng.integers(4, 50))
            side = int(rng.integers(4, 11))
            image[20 : 20 + side, left : left + side] = grey_of(label)
            boxes.append(f"s{number:03d},{LABELS[label]},{left},20,{left + side},{20 + side},{side**2}")
        cv2.imwrite(str(source / "screens" / f"s{number:03d}.png"), image)
    (source / "boxes.csv").write_text("\n".join(boxes) + "\n")
    parts = [f"s{number:03d},{'train' if number % 5 else 'test'}\n" for number in range(screens)]
    (source / "splits.csv").write_text("screen,part\n" + "".join(parts))
    cut(source, base / "cut", patch_px=SIDE, labels=LABELS)
    return base / "cut"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released one without a glance, which sees every spot and nothing else."""
    made = tiny_bundle(tmp_path_factory.mktemp("bundle") / "bundle", labels=LABELS, patch_px=SIDE)
    (made / RELEASE_FILE).write_text("{}")
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cut_screens(tmp_path_factory.mktemp("data"), screens=80, seed=0)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The run of a small network, on other screens."""
    base = tmp_path_factory.mktemp("small")
    cut_screens(base, screens=120, seed=1)
    (base / "toy.toml").write_text(TOML)
    config = read_config(base / "toy.toml", SMALL)
    fit(config)
    return config


@pytest.fixture(scope="module")
def made(bundle: Path, data: Path, small: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "bundle"
    add_glance(bundle, small.run, [data], out, version="1.1", lost=LOST)
    return out


def test_a_cleared_window_is_one_that_the_limit_clears_and_tells_nothing(
    bundle: Path, data: Path, small: Config, made: Path
) -> None:
    patches = PatchSet([data], None)
    network, _, _ = load_run(small.run)
    beyond = [np.pad(patches.patch(k), BEYOND_PX, mode="reflect") for k in range(len(patches))]
    with torch.no_grad():
        feature_NLF, cosine_NL, _ = network.features(torch.tensor(np.stack(beyond)[:, None]))
        score = torch.sigmoid(network.reason(feature_NLF, cosine_NL)).amax(dim=1)
    with closing(load(bundle, "onnxruntime")) as before, closing(load(made, "onnxruntime")) as backend:
        seen = Features.joined([backend.features(patches.patch(k)[None, None]) for k in range(len(patches))])
        once = bundle_probability(before, patches, group="screen")
        found = bundle_probability(backend, patches, group="screen")
    np.testing.assert_allclose(seen.doubt, score, atol=1e-4)  # as the module doubts what it sees a little beyond
    cleared = backend.manifest.glance.clears(seen.doubt)
    assert cleared.mean() > 0.5
    defect = (telling(once, before.manifest) & (patches.labels == 1)).any(axis=1)
    assert (cleared & defect).sum() <= LOST * defect.sum()
    assert not telling(found[cleared], backend.manifest).any()
    np.testing.assert_allclose(found[~cleared], once[~cleared], atol=0.05)  # by their neighbours alone
    assert not seen.activation[cleared].std(axis=(2, 3)).any()  # flat, which says nothing about where


def test_the_bundle_says_what_was_chosen_and_on_what(bundle: Path, data: Path, small: Config, made: Path) -> None:
    before, after = Manifest.read(bundle), Manifest.read(made)
    assert (after.name, after.version, after.labels) == (before.name, "1.1", before.labels)
    assert set(after.files) - set(before.files) == {GLANCE_FILE}
    assert {name for name in before.files if before.files[name] != after.files[name]} == {"MODEL_CARD.md"}
    assert not (made / RELEASE_FILE).exists()  # it was of other verdicts
    assert after.training["glance_windows"] == len(PatchSet([data], None))
    assert after.training["glance_data_id"] == data_id([data])
    assert after.training["glance_share"] == LOST
    assert data_id(small.data.folders) in str(after.training[LEARNT_DATA]).split()
    card = (made / "MODEL_CARD.md").read_text()
    assert card.count("## Glance") == 1
    assert f"doubt of {after.glance.doubt_min:.4f} or more" in card


def test_its_golden_patches_have_their_answers(made: Path) -> None:
    with closing(load(made, "onnxruntime")) as backend:
        golden = read_golden(made)
        assert self_test(backend, golden) <= golden.tolerance


def test_no_golden_patch_that_tells_something_is_cleared(
    bundle: Path, data: Path, small: Config, made: Path, tmp_path: Path
) -> None:
    """However much may be lost, a self-test shows that the whole network sees what it should."""
    freer, chosen = add_glance(bundle, small.run, [data], tmp_path / "new", version="1.1", lost=0.9)
    assert chosen.lost < 0.9 * chosen.found
    assert freer.glance.doubt_min >= Manifest.read(made).glance.doubt_min
    with closing(load(tmp_path / "new", "onnxruntime")) as backend:
        doubt = backend.features(read_golden(made).pixels).doubt
    assert freer.glance.clears(doubt)[:2].tolist() == [False, False]


def test_what_is_taken_for_a_defect_where_none_is_may_be_cleared(
    bundle: Path, data: Path, small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the spots one has less doubt than the others, and by its labels it is none."""
    patches = PatchSet([data], None)
    spots = np.flatnonzero((patches.labels == 1).any(axis=1))
    doubt = np.full(len(patches), 0.001, np.float32)
    doubt[spots] = 0.009
    doubt[spots[3]] = 0.004
    told = Doubts(windows=doubt, golden=np.ones(1, np.float32), golden_probability=np.ones((1, 2), np.float32))
    monkeypatch.setattr("training.glance.doubts_of", lambda folder, patches: told)
    _, before = add_glance(bundle, small.run, [data], tmp_path / "before", version="1.1", lost=0.0)
    assert before.doubt_min == pytest.approx(0.004)
    assert before.found == len(spots)

    other, name = shutil.copytree(data, tmp_path / "other"), patches.names[spots[3]]
    rows = (data / "labels.csv").read_text().splitlines()
    none = [f"{name},0,0" if row.startswith(f"{name},") else row for row in rows]
    (other / "labels.csv").write_text("\n".join(none) + "\n")
    _, after = add_glance(bundle, small.run, [other], tmp_path / "after", version="1.1", lost=0.0)
    assert after.doubt_min == pytest.approx(0.009)
    assert after.found == len(spots) - 1


def test_it_is_chosen_again_and_again(data: Path, small: Config, made: Path, tmp_path: Path) -> None:
    again, _ = add_glance(made, small.run, [data], tmp_path / "new", version="1.2", lost=LOST)
    assert again.glance == Manifest.read(made).glance
    assert (tmp_path / "new" / "MODEL_CARD.md").read_text().count("## Glance") == 1


def test_what_does_not_fit_is_refused(bundle: Path, data: Path, small: Config, tmp_path: Path) -> None:
    out = tmp_path / "new"
    with pytest.raises(ValueError, match="needs another one"):
        add_glance(bundle, small.run, [data], out, version="1.0.0", lost=LOST)
    with pytest.raises(ValueError, match="exists"):
        add_glance(bundle, small.run, [data], bundle, version="2", lost=LOST)
    with pytest.raises(ValueError, match="has learnt from"):
        add_glance(bundle, small.run, small.data.folders, out, version="2", lost=LOST)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_tells_what_it_clears(bundle: Path, data: Path, small: Config, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", "glance", str(bundle), "--by", str(small.run), "--lost", str(LOST)]
    command += ["--data", str(data), "--version", "1.1", "--out", str(tmp_path / "new")]
    done = subprocess.run([*command, "--json", str(tmp_path / "f.json")], capture_output=True, text=True, check=True)
    assert "tiny 1.1" in done.stdout
    assert "in which a defect is found among them" in " ".join(done.stdout.split())
    chosen = json.loads((tmp_path / "f.json").read_text())
    assert parse((tmp_path / "new" / "manifest.json").read_bytes()).glance == Glance(doubt_min=chosen["doubt_min"])
    shutil.rmtree(tmp_path / "new")


# --- the limit ---------------------------------------------------------------------------------------

DOUBTS = hnp.arrays(np.float32, st.integers(2, 60), elements=st.floats(0, 1, width=32))


@given(doubt=DOUBTS, data=st.data(), lost=st.floats(0, 0.5))
def test_the_limit_loses_no_more_than_its_share_and_none_is_higher(
    doubt: np.ndarray, data: st.DataObject, lost: float
) -> None:
    found_NL = data.draw(hnp.arrays(np.bool_, (len(doubt), 2)))
    screens = data.draw(hnp.arrays(np.int64, len(doubt), elements=st.integers(0, 9)))
    defect = found_NL.any(axis=1)
    may = int(lost * defect.sum() + 1e-9)  # of k in n, k, though k / n * n may be less
    try:
        found = choose(doubt, found_NL, screens, lost=lost)
    except ValueError:
        # nothing to choose by, or the lowest doubt that must not be cleared is the lowest of all
        assert not defect.any() or np.sort(doubt[defect])[may] == doubt.min()
        return
    assert found.found == defect.sum()
    assert found.cleared == (doubt < found.doubt_min).sum() > 0
    assert found.lost == (doubt[defect] < found.doubt_min).sum() <= may
    # any higher limit would lose one more than may be
    assert (doubt[defect] <= found.doubt_min).sum() > may
    labels, left = set(), set()
    for window, label in np.argwhere(found_NL):
        labels.add((screens[window], label))
        if doubt[window] >= found.doubt_min:
            left.add((screens[window], label))
    assert (found.screen_labels, found.screen_labels_lost) == (len(labels), len(labels - left))
    on, seen = ({screen for screen, _ in pairs} for pairs in (labels, left))
    assert (found.screens, found.screens_lost) == (len(on), len(on - seen))


def test_what_a_bundle_looks_at_again_tells_something() -> None:
    manifest = fake_manifest(("bubble",))
    (low, _) = manifest.labels["bubble"].review
    scores = np.array([[0.04], [0.06], [low]], np.float32)
    assert telling(scores, manifest)[:, 0].tolist() == [False, False, True]
    looking = replace(manifest, second_look=SecondLook(score_min=0.05, ratio_max=0.5))
    assert telling(scores, looking)[:, 0].tolist() == [False, True, True]
