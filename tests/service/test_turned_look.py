"""A turned look in service: a window in doubt is judged by the mean of its positions, and is counted."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from engine import (
    NO_TURNED_LOOK,
    Manifest,
    SecondLook,
    TurnedLook,
    Window,
    cover,
    cut,
    in_doubt,
    infer,
    load,
    look_turned,
    turned,
)
from service import release as gate
from service.app import create_app
from service.scheduler import Scheduler
from service.sealed import ReleaseError
from service.waiting import Computed, Job, Queue
from tests.bundles import BACKGROUND, REACH, grey_of, tiny_bundle
from tests.service.apps import post_raw, serve
from tests.service.devices import until
from tests.service.test_release import frame, reseal, write_set
from tests.service.test_second_look import answered, computed, inspected, settings

Pixels = NDArray[np.uint8]

LOOK = TurnedLook(score_min=0.1, score_max=0.9, ratio_max=0.2)
DOUBTFUL = grey_of(1) + REACH // 2


@pytest.fixture
def turning(tmp_path: Path) -> Path:
    """A bundle that is surer of what lies at the left and at the top, and looks turned at what it doubts."""
    bundle = tiny_bundle(tmp_path / "turning")
    manifest = replace(Manifest.read(bundle), turned_look=LOOK)
    model = onnx.load(bundle / "features.onnx")
    (slope,) = (one for one in model.graph.initializer if one.name == "slope")
    tilt = np.add.outer(np.linspace(0.8, 1.0, 64), np.linspace(0.0, 0.2, 64))[None, None]
    slope.CopyFrom(numpy_helper.from_array((-tilt / REACH).astype(np.float32), "slope"))
    onnx.save(model, bundle / "features.onnx")
    manifest.sign(bundle)
    golden = np.load(bundle / "golden.npz")["pixels"]
    seen = seen_by(bundle, golden)
    np.savez_compressed(bundle / "golden.npz", pixels=golden, probability=seen.once, activation=seen.maps_once)
    manifest.sign(bundle)
    return bundle


class Seen(NamedTuple):
    """What the engine alone makes of the windows of a frame."""

    once: NDArray[np.float32]
    maps_once: NDArray[np.float32]
    turned: tuple[int, ...]
    probability: NDArray[np.float32]
    activation: NDArray[np.float32]


def seen_by(bundle: Path, patches: NDArray[np.uint8]) -> Seen:
    with closing(load(bundle, "onnxruntime")) as backend:
        features, once = infer(backend, patches)
        doubtful = in_doubt(once, backend.manifest.turned_look)
        mean = look_turned(features, doubtful, lambda k: infer(backend, turned(patches[k, 0]))[0])
        probability = backend.reason(mean.label_features, mean.stage1)
    return Seen(once, features.activation, doubtful, probability, mean.activation)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A screen with a doubtful spot in the upper left of its second window."""
    pixels = frame(None, 0)
    pixels[4:8, 68:72] = DOUBTFUL
    path = tmp_path / "doubtful.png"
    cv2.imwrite(str(path), pixels)
    return path


def patches_of(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return cut(pixels, cover(*pixels.shape, patch_px=64), 64)


# --- a screen ----------------------------------------------------------------------------------------


def test_a_window_in_doubt_is_judged_by_the_mean_of_its_positions_and_counted(
    tmp_path: Path, turning: Path, picture: Path
) -> None:
    inspection = inspected(turning, picture, tmp_path)
    seen = seen_by(turning, patches_of(inspection.frame.pixels))
    assert inspection.turned == seen.turned == (1,)
    assert abs(seen.probability[1] - seen.once[1]).max() > 0.05  # positions differ to this network
    np.testing.assert_allclose(inspection.probability, seen.probability, atol=1e-6)
    verdict = inspection.verdict
    assert verdict is not None
    proof = verdict.proof
    assert (proof.windows_expected, proof.windows_inferred, proof.windows_extra, proof.windows_turned) == (6, 6, 0, 1)
    assert proof.patches == 6 + 7
    assert [result.score for result in verdict.labels.values()] == pytest.approx(seen.probability.max(0), abs=1e-6)


def test_in_whatever_position_the_spot_lies_the_screen_has_the_same_score(tmp_path: Path, turning: Path) -> None:
    scores = []
    for number, (top, left) in enumerate([(4, 68), (4, 120), (56, 68), (56, 120)]):
        pixels = np.full((128, 192), BACKGROUND, np.uint8)  # the same in all positions
        pixels[top : top + 4, left : left + 4] = DOUBTFUL
        cv2.imwrite(str(tmp_path / f"{number}.png"), pixels)
        scores.append(inspected(turning, tmp_path / f"{number}.png", tmp_path / str(number)).probability[1])
    np.testing.assert_allclose(scores, scores[:1] * 4, atol=1e-6)


def test_a_bundle_that_does_not_ask_looks_at_none(tmp_path: Path, turning: Path, picture: Path) -> None:
    replace(Manifest.read(turning), turned_look=NO_TURNED_LOOK).write(turning)
    inspection = inspected(turning, picture, tmp_path)
    assert inspection.turned == ()
    seen = seen_by(turning, patches_of(inspection.frame.pixels))
    np.testing.assert_allclose(inspection.probability, seen.once, atol=1e-6)


def test_the_same_screen_gets_the_same_answer_whatever_else_is_looked_at(
    tmp_path: Path, turning: Path, picture: Path
) -> None:
    def answers(copies: int) -> list[str]:
        verdicts = answered(turning, picture, tmp_path, copies=copies)
        return [f"{verdict.labels} {verdict.defects}" for verdict in verdicts if verdict.proof.windows_turned == 1]

    alone = answers(1)
    assert len(alone) == 1
    assert answers(8) == alone * 8


def test_each_of_several_windows_gets_the_mean_of_its_own_positions(tmp_path: Path, turning: Path) -> None:
    pixels = frame(None, 0)
    for top, left in ((4, 68), (70, 150), (100, 30)):
        pixels[top : top + 4, left : left + 4] = DOUBTFUL
    cv2.imwrite(str(tmp_path / "three.png"), pixels)
    inspection = inspected(turning, tmp_path / "three.png", tmp_path)
    seen = seen_by(turning, patches_of(pixels))
    assert len(inspection.turned) == 2  # of three in doubt: a fifth of six, rounded up
    assert inspection.turned == seen.turned
    np.testing.assert_allclose(inspection.probability, seen.probability, atol=1e-6)


def test_windows_of_a_second_look_are_looked_at_turned_where_they_are_in_doubt(tmp_path: Path, turning: Path) -> None:
    second = SecondLook(score_min=0.05, ratio_max=0.5)
    replace(Manifest.read(turning), second_look=second).write(turning)
    pixels = frame(None, 0)
    pixels[40:44, 60:64] = DOUBTFUL  # at the border from the left
    cv2.imwrite(str(tmp_path / "border.png"), pixels)
    inspection = inspected(turning, tmp_path / "border.png", tmp_path)
    assert len(inspection.windows) == 7
    assert 6 in inspection.turned
    patches = cut(pixels, inspection.windows, 64)
    seen = seen_by(turning, patches)
    assert inspection.turned == seen.turned
    np.testing.assert_allclose(inspection.probability, seen.probability, atol=1e-6)
    verdict = inspection.verdict
    assert verdict is not None
    assert (verdict.proof.windows_extra, verdict.proof.windows_turned) == (1, len(seen.turned))


# --- while its lines still come ----------------------------------------------------------------------


class Watched:
    """What a scheduler was given: batches of the screen that comes line by line, and further looks, once done."""

    def __init__(self) -> None:
        self.batches = 0
        self.looks: list[int] = []


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    seen = Watched()
    compute, answered = Scheduler.compute, Queue.answered

    def look(scheduler: Scheduler, frame: Pixels, windows: Sequence[Window], **options: Any) -> Computed:  # noqa: ANN401
        answer = compute(scheduler, frame, windows, **options)
        seen.looks.append(len(windows))
        return answer

    def count(queue: Queue, job: Job, outcome: Computed | Exception | None = None) -> None:
        answered(queue, job, outcome)
        seen.batches += len(job.windows) == 30

    monkeypatch.setattr(Scheduler, "compute", look)
    monkeypatch.setattr(Queue, "answered", count)
    return seen


def tall(doubtful: int) -> Pixels:
    """A frame of ten rows of three windows, with a doubtful spot in the second window of a row."""
    pixels = np.full((10 * 64, 192), BACKGROUND, np.uint8)
    pixels[64 * doubtful + 4 : 64 * doubtful + 8, 68:72] = DOUBTFUL
    return pixels


class Answered(NamedTuple):
    """What is answered to a frame as a whole, and to the same line by line; and the looks at the latter."""

    whole: dict[str, Any]
    lines: dict[str, Any]
    looks: list[int]


def by_lines(tmp_path: Path, bundle: Path, pixels: Pixels, watched: Watched, then: Callable[[], bool]) -> Answered:
    """The rest of the lines comes once `then` is so, which can be by what the device did with six of ten rows."""
    with serve(create_app(settings(tmp_path, bundle))) as client:
        until(lambda: client.get("/readyz").status_code == 200)

        def pieces() -> Iterator[bytes]:
            yield pixels[:320].tobytes()
            until(lambda: watched.batches >= 3)  # 15 windows: all that are there
            yield pixels[320:384].tobytes()
            until(then)
            yield pixels[384:].tobytes()

        size = {"width": pixels.shape[1], "height": pixels.shape[0]}
        headers = {"content-type": "application/octet-stream"}
        lines = client.post("/v1/screens", params={"screen_id": "lines", **size}, content=pieces(), headers=headers)
        looks = list(watched.looks)
        whole = post_raw(client, "whole", pixels)
    answers = whole.json(), lines.json()
    for answer in answers:
        del answer["timing"], answer["screen_id"], answer["proof"]["self_test_age_s"]
    return Answered(*answers, looks)


def test_a_window_in_doubt_is_looked_at_while_the_rest_is_on_its_way(
    tmp_path: Path, turning: Path, watched: Watched
) -> None:
    found = by_lines(tmp_path, turning, tall(1), watched, lambda: watched.looks == [7])
    assert found.whole == found.lines
    assert found.lines["proof"]["windows_turned"] == 1
    assert found.looks == [7]  # and not once more after the last line


def test_a_second_look_is_done_while_the_rest_is_on_its_way(tmp_path: Path, turning: Path, watched: Watched) -> None:
    replace(Manifest.read(turning), second_look=SecondLook(score_min=0.05, ratio_max=0.5)).write(turning)
    pixels = tall(1)
    pixels[64:128] = BACKGROUND
    pixels[104:108, 60:64] = DOUBTFUL  # at the border from the left
    found = by_lines(tmp_path, turning, pixels, watched, lambda: watched.looks == [1])
    assert found.whole == found.lines
    assert found.lines["proof"]["windows_extra"] == 1
    assert found.looks == [1] + [7] * found.lines["proof"]["windows_turned"]  # and not once more after the last line


def test_one_that_comes_late_is_looked_at_after_the_last_line(tmp_path: Path, turning: Path, watched: Watched) -> None:
    found = by_lines(tmp_path, turning, tall(9), watched, lambda: True)
    assert found.whole == found.lines
    assert found.lines["proof"]["windows_turned"] == 1
    assert found.looks == [7]


def test_what_is_not_in_doubt_among_the_whole_screen_is_forgotten(
    tmp_path: Path, turning: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.early.in_doubt", lambda *_: (4,))
    monkeypatch.setattr("service.reasoning.in_doubt", lambda *_: ())
    found = by_lines(tmp_path, turning, tall(1), watched, lambda: watched.looks == [7])
    assert found.whole == found.lines
    assert found.lines["proof"]["windows_turned"] == 0


@pytest.mark.parametrize(("first", "then"), [(5.0, 500.0), (500.0, 5.0)])
def test_of_all_looks_the_worst_self_test_counts(first: float, then: float) -> None:
    """A look that was done early knows of an older one."""
    one, other = computed(7, 0.0, first), computed(7, 0.0, then)
    assert one.averaged(0, other).self_test.age_s == one.joined(other).self_test.age_s == 500.0


def test_all_looks_of_a_screen_are_told_as_one() -> None:
    device = object()
    whole = computed(2, 8.0, 5.0, device).averaged(1, computed(7, 16.0, 500.0, device))
    assert (whole.guard, whole.device, whole.self_test.age_s) == ({"bubble": 0.1}, device, 500)
    assert (whole.queue_s, whole.features_s) == (2.0, 4.0)
    assert whole.features.stage1.ravel().tolist() == [8, 15]


# --- the gate ----------------------------------------------------------------------------------------


@pytest.fixture
def sealed(tmp_path: Path, turning: Path) -> Path:
    """A sealed set whose module looks turned as the bundle does."""
    golden = write_set(
        tmp_path / "golden",
        turning,
        lambda patches, _: seen_by(turning, patches).probability,
        lambda patches, _: seen_by(turning, patches).activation,
    )
    for path in (golden / "screens").iterdir():
        pixels = np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), np.uint8)
        reseal(golden, path.name, turned=seen_by(turning, patches_of(pixels)).turned)
    return golden


def doubtful_of(sealed: Path, bundle: Path) -> Seen:
    pixels = np.asarray(cv2.imread(str(sealed / "screens" / "doubtful.png"), cv2.IMREAD_GRAYSCALE), np.uint8)
    return seen_by(bundle, patches_of(pixels))


def test_the_gate_takes_a_bundle_that_looks_turned_as_its_module_does(
    tmp_path: Path, turning: Path, sealed: Path
) -> None:
    found = gate.run(turning, sealed, active=turning, settings=settings(tmp_path, turning))
    assert (found.different, found.rounded, found.refusals) == ([], [], [])


def test_the_gate_takes_no_turned_look_that_the_bundle_does_not_ask_for(
    tmp_path: Path, turning: Path, sealed: Path
) -> None:
    reseal(sealed, "clean.png", turned=[0, 1, 2])
    found = gate.run(turning, sealed, active=turning, settings=settings(tmp_path, turning))
    assert found.different == ["clean.png"]
    assert "3 windows looked at turned were sealed" in found.why["clean.png"]


def test_the_gate_finds_other_scores_of_a_window_that_both_looked_at_turned(
    tmp_path: Path, turning: Path, sealed: Path
) -> None:
    seen = doubtful_of(sealed, turning)
    assert seen.turned
    reseal(sealed, "doubtful.png", probability=seen.once.astype(float).tolist(), maps=[])
    found = gate.run(turning, sealed, active=turning, settings=settings(tmp_path, turning))
    assert "doubtful.png" in found.different


def test_a_window_at_a_limit_of_the_doubt_may_be_looked_at_by_one_alone(
    tmp_path: Path, turning: Path, sealed: Path
) -> None:
    seen = doubtful_of(sealed, turning)
    (place,) = seen.turned
    score = float(seen.once[place].max())
    # a bundle whose doubt begins just above that score, held against a module whose doubt began just below
    narrow = replace(Manifest.read(turning), turned_look=replace(LOOK, score_min=score + 1e-6))
    narrow.write(turning)
    found = gate.run(turning, sealed, active=turning, settings=settings(tmp_path, turning))
    assert (found.different, found.rounded, list(found.why)) == ([], ["doubtful.png"], ["doubtful.png"])


def test_a_window_far_from_any_doubt_may_not(tmp_path: Path, turning: Path, sealed: Path) -> None:
    seen = doubtful_of(sealed, turning)
    (place,) = seen.turned
    wrong = seen.probability.copy()
    wrong[place] = [0, 0.99, 0, 0]  # the module was sure of what this bundle doubts
    heat = [{"window": place, "label": "pinhole", "heat": seen.activation[place, 1].tolist()}]
    reseal(sealed, "doubtful.png", turned=[], probability=wrong.astype(float).tolist(), maps=heat)
    found = gate.run(turning, sealed, active=turning, settings=settings(tmp_path, turning))
    assert found.different == ["doubtful.png"]
    assert "was looked at turned by one alone" in found.why["doubtful.png"]


@pytest.mark.parametrize("turned_at", [[6], [-1], [1, 1]])
def test_a_sealed_set_that_looks_turned_at_no_window_is_refused(
    tmp_path: Path, turning: Path, sealed: Path, turned_at: list[int]
) -> None:
    reseal(sealed, "doubtful.png", turned=turned_at)
    with pytest.raises(ReleaseError, match="looked at turned"):
        gate.run(turning, sealed, active=turning, settings=settings(tmp_path, turning))
