"""The configurations that come with the project can be read, and the READMEs name each of them."""

from pathlib import Path

import pytest

from training.config import read_config

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "training" / "configs"
OF_FIT = sorted(file for file in CONFIGS.glob("*.toml") if file.name != "limits.toml")
READMES = (ROOT / "README.md").read_text() + (ROOT / "training" / "README.md").read_text()


@pytest.mark.parametrize("file", OF_FIT, ids=lambda file: file.stem)
def test_a_configuration_is_read(file: Path) -> None:
    config = read_config(file, [])
    assert config.phase1.epochs + config.phase2.epochs > 0
    assert file.stem.startswith("study-") or file.name in READMES


def test_batches_of_one_screen_measure_their_statistics_on_shuffled_patches() -> None:
    """A screen of 5120 x 10240 has 50 patches, more than a batch of 32."""
    own = read_config(CONFIGS / "own.toml", [])
    assert (own.relations, own.phase2.batch) == ("screen", 32)
    assert own.phase2.statistics > 0


def test_a_full_study_trains_as_the_paper_does() -> None:
    """But for what says where, on how many devices and in what precision."""
    paper, study = (read_config(CONFIGS / f"{name}.toml", []) for name in ("paper", "study-full"))
    elsewhere = {key: getattr(paper, key) for key in ("name", "run", "data", "devices", "precision")}
    assert study.model_copy(update=elsewhere) == paper
    assert study.devices == 4
