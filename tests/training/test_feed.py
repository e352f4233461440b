"""What a phase is fed: draws of the same patch are images of their own."""

from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

from tests.training.data_form import write_toy
from training.augment import Augment
from training.config import Augmentation, read_config
from training.datasets import PatchSet
from training.feed import Feed


@pytest.mark.parametrize("hands", ["data.workers=0", "data.workers=1", "data.resident=true"])
def test_a_patch_that_is_drawn_again_is_another_image_and_a_resumed_epoch_draws_the_same(
    tmp_path: Path, hands: str
) -> None:
    toml = write_toy(tmp_path, screens=8)
    often = ["data.positives=0.9", "data.patches_per_epoch=96", "phase1.batch=16"]
    config = read_config(toml, [*often, hands, "augmentation.brightness=0.3"])
    patches = PatchSet(config.data.folders, "train", transform=Augment(config.augmentation))
    feed = Feed("phase1", patches, config, Fabric(accelerator="cpu", devices=1))
    feed.hold()
    order = feed.order(0)
    assert len({index for batch in order for index in batch}) < 96 / 2  # many are drawn twice or more
    batches = list(feed.batches(order, epoch=0, step=0))
    seen = torch.cat([batch.pixels for batch in batches]).flatten(1)
    assert len({bytes(one.numpy()) for one in seen}) == 96
    resumed = list(feed.batches(order[4:], epoch=0, step=4))
    assert all(torch.equal(one.pixels, other.pixels) for one, other in zip(resumed, batches[4:], strict=True))


def test_beside_a_defect_that_is_turned_freely_it_is_not_known_which_cell_has_it() -> None:
    maps = torch.zeros(1, 9, 9, dtype=torch.int8)
    maps[0, 4, 4] = 1
    torch.manual_seed(0)
    pixels = torch.zeros(1, 288, 288, dtype=torch.uint8)
    _, turned = Augment(Augmentation(flip=False, quarter_turns=False, brightness=0, contrast=0, rotation_degrees=45))(
        pixels, maps
    )
    assert (turned == 1).sum() == 1  # the middle stays
    assert (turned == -1).sum() == 8
    assert turned.dtype == torch.int8
