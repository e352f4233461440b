"""What a run may begin with, and what is refused before it has a folder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.data_form import write_toy
from training import resident
from training.bundling import export_run
from training.config import Config, read_config
from training.fit import fit
from training.folder import RunFolder

NOTHING = ["phase1.epochs=0", "phase2.epochs=0"]
SHORT = ["phase1.epochs=1", "phase2.epochs=1"]


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("starting"), screens=12)


@pytest.fixture(scope="module")
def learnt(toml: Path) -> Config:
    config = read_config(toml, ["run=learnt", *SHORT])
    fit(config)
    return config


def test_a_phase_that_learns_nothing_leaves_stage_2_as_it_was(learnt: Config, toml: Path) -> None:
    begun = read_config(toml, ["run=begun", "start=learnt/phase2.safetensors", *NOTHING])
    fit(begun)
    before = load_file(learnt.run / "phase2.safetensors")
    for key, value in load_file(begun.run / "phase2.safetensors").items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, msg=key)


def test_what_no_run_has_learnt_is_not_exported_however_often_it_is_begun_with(toml: Path, tmp_path: Path) -> None:
    for run, start in (("random", []), ("again", ["start=random/phase2.safetensors"])):
        config = read_config(toml, [f"run={run}", *start, *NOTHING])
        fit(config)
        with pytest.raises(ValueError, match=rf"{run} has learnt nothing: no run of it had epochs"):
            export_run(config.run, tmp_path / run, version="1")
    half = read_config(toml, ["run=half", "start=random/phase2.safetensors", "phase1.epochs=1", "phase2.epochs=0"])
    fit(half)
    with pytest.raises(ValueError, match=r"stage 2 of .*half has learnt nothing"):
        export_run(half.run, tmp_path / "half", version="1")


def test_what_a_run_of_an_earlier_version_has_learnt_is_told_by_its_epochs(learnt: Config, toml: Path) -> None:
    def phases(run: Path) -> list[str]:
        data = json.loads((run / "data.json").read_text())
        told = data.pop("phases")
        (run / "data.json").write_text(json.dumps(data))
        assert RunFolder(run).learnt_phases == told
        return list(told)

    assert phases(learnt.run) == ["phase1", "phase2"]
    one = read_config(toml, ["run=one", "phase1.epochs=1", "phase2.epochs=0"])
    fit(one)
    assert phases(one.run) == ["phase1"]
    early = read_config(toml, ["run=early", "start=learnt/phase1.safetensors", *NOTHING])  # of before phase 2
    fit(early)
    assert phases(early.run) == ["phase1"]


def test_a_start_that_does_not_fit_leaves_the_folder_to_one_that_does(learnt: Config, toml: Path) -> None:
    loose = toml.parent / "loose.safetensors"
    loose.write_bytes((learnt.run / "phase2.safetensors").read_bytes())
    start = f"start={loose}"
    for change in ("network.feature_width=32", "network.relation_width=16", "network.relate_to=itself"):
        with pytest.raises(ValueError, match="does not fit"):
            fit(read_config(toml, ["run=mended", start, change, *SHORT]))
    fit(read_config(toml, ["run=mended", start, "network.cosine_scale=5", "network.learn_scale=false", *NOTHING]))


def test_classifier_2_begins_with_what_classifier_1_knows_of_the_training_patches(toml: Path) -> None:
    """Whose feature lengths decide; a step too small to learn by leaves it so."""
    still = ["phase1.epochs=1", "phase2.epochs=1", "phase2.learning_rate=1e-12", "phase2.optimiser=sgd"]
    config = read_config(toml, ["run=warm", "network.scores_from=classifier1", *still])
    fit(config)
    weights = load_file(config.run / "phase2.safetensors")
    width = weights["classifier1.weight"].shape[1]
    for label, own in enumerate(weights["classifier1.weight"]):
        columns = weights["reasoning.classifier.weight"][label]
        block = columns[label * width : (label + 1) * width]
        torch.testing.assert_close(torch.cosine_similarity(block, own, dim=0), torch.tensor(1.0))
        assert (columns.abs() > 1e-6).sum() == width
        assert 0 < block.norm() < 10 * weights["classifier1.log_scale"].exp()


def test_weights_of_a_network_that_sees_otherwise_are_refused(learnt: Config, toml: Path) -> None:
    start = f"start={learnt.run / 'phase2.safetensors'}"
    for change in ("network.light=root", "network.classifier=dot", "network.feature_width=32"):
        with pytest.raises(ValueError, match=r"is of another network: network\.\w+ = .*, here it is "):
            fit(read_config(toml, ["run=other", start, change, *NOTHING]))
    anew = "network.relation_similarity=cosine"  # of stage 2, which begins anew where phase 2 learns
    with pytest.raises(ValueError, match=r"network.relation_similarity = 'dot', here it is 'cosine'"):
        fit(read_config(toml, ["run=other", start, anew, *NOTHING]))
    with pytest.raises(ValueError, match=r"network.relation_similarity"):
        fit(read_config(toml, ["run=other", start, anew, "start_share=0.5", *SHORT]))
    fit(read_config(toml, ["run=anew", start, anew, "phase1.epochs=0", "phase2.epochs=1"]))
    assert not (toml.parent / "other" / "config.json").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["devices=2", "phase2.batch=15"], "phase2.batch = 15 does not divide over 2 devices"),
        (["phase2.freeze=true", "phase1.epochs=0"], "keeps a stage 1 that has learnt nothing"),
        (
            ["phase2.freeze=true", "phase1.epochs=0", "start=a/phase1.safetensors", "start_part=trunk"],
            "keeps a stage 1 that has learnt nothing",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_by_its_configuration(toml: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_config(toml, overrides)
    read_config(toml, ["devices=2", "phase2.batch=15", "phase2.epochs=0"])  # which has no batch


def test_memory_that_phase_2_will_lack_is_missed_before_the_run_begins(
    toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "_free_bytes", lambda device: 1000)
    lacking = ["run=lacking", "data.resident=true", "phase1.epochs=0", "phase2.epochs=1"]
    with pytest.raises(ValueError, match=r"data.resident: \d+ patches take"):
        fit(read_config(toml, lacking))
    assert not (toml.parent / "lacking" / "config.json").exists()
    fit(read_config(toml, [*lacking, "data.resident=false"]))  # as the message says, in the same folder
