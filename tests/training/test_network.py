import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional

from tests.training.small import heard_network, patches, small_network
from training.architecture import NetworkConfig
from training.network import CosineClassifier, TwoStageNetwork, parameter_table
from training.trunks import LightTrunk, build_trunk, stem


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
    assert list(table) == ["trunk", "category pooling", "classifier 1", "graph reasoning"]
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
    network = heard_network()
    trunk = network.trunk(torch.randn(2, 1, 64, 64))
    feature, _ = network.pooling(trunk)
    x_columns = network.reasoning.classifier.weight[:, : 3 * 8]
    constant = x_columns @ network.pooling.linear.bias
    from_map = network.activation(trunk).mean(dim=(2, 3)) + constant
    torch.testing.assert_close(from_map, feature.flatten(1) @ x_columns.T, atol=1e-4, rtol=1e-4)


def test_with_attention_the_activation_is_the_map_that_was_looked_by() -> None:
    network = heard_network(pooling="attention")
    output, (feature, cosine, activation) = network(patches(2)), network.features(patches(2))
    for found, expected in ((feature, output.feature_NLF), (cosine, output.cosine_NL), (activation, output.map_NLHW)):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("pooling", ["average", "max", "attention"])
def test_stage_1_follows_the_equations(pooling: str) -> None:
    """Category pooling and the cosine, position by position and label by label, in double precision."""
    network = small_network(pooling=pooling).double()
    sharpness = torch.tensor([0.5, 1.0, 3.0]).double()
    if network.pooling.sharpness is not None:
        network.pooling.sharpness.data.copy_(sharpness)
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
                warm = [torch.exp(sharpness[j] * logit) for logit in logits]
                share = [one / sum(warm) for one in warm]
            read = sum(weight[j] @ (s * p) for s, p in zip(share, positions, strict=True)) + bias[j]
            torch.testing.assert_close(feature[i, j], read, atol=1e-10, rtol=1e-9)
            w = network.classifier1.weight[j]
            torch.testing.assert_close(cosine[i, j], read @ w / (read.norm() * w.norm()), atol=1e-10, rtol=1e-9)
    assert torch.autograd.gradcheck(lambda x: network.classifier1(network.pooling(x)[0]), trunk, fast_mode=True)


@pytest.mark.parametrize(
    ("light", "expected"), [("linear", [-1, -0.5, 0, 127 / 128]), ("root", [0, 8, 128**0.5, 255**0.5])]
)
def test_the_trunk_sees_the_light_that_it_is_made_for(light: str, expected: list[float]) -> None:
    network = small_network(light=light)
    seen: list[Tensor] = []
    network.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(torch.tensor([0, 64, 128, 255], dtype=torch.uint8)[:, None, None, None].expand(4, 1, 64, 64))
    torch.testing.assert_close(seen[0], torch.tensor(expected)[:, None, None, None].expand(4, 1, 64, 64))


def test_what_is_kept_of_stage_1_neither_learns_nor_trains() -> None:
    network = small_network()
    network.keep_stage1()
    network.eval().train()
    stage1 = (network.trunk, network.pooling, network.classifier1)
    assert not any(part.training for of_stage in stage1 for part in of_stage.modules())
    assert not any(weight.requires_grad for of_stage in stage1 for weight in of_stage.parameters())
    assert network.training
    assert network.reasoning.training
    assert all(weight.requires_grad for weight in network.reasoning.parameters())
    before = {key: value.clone() for key, value in network.trunk.state_dict().items()}
    network(patches(2)).score_NL.sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in network.trunk.state_dict().items())


def test_a_bare_cosine_is_the_logit_and_stays_it() -> None:
    network = small_network(cosine_scale=1, learn_scale=False).train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        output = network(patches(4))
        torch.testing.assert_close(output.logit_NL, output.cosine_NL)
        loss = functional.binary_cross_entropy_with_logits(output.logit_NL, torch.ones(4, 3))
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def test_the_cosine_ignores_length_and_its_scale_is_positive() -> None:
    classifier = CosineClassifier(labels=2, feature_width=4, scale=10, learn_scale=True)
    feature = torch.randn(3, 2, 4)
    torch.testing.assert_close(classifier(feature), classifier(feature * 7))
    assert classifier.logits(torch.ones(1, 2)).flatten().tolist() == pytest.approx([10, 10])


def test_the_scale_of_the_cosine_is_learnt() -> None:
    network = small_network()
    network(patches(2)).logit_NL.square().sum().backward()
    gradient = network.classifier1.log_scale.grad
    assert gradient is not None
    assert gradient.abs() > 1e-3


def test_a_short_feature_has_its_cosine_and_none_has_none() -> None:
    classifier = CosineClassifier(labels=2, feature_width=4, scale=10, learn_scale=True)
    feature = torch.randn(3, 2, 4)
    torch.testing.assert_close(classifier(feature * 1e-4), classifier(feature))
    assert classifier(feature * 0).abs().max() == 0


def test_the_cosine_of_half_precision_is_taken_in_float32() -> None:
    """Whose norm is beyond what half precision holds."""
    classifier = CosineClassifier(labels=2, feature_width=4, scale=10, learn_scale=True)
    feature = (torch.randn(3, 2, 4) * 1000).half()
    found = classifier(feature)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, classifier(feature.float()))


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


def test_a_network_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one label"):
        small_network(0)


@pytest.mark.parametrize("field", ["feature_width", "projection_width", "relation_width", "cosine_scale"])
def test_a_width_that_is_not_positive_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        NetworkConfig(**{field: 0})  # type: ignore[arg-type]


def test_the_dot_product_is_linear() -> None:
    classifier = CosineClassifier(labels=2, feature_width=3, scale=10, learn_scale=True, normalised=False)
    feature = torch.randn(4, 2, 3)
    expected = torch.einsum("nlf,lf->nl", feature, classifier.weight)
    torch.testing.assert_close(classifier(feature), expected)
    torch.testing.assert_close(classifier.logits(expected), expected)
    assert not classifier.log_scale.requires_grad


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("by_screen", [False, True])
def test_permuting_the_batch_permutes_the_outputs(training: bool, by_screen: bool) -> None:
    network = heard_network(pooling="attention").train(training)
    group = torch.tensor([0, 0, 1, 1, 1, 2]) if by_screen else None
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    output = network(patches(6), group_N=group)
    permuted = network(patches(6)[order], group_N=None if group is None else group[order])
    for value, other in zip(output[:5], permuted[:5], strict=True):  # there are no auxiliary logits
        torch.testing.assert_close(other, value[order], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"relation_scores": "scaled"}, {"reasoned_features": "unit"}])
def test_patches_of_other_screens_do_not_relate(options: dict[str, str]) -> None:
    network = heard_network(**options)
    first, second = patches(5)[:3], patches(5)[3:]
    alone = torch.cat([network(first).score_NL, network(second).score_NL])
    of_two = torch.tensor([0, 1, 0, 0, 1])  # numbers of screens need not stand together
    mixed = torch.empty(5, 1, 64, 64, dtype=torch.uint8)
    mixed[of_two == 0], mixed[of_two == 1] = first, second
    as_mixed = torch.empty(5, 3)
    as_mixed[of_two == 0], as_mixed[of_two == 1] = alone[:3], alone[3:]
    assert (network(mixed).score_NL - as_mixed).abs().amax(dim=1).min() > 0.01  # each patch would hear the others
    torch.testing.assert_close(network(mixed, group_N=of_two).score_NL, as_mixed, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("relation_scores", ["bare", "scaled"])
def test_a_share_of_a_batch_relates_to_what_is_gathered(relation_scores: str) -> None:
    network = heard_network(relation_scores=relation_scores)
    whole = network(patches(5))
    left: list[Tensor] = [whole.feature_NLF, whole.cosine_NL, whole.logit_NL]

    def gather(share: Tensor) -> Tensor:
        of_all = left.pop(0)
        torch.testing.assert_close(share, of_all[:2], atol=1e-5, rtol=1e-4)
        return of_all

    assert (network(patches(5)[:2]).score_NL - whole.score_NL[:2]).abs().max() > 0.01
    share = network(patches(5)[:2], gather=gather).score_NL
    torch.testing.assert_close(share, whole.score_NL[:2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("relation_scores", ["bare", "scaled"])
def test_what_is_reasoned_by_itself_is_the_network(relation_scores: str) -> None:
    network = heard_network(relation_scores=relation_scores)
    output = network(patches(4))
    torch.testing.assert_close(network.reason(output.feature_NLF, output.cosine_NL), output.score_NL)


def test_stage_1_alone_gives_no_deciding_score() -> None:
    network = small_network()
    assert network(patches(2), reason=False).score_NL is None


def test_under_mixed_precision_the_reasoning_stays_in_float32() -> None:
    network = heard_network()
    with torch.autocast("cpu", torch.bfloat16):
        output = network(patches(3))
    assert output.score_NL is not None
    assert {value.dtype for value in (output.feature_NLF, output.cosine_NL, output.score_NL)} == {torch.float32}
    torch.testing.assert_close(network.reason(output.feature_NLF, output.cosine_NL), output.score_NL)
