"""With which weights a phase ends: those of the epoch that validates best, or those of the last."""

# ruff: noqa: ANN401 - whatever a method takes

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.data_form import write_toy
from training.comparison import compare
from training.config import read_config
from training.evaluation import Report
from training.fit import Run, fit


@pytest.mark.parametrize(("keep", "is_the_last"), [("best", False), ("last", True)])
def test_a_phase_ends_with_the_weights_that_it_is_to_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str, is_the_last: bool
) -> None:
    validate, falling = Run._validate, itertools.count()

    def worse_each_time(run: Run, **options: Any) -> Report:
        return replace(validate(run, **options), f_measure=1 / (1 + next(falling)))

    monkeypatch.setattr(Run, "_validate", worse_each_time)
    short = ["phase1.epochs=2", "phase2.epochs=0", "data.patches_per_epoch=16", f"phase1.keep={keep}"]
    config = read_config(write_toy(tmp_path, screens=12), short)
    fit(config)
    kept = load_file(config.run / "phase1.safetensors")
    last = torch.load(config.run / "last.ckpt", weights_only=False)
    assert last["phase"] == "phase1"
    same = all(torch.equal(kept[name], value) for name, value in last["network"].items())
    assert same is is_the_last


def test_weights_of_an_epoch_that_was_killed_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before last.ckpt knew of it; on other threads it may end worse when it is learnt again."""
    validate, save_last, saved = Run._validate, Run._save_last, itertools.count()
    scores = iter([0.5, 0.9, 0.1, 0.1])  # the first epoch, the one that is killed, the same again, in the end

    def killed_the_second_time(run: Run, *options: Any) -> None:
        if next(saved) == 1:
            raise KeyboardInterrupt
        save_last(run, *options)

    monkeypatch.setattr(Run, "_validate", lambda run, **told: replace(validate(run, **told), f_measure=next(scores)))
    monkeypatch.setattr(Run, "_save_last", killed_the_second_time)
    short = ["phase1.epochs=2", "phase2.epochs=0", "data.patches_per_epoch=16"]
    config = read_config(write_toy(tmp_path, screens=12), short)
    with pytest.raises(KeyboardInterrupt):
        fit(config)
    first = torch.load(config.run / "last.ckpt", weights_only=False)["network"]
    fit(config)
    kept = load_file(config.run / "phase1.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in first.items())


@pytest.mark.parametrize(
    ("keep", "scores", "epoch"),
    [("best", [0.5, 0.5], 2), ("best", [0.50000001, 0.5], 1), ("last", [0.9, 0.5], 2)],
)
def test_the_epoch_that_a_comparison_names_is_the_one_that_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str, scores: list[float], epoch: int
) -> None:
    validate, save_weights, figures, saved = Run._validate, Run._save_weights, iter([*scores, 0.0]), []
    monkeypatch.setattr(Run, "_validate", lambda run, **told: replace(validate(run, **told), f_measure=next(figures)))

    def save(run: Run, name: str) -> None:
        save_weights(run, name)
        saved.append((name, {key: value.clone() for key, value in run.network.state_dict().items()}))

    monkeypatch.setattr(Run, "_save_weights", save)
    short = ["phase1.epochs=2", "phase2.epochs=0", "data.patches_per_epoch=16", f"phase1.keep={keep}"]
    config = read_config(write_toy(tmp_path, screens=12), short)
    fit(config)
    assert sum(name == "phase1" for name, _ in saved) == epoch  # each as long as it is the best
    best = compare([config.run]).runs[0].best("phase1")
    assert best is not None
    assert (best.epoch, best.f_measure) == (epoch, scores[epoch - 1])
