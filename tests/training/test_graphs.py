"""The two graphs of a bundle are the network, in each runtime and with each activation of the relations."""

from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch

from engine import infer, load
from tests.engine.precisions import LABELS, PATCHES, write_bundle
from tests.training.small import heard_network
from training.network import TwoStageNetwork

OPTIONS = (
    {"pooling": "attention"},
    {"pooling": "average", "relation_activation": "leaky_relu", "symmetric": True},
    {"pooling": "max", "relation_activation": "tanh", "relation_scores": "scaled", "reasoned_features": "unit"},
)
OPERATORS = {"relu": "Relu", "leaky_relu": "LeakyRelu", "tanh": "Tanh"}  # which every runtime has of its own


class Exported(NamedTuple):
    network: TwoStageNetwork
    bundle: Path


@pytest.fixture(scope="module", params=OPTIONS, ids=lambda options: options["pooling"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    network = heard_network(len(LABELS), **request.param)
    return Exported(network, write_bundle(tmp_path_factory.mktemp("graphs") / "bundle", network))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_two_graphs_are_the_network(exported: Exported, runtime: str) -> None:
    pytest.importorskip(f"engine.{runtime}")
    network, pixels = exported.network, torch.from_numpy(PATCHES)
    with torch.inference_mode():
        together = torch.sigmoid(network(pixels).score_NL).numpy()
        alone = torch.sigmoid(network(pixels, group_N=torch.arange(len(pixels))).score_NL).numpy()
    assert np.abs(together - alone).max() > 0.01  # else nothing would be told of relations
    with closing(load(exported.bundle, runtime, threads=1)) as backend:
        features, probability = infer(backend, PATCHES)
        each = np.concatenate([infer(backend, patch[None])[1] for patch in PATCHES])
    np.testing.assert_allclose(probability, together, atol=1e-4)
    np.testing.assert_allclose(each, alone, atol=1e-4)
    with torch.inference_mode():
        np.testing.assert_allclose(features.activation, network.features(pixels)[2].numpy(), atol=1e-3)


def test_relations_are_activated_by_one_operator(exported: Exported) -> None:
    kinds = [node.op_type for node in onnx.load(exported.bundle / "reasoning.onnx").graph.node]
    activation = exported.network.config.relation_activation
    assert [kind for kind in kinds if kind in OPERATORS.values()] == [OPERATORS[activation]]
