"""An export is written whole and verified, or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine import Manifest, ParityError, fake_manifest, load, read_golden, self_test
from engine.export import export, module_answer
from training.architecture import NetworkConfig, Pooling
from training.network import FeaturesGraph, ReasoningGraph, TwoStageNetwork

LABELS = ("bubble", "pinhole", "scratch", "tin_ash")
PATCH_PX = 64
MANIFEST = fake_manifest(LABELS, patch_px=PATCH_PX, batch_size=3)
PATCHES = np.random.default_rng(0).integers(0, 256, (7, 1, PATCH_PX, PATCH_PX), np.uint8)


def graphs(trunk: str, pooling: Pooling) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    config = NetworkConfig(trunk=trunk, pooling=pooling, feature_width=8, projection_width=8, relation_width=4)
    network = TwoStageNetwork(len(LABELS), config).eval()
    return FeaturesGraph(network), ReasoningGraph(network)


class Restless(nn.Module):
    """A reasoning whose answer differs from what it was when it was exported."""

    def __init__(self, reasoning: nn.Module) -> None:
        super().__init__()
        self.reasoning = reasoning

    def forward(self, label_features: Tensor, stage1: Tensor) -> Tensor:
        probability: Tensor = self.reasoning(label_features, stage1)
        return probability if torch.compiler.is_exporting() else 1 - probability


class Turned(nn.Module):
    """Features whose maps are the other way round than when they were exported."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        label_features, stage1, activation = self.features(pixels)
        return label_features, stage1, activation if torch.compiler.is_exporting() else activation.flip(2, 3)


def write(
    out: Path, features: nn.Module, reasoning: nn.Module, *, finish: Callable[[Path], None] | None = None
) -> None:
    export(
        out,
        features=features,
        reasoning=reasoning,
        manifest=MANIFEST,
        golden_pixels=PATCHES[:2],
        parity_pixels=PATCHES,
        card="# card\n",
        finish=finish,
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("export") / "bundle"
    write(bundle, *graphs("light", "attention"))
    return bundle


@pytest.fixture
def before(written: Path, tmp_path: Path) -> Path:
    """A bundle that another is to take the place of."""
    return Path(shutil.copytree(written, tmp_path / "bundle"))


@pytest.mark.parametrize(("trunk", "pooling"), [("light", "attention"), ("resnet18", "average")])
def test_the_bundle_computes_what_the_modules_compute(tmp_path: Path, trunk: str, pooling: Pooling) -> None:
    features, reasoning = graphs(trunk, pooling)
    write(tmp_path / "bundle", features, reasoning)
    backend = load(tmp_path / "bundle", threads=1)
    parts = [backend.features(PATCHES[start : start + 3]) for start in range(0, 7, 3)]
    found = backend.reason(
        np.concatenate([part.label_features for part in parts]), np.concatenate([part.stage1 for part in parts])
    )
    maps, probability = module_answer(features, reasoning, PATCHES)
    np.testing.assert_allclose(found, probability, atol=1e-4)
    np.testing.assert_allclose(np.concatenate([part.activation for part in parts]), maps, atol=1e-3)
    assert parts[0].activation.shape == (3, len(LABELS), PATCH_PX // 32, PATCH_PX // 32)
    assert self_test(backend, read_golden(tmp_path / "bundle")) < 1e-4
    backend.close()


def test_the_first_node_casts_the_pixels(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    write(tmp_path / "bundle", *graphs("light", "attention"))
    graph = onnx.load(tmp_path / "bundle" / "features.onnx").graph
    takers = [node.op_type for node in graph.node if "pixels" in node.input]
    assert takers == ["Cast"]


def test_graphs_that_differ_from_the_modules_are_not_written(tmp_path: Path) -> None:
    features, reasoning = graphs("light", "attention")
    with pytest.raises(ParityError, match="differ from their source"):
        write(tmp_path / "bundle", features, Restless(reasoning))
    assert list(tmp_path.iterdir()) == []


def test_graphs_whose_maps_lie_elsewhere_are_not_written(tmp_path: Path) -> None:
    features, reasoning = graphs("light", "attention")
    with pytest.raises(ParityError, match="activation maps of the exported fp32 graphs differ from their source"):
        write(tmp_path / "bundle", Turned(features), reasoning)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_bundle_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "screens").mkdir()
    with pytest.raises(ValueError, match="is no bundle"):
        write(tmp_path / "screens", *graphs("light", "attention"))
    assert list(tmp_path.iterdir()) == [tmp_path / "screens"]


def test_a_bundle_takes_the_place_of_another_but_not_of_one_that_was_released(before: Path, tmp_path: Path) -> None:
    write(before, *graphs("light", "attention"))
    (before / "release.json").write_text("{}")
    with pytest.raises(ValueError, match="was released"):
        write(before, *graphs("light", "attention"))


def test_a_bundle_stays_when_its_successor_is_refused(before: Path) -> None:
    features, reasoning = graphs("light", "attention")
    manifest = (before / "manifest.json").read_bytes()
    with pytest.raises(ParityError):
        write(before, features, Restless(reasoning))
    assert (before / "manifest.json").read_bytes() == manifest


def test_a_bundle_stays_when_somebody_stops_its_successor_from_taking_its_place(
    before: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = (before / "manifest.json").read_bytes()
    rename, moved = Path.rename, []

    def stopped(self: Path, target: Path) -> Path:
        moved.append(target)
        if len(moved) == 2:  # the old one has left its place
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(KeyboardInterrupt):
        write(before, *graphs("light", "attention"))
    assert (before / "manifest.json").read_bytes() == manifest
    assert list(before.parent.iterdir()) == [before]


def test_a_link_is_not_made_a_folder(before: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(before)
    with pytest.raises(ValueError, match="is a link"):
        write(tmp_path / "link", *graphs("light", "attention"))


def test_what_finishes_a_bundle_sees_it_whole_and_may_refuse_it(tmp_path: Path) -> None:
    features, reasoning = graphs("light", "attention")
    seen: list[tuple[str, ...]] = []

    def refuse(draft: Path) -> None:
        seen.append(Manifest.read(draft).precisions)
        (draft / "features.fp16.onnx").write_bytes(b"half")
        raise ParityError("too different")

    with pytest.raises(ParityError, match="too different"):
        write(tmp_path / "bundle", features, reasoning, finish=refuse)
    assert seen == [("fp32",)]
    assert list(tmp_path.iterdir()) == []
