from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.losses import cooccurrence, known_bce, map_loss, patch_bce, supervised_contrast


def contrast_by_the_formula(feature: Tensor, target: Tensor, temperature: float) -> float:
    """Eq. 2 written with loops, anchor by anchor."""
    anchors = [(i, j) for i in range(target.shape[0]) for j in range(target.shape[1]) if target[i, j] == 1]
    unit = {a: feature[a] / feature[a].norm() for a in anchors}
    total = 0.0
    for anchor in anchors:
        others = [a for a in anchors if a != anchor]
        positives = [a for a in others if a[1] == anchor[1]]
        if not positives:
            continue
        below = sum(math.exp(float(unit[anchor] @ unit[a]) / temperature) for a in others)
        logs = [math.log(math.exp(float(unit[anchor] @ unit[p]) / temperature) / below) for p in positives]
        total += -sum(logs) / len(positives)
    return total / len(anchors) if anchors else 0.0


@given(seed=st.integers(0, 10_000), patches=st.integers(1, 6), labels=st.integers(1, 4))
def test_contrast_is_equation_2(seed: int, patches: int, labels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randn(patches, labels, 5, generator=generator)
    target = torch.randint(-1, 2, (patches, labels), generator=generator)
    expected = contrast_by_the_formula(feature, target, 0.1)
    assert supervised_contrast(feature, target).item() == pytest.approx(expected, abs=1e-3, rel=1e-3)


def test_contrast_falls_when_labels_cluster() -> None:
    target = torch.tensor([[1, 1], [1, 1], [1, 1]])
    mixed = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0))
    clustered = torch.eye(8)[:2].expand(3, 2, 8)
    assert supervised_contrast(clustered, target) < supervised_contrast(mixed, target)


@pytest.mark.parametrize(
    "target",
    [
        torch.zeros(3, 2, dtype=torch.int8),  # no active label at all
        -torch.ones(3, 2, dtype=torch.int8),  # nothing known
        torch.tensor([[1, 0], [0, 0], [0, 0]]),  # a label that is there once has no positive
    ],
)
def test_contrast_without_pairs_is_zero_with_a_gradient_path(target: Tensor) -> None:
    feature = torch.randn(3, 2, 4, requires_grad=True)
    loss = supervised_contrast(feature, target)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert feature.grad is not None
    assert feature.grad.abs().sum() == 0


def test_unknown_entries_take_no_part() -> None:
    target = torch.tensor([[1, 0, -1]])
    wrong = known_bce(torch.tensor([[2.0, -1.0, 50.0]]), target)
    right = known_bce(torch.tensor([[2.0, -1.0, -50.0]]), target)
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    assert wrong.item() == right.item() == pytest.approx(expected)


def test_nothing_known_gives_zero_with_a_gradient_path() -> None:
    logit = torch.randn(2, 3, requires_grad=True)
    loss = known_bce(logit, -torch.ones(2, 3))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0


def test_map_loss_weighs_cells_with_a_defect() -> None:
    logit = torch.zeros(1, 1, 1, 2)
    target = torch.tensor([[[[1, 0]]]])
    assert map_loss(logit, target, positive_weight=9).item() == pytest.approx(math.log(2))
    found = torch.tensor([[[[3.0, 0.0]]]])
    assert map_loss(found, target, positive_weight=9) < map_loss(found, target, positive_weight=1)


def test_cooccurrence_counts_pairs_that_are_both_present() -> None:
    target = torch.tensor([[1, 1, 0], [1, -1, 0], [1, 1, -1], [0, 0, 0]])
    assert cooccurrence(target).tolist() == [[3, 2, 0], [2, 2, 0], [0, 0, 0]]


@given(seed=st.integers(0, 10_000), patches=st.integers(1, 6), labels=st.integers(1, 4))
def test_the_loss_of_a_patch_is_that_of_its_known_labels(seed: int, patches: int, labels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logit = torch.randn(patches, labels, generator=generator)
    target = torch.randint(-1, 2, (patches, labels), generator=generator)
    found = patch_bce(logit, target)
    assert found.shape == (patches,)
    known = (target >= 0).sum(dim=1)
    for row in range(patches):
        expected = known_bce(logit[row], target[row]) * known[row]
        torch.testing.assert_close(found[row], expected)


@pytest.mark.parametrize("focus", [0.0, 1.0, 4.0])
def test_asymmetric_loss_is_the_one_written_out(focus: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logit = torch.randn(6, 3, generator=generator, dtype=torch.float64) * 3
    target = torch.randint(-1, 2, (6, 3), generator=generator)
    total, known = 0.0, 0
    for x, t in zip(logit.flatten().tolist(), target.flatten().tolist(), strict=True):
        if t < 0:
            continue
        known += 1
        p = 1 / (1 + math.exp(-x))
        if t == 1:
            total -= math.log(p)
        elif focus:
            shifted = max(p - 0.05, 0.0)
            total -= shifted**focus * math.log(1 - shifted)
        else:
            total -= math.log(1 - p)
    assert known_bce(logit, target, negative_focus=focus).item() == pytest.approx(total / known, rel=1e-5)


def test_a_sure_absent_label_is_no_loss_where_negatives_are_focused() -> None:
    logit = torch.tensor([[-4.0]], requires_grad=True)
    loss = known_bce(logit, torch.tensor([[0]]), negative_focus=2.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logit.grad is not None
    assert logit.grad.item() == 0
