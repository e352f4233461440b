import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.training.data_form import write_toy
from training.config import Config, read_config
from training.folder import RunFolder
from training.rows import read_rows

# processes that can be killed, forked from one that has torch loaded
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["training.fit"])
STEPS_OF_AN_EPOCH = 3
KEPT = ("phase1.safetensors", "phase2.safetensors", "finished.json")


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("resuming"), screens=20)


def configuration(toml: Path, *words: str) -> Config:
    few = ["phase1.epochs=2", "phase2.epochs=2", "relations=batch", "data.hard=0.5", "phase2.schedule=cosine"]
    few.append("phase2.statistics=20")
    return read_config(toml, [*few, *words])


def process(config: Config, place: str | None = None, count: int = 0) -> int | None:
    """Train in a process of its own, that is killed when it comes to a place for the `count`th time; how it ended."""
    started = PROCESSES.Process(target=_train, args=(config, place, count))
    started.start()
    started.join(120)
    return started.exitcode


def _train(config: Config, place: str | None, count: int) -> None:
    from training import datasets, fit, folder, journal, trunks

    whole = trunks.LightTrunk.forward

    def forward(self: trunks.LightTrunk, pixel_NGPP: Tensor) -> Tensor:
        """With dropout: what a step draws must go on as well."""
        return functional.dropout(whole(self, pixel_NGPP), 0.1, self.training)

    trunks.LightTrunk.forward = forward  # type: ignore[method-assign]
    if place is not None:
        modules: dict[str, tuple[Any, str]] = {
            "step": (fit.Run, "_step"),
            "validation": (datasets.PatchSet, "patch"),
            "weights": (folder, "save_file"),
            "row": (journal.Journal, "write"),
            "checkpoint": (torch, "save"),
            "end": (folder.RunFolder, "end"),
        }
        owner, name = modules[place]
        setattr(owner, name, _deadly(getattr(owner, name), count, half_written=place in ("weights", "checkpoint")))
    fit.fit(config)


def _deadly(function: Callable[..., Any], count: int, *, half_written: bool) -> Callable[..., Any]:
    """The function, which kills the process instead of its `count`th call, or when it has written half of a file."""
    left = [count]

    def called(*arguments: object, **named: object) -> object:
        left[0] -= 1
        if left[0] > 0:
            return function(*arguments, **named)
        if half_written:
            function(*arguments, **named)
            file = Path(str(arguments[1]))
            os.truncate(file, file.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    return called


@pytest.fixture(scope="module")
def unbroken(toml: Path) -> Config:
    """A run that nothing happened to, and that kept its state between epochs alone."""
    config = configuration(toml, "run=unbroken")
    assert process(config) == 0
    return config


def check_same(run: Path, unbroken: Path) -> None:
    """The same weights and figures, bit for bit: of the best epochs and of the last one."""
    for file in KEPT:
        assert (run / file).read_bytes() == (unbroken / file).read_bytes(), file
    last, expected = (torch.load(folder / "last.ckpt") for folder in (run, unbroken))
    for key in ("network", "optimiser", "difficulty", "drawn_by"):
        torch.testing.assert_close(last[key], expected[key], rtol=0, atol=0)
    rows, others = (read_rows(folder / "metrics.csv") for folder in (run, unbroken))
    for row in (*rows, *others):
        assert float(row.pop("seconds")) > 0
    assert rows == others


def test_a_run_that_was_killed_anywhere_ends_like_one_that_was_not(toml: Path, unbroken: Config) -> None:
    """SIGKILL at a random step, in validation, while weights, row or checkpoint are written; in each phase."""
    config = configuration(toml, "run=killed", "checkpoint_minutes=0")
    rng = np.random.default_rng(0)
    last = STEPS_OF_AN_EPOCH  # after which nothing is kept before the epoch has ended
    # where, and at which time that this is come to; each process goes on where the one before was killed
    at_step = ("step", int(rng.integers(2, last + 1)))
    anywhere = [at_step, ("validation", 2), ("row", 1), ("checkpoint", 1), ("weights", 1)]
    second_epoch = ("checkpoint", last - 1)
    third_step_or_less = ("step", last - 1 + int(rng.integers(1, last + 1)))  # of the second phase
    kills = {
        "phase1": [*anywhere, second_epoch],
        "phase2": [third_step_or_less, *anywhere[1:], second_epoch, ("end", 1)],
    }
    for phase, places in kills.items():
        for place, count in places:
            assert process(config, place, count) == -signal.SIGKILL, (phase, place, count)
        kept = RunFolder(config.run).load_last()
        assert kept is not None
        assert kept["phase"] == phase
    assert process(config) == 0
    check_same(config.run, unbroken.run)
    sessions = json.loads((config.run / "run.json").read_text())["sessions"]
    assert len(sessions) == sum(map(len, kills.values())) + 1


def test_an_epoch_that_was_never_kept_is_begun_anew(toml: Path, unbroken: Config) -> None:
    config = configuration(toml, "run=anew")
    for count in (2, STEPS_OF_AN_EPOCH + 2, 2 * STEPS_OF_AN_EPOCH + 2):
        assert process(config, "step", count) == -signal.SIGKILL
    assert process(config) == 0
    check_same(config.run, unbroken.run)


def test_a_run_whose_data_is_on_the_device_goes_on_as_well(toml: Path) -> None:
    whole, killed = (configuration(toml, f"run=resident-{name}", "data.resident=true") for name in ("whole", "killed"))
    assert process(whole) == 0
    killed = killed.model_copy(update={"checkpoint_minutes": 0.0})
    for count in (2, STEPS_OF_AN_EPOCH + 1, 2 * STEPS_OF_AN_EPOCH):
        assert process(killed, "step", count) == -signal.SIGKILL
    assert process(killed) == 0
    check_same(killed.run, whole.run)


def test_a_checkpoint_of_an_earlier_version_is_gone_on_from(toml: Path, unbroken: Config) -> None:
    """It was kept between epochs alone, and named the one that had ended."""
    config = configuration(toml, "run=earlier")
    assert process(config, "step", STEPS_OF_AN_EPOCH + 1) == -signal.SIGKILL
    last = torch.load(config.run / "last.ckpt")
    standing = last.pop("standing")
    for key in ("drawn_by", "scale"):
        last.pop(key)
    torch.save({**last, "epoch": standing["epoch"] - 1, "best": standing["best"]}, config.run / "last.ckpt")
    assert process(config) == 0
    check_same(config.run, unbroken.run)
