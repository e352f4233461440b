from pathlib import Path

import numpy as np
import pytest

from engine import NO_GUARD, infer, load
from training.architecture import NetworkConfig
from training.bare import untrained_bundle

SMALL = NetworkConfig(
    trunk="light", light="root", pooling="attention", feature_width=8, projection_width=8, relation_width=4
)


@pytest.mark.parametrize("labels", [5])
def test_a_bundle_of_any_number_of_labels_runs_and_finds_every_screen_clean(labels: int, tmp_path: Path) -> None:
    manifest = untrained_bundle(tmp_path / "bundle", labels=labels, patch_px=64, network=SMALL)
    assert len(manifest.labels) == labels
    backend = load(tmp_path / "bundle", "onnxruntime", threads=1)
    patches = np.random.default_rng(1).integers(0, 256, (7, 1, 64, 64), np.uint8)
    features, probability = infer(backend, patches)
    backend.close()
    assert probability.shape == (7, labels)
    assert features.activation.shape == (7, labels, 2, 2)
    assert manifest.outcome(probability.max(0).tolist(), NO_GUARD) == "pass"
