import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from engine import (
    RELEASE_FILE,
    Manifest,
    PlanError,
    RunsAs,
    bundle_sha256,
    cover,
    cut,
)
from service import release as gate
from service.__main__ import app
from service.errors import ReleaseMissing
from service.release import is_released, require_release
from service.sealed import SEALED_FILE, ReleaseError
from service.serving import Loaded, load_bundle
from service.settings import Settings
from service.store import Activation, Store
from tests.bundles import BACKGROUND, grey_of, probability_of, tiny_bundle
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


def write_set(folder: Path, bundle: Path, module: Module = probability_of) -> Path:
    """A sealed set for the tiny bundle, its probabilities from NumPy: the module of this bundle."""
    manifest = Manifest.read(bundle)
    (folder / "screens").mkdir(parents=True)
    sealed: dict[str, object] = {}
    for seed, (name, spot, _) in enumerate(SCREENS):
        pixels = frame(spot, seed)
        path = folder / "screens" / f"{name}.png"
        cv2.imwrite(str(path), pixels)
        windows = cover(*SIZE, patch_px=manifest.patch_px)
        probability = module(cut(pixels, windows, manifest.patch_px), len(manifest.labels))
        sealed[path.name] = {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "windows": [[window.top, window.left] for window in windows],
            "probability": probability.astype(float).tolist(),
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


def require(candidate: Path, runs: RunsAs = ON_THIS_CPU, *, active: Path | None = None) -> None:
    """Where `active`, by default the candidate itself, is in service."""
    require_release(candidate, runs, digest=bundle_sha256(candidate), active=bundle_sha256(active or candidate))


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
    assert gate.Release.model_validate_json((candidate / RELEASE_FILE).read_bytes()) == found
    require(candidate, active=bundle)


def test_what_was_held_against_another_bundle_than_the_one_in_service_is_refused(
    tmp_path: Path, candidate: Path, golden: Path, bundle: Path
) -> None:
    found = gate.run(candidate, golden, active=bundle, settings=settings(tmp_path))
    assert found.active_sha256 == bundle_sha256(bundle)
    in_service = tiny_bundle(tmp_path / "in-service", version="7")
    with pytest.raises(ReleaseMissing, match=r"held against .*, which is not in service now"):
        require(candidate, active=in_service)


def test_a_record_holds_for_what_was_loaded_whatever_lies_there_by_now(
    tmp_path: Path, candidate: Path, golden: Path, bundle: Path
) -> None:
    gate.run(candidate, golden, active=bundle, settings=settings(tmp_path))
    loaded = bundle_sha256(tiny_bundle(tmp_path / "loaded", version="7"))
    with pytest.raises(ReleaseMissing, match="another version"):
        require_release(candidate, ON_THIS_CPU, digest=loaded, active=bundle_sha256(bundle))


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
    record = json.loads(answer.stdout)
    assert (record["active"], record["active_sha256"]) == ("tiny 2", bundle_sha256(swapped))
    require(candidate, active=swapped)


def test_the_gate_runs_a_bundle_in_the_batch_of_the_line(tmp_path: Path, candidate: Path, golden: Path) -> None:
    line = settings(tmp_path).model_copy(update={"batch": 3})
    assert gate.run(candidate, golden, active=candidate, settings=line).runs_as == replace(ON_THIS_CPU, batch_size=3)


def test_another_verdict_than_the_modules_is_refused_and_named(tmp_path: Path, candidate: Path, golden: Path) -> None:
    (candidate / RELEASE_FILE).write_text("an older record")
    reseal(golden, "clean.png", probability=[[0.9, 0, 0, 0]] + [[0.0] * 4] * 5)
    found = gate.run(candidate, golden, active=candidate, settings=settings(tmp_path))
    assert found.different == ["clean.png"]
    assert "clean.png" in found.refusals[0]
    assert not (candidate / RELEASE_FILE).exists()


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
        (lambda g: (g / "boxes.csv").unlink(), "escapes"),
        (lambda g: (g / "boxes.csv").write_text("screen,label\n"), "no defective screen"),
        (lambda g: (g / "boxes.csv").write_text("screen,label\nclean,a\nbubble,a\ndoubtful,a\n"), "no clean screen"),
        (lambda g: (g / "boxes.csv").write_text("screen,label\nbubble,a\nlost,a\n"), "names the screen 'lost'"),
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
    with pytest.raises(ReleaseError, match=message):
        gate.run(candidate, golden, active=candidate, settings=settings(tmp_path))
    assert not (candidate / RELEASE_FILE).exists()


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


def test_a_record_holds_for_these_files_as_they_ran_and_for_nothing_else(
    tmp_path: Path, candidate: Path, golden: Path
) -> None:
    with pytest.raises(ReleaseMissing, match="has not passed"):
        require(candidate)
    found = gate.run(candidate, golden, active=candidate, settings=settings(tmp_path))
    assert found.runs_as == ON_THIS_CPU
    for runs, told in (
        (replace(ON_THIS_CPU, runtime="openvino"), "openvino fp32 in batches of 5"),
        (replace(ON_THIS_CPU, precision="int8"), "onnxruntime int8 in batches of 5"),
        (replace(ON_THIS_CPU, batch_size=10), "onnxruntime fp32 in batches of 10"),
        (replace(ON_THIS_CPU, versions="onnxruntime 0.1"), "in batches of 5 by onnxruntime 0.1"),
        (replace(ON_THIS_CPU, gpu="H100 sm90", plan="a" * 64), "on H100 sm90 with the plan aaaaaaaaaaaa"),
    ):
        with pytest.raises(ReleaseMissing, match=f"released for onnxruntime fp32 in batches of 5 by .*, and .* {told}"):
            require(candidate, runs)
    worse = found.devices[0].model_copy(update={"finite": False})
    (candidate / RELEASE_FILE).write_text(found.model_copy(update={"devices": [worse]}).model_dump_json())
    with pytest.raises(ReleaseMissing, match="refusal"):
        require(candidate)
    older = found.model_dump(mode="json")
    del older["runs_as"]["versions"]
    for unread in ({}, older):
        (candidate / RELEASE_FILE).write_text(json.dumps(unread))
        with pytest.raises(ReleaseMissing, match="cannot be read: release the bundle again"):
            require(candidate)
    (candidate / RELEASE_FILE).write_text(found.model_dump_json())
    Manifest.read(candidate)
    manifest = json.loads((candidate / "manifest.json").read_text())
    (candidate / "manifest.json").write_text(json.dumps({**manifest, "version": "2"}))
    with pytest.raises(ReleaseMissing, match="another version"):
        require(candidate)


def test_of_a_bundle_that_is_not_loaded_all_is_compared_but_the_plan(
    tmp_path: Path, candidate: Path, golden: Path
) -> None:
    found = gate.run(candidate, golden, active=candidate, settings=settings(tmp_path))
    on_a_gpu = replace(ON_THIS_CPU, gpu="H100 sm90", plan="a" * 64)
    (candidate / RELEASE_FILE).write_text(found.model_copy(update={"runs_as": on_a_gpu}).model_dump_json())
    for runs, taken in (
        (on_a_gpu, True),
        (replace(on_a_gpu, plan="b" * 64), False),
        (replace(on_a_gpu, plan=None), True),
        (replace(on_a_gpu, plan=None, versions="onnxruntime 0.1"), False),
        (replace(on_a_gpu, plan=None, gpu="A10 sm86"), False),
    ):
        assert is_released(candidate, runs, digest=bundle_sha256(candidate), active=None) == taken
