import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

import engine.bench
from engine import FakeBackend, Features, InferenceError, Manifest, RuntimeUnavailable, fake_manifest
from engine.__main__ import app
from engine.bench import MIN_ROUNDS, Ceilings, Contestant, bench
from engine.cpus import cpu_name, vector_instructions
from engine.graphs import count_work
from engine.yardstick import Yardstick
from tests.bundles import tiny_bundle
from tests.engine.doubles.cuda import Machine

LIMITS = Ceilings(gflop_per_s=1e6, copy_gb_per_s=1.0)


def sleeper(name: str, batch_s: float, order: list[str]) -> Contestant:
    def run() -> float:
        order.append(name)
        return batch_s

    return Contestant(name=name, precision="fp32", threads="", batch_size=10, run=run)


def test_contestants_take_turns_and_the_median_counts() -> None:
    order: list[str] = []
    report = bench(None, seconds=0, others=[sleeper("one", 0.1, order), sleeper("two", 0.2, order)])
    assert order == ["one", "two"] * (1 + MIN_ROUNDS)  # the first turn is no measurement
    one, two = report.results
    assert (one.runtime, one.batches) == ("one", MIN_ROUNDS)
    assert one.patches_per_s == pytest.approx(100)
    assert two.patches_per_s == pytest.approx(50)
    assert two.of_floor_ratio == pytest.approx(50 / 156)
    assert one.of_roofline_ratio is None  # no graph, no work
    assert report.ceilings.gflop_per_s > 0.1
    assert report.ceilings.copy_gb_per_s > 0.1


def test_the_spread_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9.0, *np.arange(1, 101) / 1000])
    run = Contestant(name="one", precision="fp32", threads="", batch_size=1, run=lambda: next(times))
    monkeypatch.setattr(engine.bench, "MIN_ROUNDS", 100)
    latency = bench(None, seconds=0, others=[run]).results[0].latency
    assert latency.best_s == 0.001
    assert latency.median_s == pytest.approx(0.0505)
    assert latency.p5_s == pytest.approx(0.00595)
    assert latency.p95_s == pytest.approx(0.09505)


def test_the_ratio_to_the_roofline_is_that_of_the_best_times(bundle: Path) -> None:
    report = bench(bundle, runtimes=["onnxruntime"], seconds=0.2)
    (one,) = report.results
    assert report.patch_gflop == 0  # the tiny graph multiplies no matrices
    assert one.of_roofline_ratio == 0
    work = (2.0, 1.0)  # GFLOP and MB of a patch, so that the product is the limit
    result = engine.bench._result(sleeper("one", 0, []), [0.5, 1.0, 2.0], work, report.ceilings)
    assert result.of_roofline_ratio == pytest.approx(10 * 2.0 / report.ceilings.gflop_per_s / 0.5)
    assert result.gflop_per_s == pytest.approx(2.0 * 10 / 1.0)


def test_the_work_of_the_embedded_network_is_that_of_its_layers() -> None:
    work = count_work(engine.DEFAULT_BUNDLE, Manifest.read(engine.DEFAULT_BUNDLE))
    stem = 256 * 256 * 16 * 8 * 8
    depthwise = 128 * 128 * 16 * 5 * 5
    assert stem + depthwise < work.multiply_adds < 4e8
    assert work.moved_bytes > 4 * (1024 * 1024 + 2 * 16 * 256 * 256)


def test_a_device_with_a_clock_of_its_own_is_read_by_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Events(FakeBackend):
        runtime = "tensorrt"
        closed = 0

        def timed_features(self, pixels: NDArray[np.uint8]) -> tuple[Features, float]:
            return self.features(pixels), 0.004

        @contextmanager
        def yardstick(self) -> Iterator[Yardstick]:
            yield Yardstick(product=lambda: 0.5, gflop=100.0, copy=lambda: 0.25, gigabytes=1.0)
            assert Events.closed == 0

        def close(self) -> None:
            Events.closed += 1

    backend = Events(fake_manifest(batch_size=8), lambda pixels: np.zeros((len(pixels), 4)))
    monkeypatch.setattr(engine.bench, "load", lambda *_, **__: backend)
    monkeypatch.setattr(engine.bench, "_work", lambda *_: (0.1, 4.0))  # the work of a patch is 0.5 ms, its copies 1 ms
    report = bench(bundle, runtimes=["tensorrt"], seconds=0)
    (one,) = report.results
    assert one.patches_per_s == pytest.approx(2000)
    assert report.device_ceilings == {"tensorrt fp32": Ceilings(gflop_per_s=200.0, copy_gb_per_s=4.0)}
    assert one.of_roofline_ratio == pytest.approx(8 * 0.001 / 0.004)  # of its own ceilings, not of the CPU's
    assert Events.closed == 1


def test_the_rate_of_a_device_is_that_of_batches_in_a_row() -> None:
    one = Contestant(name="gpu", precision="fp16", threads="", batch_size=10, run=lambda: 0.2, in_row=lambda: 0.1)
    (found,) = bench(None, seconds=0, others=[one]).results
    assert found.patches_per_s == pytest.approx(100)
    assert found.latency.median_s == pytest.approx(0.2)
    half = engine.bench._result(replace(one, on_cpu=False), [0.2], (1.0, 8.0), LIMITS, in_row=[0.1, 0.3])
    assert half.of_roofline_ratio == pytest.approx(10 * 4.0 / 1e3 / 0.1)  # half the bytes of float32, at 1 GB/s


def test_a_gpu_is_measured_against_its_own_ceilings(
    machine: Machine, half_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.datatype = "FP16"
    import engine.gpu_yardstick

    monkeypatch.setattr(engine.gpu_yardstick, "SIDE", 64)
    monkeypatch.setattr(engine.gpu_yardstick, "COPY_BYTES", 1000)
    report = bench(half_bundle, runtimes=["tensorrt"], precisions=["fp16"], batch_size=2, seconds=0)
    assert report.missing == {}
    (one,) = report.results
    assert one.latency.median_s == pytest.approx(0.0125)  # whatever the double's events measure
    ceilings = report.device_ceilings["tensorrt fp16"]
    assert ceilings.gflop_per_s == pytest.approx(2 * 64**3 / 1e9 / 0.0125)
    assert ceilings.copy_gb_per_s == pytest.approx(2 * 1000 / 1e9 / 0.0125)
    assert one.of_roofline_ratio is not None
    assert machine.used_bytes == 0
    machine.fail["multiply"] = [False]
    with pytest.raises(InferenceError, match="could not multiply"):
        bench(half_bundle, runtimes=["tensorrt"], precisions=["fp16"], seconds=0)
    assert machine.used_bytes == 0


def test_a_gpu_without_memory_for_its_ceilings_is_timed_without_them(machine: Machine, half_bundle: Path) -> None:
    machine.datatype, machine.memory_bytes = "FP16", 10**6
    report = bench(half_bundle, runtimes=["tensorrt"], precisions=["fp16"], seconds=0)
    assert set(report.missing) == {"roofline of tensorrt fp16"}
    (one,) = report.results
    assert one.patches_per_s > 0
    assert one.of_roofline_ratio is None
    assert machine.used_bytes == 0


def test_what_cannot_take_part_is_named(bundle: Path) -> None:
    report = bench(bundle, runtimes=["onnxruntime", "abacus"], precisions=["fp32", "int8"], seconds=0)
    assert [(one.runtime, one.precision) for one in report.results] == [("onnxruntime", "fp32")]
    assert set(report.missing) == {"onnxruntime int8", "abacus fp32", "abacus int8"}
    with pytest.raises(RuntimeUnavailable, match="'abacus' is not known"):
        bench(bundle, runtimes=["abacus"], seconds=0)


def test_the_cpu_is_named_with_its_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: Some CPU @ 3 GHz\nflags\t\t: fpu sse avx2 avx512_vnni amx_tile fma rdtscp\n")
    monkeypatch.setattr(engine.cpus, "CPU_INFO", info)
    assert cpu_name() == "Some CPU @ 3 GHz"
    assert vector_instructions() == ["amx_tile", "avx2", "avx512_vnni", "fma"]
    info.unlink()
    assert cpu_name()
    assert vector_instructions() == []


def test_the_command_prints_a_table_or_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["bench", str(bundle), "--runtime", "onnxruntime", "--batch", "3", "--seconds", "0.05"]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0, answer.output
    for words in ("onnxruntime fp32", "ceilings: matrix product", "roofline", "x 156"):
        assert words in answer.stdout
    answer = CliRunner().invoke(app, [*arguments, "--json"])
    report = json.loads(answer.stdout)
    assert report["results"][0]["batch_size"] == 3
    assert report["results"][0]["latency"]["median_s"] > 0


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    answer = CliRunner().invoke(app, ["bench", str(missing), "--seconds", "0"])
    assert answer.exit_code == 1
    assert f"{missing}: manifest.json: cannot be read" in answer.output


def test_every_command_says_in_json_what_is_wrong(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    for command in (["check"], ["build"], ["bench"], ["compare", missing, "--data", missing]):
        answer = CliRunner().invoke(app, [command[0], missing, *command[1:], "--json"])
        assert answer.exit_code == 1
        report = json.loads(answer.stdout)
        assert report["ok"] is False
        assert report["error"]
        if command != ["build"]:  # which wants a GPU's libraries first
            assert report["key"] == "manifest.json"
