"""With which weights a phase ends: those of the epoch that validates best, or those of the last."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.data_form import write_toy
from training.config import read_config
from training.evaluation import Report
from training.fit import Run, fit


@pytest.mark.parametrize(("keep", "is_the_last"), [("best", False), ("last", True)])
def test_a_phase_ends_with_the_weights_that_it_is_to_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str, is_the_last: bool
) -> None:
    validate, falling = Run._validate, itertools.count()

    def worse_each_time(run: Run, **options: Any) -> Report:  # noqa: ANN401 - whatever it takes
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
