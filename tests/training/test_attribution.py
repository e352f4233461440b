"""The maps of both stages and what stands beside them are the scores, whatever the pooling."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from typer.testing import CliRunner

from engine import (
    Features,
    Manifest,
    SecondLook,
    TurnedLook,
    changed_copy,
    cover,
    cut,
    in_doubt,
    infer,
    load,
    look_again,
    look_turned,
    turned,
)
from engine.export import write_graph
from tests.bundles import tiny_bundle
from tests.engine.precisions import LABELS, PATCH_PX, PATCHES, WIDTHS, write_graphs
from tests.training.heads import CELLS, OneStage, Scaled, StageOne, two_stage
from training.__main__ import app
from training.architecture import NetworkConfig
from training.attribution import MAPPED, Attribution, Explanation
from training.baselines import METHODS, build_network
from training.heads import TwoStage
from training.network import FeaturesGraph, ReasoningGraph, TwoStageNetwork, preprocess
from training.reasoning import GraphReasoning
from training.trunks import COMPACT

POOLINGS = ["average", "max", "attention"]
Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("attribution")
    return {
        pooling: write_graphs(folder / pooling, FeaturesGraph(two_stage(pooling)), ReasoningGraph(two_stage(pooling)))
        for pooling in POOLINGS
    }


@pytest.fixture(scope="module")
def explained(bundles: dict[str, Path]) -> dict[str, Explanation]:
    return {pooling: Attribution(bundle).explain(PATCHES) for pooling, bundle in bundles.items()}


def by_loops(network: TwoStageNetwork, pooling: str) -> dict[str, Array]:
    """Equation by equation, cell by cell, in float64 from the module's own parameters."""
    network = network.double()
    labels, width = len(LABELS), network.config.feature_width
    with torch.inference_mode():
        trunk = network.trunk(preprocess(torch.from_numpy(PATCHES)).double()).numpy()
        logits = None if network.pooling.label_map is None else network.pooling.label_map(torch.from_numpy(trunk))
    linear = network.pooling.linear.weight.detach().numpy().reshape(labels, width, -1)
    bias = network.pooling.linear.bias.detach().numpy().reshape(labels, width)
    classifier1 = network.classifier1.weight.detach().numpy()
    classifier2 = network.reasoning.classifier.weight.detach().numpy()
    count = len(PATCHES)
    shape = (count, labels, CELLS, CELLS)
    found = {"map1": np.zeros(shape), "map2": np.zeros(shape)}
    found |= {"constant1": np.zeros((count, labels)), "constant2": np.zeros((count, labels))}
    cells = [(y, x) for y in range(CELLS) for x in range(CELLS)]
    for n in range(count):
        share = np.full((labels, len(trunk[n]), CELLS, CELLS), 1 / len(cells))
        if pooling == "max":
            share[:] = 0
            for d, channel in enumerate(trunk[n]):
                share[:, d][:, *max(cells, key=lambda cell: channel[cell])] = 1
        if logits is not None and network.pooling.sharpness is not None:
            for j in range(labels):
                warm = np.exp(logits[n, j].numpy() * network.pooling.sharpness[j].item())
                share[j] = warm / warm.sum()  # of every channel
        feature = bias.copy()
        for j in range(labels):
            for y, x in cells:
                feature[j] += linear[j] @ (share[j, :, y, x] * trunk[n, :, y, x])
        for i in range(labels):
            unit, norm = classifier1[i] / np.linalg.norm(classifier1[i]), np.linalg.norm(feature[i])
            found["constant1"][n, i] = unit @ bias[i] / norm
            for y, x in cells:
                found["map1"][n, i, y, x] = unit @ linear[i] @ (share[i, :, y, x] * trunk[n, :, y, x]) / norm
            for j in range(labels):
                columns = classifier2[i, j * width : (j + 1) * width]
                if network.reasoning.unit_features:
                    columns = columns / np.linalg.norm(feature[j])
                found["constant2"][n, i] += columns @ bias[j]
                for y, x in cells:
                    found["map2"][n, i, y, x] += columns @ linear[j] @ (share[j, :, y, x] * trunk[n, :, y, x])
    return found


@pytest.mark.parametrize("pooling", POOLINGS)
def test_maps_and_constants_are_those_of_the_equations(pooling: str, explained: dict[str, Explanation]) -> None:
    found, expected = explained[pooling], by_loops(two_stage(pooling), pooling)
    for name, part in (
        ("map1", found.stage1.map),
        ("constant1", found.stage1.constant),
        ("map2", found.stage2.map),
        ("constant2", found.stage2.constant),
    ):
        np.testing.assert_allclose(part, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_map_and_what_does_not_depend_on_the_trunk_give_the_score(
    pooling: str, explained: dict[str, Explanation]
) -> None:
    """The module's own scores, and the graph's part from the module's own relations."""
    found, network = explained[pooling], two_stage(pooling)
    with torch.inference_mode():
        output = network(torch.from_numpy(PATCHES))
        assert output.score_NL is not None
        own = output.feature_NLF.flatten(1) @ network.reasoning.classifier.weight[:, : output.feature_NLF[0].numel()].T
        graph = (output.score_NL - own).numpy()
    np.testing.assert_allclose(found.stage2.graph, graph, atol=1e-5)
    assert np.abs(graph).max() > 1e-3  # it has something to say here
    for stage, score in ((found.stage1, output.cosine_NL), (found.stage2, output.score_NL)):
        np.testing.assert_allclose(stage.score, score.numpy(), atol=1e-5)
        whole = stage.map.sum(axis=(2, 3)) + stage.constant + stage.graph
        np.testing.assert_allclose(whole, score.numpy(), atol=1e-5)
    assert not found.stage1.graph.any()
    np.testing.assert_allclose(found.probability, torch.sigmoid(output.score_NL).numpy(), atol=1e-5)


@pytest.fixture(scope="module")
def unit(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose stage 2 takes label features of unit length; the other graph is the same, and takes the longer."""
    bundle = shutil.copytree(bundles["attention"], tmp_path_factory.mktemp("unit") / "bundle")
    manifest = Manifest.read(bundle)
    k, labels = torch.export.Dim("k", min=1), len(LABELS)
    write_graph(
        bundle / "reasoning.onnx",
        ReasoningGraph(unit_network()),
        (torch.zeros(2, labels, WIDTHS["feature_width"]), torch.zeros(2, labels)),
        names=(["label_features", "stage1"], ["probability"]),
        dynamic={"label_features": {0: k}, "stage1": {0: k}},
    )
    manifest.sign(bundle)
    return bundle


def unit_network() -> TwoStageNetwork:
    network = two_stage("attention")
    config = replace(network.config, reasoned_features="unit")
    network.reasoning = GraphReasoning(len(LABELS), config)
    return network.eval()


def test_unit_features_are_taken_apart_by_their_own_lengths(unit: Path) -> None:
    found, network = Attribution(unit).explain(PATCHES), unit_network()
    with torch.inference_mode():
        score = network(torch.from_numpy(PATCHES)).score_NL
    assert score is not None
    np.testing.assert_allclose(found.stage2.score, score.numpy(), atol=1e-5)
    whole = found.stage2.map.sum(axis=(2, 3)) + found.stage2.constant + found.stage2.graph
    np.testing.assert_allclose(whole, score.numpy(), atol=1e-5)
    expected = by_loops(network, "attention")
    np.testing.assert_allclose(found.stage1.map, expected["map1"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.stage2.map, expected["map2"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.stage2.constant, expected["constant2"], rtol=1e-4, atol=1e-6)


def test_a_turned_look_takes_unit_features_by_the_length_of_their_mean(unit: Path) -> None:
    doubtful = TurnedLook(score_min=0.0, score_max=1.0, ratio_max=0.25)
    ramps = np.tile(np.linspace(0, 255, 8).astype(np.uint8), (len(FRAME), FRAME.shape[1] // 8))  # lengths turn with it
    with changed_copy(unit, turned_look=doubtful) as bundle:
        looked = Attribution(bundle).look(ramps)
    assert looked.turned
    found = looked.explanation
    whole = found.stage2.map.sum(axis=(2, 3)) + found.stage2.constant + found.stage2.graph
    np.testing.assert_allclose(1 / (1 + np.exp(-whole)), found.probability, atol=1e-5)


def test_with_average_pooling_stage_2_is_the_activation_of_the_bundle(
    bundles: dict[str, Path], explained: dict[str, Explanation]
) -> None:
    backend = load(bundles["average"], "onnxruntime", threads=1)
    features, _ = infer(backend, PATCHES)
    backend.close()
    np.testing.assert_allclose(explained["average"].stage2.map * CELLS**2, features.activation, rtol=1e-4, atol=1e-5)


def test_a_patch_has_the_same_maps_alone(bundles: dict[str, Path], explained: dict[str, Explanation]) -> None:
    """Only the graph's part comes from the other patches."""
    alone = Attribution(bundles["attention"]).explain(PATCHES[2:3])
    for own, whole in ((alone.stage1, explained["attention"].stage1), (alone.stage2, explained["attention"].stage2)):
        np.testing.assert_array_equal(own.map[0], whole.map[2])
    assert (alone.stage2.graph != explained["attention"].stage2.graph[2:3]).any()


FRAME = np.random.default_rng(1).integers(0, 256, (2 * PATCH_PX, 3 * PATCH_PX - 8), np.uint8)


def test_a_frame_is_looked_at_again_and_turned_as_in_service(bundles: dict[str, Path]) -> None:
    """By what the service does it with; and the maps belong to the scores that come of it."""
    again, doubtful = SecondLook(score_min=0.0, ratio_max=0.5), TurnedLook(score_min=0.0, score_max=1.0, ratio_max=0.25)
    with changed_copy(bundles["average"], second_look=again, turned_look=doubtful) as bundle:
        looked = Attribution(bundle).look(FRAME)
        backend = load(bundle, "onnxruntime", threads=1)
    manifest = backend.manifest
    windows = cover(*FRAME.shape, patch_px=PATCH_PX, overlap_px=manifest.overlap_px)
    features, once = infer(backend, cut(FRAME, windows, PATCH_PX))
    between = look_again(windows, once, features.activation, manifest)
    assert looked.added == len(between) > 0
    features = Features.joined([features, infer(backend, cut(FRAME, between, PATCH_PX))[0]])
    places = in_doubt(backend.reason(features.label_features, features.stage1), manifest.turned_look)
    assert looked.windows == windows + between
    assert looked.turned == places
    assert len(places) > 1

    def see_turned(place: int) -> Features:
        (patch,) = cut(FRAME, looked.windows[place : place + 1], PATCH_PX)[:, 0]
        return infer(backend, turned(patch))[0]

    features = look_turned(features, places, see_turned)
    found = looked.explanation
    expected = backend.reason(features.label_features, features.stage1)
    backend.close()
    np.testing.assert_allclose(found.probability, expected, atol=1e-5)
    assert np.abs(found.probability[: len(windows)] - once).max() > 1e-3  # it is another one than at first sight
    np.testing.assert_allclose(found.stage1.score, features.stage1, atol=1e-5)
    np.testing.assert_allclose(found.stage2.map * CELLS**2, features.activation, rtol=1e-4, atol=1e-5)
    for stage in (found.stage1, found.stage2):
        whole = stage.map.sum(axis=(2, 3)) + stage.constant + stage.graph
        np.testing.assert_allclose(whole, stage.score, atol=1e-5)
    np.testing.assert_allclose(1 / (1 + np.exp(-found.stage2.score)), found.probability, atol=1e-5)


def test_a_frame_is_looked_at_once_where_the_bundle_asks_for_no_more(bundles: dict[str, Path]) -> None:
    attribution = Attribution(bundles["attention"])
    looked, windows = attribution.look(FRAME), cover(*FRAME.shape, patch_px=PATCH_PX)
    assert (looked.windows, looked.added, looked.turned) == (windows, 0, ())
    found = attribution.explain(cut(FRAME, windows, PATCH_PX))
    np.testing.assert_array_equal(looked.explanation.probability, found.probability)
    np.testing.assert_array_equal(looked.explanation.stage1.map, found.stage1.map)


def test_each_stage_says_in_what_its_maps_are(bundles: dict[str, Path], one_stage: Path, tmp_path: Path) -> None:
    assert Attribution(bundles["max"]).units() == {"stage 1": "cosine", "stage 2": "logit"}
    assert Attribution(one_stage).units() == {"one stage": "logit"}
    torch.manual_seed(0)
    dots = TwoStageNetwork(len(LABELS), NetworkConfig(trunk="compact", classifier="dot", **WIDTHS)).eval()  # type: ignore[arg-type]
    bundle = write_graphs(tmp_path / "bundle", FeaturesGraph(dots), ReasoningGraph(dots))
    assert Attribution(bundle).units() == {"stage 1": "dot product", "stage 2": "logit"}


@pytest.mark.parametrize(
    "method",
    [pytest.param(one, marks=[pytest.mark.slow] * (one == "tdrg")) for one in sorted(METHODS.keys() - set(MAPPED))],
)
def test_a_method_without_such_a_map_is_refused_in_a_sentence(method: str, tmp_path: Path) -> None:
    """By both commands; it names all methods that have one and all that do not."""
    torch.manual_seed(0)
    config = NetworkConfig(method=method, trunk="compact", **WIDTHS)  # type: ignore[arg-type]
    network = build_network(len(LABELS), config).eval()
    bundle = write_graphs(tmp_path / "bundle", FeaturesGraph(network), ReasoningGraph(network))
    (tmp_path / "cut").mkdir()
    commands = (["explain", str(bundle / "golden.npz")], ["localise", "--data", str(tmp_path / "cut")])
    for command in commands:
        refused = CliRunner().invoke(app, [*command, "--bundle", str(bundle)])
        told = str(refused.exception)
        assert told.startswith(f"{bundle}: its scores ")
        assert told.endswith(
            "what each cell of an image adds to a score is known of the methods two_stage, feature_clustering, plain, "
            "kssnet, and not of tdrg and sewerml, whose scores are no sum over cells"
        )


def test_stage_1_may_decide_alone(tmp_path: Path) -> None:
    """By the dot product, as in the paper's ablation; the cosine is tested above."""
    bundle = write_graphs(tmp_path / "bundle", StageOne(two_stage("attention")), Scaled())
    attribution = Attribution(bundle)
    assert attribution.one_stage
    found = attribution.explain(PATCHES)
    np.testing.assert_allclose(found.stage2.map, 7 * found.stage1.map, rtol=1e-6)
    whole = found.stage2.map.sum(axis=(2, 3)) + found.stage2.constant
    np.testing.assert_allclose(1 / (1 + np.exp(-whole)), found.probability, atol=1e-5)
    assert np.abs(found.stage1.score).max() > 1
    manifest, reasoning = Manifest.read(bundle), onnx.load(bundle / "reasoning.onnx")
    factor, sigmoid = reasoning.graph.node
    sigmoid.input[0] = "stage1"  # as where the scale is 1
    reasoning.graph.node.remove(factor)
    onnx.save(reasoning, bundle / "reasoning.onnx")
    manifest.sign(bundle)
    plain = Attribution(bundle).explain(PATCHES)
    np.testing.assert_array_equal(plain.stage2.map, plain.stage1.map)
    np.testing.assert_array_equal(plain.stage2.score, plain.stage1.score)


def test_one_stage_has_one_map(one_stage: Path) -> None:
    attribution = Attribution(one_stage)
    assert attribution.one_stage
    found = attribution.explain(PATCHES)
    np.testing.assert_array_equal(found.stage1.map, found.stage2.map)
    bias = OneStage().classifier.bias.detach().numpy()
    np.testing.assert_allclose(found.stage2.constant, np.tile(bias, (len(PATCHES), 1)), atol=1e-5)


@pytest.mark.parametrize("method", ["plain", "kssnet"])
def test_a_rival_that_pools_maxima_is_taken_apart(method: str, tmp_path: Path) -> None:
    """Each channel counts in the cell where it is largest, by the weight of the label."""
    config = NetworkConfig(method=method, trunk="compact", pooling="max")  # type: ignore[arg-type]
    torch.manual_seed(0)
    network = build_network(len(LABELS), config).eval()
    bundle = write_graphs(tmp_path / "bundle", FeaturesGraph(network), ReasoningGraph(network))
    found = Attribution(bundle).explain(PATCHES)
    whole = found.stage2.map.sum(axis=(2, 3)) + found.stage2.constant
    np.testing.assert_allclose(1 / (1 + np.exp(-whole)), found.probability, atol=1e-5)
    constant = found.stage2.constant
    np.testing.assert_allclose(constant, np.tile(constant[:1], (len(PATCHES), 1)), atol=1e-4)  # the bias alone
    assert ((found.stage2.map != 0).sum(axis=(2, 3)) <= COMPACT[-1]).all()


TEMPERED = [
    *(("feature_clustering", pooling) for pooling in POOLINGS),
    *((method, pooling) for method in ("plain", "kssnet") for pooling in ("average", "max")),
]


def test_every_method_that_is_said_to_have_a_map_is_taken_apart_here() -> None:
    assert {method for method, _ in TEMPERED} | {"two_stage"} == set(MAPPED)


@pytest.mark.parametrize(("method", "pooling"), TEMPERED)
def test_a_network_of_one_stage_is_taken_apart_as_it_is_exported(method: str, pooling: str, tmp_path: Path) -> None:
    """With a temperature for each label, by which an export divides its scores."""
    config = NetworkConfig(method=method, trunk="compact", pooling=pooling, **WIDTHS)  # type: ignore[arg-type]
    torch.manual_seed(0)
    network = build_network(len(LABELS), config).eval()
    network.temper(torch.linspace(0.5, 2.0, len(LABELS)))
    bundle = write_graphs(tmp_path / "bundle", FeaturesGraph(network), ReasoningGraph(network))
    found = Attribution(bundle).explain(PATCHES)
    whole = found.stage2.map.sum(axis=(2, 3)) + found.stage2.constant
    np.testing.assert_allclose(1 / (1 + np.exp(-whole)), found.probability, atol=1e-4)
    assert np.abs(found.stage2.map).max() > 0


def test_a_score_that_is_no_mean_of_its_map_is_refused(one_stage: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(one_stage, tmp_path / "bundle")
    manifest, model = Manifest.read(bundle), onnx.load(bundle / "features.onnx")
    (weight,) = (node.input[1] for node in model.graph.node if "activation" in node.output)
    for constant in model.graph.initializer:
        if constant.name == weight:
            constant.CopyFrom(numpy_helper.from_array(1.1 * numpy_helper.to_array(constant), weight))
    onnx.save(model, bundle / "features.onnx")
    manifest.sign(bundle)
    with pytest.raises(ValueError, match="not the mean of its maps and a constant"):
        Attribution(bundle)


def test_a_graph_of_another_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bundle: its scores cannot be taken apart \(activation is made by Max"):
        Attribution(tiny_bundle(tmp_path / "bundle"))


def test_parts_that_miss_the_score_are_an_error(bundles: dict[str, Path]) -> None:
    attribution = Attribution(bundles["average"])
    head = attribution._head
    assert isinstance(head, TwoStage)
    head.constant_LL[:] += 0.01
    with pytest.raises(ValueError, match="the parts of stage 2 miss its score"):
        attribution.explain(PATCHES)
