import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from engine import (
    RELEASE_FILE,
    Manifest,
    PlanError,
    SecondLook,
    bundle_sha256,
    cover,
    cut,
)
from engine.manifest import parse
from service import release as gate
from service.__main__ import app
from service.released import Count, read_releases, require_release
from service.sealed import SEALED_FILE, ReleaseError
from service.serving import Loaded, load_bundle
from service.settings import Settings
from service.store import Activation, Store
from tests.bundles import BACKGROUND, activation_of, grey_of, probability_of, tiny_bundle
from tests.service.shelves import ON_THIS_CPU

SIZE = 128, 192
# name, grey of a spot drawn on it (None: clean), whether boxes.csv calls it defective
SCREENS = (("clean", None, False), ("bubble", grey_of(0), True), ("doubtful", grey_of(1) + 4, True))


Module = Callable[[NDArray[np.uint8], int], NDArray[np.float32]]


def frame(spot: int | None, seed: int) -> NDArray[np.uint8]:
    pixels = np.random.default_rng(seed).integers(BACKGROUND - 20, BACKGROUND + 21, SIZE).astype(np.uint8)
    if spot is not None:
        pixels[40:44, 80:84] = spot
    return pixels


def sealed_maps(
    probability: NDArray[np.float32], activation: NDArray[np.float32], manifest: Manifest
) -> list[dict[str, Any]]:
    """Those of the windows that have a label, as `training.sealing` writes them."""
    thresholds = [limits.threshold for limits in manifest.labels.values()]
    return [
        {"window": k, "label": manifest.label_names[c], "heat": activation[k, c].tolist()}
        for k, c in np.argwhere(probability.astype(float) >= thresholds).tolist()
    ]


def write_set(
    folder: Path,
    bundle: Path,
    module: Module = probability_of,
    maps: Module = activation_of,
    *,
    spoil: Callable[[NDArray[np.uint8]], None] = lambda pixels: None,
) -> Path:
    """A sealed set for the tiny bundle, its probabilities and maps from NumPy: the module of this bundle."""
    manifest = Manifest.read(bundle)
    (folder / "screens").mkdir(parents=True)
    sealed: dict[str, object] = {}
    for seed, (name, spot, _) in enumerate(SCREENS):
        pixels = frame(spot, seed)
        spoil(pixels)
        path = folder / "screens" / f"{name}.png"
        cv2.imwrite(str(path), pixels)
        windows = cover(*SIZE, patch_px=manifest.patch_px)
        patches = cut(pixels, windows, manifest.patch_px)
        probability, activation = (answer(patches, len(manifest.labels)) for answer in (module, maps))
        sealed[path.name] = {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "windows": [[window.top, window.left] for window in windows],
            "probability": probability.astype(float).tolist(),
            "maps": sealed_maps(probability, activation, manifest),
        }
    head = {"name": manifest.name, "version": manifest.version, "labels": list(manifest.labels)}
    (folder / SEALED_FILE).write_text(json.dumps({**head, "screens": sealed}))
    with (folder / "boxes.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["screen", "label", "left", "top", "right", "bottom"])
        rows.writerows([name, "bubble", 80, 40, 84, 44] for name, _, bad in SCREENS if bad)
    return folder


@pytest.fixture
def candidate(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path / "candidate")


@pytest.fixture
def golden(tmp_path: Path, candidate: Path) -> Path:
    return write_set(tmp_path / "golden", candidate)


def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state", runtime="onnxruntime")


def reseal(golden: Path, name: str, **changes: object) -> None:
    sealed = json.loads((golden / SEALED_FILE).read_text())
    sealed["screens"][name].update(changes)
    (golden / SEALED_FILE).write_text(json.dumps(sealed))


def test_what_agrees_with_its_module_is_released(tmp_path: Path, candidate: Path, golden: Path, bundle: Path) -> None:
    found = gate.run(candidate, golden, active=bundle, settings=settings(tmp_path))
    assert found.refusals == []
    assert found.different == []
    assert (found.tally.escape.count, found.tally.escape.of) == (0, 2)
    assert (found.tally.overkill.count, found.tally.overkill.of) == (0, 1)
    (device,) = found.devices
    assert device.finite
    assert set(device.slot_spread.values()) == {0.0}
    assert read_releases(candidate).records == {"onnxruntime fp32": found}
    require_release(candidate, ON_THIS_CPU, digest=bundle_sha256(candidate), active=bundle_sha256(bundle))


def test_the_gate_holds_a_bundle_against_the_one_that_the_record_says_is_in_service(
    tmp_path: Path, candidate: Path, golden: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swapped = tiny_bundle(tmp_path / "bundles" / "two", version="2")
    store = Store(tmp_path / "state")
    manifest = Manifest.read(swapped)
    store.activate(
        Activation(
            bundle="two",
            digest=bundle_sha256(swapped),
            name=manifest.name,
            version=manifest.version,
            configured=str(bundle.resolve()),
        )
    )
    store.close()
    for name, path in (("STATE_DIR", tmp_path / "state"), ("BUNDLES", tmp_path / "bundles"), ("BUNDLE", bundle)):
        monkeypatch.setenv(f"INSPECT_{name}", str(path))
    monkeypatch.setenv("INSPECT_RUNTIME", "onnxruntime")
    monkeypatch.setattr("service.logs.configure", lambda **_: None)  # whose loggers would outlive this test
    answer = CliRunner().invoke(app, ["release", str(candidate), "--golden", str(golden), "--json"])
    record = json.loads(answer.stdout[answer.stdout.index("{") :])  # after what a log that is not set up says
    assert (record["active"], record["active_sha256"]) == ("tiny 2", bundle_sha256(swapped))
    assert record["manifest_sha256"] == bundle_sha256(candidate)


def test_the_gate_runs_a_bundle_in_the_batch_of_the_line(tmp_path: Path, candidate: Path, golden: Path) -> None:
    line = settings(tmp_path).model_copy(update={"batch": 3})
    assert gate.run(candidate, golden, active=candidate, settings=line).runs_as == replace(ON_THIS_CPU, batch_size=3)


def test_another_verdict_than_the_modules_is_refused_and_named(tmp_path: Path, candidate: Path, golden: Path) -> None:
    (candidate / RELEASE_FILE).write_text("an older record")
    seen = {"window": 0, "label": "bubble", "heat": np.eye(8).tolist()}
    reseal(golden, "clean.png", probability=[[0.9, 0, 0, 0]] + [[0.0] * 4] * 5, maps=[seen])
    found = gate.run(candidate, golden, active=candidate, settings=settings(tmp_path))
    assert found.different == ["clean.png"]
    why = found.why["clean.png"]
    assert "the window 0 px from the top and 0 px from the left scores otherwise, by 0.9" in why
    assert found.refusals == [f"the verdict differs from the module's on clean.png ({why})"]
    assert not (candidate / RELEASE_FILE).exists()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"windows": [[0, 1], [0, 64], [0, 128], [64, 0], [64, 64], [64, 128]]}, "do not begin with those that cover"),
        ({"probability": [[0.0] * 4] * 5}, "the scores that were sealed are not those of its windows"),
    ],
)
def test_what_was_sealed_for_other_windows_is_another_screens(
    tmp_path: Path, candidate: Path, golden: Path, changes: dict[str, object], why: str
) -> None:
    reseal(golden, "clean.png", **changes)
    found = gate.run(candidate, golden, active=candidate, settings=settings(tmp_path))
    assert found.different == ["clean.png"]
    assert why in found.why["clean.png"]


def test_a_verdict_that_rounding_decides_is_named_and_released(tmp_path: Path) -> None:
    """The limit lies between the bundle's score and the module's, which differ by less than the tolerance."""
    scores = probability_of(cut(frame(grey_of(1) + 4, 2), cover(*SIZE, patch_px=64), 64), 4)
    limit = float(scores.max()) + 3e-6
    close = tiny_bundle(tmp_path / "close", review=(limit, 0.9), threshold=limit)
    golden = write_set(tmp_path / "golden", close, lambda *given: probability_of(*given) + np.float32(6e-6))
    found = gate.run(close, golden, active=close, settings=settings(tmp_path))
    assert found.different == []
    assert found.rounded == ["doubtful.png"]
    assert found.refusals == []
    assert "a score at a limit: pass (nothing there) and review (" in found.why["doubtful.png"]
    rows = [
        ("verdicts as the module's", "2 of 3 (1 more with a score at a limit)"),
        ("rounded: doubtful.png", found.why["doubtful.png"]),
    ]
    assert [row for row in gate.rows(found) if row in rows] == rows
    assert found.model_copy(update={"screens": 100, "rounded": ["any"] * 6}).refusals == [
        "rounding decides the verdict on 6 of 100 screens"
    ]


def test_wrong_scores_are_found_where_a_second_look_differs_too(tmp_path: Path) -> None:
    """A doubtful spot at a border, where the wrong graph alone looks twice, excuses nothing elsewhere."""
    good = tiny_bundle(tmp_path / "good", second_look=SecondLook(score_min=0.05, ratio_max=0.5))
    wrong = shutil.copytree(good, tmp_path / "wrong")
    model = onnx.load(wrong / "features.onnx")
    (slope,) = (one for one in model.graph.initializer if one.name == "slope")
    slope.CopyFrom(numpy_helper.from_array(np.asarray(np.float32(-1 / 10)), "slope"))
    onnx.save(model, wrong / "features.onnx")
    parse((wrong / "manifest.json").read_bytes()).sign(wrong)

    def at_a_border(pixels: NDArray[np.uint8]) -> None:
        pixels[10:14, 60:64] = grey_of(2) + 6  # scores 0.007 by the module, 0.12 by the wrong graph

    golden = write_set(tmp_path / "golden", good, spoil=at_a_border)
    for bundle, different in ((good, []), (wrong, [f"{name}.png" for name, _, _ in SCREENS])):
        found = gate.run(bundle, golden, active=good, settings=settings(tmp_path))
        assert (found.different, found.rounded) == (different, [])


def test_more_escapes_than_the_active_bundle_are_refused(tmp_path: Path, candidate: Path) -> None:
    blind = tiny_bundle(tmp_path / "blind", review=(0.99999, 1.0), threshold=0.99999)
    golden = write_set(tmp_path / "golden", blind)
    found = gate.run(blind, golden, active=candidate, settings=settings(tmp_path))
    assert found.tally.escape.count == 2
    assert found.active_tally.escape.count == 0
    assert ["escape" in refusal for refusal in found.refusals] == [True]


def test_more_overkill_than_the_active_bundles_is_refused(tmp_path: Path, candidate: Path) -> None:
    strict = tiny_bundle(tmp_path / "strict", review=(1e-6, 1e-5), threshold=5e-6)
    golden = write_set(tmp_path / "golden", strict)
    found = gate.run(strict, golden, active=candidate, settings=settings(tmp_path))
    assert (found.tally.overkill.count, found.active_tally.overkill.count) == (1, 0)
    assert ["overkill" in refusal for refusal in found.refusals] == [True]
    assert not (strict / RELEASE_FILE).exists()


def test_a_bundle_is_loaded_once_and_as_a_swap_loads_it(
    tmp_path: Path, candidate: Path, golden: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[tuple[Path, bool]] = []

    def noted(path: Path, settings: Settings, *, prebuilt: bool = False) -> Loaded:
        loads.append((path, prebuilt))
        return load_bundle(path, settings, prebuilt=prebuilt)

    monkeypatch.setattr(gate, "load_bundle", noted)
    gate.run(candidate, golden, active=bundle, settings=settings(tmp_path))
    assert loads == [(candidate, True), (bundle, True)]


def test_a_bundle_whose_plan_is_missing_is_named_and_gets_no_record(
    tmp_path: Path, candidate: Path, golden: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PlanError("there is no plan, build it first")

    monkeypatch.setattr("service.serving.load_all", refuse)
    with pytest.raises(PlanError, match=f"^{candidate}: there is no plan"):
        gate.run(candidate, golden, active=bundle, settings=settings(tmp_path))
    assert not (candidate / RELEASE_FILE).exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda g: (g / SEALED_FILE).unlink(), "cannot be read"),
        (lambda g: (g / SEALED_FILE).write_text("{}"), "required"),
        (lambda g: reseal(g, "bubble.png", maps=[]), "bubble.png: its maps are not those of the windows"),
        (lambda g: reseal(g, "bubble.png", maps=[{"window": 1, "label": "bubble"}]), "maps.0.heat: .*; seal the set"),
        (lambda g: (g / "boxes.csv").unlink(), "escapes"),
        (lambda g: (g / "boxes.csv").write_text("screen,label\n"), "no defective screen"),
        (lambda g: (g / "boxes.csv").write_text('screen,label\nbubble,"a\ndoubtful,a\n'), "unexpected end of data"),
        (lambda g: (g / "boxes.csv").write_text('screen,label\nbubble,"a\ndoubtful,a"\n'), "a quote is left open"),
        (lambda g: (g / "boxes.csv").write_text("screen,label\nclean,a\nbubble,a\ndoubtful,a\n"), "no clean screen"),
        (lambda g: (g / "boxes.csv").write_text("screen,label\nbubble,a\nlost,a\n"), "names the screen 'lost'"),
        # with the mark that spreadsheets put before a text
        (lambda g: (g / "boxes.csv").write_text("\ufeffscreen,label\nlost,a\n"), "names the screen 'lost'"),
        (lambda g: (g / "screens" / "clean.png").unlink(), "lacks the screen"),
        (lambda g: shutil.copy(g / "screens" / "bubble.png", g / "screens" / "clean.png"), "not the file"),
        (lambda g: (g / SEALED_FILE).write_text((g / SEALED_FILE).read_text().replace("1.0.0", "2")), "sealed for"),
        (lambda g: (g / SEALED_FILE).write_text((g / SEALED_FILE).read_text().replace("clean.png", "../a")), "lacks"),
    ],
)
def test_a_set_that_is_not_whole_decides_nothing(
    tmp_path: Path, candidate: Path, golden: Path, spoil: object, message: str
) -> None:
    assert callable(spoil)
    spoil(golden)
    (candidate / RELEASE_FILE).write_text("the record of a run before")
    with pytest.raises(ReleaseError, match=message):
        gate.run(candidate, golden, active=candidate, settings=settings(tmp_path))
    assert (candidate / RELEASE_FILE).read_text() == "the record of a run before"


def test_a_bundle_that_is_replaced_in_the_gate_gets_no_record(
    tmp_path: Path, candidate: Path, golden: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examine = gate._load_and_examine

    def replaced_after(bundle: Path, settings: Settings) -> object:
        found = examine(bundle, settings)
        shutil.rmtree(candidate)
        tiny_bundle(candidate, gain=18.0)
        return found

    monkeypatch.setattr(gate, "_load_and_examine", replaced_after)
    with pytest.raises(ReleaseError, match="was replaced"):
        gate.run(candidate, golden, active=bundle, settings=settings(tmp_path))
    assert not (candidate / RELEASE_FILE).exists()


def turn_maps(bundle: Path) -> None:
    """Turn the maps of a bundle's graph the other way round, rows and columns, and sign it."""
    model = onnx.load(bundle / "features.onnx")
    for node in model.graph.node:
        if "activation" in node.output:
            node.output[0] = "upright"
        node.input[:] = ["upright" if name == "activation" else name for name in node.input]
    turned = numpy_helper.from_array(np.arange(7, -1, -1), "turned")
    model.graph.initializer.append(turned)
    for axis, ends in ((2, ("upright", "rows_turned")), (3, ("rows_turned", "activation"))):
        model.graph.node.append(helper.make_node("Gather", [ends[0], "turned"], [ends[1]], axis=axis))
    onnx.save(model, bundle / "features.onnx")
    parse((bundle / "manifest.json").read_bytes()).sign(bundle)


def test_a_bundle_whose_boxes_lie_elsewhere_than_its_modules_is_refused(
    tmp_path: Path, candidate: Path, golden: Path
) -> None:
    turn_maps(candidate)
    with np.load(candidate / "golden.npz") as arrays:  # its own golden patches would tell it first
        turned = {**arrays, "activation": arrays["activation"][:, :, ::-1, ::-1]}
    np.savez_compressed(candidate / "golden.npz", **turned)
    parse((candidate / "manifest.json").read_bytes()).sign(candidate)
    found = gate.run(candidate, golden, active=candidate, settings=settings(tmp_path))
    assert found.different == ["bubble.png"]
    assert "boxes that one alone has" in found.why["bubble.png"]
    assert not (candidate / RELEASE_FILE).exists()


def test_a_bundle_whose_maps_are_not_those_of_its_golden_patches_proves_no_screen(
    tmp_path: Path, candidate: Path, golden: Path
) -> None:
    turn_maps(candidate)
    found = gate.run(candidate, golden, active=candidate, settings=settings(tmp_path))
    assert found.different == [f"{name}.png" for name, _, _ in SCREENS]


def test_a_bundle_that_sends_clean_screens_to_review_is_refused(tmp_path: Path, candidate: Path) -> None:
    wary = tiny_bundle(tmp_path / "wary", review=(1e-6, 0.7))
    golden = write_set(tmp_path / "golden", wary)
    found = gate.run(wary, golden, active=candidate, settings=settings(tmp_path))
    assert (found.tally.review.count, found.active_tally.review.count, found.tally.review.of) == (1, 0, 1)
    assert found.refusals == ["1 of 1 clean screens go to review, 0 of tiny 1.0.0's: more than 10% of them on top"]
    some = {"tally": found.tally.model_copy(update={"review": Count(count=4, of=30)})}
    assert found.model_copy(update=some).refusals
    some = {"tally": found.tally.model_copy(update={"review": Count(count=3, of=30)})}
    assert found.model_copy(update=some).refusals == []
