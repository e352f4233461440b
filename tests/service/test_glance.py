"""A glance in service: what it clears is counted, told and measured; the gate asks the module whether it passes."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from structlog.testing import capture_logs

from engine import GLANCE_FILE, Features, Glance, InferenceError, Manifest, SecondLook
from service import release as gate
from service.agreement import agree
from service.app import create_app
from service.sealed import SEALED_FILE
from tests.bundles import REACH, grey_of, probability_of, tiny_bundle
from tests.engine.test_onnxruntime import edit, sign
from tests.service.apps import post_raw, serve
from tests.service.devices import GOLDEN_NUMBER, GUARD_S, Device, held_at, line
from tests.service.test_release import frame, reseal, write_set
from tests.service.test_scheduler_lines import Pipelined
from tests.service.test_second_look import inspected, settings


@pytest.fixture
def glancing(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path / "glancing", glance=Glance(doubt_min=0.1))


def saved(pixels: NDArray[np.uint8], path: Path) -> Path:
    cv2.imwrite(str(path), pixels)
    return path


def test_cleared_windows_are_counted_and_the_verdict_is_that_without_a_glance(
    tmp_path: Path, glancing: Path, bundle: Path
) -> None:
    picture = saved(frame(grey_of(0), 0), tmp_path / "spot.png")
    found, whole = (inspected(one, picture, tmp_path / one.name) for one in (glancing, bundle))
    assert found.verdict is not None
    assert whole.verdict is not None
    assert found.cleared.tolist() == [True, False, True, True, True, True]  # the spot lies in the second
    assert not whole.cleared.any()
    proof = replace(whole.verdict.proof, windows_cleared=5, self_test_age_s=found.verdict.proof.self_test_age_s)
    assert found.verdict.proof == proof
    assert found.verdict.proof.windows_inferred == found.verdict.proof.windows_expected == 6
    assert found.verdict.verdict == whole.verdict.verdict == "fail"
    assert (
        agree(found.verdict, whole.verdict, Manifest.read(bundle), tolerance=1e-5, same_windows=True).agreement
        == "same"
    )


def test_a_screen_of_cleared_windows_alone_passes(tmp_path: Path, glancing: Path) -> None:
    found = inspected(glancing, saved(frame(None, 1), tmp_path / "clean.png"), tmp_path)
    assert found.verdict is not None
    assert found.verdict.verdict == "pass"
    assert found.verdict.proof.windows_cleared == 6


def test_cleared_windows_are_told_and_measured(tmp_path: Path, glancing: Path) -> None:
    with serve(create_app(settings(tmp_path, glancing))) as client:
        answer = post_raw(client, "SN-1", frame(grey_of(1), 2)).json()
        metrics = client.get("/metrics").text
    assert answer["proof"]["windows_cleared"] == 5
    assert "inspect_windows_cleared_total 5.0" in metrics


# --- the queue ---------------------------------------------------------------------------------------


class Asked(Pipelined):
    """Notes of each screen whether a glance might have cleared its windows."""

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self.asked: list[tuple[int, bool]] = []

    def features(self, pixels: NDArray[np.uint8], *, glance: bool = True) -> Features:
        self.asked.append((int(pixels[0, 0, 1, 1]), glance))
        return super().features(pixels)


def test_what_is_looked_at_again_no_glance_clears() -> None:
    backend = Asked(Device())
    with line(backend) as here:
        first = here.compute(1)
        here.compute(2, after=first)
    assert [asked for asked in backend.asked if asked[0] != GOLDEN_NUMBER] == [(1, True), (2, False)]


def test_nor_where_it_is_computed_once_more_as_a_neighbour_failed() -> None:
    device, gate = held_at(9)
    held = device.on_batch

    def fail(number: int) -> None:
        held(number)
        if number == 3:
            raise InferenceError("failed")

    device.on_batch = fail
    backend = Asked(device)
    with capture_logs(), line(backend) as here:
        first = here.compute(1)
        before = here.send(9)
        gate.wait_for()  # by then the others wait, and are at the device together
        again, failing = here.send(2, after=first), here.send(3, after=first)  # the later one goes ahead
        gate.opened.set()
        before.result(GUARD_S)
        assert isinstance(failing.exception(GUARD_S), InferenceError)
        again.result(GUARD_S)
    assert [asked for asked in backend.asked if asked[0] == 2] == [(2, False)]


# --- the gate ----------------------------------------------------------------------------------------


def module_says(golden: Path, name: str, score: float) -> None:
    """The module gives a label that score in a window that the glance clears."""
    probability = json.loads((golden / SEALED_FILE).read_text())["screens"][name]["probability"]
    probability[3][2] = score
    reseal(golden, name, probability=probability)


@pytest.mark.parametrize("name", ["bubble.png", "clean.png"])
def test_what_is_cleared_may_have_another_score_where_the_verdict_stays_or_nothing_is_there(
    tmp_path: Path, glancing: Path, name: str
) -> None:
    """The one fails by its bubble all the same; the other is clean, and the module would have had it looked through."""
    golden = write_set(tmp_path / "golden", glancing)
    assert Manifest.read(glancing).labels["scratch"].review[0] == 0.3
    module_says(golden, name, 0.31)
    found = gate.run(glancing, golden, active=glancing, settings=settings(tmp_path, glancing))
    assert found.different == []


@pytest.mark.parametrize(("score", "different"), [(0.29, []), (0.31, ["clean.png"])])
def test_a_screen_with_a_defect_must_have_the_verdict_of_the_modules_scores(
    tmp_path: Path, glancing: Path, score: float, different: list[str]
) -> None:
    """By its boxes a screen has a defect, which the module finds in a window that the glance clears."""
    golden = write_set(tmp_path / "golden", glancing)
    boxes = golden / "boxes.csv"
    boxes.write_text(boxes.read_text().replace("bubble,bubble", "clean,scratch"))  # and one is left that has none
    module_says(golden, "clean.png", score)
    found = gate.run(glancing, golden, active=glancing, settings=settings(tmp_path, glancing))
    assert found.different == different
    assert all("a glance clears" in found.why[name] for name in different)


def test_a_label_that_is_lost_beside_another_defect_is_found(tmp_path: Path, glancing: Path) -> None:
    """The screen fails by its bubble all the same, and yet the glance is blind for its scratch."""
    golden = write_set(tmp_path / "golden", glancing)
    sealed = json.loads((golden / SEALED_FILE).read_text())["screens"]["bubble.png"]
    probability, heat = sealed["probability"], np.zeros((8, 8)).tolist()
    probability[3][2] = 0.6
    heat[3][3] = 1.0
    reseal(
        golden,
        "bubble.png",
        probability=probability,
        maps=[*sealed["maps"], {"window": 3, "label": "scratch", "heat": heat}],
    )
    found = gate.run(glancing, golden, active=glancing, settings=settings(tmp_path, glancing))
    assert found.different == ["bubble.png"]


def test_a_window_that_the_whole_network_saw_has_its_score(tmp_path: Path, bundle: Path) -> None:
    golden = write_set(tmp_path / "golden", bundle)
    module_says(golden, "bubble.png", 0.29)
    found = gate.run(bundle, golden, active=bundle, settings=settings(tmp_path, bundle))
    assert found.different == ["bubble.png"]


def test_a_glance_that_clears_a_defect_is_found(tmp_path: Path) -> None:
    blind = tiny_bundle(tmp_path / "blind", glance=Glance(doubt_min=0.9))
    golden = write_set(tmp_path / "golden", blind)  # one screen of it has a spot that is half as clear as can be
    pixels = np.asarray(cv2.imread(str(golden / "screens" / "doubtful.png"), cv2.IMREAD_GRAYSCALE))
    assert abs(int(pixels[41, 81]) - grey_of(1)) == REACH // 2
    found = gate.run(blind, golden, active=blind, settings=settings(tmp_path, blind))
    assert found.different == ["doubtful.png"]


SECOND = SecondLook(score_min=0.05, ratio_max=0.5)


def test_a_defect_that_only_a_second_look_shows_is_not_hidden_as_rounding(tmp_path: Path) -> None:
    """The module was in doubt of a window that the glance cleared, and looked at its border."""
    bundle = tiny_bundle(tmp_path / "bundle", glance=Glance(doubt_min=0.1), second_look=SECOND)
    golden = write_set(tmp_path / "golden", bundle)
    boxes = golden / "boxes.csv"
    boxes.write_text(boxes.read_text().replace("bubble,bubble", "clean,scratch"))
    sealed = json.loads((golden / SEALED_FILE).read_text())["screens"]["clean.png"]
    probability = [*sealed["probability"], [0.0, 0.0, 0.97, 0.0]]
    probability[3][2] = 0.2
    heat = np.zeros((8, 8)).tolist()
    heat[3][3] = 1.0
    reseal(
        golden,
        "clean.png",
        windows=[*sealed["windows"], [64, 32]],
        probability=probability,
        maps=[*sealed["maps"], {"window": 6, "label": "scratch", "heat": heat}],
    )
    found = gate.run(bundle, golden, active=bundle, settings=settings(tmp_path, bundle))
    assert found.different == ["clean.png"]


def test_a_window_that_is_cleared_and_yet_does_not_pass_is_found(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", glance=Glance(doubt_min=0.1))
    golden = write_set(tmp_path / "golden", bundle)

    def defective(model: onnx.ModelProto) -> None:
        """What stands for a cleared window has a scratch."""
        for node in model.graph.node:
            if node.output[0] == "label_features":
                there = numpy_helper.to_array(node.attribute[0].t).copy()
                there[0, 2] = 5.0
                node.attribute[0].t.CopyFrom(numpy_helper.from_array(there))

    edit(bundle, GLANCE_FILE, defective)
    with np.load(bundle / "golden.npz") as arrays:  # of which none is cleared, so that the self-test finds nothing
        np.savez_compressed(
            bundle / "golden.npz",
            pixels=arrays["pixels"][:4],
            probability=probability_of(arrays["pixels"][:4], 4),
            activation=arrays["activation"][:4],
        )
    sign(bundle)
    found = gate.run(bundle, golden, active=bundle, settings=settings(tmp_path, bundle))
    assert "clean.png" in found.different
