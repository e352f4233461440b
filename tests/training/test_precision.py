"""Another precision is offered if it holds, and refused with its figures if it does not."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from engine import LabelLimits, Manifest, ParityError, infer, load
from engine.speed import speed_by_turns
from service.aggregation import decide
from service.verdict import LabelResult
from tests.engine.precisions import network, write_bundle
from tests.service.strategies import ANY_SCORE
from tests.service.strategies import manifest as two_labels
from tests.training.data_form import write_screens
from training import precision as module
from training.__main__ import app
from training.bundling import GOLDEN_PATCHES, golden_patches, parity_patches
from training.cutting import cut
from training.datasets import PatchSet
from training.evaluation import bundle_probability
from training.fidelity import compare, fidelity, fidelity_table, opened
from training.network import FeaturesGraph
from training.precision import Proof, add_precisions, calibration_patches

LABELS = ["bubble", "pinhole", "scratch", "tin_ash"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Screens cut into patches of 64, of which `bubble` and `pinhole` are really dots and lines."""
    folder = tmp_path_factory.mktemp("precision")
    source = write_screens(folder / "source", screens=20)
    boxes = (source / "boxes.csv").read_text().replace(",dot,", ",bubble,").replace(",line,", ",pinhole,")
    (source / "boxes.csv").write_text(boxes)
    cut(source, folder / "cut", patch_px=64, labels=LABELS)
    return folder / "cut"


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("float32") / "bundle", network())


@pytest.fixture
def bundle(float32: Path, tmp_path: Path) -> Path:
    return shutil.copytree(float32, tmp_path / "bundle")


@pytest.fixture(scope="module")
def proof(data: Path, float32: Path) -> Proof:
    test, train = PatchSet([data], "test"), PatchSet([data], "train")
    pixels = np.stack([test.patch(index) for index in range(8)])[:, None]
    with opened(float32, "fp32") as backend:
        features, expected = infer(backend, pixels)
        return Proof(
            features=FeaturesGraph(network()),
            calibration=calibration_patches(train, seed=0),
            pixels=pixels,
            expected=expected,
            activation=features.activation,
            patches=test,
            reference=bundle_probability(backend, test, group="screen"),
        )


@pytest.fixture(autouse=True)
def _lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random network on tiny patches holds nothing of itself: each test makes one condition strict."""
    monkeypatch.setattr(module, "F_LOSS", 1.0)
    monkeypatch.setattr(module, "MAP_TOLERANCE", 10.0)
    monkeypatch.setattr("engine.golden.MAP_TOLERANCE", 10.0)
    monkeypatch.setattr("engine.speed.FASTER_BY", 0.0)
    monkeypatch.setattr("engine.speed.TIMED_ROUNDS", 2)
    monkeypatch.setattr(module, "TOLERANCES", dict.fromkeys(["fp16", "bf16", "int8", "int8-trt"], 0.5))


def test_every_precision_is_made_stated_and_compared(bundle: Path, proof: Proof, data: Path) -> None:
    made = add_precisions(bundle, ["fp16", "int8", "int8-trt", "fp16"], proof)
    manifest = Manifest.read(bundle)
    assert manifest.precisions == ("fp32", "fp16", "int8", "int8-trt") == ("fp32", *made)
    assert manifest.parity_tolerance == {"fp32": 1e-4, "fp16": 0.5, "int8": 0.5, "int8-trt": 0.5}
    assert made["int8"].kept == (0, 19)  # all of it holds so wide a tolerance
    assert manifest.training["int8_float_convolutions"] == "0 of 19"
    assert str(manifest.training["int8_speed"]).endswith("times fp32 where it was exported")
    for precision in ("fp16", "int8-trt"):
        assert manifest.training[f"{precision}_speed"] == "not measured: it takes a GPU"
        assert made[precision].speed is None
    card = (bundle / "MODEL_CARD.md").read_text()
    assert all(f"| {precision} | 0.5 |" in card for precision in made)
    found = fidelity(bundle, [data], part="test")
    for precision, one in made.items():
        assert found[precision].flipped_verdicts == one.fidelity.flipped_verdicts
        assert found[precision].f_measure == pytest.approx(one.fidelity.f_measure)
        assert found[precision].largest == pytest.approx(one.fidelity.largest, abs=1e-6)
        assert 0 < one.fidelity.mean < one.fidelity.largest < 0.5
    assert len(fidelity_table(found).rows) == 3


def test_no_more_is_quantised_than_half_of_the_tolerance_allows(
    bundle: Path, proof: Proof, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = add_precisions(bundle, ["int8-trt"], proof)["int8-trt"]
    held = 0.9 * whole.fidelity.largest
    monkeypatch.setattr(module, "TOLERANCES", {"int8-trt": held / module.ROOM})
    part = add_precisions(bundle, ["int8-trt"], proof)["int8-trt"]
    assert whole.kept == (0, 19)
    assert part.kept is not None
    assert 0 < part.kept[0] < 19
    assert part.fidelity.largest <= held
    with opened(bundle, "int8-trt") as backend:
        assert np.abs(infer(backend, proof.pixels)[1] - proof.expected).max() <= held


def test_no_more_rounds_to_bfloat16_than_half_of_the_tolerance_allows(
    bundle: Path, proof: Proof, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = pytest.importorskip("engine.openvino", reason="OpenVINO is not installed: pip install '.[openvino]'")
    if not openvino.OpenVinoBackend.rounds():
        pytest.skip("this CPU does not compute in bfloat16 (AVX-512 BF16 or AMX does)")
    whole = add_precisions(bundle, ["bf16"], proof)["bf16"]
    assert whole.kept == (0, 19)
    assert whole.speed is not None
    with opened(bundle, "bf16") as backend:
        assert (backend.runtime, backend.precision) == ("openvino", "bf16")
    held = 0.9 * whole.fidelity.largest
    monkeypatch.setattr(module, "TOLERANCES", {"bf16": held / module.ROOM})
    monkeypatch.setattr(module, "self_test", lambda *_: 0.0)  # its patches are not among those of this proof
    part = add_precisions(bundle, ["bf16"], proof)["bf16"]
    assert part.kept is not None
    assert 0 < part.kept[0] < 19
    assert "| bf16 |" in (bundle / "MODEL_CARD.md").read_text()
    assert 0 < part.fidelity.largest <= held


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-trt"])
def test_a_difference_over_the_tolerance_is_refused(
    bundle: Path, proof: Proof, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(module, "TOLERANCES", {precision: 1e-9})
    with pytest.raises(ParityError, match=f"the exported {precision} graphs differ from their source by"):
        add_precisions(bundle, [precision], proof)


@pytest.mark.parametrize("precision", ["fp16", "int8-trt"])
def test_a_difference_over_the_tolerance_is_refused_wherever_on_the_part_it_is(
    bundle: Path, proof: Proof, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Though the telling patches, of which there is one here, hold it."""
    telling = replace(proof, pixels=proof.pixels[:1])
    with opened(bundle, "fp32") as backend:
        features, expected = infer(backend, telling.pixels)
    telling = replace(telling, expected=expected, activation=features.activation)
    largest = add_precisions(bundle, [precision], telling)[precision].fidelity.largest
    with opened(bundle, precision) as backend:
        on_telling = float(np.abs(infer(backend, telling.pixels)[1] - expected).max())
    assert on_telling < largest
    monkeypatch.setattr(module, "TOLERANCES", {precision: (on_telling + largest) / 2})
    monkeypatch.setattr(module, "_check_telling", lambda *_, room=1.0: None)
    if precision == "fp16":
        with pytest.raises(
            ParityError, match=r"fp16 is refused: on \d+ patches a probability differs from that of fp32"
        ):
            add_precisions(bundle, [precision], telling)
    else:  # one of whose convolutions more is kept in float32, until the whole part holds
        made = add_precisions(bundle, [precision], telling)[precision]
        assert made.kept is not None
        assert made.kept[0] > 0
        assert made.fidelity.largest <= module.TOLERANCES[precision] < largest


def test_maps_that_lie_elsewhere_are_refused_whatever_the_probabilities_are(
    bundle: Path, proof: Proof, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAP_TOLERANCE", 0.25)
    reversed_ = replace(proof, activation=proof.activation[:, :, ::-1, ::-1].copy())
    with pytest.raises(ParityError, match="activation maps of the exported fp16 graphs differ from their source by"):
        add_precisions(bundle, ["fp16"], reversed_)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-trt"])
def test_a_lower_f_is_refused_with_both_figures(
    bundle: Path, proof: Proof, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(module, "F_LOSS", -2.0)  # it would have to be better by two
    with pytest.raises(ParityError, match=rf"{precision} is refused: its macro F is 0\.\d+, that of fp32 0\.\d+"):
        add_precisions(bundle, [precision], proof)


def test_the_most_doubtful_patch_is_nearest_to_its_own_labels_threshold() -> None:
    probability = np.array([[0.0, 0.0], [0.9, 0.0], [0.5, 0.5], [0.0, 0.81], [0.78, 0.0]], np.float32)
    target = np.array([[0, 0], [1, 0], [0, 0], [0, 0], [0, 0]], np.int8)
    golden = golden_patches(probability, target, [0.8, 0.8])
    assert parity_patches(probability, golden, [0.8, 0.8])[:4] == [1, 0, 3, 4]


def test_golden_patches_show_every_label_that_is_found_and_a_clean_patch() -> None:
    probability = np.array([[0.9, 0.1, 0.1], [0.9, 0.9, 0.1], [0.9, 0.9, 0.7], [0.1, 0.1, 0.1], [0.9] * 3], np.float32)
    target = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0], [0, -1, 1]], np.int8)
    assert golden_patches(probability, target, [0.5, 0.5, 0.5]) == [1, 2, 3]
    assert golden_patches(probability, target, [0.5, 0.5, 0.8]) == [1, 4, 3]  # 2 shows it, and it was not found there
    assert golden_patches(probability, target, [0.5, 0.5, 0.95]) == [1, 3]
    assert golden_patches(probability[:1], target[:1], [0.95] * 3) == [0]  # nothing is found, and nothing is clean
    many = np.eye(20, dtype=np.float32)
    assert len(golden_patches(many, many.astype(np.int8), [0.5] * 20)) == GOLDEN_PATCHES - 1


@pytest.mark.parametrize("graph", ["features.onnx", "reasoning.onnx", "features.fp16.onnx"])
def test_a_graph_tells_nothing_of_where_it_was_made(bundle: Path, proof: Proof, graph: str) -> None:
    add_precisions(bundle, ["fp16"], proof)
    model = onnx.load(bundle / graph)
    places = [model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer]
    assert [thing.name for thing in places if thing.metadata_props or thing.doc_string] == []
    assert b".py" not in (bundle / graph).read_bytes()


def test_what_is_no_faster_is_refused_with_both_figures(
    bundle: Path, proof: Proof, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.speed.FASTER_BY", 1e9)
    with pytest.raises(ParityError, match=r"int8 is refused: it does \d+ patches/s here, fp32 \d+"):
        add_precisions(bundle, ["int8"], proof)
    add_precisions(bundle, ["int8-trt"], proof)  # whose speed nobody knows here


def test_speeds_are_taken_by_turns(float32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(float32, "fp32") as one, opened(float32, "fp32") as other:
        turns: list[str] = []
        clock = iter(range(1000))
        monkeypatch.setattr("engine.speed.time.perf_counter", lambda: next(clock))
        for backend, name in ((one, "one"), (other, "other")):
            # a batch is begun and waited for: it is the turn of whoever is waited for
            monkeypatch.setattr(backend, "_begin", lambda pixels, name=name: lambda: turns.append(name))
        assert speed_by_turns(one, other) == (3.0, 3.0)  # batches of 3, a second each
    assert turns == ["one", "other"] * 3


def test_half_of_the_calibration_patches_have_a_label(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CALIBRATION_PATCHES", 12)
    patches = PatchSet([data], "train")
    chosen = calibration_patches(patches, seed=3)
    assert chosen.shape == (12, 1, 64, 64)
    known = {patches.patch(index).tobytes(): bool((patches.labels[index] == 1).any()) for index in range(len(patches))}
    assert sum(known[patch.tobytes()] for patch in chosen) == 6
    np.testing.assert_array_equal(chosen, calibration_patches(patches, seed=3))


def test_flips_are_counted_by_patch_and_by_screen(data: Path) -> None:
    patches = PatchSet([data], "test")
    limits = {label: LabelLimits(threshold=0.5, review=(0.3, 0.7)) for label in LABELS}
    manifest = replace(two_labels(), labels=limits)
    before = np.zeros((len(patches), 4), np.float32)
    first, second, third, *_ = patches.by_screen()
    before[first[0], 0], before[second[1], 2] = 0.8, 0.6
    after = before.copy()
    after[first[0], 0] = 0.65  # fail to review; present all the same
    after[second[1], 2] = 0.2  # review to pass; no longer present
    after[third[0], 1] = 0.1  # nothing
    manifest = replace(manifest, parity_tolerance={"fp32": 1e-3, "fp16": 0.41})
    found = compare(after, before, patches, manifest, precision="fp16")
    assert found.flipped_verdicts == {"fail -> review": 1, "review -> pass": 1}
    assert found.flipped_labels == 1
    assert found.largest == pytest.approx(0.4)
    assert found.holds
    assert not replace(found, largest=0.42).holds
    assert found.mean == pytest.approx((0.15 + 0.4 + 0.1) / before.size)
    assert (found.patches, found.screens) == (len(patches), len(patches.by_screen()))


@given(
    st.lists(ANY_SCORE | st.just(math.nan), min_size=2, max_size=2),
    st.fixed_dictionaries({"bubble": st.floats(0, 0.3)}),
)
def test_the_outcome_of_scores_is_the_services(scores: list[float], guard: dict[str, float]) -> None:
    manifest = two_labels()
    labels = {
        label: LabelResult(score=score, count=0, threshold=0.5, present=score >= 0.5)
        for label, score in zip(manifest.labels, scores, strict=True)
    }
    verdict, reasons = decide((), labels, manifest, guard)
    assert manifest.outcome(scores, guard) == verdict
    assert (verdict == "pass") == (reasons == ())


def test_the_command_fails_where_a_stated_tolerance_does_not_hold(bundle: Path, proof: Proof, data: Path) -> None:
    add_precisions(bundle, ["fp16"], proof)
    arguments = ["fidelity", str(bundle), "--data", str(data)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    manifest = Manifest.read(bundle)
    replace(manifest, parity_tolerance={**manifest.parity_tolerance, "fp16": 1e-9}).sign(bundle)
    assert CliRunner().invoke(app, arguments).exit_code == 1


def test_a_bundle_of_float32_alone_has_nothing_to_compare(float32: Path, data: Path) -> None:
    with pytest.raises(ValueError, match="float32 alone"):
        fidelity(float32, [data], part=None)


def test_what_is_added_is_served(bundle: Path, proof: Proof) -> None:
    add_precisions(bundle, ["int8"], proof)
    backend = load(bundle, "onnxruntime", precision="int8", threads=1)
    assert backend.precision == "int8"
    backend.close()
