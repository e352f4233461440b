"""The two phases of training: feature clustering, then graph reasoning end to end.

Each epoch draws its own seed, and each patch of it its own, so a run that was killed and resumed ends with the same
weights as one that was not, however many processes load its data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from training.augment import Augment
from training.config import Config, Phase
from training.datasets import BalancedSampler, Batch, PatchSet, ScreenBatches, collate, refuse_leaks
from training.evaluation import Report, report
from training.folder import RunFolder, mix_with_start, start_from
from training.journal import Journal, epoch_progress
from training.losses import cooccurrence, known_bce, map_loss, patch_bce, supervised_contrast
from training.network import Output, TwoStageNetwork

CHUNK = 8  # patches at a time: a whole screen of activations of a large trunk fits no memory
PHASES = ("phase1", "phase2")
UNSEEN = 0.7  # difficulty of a patch that was not seen yet: rather hard, so that all are seen soon


def fit(config: Config) -> Report:
    """Train both phases, resuming where `config.run` was left, and return the last validation figures.

    Raises:
        ValueError: the run's folder was begun with another configuration, or the data does not fit.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    # phase 1 leaves stage 2 without gradients, which plain DDP refuses
    strategy = "ddp_find_unused_parameters_true" if config.devices > 1 else "auto"
    fabric = Fabric(accelerator="auto", strategy=strategy, devices=config.devices, precision=config.precision)
    fabric.launch()
    return Run(config, fabric).finish()


class Run:
    """One training run: its network, its data and how far it has come."""

    def __init__(self, config: Config, fabric: Fabric) -> None:
        self.config = config
        self.fabric = fabric
        self.folder = RunFolder(config.run)
        refuse_leaks(config.all_folders)
        with fabric.rank_zero_first():  # the first device decodes the pixels and begins the folder
            self.validation = PatchSet(config.data.folders, "validation")
            self.folder.begin(config, self.validation.label_names)
            self.training = {name: self._training_set(getattr(config, name)) for name in PHASES}
        # how badly each patch was told when it was last seen; none has been seen yet
        self.difficulty = {name: np.full(len(patches), UNSEEN, np.float32) for name, patches in self.training.items()}
        labels = self.validation.label_names
        fabric.seed_everything(config.seed, verbose=False)
        network = TwoStageNetwork(len(labels), config.network)
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
        last = self.folder.load_last()
        if last is not None:
            self.network.load_state_dict(last["network"])
        for number, name in enumerate(PHASES):
            if last is not None and PHASES.index(last["phase"]) > number:
                continue
            resumed = last if last is not None and last["phase"] == name else None
            self._run_phase(name, getattr(self.config, name), resumed)
            self.network.load_state_dict(self.folder.load_weights(name))
        mix_with_start(self.network, self.config)
        found = self._validate(reason=True)
        if self.fabric.is_global_zero:
            self.folder.end(found)
        return found

    def _run_phase(self, name: str, phase: Phase, resumed: dict[str, Any] | None) -> None:
        reason = name == "phase2"
        if resumed is None and reason:
            self.network.reasoning.start_from(
                self.network.classifier1,
                cooccurrence(torch.from_numpy(self.training[name].labels)),
                self.config.network,
            )
        optimiser = _optimiser(self.network, phase)
        best = -1.0 if resumed is None else float(resumed["best"])
        first = 0 if resumed is None else int(resumed["epoch"]) + 1
        module, optimiser = self.fabric.setup(self.network, optimiser)
        if resumed is not None:
            self.network.load_state_dict(resumed["network"])
            optimiser.load_state_dict(resumed["optimiser"])
            self.difficulty[name][:] = resumed["difficulty"].numpy()
        batches = self._batches(name, phase)
        with Journal(self.config.run, self.fabric.is_global_zero) as log:
            for epoch in range(first, phase.epochs):
                self.fabric.seed_everything(self.config.seed * 1_000 + 500 * reason + epoch, verbose=False)
                losses = self._epoch(module, optimiser, batches(epoch), phase, name=name, epoch=epoch)
                found = self._validate(reason=reason)
                if found.f_measure > best:
                    best = found.f_measure
                    self._save_weights(name)
                self._save_last(name, epoch, best, optimiser)
                log.write(name, epoch, {**losses, "accuracy": found.accuracy, "f_measure": found.f_measure})
        if phase.epochs == 0:
            self._save_weights(name)
        self.fabric.barrier()

    def _batches(self, name: str, phase: Phase) -> Callable[[int], DataLoader[Any]]:
        data, fabric, training = self.config.data, self.fabric, self.training[name]
        by_screen = name == "phase2" and self.config.relations == "screen"
        share = phase.batch // fabric.world_size
        if share * fabric.world_size != phase.batch:
            raise ValueError(f"{name}.batch = {phase.batch} does not divide over {fabric.world_size} devices")
        # forked, they share the memory-mapped pixels; other ways to start them would copy every one
        workers: dict[str, Any] = {"num_workers": data.workers}
        if data.workers:
            workers["multiprocessing_context"] = "fork"

        def of_epoch(epoch: int) -> DataLoader[Any]:
            seed = self.config.seed * 2 + (name == "phase2")
            training.seed = (seed, epoch)
            if by_screen:
                whole = ScreenBatches(
                    training,
                    batch=share,
                    count=data.patches_per_epoch,
                    seed=seed,
                    epoch=epoch,
                    rank=fabric.global_rank,
                    world=fabric.world_size,
                )
                loader = DataLoader(training, batch_sampler=whole, **workers, collate_fn=collate)
            else:
                shuffled = BalancedSampler(
                    training.labels,
                    positives=data.positives,
                    difficulty=self.difficulty[name],
                    hard=data.hard,
                    count=data.patches_per_epoch,
                    seed=seed,
                    epoch=epoch,
                    rank=fabric.global_rank,
                    world=fabric.world_size,
                )
                loader = DataLoader(
                    training,
                    batch_size=share,
                    sampler=shuffled,
                    **workers,
                    collate_fn=collate,
                    drop_last=len(shuffled) >= share,
                )
            return loader

        return of_epoch

    def _epoch(
        self,
        module: Any,  # noqa: ANN401 - Fabric's wrapper has no narrower type
        optimiser: Any,  # noqa: ANN401
        batches: DataLoader[Any],
        phase: Phase,
        *,
        name: str,
        epoch: int,
    ) -> dict[str, float]:
        """One pass over the training part; mean of each part of the loss and the learning rate."""
        self.network.train()
        sums: dict[str, float] = {}
        steps = len(batches)
        rate = phase.learning_rate
        with epoch_progress(visible=self.fabric.is_global_zero) as progress:
            task = progress.add_task(f"{name} epoch {epoch + 1}/{phase.epochs}", total=steps, loss=float("nan"))
            for step, batch in enumerate(self._on_device(batches)):
                rate = _learning_rate(phase, step=epoch * steps + step, total=phase.epochs * steps)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                parts = self._losses(module, batch, name)
                loss = torch.stack(list(parts.values())).sum()
                if not torch.isfinite(loss):
                    raise FloatingPointError(f"{name}, epoch {epoch + 1}, step {step}: the loss is {loss.item()}")
                self.fabric.backward(loss)
                optimiser.step()
                optimiser.zero_grad()
                for key, value in {**parts, "loss": loss}.items():
                    sums[key] = sums.get(key, 0.0) + value.item()
                progress.update(task, advance=1, loss=loss.item())
        return {**{key: value / steps for key, value in sums.items()}, "learning_rate": rate}

    def _on_device(self, batches: DataLoader[Any]) -> Iterator[Batch]:
        for batch in batches:
            yield Batch(*(self.fabric.to_device(getattr(batch, field.name)) for field in dataclasses.fields(Batch)))

    def _losses(self, module: Any, batch: Batch, name: str) -> dict[str, Tensor]:  # noqa: ANN401
        """The weighted parts of the loss of one batch."""
        weights = self.config.loss
        reason = name == "phase2"
        by_screen = reason and self.config.relations == "screen"
        gather = None if by_screen or self.fabric.world_size == 1 else self._gather
        output: Output = module(
            batch.pixels, reason=reason, group_N=batch.screens if by_screen else None, gather=gather
        )
        self._note_difficulty(name, batch, output)
        parts: dict[str, Tensor] = {}
        stage1 = known_bce(output.logit_NL, batch.labels)
        if output.score_NL is None:
            parts["bce"] = stage1
            if weights.contrast:
                features, labels = output.feature_NLF, batch.labels
                if gather is not None:
                    features, labels = gather(features), gather(labels)
                contrast = supervised_contrast(features, labels, temperature=weights.temperature)
                parts["contrast"] = weights.contrast * contrast
        else:
            parts["bce"] = (stage1 + known_bce(output.score_NL, batch.labels)) / 2
        if weights.map and output.map_NLHW is not None:
            parts["map"] = weights.map * map_loss(
                output.map_NLHW, batch.maps, positive_weight=weights.map_positive_weight
            )
        return parts

    def _note_difficulty(self, name: str, batch: Batch, output: Output) -> None:
        """Remember how badly each patch was told; every device hears of all, so that they draw the same order."""
        by_screen = name == "phase2" and self.config.relations == "screen"
        if not self.config.data.hard or by_screen:  # whole screens are drawn evenly
            return
        deciding = output.logit_NL if output.score_NL is None else output.score_NL
        indices, loss = batch.indices, patch_bce(deciding.detach(), batch.labels)
        if self.fabric.world_size > 1:
            indices, loss = self._gather(indices), self._gather(loss)
        self.difficulty[name][indices.cpu().numpy()] = loss.cpu().numpy()

    def _gather(self, tensor: Tensor) -> Tensor:
        """The global batch, gradients included: relations and contrast are taken over all devices."""
        gathered = self.fabric.all_gather(tensor, sync_grads=tensor.is_floating_point())
        assert isinstance(gathered, Tensor)
        return gathered.flatten(0, 1)

    def _validate(self, *, reason: bool) -> Report:
        """Figures on the validation part, patches of one screen reasoned together, at 0.5."""
        probability = network_probability(self.network, self.validation, self.fabric, reason=reason)
        labels = self.validation.label_names
        return report(probability, self.validation.labels, labels=labels, thresholds=[0.5] * len(labels))

    def _save_weights(self, name: str) -> None:
        if self.fabric.is_global_zero:
            self.folder.save_weights(name, self.network)

    def _save_last(self, phase: str, epoch: int, best: float, optimiser: Any) -> None:  # noqa: ANN401
        state = {"phase": phase, "epoch": epoch, "best": best}
        tensors = {
            "network": self.network.state_dict(),
            "optimiser": optimiser.state_dict(),  # gathered from every device
            "difficulty": torch.from_numpy(self.difficulty[phase]),
        }
        if self.fabric.is_global_zero:
            self.folder.save_last({**state, **tensors})
        self.fabric.barrier()


def network_probability(
    network: TwoStageNetwork, patches: PatchSet, fabric: Fabric, *, reason: bool = True
) -> NDArray[np.float32]:
    """Probabilities (N, L) by the module; the arguments are those of `network_score`."""
    return torch.sigmoid(torch.from_numpy(network_score(network, patches, fabric, reason=reason))).numpy()


def network_score(
    network: TwoStageNetwork, patches: PatchSet, fabric: Fabric, *, reason: bool = True
) -> NDArray[np.float32]:
    """Scores (N, L) before the sigmoid by the module, the patches of one screen reasoned together.

    The trunk takes `CHUNK` patches at a time.
    """
    network.eval()
    score = np.zeros((len(patches), len(patches.label_names)), np.float32)
    screens = patches.by_screen()
    with torch.inference_mode(), fabric.autocast():
        for indices in track(screens, "probabilities", transient=True, disable=not fabric.is_global_zero):
            chunks = (
                fabric.to_device(torch.from_numpy(np.stack([patches.patch(int(i)) for i in chunk]))[:, None])
                for chunk in np.array_split(indices, -(-len(indices) // CHUNK))
            )
            score[indices] = _screen_score(network, chunks, reason=reason)
    return score


def _screen_score(network: TwoStageNetwork, chunks: Iterable[Tensor], *, reason: bool) -> NDArray[np.float32]:
    """Scores (K, L) of one screen, whose patches (n, 1, P, P) come some at a time and are reasoned together."""
    parts = [network(pixels, reason=False) for pixels in chunks]
    feature = torch.cat([p.feature_NLF for p in parts])
    cosine = torch.cat([p.cosine_NL for p in parts])
    logit = torch.cat([p.logit_NL for p in parts])
    score = network.reasoning(feature, cosine, logit, None) if reason else logit
    found: NDArray[np.float32] = score.float().cpu().numpy()
    return found


def _optimiser(network: TwoStageNetwork, phase: Phase) -> torch.optim.Optimizer:
    parameters = [p for p in network.parameters() if p.requires_grad]
    if phase.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=phase.learning_rate, weight_decay=phase.weight_decay)
    return torch.optim.SGD(parameters, lr=phase.learning_rate, momentum=phase.momentum, weight_decay=phase.weight_decay)


def _learning_rate(phase: Phase, *, step: int, total: int) -> float:
    """Linear warm-up, then constant or half a cosine down to zero."""
    if step < phase.warmup_steps:
        return phase.learning_rate * (step + 1) / phase.warmup_steps
    if phase.schedule == "constant":
        return phase.learning_rate
    done = (step - phase.warmup_steps) / max(1, total - phase.warmup_steps)
    return phase.learning_rate * 0.5 * (1 + float(np.cos(np.pi * done)))
