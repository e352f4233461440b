"""The graph of a glance, as written: the module's doubt, what stands for a clean window, and what may round."""

from itertools import takewhile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from engine.doubt import write_glance
from engine.graphs import open_session, rounding_layers, run_session
from engine.manifest import GLANCE_FILE
from tests.bundles import tiny_bundle
from tests.engine.precisions import LABELS, PATCH_PX, PATCHES, network
from training.architecture import NetworkConfig
from training.baselines import build_network
from training.glance import Doubt

CLEAN = {
    "label_features": np.arange(len(LABELS) * 2, dtype=np.float32).reshape(len(LABELS), 2),
    "stage1": np.arange(len(LABELS), dtype=np.float32),
    "activation": np.ones((len(LABELS), 8, 8), np.float32),
}


@pytest.fixture(scope="module")
def doubt() -> Doubt:
    torch.manual_seed(0)
    config = NetworkConfig(method="feature_clustering", trunk="glance", pooling="attention", feature_width=8)
    return Doubt(build_network(len(LABELS), config).eval())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, doubt: Doubt) -> Path:
    made = tiny_bundle(tmp_path_factory.mktemp("doubt") / "bundle")
    write_glance(made, doubt, CLEAN, side_px=PATCH_PX, part=Doubt.TRUNK)
    return made


def answers(bundle: Path, patch: NDArray[np.uint8], *names: str) -> list[NDArray[np.float32]]:
    session = open_session((bundle / GLANCE_FILE).read_bytes(), key=GLANCE_FILE, threads=1)
    return run_session(session, names, {"pixels": patch[None]})


def test_it_doubts_as_the_module_does(bundle: Path, doubt: Doubt) -> None:
    with torch.inference_mode():
        expected = doubt(torch.from_numpy(PATCHES)).numpy()
    found = [answers(bundle, patch, "doubt")[0] for patch in PATCHES]
    assert all(one.shape == (1,) for one in found)
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-5)
    assert ((expected > 0) & (expected < 1)).all()


def test_what_stands_for_a_clean_window_is_the_same_for_every_patch(bundle: Path) -> None:
    for patch in PATCHES[:2]:
        for name, value in zip(CLEAN, answers(bundle, patch, *CLEAN), strict=True):
            np.testing.assert_array_equal(value, CLEAN[name][None])


def test_the_trunk_alone_may_round(bundle: Path) -> None:
    session = open_session((bundle / GLANCE_FILE).read_bytes(), key=GLANCE_FILE, threads=1, as_written=True)
    convolutions = {n.name for n in onnx.load(bundle / GLANCE_FILE).graph.node if n.op_type == "Conv"}
    rounding = rounding_layers(session) & convolutions
    assert len(rounding) == 11  # its stem, and two for each of five blocks
    assert len(convolutions - rounding) == 1  # the labels' maps


def test_all_before_the_trunk_may_round_and_what_it_makes_of_grey_levels_is_exact(bundle: Path) -> None:
    session = open_session((bundle / GLANCE_FILE).read_bytes(), key=GLANCE_FILE, threads=1, as_written=True)
    model = onnx.load(bundle / GLANCE_FILE)
    before = list(takewhile(lambda node: node.op_type != "Conv", model.graph.node))
    assert [node.op_type for node in before] == ["Cast", "Sub", "Div"]
    assert {node.name for node in before} < rounding_layers(session)
    constants = {value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer}
    middle, half = (constants[node.input[1]] for node in before[1:])
    levels = ((np.arange(256) - middle) / half).astype(np.float32)
    assert not (levels.view(np.uint32) & 0xFFFF).any()  # the half that bfloat16 does not have


def test_a_map_that_the_features_graph_does_not_have_is_left_out(tmp_path: Path, doubt: Doubt) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", activation=False)
    write_glance(bundle, doubt, CLEAN, side_px=PATCH_PX, part=Doubt.TRUNK)
    outputs = [output.name for output in onnx.load(bundle / GLANCE_FILE).graph.output]
    assert outputs == ["doubt", "label_features", "stage1"]


def test_a_part_without_convolutions_is_refused(tmp_path: Path, doubt: Doubt) -> None:
    with pytest.raises(ValueError, match="has 0 convolutions"):
        write_glance(tiny_bundle(tmp_path / "bundle"), doubt, CLEAN, side_px=PATCH_PX, part="network.head")


def test_it_is_a_network_of_its_own(doubt: Doubt) -> None:
    count = sum(value.numel() for value in doubt.parameters())
    assert count < sum(value.numel() for value in network().parameters()) / 2
