"""What two processes do in `test_devices`, started as torchrun would: `-m tests.training.two_devices TOML`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import default_collate

from training.config import Config, read_config
from training.datasets import Batch
from training.devices import launch, mean
from training.fit import Run
from training.inference import network_probability
from training.studies.cells import Division, run_cell
from training.studies.tables import Row

# a case of each kind of loss: phase, how patches relate
CASES = (("phase1", "batch"), ("phase2", "batch"), ("phase2", "screen"))
PATCHES = 24
# else what patches tell each other is less than the tolerance, and nothing would be compared
HEARD = ("network.reasoned_features=unit", "network.relation_scores=scaled", "network.relation_similarity=cosine")


class Step(NamedTuple):
    """What one batch gave, and what is told of the validation part, each device of its screens."""

    loss: Tensor  # over all devices
    contrast: Tensor  # of all their patches; 0 in phase 2
    gradient: dict[str, Tensor]
    difficulty: Tensor  # how badly each patch was told
    probability: Tensor


class Interrupted(Exception):
    """Stands for a kill, which would take both processes with it."""


def frozen(run: Run) -> Run:
    """The run, its batch normalisation frozen, for each device would take the statistics of its share."""
    for norm in run.network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
            norm.train = MethodType(_stay, norm)  # type: ignore[method-assign]
    return run


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def share(run: Run, by_screen: bool) -> list[int]:
    """This device's patches of the batch, unevenly many where whole screens are given out."""
    rank, world = run.fabric.global_rank, run.fabric.world_size
    if not by_screen:
        return list(range(PATCHES))[rank::world]
    screens = run.feeds["phase2"].patches.by_screen()[:5]
    given = screens if world == 1 else (screens[:2], screens[2:])[rank]
    return [int(index) for screen in given for index in screen]


def step(config: Config, fabric: Fabric, name: str) -> Step:
    """One batch of a phase through loss and gradient."""
    run = frozen(Run(config, fabric))
    patches = run.feeds[name].patches
    rng = np.random.default_rng(0)
    patches.labels[:] = rng.integers(0, 2, patches.labels.shape)  # many patches that contrast compares
    patches.labels[::5, 0] = -1  # nine of them are dealt to one device, and one to the other
    patches.labels[1::2, 1] = -1
    run.network.begin_phase(name, torch.ones(2, 2))
    generator = torch.Generator().manual_seed(0)
    for key, parameter in run.network.named_parameters():
        if key.startswith("reasoning."):
            nn.init.normal_(parameter, generator=generator)
    module, _ = fabric.setup(run.network, torch.optim.SGD(run.network.parameters(), lr=0.1))
    run.network.train()
    batch = Batch(*default_collate([patches[index] for index in share(run, config.relations == "screen")]))
    losses = run._losses(module, batch, name)
    loss = torch.stack(list(losses.values())).sum()
    fabric.backward(loss)
    gradient = {key: p.grad.clone() for key, p in run.network.named_parameters() if p.grad is not None}
    probability = network_probability(run.network, run.validation, fabric, reason=name == "phase2")
    difficulty = torch.from_numpy(run.feeds[name].difficulty.copy())
    contrast = losses.get("contrast", torch.zeros(())).detach()
    return Step(mean(fabric, loss.detach()), contrast, gradient, difficulty, torch.from_numpy(probability))


def configuration(toml: Path, *words: str) -> Config:
    return read_config(toml, [*words, "network.light=root", "data.hard=0.5", "phase1.epochs=2", "phase1.batch=16"])


def both() -> None:
    """Every case, then whole runs: one frozen, one that is interrupted, one that is not, and a cell of a study."""
    toml = Path(sys.argv[1])
    devices = ["devices=1", "nodes=2"]
    fabric = launch(configuration(toml, *devices))
    for name, relations in CASES:
        case = f"{name}-{relations}"
        config = configuration(toml, *devices, *HEARD, f"run=two-{case}", f"relations={relations}")
        found = step(config, fabric, name)
        if fabric.is_global_zero:
            torch.save(found._asdict(), toml.parent / f"{case}.pt")
    sgd = ["phase1.optimiser=sgd", "phase2.optimiser=sgd", "relations=batch"]
    frozen(Run(configuration(toml, *devices, "run=two-frozen", *sgd), fabric)).finish()
    devices.append("phase2.statistics=16")
    whole = configuration(toml, *devices, "run=two-whole")
    Run(whole, fabric).finish()
    broken = configuration(toml, *devices, "run=two-broken", "checkpoint_minutes=0")
    for steps in (2, 3):
        try:
            interrupted(Run(broken, fabric), steps).finish()
        except Interrupted:
            continue
    Run(broken, fabric).finish()
    data = Division(name="toy", folder=toml.parent / "cut")
    fast = [*devices, "network.light=root", "phase1.epochs=1", "phase1.batch=16"]
    for seed in (0, 1, 0):  # the last is there already
        cell, run = run_cell(
            Row(title="two-stage"), data, seed, preset=toml, settings=fast, out=toml.parent / "study", base=None
        )
        (run / f"told-{fabric.global_rank}.json").write_text(json.dumps(asdict(cell)))


def interrupted(run: Run, steps: int) -> Run:
    """The run, that ends before it has made so many steps more."""
    left, one = [steps], run._step

    def step(*arguments: Any) -> dict[str, float]:  # noqa: ANN401
        if not left[0]:
            raise Interrupted
        left[0] -= 1
        return one(*arguments)

    run._step = step  # type: ignore[assignment, method-assign]
    return run


if __name__ == "__main__":
    torch.set_num_threads(1)
    both()
