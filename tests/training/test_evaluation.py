import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils.data import default_collate

from engine import NO_TURNED_LOOK, FakeBackend, TurnedLook, fake_manifest
from tests.training.data_form import write_screens
from training.augment import Augment
from training.config import Augmentation
from training.cutting import cut
from training.datasets import Batch, PatchSet, balanced_order, refuse_known, refuse_leaks, screen_batches
from training.evaluation import bundle_probability, by_image, evaluate, fitting_patches, groups, report
from training.measures import wilson
from training.reliability import calibration_error, reliability


def test_macro_figures_are_those_of_the_paper() -> None:
    """F of the averaged P and R, not the mean of the labels' F; unknown entries take no part."""
    probability = np.array([[0.9, 0.8], [0.6, 0.4], [0.2, 0.9], [0.7, 0.1]], np.float32)
    target = np.array([[1, 1], [0, 1], [0, -1], [1, 0]], np.int8)
    found = report(probability, target, labels=["a", "b"], thresholds=[0.5, 0.5])
    a, b = found.per_label["a"], found.per_label["b"]
    assert (a.precision, a.recall, a.accuracy) == pytest.approx((2 / 3, 1, 3 / 4))
    assert (b.precision, b.recall, b.accuracy) == pytest.approx((1, 1 / 2, 2 / 3))
    precision, recall = (2 / 3 + 1) / 2, (1 + 1 / 2) / 2
    assert found.precision == pytest.approx(precision)
    assert found.recall == pytest.approx(recall)
    assert found.f_measure == pytest.approx(2 * precision * recall / (precision + recall))
    assert found.f_measure != pytest.approx((a.f_measure + b.f_measure) / 2)
    assert (b.positives, b.negatives) == (2, 1)


@given(seed=st.integers(0, 2**32 - 1), patches=st.integers(1, 12), labels=st.integers(1, 3))
def test_the_report_is_what_a_loop_counts(seed: int, patches: int, labels: int) -> None:
    """Every figure of every label, and their means over the labels that a known patch has."""
    rng = np.random.default_rng(seed)
    probability = (rng.integers(0, 11, (patches, labels)) / 10).astype(np.float32)  # many as high as a threshold
    target = rng.integers(-1, 2, (patches, labels)).astype(np.int8)
    thresholds = rng.integers(1, 10, labels) / 10
    names = ["a", "b", "c"][:labels]
    found = report(probability, target, labels=names, thresholds=thresholds.tolist())
    means: dict[str, list[float]] = {"accuracy": [], "precision": [], "recall": []}
    for column, name in enumerate(names):
        counts = {(said, is_so): 0 for said in (True, False) for is_so in (True, False)}
        for patch in range(patches):
            if target[patch, column] >= 0:
                said = float(probability[patch, column]) >= thresholds[column]
                counts[said, bool(target[patch, column])] += 1
        tp, fp, fn, tn = (counts[key] for key in ((True, True), (True, False), (False, True), (False, False)))
        one = found.per_label[name]
        assert (one.positives, one.negatives) == (tp + fn, fp + tn)
        assert one.accuracy == pytest.approx((tp + tn) / max(1, tp + tn + fp + fn))
        assert one.precision == pytest.approx(tp / max(1, tp + fp))
        assert one.recall == pytest.approx(tp / max(1, tp + fn))
        assert one.f_measure == pytest.approx(2 * tp / max(1, 2 * tp + fp + fn))
        assert one.precision_interval == wilson(tp, tp + fp)[3:]
        assert one.recall_interval == wilson(tp, tp + fn)[3:]
        known = target[:, column] >= 0
        known_and_so = probability[known, column], target[known, column] == 1
        assert one.reliability == reliability(*known_and_so)
        assert one.calibration_error == calibration_error(*known_and_so)
        if one.positives:
            for figure, of_labels in means.items():
                of_labels.append(getattr(one, figure))
    for figure, of_labels in means.items():
        assert getattr(found, figure) == pytest.approx(sum(of_labels) / max(1, len(of_labels)))
    p, r = found.precision, found.recall
    assert found.f_measure == pytest.approx(2 * p * r / (p + r) if p + r else 0)
    assert found.patches == patches


def test_a_score_is_held_against_its_threshold_in_double_precision() -> None:
    """As the service does: 0.7 in single precision is a little less than 0.7, and 0.1 a little more than 0.1."""
    probability = np.array([[0.7, 0.1, 0.5]], np.float32)
    found = report(probability, np.ones((1, 3), np.int8), labels=["a", "b", "c"], thresholds=[0.7, 0.1, 0.5])
    assert [found.per_label[label].recall for label in "abc"] == [0, 1, 1]


def test_each_label_has_its_own_threshold() -> None:
    probability = np.array([[0.4, 0.4]], np.float32)
    found = report(probability, np.array([[1, 1]], np.int8), labels=["a", "b"], thresholds=[0.3, 0.5])
    assert [found.per_label[label].recall for label in ("a", "b")] == [1, 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("data")
    cut(write_screens(base / "source"), base / "cut", patch_px=128)
    return base / "cut"


def test_a_label_that_no_patch_has_takes_no_part_in_the_macro() -> None:
    probability = np.array([[0.9, 0.9], [0.1, 0.1]], np.float32)
    target = np.array([[1, 0], [0, 0]], np.int8)
    found = report(probability, target, labels=["dot", "line"], thresholds=[0.5, 0.5])
    assert (found.precision, found.recall, found.f_measure) == (1, 1, 1)
    assert found.per_label["line"].precision == 0


@pytest.mark.parametrize("group", ["screen", "single", "batch:7"])
def test_groups_hold_every_patch_once(folder: Path, group: str) -> None:
    patches = PatchSet([folder], None)
    found = groups(patches, group)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(patches)))
    if group == "screen":
        assert all(len(set(patches.screens[g].tolist())) == 1 for g in found)
    if group == "single":
        assert {len(g) for g in found} == {1}
    if group == "batch:7":
        assert {len(g) for g in found[:-1]} == {7}
        drawn = np.concatenate(found).tolist()
        assert drawn != sorted(drawn)  # shuffled, and alike every time
        assert drawn == np.concatenate(groups(patches, group)).tolist()


@pytest.mark.parametrize(("labels", "patch_px"), [(("line", "dot"), 128), (("dot", "line"), 64)])
def test_patches_that_a_bundle_does_not_know_are_refused(folder: Path, labels: tuple[str, ...], patch_px: int) -> None:
    fitting = fake_manifest(("dot", "line"), patch_px=128, batch_size=1)
    assert len(fitting_patches(fitting, [folder], part="test")) == len(PatchSet([folder], "test"))
    with pytest.raises(ValueError, match="the bundle knows"):
        fitting_patches(fake_manifest(labels, patch_px=patch_px, batch_size=1), [folder], part="test")


@pytest.mark.parametrize("group", ["batch", "batch:0", "batch:x", "line"])
def test_an_unknown_group_is_refused(folder: Path, group: str) -> None:
    with pytest.raises(ValueError, match="--group"):
        groups(PatchSet([folder], None), group)


@pytest.mark.parametrize("group", ["screen", "single", "batch:7"])
def test_whole_screens_alone_are_looked_at_turned(folder: Path, group: str) -> None:
    """As the service does, by a backend that sees whether the left of a patch is brighter than its right."""
    look = TurnedLook(score_min=0.0, score_max=1.0, ratio_max=1.0)
    manifest = replace(fake_manifest(("dot", "line"), patch_px=128, batch_size=50), turned_look=look)

    def brighter(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        apart = pixels[..., :64].mean(axis=(1, 2, 3)) - pixels[..., 64:].mean(axis=(1, 2, 3))
        return np.repeat(1 / (1 + np.exp(-10 * apart))[:, None], 2, axis=1)

    backend, patches = FakeBackend(manifest, brighter), PatchSet([folder], "test")
    thresholds = [limits.threshold for limits in manifest.labels.values()]
    turned, once = (
        report(
            bundle_probability(backend, patches, group=group, look=one),
            patches.labels,
            labels=patches.label_names,
            thresholds=thresholds,
        )
        for one in (look, NO_TURNED_LOOK)
    )
    assert turned.per_label != once.per_label
    found = evaluate(backend, [folder], part="test", group=group)
    assert found.per_label == (turned if group == "screen" else once).per_label


def test_a_defect_at_its_threshold_is_found_in_its_band_too(folder: Path) -> None:
    manifest = fake_manifest(("dot", "line"), patch_px=128, batch_size=50)
    at = np.array([limits.threshold for limits in manifest.labels.values()])
    backend = FakeBackend(manifest, lambda pixels: np.tile(at, (len(pixels), 1)))
    found = evaluate(backend, [folder], part="test", group="screen")
    assert found.recall == 1
    shares = [share for of_kind in found.bands.values() for bands in of_kind.values() for share in bands.values()]
    assert shares
    assert all(share.hits == share.total > 0 for share in shares)


@given(st.data())
def test_an_image_has_what_one_of_its_patches_has(data: st.DataObject) -> None:
    patches = data.draw(st.integers(1, 8))
    screens = np.array(data.draw(st.lists(st.integers(0, 3), min_size=patches, max_size=patches)))
    target = np.array([data.draw(st.tuples(*[st.sampled_from([-1, 0, 1])] * 2)) for _ in screens], np.int8)
    score = np.array([data.draw(st.tuples(*[st.floats(0, 1, width=32)] * 2)) for _ in screens], np.float32)
    images = sorted(set(screens.tolist()))
    highest, has = by_image(score, target, [np.flatnonzero(screens == image) for image in images])
    assert highest.shape == has.shape == (len(images), 2)
    for row, image in enumerate(images):
        for label in range(2):
            of_image = [k for k in range(patches) if screens[k] == image]
            known = [int(target[k, label]) for k in of_image]
            assert highest[row, label] == max(score[k, label] for k in of_image)
            assert has[row, label] == (1 if 1 in known else -1 if -1 in known else 0)


def test_a_folder_without_a_defect_can_be_measured(tmp_path: Path) -> None:
    source = write_screens(tmp_path / "source")
    header = (source / "boxes.csv").read_text().splitlines()[0]
    (source / "boxes.csv").write_text(header + "\n")
    shutil.rmtree(source / "masks")
    cut(source, tmp_path / "cut", patch_px=128, labels=("dot", "line"))
    _, labels, maps, *_ = PatchSet([tmp_path / "cut"], "test")[0]
    assert not labels.any()
    assert not maps.any()


def test_a_screen_is_not_learnt_from_here_and_judged_by_there(tmp_path: Path) -> None:
    source = write_screens(tmp_path / "source")
    cut(source, tmp_path / "large", patch_px=128)
    cut(source, tmp_path / "small", patch_px=64)
    refuse_leaks([tmp_path / "large", tmp_path / "small", tmp_path / "large"])
    parts = (tmp_path / "small" / "splits.csv").read_text()
    (tmp_path / "small" / "splits.csv").write_text(parts.replace("t004,test", "t004,train"))
    with pytest.raises(ValueError, match="t004"):
        refuse_leaks([tmp_path / "large", tmp_path / "small"])


def test_a_screen_is_known_by_its_pixels(tmp_path: Path) -> None:
    """Not by what its folder is called; that is all there is of folders that were cut by an earlier version."""
    first, other = write_screens(tmp_path / "a" / "data"), write_screens(tmp_path / "b" / "data", seed=1)
    shutil.copytree(first, tmp_path / "renamed")
    for name, source in (("first", first), ("other", other), ("copy", tmp_path / "renamed")):
        cut(source, tmp_path / name, patch_px=128)
    refuse_known([tmp_path / "other"], [tmp_path / "first"])  # of the same names, and other screens
    refuse_leaks([tmp_path / "first", tmp_path / "copy"])
    with pytest.raises(ValueError, match=r"copy: screen t000 of renamed is known already.*leave it out"):
        refuse_known([tmp_path / "copy"], [tmp_path / "first"])
    parts = (tmp_path / "copy" / "splits.csv").read_text()
    (tmp_path / "copy" / "splits.csv").write_text(parts.replace("t004,test", "t004,train"))
    with pytest.raises(ValueError, match="t004"):
        refuse_leaks([tmp_path / "first", tmp_path / "copy"])

    facts = json.loads((tmp_path / "other" / "cut.json").read_text())
    del facts["screens"]
    (tmp_path / "other" / "cut.json").write_text(json.dumps(facts))
    for folders in (["other", "first"], ["first", "other"]):
        with pytest.raises(ValueError, match="screen t000 of data is known already"):
            refuse_known([tmp_path / folders[0]], [tmp_path / folders[1]])


@pytest.mark.parametrize("batch", [4, 6, 8, 12])
def test_batches_of_whole_screens_are_no_more_patches_than_asked_for(folder: Path, batch: int) -> None:
    patches = PatchSet([folder], "train")
    for count in (10, 24, 40):
        sizes = [len(one) for one in screen_batches(patches, batch=batch, count=count, seed=0, epoch=0)]
        assert sum(sizes) <= max(count, sizes[0])
        assert sum(sizes) > count - 2 * batch - 4


def test_a_share_that_rounds_to_nothing_is_nothing() -> None:
    labels, same = np.eye(8, 2, dtype=np.int8), np.ones(8, np.float32)
    few = balanced_order(labels, positives=0.05, count=8, seed=0, epoch=0)
    hard = balanced_order(labels, positives=None, count=3, difficulty=same, hard=0.9, seed=0, epoch=0)
    assert (len(few), len(hard)) == (8, 3)


def test_one_label_is_told_as_well_as_several() -> None:
    probability = np.array([[0.9], [0.2], [0.8], [0.1], [0.7]], np.float32)
    target = np.array([[1], [1], [0], [0], [-1]], np.int8)
    found = report(probability, target, labels=["dot"], thresholds=[0.5])
    assert (found.precision, found.recall, found.accuracy) == (0.5, 0.5, 0.5)
    assert (found.per_label["dot"].positives, found.per_label["dot"].negatives) == (2, 2)


def test_a_patch_is_transformed_alike_whoever_draws_it(folder: Path) -> None:
    patches = PatchSet([folder], "train", transform=Augment(Augmentation(noise=3.0)))
    patches.seed = (1, 2)
    first = patches[3][0]
    torch.rand(5)  # what else was drawn changes nothing, nor does the patch change what else is drawn
    state = torch.random.get_rng_state()
    assert torch.equal(patches[3][0], first)
    assert torch.equal(torch.random.get_rng_state(), state)
    patches.seed = (1, 3)
    assert not torch.equal(patches[3][0], first)


def test_parts_share_no_screen(folder: Path) -> None:
    parts = {part: set(PatchSet([folder], part).screen_names) for part in ("train", "validation", "test")}
    assert not parts["train"] & parts["validation"]
    assert not parts["train"] & parts["test"]
    assert not parts["validation"] & parts["test"]
    assert all(parts.values())


def test_two_folders_are_one_set_with_screens_of_their_own(folder: Path) -> None:
    once, twice = PatchSet([folder], "test"), PatchSet([folder, folder], "test")
    assert len(twice) == 2 * len(once)
    assert len(twice.by_screen()) == 2 * len(once.by_screen())


def test_a_batch_holds_what_the_tables_say(folder: Path) -> None:
    patches = PatchSet([folder], "train")
    batch = Batch(*default_collate([patches[k] for k in range(5)]))
    assert batch.pixels.shape == (5, 1, 128, 128)
    assert batch.labels.tolist() == patches.labels[:5].tolist()
    assert batch.maps.shape == (5, 2, 4, 4)
    present = (batch.maps == 1).flatten(2).any(dim=2)
    assert (present == (batch.labels == 1)).all()


@pytest.mark.parametrize("world", [1, 2])
def test_balanced_epochs_have_the_share_and_divide_over_devices(folder: Path, world: int) -> None:
    labels = PatchSet([folder], "train").labels
    shares = [
        balanced_order(labels, positives=0.5, count=40, seed=0, epoch=3, rank=rank, world=world)
        for rank in range(world)
    ]
    drawn = [index for share in shares for index in share]
    assert len(drawn) == 40
    assert sum(bool((labels[index] == 1).any()) for index in drawn) == 20
    assert {len(share) for share in shares} == {40 // world}


def test_hard_patches_come_more_often_and_every_patch_comes(folder: Path) -> None:
    labels = PatchSet([folder], "train").labels
    difficulty = np.zeros(len(labels), np.float32)
    hard = [int(np.flatnonzero((labels == 1).any(axis=1))[0]), int(np.flatnonzero((labels != 1).all(axis=1))[0])]
    difficulty[hard] = 3.0
    count = 4 * len(labels)
    order = balanced_order(labels, positives=0.5, difficulty=difficulty, hard=0.5, count=count, seed=0, epoch=0)
    drawn = np.bincount(order, minlength=len(labels))
    assert drawn.sum() == count
    assert drawn.min() >= 1
    assert set(np.argsort(drawn)[-2:].tolist()) == set(hard)
    present = (labels == 1).any(axis=1)
    assert drawn[present].sum() == count // 2  # the share of patches with a defect is kept
    even = np.bincount(balanced_order(labels, positives=0.5, count=count, seed=0, epoch=0))
    assert (drawn[hard] > even[hard]).all()


def test_epochs_differ_and_repeat(folder: Path) -> None:
    labels = PatchSet([folder], "train").labels
    orders = [balanced_order(labels, positives=None, count=None, seed=0, epoch=epoch) for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == list(range(len(labels)))


def test_screens_are_never_divided(folder: Path) -> None:
    patches = PatchSet([folder], "train")
    whole = {tuple(indices.tolist()) for indices in patches.by_screen()}
    for batch in screen_batches(patches, batch=8, count=None, seed=0, epoch=0):
        assert len(batch) >= 8
        screens = patches.screens[batch]
        for number in set(screens.tolist()):
            assert tuple(i for i, s in zip(batch, screens, strict=True) if s == number) in whole
