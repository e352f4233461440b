"""What a phase learns from: which patches come in what order, as batches on the device.

All of it hangs on the run's seed, the phase, the epoch and the step, and on the device that has a share: not on what
came before, nor on how many processes load it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from training import devices
from training.config import Config, Phase
from training.datasets import Batch, PatchSet, balanced_order, screen_batches
from training.losses import patch_bce
from training.resident import Resident, refuse_too_large

UNSEEN = 0.7  # difficulty of a patch that was not seen yet: rather hard, so that all are seen soon
_AUGMENTATION = 1  # a stream of random numbers beside that of the network


class Feed:
    """The batches of one phase, this device's share of each.

    Args:
        name: of the phase.
        patches: the training part.
        config: of the run.
        fabric: of the devices that share every batch.
    """

    def __init__(self, name: str, patches: PatchSet, config: Config, fabric: Fabric) -> None:
        self.name = name
        self.patches = patches
        self.phase: Phase = getattr(config, name)
        self.by_screen = name == "phase2" and config.relations == "screen"
        # how badly each patch was told when it was last seen, now and when the epoch was drawn; none has been seen yet
        self.difficulty = np.full(len(patches), UNSEEN, np.float32)
        self._drawn_by = self.difficulty.copy()
        self._config = config
        self._fabric = fabric
        self._seed = config.seed * 2 + (name == "phase2")
        self._resident: Resident | None = None

    def refuse_unfit(self) -> None:
        """Refuse now what would end the run once the phase begins.

        Raises:
            ValueError: see `order`, and `Resident`.
        """
        if self.phase.epochs:
            self.order(0)
            if self._config.data.resident:
                refuse_too_large(self.patches, self._fabric.device)

    def hold(self) -> None:
        """Have the patches in the device's own memory, where `data.resident` says so."""
        if self._config.data.resident and self._resident is None:
            visible = self._fabric.is_global_zero
            self._resident = Resident(self.patches, self._config.augmentation, self._fabric.device, visible=visible)

    def release(self) -> None:
        """Let go of that memory."""
        self._resident = None

    def order(self, epoch: int) -> list[list[int]]:
        """The batches of one epoch that are this device's, as indices of patches.

        Raises:
            ValueError: the batches do not divide over the devices, or are fewer than these.
        """
        data, world, batch = self._config.data, self._fabric.world_size, self.phase.batch
        if batch % world:
            raise ValueError(f"{self.name}.batch = {batch} does not divide over {world} devices")
        drawn = self._drawn(epoch, data.patches_per_epoch)
        if self.by_screen:
            return screen_batches(self.patches, batch=batch // world, **drawn)
        shuffled = balanced_order(
            self.patches.labels, positives=data.positives, difficulty=self._drawn_by, hard=data.hard, **drawn
        )
        return self._batched(shuffled)

    def even_order(self, epoch: int, count: int) -> list[list[int]]:
        """The same of about `count` patches, each as likely as any other."""
        count = max(self._fabric.world_size, min(count, len(self.patches)))
        return self._batched(balanced_order(self.patches.labels, positives=None, **self._drawn(epoch, count)))

    def _drawn(self, epoch: int, count: int | None) -> dict[str, Any]:
        """How this device's share of `count` patches is drawn."""
        rank, world = self._fabric.global_rank, self._fabric.world_size
        return {"count": count, "seed": self._seed, "epoch": epoch, "rank": rank, "world": world}

    def _batched(self, shuffled: list[int]) -> list[list[int]]:
        """Whole batches of a device's share, or one of what there is."""
        share = self.phase.batch // self._fabric.world_size
        return list(BatchSampler(shuffled, share, drop_last=len(shuffled) >= share))

    def batches(self, order: list[list[int]], *, epoch: int, step: int) -> Iterator[Batch]:
        """Augmented batches on the device, from the step that the first of them is for."""
        if self._resident is not None:
            for number, indices in enumerate(order, step):
                yield self._resident.batch(indices, seed=self.step_seed(epoch, number, _AUGMENTATION))
            return
        workers: dict[str, Any] = {"num_workers": self._config.data.workers}
        if self._config.data.workers:
            # forked, they share the memory-mapped pixels; other ways to start them would copy every one
            workers["multiprocessing_context"] = "fork"
        self.patches.seed = (self._seed, epoch)
        # of a patch that an epoch draws several times each draw is another image, on whichever device
        rank, world = self._fabric.global_rank, self._fabric.world_size
        keys = [
            [(index, number, place * world + rank) for place, index in enumerate(indices)]
            for number, indices in enumerate(order, step)
        ]
        for rows in DataLoader(self.patches, batch_sampler=keys, **workers):
            yield Batch(*self._fabric.to_device(rows))

    def step_seed(self, epoch: int, step: int, *stream: int) -> int:
        """What a step draws, as dropout does, hangs on nothing that came before; each device draws its own."""
        numbers = [self._seed, epoch, step, self._fabric.global_rank, *stream]
        return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])

    def note_difficulty(self, batch: Batch, logit_NL: Tensor) -> None:
        """Remember how badly each patch was told; every device hears of all, so that they draw the same order."""
        if not self._config.data.hard or self.by_screen:  # whole screens are drawn evenly
            return
        indices, loss = batch.indices, patch_bce(logit_NL.detach(), batch.labels)
        places, told = (devices.gather(self._fabric, one).cpu().numpy() for one in (indices, loss))
        self.difficulty[places] = told

    def end_epoch(self) -> None:
        """The next one is drawn by what this one told."""
        self._drawn_by[:] = self.difficulty

    def state(self) -> dict[str, Tensor]:
        """What the order of epochs to come hangs on, besides the configuration."""
        return {"difficulty": torch.from_numpy(self.difficulty), "drawn_by": torch.from_numpy(self._drawn_by)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.difficulty[:] = state["difficulty"].numpy()
        self._drawn_by[:] = state["drawn_by"].numpy()
