"""The acceptance with a tiny bundle on the CPU: every step is really run, with real processes."""

import copy
import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from service import acceptance
from service.__main__ import app
from service.acceptance import Plan, Step, report, run
from service.rendering import RenderingError, read_frame, render
from service.traffic import Traffic
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
    code, output, written = accept(bundle, frames, tmp_path / "report.md", "--batch", "3")
    assert code == 0, output
    assert written.startswith("# Acceptance of tiny: accepted")
    assert "runtime `onnxruntime` in fp32, batches of 3." in written
    for step in ("build", "parity", "throughput", "verdicts equal those of the CPU", "soak", "swaps under load"):
        assert f"| {step} | {'nothing to do' if step == 'build' else 'pass'} |" in written
    assert "4 swaps" in written
    assert re.search(r"by version \{'1.0.0': \d+, 'another': \d+\}", written)


def test_without_frames_it_renders_full_size_ones(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, seen = [], []

    def small(out: Path, *, screens: int, seed: int, size: tuple[int, int]) -> None:
        sizes.append(size)
        render(out, screens=screens, seed=seed, size=(256, 320))

    def kept(plan: Plan) -> Step:
        seen.append({path: read_frame(path).shape for path in acceptance._files(plan)})
        return Step(name="soak", passed=True, found="")

    only(monkeypatch, "_soak")
    monkeypatch.setattr(acceptance, "render", small)
    monkeypatch.setattr(acceptance, "_soak", kept)
    answer = CliRunner().invoke(app, ["acceptance", str(bundle), "--out", str(tmp_path / "report.md")])
    assert answer.exit_code == 0, answer.output
    assert sizes == [(10240, 5120)]
    assert list(seen[0].values()) == [(256, 320)] * 6
    assert not any(path.exists() for path in seen[0])


def test_frames_that_cannot_be_rendered_are_told_before_the_first_step(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptance, "SIZE", (-1, 320))
    answer = CliRunner().invoke(app, ["acceptance", str(bundle), "--out", str(tmp_path / "report.md")])
    assert isinstance(answer.exception, RenderingError)
    assert "rendering failed" in str(answer.exception)
    assert not (tmp_path / "report.md").exists()


def test_a_step_that_fails_is_said_and_the_others_run_all_the_same(bundle: Path, frames: Path, tmp_path: Path) -> None:
    code, output, written = accept(bundle, frames, tmp_path / "report.md", "--patches-per-s", "1e9")
    assert code == 1, output
    assert written.startswith("# Acceptance of tiny: not accepted")
    assert "| throughput | **fail** |" in written
    assert "| soak | **fail** |" in written
    assert "| swaps under load | pass |" in written


@pytest.mark.parametrize(("patches", "passed"), [(1560, True), (1559, False)])
def test_a_service_that_is_slower_than_its_graph_fails_the_soak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patches: int, passed: bool
) -> None:
    answers = {"failures": [], "describe": lambda: "", "figures": dict, "load_for": lambda _: None}
    line = SimpleNamespace(**answers, patches=patches, elapsed_s=10.0)
    monkeypatch.setattr(acceptance, "_traffic", lambda _: nullcontext(line))
    found = acceptance._soak(plan_of(tmp_path, tmp_path))
    assert found.passed == passed
    assert "156 patches/s (at least 156)" in found.found


@pytest.mark.parametrize(("move_px", "different"), [(0, []), (8, []), (500, ["A-17"])])
def test_verdicts_whose_boxes_lie_elsewhere_are_not_those_of_the_cpu(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, move_px: int, different: list[str]
) -> None:
    answer = json.loads((Path(__file__).parents[1] / "golden" / "verdict_fail.json").read_text())
    answer["screen_id"] = "A-17"

    def inspected(*_: str, settings: dict[str, str]) -> list[Any]:
        moved = copy.deepcopy(answer)
        if settings["INSPECT_PRECISION"] == "fp32" and settings["INSPECT_RUNTIME"] == "onnxruntime":
            for defect in moved["defects"]:
                defect["box"]["left"] += move_px
                defect["box"]["right"] += move_px
        return [moved]

    monkeypatch.setattr(acceptance, "_files", lambda _: [])
    monkeypatch.setattr(acceptance, "_command", inspected)
    found = acceptance._equality(plan_of(bundle, bundle, runtime="openvino"))
    assert found.figures["different"] == list(found.figures["why"]) == different
    assert found.passed == (not different)


def test_the_batch_that_is_asked_for_is_that_of_every_step_and_no_other_is(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSPECT_BATCH", "7")
    plan = plan_of(bundle, bundle)
    assert "--batch" not in acceptance._as_run(plan)
    assert acceptance._settings(plan)["INSPECT_BATCH"] == ""
    wider = replace(plan, batch=10)
    assert acceptance._graph(wider) == ["--precision", "fp32", "--batch", "10"]
    assert acceptance._settings(wider)["INSPECT_BATCH"] == "10"


def test_frames_that_are_not_there_fail_the_steps_that_need_them(bundle: Path, tmp_path: Path) -> None:
    code, _, written = accept(bundle, tmp_path, tmp_path / "report.md")
    assert code == 1
    assert "| parity | pass |" in written
    assert "holds no PNG" in written


def plan_of(bundle: Path, frames: Path, *, runtime: str = "onnxruntime") -> Plan:
    return Plan(
        bundle=bundle,
        runtime=runtime,
        precision="fp32",
        batch=None,
        patches_per_s=156,
        bench_s=1,
        soak_s=1,
        swaps=3,
        frames=frames,
    )


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let all other steps pass at once."""
    for name in {"_build", "_check", "_throughput", "_equality", "_soak", "_swap"} - {*names}:
        monkeypatch.setattr(
            acceptance, name, lambda _, name=name: Step(name=name, passed=True, found="[/no] [red]markup")
        )


def test_a_service_that_dies_in_a_step_fails_the_step_and_leaves_a_report(
    bundle: Path, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    activate = acceptance._activate

    def kill_and_activate(traffic: Traffic, name: str) -> None:
        os.kill(traffic.served.pid, signal.SIGKILL)
        activate(traffic, name)

    only(monkeypatch, "_swap")
    monkeypatch.setattr(acceptance, "_activate", kill_and_activate)
    console = Console(record=True, width=200)
    steps = run(plan_of(bundle, frames), console, tmp_path / "report.md")
    assert [step.passed for step in steps] == [True] * 5 + [False]
    assert "the log ends" in steps[-1].found
    assert "[/no] [red]markup" in console.export_text()
    assert (tmp_path / "report.md").read_text().startswith("# Acceptance of tiny: not accepted")


def test_each_step_is_in_the_report_before_the_next_begins(
    bundle: Path, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Plan) -> Step:
        raise KeyboardInterrupt

    only(monkeypatch)
    monkeypatch.setattr(acceptance, "_soak", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(plan_of(bundle, frames), Console(), tmp_path / "report.md")
    written = (tmp_path / "report.md").read_text()
    assert written.startswith("# Acceptance of tiny: 2 steps missing")
    assert written.count("| pass |") == 4


def test_a_report_that_cannot_be_written_is_found_before_the_first_step(
    bundle: Path, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch)
    console = Console(record=True)
    with pytest.raises(FileNotFoundError):
        run(plan_of(bundle, frames), console, tmp_path / "nowhere" / "report.md")
    assert console.export_text() == ""


@pytest.mark.parametrize(
    ("used", "passed", "found"),
    [
        ("1000\n500\n", True, "memory of the GPUs at rest 1500 MiB from 2 swaps on and 1500 MiB in the end (+0.0%)"),
        ("$((1000 * (1 + $(wc -l < asked))))\n", False, "(+33.3%)"),
        ("[N/A]\n", False, "tells no memory: [N/A]"),
    ],
)
def test_memory_that_stays_on_a_gpu_fails_the_swaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: str, passed: bool, found: str
) -> None:
    """With an nvidia-smi of the test's own, which counts how often it was asked."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\ncd {tmp_path}\necho "$@" >> asked\nprintf \'%s\\n\' "{used.strip()}"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    @contextmanager
    def line(_: Plan) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(
            served=SimpleNamespace(pid=os.getpid()),
            failures=[],
            under_load=nullcontext,
            describe=lambda: "",
            figures=dict,
            versions={"1": 3, "another": 2},
        )

    only(monkeypatch, "_swap")
    monkeypatch.setattr(acceptance, "_traffic", line)
    monkeypatch.setattr(acceptance, "_activate", lambda *_: None)
    (*_, swaps) = run(plan_of(tmp_path, tmp_path, runtime="tensorrt"), Console(), tmp_path / "report.md")
    assert swaps.passed == passed
    assert found in swaps.found


def test_a_report_keeps_its_table_whatever_a_step_says(tmp_path: Path) -> None:
    written = report(plan_of(tmp_path, tmp_path), [Step(name="soak", passed=False, found="a | b\nc")])
    assert "| soak | **fail** | a \\| b c |" in written
