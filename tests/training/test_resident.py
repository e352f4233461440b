"""Patches in the device's memory: the same data as from the loader, augmented by draws of their own."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

from tests.training.data_form import TOML, write_screens
from training.augment import Augment, RandomGamma
from training.config import Augmentation, read_config
from training.cutting import cut
from training.datasets import Batch, PatchSet
from training.fit import fit
from training.resident import (
    _MIRRORED,
    _ROTATED,
    Resident,
    _moved,
    _moved_each,
    _relit,
    _relit_each,
    _turned,
    _turned_each,
    augment,
    refuse_too_large,
)

CPU = torch.device("cpu")
NOTHING = Augmentation(flip=False, quarter_turns=False, brightness=0, contrast=0, gamma=0)
PATCH, CELL = 96, 32


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> PatchSet:
    base = tmp_path_factory.mktemp("resident")
    cut(write_screens(base / "source", screens=20), base / "cut", patch_px=128)
    return PatchSet([base / "cut"], "train")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def marked(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches of noise with one brightest cell each, and maps that say which it is."""
    rng = np.random.default_rng(count)
    pixels = rng.integers(0, 100, (count, PATCH, PATCH), np.uint8)
    maps = np.zeros((count, 1, PATCH // CELL, PATCH // CELL), np.int8)
    for patch, cells in zip(pixels, maps, strict=True):
        row, column = rng.integers(0, PATCH // CELL, 2)
        patch[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] += 100
        cells[0, row, column] = 1
    return torch.from_numpy(pixels), torch.from_numpy(maps)


def brightest(pixels: torch.Tensor) -> torch.Tensor:
    """Cells (N, 1, h, w), 1 where a patch is brightest."""
    means = torch.nn.functional.avg_pool2d(pixels[:, None].float(), CELL)
    return (means == means.amax(dim=(2, 3), keepdim=True)).to(torch.int8)


def test_without_augmentation_a_batch_is_the_loaders(patches: PatchSet) -> None:
    indices = [7, 0, len(patches) - 1, 7]
    expected = Batch(*default_collate([patches[index] for index in indices]))
    found = Resident(patches, NOTHING, CPU).batch(indices, seed=3)
    for name in ("pixels", "labels", "maps", "screens", "indices"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
        assert getattr(found, name).dtype == getattr(expected, name).dtype, name


def test_the_seed_decides_a_batch(patches: PatchSet) -> None:
    resident = Resident(patches, Augmentation(noise=3), CPU)
    first, again, other = (resident.batch(range(6), seed=seed).pixels for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), flip=st.booleans(), turn=st.booleans(), strength=st.floats(0, 0.1))
def test_maps_stay_where_the_pixels_are(seed: int, flip: bool, turn: bool, strength: float) -> None:
    pixels, maps = marked(5)
    config = Augmentation(
        flip=flip, quarter_turns=turn, brightness=strength, contrast=strength, gamma=strength, noise=2
    )
    pixels, maps = augment(pixels, maps, config, generator(seed))
    assert torch.equal(brightest(pixels), maps)


def test_every_turn_and_mirror_image_is_drawn() -> None:
    one = torch.arange(16, dtype=torch.uint8).view(1, 4, 4)
    config = NOTHING.model_copy(update={"flip": True, "quarter_turns": True})
    pixels, _ = augment(one.repeat(400, 1, 1), torch.zeros(400, 1, 4, 4, dtype=torch.int8), config, generator(0))
    expected = {tuple(turned.flatten().tolist()) for k in range(4) for turned in (one.rot90(k, (1, 2)),)}
    expected |= {tuple(turned.flip(-1).flatten().tolist()) for k in range(4) for turned in (one.rot90(k, (1, 2)),)}
    drawn, counts = np.unique(pixels.flatten(1).numpy(), axis=0, return_counts=True)
    assert {tuple(row.tolist()) for row in drawn} == expected
    assert counts.min() > 25  # of 50 that are expected


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), side=st.integers(1, 9))
def test_a_cpu_moves_patches_and_their_light_as_a_gpu_does(seed: int, side: int) -> None:
    random = generator(seed)
    pixels = torch.randint(0, 256, (20, side, side), dtype=torch.uint8, generator=random)
    chosen = {turn: torch.rand(20, generator=random) < 0.5 for turn in (*_MIRRORED, *_ROTATED)}
    assert torch.equal(_turned_each(pixels, chosen), _turned(pixels, chosen))
    factors = [1 + 0.3 * (2 * torch.rand(20, generator=random) - 1) for _ in range(3)]
    apart = _relit_each(pixels, *factors).int() - _relit(pixels, *factors).int()
    assert apart.abs().max() <= 1  # the mean is of other sums


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), side=st.integers(8, 20), largest=st.integers(0, 7))
def test_a_shift_brings_in_the_mirror_image_on_every_device(seed: int, side: int, largest: int) -> None:
    random = generator(seed)
    pixels = torch.randint(0, 256, (10, side, side), dtype=torch.uint8, generator=random)
    down, right = torch.randint(-largest, largest + 1, (2, 10), generator=random)
    moved = _moved_each(pixels, down, right)
    assert torch.equal(moved, _moved(pixels, down, right))
    for before, after, rows, columns in zip(pixels, moved, down.tolist(), right.tolist(), strict=True):
        wide = np.pad(before.numpy(), largest, mode="reflect")
        top, left = largest - rows, largest - columns
        np.testing.assert_array_equal(after, wide[top : top + side, left : left + side])


@pytest.mark.parametrize("resident", [True, False])
def test_every_shift_is_drawn_and_none_beyond(resident: bool) -> None:
    config = NOTHING.model_copy(update={"shift": 2})
    pixels, maps = torch.zeros(500, 64, 64, dtype=torch.uint8), torch.zeros(500, 1, 2, 2, dtype=torch.int8)
    pixels[:, 30, 30], maps[:, :, 0, 0] = 255, 1
    if resident:
        moved, told = augment(pixels, maps, config, generator(0))
    else:
        torch.manual_seed(0)
        augmented = [Augment(config)(one[None], map_) for one, map_ in zip(pixels, maps, strict=True)]
        moved, told = torch.cat([one for one, _ in augmented]), torch.stack([map_ for _, map_ in augmented])
    assert torch.equal(told, maps)
    drawn, counts = np.unique(np.argwhere(moved.numpy())[:, 1:] - 30, axis=0, return_counts=True)
    assert {tuple(row) for row in drawn.tolist()} == {(a, b) for a in range(-2, 3) for b in range(-2, 3)}
    assert counts.sum() == 500
    assert counts.min() > 5  # of 20 that are expected


@pytest.mark.parametrize(
    ("key", "strength", "reference"),
    [
        ("brightness", 0.3, lambda grey, factor: np.clip(grey * factor, 0, 255)),
        ("contrast", 0.3, lambda grey, factor: np.clip((grey - grey.mean()) * factor + grey.mean(), 0, 255)),
        ("gamma", 0.3, lambda grey, exponent: 255 * (grey / 255) ** exponent),
    ],
)
def test_light_changes_as_it_says(
    key: str, strength: float, reference: Callable[[np.ndarray, float], np.ndarray]
) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 16, 16), np.uint8))
    changed, _ = augment(
        pixels, torch.zeros(40, 1, 1, 1, dtype=torch.int8), NOTHING.model_copy(update={key: strength}), generator(0)
    )
    strengths = []
    for before, after in zip(pixels.numpy(), changed.numpy(), strict=True):
        tried = np.linspace(1 - strength, 1 + strength, 601)
        errors = [np.abs(reference(before.astype(float), factor) - after).max() for factor in tried]
        assert min(errors) < 0.75  # half a level of rounding, and the step of what was tried
        strengths.append(tried[int(np.argmin(errors))])
    assert min(strengths) < 1 - 0.7 * strength
    assert max(strengths) > 1 + 0.7 * strength


def test_noise_is_of_the_strength_that_was_asked_for() -> None:
    grey = torch.full((60, 64, 64), 128, dtype=torch.uint8)
    config = NOTHING.model_copy(update={"noise": 4.0})
    changed, _ = augment(grey, torch.zeros(60, 1, 2, 2, dtype=torch.int8), config, generator(0))
    deviation = changed.float().std(dim=(1, 2))
    assert 3.6 < deviation.max() < 4.2
    assert deviation.min() < 0.6
    assert abs(changed.float().mean() - 128) < 0.05


def test_a_device_with_too_little_memory_is_said_to_have_it(patches: PatchSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 400)
    with pytest.raises(ValueError, match=r"data.resident: .* patches take .* GiB, and cuda has 0.0 free"):
        Resident(patches, NOTHING, torch.device("cuda"))


def test_what_torch_holds_of_a_phase_before_is_free(patches: PatchSet, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = len(patches) * patches.patch_px**2
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 2 * pixels))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * pixels)
    for allocated, enough in ((pixels // 2, True), (pixels, False)):
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device, allocated=allocated: allocated)
        if enough:
            refuse_too_large(patches, torch.device("cuda"))
        else:
            with pytest.raises(ValueError, match=r"set data.resident = false"):
                refuse_too_large(patches, torch.device("cuda"))


def test_a_machine_with_too_little_memory_is_said_to_have_it(
    patches: PatchSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 64)
    with pytest.raises(ValueError, match=r"and cpu has 0.0 free"):
        Resident(patches, NOTHING, CPU)


def test_brightness_and_contrast_go_together_as_the_loader_has_them() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(60, 140, (30, 16, 16), np.uint8))
    nowhere = torch.zeros(30, 1, 1, 1, dtype=torch.int8)
    config = NOTHING.model_copy(update={"brightness": 0.3, "contrast": 0.3})
    changed, _ = augment(pixels, nowhere, config, generator(0))
    random = generator(0)
    brightness, contrast = ((1 + 0.3 * (2 * torch.rand(30, generator=random) - 1)).tolist() for _ in range(2))
    for before, after, bright, far in zip(pixels, changed, brightness, contrast, strict=True):
        expected = v2.functional.adjust_contrast(v2.functional.adjust_brightness(before[None], bright), far)[0]
        assert (expected.int() - after.int()).abs().max() <= 2  # the loader rounds down, and after each of the two


def test_gamma_is_the_loaders() -> None:
    grey = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    config = NOTHING.model_copy(update={"gamma": 0.4})
    changed, _ = augment(grey, torch.zeros(1, 1, 1, 1, dtype=torch.int8), config, generator(5))
    random = generator(5)
    *_, share = (float(torch.rand(1, generator=random)) for _ in range(3))  # of brightness, contrast, gamma
    expected = RandomGamma(0.4).transform(tv_tensors.Image(grey), {"gamma": 1 + 0.4 * (2 * share - 1)})
    assert torch.equal(changed, expected)


def test_no_light_is_darker_than_black() -> None:
    grey = torch.full((200, 4, 4), 100, dtype=torch.uint8)
    config = NOTHING.model_copy(update={"brightness": 2.0, "noise": 3.0})
    changed, _ = augment(grey, torch.zeros(200, 1, 1, 1, dtype=torch.int8), config, generator(0))
    for level in (0, 255):  # noise neither wraps from black to white nor back
        flat = torch.full((200, 8, 8), level, dtype=torch.uint8)
        noisy, _ = augment(flat, torch.zeros(200, 1, 1, 1, dtype=torch.int8), config, generator(0))
        assert (noisy.int() - noisy.int().flatten(1).median(dim=1).values[:, None, None]).abs().max() < 20
    assert changed.float().mean(dim=(1, 2)).min() < 5
    assert changed.float().mean(dim=(1, 2)).max() > 200


def test_every_step_of_a_run_draws_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(write_screens(tmp_path / "source", screens=20), tmp_path / "cut", patch_px=128)
    (tmp_path / "toy.toml").write_text(TOML)
    words = [
        "run=run",
        "data.resident=true",
        "phase1.epochs=2",
        "phase2.epochs=2",
        "data.patches_per_epoch=24",
        "phase1.batch=8",
        "phase2.batch=8",
        "phase2.statistics=24",
    ]
    seeds: list[int] = []
    batch = Resident.batch

    def spied(self: Resident, indices: list[int], *, seed: int) -> Batch:
        seeds.append(seed)
        return batch(self, indices, seed=seed)

    monkeypatch.setattr(Resident, "batch", spied)
    config = read_config(tmp_path / "toy.toml", words)
    fit(config)
    assert len(seeds) >= 8 + 2 * 3  # those of the statistics, three batches an epoch of phase 2, as well
    assert len(set(seeds)) == len(seeds)
    monkeypatch.setattr(Resident, "__init__", None)  # a run that has ended copies nothing
    fit(config)


def test_free_rotation_is_refused(tmp_path: Path) -> None:
    (tmp_path / "toy.toml").write_text(TOML)
    with pytest.raises(ValueError, match="no free rotation"):
        read_config(tmp_path / "toy.toml", ["data.resident=true", "augmentation.rotation_degrees=5"])
