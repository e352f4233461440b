"""The acceptance with a tiny bundle on the CPU: every step is really run, with real processes."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from service.__main__ import app
from service.acceptance import Plan, Step, report
from tests.bundles import BACKGROUND, grey_of


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    (folder / "screens").mkdir(parents=True)
    for number in range(2):
        pixels = np.random.default_rng(number).integers(BACKGROUND - 20, BACKGROUND + 21, (128, 192)).astype(np.uint8)
        pixels[40:44, 80:84] = grey_of(number)
        cv2.imwrite(str(folder / "screens" / f"screen-{number}.png"), pixels)
    return folder


def accept(bundle: Path, frames: Path, out: Path, *options: str) -> tuple[int, str, str]:
    quick = ["--bench-s", "0.2", "--soak-s", "1", "--swaps", "4", "--out", str(out)]
    cpu = ["--runtime", "onnxruntime", "--precision", "fp32"]
    answer = CliRunner().invoke(app, ["acceptance", str(bundle), "--frames", str(frames), *cpu, *quick, *options])
    return answer.exit_code, answer.output, out.read_text() if out.exists() else ""


def test_a_bundle_that_holds_everything_is_accepted(bundle: Path, frames: Path, tmp_path: Path) -> None:
    code, output, written = accept(bundle, frames, tmp_path / "report.md")
    assert code == 0, output
    assert written.startswith("# Acceptance of tiny: accepted")
    for step in ("build", "parity", "throughput", "verdicts equal those of the CPU", "soak", "swaps under load"):
        assert f"| {step} | {'nothing to do' if step == 'build' else 'pass'} |" in written
    assert "4 swaps" in written


def test_a_step_that_fails_is_said_and_the_others_run_all_the_same(bundle: Path, frames: Path, tmp_path: Path) -> None:
    code, output, written = accept(bundle, frames, tmp_path / "report.md", "--patches-per-s", "1e9")
    assert code == 1, output
    assert written.startswith("# Acceptance of tiny: not accepted")
    assert "| throughput | **fail** |" in written
    assert "| soak | pass |" in written


def test_frames_that_are_not_there_fail_the_steps_that_need_them(bundle: Path, tmp_path: Path) -> None:
    code, _, written = accept(bundle, tmp_path, tmp_path / "report.md")
    assert code == 1
    assert "| parity | pass |" in written
    assert "holds no PNG" in written


def test_a_report_keeps_its_table_whatever_a_step_says(tmp_path: Path) -> None:
    plan = Plan(
        bundle=tmp_path,
        runtime="tensorrt",
        precision="fp16",
        patches_per_s=156,
        bench_s=1,
        soak_s=1,
        swaps=3,
        frames=tmp_path,
    )
    written = report(plan, [Step(name="soak", passed=False, found="a | b\nc")])
    assert "| soak | **fail** | a \\| b c |" in written
