import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor
from typer.testing import CliRunner

from engine import infer, load
from tests.training.data_form import TOML, write_toy
from training import complexity
from training.__main__ import app
from training.architecture import NetworkConfig
from training.baselines import METHODS, build_network
from training.baselines.kssnet import SLOPE, KSSNet, label_graph
from training.baselines.tdrg import mixed
from training.bundling import export_run
from training.complexity import count, describe
from training.config import read_config
from training.datasets import PatchSet
from training.fit import fit
from training.inference import network_probability
from training.methods import METHODS as PAPER
from training.network import FeaturesGraph, Network, ReasoningGraph
from training.trunks import LightTrunk, build_trunk, staged

EMBEDDED = Path(__file__).parents[2] / "training" / "configs" / "embedded.toml"
RIVALS = ("feature_clustering", "plain", "kssnet", "tdrg", "sewerml")


def rival(method: str, labels: int = 3) -> Network:
    torch.manual_seed(0)
    config = NetworkConfig(method=method, trunk="light", feature_width=16)  # type: ignore[arg-type]
    return build_network(labels, config).eval()


def patches(count: int, *, side: int = 128) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 1, side, side), generator=generator, dtype=torch.uint8)


def test_every_method_has_a_network() -> None:
    assert set(METHODS) == {*RIVALS, "two_stage"}
    assert {row.method for row in PAPER.values()} | {"feature_clustering"} == set(METHODS)


@pytest.mark.parametrize("name", PAPER)
def test_parameters_and_products_are_those_of_table_8_or_the_method_says_why_not(name: str) -> None:
    """Every difference over 0.5 % has its reason, and every reason its difference."""
    found, paper = describe(name), PAPER[name]
    off = {
        figure
        for figure, counted, reported in (
            ("parameters", found.colour.parameters, paper.parameters),
            ("products", found.colour.products, paper.products),
        )
        if abs(counted - reported) > 0.005 * reported
    }
    assert set(paper.differs) == set(found.reasons) == off
    assert dict(found.reasons) == dict(paper.differs)
    told = re.sub(r"\s+", " ", complexity.__doc__ or "").partition("Each is met")[2]
    for figure, reason in paper.differs.items():
        assert reason.endswith(".")
        assert ". " not in reason  # it is one sentence
        assert re.search(rf"\b{figure}\b", told)
    assert (paper.title in told) == bool(off)  # the docstring explains the same methods


def test_the_reasons_are_what_the_counts_say() -> None:
    """Those of the two methods that have any."""
    two_stage = describe("two_stage").colour
    said = 27_714_640  # the text's own parts; besides the nodes beside w, the scale, Proj, W_RN and its columns
    assert f"{said:,}" in PAPER["two_stage"].differs["parameters"]
    assert two_stage.parameters == said + 2048 + 1 + (2048 + 1) * 512 + 512 * 256 + 4 * 256
    trunk, tdrg = describe("resnet50").colour, describe("tdrg").colour
    assert "that of the ResNet-50 trunk alone" in PAPER["tdrg"].differs["products"]
    assert trunk.products == pytest.approx(PAPER["tdrg"].products, rel=0.005)
    assert tdrg.products > 2 * trunk.products  # what is beside it costs more


def test_a_difference_without_a_reason_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PAPER, "vgg16", replace(PAPER["vgg16"], parameters=1.48e7))
    assert describe("vgg16").reasons == {"parameters": "why is not known."}


def test_describe_says_beneath_a_figure_why_it_is_another(tmp_path: Path) -> None:
    file = tmp_path / "d.json"
    answer = CliRunner().invoke(app, ["describe", "tdrg", "--json", str(file)])
    assert answer.exit_code == 0, answer.output
    reason = PAPER["tdrg"].differs["products"]
    assert answer.output.index("230.2%") < answer.output.index(f"TDRG, 230.2% of the paper's products: {reason}\n")
    assert json.loads(file.read_text())["tdrg"]["reasons"] == {"products": reason}
    for other in (["resnet50"], ["tdrg", "--size", "256"], ["two_stage", "--labels", "9"]):  # there is nothing to say
        assert "of the paper's" not in CliRunner().invoke(app, ["describe", *other]).output


def test_the_table_says_beneath_it_why_a_figure_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = {name: PAPER[name] for name in ("sewerml", "tdrg", "two_stage")}
    monkeypatch.setattr("training.studies.counts.METHODS", some)
    answer = CliRunner().invoke(app, ["table", "8", "--out", str(tmp_path)])
    assert answer.exit_code == 0, answer.output
    text = (tmp_path / "table-8.md").read_text()
    notes = {
        "[^1]": f"TDRG, 230.2% of the paper's products: {PAPER['tdrg'].differs['products']}",
        "[^2]": f"two-stage, 117.0% of the paper's parameters: {PAPER['two_stage'].differs['parameters']}",
    }
    for mark, note in notes.items():
        assert f"\n{mark}: {note}\n" in text
        assert note in answer.output
    assert "| TDRG | 4.873 | 4.873 | 19.820[^1] | 8.609 |" in text
    assert "| two-stage | 2.890[^2] | 2.469 | 8.610 | 8.610 |" in text
    assert text.count("[^") == 2 * len(notes)


def test_describe_names_the_methods_in_its_help() -> None:
    told = " ".join(CliRunner().invoke(app, ["describe", "--help"]).output.replace("│", " ").split())
    assert f"A method of the paper: {', '.join(PAPER)}; or all." in told


def test_with_other_labels_nothing_is_set_beside_the_papers_figures() -> None:
    found = describe("two_stage", labels=9)
    assert (found.paper_parameters, found.paper_products, found.reasons) == (None, None, {})


def test_describe_prints_them(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["describe", "vgg16", "--size", "256", "--json", str(tmp_path / "d.json")])
    assert answer.exit_code == 0, answer.output
    assert "VGG-16" in answer.output
    found = json.loads((tmp_path / "d.json").read_text())["vgg16"]
    assert found["colour"]["parameters"] == 14_716_740
    assert found["paper_products"] is None  # the table is of 1024 px
    assert CliRunner().invoke(app, ["describe", "vgg17"]).exception is not None


@pytest.mark.parametrize("size", [64, 72])
def test_describe_says_which_methods_take_no_patches_that_small(size: int, tmp_path: Path) -> None:
    file = tmp_path / "d.json"
    answer = CliRunner().invoke(app, ["describe", "--size", str(size), "--json", str(file)])
    assert answer.exit_code == 0, answer.output
    small = {"inception_v3", *(["tdrg"] if size == 64 else [])}
    found = json.loads(file.read_text())
    assert {name for name in PAPER if found[name] is None} == small
    for name, row in PAPER.items():
        (line,) = (one.split() for one in answer.output.splitlines() if one.strip().startswith(f"{row.title} "))
        assert (line[1:] == ["too", "small"]) == (name in small)
    alone = CliRunner().invoke(app, ["describe", "inception_v3", "--size", str(size)])
    assert str(alone.exception).startswith(
        f"patches of {size} px are too small for network.method = 'plain' (trunk: inc"
    )
    (tmp_path / "toy.toml").write_text(f"{TOML}\n".replace('trunk = "light"', 'trunk = "inception_v3"'))
    own = CliRunner().invoke(app, ["describe", "--config", str(tmp_path / "toy.toml"), "--size", str(size)])
    assert str(own.exception).startswith(f"patches of {size} px are too small for")


def test_describe_counts_the_network_of_a_configuration(tmp_path: Path) -> None:
    file = tmp_path / "d.json"
    answer = CliRunner().invoke(app, ["describe", "--config", str(EMBEDDED), "--json", str(file)])
    assert answer.exit_code == 0, answer.output
    assert "screens-light: 4 labels, one grey patch of 1024 px" in answer.output
    found = json.loads(file.read_text())
    assert found["parameters"] == sum(found["parts"].values()) == 207_177  # as its model card says
    assert 360e6 < found["products"] < 400e6


def test_nothing_is_fetched_to_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise AssertionError("weights are fetched")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    config = NetworkConfig(method="plain", trunk="resnet18", trunk_weights="IMAGENET1K_V1")
    counted = count(config, size_px=64, labels=4)
    assert counted == count(replace(config, trunk_weights=None), size_px=64, labels=4)


@pytest.mark.parametrize("method", RIVALS)
def test_a_rival_is_one_patch_and_no_other(method: str) -> None:
    network, pixels = rival(method), patches(3)
    output = network(pixels)
    assert output.score_NL is not None
    alone = torch.cat([network(p[None]).score_NL for p in pixels])
    torch.testing.assert_close(output.score_NL, alone, atol=1e-4, rtol=1e-4)
    assert output.map_NLHW is None


@pytest.mark.parametrize("method", RIVALS)
def test_the_two_graphs_are_the_rival(method: str) -> None:
    network, pixels = rival(method), patches(3)
    label_features, stage1, activation = FeaturesGraph(network)(pixels)
    width = 16 if method == "feature_clustering" else 1
    assert label_features.shape == (3, 3, width)
    assert activation.shape[:2] == (3, 3)
    probability = ReasoningGraph(network)(label_features, stage1)
    torch.testing.assert_close(probability, torch.sigmoid(network(pixels).score_NL))


@pytest.mark.parametrize("method", ["plain", "kssnet", "feature_clustering"])
def test_the_activation_is_what_the_score_is_made_of(method: str) -> None:
    """A constant and a factor apart, its mean is the score: over patches the two are on one line."""
    network = rival(method)
    _, stage1, activation = network.features(patches(16))
    mean = activation.mean(dim=(2, 3))
    if method == "feature_clustering":  # the cosine divides by a norm that the map does not know
        assert all(np.corrcoef(mean[:, k].detach(), stage1[:, k].detach())[0, 1] > 0 for k in range(3))
        return
    gap = (stage1 - mean).detach()
    torch.testing.assert_close(gap, gap[:1].expand_as(gap), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_temperature_divides_the_deciding_scores(method: str) -> None:
    network, pixels = rival(method), patches(3)
    label_features, stage1, _ = network.features(pixels)
    plain = network.reason(label_features, stage1)
    temperature = torch.tensor([0.5, 1.0, 4.0])
    network.temper(temperature)
    label_features, stage1, _ = network.features(pixels)
    torch.testing.assert_close(network.reason(label_features, stage1), plain / temperature)
    score = network(pixels).score_NL
    assert score is not None
    if method != "feature_clustering":  # whose forward pass is what learns
        torch.testing.assert_close(score, plain / temperature, atol=1e-4, rtol=1e-4)


def test_a_rival_that_has_no_stage_2_says_so(tmp_path: Path) -> None:
    (tmp_path / "toy.toml").write_text(TOML)
    plain = ["network.method=plain", "network.pooling=average", "loss.contrast=0", "loss.map=0"]
    assert read_config(tmp_path / "toy.toml", [*plain, "phase2.epochs=0"]).network.method == "plain"
    with pytest.raises(ValueError, match="one stage"):
        read_config(tmp_path / "toy.toml", plain)
    with pytest.raises(ValueError, match="label features"):
        read_config(tmp_path / "toy.toml", [*plain[:2], "loss.map=0", "phase2.epochs=0"])
    with pytest.raises(ValueError, match="has no map"):
        read_config(tmp_path / "toy.toml", [*plain[:2], "loss.contrast=0", "phase2.epochs=0"])
    with pytest.raises(ValueError, match="two_stage"):
        read_config(tmp_path / "toy.toml", ["network.method=resnet"])


@pytest.fixture
def double() -> Iterator[None]:
    """What is made meanwhile is float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("double")
def test_label_embeddings_are_the_ones_written_out() -> None:
    """A (E W) + b, layer by layer: the graph mixes what the weights make, and not their bias."""
    network = rival("kssnet")
    assert isinstance(network, KSSNet)
    network.begin_phase("phase1", torch.tensor([[5.0, 2, 1], [2, 6, 0], [1, 0, 3]]))
    before = [[float(i == j) for j in range(3)] for i in range(3)]
    for layer, found in zip(network.convolutions, network.embeddings(), strict=True):
        assert isinstance(layer, torch.nn.Linear)
        weight, bias = layer.weight.tolist(), layer.bias.tolist()
        made = [[sum(w * x for w, x in zip(row, one, strict=True)) for row in weight] for one in before]
        raw = [
            [sum(float(network.graph[i, k]) * made[k][d] for k in range(3)) + bias[d] for d in range(len(bias))]
            for i in range(3)
        ]
        torch.testing.assert_close(found, torch.tensor(raw), atol=1e-10, rtol=1e-10)
        before = [[x if x > 0 else SLOPE * x for x in row] for row in raw]
    weights = tuple(network.convolutions.parameters())
    assert torch.autograd.gradcheck(lambda *_: tuple(network.embeddings()), weights, fast_mode=True)


def test_the_label_graph_is_the_one_written_out() -> None:
    counts = np.array([[100.0, 50, 2], [50, 80, 0], [2, 0, 10]])
    mixed_LL = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            frequency = counts[i, j] / counts[i, i]
            mixed_LL[i, j] = 0.4 * (frequency if frequency >= 0.03 else 0) + (0.6 if i == j else 0)
    degree = [sum(mixed_LL[i, j] for i in range(3)) for j in range(3)]
    expected = [[mixed_LL[i, j] / (degree[i] * degree[j]) ** 0.5 for j in range(3)] for i in range(3)]
    torch.testing.assert_close(label_graph(torch.tensor(counts)), torch.tensor(expected, dtype=torch.float64))


def test_a_label_that_never_occurs_keeps_itself() -> None:
    graph = label_graph(torch.tensor([[4.0, 0], [0, 0]]))
    assert torch.isfinite(graph).all()
    assert graph[1, 1] > 0


def test_kssnets_graph_is_made_of_the_training_part() -> None:
    network = rival("kssnet")
    assert isinstance(network, KSSNet)
    before = network(patches(2)).logit_NL
    network.begin_phase("phase1", torch.tensor([[5.0, 5, 0], [5, 5, 0], [0, 0, 5]]))
    assert network.graph[0, 1] > 0
    assert network.graph[0, 2] == 0
    assert (network(patches(2)).logit_NL - before).abs().max() > 0
    assert "graph" in network.state_dict()  # a bundle is made of what was trained


def test_scales_are_mixed_at_the_largest() -> None:
    maps = [torch.full((1, 2, side, side), float(value)) for side, value in ((8, 2), (4, 3), (1, 5))]
    for found, own in zip(mixed(*maps), maps, strict=True):
        torch.testing.assert_close(found, own + 30)
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, 2, n, n, generator=generator, dtype=torch.float64).requires_grad_() for n in (4, 2, 1)]
    assert torch.autograd.gradcheck(lambda *x: tuple(mixed(*x)), tuple(drawn))


def test_the_stages_of_a_trunk_are_the_trunk() -> None:
    for name, finest in (("light", 4), ("compact", 2), ("resnet18", 4)):
        trunk, width = build_trunk(name)
        x = pixels = torch.randn(1, 1, 64, 64)
        stages = staged(trunk.eval())
        for number, expected in enumerate(stages.widths):
            x = stages.stage(number, x)
            assert x.shape == (1, expected, (64 // finest) >> number, (64 // finest) >> number)
        assert width == stages.widths[-1]
        torch.testing.assert_close(x, trunk(pixels))
    with pytest.raises(ValueError, match="stages"):
        staged(build_trunk("vgg16")[0])
    assert LightTrunk().layers.widths[-1] == LightTrunk.channels


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("rivals"), screens=16)


@pytest.mark.parametrize(
    ("method", "trunk"),
    [
        *((method, "light") for method in RIVALS),
        *(pytest.param("plain", trunk, marks=pytest.mark.slow) for trunk in ("vgg16", "inception_v3")),
    ],
)
def test_a_rival_is_trained_exported_and_served_by_the_same_commands(method: str, trunk: str, data: Path) -> None:
    run = f"{method}-{trunk}"
    changes = ["phase1.epochs=1", "phase2.epochs=0", f"network.method={method}", f"network.trunk={trunk}", f"run={run}"]
    if method != "feature_clustering":
        changes += ["network.pooling=average", "loss.contrast=0", "loss.map=0"]
    config = read_config(data, changes)
    fit(config)
    out = data.parent / f"{run}-bundle"
    done = export_run(config.run, out, version="1")
    assert done.difference.largest < done.manifest.parity_tolerance["fp32"]
    network = done.network
    validation = PatchSet(config.data.folders, "validation")
    expected = network_probability(network, validation, Fabric(accelerator="cpu"))
    indices = validation.by_screen()[0]
    backend = load(out, "onnxruntime", threads=1)
    try:
        _, found = infer(backend, np.stack([validation.patch(int(i)) for i in indices])[:, None])
    finally:
        backend.close()
    np.testing.assert_allclose(found, expected[indices], atol=1e-4)
    assert f"`{method}`" in (out / "MODEL_CARD.md").read_text()
