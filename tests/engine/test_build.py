"""`python -m engine build` against doubles of TensorRT and CUDA; in int8 nothing is served that it has not passed."""

import json
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import engine.__main__ as command
from engine import PlanError, load, load_all
from engine.speed import Speed
from tests.bundles import add_called
from tests.engine.doubles.cuda import Machine


def test_the_command_builds_verifies_and_says_what_it_is(
    machine: Machine, half_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    machine.datatype = "FP16"
    first = CliRunner().invoke(command.app, ["build", str(half_bundle), "--batch", "2"])
    assert first.exit_code == 0, first.output
    for words in (
        ".plan built",
        "Double 0 sm86, tensorrt 10.13.0, batches of 2",
        "really fp16: convolutions and matrix products 1 in fp16",
        "5 golden patches differ by",
        "(tolerance 0.01)",
        "guard band, from the same patch in every slot",
    ):
        assert words in first.stdout
    assert "has not been measured" not in first.stdout
    again = CliRunner().invoke(command.app, ["build", str(half_bundle), "--batch", "2"])
    assert "found, whole and for this GPU" in again.stdout
    assert machine.used_bytes == 0


@pytest.fixture
def narrow_bundle(half_bundle: Path) -> Path:
    """The bundle with a graph that is called TensorRT's int8; the doubles do not look inside."""
    add_called(half_bundle, "int8-trt")
    return half_bundle


def build_int8(bundle: Path, monkeypatch: pytest.MonkeyPatch, *, times_as_fast: float) -> Result:
    monkeypatch.setattr(command, "speed_by_turns", lambda wider, narrow, in_row: Speed(100.0, 100.0 * times_as_fast))
    return CliRunner().invoke(command.app, ["build", str(bundle), "--precision", "int8", "--json"])


def kept(bundle: Path) -> set[str]:
    """Precisions of the plans that lie in the cache."""
    return {path.name.partition("-")[0] for path in (bundle.parent / "cache").rglob("*.plan")}


@pytest.mark.parametrize(("half", "wider"), [("FP16", "fp16"), ("FP32", "fp32")])  # an fp16 engine in FP32 is refused
@pytest.mark.parametrize(("times_as_fast", "offered"), [(1.2, True), (1.0, False)])
def test_int8_is_offered_only_where_it_beats_the_fastest_wider_precision_that_runs(
    machine: Machine,
    narrow_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    half: str,
    wider: str,
    times_as_fast: float,
    offered: bool,
) -> None:
    machine.datatypes = {"fp16": half, "int8": "Int8"}
    answer = build_int8(narrow_bundle, monkeypatch, times_as_fast=times_as_fast)
    assert machine.used_bytes == 0
    if offered:
        found = json.loads(answer.stdout)
        assert found["speed"] == {wider: 100.0, "int8": 120.0}
        assert any("compared with fp32, as fp16 cannot be run" in note for note in found["notes"]) == (wider == "fp32")
        assert kept(narrow_bundle) == {wider, "int8"}
    else:
        assert answer.exit_code == 1
        assert f"int8 is refused: it does 100 patches/s here, {wider} 100; it must be 1.05 times" in answer.stdout
        assert kept(narrow_bundle) == {wider}


def test_int8_is_not_offered_where_there_is_nothing_to_compare_it_with(
    machine: Machine, narrow_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.datatypes = {"fp16": "FP32", "int8": "Int8"}
    machine.datatype = "Int8"  # which an engine in fp32 must not have either
    answer = build_int8(narrow_bundle, monkeypatch, times_as_fast=2.0)
    assert answer.exit_code == 1, answer.output
    with pytest.raises(PlanError, match="not known"):
        load_all(narrow_bundle, precision="int8")


def test_int8_is_served_only_by_a_plan_that_was_found_to_be_faster(
    machine: Machine, narrow_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.datatypes = {"fp16": "FP16", "int8": "Int8"}
    way_out = "`python -m engine build BUNDLE --batch 5 --precision int8 --device 0`"

    def refusal() -> str:
        with pytest.raises(PlanError) as refused:
            load_all(narrow_bundle, precision="int8")
        assert machine.used_bytes == 0
        return str(refused.value)

    assert refusal() == f"there is no plan, build it first: {way_out}"
    load(narrow_bundle, "tensorrt", precision="int8").close()  # to time it, say; from now on there is a plan
    assert refusal() == f"whether int8 is faster here is not known, measure it first: {way_out}"
    assert build_int8(narrow_bundle, monkeypatch, times_as_fast=1.0).exit_code == 1
    assert refusal() == f"there is no plan, build it first: {way_out}"
    assert build_int8(narrow_bundle, monkeypatch, times_as_fast=1.2).exit_code == 0
    (backend,) = load_all(narrow_bundle, precision="int8")
    assert backend.precision == "int8"
    backend.close()


def test_the_first_usable_gpu_is_taken_where_none_is_named(machine: Machine, half_bundle: Path) -> None:
    machine.gpus, machine.capabilities[0], machine.datatype = 2, (6, 1), "FP16"
    answer = CliRunner().invoke(command.app, ["build", str(half_bundle), "--json"])
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["gpu"] == "Double 1 sm86"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int8"], "was not exported as int8-trt"),
        (["--precision", "half"], "was not exported as half"),
        (["--device", "7"], "there is no GPU 7"),
    ],
)
def test_the_command_names_what_it_cannot_do(
    machine: Machine, bundle: Path, arguments: list[str], message: str
) -> None:
    answer = CliRunner().invoke(command.app, ["build", str(bundle), *arguments])
    assert answer.exit_code == 1
    assert message in answer.stderr


def test_int8_is_not_timed_against_smaller_batches(
    machine: Machine, narrow_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.datatypes = {"fp16": "FP16", "int8": "Int8"}
    load(narrow_bundle, "tensorrt", precision="int8", batch_size=4).close()
    with closing(load(narrow_bundle, "tensorrt", precision="int8", batch_size=4)):
        one = machine.used_bytes
    machine.memory_bytes = 2 * one - 1
    command_line = ["build", str(narrow_bundle), "--precision", "int8", "--batch", "4", "--json"]
    monkeypatch.setattr(command, "speed_by_turns", lambda wider, narrow, in_row: Speed(100.0, 200.0))
    answer = CliRunner().invoke(command.app, command_line)
    assert answer.exit_code == 1, answer.output
    assert "the GPU's memory holds fp16 in batches of 2 alone" in json.loads(answer.stdout)["error"]


def test_a_plan_that_misses_the_golden_patches_is_not_found_again(machine: Machine, half_bundle: Path) -> None:
    machine.datatype = "FP16"
    with closing(load(half_bundle, "tensorrt")):  # measures the guard band, so that the next run is the self-test's
        pass
    assert kept(half_bundle) == {"fp16"}
    machine.drift["launch"] = machine.drift["graph"] = [1e3] * 99
    answer = CliRunner().invoke(command.app, ["build", str(half_bundle), "--json"])
    assert answer.exit_code == 1, answer.output
    assert "the golden patches differ" in json.loads(answer.stdout)["error"]
    assert kept(half_bundle) == set()
    machine.drift.clear()
    again = CliRunner().invoke(command.app, ["build", str(half_bundle), "--json"])
    assert json.loads(again.stdout)["built"] is True


def test_a_plan_is_built_anew_where_that_is_asked_for(machine: Machine, half_bundle: Path) -> None:
    machine.datatype = "FP16"
    built = [
        json.loads(CliRunner().invoke(command.app, ["build", str(half_bundle), "--json", *more]).stdout)["built"]
        for more in ([], [], ["--anew"])
    ]
    assert built == [True, False, True]
