import csv
import dataclasses
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file

from engine import available_cpus, load
from tests.training.data_form import write_screens, write_toy
from training import bundling
from training.bundling import export_run
from training.config import Config, Phase, read_config
from training.costs import Costs
from training.cutting import cut
from training.datasets import PatchSet
from training.evaluation import evaluate
from training.fit import Run, _learning_rate, fit
from training.folder import LEARNT_DATA, data_id, load_run, refuse_changed
from training.inference import network_probability, reasoned, see
from training.network import TwoStageNetwork
from training.record import revision_of
from training.rows import read_rows
from training.temperature import Sureness, sigmoid

GOLDEN = {
    "phase1": [2.04602, 1.7582, 1.94029, 1.83461, 1.66392, 2.51505, 1.6726, 1.29927, 1.59058, 1.7538],
    "phase2": [1.37582, 1.40633, 1.42481, 1.40751, 1.328, 1.36554, 1.37737, 1.47113, 1.30926, 1.35791],
}


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("fit"), screens=45)


@pytest.fixture(scope="module")
def run(toml: Path) -> Config:
    config = read_config(toml)
    fit(config)
    return config


def test_training_learns(run: Config) -> None:
    with (run.run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["phase"], row["epoch"]) for row in rows] == [
        *(("phase1", str(e)) for e in range(1, 6)),
        *(("phase2", str(e)) for e in range(1, 3)),
    ]
    assert float(rows[4]["loss"]) < 0.5 * float(rows[0]["loss"])
    assert list((run.run / "tensorboard").iterdir())


def test_the_first_ten_steps_of_each_phase_lose_what_they_lost(toml: Path) -> None:
    """Golden losses: what changes them changes every run. Other CPUs and threads moved them by up to 0.2 %."""
    one_step = ["data.patches_per_epoch=16", "phase1.epochs=10", "phase2.epochs=10"]
    calm = [f"{phase}.{word}" for phase in ("phase1", "phase2") for word in ("optimiser=sgd", "learning_rate=1e-4")]
    config = read_config(toml, ["run=golden", *one_step, *calm])
    fit(config)
    rows = read_rows(config.run / "metrics.csv")
    for phase, expected in GOLDEN.items():
        losses = [float(row["loss"]) for row in rows if row["phase"] == phase]
        assert losses == pytest.approx(expected, rel=5e-3), phase


def test_other_names_of_the_labels_give_the_same_numbers(run: Config, toml: Path) -> None:
    other = toml.parent / "cut-renamed"
    shutil.copytree(toml.parent / "cut", other)
    table = (other / "labels.csv").read_text()
    (other / "labels.csv").write_text(table.replace("dot,line", "zebra,ant", 1))  # no longer in the alphabet's order
    config = read_config(toml, ["run=renamed", 'data.folders=["cut-renamed"]'])
    found = fit(config)
    assert list(found.per_label) == ["zebra", "ant"]
    finished = json.loads((run.run / "finished.json").read_text())
    assert list(json.loads(json.dumps(dataclasses.asdict(found)))["per_label"].values()) == list(
        finished["per_label"].values()
    )
    assert (config.run / "phase2.safetensors").read_bytes() == (run.run / "phase2.safetensors").read_bytes()


def test_half_precision_learns_nearly_the_same(run: Config, toml: Path) -> None:
    """Two steps of each phase on the CPU: weights stay in float32, the losses near those of float32."""
    two_steps = ["data.patches_per_epoch=32", "phase1.epochs=1", "phase2.epochs=1"]
    rows = {}
    for precision in ("32-true", "bf16-mixed"):
        config = read_config(toml, [f"run={precision}", f"precision={precision}", *two_steps])
        fit(config)
        rows[precision] = read_rows(config.run / "metrics.csv")
        weights = load_file(config.run / "phase2.safetensors").values()
        assert {value.dtype for value in weights if value.is_floating_point()} == {torch.float32}
    for whole, half in zip(*rows.values(), strict=True):
        assert float(half["loss"]) == pytest.approx(float(whole["loss"]), rel=0.05)
        assert half["loss"] != whole["loss"]


def test_a_batch_may_go_through_the_trunk_in_parts(toml: Path) -> None:
    """What is learnt is the same but for the statistics of batch normalisation, which are those of each part."""
    two_steps = ["data.patches_per_epoch=32", "phase1.epochs=1", "phase2.epochs=1"]
    rows = {}
    for parts in (1, 2):
        words = [f"run=parts-{parts}", f"phase1.accumulate={parts}", f"phase2.accumulate={parts}"]
        config = read_config(toml, [*words, *two_steps])
        fit(config)
        rows[parts] = read_rows(config.run / "metrics.csv")
    for whole, in_parts in zip(*rows.values(), strict=True):
        assert float(in_parts["loss"]) == pytest.approx(float(whole["loss"]), rel=0.2)
        assert in_parts["loss"] != whole["loss"]  # it did go in parts
        assert in_parts["learning_rate"] == whole["learning_rate"]


@pytest.mark.skipif(available_cpus() < 2, reason="torch warns where two processes share one CPU")
def test_a_run_is_the_same_from_whichever_folder_and_with_more_hands(
    run: Config, toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toml.parent)
    again = read_config(Path("toy.toml"), ["run=hands", "data.workers=2"])
    assert again.run.is_absolute()
    fit(again)
    first, second = (load_file(run_.run / "phase2.safetensors") for run_ in (run, again))
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, atol=1e-5, rtol=1e-4, msg=key)
    fit(run.model_copy(update={"data": again.data, "threads": 2}))  # finished, and the same run: nothing is refused


def test_a_run_belongs_to_its_data(toml: Path) -> None:
    nothing = ["phase1.epochs=0", "phase2.epochs=0"]
    cut(toml.parent / "source", toml.parent / "cut-again", patch_px=128)
    config = read_config(toml, ["run=of-data", 'data.folders=["cut-again"]', *nothing])
    fit(config)
    load_run(config.run)
    with (toml.parent / "cut-again" / "windows.csv").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match="other data"):
        fit(config)
    with pytest.raises(ValueError, match="has changed"):
        refuse_changed(config.run, config)


def test_a_run_that_has_not_ended_is_not_finished(run: Config, tmp_path: Path) -> None:
    shutil.copytree(run.run, tmp_path / "run")
    load_run(tmp_path / "run")
    (tmp_path / "run" / "finished.json").unlink()
    with pytest.raises(ValueError, match="no finished run"):
        load_run(tmp_path / "run")


def test_a_run_of_another_network_is_refused(run: Config, tmp_path: Path) -> None:
    shutil.copytree(run.run, tmp_path / "run")
    config = run.model_copy(update={"network": dataclasses.replace(run.network, feature_width=24)})
    (tmp_path / "run" / "config.json").write_text(config.model_dump_json())
    with pytest.raises(ValueError, match="does not fit"):
        load_run(tmp_path / "run")


def test_a_run_folder_belongs_to_one_configuration(run: Config) -> None:
    other = run.model_copy(update={"seed": 5})
    with pytest.raises(ValueError, match="another configuration"):
        fit(other)


NOTHING = ["phase1.epochs=0", "phase2.epochs=0"]


def test_a_run_may_begin_with_the_weights_of_another(run: Config, toml: Path) -> None:
    begun = read_config(toml, ["run=begun", "start=run/phase1.safetensors", *NOTHING])
    fit(begun)
    first = load_file(run.run / "phase1.safetensors")
    for key, value in load_file(begun.run / "phase1.safetensors").items():
        torch.testing.assert_close(value, first[key], msg=key)


def test_the_finished_network_may_be_part_that_of_its_start(run: Config, toml: Path) -> None:
    half = read_config(toml, ["run=half", "start=run/phase2.safetensors", "start_share=0.25", "phase1.epochs=0"])
    found = fit(half)
    start, own = (load_file(folder / "phase2.safetensors") for folder in (run.run, half.run))
    network, config, _ = load_run(half.run)
    for key, value in network.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.25 * start[key] + 0.75 * own[key], msg=key)
        else:
            torch.testing.assert_close(value, own[key], msg=key)
    assert json.loads((half.run / "finished.json").read_text())["f_measure"] == found.f_measure
    assert fit(config).f_measure == pytest.approx(found.f_measure)  # again, and it is not mixed twice
    shutil.copy(half.run / "phase2.safetensors", replaced := toml.parent / "replaced.safetensors")
    taken = read_config(toml, ["run=taken", f"start={replaced}", "start_share=0.25", *NOTHING])
    fit(taken)
    before = load_run(taken.run)[0].state_dict()
    shutil.copy(run.run / "phase1.safetensors", replaced)
    for key, value in load_run(taken.run)[0].state_dict().items():
        torch.testing.assert_close(value, before[key], msg=key)
    with pytest.raises(ValueError, match="begun with other data or weights"):
        fit(taken)


def test_statistics_may_be_those_of_shuffled_patches(toml: Path) -> None:
    """Running means are of the last batches; measured, they are those of the training part at the weights kept."""
    still = [f"augmentation.{name}=0" for name in ("brightness", "contrast")]
    turned = [f"augmentation.{name}=false" for name in ("flip", "quarter_turns")]
    short = ["phase1.epochs=0", "phase2.epochs=1", "phase2.batch=1000", "phase2.learning_rate=0.1"]
    found = {}
    for patches in (0, 1000):
        config = read_config(toml, [f"run=measured-{patches}", f"phase2.statistics={patches}", *still, *turned, *short])
        fit(config)
        network, _, _ = load_run(config.run)
        network.eval()
        norm = next(part for part in network.modules() if isinstance(part, torch.nn.BatchNorm2d))
        given: list[torch.Tensor] = []
        norm.register_forward_pre_hook(lambda _, args, given=given: given.append(args[0]))
        training = PatchSet(config.data.folders, "train")
        with torch.inference_mode():
            network(torch.from_numpy(np.stack([training.patch(k) for k in range(len(training))]))[:, None])
        (seen,) = given
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        found[patches] = mean - seen.mean(dim=(0, 2, 3)), variance / seen.var(dim=(0, 2, 3)) - 1
    assert all(difference.abs().max() < 1e-3 for difference in found[1000])
    assert all(difference.abs().max() > 1e-2 for difference in found[0])


def test_no_step_leaves_an_edge_below_zero(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.fit.cooccurrence", lambda labels: torch.eye(labels.shape[1]) + 1e-6)
    steep = ["phase1.epochs=0", "phase2.epochs=1", "phase2.optimiser=adamw", "phase2.learning_rate=0.5"]
    config = read_config(toml, ["run=steep", *steep, "phase2.keep=last"])
    fit(config)
    network, _, _ = load_run(config.run)
    assert isinstance(network, TwoStageNetwork)
    assert network.reasoning.edges.min() >= 0  # without it -1.8


def test_a_phase_may_learn_from_smaller_patches(run: Config, toml: Path) -> None:
    cut(toml.parent / "source", toml.parent / "cut-small", patch_px=64)
    config = read_config(toml, ["run=small", 'phase1.folders=["cut-small"]', "phase1.epochs=1", "phase2.epochs=1"])
    assert config.phase1.folders == [toml.parent / "cut-small"]
    validated = len(PatchSet(config.data.folders, "validation"))
    assert fit(config).patches == validated  # still the patches that are served


def test_exported_graphs_give_the_modules_probabilities_at_its_temperatures(
    run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temperature = np.array([2.0, 0.5])

    def fitted(*_: object, labels: Sequence[str]) -> dict[str, Sureness]:
        still = {"loss_before": 0.0, "loss_after": 0.0, "error_before": 0.0, "error_after": 0.0}
        return {
            label: Sureness(temperature=t, **still, before=(), after=())
            for label, t in zip(labels, temperature.tolist(), strict=True)
        }

    monkeypatch.setattr(bundling, "fit_temperatures", fitted)
    done = export_run(run.run, tmp_path / "bundle", version="7")
    manifest = done.manifest
    assert done.difference.largest <= manifest.parity_tolerance["fp32"]
    assert (manifest.name, manifest.version, manifest.label_names) == ("toy", "7", ("dot", "line"))
    card = (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    assert "toy 7" in card
    assert "| dot |" in card
    commit = revision_of(run.run)
    assert (f"revision `{commit}`" in card) == (commit is not None)  # there is none outside of a repository

    assert manifest.training["temperature_dot"] == 2.0
    network, config, _ = load_run(run.run)  # as it was trained
    patches = PatchSet(config.data.folders, "test")
    fabric = Fabric(accelerator="cpu")
    score = reasoned(network, see(network, patches, fabric), patches, fabric, group="screen")
    expected = sigmoid(score / temperature)
    tempered = network_probability(done.network, patches, fabric)
    np.testing.assert_allclose(tempered, expected, atol=1e-4)
    backend = load(tmp_path / "bundle", threads=1)
    for indices in patches.by_screen():
        pixels = np.stack([patches.patch(int(i)) for i in indices])[:, None]
        found = [backend.features(pixels[k : k + 1]) for k in range(len(pixels))]
        probability = backend.reason(
            np.concatenate([f.label_features for f in found]), np.concatenate([f.stage1 for f in found])
        )
        np.testing.assert_allclose(probability, expected[indices], atol=1e-4)
        with torch.inference_mode():
            maps = network.features(torch.from_numpy(pixels))[2]
        np.testing.assert_allclose(np.concatenate([f.activation for f in found]), maps.numpy(), atol=1e-3)
    for group in ("screen", "single", "batch:8"):
        assert evaluate(backend, config.data.folders, part="test", group=group).patches == len(patches)
    backend.close()


def test_limits_follow_screens_in_the_shares_of_the_line(run: Config, toml: Path, tmp_path: Path) -> None:
    few = toml.parent / "few"
    source = write_screens(toml.parent / "line", screens=30, seed=9)
    boxes = (source / "boxes.csv").read_text().splitlines()
    (source / "boxes.csv").write_text("\n".join([boxes[0], *boxes[1:3], ""]))  # the others are taken for clean
    shutil.rmtree(source / "masks")
    cut(source, few, patch_px=128, labels=("dot", "line"))
    usual = export_run(run.run, tmp_path / "usual", version="1")
    costs = Costs(review_capacity=1, escape_cap=0.5)
    line = export_run(run.run, tmp_path / "line", version="1", calibration=[few], costs=costs)
    assert line.manifest.labels == line.calibration.limits
    assert line.calibration.tally.clean >= usual.calibration.tally.clean + 28
    assert line.calibration.tally.overkills == 0  # their scores are high, and a review costs less than overkill
    assert line.manifest.data_id != usual.manifest.data_id
    assert line.manifest.training["limits_costs"] == str(costs)
    assert line.manifest.training[LEARNT_DATA] == data_id(run.data.folders)
    again = shutil.copytree(run.data.folders[0], tmp_path / "again")
    (again / "labels.csv").open("a").close()
    with pytest.raises(ValueError, match=r"again: screen \w+ of \w+ is known already"):  # cut anew elsewhere
        export_run(run.run, tmp_path / "learnt", version="1", calibration=[again])
    with pytest.raises(ValueError, match=r"few: screen \w+ of line is known already"):
        export_run(run.run, tmp_path / "twice", version="1", calibration=[few, few])


def test_a_loss_that_is_no_number_ends_the_run_with_a_remedy(toml: Path) -> None:
    wild = read_config(toml, ["run=wild", "phase1.learning_rate=1e20", "phase1.epochs=2"])
    with pytest.raises(ValueError, match=r"phase1, epoch \d+, step \d+: the loss is .*a lower phase1.learning_rate"):
        fit(wild)


def test_too_little_memory_ends_the_run_with_a_remedy(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Run, "finish", full)
    with pytest.raises(ValueError, match=r"too small \(CUDA out of memory\): accumulate"):
        fit(read_config(toml, ["run=full"]))


def test_an_unfinished_run_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished run"):
        export_run(tmp_path, tmp_path / "bundle", version="1")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phase1.epoch=3", "phase1.epoch"),
        ("phase1.epochs=-1", "phase1.epochs"),
        ("network.pooling=middle", "network"),
        ("loss.map=1.0", "loss.map"),
        ("start_share=0.5", "start_share needs start"),
        ("seed=-1", "seed"),
        ("phase1.hold=0.5", "hold needs schedule"),
        ("seed", "key=value"),
        ("name.first=1", "not a section"),
    ],
)
def test_a_configuration_is_checked_at_the_door(tmp_path: Path, override: str, message: str) -> None:
    (tmp_path / "c.toml").write_text('name = "x"\nrun = "r"\n[data]\nfolders = ["d"]\n')
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path / "c.toml", [override])


@pytest.mark.parametrize("method", ["plain", "kssnet", "tdrg", "sewerml"])
def test_attention_that_a_method_has_none_of_is_refused(tmp_path: Path, method: str) -> None:
    (tmp_path / "c.toml").write_text('name = "x"\nrun = "r"\n[data]\nfolders = ["d"]\n')
    one_stage = [f"network.method={method}", "phase2.epochs=0", "loss.contrast=0"]
    read_config(tmp_path / "c.toml", one_stage)
    with pytest.raises(ValueError, match="pools nothing by attention: set"):
        read_config(tmp_path / "c.toml", [*one_stage, "network.pooling=attention"])


def test_the_defaults_are_the_papers(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('name = "x"\nrun = "r"\n[data]\nfolders = ["d"]\n')
    config = read_config(tmp_path / "c.toml", ["phase1.epochs=2", "network.trunk=light"])
    assert (config.phase1.epochs, config.network.trunk) == (2, "light")
    assert (config.phase2.epochs, config.phase2.batch, config.phase2.learning_rate) == (40, 32, 1e-3)
    assert (config.phase2.momentum, config.phase2.weight_decay, config.phase2.optimiser) == (0.9, 5e-4, "sgd")
    assert (config.loss.contrast, config.loss.temperature, config.loss.map) == (0.4, 0.1, 0)
    assert (config.network.pooling, config.network.feature_width) == ("average", 512)
    assert config.data.folders == [tmp_path / "d"]


def test_the_rate_warms_up_and_then_falls_as_half_a_cosine() -> None:
    phase = Phase(epochs=1, learning_rate=0.1, schedule="cosine", warmup_steps=4)
    rates = [_learning_rate(phase, step=step, total=12) for step in range(12)]
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert rates[4:] == pytest.approx([0.05 * (1 + math.cos(math.pi * k / 8)) for k in range(8)])
    assert _learning_rate(phase, step=12, total=12) == pytest.approx(0)
    held = phase.model_copy(update={"hold": 2 / 3})
    assert [_learning_rate(held, step=step, total=16) for step in range(3, 13)] == pytest.approx([0.1] * 10)
    falling = [0.05 * (1 + math.cos(math.pi * k / 4)) for k in range(5)]
    assert [_learning_rate(held, step=step, total=16) for step in range(12, 17)] == pytest.approx(falling)
    constant = phase.model_copy(update={"schedule": "constant"})
    assert [_learning_rate(constant, step=step, total=12) for step in (1, 4, 11)] == pytest.approx([0.05, 0.1, 0.1])
