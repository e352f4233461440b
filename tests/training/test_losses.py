import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.losses import cooccurrence, known_bce, map_loss, patch_bce, supervised_contrast


def contrast_by_the_formula(feature: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Eq. 2 written with loops, anchor by anchor."""
    anchors = [(i, j) for i in range(target.shape[0]) for j in range(target.shape[1]) if target[i, j] == 1]
    unit = {a: feature[a] / feature[a].norm() for a in anchors}
    total = feature.sum() * 0
    for anchor in anchors:
        others = [a for a in anchors if a != anchor]
        positives = [a for a in others if a[1] == anchor[1]]
        for positive in positives:
            below = sum(torch.exp(unit[anchor] @ unit[a] / temperature) for a in others)
            total = total - torch.log(torch.exp(unit[anchor] @ unit[positive] / temperature) / below) / len(positives)
    return total / max(1, len(anchors))


def bce_by_the_formula(logit: Tensor, target: Tensor, positive_weight: float) -> Tensor:
    """Weighted mean of -log of what was told of each known entry, entry by entry."""
    total, weights = logit.sum() * 0, 0.0
    for x, y in zip(logit.flatten(), target.flatten().tolist(), strict=True):
        if y >= 0:
            weight = positive_weight if y else 1.0
            told = 1 / (1 + torch.exp(-x))
            total = total - weight * torch.log(told if y else 1 - told)
            weights += weight
    return total / weights if weights else total


def draw(seed: int, *shape: int, width: int = 0) -> tuple[Tensor, Tensor]:
    """Targets of a shape, and what is told of them in float64; of each by so many numbers where a width is given."""
    generator = torch.Generator().manual_seed(seed)
    told = torch.randn(*shape, *([width] if width else []), generator=generator, dtype=torch.float64)
    return told.requires_grad_(), torch.randint(-1, 2, shape, generator=generator, dtype=torch.int8)


def check_equal(found: Tensor, expected: Tensor, told: Tensor) -> None:
    """The same number and the same gradient, in double precision."""
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    gradients = [torch.autograd.grad(loss, told, retain_graph=True)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=1e-9)


@given(seed=st.integers(0, 10_000), patches=st.integers(1, 6), labels=st.integers(1, 4), heat=st.floats(0.05, 2))
def test_contrast_is_equation_2(seed: int, patches: int, labels: int, heat: float) -> None:
    feature, target = draw(seed, patches, labels, width=5)
    found = supervised_contrast(feature, target, temperature=heat)
    check_equal(found, contrast_by_the_formula(feature, target, heat), feature)


def test_the_temperature_of_the_contrast_is_the_papers() -> None:
    feature, target = draw(7, 6, 3, width=5)
    check_equal(supervised_contrast(feature, target), contrast_by_the_formula(feature, target, 0.1), feature)


def test_contrast_asks_for_no_length() -> None:
    feature, target = draw(7, 6, 3, width=5)
    length = torch.logspace(-3, 3, 6).double()[:, None, None]
    assert supervised_contrast(feature, target) > 1
    torch.testing.assert_close(supervised_contrast(length * feature, target), supervised_contrast(feature, target))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_half_precision_are_those_of_float32(dtype: torch.dtype) -> None:
    feature, target = draw(8, 6, 3, width=5)
    feature = feature.detach().to(dtype)
    for half, full in zip(*(every_loss(told, target) for told in (feature, feature.float())), strict=True):
        assert half.dtype == torch.float32
        assert torch.equal(half, full)


def every_loss(feature: Tensor, target: Tensor) -> list[Tensor]:
    logit = feature[..., 0]
    maps, cells = logit[..., None, None].expand(-1, -1, 2, 2), target[..., None, None].expand(-1, -1, 2, 2)
    entropies = [known_bce(logit, target), known_bce(logit, target, negative_focus=2.0), patch_bce(logit, target)]
    return [supervised_contrast(feature, target), map_loss(maps, cells), *entropies]


@given(seed=st.integers(0, 10_000), patches=st.integers(1, 6), labels=st.integers(1, 4), weight=st.floats(0.1, 9))
def test_known_entropy_is_its_formula(seed: int, patches: int, labels: int, weight: float) -> None:
    logit, target = draw(seed, patches, labels)
    check_equal(known_bce(logit, target, positive_weight=weight), bce_by_the_formula(logit, target, weight), logit)


def test_gradients_are_those_of_small_steps() -> None:
    feature, target = draw(3, 4, 3, width=5)
    assert ((target == 1).sum(dim=0) > 1).any()  # there are pairs
    assert torch.autograd.gradcheck(lambda x: supervised_contrast(x, target), feature)
    logit, target = draw(4, 4, 3)
    assert torch.autograd.gradcheck(lambda x: known_bce(x, target), logit)
    assert torch.autograd.gradcheck(lambda x: patch_bce(x, target), logit)
    maps, target = draw(5, 2, 3, 4, 4)
    assert torch.autograd.gradcheck(lambda x: map_loss(x, target), maps)


@given(seed=st.integers(0, 10_000), patches=st.integers(2, 6), labels=st.integers(2, 4))
def test_neither_the_order_of_patches_nor_of_labels_matters(seed: int, patches: int, labels: int) -> None:
    feature, target = draw(seed, patches, labels, width=5)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(patches, generator=generator), torch.randperm(labels, generator=generator)
    other, as_other = feature[rows][:, columns], target[rows][:, columns]
    torch.testing.assert_close(supervised_contrast(other, as_other), supervised_contrast(feature, target))
    torch.testing.assert_close(known_bce(other[..., 0], as_other), known_bce(feature[..., 0], target))


@given(seed=st.integers(0, 10_000), patches=st.integers(2, 8))
def test_means_of_shares_are_the_mean_of_all(seed: int, patches: int) -> None:
    """Two devices with unlike numbers of known entries, each told the mean of both numbers."""
    logit, target = draw(seed, patches, 3)
    shares = [slice(0, patches // 2), slice(patches // 2, patches)]
    weights = [torch.where(target[s] > 0, 4.0, 1.0).double() * (target[s] >= 0) for s in shares]
    mean = sum(weight.sum() for weight in weights) / 2
    assert isinstance(mean, Tensor)
    parts = [known_bce(logit[s], target[s], positive_weight=4, device_mean=lambda _: mean) for s in shares]
    check_equal((parts[0] + parts[1]) / 2, known_bce(logit, target, positive_weight=4), logit)
    maps, cells = logit[..., None, None], target[..., None, None]
    parts = [map_loss(maps[s], cells[s], positive_weight=4, device_mean=lambda _: mean) for s in shares]
    check_equal((parts[0] + parts[1]) / 2, map_loss(maps, cells, positive_weight=4), logit)


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


@given(seed=st.integers(0, 10_000), focus=st.sampled_from([0.0, 1.0, 2.5, 4.0]), weight=st.floats(0.1, 9))
def test_asymmetric_loss_is_the_one_written_out(seed: int, focus: float, weight: float) -> None:
    told, target = draw(seed, 6, 3)
    logit = told * 3
    total, weights = logit.sum() * 0, 0.0
    for x, t in zip(logit.flatten(), target.flatten().tolist(), strict=True):
        if t < 0:
            continue
        p = 1 / (1 + torch.exp(-x))
        weights += weight if t == 1 else 1
        if t == 1:
            total = total - weight * torch.log(p)
        elif not focus:
            total = total - torch.log(1 - p)
        elif p > 0.05:
            total = total - (p - 0.05) ** focus * torch.log(1 - (p - 0.05))
    check_equal(
        known_bce(logit, target, positive_weight=weight, negative_focus=focus), total / max(weights, 1e-6), told
    )


def test_a_sure_absent_label_is_no_loss_where_negatives_are_focused() -> None:
    logit = torch.tensor([[-4.0]], requires_grad=True)
    loss = known_bce(logit, torch.tensor([[0]]), negative_focus=2.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logit.grad is not None
    assert logit.grad.item() == 0


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (2, 4), (4, 2)])
def test_a_finer_map_counts_by_its_warmest_cells(rows: int, columns: int) -> None:
    logits, target = torch.randn(2, 3, rows, columns), torch.randint(-1, 2, (2, 3, 2, 2))
    warmest = logits.reshape(2, 3, 2, rows // 2, 2, columns // 2).amax(dim=(3, 5))
    torch.testing.assert_close(map_loss(logits, target), map_loss(warmest, target))
