"""Everything once, as an engineer types it: render, cut, fit, export, check, inspect, judge, release."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.data_form import TOML

FOR_THIS = """--set name=end-to-end --set phase1.folders=["cut-small"] --set phase1.epochs=1 --set phase2.epochs=1"""

SCREEN = "screens/screens/s3_00000.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a network has been trained for two short epochs, and exported."""
    folder = tmp_path_factory.mktemp("end_to_end")
    (folder / "config.toml").write_text(TOML)
    run(folder, "training render --screens 14 --seed 3 --width 512 --height 640 --out screens")
    run(folder, "training cut screens --patch 256 --out cut")
    run(folder, "training cut screens --patch 128 --out cut-small")
    run(folder, f"training fit config.toml {FOR_THIS}")
    run(folder, "training export run --out bundle --version 3 --precision fp16 --second-look --golden screens")
    return folder


def run(folder: Path, command: str, *, code: int = 0) -> str:
    """Standard output of `python -m command`."""
    answer = subprocess.run([sys.executable, "-m", *command.split()], cwd=folder, capture_output=True, text=True)
    assert answer.returncode == code, answer.stdout + answer.stderr
    return answer.stdout


def test_the_exported_bundle_is_what_it_says(folder: Path) -> None:
    report = json.loads(run(folder, "engine check bundle --json"))
    assert (report["name"], report["version"], report["patch_px"]) == ("end-to-end", "3", 256)
    assert list(report["labels"]) == ["bubble", "pinhole", "scratch", "tin_ash"]


def test_every_patch_is_evaluated(folder: Path) -> None:
    run(folder, "training evaluate --bundle bundle --data cut --part all --json figures.json")
    figures = json.loads((folder / "figures.json").read_text())
    assert {"accuracy", "precision", "recall", "f_measure", "per_label"} <= figures.keys()
    assert figures["patches"] == 14 * 2 * 3


def test_half_precision_is_compared_with_float32(folder: Path) -> None:
    printed = run(folder, "training fidelity bundle --data cut --part all --json fidelity.json")
    assert "fp16" in printed
    found = json.loads((folder / "fidelity.json").read_text())["fp16"]
    assert (found["patches"], found["screens"]) == (14 * 2 * 3, 14)
    assert 0 < found["mean"] < found["largest"] < 0.05


def test_every_screen_is_inspected_and_judged(folder: Path) -> None:
    files = sorted(str(path.relative_to(folder)) for path in (folder / "screens" / "screens").iterdir())
    verdicts = run(folder, f"service inspect {' '.join(files)} --bundle bundle --json --overlay overlays")
    (folder / "verdicts.json").write_text(verdicts)
    assert [entry["screen_id"] for entry in json.loads(verdicts)] == [Path(file).stem for file in files]
    assert len(list((folder / "overlays").iterdir())) == 14
    run(folder, "training judge verdicts.json screens --json judgement.json")
    judgement = json.loads((folder / "judgement.json").read_text())
    assert (judgement["screens"], judgement["unanswered"]) == (14, 0)


def test_the_bundle_passes_the_release_gate_with_its_modules_verdicts(folder: Path) -> None:
    record = json.loads(run(folder, "service release bundle --golden screens --active bundle --json"))
    assert (record["screens"], record["different"]) == (14, [])
    assert [device["finite"] for device in record["devices"]] == [True]
    (kept,) = json.loads((folder / "bundle" / "release.json").read_text())["records"].values()
    assert kept == record


def test_other_limits_are_calibrated_sealed_and_released(folder: Path) -> None:
    run(folder, "training calibrate bundle --data cut --part validation --version 3.1 --out bundle-limits")
    run(folder, "training seal run --bundle bundle-limits --golden screens")
    record = json.loads(run(folder, "service release bundle-limits --golden screens --active bundle-limits --json"))
    assert (record["screens"], record["different"]) == (14, [])
    (verdict,) = json.loads(run(folder, f"service inspect {SCREEN} --bundle bundle-limits --json"))
    assert verdict["model"] == {"name": "end-to-end", "version": "3.1", "limits": 2}


def test_what_the_user_can_mend_is_one_line(folder: Path) -> None:
    command = [sys.executable, "-m", "training", "cut", "screens", "--patch", "100", "--out", "other"]
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: --patch")
    assert "Traceback" not in answer.stderr
