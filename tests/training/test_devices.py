import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.training.data_form import write_toy
from tests.training.two_devices import CASES, HEARD, configuration, frozen, share, step
from training.__main__ import app
from training.config import read_config
from training.datasets import PatchSet
from training.devices import launch, refuse_lacking
from training.feed import Feed
from training.fit import Run
from training.rows import read_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("devices"), screens=20, patch_px=64)


def _ended(node: subprocess.Popen[bytes]) -> int:
    """How it ended; one that goes on for minutes is killed, so that what both told is seen."""
    try:
        return node.wait(250)
    except subprocess.TimeoutExpired:
        node.kill()
        return node.wait()


@pytest.fixture(scope="module")
def two(toml: Path) -> Path:
    """Two processes, as torchrun starts them on two nodes, have done what `two_devices.both` does; where it lies.

    They are given what torchrun would give them. Its agents are left out: where both end in the same moment, one may
    wait for the other in vain, five minutes long.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    shared |= {"TORCHELASTIC_RUN_ID": "two", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    command = [sys.executable, "-m", "tests.training.two_devices", str(toml)]
    logs = [toml.parent / f"node{rank}.log" for rank in (0, 1)]
    nodes = []
    for rank, path in enumerate(logs):
        environment = {**os.environ, **shared, "RANK": str(rank), "GROUP_RANK": str(rank)}
        with path.open("w") as log:
            nodes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT))
    ended = [_ended(node) for node in nodes]
    assert ended == [0, 0], "\n".join(path.read_text() for path in logs)
    return toml.parent


def test_processes_that_one_command_starts_learn_what_torchruns_do(two: Path, toml: Path) -> None:
    words = ["run=started", "accelerator=cpu", "devices=2", "network.light=root", "data.hard=0.5"]
    words += ["phase1.epochs=2", "phase1.batch=16"]
    sets = [f"--set={word}" for word in (*words, "phase2.statistics=16")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "training", "fit", str(toml), *sets]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    run = toml.parent / "started"
    assert json.loads((run / "run.json").read_text())["sessions"][0]["machine"]["processes"] == 2
    weights, by_torchrun = (load_file(folder / "phase2.safetensors") for folder in (run, two / "two-whole"))
    for key, value in by_torchrun.items():
        torch.testing.assert_close(weights[key], value, msg=key)


def alone() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.mark.parametrize(("name", "relations"), CASES)
def test_the_gradient_of_two_devices_is_that_of_one_with_the_whole_batch(
    two: Path, toml: Path, name: str, relations: str
) -> None:
    """Contrast, relations, maps, and unknown entries of which one device has more than the other."""
    found = torch.load(two / f"{name}-{relations}.pt")
    one = step(configuration(toml, *HEARD, f"run=one-{name}-{relations}", f"relations={relations}"), alone(), name)
    assert (one.contrast > 0.1) == (name == "phase1")  # so that a device's own share would give another
    if name == "phase2":
        other = "network.relate_to=itself"  # nothing is heard of other patches
        deaf = step(
            configuration(toml, *HEARD, other, f"run=deaf-{relations}", f"relations={relations}"), alone(), name
        )
        key = "reasoning.classifier.weight"
        assert (deaf.gradient[key] - one.gradient[key]).abs().max() > 1e-3
    torch.testing.assert_close(found["contrast"], one.contrast, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["loss"], one.loss, atol=1e-5, rtol=1e-5)
    assert found["gradient"].keys() == one.gradient.keys()
    assert any(key.startswith("reasoning.") for key in one.gradient) == (name == "phase2")
    for key, expected in one.gradient.items():
        torch.testing.assert_close(found["gradient"][key], expected, atol=1e-5, rtol=1e-5, msg=key)
    torch.testing.assert_close(found["difficulty"], one.difficulty, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["probability"], one.probability, atol=1e-5, rtol=1e-5)


def test_two_devices_learn_what_one_does(two: Path, toml: Path) -> None:
    """Whole runs with frozen batch normalisation: the same order, losses, figures and weights."""
    sgd = ["phase1.optimiser=sgd", "phase2.optimiser=sgd", "relations=batch"]
    config = configuration(toml, "run=one-frozen", *sgd)
    frozen(Run(config, alone())).finish()
    for file in ("phase1.safetensors", "phase2.safetensors"):
        first, second = load_file(config.run / file), load_file(two / "two-frozen" / file)
        for key, value in first.items():
            torch.testing.assert_close(second[key], value, atol=2e-4, rtol=1e-4, msg=key)  # a step changes more
    rows, others = read_rows(config.run / "metrics.csv"), read_rows(two / "two-frozen" / "metrics.csv")
    assert len(rows) == len(others) == 4
    for row, other in zip(rows, others, strict=True):
        for key in ("loss", "bce", "map", "accuracy", "learning_rate"):
            assert float(row[key]) == pytest.approx(float(other[key]), rel=1e-4), (row["phase"], key)


def test_two_devices_resume_bit_for_bit(two: Path) -> None:
    for file in ("phase1.safetensors", "phase2.safetensors"):
        assert (two / "two-broken" / file).read_bytes() == (two / "two-whole" / file).read_bytes()
    sessions = json.loads((two / "two-broken" / "run.json").read_text())["sessions"]
    assert [session["machine"]["processes"] for session in sessions] == [2, 2, 2]


def test_shares_of_whole_screens_are_uneven(toml: Path) -> None:
    """So that the gradients above would tell."""
    run = Run(configuration(toml, "run=shares"), alone())
    screens = run.feeds["phase2"].patches.by_screen()[:5]
    assert len(share(run, by_screen=True)) == sum(len(screen) for screen in screens)
    assert len({len(screen) for screen in screens}) == 1  # two screens against three


@pytest.mark.parametrize(
    ("started", "message"),
    [
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, "--set devices=2 --set nodes=2"),
        ({}, "nodes = 2: start"),
    ],
)
def test_processes_are_as_many_as_the_configuration_says(
    toml: Path, monkeypatch: pytest.MonkeyPatch, started: dict[str, str], message: str
) -> None:
    for key, value in {**started, **({"TORCHELASTIC_RUN_ID": "1"} if started else {})}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match=message):
        launch(read_config(toml, ["nodes=2"]))


@pytest.mark.parametrize(
    ("gpus", "words", "message"),
    [
        (0, ["devices=4"], "has 0: --set devices=1 trains on the CPU, --set accelerator=cpu trains in 4"),
        (2, ["devices=4"], "has 2: --set devices=2 trains on the GPUs, --set accelerator=cpu"),
        (0, ["accelerator=cuda"], "devices = 1 are GPUs, of which this machine has 0: --set accelerator=cpu"),
        (0, ["precision=16-mixed"], "needs a GPU: --set precision=32-true"),
        (0, ["devices=4", "precision=16-mixed"], "has 0: .*; precision = '16-mixed' needs a GPU"),
        (2, ["precision=16-mixed", "accelerator=cpu"], "needs a GPU"),
        (0, ["devices=4", "accelerator=cpu"], None),
        (4, ["devices=4", "precision=16-mixed"], None),
        (0, [], None),
    ],
)
def test_what_the_machine_lacks_is_not_trained_otherwise(
    toml: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, words: list[str], message: str | None
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    config = read_config(toml, words)
    if message is None:
        refuse_lacking(config)
        return
    with pytest.raises(ValueError, match=message):
        launch(config)


def test_a_table_of_four_gpus_is_refused_before_anything_is_cut(
    toml: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    asked = ["table", "2", "--preset", "full", "--data", str(toml.parent / "source"), "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, asked).exception
    assert isinstance(refused, ValueError)
    assert "devices = 4 are GPUs, of which this machine has 1" in str(refused)
    assert "; --finished trains nothing" in str(refused)
    assert not (tmp_path / "out").exists()


def test_a_batch_has_patches_for_every_device(toml: Path) -> None:
    patches = PatchSet([toml.parent / "cut"], "train")
    two = type("Two", (), {"world_size": 2, "global_rank": 1})()

    def order(phase: str, *words: str) -> list[list[int]]:
        return Feed(phase, patches, read_config(toml, ["data.patches_per_epoch=1", *words]), two).order(0)

    with pytest.raises(ValueError, match="fewer patches than the 2 devices"):
        order("phase1")
    with pytest.raises(ValueError, match="1 batches of 1000 patches in whole screens for 2 devices"):
        order("phase2", "phase2.batch=2000")
    with pytest.raises(ValueError, match=r"phase1\.batch = 3 does not divide"):
        order("phase1", "phase1.batch=3")


def test_a_cell_of_a_study_is_measured_once_and_told_to_both(two: Path) -> None:
    cells = {file.stem: json.loads(file.read_text()) for file in (two / "study" / "cells").iterdir()}
    assert {cell["seed"] for cell in cells.values()} == {0, 1}
    for name, cell in cells.items():
        assert cell["figures"]["image"]["f_measure"] >= 0
        for rank in (0, 1):
            assert json.loads((two / "study" / "runs" / name / f"told-{rank}.json").read_text()) == cell
