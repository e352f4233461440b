"""A turned look in training: module, bundle and sealed set look at the same windows; limits are chosen for it."""

import json
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from engine import (
    NO_TURNED_LOOK,
    POSITIONS,
    FakeBackend,
    Features,
    TurnedLook,
    cover,
    cut,
    fake_manifest,
    in_doubt,
    load,
    turned,
)
from tests.training.data_form import write_screens, write_toy
from training.architecture import Method, NetworkConfig
from training.baselines import build_network
from training.bundling import export_run
from training.config import Config, read_config
from training.datasets import PatchSet
from training.evaluation import bundle_probability, evaluate
from training.fit import fit
from training.folder import load_run
from training.inference import reasoned, see, served, to_probability
from training.network import Network, Output, TwoStageNetwork
from training.sealing import SEALED_FILE, seal

ALL = TurnedLook(score_min=0.0, score_max=1.0, ratio_max=0.25)  # in doubt of everything


def looked_at(network: Network, patches: PatchSet) -> tuple[Output, NDArray[np.float32]]:
    """What stage 1 gives, and the probabilities of each window looked at once."""
    fabric = Fabric(accelerator="cpu")
    seen = see(network, patches, fabric)
    return seen, to_probability(reasoned(network, seen, patches, fabric, group="screen"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Config:
    toml = write_toy(tmp_path_factory.mktemp("turned"), screens=30)
    config = read_config(toml)
    fit(config)
    return config


def test_module_and_bundle_look_at_the_same_windows(run: Config, tmp_path: Path) -> None:
    done = export_run(run.run, tmp_path / "turned", version="1", turned_look=ALL)
    assert done.manifest.turned_look == ALL
    patches = PatchSet(run.data.folders, "validation")
    seen, once = looked_at(done.network, patches)
    wanted = served(done.network, seen, patches, once, ALL)
    moved = float(np.abs(wanted - once).max())
    assert moved > 1e-5  # positions differ, to a toy that has hardly learnt
    with closing(load(tmp_path / "turned", "onnxruntime")) as backend:
        np.testing.assert_allclose(bundle_probability(backend, patches, group="screen"), once, atol=moved / 10)
        found = bundle_probability(backend, patches, group="screen", look=ALL)
        np.testing.assert_allclose(found, wanted, atol=moved / 10)
        report = evaluate(backend, run.data.folders, part="validation", group="screen")
    thresholds = [limits.threshold for limits in done.manifest.labels.values()]
    hits = (found >= np.array(thresholds, np.float32)) & (patches.labels == 1)
    assert [one.recall * one.positives for one in report.per_label.values()] == pytest.approx(hits.sum(0).tolist())


def test_what_is_looked_at_turned_no_glance_clears(run: Config) -> None:
    patches, asked = PatchSet(run.data.folders, "validation"), Counter[tuple[int, bool]]()

    class Asked(FakeBackend):
        def features(self, pixels: NDArray[np.uint8], *, glance: bool = True) -> Features:
            asked[len(pixels), glance] += 1
            return super().features(pixels)

    manifest = fake_manifest(patches.label_names, patch_px=patches.patch_px, batch_size=50)
    backend = Asked(manifest, lambda pixels: np.full((len(pixels), len(patches.label_names)), 0.5))
    bundle_probability(backend, patches, group="screen", look=replace(ALL, ratio_max=1 / 12))
    once = Counter((len(screen), True) for screen in patches.by_screen())
    assert asked == once + Counter({(POSITIONS - 1, False): len(patches.by_screen())})


def test_limits_are_chosen_for_what_it_gives(run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.bundling.served", lambda *seen: np.full_like(seen[3], 0.25))
    done = export_run(run.run, tmp_path / "bundle", version="1", turned_look=ALL)
    assert {limits.threshold for limits in done.manifest.labels.values()} == {0.125}  # between that and nil


def test_only_the_windows_in_doubt_are_seen_again(run: Config) -> None:
    patches = PatchSet(run.data.folders, "validation")
    network, *_ = load_run(run.run)
    seen, once = looked_at(network, patches)
    some = replace(ALL, ratio_max=1 / 12)  # one of the twelve windows of a screen
    wanted = served(network, seen, patches, once, some)
    assert (served(network, seen, patches, once, NO_TURNED_LOOK) == once).all()
    for screen in patches.by_screen():
        (place,) = in_doubt(once[screen], some)
        moved = np.abs(wanted[screen] - once[screen]).max(axis=1)
        assert moved.argmax() == place  # the others move by what they relate to alone


def test_a_network_that_has_not_learnt_all_positions_may_not_look_at_them(run: Config, tmp_path: Path) -> None:
    upright = read_config(
        run.run.parent / "toy.toml",
        [f"run={tmp_path / 'upright'}", "phase1.epochs=1", "phase2.epochs=1", "augmentation.quarter_turns=false"],
    )
    fit(upright)
    with pytest.raises(ValueError, match="has not learnt patches in all positions"):
        export_run(upright.run, tmp_path / "bundle", version="1", turned_look=ALL)


@pytest.mark.parametrize("method", ["two_stage", "feature_clustering", "plain"])
def test_what_was_seen_before_the_temperatures_is_what_is_seen_with_them(method: Method) -> None:
    torch.manual_seed(0)
    config = NetworkConfig(method=method, trunk="light", feature_width=8, projection_width=8, relation_width=4)
    network, temperature = build_network(2, config).eval(), torch.tensor([0.5, 4.0])
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 1, 64, 64)).astype(np.uint8))
    with torch.inference_mode():
        before = network(pixels, reason=False)
        network.temper(temperature)
        wanted, found = network(pixels, reason=False), network.seen_tempered(before, temperature)
        torch.testing.assert_close(found.feature_NLF, wanted.feature_NLF)
        torch.testing.assert_close(found.cosine_NL, wanted.cosine_NL)
        again = network.reason(found.feature_NLF, found.cosine_NL)
        torch.testing.assert_close(again, network.reason(wanted.feature_NLF, wanted.cosine_NL))


def test_a_sealed_set_tells_which_windows_were_looked_at_turned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = NetworkConfig(trunk="light", pooling="attention", feature_width=16, projection_width=16, relation_width=8)
    network = TwoStageNetwork(2, config).eval()
    manifest = replace(fake_manifest(("dot", "line"), patch_px=64), turned_look=ALL)
    source = write_screens(tmp_path / "data", screens=1)
    seal(network, manifest, source)
    ((name, sealed),) = json.loads((source / SEALED_FILE).read_text())["screens"].items()
    frame = np.asarray(cv2.imread(str(source / "screens" / name), cv2.IMREAD_GRAYSCALE), np.uint8)
    patches = cut(frame, cover(*frame.shape, patch_px=64), 64)
    with torch.inference_mode():
        output = network(torch.from_numpy(patches.copy()))
        places = in_doubt(torch.sigmoid(output.score_NL).numpy(), ALL)
        assert sealed["turned"] == list(places)
        assert len(places) == 3  # a quarter of twelve
        feature, cosine = output.feature_NLF.clone(), output.cosine_NL.clone()
        for place in places:
            views = network(torch.from_numpy(np.concatenate([patches[[place]], turned(patches[place, 0])])))
            feature[place], cosine[place] = views.feature_NLF.mean(0), views.cosine_NL.mean(0)
        wanted = torch.sigmoid(network.reason(feature, cosine))
    np.testing.assert_allclose(sealed["probability"], wanted, atol=1e-5)
