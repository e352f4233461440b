import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from engine import FakeBackend, Features, fake_manifest
from engine.__main__ import app
from engine.compare import compare
from tests.bundles import grey_of

LABELS = ("bubble", "scratch")
Screens = Mapping[str, list[NDArray[np.uint8]]]


def cut_folder(folder: Path, screens: Screens) -> Path:
    """Patches (P, P) by screen, as `training cut` leaves them."""
    (folder / "images").mkdir(parents=True)
    with (folder / "windows.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["img_names", "screen", "row", "column", "left", "top"])
        for screen, patches in screens.items():
            for index, patch in enumerate(patches):
                name = f"{screen}_{index}.png"
                cv2.imwrite(str(folder / "images" / name), patch)
                rows.writerow([name, screen, 0, index, 0, 0])
    return folder


def flat(*greys: int) -> list[NDArray[np.uint8]]:
    return [np.full((8, 8), grey, np.uint8) for grey in greys]


def backend(scores: Callable[[NDArray[np.uint8]], NDArray[np.floating]], **options: int) -> FakeBackend:
    return FakeBackend(fake_manifest(LABELS, patch_px=8, **options), scores)


def brightness(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The first label is the grey level, the second always clean."""
    grey = pixels.mean((1, 2, 3)) / 255
    return np.stack([grey, np.zeros_like(grey)], axis=1)


def dimmer(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.maximum(brightness(pixels) - [0.1, 0.0], 0.0)


def test_differences_flips_and_verdicts_are_counted(tmp_path: Path) -> None:
    # present from 0.5, review from 0.3, fail from 0.7
    screens = {"a": flat(0, 194), "b": flat(89, 140), "c": flat(26), "d": flat(255)}
    found = compare(backend(brightness), backend(dimmer), cut_folder(tmp_path / "cut", screens))
    assert (found.patches, found.screens) == (6, 4)
    bubble, scratch = found.labels["bubble"], found.labels["scratch"]
    assert bubble.largest == pytest.approx(0.1, abs=1e-6)
    assert bubble.mean == pytest.approx(5 * 0.1 / 6, abs=1e-3)
    assert bubble.flipped == 1  # 140 of 255
    assert (scratch.largest, scratch.mean, scratch.flipped) == (0, 0, 0)
    assert found.verdicts == {"fail > review": 1}
    assert found.as_dict()["flipped_screens"] == 1
    assert min(found.patches_per_s) > 0


def test_a_backend_agrees_with_itself_whatever_its_batch(tmp_path: Path) -> None:
    data = cut_folder(tmp_path / "cut", {"a": flat(0, 100, 200, 250, 30), "b": flat(70)})
    found = compare(backend(brightness), backend(brightness, batch_size=2), data)
    assert found.verdicts == {}
    assert all((moved.largest, moved.flipped) == (0, 0) for moved in found.labels.values())


def test_each_bundle_is_judged_by_its_own_thresholds(tmp_path: Path) -> None:
    data = cut_folder(tmp_path / "cut", {"a": flat(140)})
    strict = FakeBackend(fake_manifest(LABELS, patch_px=8), brightness, guard={"bubble": 0.4})
    assert compare(backend(brightness), strict, data).verdicts == {}
    assert compare(backend(lambda p: brightness(p) / 2), strict, data).verdicts == {"pass > review": 1}


def test_maps_that_show_a_label_in_another_place_are_counted(tmp_path: Path) -> None:
    class Seeing(FakeBackend):
        """Sees a spot where the patch is white, moved by some cells of eight; as bright as the patch is."""

        step = 0

        def features(self, pixels: NDArray[np.uint8], *, glance: bool = True) -> Features:
            heat = np.roll(pixels.astype(np.float32), self.step, axis=2)
            return replace(super().features(pixels), activation=np.repeat(heat, len(LABELS), axis=1))

    spot, dark = flat(200)[0], flat(0)[0]
    spot[1, 1] = 255
    data = cut_folder(tmp_path / "cut", {"a": [spot, spot, dark]})
    still, moved = (Seeing(fake_manifest(LABELS, patch_px=8), brightness) for _ in range(2))
    for step, elsewhere in ((0, 0), (1, 0), (3, 2)):  # a cell is nothing
        moved.step = step
        found = compare(still, moved, data).labels["bubble"]
        assert (found.present, found.elsewhere) == (2, elsewhere)
    without_a_map = compare(still, backend(brightness), data).labels["bubble"]
    assert (without_a_map.present, without_a_map.elsewhere) == (2, 0)


def test_a_score_that_is_no_number_is_no_pass(tmp_path: Path) -> None:
    data = cut_folder(tmp_path / "cut", {"a": flat(0, 1)})
    broken = backend(lambda pixels: np.where(brightness(pixels) == 0, np.nan, 0.0))
    assert compare(backend(brightness), broken, data).verdicts == {"pass > review": 1}


def test_patches_of_a_screen_are_reasoned_together_and_the_limit_is_of_screens(tmp_path: Path) -> None:
    seen: list[int] = []

    class Watched(FakeBackend):
        def reason(self, label_features: NDArray[np.float32], stage1: NDArray[np.float32]) -> NDArray[np.float32]:
            seen.append(len(stage1))
            return super().reason(label_features, stage1)

    data = cut_folder(tmp_path / "cut", {"b": flat(1, 2, 3), "a": flat(4, 5), "c": flat(6)})
    watched = Watched(fake_manifest(LABELS, patch_px=8), brightness)
    assert compare(watched, backend(brightness), data, limit=2).patches == 5
    assert seen == [2, 2, 3]  # the first screen once more, before the clock runs


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    data = cut_folder(tmp_path / "cut", {"a": [np.zeros((8, 9), np.uint8)]})
    with pytest.raises(ValueError, match=r"a_0.png is \(8, 9\) uint8, expected a grey patch of 8 px"):
        compare(backend(brightness), backend(brightness), data)
    (data / "images" / "a_0.png").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"a_0.png cannot be read"):
        compare(backend(brightness), backend(brightness), data)
    with pytest.raises(ValueError, match="has no patches"):
        compare(backend(brightness), backend(brightness), cut_folder(tmp_path / "empty", {}))
    other = FakeBackend(fake_manifest(["oil"], patch_px=8), brightness)
    with pytest.raises(ValueError, match="A knows bubble, scratch at 8 px, B oil at 8 px"):
        compare(backend(brightness), other, data)


def test_a_table_that_is_cut_off_is_refused_by_its_line(tmp_path: Path) -> None:
    data = cut_folder(tmp_path / "cut", {"a": [np.zeros((8, 8), np.uint8)]})
    whole = (data / "windows.csv").read_text()
    for row, message in (("a_9.png\n", "line 3: needs img_names"), ('"' + "x" * 2**18 + '"\n', "field larger")):
        (data / "windows.csv").write_text(whole + row)
        with pytest.raises(ValueError, match=message):
            compare(backend(brightness), backend(brightness), data)


def test_the_command_compares_runtimes(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch = np.full((64, 64), 128, np.uint8)
    patch[8:16, 8:16] = grey_of(0)
    data = cut_folder(tmp_path / "cut", {"a": [patch], "b": [np.full((64, 64), 128, np.uint8)]})
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["compare", str(bundle), str(bundle), "--data", str(data), "--runtime-a", "onnxruntime"]
    answer = CliRunner().invoke(app, [*arguments, "--runtime-b", "fake", "--json"])
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    assert found["labels"]["bubble"]["flipped"] == 1
    assert found["verdicts"] == {"fail > pass": 1}
    assert found["b"] == "fake-tiny 1.0.0 by fake in fp32"
    answer = CliRunner().invoke(app, [*arguments, "--runtime-b", "onnxruntime"])
    assert "flipped screens: 0 of 2" in answer.stdout
    answer = CliRunner().invoke(app, [*arguments, "--precision-b", "int8"])
    assert answer.exit_code == 1
    assert "was not exported as int8" in answer.output
