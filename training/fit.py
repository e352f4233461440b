"""The two phases of training: feature clustering, then graph reasoning end to end.

A run's folder holds `config.json`, `labels.json`, `last.ckpt` (to resume), `phase1.safetensors` and
`phase2.safetensors` (best epoch of each phase by validation F), `metrics.csv` and TensorBoard events. Each epoch
draws its own seed, so a run that was killed and resumed ends with the same weights as one that was not.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from training.augment import Augment
from training.config import Config, Phase
from training.datasets import BalancedSampler, Batch, PatchSet, ScreenBatches, collate
from training.evaluation import Report, report
from training.losses import cooccurrence, known_bce, map_loss, supervised_contrast
from training.network import Output, TwoStageNetwork

CHUNK = 8  # patches at a time: a whole screen of activations of a large trunk fits no memory
PHASES = ("phase1", "phase2")


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
        with fabric.rank_zero_first():  # the first device decodes the pixels and begins the folder
            self.validation = PatchSet(config.data.folders, "validation")
            _open_folder(config, self.validation.label_names)
            self.training = {name: self._training_set(getattr(config, name)) for name in PHASES}
        labels = self.validation.label_names
        fabric.seed_everything(config.seed, verbose=False)
        network = TwoStageNetwork(len(labels), config.network)
        if config.start is not None:
            _start_from(network, config.start)
        self.network = network.to(memory_format=torch.channels_last)

    def _training_set(self, phase: Phase) -> PatchSet:
        folders = phase.folders or self.config.data.folders
        patches = PatchSet(folders, "train", transform=Augment(self.config.augmentation))
        if patches.label_names != self.validation.label_names:
            raise ValueError(f"{folders[0]} and {self.config.data.folders[0]} differ in labels")
        return patches

    def finish(self) -> Report:
        """Train what is left to train."""
        last = self._load_last()
        for number, name in enumerate(PHASES):
            if last is not None and PHASES.index(last["phase"]) > number:
                continue
            resumed = last if last is not None and last["phase"] == name else None
            self._run_phase(name, getattr(self.config, name), resumed)
            self.network.load_state_dict(load_file(self.config.run / f"{name}.safetensors"))
        return self._validate(reason=True)

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
        batches = self._batches(name, phase)
        with _Log(self.config.run, self.fabric.is_global_zero) as log:
            for epoch in range(first, phase.epochs):
                self.fabric.seed_everything(self.config.seed * 1_000 + 500 * reason + epoch, verbose=False)
                losses = self._epoch(module, optimiser, batches(epoch), phase, name=name, epoch=epoch)
                found = self._validate(reason=reason)
                log.write(name, epoch, {**losses, "accuracy": found.accuracy, "f_measure": found.f_measure})
                if found.f_measure > best:
                    best = found.f_measure
                    self._save_weights(name)
                self._save_last(name, epoch, best, optimiser)
        if phase.epochs == 0:
            self._save_weights(name)

    def _batches(self, name: str, phase: Phase) -> Callable[[int], DataLoader[Any]]:
        data, fabric, training = self.config.data, self.fabric, self.training[name]
        by_screen = name == "phase2" and self.config.relations == "screen"
        # forked, they share the memory-mapped pixels; other ways to start them would copy every one
        workers: dict[str, Any] = {"num_workers": data.workers}
        if data.workers:
            workers["multiprocessing_context"] = "fork"

        def of_epoch(epoch: int) -> DataLoader[Any]:
            seed = self.config.seed * 2 + (name == "phase2")
            if by_screen:
                whole = ScreenBatches(
                    training,
                    batch=phase.batch,
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
                    count=data.patches_per_epoch,
                    seed=seed,
                    epoch=epoch,
                    rank=fabric.global_rank,
                    world=fabric.world_size,
                )
                loader = DataLoader(
                    training,
                    batch_size=phase.batch,
                    sampler=shuffled,
                    **workers,
                    collate_fn=collate,
                    drop_last=len(shuffled) >= phase.batch,
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
        with _progress(self.fabric.is_global_zero) as progress:
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
            moved = (self.fabric.to_device(t) for t in (batch.pixels, batch.labels, batch.maps, batch.screens))
            yield Batch(*moved)

    def _losses(self, module: Any, batch: Batch, name: str) -> dict[str, Tensor]:  # noqa: ANN401
        """The weighted parts of the loss of one batch."""
        weights = self.config.loss
        reason = name == "phase2"
        by_screen = reason and self.config.relations == "screen"
        gather = None if by_screen or self.fabric.world_size == 1 else self._gather
        output: Output = module(
            batch.pixels, reason=reason, group_N=batch.screens if by_screen else None, gather=gather
        )
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
            state = {key: value.contiguous() for key, value in self.network.state_dict().items()}
            save_file(state, self.config.run / f"{name}.safetensors")

    def _save_last(self, phase: str, epoch: int, best: float, optimiser: Any) -> None:  # noqa: ANN401
        last = self.config.run / "last.ckpt"
        state = {"phase": phase, "epoch": epoch, "best": best}
        tensors = {"network": self.network.state_dict(), "optimiser": optimiser.state_dict()}
        if self.fabric.is_global_zero:
            torch.save({**state, **tensors}, last.with_suffix(".partial"))
            os.replace(last.with_suffix(".partial"), last)  # a kill leaves the old one or the new one
        self.fabric.barrier()

    def _load_last(self) -> dict[str, Any] | None:
        last = self.config.run / "last.ckpt"
        if not last.is_file():
            return None
        state: dict[str, Any] = torch.load(last, map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["network"])
        return state


def network_probability(
    network: TwoStageNetwork, patches: PatchSet, fabric: Fabric, *, reason: bool = True
) -> NDArray[np.float32]:
    """Probabilities (N, L) by the module, the patches of one screen reasoned together.

    The trunk takes `CHUNK` patches at a time.
    """
    network.eval()
    probability = np.zeros((len(patches), len(patches.label_names)), np.float32)
    with torch.inference_mode(), fabric.autocast():
        for indices in patches.by_screen():
            chunks = (
                fabric.to_device(torch.from_numpy(np.stack([patches.patch(int(i)) for i in chunk]))[:, None])
                for chunk in np.array_split(indices, -(-len(indices) // CHUNK))
            )
            probability[indices] = screen_probability(network, chunks, reason=reason)
    return probability


def screen_probability(
    network: TwoStageNetwork, chunks: Iterable[Tensor], *, reason: bool = True
) -> NDArray[np.float32]:
    """Probabilities (K, L) of one screen, whose patches (n, 1, P, P) come some at a time and are reasoned together."""
    parts = [network(pixels, reason=False) for pixels in chunks]
    feature = torch.cat([p.feature_NLF for p in parts])
    cosine = torch.cat([p.cosine_NL for p in parts])
    logit = torch.cat([p.logit_NL for p in parts])
    score = network.reasoning(feature, cosine, logit, None) if reason else logit
    probability: NDArray[np.float32] = torch.sigmoid(score.float()).cpu().numpy()
    return probability


def load_run(run: Path) -> tuple[TwoStageNetwork, Config, tuple[str, ...]]:
    """The trained network of a finished run, its configuration and its labels.

    Raises:
        ValueError: the folder holds no finished run.
    """
    weights = run / "phase2.safetensors"
    if not weights.is_file():
        raise ValueError(f"{run} holds no finished run ({weights.name} is missing)")
    config = Config.model_validate_json((run / "config.json").read_text())
    labels = tuple(json.loads((run / "labels.json").read_text()))
    # the run brings the weights: a pretrained start is not fetched again
    network = TwoStageNetwork(len(labels), dataclasses.replace(config.network, trunk_weights=None))
    network.load_state_dict(load_file(weights))
    return network.eval(), config, labels


def _start_from(network: TwoStageNetwork, weights: Path) -> None:
    """Begin with the weights of an earlier run.

    Raises:
        ValueError: they cannot be read, or are another network's.
    """
    try:
        network.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"start: {weights} does not fit: {error}") from error


def _open_folder(config: Config, labels: tuple[str, ...]) -> None:
    """Begin the run's folder, or check that it was begun with the same configuration."""
    config.run.mkdir(parents=True, exist_ok=True)
    file = config.run / "config.json"
    if file.is_file():
        if _identity(Config.model_validate_json(file.read_text())) != _identity(config):
            raise ValueError(f"{config.run} was begun with another configuration: choose another run folder")
        return
    file.write_text(config.model_dump_json(indent=2) + "\n")
    (config.run / "labels.json").write_text(json.dumps(labels) + "\n")


def _identity(config: Config) -> dict[str, Any]:
    """What decides the outcome of a run: not where its folders are seen from, nor how many hands it has."""
    kept = config.moved(Path.resolve)
    return kept.model_dump(exclude={"run": True, "threads": True, "data": {"workers"}})


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


def _progress(visible: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, disable=not visible)


class _Log:
    """Appends a row an epoch to metrics.csv and to TensorBoard; only the first device writes."""

    columns = ("phase", "epoch", "loss", "bce", "contrast", "map", "learning_rate", "accuracy", "f_measure")

    def __init__(self, run: Path, active: bool) -> None:
        self._file = run / "metrics.csv"
        self._board = SummaryWriter(str(run / "tensorboard")) if active else None

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._board is not None:
            self._board.close()

    def write(self, phase: str, epoch: int, values: dict[str, float]) -> None:
        if self._board is None:
            return
        new = not self._file.is_file()
        with self._file.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow({"phase": phase, "epoch": epoch + 1, **{k: f"{v:.6g}" for k, v in values.items()}})
        for key, value in values.items():
            self._board.add_scalar(f"{phase}/{key}", value, epoch + 1)
