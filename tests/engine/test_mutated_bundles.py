import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine.manifest import Manifest

MUTANTS, PARTS = 5000, 4  # in parts, which run side by side


def in_every_precision(bundle: Path, copy: Path) -> Path:
    """A bundle whose float32 graph has other names as well: what a runtime computes in is its own affair here."""
    shutil.copytree(bundle, copy)
    tolerances = dict(Manifest.read(copy).parity_tolerance)
    for precision in ("fp16", "bf16"):
        shutil.copy(copy / "features.onnx", copy / f"features.{precision}.onnx")
        tolerances[precision] = 0.01
    replace(Manifest.read(bundle), parity_tolerance=tolerances).sign(copy)
    return copy


@pytest.mark.parametrize("part", range(PARTS))
def test_mutated_bundles_never_crash_the_process(bundle: Path, tmp_path: Path, part: int) -> None:
    whole = in_every_precision(bundle, tmp_path / "whole")
    command = [sys.executable, "-m", "tests.engine.mutate_bundles", str(whole), str(tmp_path)]
    answer = subprocess.run(
        [*command, str(MUTANTS // PARTS), str(part + 1)], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    outcomes = json.loads(answer.stdout)
    assert {"onnxruntime fp32", "onnxruntime fp16"} <= outcomes.keys()
    if importlib.util.find_spec("openvino"):
        assert {"openvino fp32", "openvino fp16"} <= outcomes.keys()
    assert sum(sum(found.values()) for found in outcomes.values()) == MUTANTS // PARTS
    for found in outcomes.values():
        # most are refused by name; the model card, and a spare byte here and there, decide nothing
        assert {"files", "features", "reasoning", "golden", "manifest"} <= found.keys()
        assert found["served"] < sum(found.values()) / 5
