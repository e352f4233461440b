import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from engine import NO_SECOND_LOOK, LabelLimits, Manifest, SecondLook, cover, cut, fake_manifest
from tests.bundles import tiny_bundle
from tests.training.data_form import write_screens
from training import sealing
from training.architecture import NetworkConfig
from training.network import TwoStageNetwork
from training.sealing import SEALED_FILE, seal

PATCH_PX = 64
LABELS = ("dot", "line")


@pytest.fixture
def network() -> TwoStageNetwork:
    torch.manual_seed(0)
    config = NetworkConfig(trunk="light", pooling="attention", feature_width=16, projection_width=16, relation_width=8)
    return TwoStageNetwork(len(LABELS), config)


def manifest(look: SecondLook) -> Manifest:
    """In doubt of everything, so that only the maps decide where to look."""
    return replace(
        fake_manifest(LABELS, patch_px=PATCH_PX),
        labels={label: LabelLimits(threshold=1.0, review=(0.5, 1.0)) for label in LABELS},
        second_look=look,
    )


@pytest.mark.parametrize("look", [NO_SECOND_LOOK, SecondLook(score_min=0.0, ratio_max=0.5)])
def test_each_screen_is_sealed_with_what_the_module_says_of_all_its_windows(
    tmp_path: Path, network: TwoStageNetwork, look: SecondLook
) -> None:
    source = write_screens(tmp_path / "data", screens=2)
    assert seal(network, manifest(look), source) == 2
    screens = json.loads((source / SEALED_FILE).read_text())["screens"]
    added = 0
    for name, sealed in screens.items():
        frame = np.asarray(cv2.imread(str(source / "screens" / name), cv2.IMREAD_GRAYSCALE), np.uint8)
        expected = cover(*frame.shape, patch_px=PATCH_PX)
        windows = [expected[0]._replace(top=top, left=left) for top, left in sealed["windows"]]
        assert [(w.top, w.left) for w in windows[: len(expected)]] == [(w.top, w.left) for w in expected]
        with torch.inference_mode():
            score = network(torch.from_numpy(cut(frame, windows, PATCH_PX).copy())).score_NL
        np.testing.assert_allclose(sealed["probability"], torch.sigmoid(score), atol=1e-5)
        added += len(windows) - len(expected)
        assert len(windows) <= len(expected) + look.most(len(expected))
    assert (added > 0) == (look.ratio_max > 0)


@pytest.mark.parametrize("labels", [LABELS, ("dot", "scratch")])
def test_a_bundle_of_another_run_is_refused(
    tmp_path: Path, network: TwoStageNetwork, labels: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", labels=labels, patch_px=PATCH_PX)
    monkeypatch.setattr(sealing, "load_run", lambda run: (network.eval(), None, LABELS))
    with pytest.raises(ValueError, match="was not exported from"):
        sealing.module_of(tmp_path / "run", bundle)


def test_the_map_of_each_label_that_a_window_has_is_sealed(tmp_path: Path, network: TwoStageNetwork) -> None:
    source = write_screens(tmp_path / "data", screens=1)
    every = replace(manifest(NO_SECOND_LOOK), labels=dict.fromkeys(LABELS, LabelLimits(threshold=0.0, review=(0, 1))))
    seal(network, every, source)
    ((name, sealed),) = json.loads((source / SEALED_FILE).read_text())["screens"].items()
    frame = np.asarray(cv2.imread(str(source / "screens" / name), cv2.IMREAD_GRAYSCALE), np.uint8)
    patches = cut(frame, cover(*frame.shape, patch_px=PATCH_PX), PATCH_PX)
    with torch.inference_mode():
        maps = network.features(torch.from_numpy(patches.copy()))[2].numpy()
    assert [(one["window"], one["label"]) for one in sealed["maps"]] == [
        (window, label) for window in range(len(patches)) for label in LABELS
    ]
    found = np.array([one["heat"] for one in sealed["maps"]]).reshape(maps.shape)
    np.testing.assert_allclose(found, maps, rtol=1e-3, atol=1e-5)

    seal(network, manifest(NO_SECOND_LOOK), source)  # whose thresholds nothing reaches
    assert json.loads((source / SEALED_FILE).read_text())["screens"][name]["maps"] == []


def test_a_screen_that_was_cut_off_is_not_sealed(tmp_path: Path, network: TwoStageNetwork) -> None:
    """OpenCV would paint the rest grey: what was sealed would be of a frame that the service refuses."""
    source = write_screens(tmp_path / "data", screens=1)
    (screen,) = (source / "screens").iterdir()
    pixels = cv2.imread(str(screen), cv2.IMREAD_GRAYSCALE)
    assert pixels is not None
    screen.unlink()
    file = screen.with_suffix(".jpg")
    assert cv2.imwrite(str(file), pixels)
    assert seal(network, manifest(NO_SECOND_LOOK), source) == 1
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert cv2.imread(str(file)) is not None
    with pytest.raises(ValueError, match=f"{file.name} is incomplete"):
        seal(network, manifest(NO_SECOND_LOOK), source)
