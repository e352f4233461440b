"""`phase2.freeze`: stage 2 alone learns, and stage 1 stays what phase 1 made of it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.data_form import write_toy
from training.config import read_config
from training.fit import fit


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("freeze"), screens=20)


def changed(toml: Path, *, freeze: bool) -> set[str]:
    """Names of the modules whose weights or statistics phase 2 has changed."""
    short = [f"run=frozen-{freeze}", "phase1.epochs=1", "phase2.epochs=1", "phase2.learning_rate=0.05"]
    config = read_config(toml, [*short, f"phase2.freeze={str(freeze).lower()}"])
    fit(config)
    before, after = (load_file(config.run / f"{phase}.safetensors") for phase in ("phase1", "phase2"))
    return {key.partition(".")[0] for key in before if not torch.equal(before[key], after[key])}


def test_what_is_frozen_stays_to_the_last_bit(toml: Path) -> None:
    assert changed(toml, freeze=True) == {"reasoning"}
    assert changed(toml, freeze=False) == {"trunk", "pooling", "classifier1", "reasoning"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["phase1.freeze=true"], "phase 1 trains stage 1"),
        (["phase2.freeze=true", "phase2.statistics=10"], "statistics = 0"),
        (["phase2.freeze=true", "network.method=plain", "phase2.epochs=0"], "a network with two"),
    ],
)
def test_what_would_learn_nothing_or_measure_what_is_kept_is_refused(
    toml: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_config(toml, overrides)
