"""A second look in service: what is added is inferred, reasoned over and counted, and replaces nothing."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine import Features, Manifest, SecondLook, Window, cover, cut, fake_manifest, infer, load, look_again
from service import release as gate
from service.aggregation import aggregate
from service.errors import NotReady
from service.files import inspect_files, inspector
from service.inspector import Inspection
from service.sealed import SEALED_FILE
from service.selftest import worst
from service.settings import Settings
from service.verdict import Verdict
from service.waiting import Computed
from tests.bundles import REACH, activation_of, grey_of, tiny_bundle
from tests.service.devices import GUARD_S, Device, held_at, line, until
from tests.service.strategies import FRESH, LABELS, PATCH_PX, Screen, screens
from tests.service.test_release import SIZE, frame, sealed_maps, write_set

LOOK = SecondLook(score_min=0.05, ratio_max=0.5)
DOUBTFUL = grey_of(1) + REACH // 2
AT = Window(row=0, column=0, top=0, left=32)  # between the first two windows of SIZE


@pytest.fixture
def looking(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path / "looking", second_look=LOOK)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A screen with a doubtful spot that touches the first border from the left."""
    pixels = frame(None, 0)
    pixels[40:44, 60:64] = DOUBTFUL
    path = tmp_path / "doubtful.png"
    cv2.imwrite(str(path), pixels)
    return path


def settings(tmp_path: Path, bundle: Path) -> Settings:
    return Settings(bundle=bundle, state_dir=tmp_path / "state", runtime="onnxruntime")


def inspected(bundle: Path, picture: Path, tmp_path: Path) -> Inspection:
    with inspector(settings(tmp_path, bundle)) as ready:
        (result,) = inspect_files(ready, [picture], raw_size=None)
    assert isinstance(result.outcome, Inspection)
    return result.outcome


def answered(bundle: Path, picture: Path, tmp_path: Path, *, copies: int) -> list[Verdict]:
    """The verdicts of several copies of a picture, inspected together."""
    with inspector(settings(tmp_path, bundle)) as ready:
        outcomes = [result.outcome for result in inspect_files(ready, [picture] * copies, raw_size=None)]
    verdicts = [outcome.verdict for outcome in outcomes if isinstance(outcome, Inspection)]
    return [verdict for verdict in verdicts if verdict is not None]


def seen_by(bundle: Path, pixels: NDArray[np.uint8]) -> tuple[tuple[Window, ...], NDArray[np.float32]]:
    """All the windows of a frame, and their probabilities together, by the engine alone."""
    backend = load(bundle, "onnxruntime")
    try:
        manifest = backend.manifest
        windows = cover(*pixels.shape, patch_px=manifest.patch_px)
        features, probability = infer(backend, cut(pixels, windows, manifest.patch_px))
        windows += look_again(windows, probability, features.activation, manifest)
        return windows, infer(backend, cut(pixels, windows, manifest.patch_px))[1]
    finally:
        backend.close()


# --- a screen ----------------------------------------------------------------------------------------


def test_added_windows_join_the_reasoning_and_are_counted_apart(tmp_path: Path, looking: Path, picture: Path) -> None:
    inspection = inspected(looking, picture, tmp_path)
    windows, probability = seen_by(looking, inspection.frame.pixels)
    assert windows[6:] == (AT,)
    verdict = inspection.verdict
    assert verdict is not None
    proof = verdict.proof
    assert (proof.windows_expected, proof.windows_inferred, proof.windows_extra) == (6, 6, 1)
    assert [result.score for result in verdict.labels.values()] == pytest.approx(probability.max(0), abs=1e-6)


def test_the_same_screen_gets_the_same_answer_whatever_else_is_looked_at_again(
    tmp_path: Path, looking: Path, picture: Path
) -> None:
    def answers(copies: int) -> list[str]:
        verdicts = answered(looking, picture, tmp_path, copies=copies)
        return [f"{verdict.labels} {verdict.defects}" for verdict in verdicts]

    alone, together = answers(1), answers(8)
    assert together == alone * 8


def test_a_bundle_that_does_not_ask_looks_once(tmp_path: Path, picture: Path) -> None:
    verdict = inspected(tiny_bundle(tmp_path / "once"), picture, tmp_path).verdict
    assert verdict is not None
    assert verdict.proof.windows_extra == 0


@given(screens(), st.data())
def test_added_windows_never_stand_in_for_one_that_is_missing(screen: Screen, data: st.DataObject) -> None:
    windows = list(screen.seen.windows)
    lost = windows.pop(data.draw(st.integers(0, len(windows) - 1)))
    # wherever a second look may lie, and at the very place of the lost one
    places = st.builds(
        Window,
        row=st.just(lost.row),
        column=st.just(lost.column),
        top=st.integers(0, screen.seen.brightness.size[0] - PATCH_PX),
        left=st.integers(0, screen.seen.brightness.size[1] - PATCH_PX),
    ).filter(lambda window: window != lost)
    windows += data.draw(st.lists(places, max_size=5))
    form = (len(windows), len(LABELS))
    seen = replace(
        screen.seen,
        windows=windows,
        probability=np.zeros(form, np.float32),
        activation=np.zeros((*form, 4, 4), np.float32),
    )
    judgement = aggregate(seen, screen.manifest)
    assert (judgement.verdict, judgement.reasons[0]) == ("review", "windows_missing")


# --- the queue ---------------------------------------------------------------------------------------


def test_a_second_look_goes_ahead_of_screens_that_wait_and_always_has_room() -> None:
    device, stop = held_at(1)
    with line(device, max_patches=10) as here:
        first = here.compute(3)
        running = here.send(1, 6)
        stop.wait_for()  # the device is at it, and will not take the second look before it
        waiting = here.send(2, 4)  # every place is taken
        again = here.send(4, 12, after=first)  # alone more than there are
        stop.opened.set()
        for answer in (running, waiting, again):
            answer.result(GUARD_S)
        assert here.scheduler.waiting_patches == 0
    assert device.order == [3, 1, 4, 2]


def test_a_service_that_stops_refuses_a_second_look_too() -> None:
    with line(Device()) as here:
        first = here.compute(3)
        here.scheduler.close()
        with pytest.raises(NotReady):
            here.compute(3, after=first)


def test_a_second_look_is_by_the_device_of_the_first_however_busy_that_is() -> None:
    (one, gate_of_one), (other, gate_of_other) = held_at(1, 2), held_at(1, 2)
    with line(one, other) as here:
        first = here.compute(9)
        mine, gate, free = (one, gate_of_one, gate_of_other) if one.order else (other, gate_of_other, gate_of_one)
        answers = [here.send(number, 5) for number in (1, 2)]  # one on each
        gate.wait_for()
        free.opened.set()
        until(lambda: here.scheduler.waiting_patches == 5)  # the other device has nothing to do
        again = here.send(8, 5, after=first)
        gate.opened.set()
        for answer in (*answers, again):
            answer.result(GUARD_S)
    assert 8 in mine.order


def computed(patches: int, value: float, age_s: float | None, device: object = None) -> Computed:
    return Computed(
        features=Features(
            label_features=np.full((patches, 1, 2), value, np.float32),
            stage1=np.full((patches, 1), value, np.float32),
            activation=np.full((patches, 1, 3, 3), value, np.float32),
            doubt=np.ones(patches, np.float32),
        ),
        guard={"bubble": 0.1},
        self_test=replace(FRESH, age_s=age_s),
        queue_s=1.0,
        features_s=2.0,
        device=device,
    )


def test_both_looks_of_a_screen_are_told_as_one() -> None:
    device = object()
    looks = [computed(patches, patches, age_s, device) for patches, age_s in ((2, FRESH.age_s), (1, 500.0))]
    whole = looks[0].joined(looks[1])
    assert (whole.guard, whole.device) == ({"bubble": 0.1}, device)
    assert whole.self_test.age_s == 500  # as it was known at the end
    assert (whole.queue_s, whole.features_s) == (2.0, 4.0)
    assert whole.features.stage1.ravel().tolist() == [2, 2, 1]
    assert len(whole.features.label_features) == len(whole.features.activation) == 3


def test_the_worst_device_is_the_one_that_is_gone_then_failing_then_old() -> None:
    reports = [
        replace(FRESH, ok=False, gone=True),
        replace(FRESH, ok=False),
        replace(FRESH, age_s=None),
        replace(FRESH, age_s=100.0),
        FRESH,
    ]
    for number in range(len(reports)):
        assert worst(reversed(reports[number:])) == reports[number]


# --- the gate ----------------------------------------------------------------------------------------


@pytest.fixture
def sealed(tmp_path: Path, looking: Path, picture: Path) -> Path:
    """A sealed set with a screen of which the module looked twice."""
    golden = write_set(tmp_path / "golden", looking)
    path = golden / "screens" / "doubtful.png"
    path.write_bytes(picture.read_bytes())
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert pixels is not None
    assert pixels.shape == SIZE
    windows, probability = seen_by(looking, np.asarray(pixels, np.uint8))
    assert len(windows) == 7
    write(golden, windows, probability)
    return golden


def write(golden: Path, windows: tuple[Window, ...], probability: NDArray[np.float32]) -> None:
    text = json.loads((golden / SEALED_FILE).read_text())
    pixels = cv2.imread(str(golden / "screens" / "doubtful.png"), cv2.IMREAD_GRAYSCALE)
    like = fake_manifest(text["labels"])  # of the same thresholds and patches
    activation = activation_of(cut(np.asarray(pixels, np.uint8), windows, like.patch_px), len(like.labels))
    text["screens"]["doubtful.png"] = {
        "sha256": hashlib.sha256((golden / "screens" / "doubtful.png").read_bytes()).hexdigest(),
        "windows": [[window.top, window.left] for window in windows],
        "probability": probability.astype(float).tolist(),
        "maps": sealed_maps(probability, activation, like),
    }
    (golden / SEALED_FILE).write_text(json.dumps(text))


def test_the_gate_takes_a_bundle_that_looks_twice_as_its_module_does(
    tmp_path: Path, looking: Path, sealed: Path
) -> None:
    found = gate.run(looking, sealed, active=looking, settings=settings(tmp_path, looking))
    assert (found.different, found.refusals) == ([], [])


def test_the_gate_finds_a_score_that_only_the_modules_second_look_has(
    tmp_path: Path, looking: Path, sealed: Path
) -> None:
    pixels = cv2.imread(str(sealed / "screens" / "doubtful.png"), cv2.IMREAD_GRAYSCALE)
    windows, probability = seen_by(looking, np.asarray(pixels, np.uint8))
    probability[6, 0] = 0.9
    write(sealed, windows, probability)
    found = gate.run(looking, sealed, active=looking, settings=settings(tmp_path, looking))
    assert found.different == ["doubtful.png"]
    assert "scores otherwise, by 0.9" in found.why["doubtful.png"]


def test_the_gate_takes_no_second_look_that_the_bundle_does_not_ask_for(
    tmp_path: Path, looking: Path, sealed: Path
) -> None:
    replace(Manifest.read(looking), second_look=replace(LOOK, ratio_max=0.0)).write(looking)
    found = gate.run(looking, sealed, active=looking, settings=settings(tmp_path, looking))
    assert found.different == ["doubtful.png"]
    assert found.why == {"doubtful.png": "1 windows of a second look were sealed, of which the bundle takes 0"}
