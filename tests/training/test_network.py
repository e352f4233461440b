import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional

from training.architecture import NetworkConfig
from training.network import (
    CosineClassifier,
    FeaturesGraph,
    GraphReasoning,
    ReasoningGraph,
    TwoStageNetwork,
    parameter_table,
)
from training.trunks import LightTrunk, build_trunk, stem

SMALL = {"trunk": "light", "feature_width": 8, "projection_width": 8, "relation_width": 4}


def small_network(**changes: object) -> TwoStageNetwork:
    torch.manual_seed(0)
    return TwoStageNetwork(3, NetworkConfig(**{**SMALL, **changes})).eval()  # type: ignore[arg-type]


def patches(count: int, *, side: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 1, side, side), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("pooling", ["average", "max", "attention"])
def test_shapes(pooling: str) -> None:
    output = small_network(pooling=pooling)(patches(2))
    assert output.feature_NLF.shape == (2, 3, 8)
    assert output.cosine_NL.shape == output.logit_NL.shape == (2, 3)
    assert output.score_NL is not None
    assert output.score_NL.shape == (2, 3)
    assert output.cosine_NL.abs().max() <= 1 + 1e-6


def test_the_papers_parameters_add_up() -> None:
    """ResNet-50 with one grey channel, C = 4, d = 512: the sum of the paper as read here, with Proj 512 and r 256."""
    network = TwoStageNetwork(4, NetworkConfig())
    table = dict(parameter_table(network))
    colour_stem = 3 * 64 * 7 * 7
    assert table["trunk"] == 23_508_032 - colour_stem + colour_stem // 3
    assert table["category pooling"] == 2048 * 2048 + 2048
    assert table["classifier 1"] == 2048 + 1  # w and the scale
    nodes_edges_classifier2 = 2048 + 16 + 4 * (2048 + 256)
    assert table["graph reasoning"] == nodes_edges_classifier2 + 2048 * 512 + 512 + 512 * 256


def test_average_pooling_is_a_mean_and_one_linear_layer() -> None:
    network = small_network()
    trunk = network.trunk(torch.randn(2, 1, 64, 64))
    feature, label_map = network.pooling(trunk)
    expected = network.pooling.linear(trunk.mean(dim=(2, 3))).reshape(2, 3, 8)
    torch.testing.assert_close(feature, expected)
    assert label_map is None


def test_max_pooling_is_the_largest_value_of_each_channel_and_one_linear_layer() -> None:
    network = small_network(pooling="max")
    trunk = network.trunk(torch.randn(2, 1, 64, 64))
    feature, label_map = network.pooling(trunk)
    expected = network.pooling.linear(trunk.flatten(2).max(dim=2).values).reshape(2, 3, 8)
    torch.testing.assert_close(feature, expected)
    assert label_map is None


def test_flat_attention_is_average_pooling() -> None:
    network = small_network(pooling="attention")
    assert network.pooling.label_map is not None
    torch.nn.init.zeros_(network.pooling.label_map.weight)
    trunk = network.trunk(torch.randn(2, 1, 64, 64))
    expected = network.pooling.linear(trunk.mean(dim=(2, 3))).reshape(2, 3, 8)
    torch.testing.assert_close(network.pooling(trunk)[0], expected, atol=1e-5, rtol=1e-4)


def test_attention_reads_where_its_map_is_warm() -> None:
    network = small_network(pooling="attention")
    label_map = network.pooling.label_map
    assert label_map is not None
    trunk = torch.zeros(1, LightTrunk.channels, 4, 4)
    trunk[0, 0, 2, 3] = 50.0
    torch.nn.init.zeros_(label_map.weight)
    with torch.no_grad():
        label_map.weight[:, 0] = 1.0
    expected = network.pooling.linear(trunk[:, :, 2, 3]).reshape(1, 3, 8)
    torch.testing.assert_close(network.pooling(trunk)[0], expected)


def test_the_activation_explains_the_score() -> None:
    """With average pooling, the mean of the map and the constants are the X part of classifier 2's score."""
    network = small_network()
    trunk = network.trunk(torch.randn(2, 1, 64, 64))
    feature, _ = network.pooling(trunk)
    x_columns = network.reasoning.classifier.weight[:, : 3 * 8]
    constant = x_columns @ network.pooling.linear.bias
    from_map = network.activation(trunk).mean(dim=(2, 3)) + constant
    torch.testing.assert_close(from_map, feature.flatten(1) @ x_columns.T, atol=1e-4, rtol=1e-4)


def test_a_symmetric_graph_stays_symmetric() -> None:
    """Learnt edges are averaged with their transpose whenever they are used, not only at the start."""
    network = small_network(symmetric=True)
    output = network(patches(2))
    with torch.no_grad():
        network.reasoning.edges.copy_(torch.tensor([[0.5, 0.4, 0.1], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]]))
    directed = network(patches(2)).score_NL
    with torch.no_grad():
        network.reasoning.edges.copy_(network.reasoning.edges.T.clone())
    assert directed is not None
    assert output.score_NL is not None
    assert not torch.equal(directed, output.score_NL)
    torch.testing.assert_close(network(patches(2)).score_NL, directed)


def reasoning_by_the_equations(stage: GraphReasoning, feature: Tensor, score: Tensor) -> Tensor:
    """Equations 3 to 7, written out with loops over patches and labels; S of Eq. 6 is `score`."""
    count, labels = score.shape
    degree = [sum(stage.edges[i, k] for k in range(labels)) for i in range(labels)]
    nodes = [
        sum(degree[i] ** -0.5 * stage.edges[i, k] * degree[k] ** -0.5 * stage.nodes[k] for k in range(labels))
        for i in range(labels)
    ]
    z = [stage.projection.weight @ feature[k].flatten() + stage.projection.bias for k in range(count)]
    rows = []
    for i in range(count):
        weights = [torch.exp(z[i] @ z[k]) for k in range(count)]
        below = [sum(torch.exp(score[k, m]) for m in range(labels)) for k in range(count)]
        to_label = [
            sum(weights[k] / sum(weights) * torch.exp(score[k, j]) / below[k] for k in range(count))
            for j in range(labels)
        ]
        mixed = sum(to_label[j] * nodes[j] for j in range(labels))
        enhanced = (stage.relation.weight @ mixed).clamp_min(0)
        rows.append(stage.classifier.weight @ torch.cat([feature[i].flatten(), enhanced]))
    return torch.stack(rows)


@pytest.mark.parametrize("scores", ["bare", "scaled"])
def test_reasoning_follows_the_equations(scores: str) -> None:
    """Its scores, and the gradient of each of its weights, in double precision."""
    network = small_network(relation_scores=scores).double()
    stage = network.reasoning
    counts = torch.tensor([[4.0, 2, 1], [2, 5, 1], [1, 1, 3]])
    stage.start_from(network.classifier1, counts, network.config)
    feature = (torch.randn(4, 3, 8) / 4).double().requires_grad_()
    cosine = (torch.rand(4, 3) * 2 - 1).double().requires_grad_()
    inputs = [feature, cosine, *stage.parameters()]
    by_equations = reasoning_by_the_equations(stage, feature, cosine if scores == "bare" else cosine * 10)
    found_and_expected = [stage(feature, cosine, cosine * 10), by_equations]
    torch.testing.assert_close(*found_and_expected, atol=1e-10, rtol=1e-10)
    weight = torch.randn(4, 3).double()
    gradients = (torch.autograd.grad((weight * s).sum(), inputs) for s in found_and_expected)
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-9)
    assert torch.autograd.gradcheck(lambda x, s: stage(x, s, s * 10), (feature, cosine), fast_mode=True)


@pytest.mark.parametrize("pooling", ["average", "max", "attention"])
def test_stage_1_follows_the_equations(pooling: str) -> None:
    """Category pooling and the cosine, position by position and label by label, in double precision."""
    network = small_network(pooling=pooling).double()
    trunk = torch.randn(2, LightTrunk.channels, 2, 2).double().requires_grad_()
    feature, label_map = network.pooling(trunk)
    cosine = network.classifier1(feature)
    weight = network.pooling.linear.weight.reshape(3, 8, -1)
    bias = network.pooling.linear.bias.reshape(3, 8)
    for i in range(2):
        positions = [trunk[i, :, r, c] for r in range(2) for c in range(2)]
        for j in range(3):
            share = [torch.ones(()).double() / 4] * 4
            if pooling == "max":
                largest = torch.stack(positions).argmax(dim=0)
                share = [(largest == p).double() for p in range(4)]  # channel by channel
            if network.pooling.label_map is not None:
                convolution = network.pooling.label_map
                assert convolution.bias is not None
                logits = [convolution.weight[j, :, 0, 0] @ p + convolution.bias[j] for p in positions]
                torch.testing.assert_close(torch.stack(logits), label_map[i, j].flatten())
                share = [torch.exp(logit) / sum(torch.exp(other) for other in logits) for logit in logits]
            read = sum(weight[j] @ (s * p) for s, p in zip(share, positions, strict=True)) + bias[j]
            torch.testing.assert_close(feature[i, j], read, atol=1e-10, rtol=1e-9)
            w = network.classifier1.weight[j]
            torch.testing.assert_close(cosine[i, j], read @ w / (read.norm() * w.norm()), atol=1e-10, rtol=1e-9)
    assert torch.autograd.gradcheck(lambda x: network.classifier1(network.pooling(x)[0]), trunk, fast_mode=True)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("by_screen", [False, True])
def test_permuting_the_batch_permutes_the_outputs(training: bool, by_screen: bool) -> None:
    network = small_network(pooling="attention").train(training)
    group = torch.tensor([0, 0, 1, 1, 1, 2]) if by_screen else None
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    output = network(patches(6), group_N=group)
    permuted = network(patches(6)[order], group_N=None if group is None else group[order])
    for value, other in zip(output[:5], permuted[:5], strict=True):  # there are no auxiliary logits
        torch.testing.assert_close(other, value[order], atol=1e-5, rtol=1e-4)


def test_edges_start_from_normalised_counts_and_an_empty_row_is_the_identity() -> None:
    network = small_network()
    counts = torch.tensor([[2.0, 2, 0], [2, 6, 0], [0, 0, 0]])
    network.reasoning.start_from(network.classifier1, counts, network.config)
    assert network.reasoning.edges.tolist() == [[0.5, 0.5, 0], [0.25, 0.75, 0], [0, 0, 1]]
    torch.testing.assert_close(network.reasoning.nodes.data, network.classifier1.weight.data)


@pytest.mark.parametrize("normalised", [False, True])
def test_nodes_start_from_classifier_1(normalised: bool) -> None:
    network = small_network(normalise_nodes=normalised)
    network.reasoning.start_from(network.classifier1, torch.eye(3), network.config)
    weight = network.classifier1.weight
    expected = torch.stack([w / w.square().sum().sqrt() for w in weight]) if normalised else weight
    torch.testing.assert_close(network.reasoning.nodes, expected)


def test_a_bare_cosine_is_the_logit_and_stays_it() -> None:
    network = small_network(cosine_scale=1, learn_scale=False).train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        output = network(patches(4))
        torch.testing.assert_close(output.logit_NL, output.cosine_NL)
        loss = functional.binary_cross_entropy_with_logits(output.logit_NL, torch.ones(4, 3))
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def test_negative_edges_and_empty_rows_stay_finite() -> None:
    network = small_network()
    with torch.no_grad():
        network.reasoning.edges.fill_(-1.0)
    output = network(patches(2))
    assert output.score_NL is not None
    assert torch.isfinite(output.score_NL).all()


def test_patches_of_other_screens_do_not_relate() -> None:
    network = small_network()
    first, second = patches(5)[:3], patches(5)[3:]
    together = network(torch.cat([first, second]), group_N=torch.tensor([0, 0, 0, 1, 1])).score_NL
    alone = torch.cat([network(first).score_NL, network(second).score_NL])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_a_share_of_a_batch_relates_to_all_of_it() -> None:
    """What one of two devices computes of a gathered batch is its rows of the whole."""
    network = small_network()
    stage = network.reasoning
    feature, cosine = torch.randn(4, 3, 8), torch.rand(4, 3)
    whole = stage(feature, cosine, cosine)
    share = stage(feature[:2], cosine[:2], cosine[:2], None, (feature, cosine, cosine))
    torch.testing.assert_close(share, whole[:2])


def test_the_cosine_ignores_length_and_its_scale_is_positive() -> None:
    classifier = CosineClassifier(labels=2, feature_width=4, scale=10, learn_scale=True)
    feature = torch.randn(3, 2, 4)
    torch.testing.assert_close(classifier(feature), classifier(feature * 7))
    assert classifier.logits(torch.ones(1, 2)).flatten().tolist() == pytest.approx([10, 10])


def test_the_stem_equals_the_colour_stem_on_grey() -> None:
    colour = torchvision.models.resnet18(weights=None).conv1
    grey = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(stem(colour, 1)(grey), colour(grey.expand(1, 3, 32, 32)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "stride"), [("light", 32), ("compact", 16), ("resnet18", 32)])
def test_trunks_have_their_stride(name: str, stride: int) -> None:
    trunk, channels = build_trunk(name)
    assert trunk(torch.zeros(1, 1, 96, 64)).shape == (1, channels, 96 // stride, 64 // stride)


def test_an_unknown_trunk_is_named() -> None:
    with pytest.raises(ValueError, match="resnet51"):
        build_trunk("resnet51")


@pytest.mark.parametrize("pooling", ["average", "max", "attention"])
def test_the_two_graphs_are_the_network(pooling: str) -> None:
    network = small_network(pooling=pooling)
    label_features, stage1, activation = FeaturesGraph(network)(patches(3))
    probability = ReasoningGraph(network)(label_features, stage1)
    score = network(patches(3)).score_NL
    assert score is not None
    torch.testing.assert_close(probability, torch.sigmoid(score), atol=1e-6, rtol=1e-5)
    assert activation.shape == (3, 3, 2, 2)


@pytest.mark.parametrize("field", ["feature_width", "projection_width", "relation_width", "cosine_scale"])
def test_a_width_that_is_not_positive_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        NetworkConfig(**{field: 0})  # type: ignore[arg-type]


def test_a_patch_that_relates_to_itself_is_a_screen_of_its_own() -> None:
    """Relating to itself alone is the paper's network with every patch in a group of one."""
    network = small_network(relate_to="itself")
    full = small_network()
    full.load_state_dict(network.state_dict(), strict=False)
    pixels = patches(3)
    torch.testing.assert_close(network(pixels).score_NL, full(pixels, group_N=torch.arange(3)).score_NL)
    assert not hasattr(network.reasoning, "projection")  # which would only weigh on it


def test_a_bank_is_read_by_similarity_and_by_no_other_patch() -> None:
    network = small_network(relate_to="bank", bank=5)
    stage = network.reasoning
    torch.nn.init.normal_(stage.bank_score)
    pixels = patches(3)
    output = network(pixels)
    torch.testing.assert_close(output.score_NL[:1], network(pixels[:1]).score_NL, atol=1e-5, rtol=1e-4)
    projected = stage.projection(output.feature_NLF.flatten(1))
    reference = torch.zeros(3, 3)
    for n in range(3):
        similarity = torch.stack([projected[n] @ key for key in stage.bank_key])
        for share, score in zip(torch.softmax(similarity, dim=0), stage.bank_score, strict=True):
            reference[n] += share * torch.softmax(score, dim=0)
    everything = (output.feature_NLF, output.cosine_NL, output.logit_NL)
    torch.testing.assert_close(stage._to_labels(output.feature_NLF, everything, None), reference)


def test_the_dot_product_is_linear() -> None:
    classifier = CosineClassifier(labels=2, feature_width=3, scale=10, learn_scale=True, normalised=False)
    feature = torch.randn(4, 2, 3)
    expected = torch.einsum("nlf,lf->nl", feature, classifier.weight)
    torch.testing.assert_close(classifier(feature), expected)
    torch.testing.assert_close(classifier.logits(expected), expected)
    assert not classifier.log_scale.requires_grad


def test_cosine_relations_are_the_ones_written_out() -> None:
    network = small_network(relation_similarity="cosine")
    output = network(patches(4))
    z = network.reasoning.projection(output.feature_NLF.flatten(1))
    reference = torch.zeros(4, 3)
    for i in range(4):
        similarity = torch.stack([10 * (z[i] @ z[k]) / (z[i].norm() * z[k].norm()) for k in range(4)])
        for share, cosine in zip(torch.softmax(similarity, dim=0), output.cosine_NL, strict=True):
            reference[i] += share * torch.softmax(cosine, dim=0)
    everything = (output.feature_NLF, output.cosine_NL, output.logit_NL)
    torch.testing.assert_close(network.reasoning._to_labels(output.feature_NLF, everything, None), reference)


def test_under_mixed_precision_the_reasoning_stays_in_float32() -> None:
    network = small_network().eval()
    with torch.autocast("cpu", torch.bfloat16):
        output = network(patches(3))
    assert output.score_NL is not None
    assert output.score_NL.dtype == torch.float32
    torch.testing.assert_close(network.reason(output.feature_NLF, output.cosine_NL), output.score_NL)


@pytest.mark.parametrize("relation_similarity", ["dot", "cosine"])
def test_features_of_unit_length_are_all_that_stage_2_sees(relation_similarity: str) -> None:
    raw = small_network(relation_similarity=relation_similarity)
    unit = small_network(relation_similarity=relation_similarity, reasoned_features="unit")
    unit.load_state_dict(raw.state_dict())
    feature, cosine = torch.randn(4, 3, 8), torch.rand(4, 3)
    score = unit.reasoning(feature, cosine, cosine)
    shortened = torch.stack([torch.stack([x / x.square().sum().sqrt() for x in patch]) for patch in feature])
    torch.testing.assert_close(score, raw.reasoning(shortened, cosine, cosine))
    length = torch.tensor([1.0, 7.0, 40.0])[None, :, None]
    torch.testing.assert_close(unit.reasoning(length * feature, cosine, cosine), score)
    assert (raw.reasoning(length * feature, cosine, cosine) - score).abs().max() > 1e-3
    alone = unit.reasoning(feature[:2], cosine[:2], cosine[:2], everything=(feature, cosine, cosine))
    torch.testing.assert_close(alone, score[:2])
    zero = torch.zeros(1, 3, 8)
    assert torch.isfinite(unit.reasoning(zero, cosine[:1], cosine[:1])).all()
