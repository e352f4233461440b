import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

import engine.__main__ as command
from engine import Backend, read_golden
from engine.manifest import REQUIRED_FILES, Manifest
from engine.slots import Spread, measure_slots, slot_patches
from tests.bundles import LABELS, tiny_bundle


@pytest.fixture(autouse=True)
def _short_speed_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.check.SPEED_TEST_S", 0.01)
    monkeypatch.setenv("COLUMNS", "200")


def test_json_says_what_the_bundle_is(bundle: Path) -> None:
    answer = CliRunner().invoke(command.app, ["check", str(bundle), "--runtime", "onnxruntime", "--json"])
    assert answer.exit_code == 0, answer.output
    report = json.loads(answer.stdout)
    assert report["ok"] is True
    assert (report["name"], report["version"], report["patch_px"]) == ("tiny", "1.0.0", 64)
    assert list(report["labels"]) == list(LABELS)
    assert report["labels"]["bubble"] == {"threshold": 0.5, "review": [0.3, 0.7]}
    assert set(report["files"]) == set(REQUIRED_FILES)
    for name, file in report["files"].items():
        assert file["size_bytes"] == (bundle / name).stat().st_size
    assert report["golden"]["patches"] == 5
    assert 0 <= report["golden"]["difference"] <= report["golden"]["tolerance"] == 1e-5
    assert report["runtime"] == "onnxruntime"
    assert re.fullmatch("[0-9]+ x [0-9]+", report["threads"])
    assert report["slots"] == {
        "probability": dict.fromkeys(LABELS, 0.0),
        "guard": dict.fromkeys(LABELS, 0.0),
        "same_bits": True,
    }
    assert report["patches_per_s"] > 0


def test_slots_are_measured_on_the_patches_of_build_and_gate(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def noted(backend: Backend, pixels: NDArray[np.uint8]) -> Spread:
        measured.append(len(pixels))
        return measure_slots(backend, pixels)

    monkeypatch.setattr("engine.check.measure_slots", noted)
    assert CliRunner().invoke(command.app, ["check", str(bundle), "--runtime", "onnxruntime"]).exit_code == 0
    assert measured == [len(slot_patches(read_golden(bundle).pixels))]


def test_the_batch_can_be_another_than_the_manifests(bundle: Path) -> None:
    for more, patches in (([], 5), (["--batch", "3"], 3)):
        answer = CliRunner().invoke(command.app, ["check", str(bundle), "--runtime", "onnxruntime", "--json", *more])
        assert json.loads(answer.stdout)["batch_size"] == patches


def test_the_table_names_labels_files_and_figures(bundle: Path) -> None:
    answer = CliRunner().invoke(command.app, ["check", str(bundle)])
    assert answer.exit_code == 0, answer.output
    for words in (
        "tiny 1.0.0",
        *LABELS,
        *REQUIRED_FILES,
        "macro_f",
        "5 golden patches differ by",
        "verified",
        "equal bit for bit",
    ):
        assert words in answer.stdout


def test_a_manifest_cannot_write_with_the_console(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    manifest = Manifest.read(copy)
    replace(manifest, data_id="[/red] :skull: [link=x]", training={"note": "[bold]"}).write(copy)
    answer = CliRunner().invoke(command.app, ["check", str(copy)])
    assert answer.exit_code == 0, answer.output
    assert "[/red] :skull: [link=x]" in answer.stdout
    assert "[bold]" in answer.stdout


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_an_altered_bundle_fails_naming_the_key(bundle: Path, tmp_path: Path, form: list[str]) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    (copy / "reasoning.onnx").write_bytes(b"other")
    answer = CliRunner().invoke(command.app, ["check", str(copy), *form])
    assert answer.exit_code == 1
    assert "files.reasoning.onnx: was altered" in answer.output
    if form:
        report = json.loads(answer.stdout)
        assert (report["ok"], report["key"]) == (False, "files.reasoning.onnx")


def test_golden_patches_that_are_missed_fail(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    other = tiny_bundle(tmp_path / "other", labels=("bubble",))
    for name in ("features.onnx", "reasoning.onnx", "manifest.json", "golden.npz"):
        shutil.copy(other / name, bundle / name)
    answer = CliRunner().invoke(command.app, ["check", str(bundle), "--json"])
    assert answer.exit_code == 0, answer.output  # a bundle is its files, wherever they lie

    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["parity_tolerance"]["fp32"] = 0.0
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    answer = CliRunner().invoke(command.app, ["check", str(bundle)])
    assert answer.exit_code == 1
    assert "over the tolerance" in answer.output


def test_the_command_line_as_it_is_typed(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "engine", "check", str(tmp_path / "none")], capture_output=True, text=True
    )
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert "manifest.json: cannot be read" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_scores_of_extreme_patches_that_are_no_numbers_fail(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(backend: Backend, pixels: NDArray[np.uint8]) -> Spread:
        return Spread(
            probability=dict.fromkeys(LABELS, math.nan), guard=dict.fromkeys(LABELS, math.nan), same_bits=True
        )

    monkeypatch.setattr("engine.check.measure_slots", nothing)
    answer = CliRunner().invoke(command.app, ["check", str(bundle), "--runtime", "onnxruntime", "--json"])
    assert answer.exit_code == 1
    assert "no numbers on golden or extreme patches" in json.loads(answer.stdout)["error"]
