import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.small import heard_network, heard_stage, patches, small_network
from training.config import Config, Data
from training.reasoning import GraphReasoning

EDGES = [[0.6, 0.3, 0.0], [-0.4, 0.9, 0.2], [0.2, -0.1, 0.7]]  # as learnt: some negative, one exactly 0
FA: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x if x > 0 else 0 * x,
    "leaky_relu": lambda x: x if x > 0 else 0.2 * x,
    "tanh": lambda x: (torch.exp(x) - torch.exp(-x)) / (torch.exp(x) + torch.exp(-x)),
}
# each option of stage 2 by itself, and several together
OPTIONS: list[dict[str, object]] = [
    {},
    {"relation_scores": "scaled"},
    {"relation_activation": "leaky_relu"},
    {"relation_activation": "tanh"},
    {"symmetric": True},
    {"relation_similarity": "cosine"},
    {"reasoned_features": "unit"},
    {
        "relation_activation": "leaky_relu",
        "relation_scores": "scaled",
        "symmetric": True,
        "relation_similarity": "cosine",
        "reasoned_features": "unit",
    },
]


def told(count: int) -> tuple[Tensor, Tensor]:
    """Features (N, L, F) and cosines (N, L) that are about 1."""
    generator = torch.Generator().manual_seed(2)
    feature = torch.randn(count, 3, 8, generator=generator) / 2
    return feature, torch.rand(count, 3, generator=generator) * 2 - 1


def reasoning_by_the_equations(
    stage: GraphReasoning, feature: Tensor, score: Tensor, group: list[int], options: dict[str, object]
) -> tuple[Tensor, Tensor]:
    """Equations 3 to 7, written out with loops over patches and labels, and the relations' part of the scores.

    S of Eq. 6 is `score`; patches of one number in `group` relate.
    """
    count, labels = score.shape
    if options.get("reasoned_features") == "unit":
        feature = torch.stack([torch.stack([x / x.square().sum().sqrt() for x in patch]) for patch in feature])
    edges = [[edge if edge >= 0 else 0 * edge for edge in row] for row in stage.edges]
    if options.get("symmetric"):
        edges = [[(edges[i][k] + edges[k][i]) / 2 for k in range(labels)] for i in range(labels)]
    degree = [sum(row) for row in edges]
    nodes = [
        sum(degree[i] ** -0.5 * edges[i][k] * degree[k] ** -0.5 * stage.nodes[k] for k in range(labels))
        for i in range(labels)
    ]
    z = [stage.projection.weight @ feature[k].flatten() + stage.projection.bias for k in range(count)]
    if options.get("relation_similarity") == "cosine":
        z = [math.sqrt(10) * one / one.square().sum().sqrt() for one in z]
    rows, parts = [], []
    for i in range(count):
        related = [k for k in range(count) if group[k] == group[i]]
        weights = {k: torch.exp(z[i] @ z[k]) for k in related}
        below = {k: sum(torch.exp(score[k, m]) for m in range(labels)) for k in related}
        to_label = [
            sum(weights[k] / sum(weights.values()) * torch.exp(score[k, j]) / below[k] for k in related)
            for j in range(labels)
        ]
        mixed = sum(to_label[j] * nodes[j] for j in range(labels))
        activation = FA[str(options.get("relation_activation", "relu"))]
        enhanced = torch.stack([activation(x) for x in stage.relation.weight @ mixed])
        rows.append(stage.classifier.weight @ torch.cat([feature[i].flatten(), enhanced]))
        parts.append(stage.classifier.weight[:, feature[i].numel() :] @ enhanced)
    return torch.stack(rows), torch.stack(parts)


@pytest.mark.parametrize("group", [[0, 0, 0, 0], [0, 1, 0, 1]])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(map(str, options.values())) or "paper")
def test_reasoning_follows_the_equations(options: dict[str, object], group: list[int]) -> None:
    """Its scores, and the gradient of each of its weights, in double precision."""
    stage = heard_stage(**options).double()
    with torch.no_grad():
        stage.edges.copy_(torch.tensor(EDGES))
    feature, cosine = (one.double().requires_grad_() for one in told(4))

    def found(feature: Tensor, cosine: Tensor) -> Tensor:
        score: Tensor = stage(feature, cosine, cosine * 10, torch.tensor(group))
        return score

    scores = cosine * 10 if options.get("relation_scores") == "scaled" else cosine
    expected, part = reasoning_by_the_equations(stage, feature, scores, group, options)
    assert part.std(dim=0).max() > 1e-3  # else nothing is told of what relates
    torch.testing.assert_close(found(feature, cosine), expected, atol=1e-10, rtol=1e-10)
    inputs, weight = [feature, cosine, *stage.parameters()], torch.randn(4, 3).double()
    gradients = [torch.autograd.grad((weight * s).sum(), inputs) for s in (found(feature, cosine), expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-9)
    assert torch.autograd.gradcheck(found, (feature, cosine), fast_mode=True)


@pytest.mark.parametrize("activation", FA)
def test_what_activates_the_relations_is_chosen(activation: str) -> None:
    """Each differs from the others where it is negative, and only there does ReLU from the leaky one."""
    stage = heard_stage(relation_activation=activation)
    values = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0])
    torch.testing.assert_close(stage.activation(values), torch.stack([FA[activation](x) for x in values]))


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"relation_activation\n.*'relu', 'leaky_relu' or 'tanh'"):
        small_network(relation_activation="gelu")


def test_a_run_of_before_there_was_a_choice_has_relu(tmp_path: Path) -> None:
    values = json.loads(Config(name="x", run=tmp_path, data=Data(folders=[tmp_path])).model_dump_json())
    assert values["network"].pop("relation_activation") == "relu"
    assert Config.model_validate_json(json.dumps(values)).network.relation_activation == "relu"


def test_what_was_learnt_with_one_activation_is_read_with_another() -> None:
    relu, tanh = small_network(), heard_network(relation_activation="tanh")
    tanh.load_state_dict(relu.state_dict())


def test_negative_edges_are_none_and_zeros_are_learnt_from() -> None:
    stage = heard_stage().double()
    feature, cosine = (one.double() for one in told(4))

    def score(low: float) -> Tensor:
        with torch.no_grad():
            stage.edges.copy_(torch.tensor([[0.6, low, 0.3], [0.2, 0.9, 0.2], [low, 0.1, 0.7]]))
        found: Tensor = stage(feature, cosine, cosine)
        return found

    torch.testing.assert_close(score(-0.7), score(0.0))
    assert (score(0.7) - score(0.0)).abs().max() > 0.01  # it would be heard
    (gradient,) = torch.autograd.grad(score(0.0).square().sum(), stage.edges)
    assert gradient[0, 1].abs() > 1e-3
    assert gradient[2, 0].abs() > 1e-3


def test_a_label_without_edges_stays_finite() -> None:
    stage = heard_stage()
    with torch.no_grad():
        stage.edges[1] = -1.0
    feature, cosine = told(4)
    score = stage(feature, cosine, cosine)
    score.sum().backward()
    assert torch.isfinite(score).all()
    assert all(torch.isfinite(weight.grad).all() for weight in stage.parameters())  # type: ignore[arg-type]


def test_a_symmetric_graph_stays_symmetric() -> None:
    """Learnt edges are averaged with their transpose whenever they are used, not only at the start."""
    feature, cosine = told(4)
    edges = torch.tensor([[0.5, 0.4, 0.1], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]])
    for symmetric in (True, False):
        stage = heard_stage(symmetric=symmetric)
        found = []
        for directed in (edges, edges.T):
            with torch.no_grad():
                stage.edges.copy_(directed)
            found.append(stage(feature, cosine, cosine))
        apart = (found[0] - found[1]).abs().max()
        assert apart < 1e-5 if symmetric else apart > 0.01


def test_edges_start_from_normalised_counts_and_an_empty_row_is_the_identity() -> None:
    network = small_network()
    counts = torch.tensor([[2.0, 2, 0], [2, 6, 0], [0, 0, 0]])
    network.reasoning.start_from(network.classifier1.weight, counts)
    assert network.reasoning.edges.tolist() == [[0.5, 0.5, 0], [0.25, 0.75, 0], [0, 0, 1]]
    torch.testing.assert_close(network.reasoning.nodes.data, network.classifier1.weight.data)


@pytest.mark.parametrize("normalised", [False, True])
def test_nodes_start_from_classifier_1(normalised: bool) -> None:
    network = small_network(normalise_nodes=normalised)
    network.begin_phase("phase1", torch.eye(3))  # which trains no stage 2
    weight = network.classifier1.weight
    expected = torch.stack([w / w.square().sum().sqrt() for w in weight]) if normalised else weight
    assert not torch.allclose(network.reasoning.nodes, expected)
    network.begin_phase("phase2", torch.eye(3))
    torch.testing.assert_close(network.reasoning.nodes, expected)


def test_nodes_and_classifier_1_part_once_both_learn() -> None:
    network = small_network()
    network.begin_phase("phase2", torch.eye(3))
    with torch.no_grad():
        network.reasoning.nodes.add_(1)
    assert not torch.allclose(network.reasoning.nodes, network.classifier1.weight)


@pytest.mark.parametrize(
    "options", [{}, {"relation_scores": "scaled"}, {"relation_similarity": "cosine"}, {"reasoned_features": "unit"}]
)
def test_a_share_of_a_batch_relates_to_all_of_it(options: dict[str, str]) -> None:
    """What one of two devices computes of a gathered batch is its rows of the whole."""
    stage = heard_stage(**options)
    feature, cosine = told(4)
    everything = (feature, cosine, 10 * cosine)
    whole = stage(*everything)
    half = (feature[:2], cosine[:2], 10 * cosine[:2])
    assert (stage(*half) - whole[:2]).abs().max() > 0.01
    torch.testing.assert_close(stage(*half, None, everything), whole[:2])


def test_a_patch_that_relates_to_itself_is_a_screen_of_its_own() -> None:
    """Relating to itself alone is the paper's network with every patch in a group of one."""
    full = heard_network()
    network = small_network(relate_to="itself")
    network.load_state_dict(full.state_dict(), strict=False)
    pixels = patches(3)
    alone = network(pixels).score_NL
    assert (full(pixels).score_NL - alone).abs().max() > 0.01
    torch.testing.assert_close(alone, full(pixels, group_N=torch.arange(3)).score_NL)
    assert not hasattr(network.reasoning, "projection")  # which would only weigh on it


def test_a_bank_is_read_by_similarity_and_by_no_other_patch() -> None:
    network = heard_network(relate_to="bank", bank=5)
    stage = network.reasoning
    torch.nn.init.normal_(stage.bank_score)
    torch.nn.init.normal_(stage.bank_key)
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


@pytest.mark.parametrize("relation_similarity", ["dot", "cosine"])
def test_features_of_unit_length_are_all_that_stage_2_sees(relation_similarity: str) -> None:
    raw = heard_stage(relation_similarity=relation_similarity)
    unit = heard_stage(relation_similarity=relation_similarity, reasoned_features="unit")
    unit.load_state_dict(raw.state_dict())
    feature, cosine = told(4)
    score = unit(feature, cosine, cosine)
    length = torch.tensor([1.0, 7.0, 40.0])[None, :, None]
    torch.testing.assert_close(unit(length * feature, cosine, cosine), score)
    assert (raw(length * feature, cosine, cosine) - score).abs().max() > 0.01
    zero = torch.zeros(1, 3, 8)
    assert torch.isfinite(unit(zero, cosine[:1], cosine[:1])).all()


@pytest.mark.parametrize("options", [{}, {"classifier": "dot"}, {"reasoned_features": "unit"}])
def test_classifier_2_may_begin_with_what_classifier_1_knows(options: dict[str, str]) -> None:
    """On features of one length, their mean, the scores of both stages are the same; no relation is heard yet."""
    network = small_network(scores_from="classifier1", **options)
    with torch.no_grad():
        network.classifier1.log_scale.fill_(1.5 if network.classifier1.normalised else 0.0)
    feature, _ = told(5)
    length_L = torch.tensor([3.0, 40.0, 0.5])
    feature = torch.nn.functional.normalize(feature, dim=-1) * length_L[:, None]
    with pytest.raises(ValueError, match="needs the lengths"):
        network.begin_phase("phase2", torch.eye(3))
    network.begin_phase("phase2", torch.eye(3), length_L)
    cosine = network.classifier1(feature)
    torch.testing.assert_close(network.reason(feature, cosine), network.classifier1.logits(cosine))


def test_an_edge_that_a_step_made_negative_comes_back() -> None:
    """First each step lowers the edge between two labels, then one raises it, and it is heard at once."""
    network = small_network()
    optimiser = torch.optim.SGD([network.reasoning.edges], lr=0.1)
    for direction, steps in ((1.0, 8), (-1.0, 1)):
        for _ in range(steps):
            network.reasoning.edges.grad = torch.full_like(network.reasoning.edges, direction)
            optimiser.step()
            network.end_step()
        assert (network.reasoning.edges >= 0).all()
    assert network.reasoning.edges[0, 1].item() == pytest.approx(0.1)
