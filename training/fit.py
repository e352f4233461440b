"""The two phases of training: feature clustering, then graph reasoning end to end.

Each epoch draws its own seed, and each step and each patch of it its own, so a run that was killed anywhere and resumed
ends with the same weights as one that was not, however many processes load its data (see `training.feed`).

Several devices share every batch. What compares patches, contrast and relations, is taken over all of their rows, and
what is averaged, over all of their known entries, so that the gradient is that of one device with the whole batch;
batch normalisation alone takes each device's share for itself.
"""

import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import update_bn

from training import devices
from training.augment import Augment
from training.baselines import build_network, refuse_small_patches
from training.config import PHASES, Config, Phase
from training.datasets import Batch, PatchSet, refuse_leaks
from training.evaluation import Report, report
from training.feed import Feed
from training.folder import MIXED, RunFolder, ending, mix_with_start, start_from
from training.inference import network_probability
from training.journal import Journal, epoch_progress
from training.losses import cooccurrence, known_bce, map_loss, supervised_contrast
from training.network import Network, Output
from training.record import begin_session, describe_data

MEASURED = 512  # patches by which the lengths of label features are told


def fit(config: Config) -> Report:
    """Train both phases, resuming where `config.run` was left, and return the last validation figures.

    Raises:
        BeingTrainedError: another process is at it.
        DivergedError: the loss is no longer finite.
        ValueError: the run's folder was begun with another configuration, or the data does not fit the network, the
            devices or their memory.
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


class DivergedError(ValueError):
    """The loss is no longer finite."""


@dataclass(slots=True)
class Standing:
    """How far a phase has come, and what goes with that besides weights."""

    epoch: int = 0  # that is learnt next, or is being learnt
    step: int = 0  # steps of it that are done
    best: float = -1.0  # highest validation F so far
    kept: bool = False  # whether the phase keeps the weights of the epoch that ended last
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
        with fabric.rank_zero_first():  # the first device decodes the pixels
            self.validation = PatchSet(config.data.folders, "validation")
            # what cannot be trained begins no run: its folder would take no other configuration
            labels = self.validation.label_names
            training = {name: self._training_set(getattr(config, name)) for name in PHASES}
            for side in sorted({patches.patch_px for patches in (self.validation, *training.values())}):
                refuse_small_patches(len(labels), config.network, side)
            self.feeds = {name: Feed(name, patches, config, fabric) for name, patches in training.items()}
            for feed in self.feeds.values():
                feed.refuse_unfit()
            self.folder.refuse_start(config, labels)
        fabric.seed_everything(config.seed, verbose=False)
        network = build_network(len(labels), config.network)
        if config.start is not None:
            start_from(network, config.start, part=config.start_part)
        with fabric.rank_zero_first():
            self.folder.begin(config, labels)
        self.kept_at = time.monotonic()
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
            training = {name: feed.patches for name, feed in self.feeds.items()}
            data = describe_data(self.folder.data_id, self.config.data.folders, self.validation, training)
            begin_session(self.config.run, seed=self.config.seed, data=data, fabric=self.fabric)
        last = self.folder.load_last()
        for number, name in enumerate(PHASES):
            if last is not None and PHASES.index(last["phase"]) > number:
                continue
            resumed = last if last is not None and last["phase"] == name else None
            self._run_phase(self.feeds[name], resumed)
            self.network.load_state_dict(self.folder.load_weights(name))
        if self.config.start_share:
            mix_with_start(self.network, self.config)
            self._save_weights(MIXED)
        found = self._validate(reason=True)
        if self.fabric.is_global_zero:
            self.folder.end(found)
        self.fabric.barrier()  # what comes after may read the folder
        return found

    def _run_phase(self, feed: Feed, resumed: dict[str, Any] | None) -> None:
        name, phase = feed.name, feed.phase
        if resumed is None and phase.epochs:  # one that learns nothing leaves what a run starts from as it is
            asked = name == "phase2" and self.config.network.scores_from == "classifier1"
            lengths_L = self._feature_lengths(feed) if asked else None
            self.network.begin_phase(name, cooccurrence(torch.from_numpy(feed.patches.labels)), lengths_L)
        if phase.freeze:
            self.network.keep_stage1()
        module, optimiser = self.fabric.setup(self.network, _optimiser(self.network, phase))
        at = Standing() if resumed is None else self._resume(feed, optimiser, resumed)
        if at.kept and at.step == 0:  # a kill may have come before they were written
            self._save_weights(name)
        with Journal(self.config.run, self.fabric.is_global_zero) as log:
            while at.epoch < phase.epochs:
                feed.hold()
                losses = self._epoch(module, optimiser, feed, at)
                began = time.monotonic()
                if phase.statistics:
                    self._measure_statistics(feed, at)
                devices.share_statistics(self.fabric, self.network)
                found = self._validate(reason=name == "phase2")
                at.seconds += time.monotonic() - began
                figures = {"accuracy": found.accuracy, "f_measure": found.f_measure, "seconds": at.seconds}
                log.write(name, at.epoch, {**losses, **figures})
                # of equals the later one, which has learnt longer
                kept = phase.keep == "last" or found.f_measure >= at.best
                at = Standing(epoch=at.epoch + 1, best=max(at.best, found.f_measure), kept=kept)
                feed.end_epoch()
                self._save_last(feed, at, optimiser)
                if kept:  # only now: an epoch that is learnt again may end otherwise
                    self._save_weights(name)
        feed.release()
        if phase.epochs == 0:
            self._save_weights(name)
        self.fabric.barrier()

    def _epoch(
        self,
        module: Any,  # noqa: ANN401 - Fabric's wrapper has no narrower type
        optimiser: Any,  # noqa: ANN401
        feed: Feed,
        at: Standing,
    ) -> dict[str, float]:
        """What is left of one pass over the training part; mean of each part of the loss and the learning rate."""
        phase, order = feed.phase, feed.order(at.epoch)
        steps = len(order)
        self.network.train()
        began = time.monotonic()
        with epoch_progress(visible=self.fabric.is_global_zero) as progress:
            text = f"{feed.name} epoch {at.epoch + 1}/{phase.epochs}"
            task = progress.add_task(text, total=steps, completed=at.step, loss=float("nan"))
            for batch in feed.batches(order[at.step :], epoch=at.epoch, step=at.step):
                rate = _learning_rate(phase, step=at.epoch * steps + at.step, total=phase.epochs * steps)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                torch.manual_seed(feed.step_seed(at.epoch, at.step))
                for key, value in self._step(module, optimiser, batch, feed.name, at).items():
                    at.sums[key] = at.sums.get(key, 0.0) + value
                at.step += 1
                at.seconds, began = at.seconds + time.monotonic() - began, time.monotonic()
                progress.update(task, advance=1, loss=at.sums["loss"] / at.step)
                # after the last step the devices' statistics differ until they are shared
                if at.step < steps and time.monotonic() - self.kept_at >= 60 * self.config.checkpoint_minutes:
                    self._save_last(feed, at, optimiser)
        rate = _learning_rate(phase, step=at.epoch * steps + steps - 1, total=phase.epochs * steps)
        return {**{key: value / steps for key, value in at.sums.items()}, "learning_rate": rate}

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
            raise DivergedError(f"{where}: the loss is {means[-1]}; a lower {name}.learning_rate may keep it finite")
        self.fabric.backward(loss)
        optimiser.step()
        self.network.end_step()
        optimiser.zero_grad()
        return dict(zip((*parts, "loss"), means, strict=True))

    def _losses(self, module: Any, batch: Batch, name: str) -> dict[str, Tensor]:  # noqa: ANN401
        """The weighted parts of the loss of one batch."""
        weights, feed = self.config.loss, self.feeds[name]
        gather = None if feed.by_screen or self.fabric.world_size == 1 else self._gather
        output: Output = module(
            batch.pixels,
            reason=name == "phase2",
            group_N=batch.screens if feed.by_screen else None,
            gather=gather,
            parts=feed.phase.accumulate,
        )
        feed.note_difficulty(batch, output.logit_NL if output.score_NL is None else output.score_NL)
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

    def _feature_lengths(self, feed: Feed) -> Tensor:
        """Mean length of each label's features (L,), of shuffled training patches as stage 1 sees them."""
        feed.hold()
        network = self.network.to(self.fabric.device).eval()
        order = feed.even_order(0, MEASURED)
        with torch.no_grad(), self.fabric.autocast():
            # from the step after the epoch's last on: they draw like none of its own
            features = [
                network(batch.pixels, reason=False).feature_NLF.float()
                for batch in feed.batches(order, epoch=0, step=len(feed.order(0)))
            ]
        found: Tensor = self._mean(torch.cat(features).norm(dim=-1).mean(dim=0))
        return found

    def _measure_statistics(self, feed: Feed, at: Standing) -> None:
        """Batch normalisation's statistics of shuffled patches at the weights of now (Wu and Johnson 2021, precise BN).

        Those of all batches, averaged as there: the variance lacks what the means of batches differ by, 1 % at 32.
        The running means are of the last batches alone. Where those are whole screens they may be of one or two, whose
        light is not that of the others: validation and the service would see with the eyes of the last screen.
        """
        order = feed.even_order(at.epoch, feed.phase.statistics)
        # from the step after the epoch's last on: they draw like none of its own
        batches = feed.batches(order, epoch=at.epoch, step=at.step)
        with self.fabric.autocast():
            update_bn((batch.pixels for batch in batches), self.network)

    def _validate(self, *, reason: bool) -> Report:
        """Figures on the validation part, patches of one screen reasoned together, at 0.5."""
        probability = network_probability(self.network, self.validation, self.fabric, reason=reason)
        labels = self.validation.label_names
        return report(probability, self.validation.labels, labels=labels, thresholds=[0.5] * len(labels))

    def _save_weights(self, name: str) -> None:
        if self.fabric.is_global_zero:
            self.folder.save_weights(name, self.network)

    def _save_last(self, feed: Feed, at: Standing, optimiser: Any) -> None:  # noqa: ANN401
        """Keep what is needed to go on; every device has the same."""
        self.kept_at = time.monotonic()
        if not self.fabric.is_global_zero:
            return
        tensors = {"network": self.network.state_dict(), "optimiser": optimiser.state_dict(), **feed.state()}
        scale = self.fabric.strategy.precision.state_dict()  # of a loss in half precision
        self.folder.save_last({"phase": feed.name, "standing": asdict(at), "scale": scale, **tensors})

    def _resume(self, feed: Feed, optimiser: Any, last: dict[str, Any]) -> Standing:  # noqa: ANN401
        """Go on from what `_save_last` kept."""
        self.network.load_state_dict(last["network"])
        optimiser.load_state_dict(last["optimiser"])
        self.fabric.strategy.precision.load_state_dict(last["scale"])
        feed.restore(last)
        return Standing(**last["standing"])


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
