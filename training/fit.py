"""The two phases of training: feature clustering, then graph reasoning end to end.

Each epoch draws its own seed, and each step and each patch of it its own, so a run that was killed anywhere and resumed
ends with the same weights as one that was not, however many processes load its data. (Where the data is resident, a
step's patches share the step's.)

Several devices share every batch. What compares patches, contrast and relations, is taken over all of their rows, and
what is averaged, over all of their known entries, so that the gradient is that of one device with the whole batch;
batch normalisation alone takes each device's share for itself.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader

from training import devices
from training.augment import Augment
from training.baselines import build_network
from training.config import Config, Phase
from training.datasets import BalancedSampler, Batch, PatchSet, ScreenBatches, collate, refuse_leaks
from training.evaluation import Report, report
from training.folder import MIXED, RunFolder, ending, mix_with_start, start_from
from training.inference import network_probability
from training.journal import Journal, epoch_progress
from training.losses import cooccurrence, known_bce, map_loss, patch_bce, supervised_contrast
from training.network import Network, Output
from training.record import begin_session, describe_data
from training.resident import Resident

PHASES = ("phase1", "phase2")
Batches = Callable[["Standing", list[list[int]]], Iterator[Batch]]  # of a phase, from where it stands
_AUGMENTATION = 1  # a stream of random numbers beside that of the network
UNSEEN = 0.7  # difficulty of a patch that was not seen yet: rather hard, so that all are seen soon


def fit(config: Config) -> Report:
    """Train both phases, resuming where `config.run` was left, and return the last validation figures.

    Raises:
        BeingTrainedError: another process is at it.
        ValueError: the run's folder was begun with another configuration, the data does not fit, the loss is no longer
            finite, or the GPU's memory is too small.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        fabric = devices.launch(config)
        with RunFolder(config.run).alone() if fabric.is_global_zero else nullcontext():
            return Run(config, fabric).finish()
    except torch.OutOfMemoryError as error:
        parts = "accumulate sends a batch through the trunk in parts (not of 'kssnet' and 'tdrg')"
        remedy = f"{parts}; data.resident = false leaves the patches outside"
        raise ValueError(f"the GPU's memory is too small ({error}): {remedy}") from error


@dataclass(slots=True)
class Standing:
    """How far a phase has come, and what goes with that besides weights."""

    epoch: int = 0  # that is learnt next, or is being learnt
    step: int = 0  # steps of it that are done
    best: float = -1.0  # highest validation F so far
    sums: dict[str, float] = field(default_factory=dict)  # of the parts of the loss over the steps done
    seconds: float = 0.0  # that they took


class Run:
    """One training run: its network, its data and how far it has come."""

    def __init__(self, config: Config, fabric: Fabric) -> None:
        self.config = config
        self.fabric = fabric
        self._gather, self._mean = partial(devices.gather, fabric), partial(devices.mean, fabric)
        self.folder = RunFolder(config.run)
        refuse_leaks(config.all_folders)
        with fabric.rank_zero_first():  # the first device decodes the pixels and begins the folder
            self.validation = PatchSet(config.data.folders, "validation")
            build_network(len(self.validation.label_names), config.network)  # what cannot be built begins no run
            self.folder.begin(config, self.validation.label_names)
            self.training = {name: self._training_set(getattr(config, name)) for name in PHASES}
        # how badly each patch was told when it was last seen, now and when the epoch was drawn; none has been seen yet
        self.difficulty = {name: np.full(len(patches), UNSEEN, np.float32) for name, patches in self.training.items()}
        self.drawn_by = {name: difficulty.copy() for name, difficulty in self.difficulty.items()}
        self.kept_at = time.monotonic()
        labels = self.validation.label_names
        fabric.seed_everything(config.seed, verbose=False)
        network = build_network(len(labels), config.network)
        if config.start is not None:
            start_from(network, config.start)
        self.network = network.to(memory_format=torch.channels_last)

    def _training_set(self, phase: Phase) -> PatchSet:
        folders = phase.folders or self.config.data.folders
        patches = PatchSet(folders, "train", transform=Augment(self.config.augmentation))
        if patches.label_names != self.validation.label_names:
            raise ValueError(f"{folders[0]} and {self.config.data.folders[0]} differ in labels")
        return patches

    def finish(self) -> Report:
        """Train what is left to train."""
        if self.folder.finished:
            self.network.load_state_dict(self.folder.load_weights(ending(self.config)))
            self.network.to(self.fabric.device)
            return self._validate(reason=True)
        if self.fabric.is_global_zero:
            data = describe_data(self.folder.data_id, self.validation, self.training)
            begin_session(self.config.run, seed=self.config.seed, data=data, fabric=self.fabric)
        last = self.folder.load_last()
        for number, name in enumerate(PHASES):
            if last is not None and PHASES.index(last["phase"]) > number:
                continue
            resumed = last if last is not None and last["phase"] == name else None
            self._run_phase(name, getattr(self.config, name), resumed)
            self.network.load_state_dict(self.folder.load_weights(name))
        if self.config.start_share:
            mix_with_start(self.network, self.config)
            self._save_weights(MIXED)
        found = self._validate(reason=True)
        if self.fabric.is_global_zero:
            self.folder.end(found)
        self.fabric.barrier()  # what comes after may read the folder
        return found

    def _run_phase(self, name: str, phase: Phase, resumed: dict[str, Any] | None) -> None:
        reason = name == "phase2"
        if resumed is None:
            self.network.begin_phase(name, cooccurrence(torch.from_numpy(self.training[name].labels)))
        if phase.freeze:
            self.network.keep_stage1()
        optimiser = _optimiser(self.network, phase)
        module, optimiser = self.fabric.setup(self.network, optimiser)
        at = Standing() if resumed is None else self._resume(name, optimiser, resumed)
        resident = self.config.data.resident and at.epoch < phase.epochs
        batches = self._resident_batches(name) if resident else partial(self._loaded_batches, name)
        with Journal(self.config.run, self.fabric.is_global_zero) as log:
            while at.epoch < phase.epochs:
                losses = self._epoch(module, optimiser, phase, name=name, at=at, batches=batches)
                began = time.monotonic()
                if phase.statistics:
                    self._measure_statistics(phase, name=name, at=at, batches=batches)
                devices.share_statistics(self.fabric, self.network)
                found = self._validate(reason=reason)
                at.seconds += time.monotonic() - began
                best = found.f_measure >= at.best  # of equals the later one, which has learnt longer
                at.best = max(at.best, found.f_measure)
                if best or phase.keep == "last":
                    self._save_weights(name)
                figures = {"accuracy": found.accuracy, "f_measure": found.f_measure, "seconds": at.seconds}
                log.write(name, at.epoch, {**losses, **figures})
                at = Standing(epoch=at.epoch + 1, best=at.best)
                self.drawn_by[name][:] = self.difficulty[name]
                self._save_last(name, at, optimiser)
        if phase.epochs == 0:
            self._save_weights(name)
        self.fabric.barrier()

    def _order(self, name: str, phase: Phase, epoch: int) -> list[list[int]]:
        """The batches of one epoch that are this device's, as indices of patches."""
        data, fabric, training = self.config.data, self.fabric, self.training[name]
        share = phase.batch // fabric.world_size
        if share * fabric.world_size != phase.batch:
            raise ValueError(f"{name}.batch = {phase.batch} does not divide over {fabric.world_size} devices")
        drawn = self._drawn(name, epoch, data.patches_per_epoch)
        if self._by_screen(name):
            return list(ScreenBatches(training, batch=share, **drawn))
        shuffled = BalancedSampler(
            training.labels, positives=data.positives, difficulty=self.drawn_by[name], hard=data.hard, **drawn
        )
        return _batched(shuffled, share)

    def _drawn(self, name: str, epoch: int, count: int | None) -> dict[str, Any]:
        """How this device's share of `count` patches is drawn, as samplers take it."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        return {"count": count, "seed": self._seed(name), "epoch": epoch, "rank": rank, "world": world}

    def _loaded_batches(self, name: str, at: Standing, order: list[list[int]]) -> Iterator[Batch]:
        """Batches that processes load and augment, on this device."""
        workers: dict[str, Any] = {"num_workers": self.config.data.workers}
        if self.config.data.workers:
            # forked, they share the memory-mapped pixels; other ways to start them would copy every one
            workers["multiprocessing_context"] = "fork"
        self.training[name].seed = (self._seed(name), at.epoch)
        for batch in DataLoader(self.training[name], batch_sampler=order, **workers, collate_fn=collate):
            yield Batch(*(self.fabric.to_device(getattr(batch, field.name)) for field in dataclasses.fields(Batch)))

    def _resident_batches(self, name: str) -> Batches:
        """Batches that are picked and augmented on this device, which holds the whole training part."""
        patches, fabric = self.training[name], self.fabric
        resident = Resident(patches, self.config.augmentation, fabric.device, visible=fabric.is_global_zero)

        def batches(at: Standing, order: list[list[int]]) -> Iterator[Batch]:
            for indices in order:  # `at` is a step further each time that one is asked for
                yield resident.batch(indices, seed=self._step_seed(name, at, _AUGMENTATION))

        return batches

    def _epoch(
        self,
        module: Any,  # noqa: ANN401 - Fabric's wrapper has no narrower type
        optimiser: Any,  # noqa: ANN401
        phase: Phase,
        *,
        name: str,
        at: Standing,
        batches: Batches,
    ) -> dict[str, float]:
        """What is left of one pass over the training part; mean of each part of the loss and the learning rate."""
        order = self._order(name, phase, at.epoch)
        steps = len(order)
        self.network.train()
        began = time.monotonic()
        with epoch_progress(visible=self.fabric.is_global_zero) as progress:
            text = f"{name} epoch {at.epoch + 1}/{phase.epochs}"
            task = progress.add_task(text, total=steps, completed=at.step, loss=float("nan"))
            for batch in batches(at, order[at.step :]):
                rate = _learning_rate(phase, step=at.epoch * steps + at.step, total=phase.epochs * steps)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                torch.manual_seed(self._step_seed(name, at))
                for key, value in self._step(module, optimiser, batch, name, at).items():
                    at.sums[key] = at.sums.get(key, 0.0) + value
                at.step += 1
                at.seconds, began = at.seconds + time.monotonic() - began, time.monotonic()
                progress.update(task, advance=1, loss=at.sums["loss"] / at.step)
                # after the last step the devices' statistics differ until they are shared
                if at.step < steps and time.monotonic() - self.kept_at >= 60 * self.config.checkpoint_minutes:
                    self._save_last(name, at, optimiser)
        rate = _learning_rate(phase, step=at.epoch * steps + steps - 1, total=phase.epochs * steps)
        return {**{key: value / steps for key, value in at.sums.items()}, "learning_rate": rate}

    def _measure_statistics(self, phase: Phase, *, name: str, at: Standing, batches: Batches) -> None:
        """Batch normalisation's statistics of shuffled patches at the weights of now (Wu and Johnson 2021, precise BN).

        Those of all batches, averaged as there: the variance lacks what the means of batches differ by, 1 % at 32.
        The running means are of the last batches alone. Where those are whole screens they may be of one or two, whose
        light is not that of the others: validation and the service would see with the eyes of the last screen.
        """
        world, patches = self.fabric.world_size, self.training[name]
        count = max(world, min(phase.statistics, len(patches)))
        shuffled = BalancedSampler(patches.labels, positives=None, **self._drawn(name, at.epoch, count))
        norms = [part for part in self.network.modules() if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d))]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean of all batches
        after = dataclasses.replace(at)  # steps of its own, which draw like none of the epoch
        with torch.no_grad(), self.fabric.autocast():
            for batch in batches(after, _batched(shuffled, phase.batch // world)):
                self.network(batch.pixels, reason=False)
                after.step += 1
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def _step(
        self,
        module: Any,  # noqa: ANN401
        optimiser: Any,  # noqa: ANN401
        batch: Batch,
        name: str,
        at: Standing,
    ) -> dict[str, float]:
        """Learn from one batch; the parts of its loss over all devices."""
        parts = self._losses(module, batch, name)
        loss = torch.stack(list(parts.values())).sum()
        means = self._mean(torch.stack([*parts.values(), loss]).detach()).tolist()
        if not math.isfinite(means[-1]):
            where = f"{name}, epoch {at.epoch + 1}, step {at.step}"
            raise ValueError(f"{where}: the loss is {means[-1]}; a lower {name}.learning_rate may keep it finite")
        self.fabric.backward(loss)
        optimiser.step()
        optimiser.zero_grad()
        return dict(zip((*parts, "loss"), means, strict=True))

    def _losses(self, module: Any, batch: Batch, name: str) -> dict[str, Tensor]:  # noqa: ANN401
        """The weighted parts of the loss of one batch."""
        weights = self.config.loss
        phase: Phase = getattr(self.config, name)
        reason, by_screen = name == "phase2", self._by_screen(name)
        gather = None if by_screen or self.fabric.world_size == 1 else self._gather
        output: Output = module(
            batch.pixels,
            reason=reason,
            group_N=batch.screens if by_screen else None,
            gather=gather,
            parts=phase.accumulate,
        )
        self._note_difficulty(name, batch, output)
        parts: dict[str, Tensor] = {}
        bce = partial(known_bce, target=batch.labels, negative_focus=weights.negative_focus, device_mean=self._mean)
        stage1 = sum(map(bce, output.auxiliary), bce(output.logit_NL))
        if output.score_NL is None:
            parts["bce"] = stage1
            if weights.contrast:
                features, labels = self._gather(output.feature_NLF), self._gather(batch.labels)
                contrast = supervised_contrast(features, labels, temperature=weights.temperature)
                parts["contrast"] = weights.contrast * contrast
        else:
            parts["bce"] = (stage1 + bce(output.score_NL)) / 2
        if weights.map and output.map_NLHW is not None:
            parts["map"] = weights.map * map_loss(
                output.map_NLHW,
                batch.maps,
                positive_weight=weights.map_positive_weight,
                device_mean=self._mean,
            )
        return parts

    def _note_difficulty(self, name: str, batch: Batch, output: Output) -> None:
        """Remember how badly each patch was told; every device hears of all, so that they draw the same order."""
        if not self.config.data.hard or self._by_screen(name):  # whole screens are drawn evenly
            return
        deciding = output.logit_NL if output.score_NL is None else output.score_NL
        indices, loss = batch.indices, patch_bce(deciding.detach(), batch.labels)
        self.difficulty[name][self._gather(indices).cpu().numpy()] = self._gather(loss).cpu().numpy()

    def _by_screen(self, name: str) -> bool:
        return name == "phase2" and self.config.relations == "screen"

    def _seed(self, name: str) -> int:
        return self.config.seed * 2 + (name == "phase2")

    def _step_seed(self, name: str, at: Standing, *stream: int) -> int:
        """What a step draws, as dropout does, hangs on nothing that came before; each device draws its own."""
        numbers = [self._seed(name), at.epoch, at.step, self.fabric.global_rank, *stream]
        return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])

    def _validate(self, *, reason: bool) -> Report:
        """Figures on the validation part, patches of one screen reasoned together, at 0.5."""
        probability = network_probability(self.network, self.validation, self.fabric, reason=reason)
        labels = self.validation.label_names
        return report(probability, self.validation.labels, labels=labels, thresholds=[0.5] * len(labels))

    def _save_weights(self, name: str) -> None:
        if self.fabric.is_global_zero:
            self.folder.save_weights(name, self.network)

    def _save_last(self, name: str, at: Standing, optimiser: Any) -> None:  # noqa: ANN401
        """Keep what is needed to go on; every device has the same."""
        self.kept_at = time.monotonic()
        if not self.fabric.is_global_zero:
            return
        tensors = {
            "network": self.network.state_dict(),
            "optimiser": optimiser.state_dict(),
            "difficulty": torch.from_numpy(self.difficulty[name]),
            "drawn_by": torch.from_numpy(self.drawn_by[name]),
        }
        scale = self.fabric.strategy.precision.state_dict()  # of a loss in half precision
        self.folder.save_last({"phase": name, "standing": dataclasses.asdict(at), "scale": scale, **tensors})

    def _resume(self, name: str, optimiser: Any, last: dict[str, Any]) -> Standing:  # noqa: ANN401
        """Go on from what `_save_last` kept."""
        self.network.load_state_dict(last["network"])
        optimiser.load_state_dict(last["optimiser"])
        self.fabric.strategy.precision.load_state_dict(last["scale"])
        self.difficulty[name][:] = last["difficulty"].numpy()
        self.drawn_by[name][:] = last["drawn_by"].numpy()
        return Standing(**last["standing"])


def _batched(shuffled: BalancedSampler, share: int) -> list[list[int]]:
    """Whole batches of a device's share, or one of what there is."""
    return list(BatchSampler(shuffled, share, drop_last=len(shuffled) >= share))


def _optimiser(network: Network, phase: Phase) -> torch.optim.Optimizer:
    parameters = [p for p in network.parameters() if p.requires_grad]
    if phase.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=phase.learning_rate, weight_decay=phase.weight_decay)
    return torch.optim.SGD(parameters, lr=phase.learning_rate, momentum=phase.momentum, weight_decay=phase.weight_decay)


def _learning_rate(phase: Phase, *, step: int, total: int) -> float:
    """Linear warm-up, then constant, or held for a share of the steps and half a cosine down to zero."""
    if step < phase.warmup_steps:
        return phase.learning_rate * (step + 1) / phase.warmup_steps
    if phase.schedule == "constant":
        return phase.learning_rate
    done = (step - phase.warmup_steps) / max(1, total - phase.warmup_steps)
    fallen = max(0.0, done - phase.hold) / (1 - phase.hold)
    return phase.learning_rate * 0.5 * (1 + float(np.cos(np.pi * fallen)))
