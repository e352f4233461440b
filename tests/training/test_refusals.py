"""What no network can be made of or trained with is refused in words, before anything is fetched or learnt."""

import math
from pathlib import Path

import pytest
import torch

from tests.training.data_form import TOML
from training.architecture import NetworkConfig
from training.baselines import METHODS, build_network, refuse_small_patches
from training.config import read_config
from training.trunks import build_trunk


@pytest.mark.parametrize(
    ("trunk", "known"),
    [
        ("resnet50", "IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"),
        ("vgg16", "IMAGENET1K_V1, IMAGENET1K_FEATURES, DEFAULT"),
        ("inception_v3", "IMAGENET1K_V1, DEFAULT"),
    ],
)
def test_unknown_weights_are_told_with_those_that_there_are(trunk: str, known: str) -> None:
    with pytest.raises(ValueError, match=f"^network.trunk_weights = 'FOO' are none of {trunk}: it has {known}$"):
        build_trunk(trunk, weights="FOO")


def test_tdrg_names_the_width_that_its_heads_do_not_divide() -> None:
    with pytest.raises(ValueError, match=r"network\.feature_width must be a multiple of 4, .* not 10$"):
        build_network(3, NetworkConfig(method="tdrg", trunk="compact", feature_width=10))


SMALLEST = [  # px that is enough, of which one less is not
    ("tdrg", "compact", 33),  # a map of 3 x 3 cells for its kernel
    ("tdrg", "light", 68),
    ("plain", "inception_v3", 75),
    ("plain", "vgg16", 32),
    ("sewerml", "light", 22),
]


@pytest.mark.parametrize(("method", "trunk", "px"), SMALLEST)
def test_patches_that_a_layer_leaves_nothing_of_are_refused(method: str, trunk: str, px: int) -> None:
    config = NetworkConfig(method=method, trunk=trunk, feature_width=16)  # type: ignore[arg-type]
    refuse_small_patches(3, config, px)
    with pytest.raises(
        ValueError, match=rf"^patches of {px - 1} px are too small for network.method = '{method}' \(trunk"
    ):
        refuse_small_patches(3, config, px - 1)


def test_a_patch_is_refused_where_the_network_fails_on_it() -> None:
    """With its weights, which the refusal does without."""
    network = build_network(3, NetworkConfig(method="tdrg", trunk="compact", feature_width=16)).eval()
    with torch.inference_mode():
        network(torch.zeros(1, 1, 33, 33, dtype=torch.uint8))
        with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
            network(torch.zeros(1, 1, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("method", METHODS)
def test_to_ask_whether_a_patch_is_large_enough_draws_and_fetches_nothing(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise AssertionError("weights are fetched")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    before = torch.get_rng_state()
    config = NetworkConfig(method=method, trunk="resnet18", trunk_weights="IMAGENET1K_V1")  # type: ignore[arg-type]
    refuse_small_patches(3, config, 160)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "override",
    ["phase1.learning_rate=inf", "phase2.weight_decay=nan", "loss.contrast=inf", "network.cosine_scale=inf"],
)
def test_a_number_that_is_not_finite_is_refused_by_its_key(override: str, tmp_path: Path) -> None:
    (tmp_path / "toy.toml").write_text(TOML)
    with pytest.raises(ValueError, match=rf"toy\.toml: {override.partition('=')[0]}: .*finite"):
        read_config(tmp_path / "toy.toml", [override])


@pytest.mark.parametrize("scale", [math.inf, math.nan])
def test_a_scale_that_is_not_finite_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=r"cosine_scale\n.*finite"):
        NetworkConfig(cosine_scale=scale)
