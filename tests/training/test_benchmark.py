import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from tests.bundles import tiny_bundle
from training import benchmark
from training.__main__ import app
from training.architecture import NetworkConfig
from training.network import TwoStageNetwork

torch_compile = torch.compile


@pytest.fixture(autouse=True)
def _small_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that has learnt nothing is as fast as one that has."""
    network = TwoStageNetwork(4, NetworkConfig(trunk="light"))
    monkeypatch.setattr(benchmark, "load_run", lambda run: (network, None, ("a", "b", "c", "d")))


def test_eager_and_compiled_run_the_same_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiled: list[object] = []

    def compiling(module: Callable[[Tensor], object]) -> Callable[[Tensor], object]:
        compiled.append(module)
        return torch_compile(module, backend="eager")  # the front end alone: C++ takes half a minute

    monkeypatch.setattr(torch, "compile", compiling)
    ready, missing = benchmark.contestants(tmp_path, batch_size=2, patch_px=64)
    assert missing == {}
    assert [(one.name, one.batch_size) for one in ready] == [("torch eager", 2), ("torch.compile", 2)]
    assert all(one.run() > 0 for one in ready)
    assert len(compiled) == 1


def test_without_a_compiler_the_row_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/nowhere/c++"))
    monkeypatch.setenv("COLUMNS", "200")
    file = tmp_path / "bench.json"
    bundle = tiny_bundle(tmp_path / "bundle")
    arguments = ["bench", str(tmp_path), "--bundle", str(bundle), "--patch", "64", "--seconds", "0.05"]
    answer = CliRunner().invoke(app, [*arguments, "--json", str(file)])
    assert answer.exit_code == 0, answer.output
    assert "no torch.compile fp32: InvalidCxxCompiler" in answer.output
    rows = [(one["runtime"], one["precision"]) for one in json.loads(file.read_text())["results"]]
    assert rows[0] == ("torch eager", "fp32")
    assert ("onnxruntime", "fp32") in rows
