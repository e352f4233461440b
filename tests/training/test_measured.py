"""`evaluate` says of what its figures are, and warns where that is not what is served."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from engine import Manifest
from tests.bundles import tiny_bundle
from tests.training.data_form import write_screens
from training.__main__ import app
from training.bands import CONTRAST
from training.cutting import cut
from training.folder import data_id


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("measured")
    cut(write_screens(base / "source", screens=10), base / "cut", patch_px=128)
    return base / "cut"


def evaluated(bundle: Path, *folders: Path) -> Result:
    """What `evaluate --json -` answers of the test part."""
    named = [word for folder in folders for word in ("--data", str(folder))]
    answer = CliRunner().invoke(app, ["evaluate", "--bundle", str(bundle), *named, "--json", "-"])
    assert answer.exit_code == 0, answer.output
    return answer


def test_windows_that_are_not_served_are_measured_with_a_warning(tmp_path: Path) -> None:
    source, labels = write_screens(tmp_path / "source", screens=10), ("dot", "line")
    cut(source, tmp_path / "plain", patch_px=64, labels=labels)
    cut(source, tmp_path / "half", patch_px=64, stride_px=32, labels=labels)
    cut(source, tmp_path / "paper", patch_px=64, rule="paper", labels=labels)
    cut(source, tmp_path / "small", patch_px=64, shrink=2, labels=labels)
    bundle = tiny_bundle(tmp_path / "bundle", labels=labels, overlap_px=0)
    overlapping = tiny_bundle(tmp_path / "overlapping", labels=labels, overlap_px=32)
    for made, folder, told in (
        (bundle, "plain", None),
        (bundle, "half", "the windows of {} overlap by 32 px, those of the service by 0"),
        (overlapping, "half", None),
        (bundle, "paper", "{} was cut by --rule paper, which drops patches that the service looks at"),
        (bundle, "small", "{} was cut from screens 2 times smaller, and the service shrinks none"),
    ):
        said = [line for line in evaluated(made, tmp_path / folder).stderr.splitlines() if "not as served" in line]
        assert said == ([] if told is None else [f"not as served: {told.format(tmp_path / folder)}"])


def test_sizes_of_shrunk_screens_are_in_shrunk_pixels_and_it_is_said(tmp_path: Path) -> None:
    source, labels = write_screens(tmp_path / "source", screens=10), ("dot", "line")
    cut(source, tmp_path / "plain", patch_px=64, labels=labels)
    cut(source, tmp_path / "small", patch_px=64, shrink=2, labels=labels)
    bundle = tiny_bundle(tmp_path / "bundle", labels=labels)
    said = " ".join(evaluated(bundle, tmp_path / "small").stderr.split())
    assert "longer side of what lies in the patch, px of screens taken 2 times smaller" in said
    assert "border of the window, px of screens taken 2 times smaller" in said
    assert "times smaller" not in evaluated(bundle, tmp_path / "plain").stderr


def test_figures_say_what_was_measured(folder: Path, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", labels=("dot", "line"), patch_px=128, threshold=0.4)
    answer = evaluated(bundle, folder)
    told = json.loads(answer.stdout)
    about = told["measured"]
    assert about.pop("runtime") in ("openvino", "onnxruntime")
    assert about == {
        "data_id": data_id([folder]),
        "folders": [str(folder)],
        "part": "test",
        "group": "screen",
        "thresholds": {"dot": 0.4, "line": 0.4},
        "patch_px": 128,
        "stride_px": [128],
        "shrink": [1],
        "rule": ["known"],
        "precision": "fp32",
        "contrast": CONTRAST,
    }
    assert CONTRAST in " ".join(answer.stderr.split())  # over the bands of contrast
    assert told["models"] == [f"tiny 1.0.0, limits {Manifest.read(bundle).limits_version}"]
    assert told.keys() >= {"accuracy", "precision", "recall", "f_measure", "patches", "per_label", "bands"}
