"""Trunks by name: grey patches (N, 1, P, P) to a map (N, D, P/32, P/32), or P/16. Knows nothing of labels."""

import itertools
from collections.abc import Callable, Mapping

import torch
import torchvision
from torch import Tensor, nn


class Trunk(nn.Sequential):
    """A trunk in four stages, at strides of 4, 8, 16 and 32 pixels, of "compact" half of them.

    Its modules stand one after the other; `ends` and `widths` say where each stage ends and how many channels leave it.
    """

    def __init__(self, *modules: nn.Module, ends: tuple[int, ...], widths: tuple[int, ...]) -> None:
        super().__init__(*modules)
        self.ends = ends
        self.widths = widths

    def stage(self, number: int, x: Tensor) -> Tensor:
        """One stage, 0 to 3: pixels or the map before it to its own map."""
        start = self.ends[number - 1] if number else 0
        for module in list(self)[start : self.ends[number]]:
            x = module(x)
        return x


def staged(trunk: nn.Module) -> Trunk:
    """The stages of a trunk that `build_trunk` made.

    Raises:
        ValueError: it has none.
    """
    layers = trunk.layers if isinstance(trunk, LightTrunk) else trunk
    if not isinstance(layers, Trunk):
        raise ValueError("this method takes a trunk in stages: 'light', 'compact' or a ResNet")
    return layers


def build_trunk(name: str, *, weights: str | None = None, channels: int = 1) -> tuple[nn.Module, int]:
    """The trunk called `name` and its number of channels D.

    Pretrained weights of a ResNet or of VGG-16 expect about (x / 255 - 0.45) / 0.225 of a grey level x (VGG-16's
    IMAGENET1K_FEATURES x - 115). They get another light: "linear" (see `training.network.preprocess`) has 1/2.2 of that
    contrast, and "root" goes from 0 to 16, so that the first batches move a ResNet's batch normalisation; VGG-16 has
    none. Those of Inception-v3 expect what "linear" gives, see `_inception`.

    Args:
        name: "light" (ours, for CPUs), "glance" (ours, a third of its products, for glances), "compact" (ours, for
            studies on small patches), a torchvision ResNet such as "resnet50" (the paper's), "vgg16" or "inception_v3";
            the last has no padding, and gives a map that is smaller by a few cells.
        weights: torchvision's weights name, e.g. "IMAGENET1K_V2", fetched by torchvision; None starts from scratch.
        channels: 1; 3 keeps the stem of colour images, to count what the literature counts.

    Raises:
        ValueError: unknown name or weights, or weights asked of a trunk that has none.
    """
    if name in OURS:
        if weights is not None:
            raise ValueError(f"the {name} trunk has no pretrained weights")
        ours = OURS[name](channels)
        return ours, staged(ours).widths[-1]
    if name not in ("vgg16", "inception_v3", *torchvision.models.list_models(include="resnet*")):
        raise ValueError(
            f"unknown trunk {name!r}: {', '.join(map(repr, OURS))}, 'vgg16', 'inception_v3' or a torchvision ResNet"
        )
    if weights is not None:
        _refuse_unknown_weights(name, weights)
    if name == "vgg16":
        vgg = torchvision.models.vgg16(weights=weights)
        vgg.features[0] = stem(vgg.features[0], channels)
        return vgg.features, 512
    if name == "inception_v3":
        return _inception(weights, channels), 2048
    resnet = torchvision.models.get_model(name, weights=weights)
    layers = [resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4]
    width = resnet.fc.in_features
    first = [stem(resnet.conv1, channels), resnet.bn1, resnet.relu, resnet.maxpool]
    widths = (width // 8, width // 4, width // 2, width)
    return Trunk(*first, *layers, ends=(5, 6, 7, 8), widths=widths), width


def _refuse_unknown_weights(name: str, weights: str) -> None:
    there = torchvision.models.get_model_weights(name)
    try:
        there.verify(weights)
    except KeyError as error:
        known = ", ".join(there.__members__)
        raise ValueError(f"network.trunk_weights = {weights!r} are none of {name}: it has {known}") from error


def _inception(weights: str | None, channels: int) -> nn.Sequential:
    """Inception-v3 without its auxiliary and its own classifier, and without the dropout of a half before that.

    From scratch it starts as PyTorch's layers do (`init_weights=False`), and not from a truncated normal. Pretrained
    weights expect (x / 255 - 0.5) / 0.5 of a grey level x: torchvision makes that of ImageNet's form in the part of the
    forward pass that is left out here.
    """
    inception = torchvision.models.inception_v3(weights=weights, aux_logits=weights is not None, init_weights=False)
    inception.Conv2d_1a_3x3.conv = stem(inception.Conv2d_1a_3x3.conv, channels)
    return nn.Sequential(
        *(part for name, part in inception.named_children() if name not in ("AuxLogits", "avgpool", "dropout", "fc"))
    )


def stem(colour: nn.Conv2d, channels: int) -> nn.Conv2d:
    """The first convolution for grey patches: its weights summed over the colours, so equal channels give the same.

    With three channels it is left as it is.
    """
    if channels == colour.in_channels:
        return colour
    grey = nn.Conv2d(
        channels,
        colour.out_channels,
        colour.kernel_size,  # type: ignore[arg-type] # a pair
        stride=colour.stride,  # type: ignore[arg-type]
        padding=colour.padding,  # type: ignore[arg-type]
        bias=colour.bias is not None,
    )
    with torch.no_grad():
        grey.weight.copy_(colour.weight.sum(dim=1, keepdim=True))
        if grey.bias is not None and colour.bias is not None:
            grey.bias.copy_(colour.bias)
    return grey


class LightTrunk(nn.Module):
    """A small trunk for CPUs: large strided stem on the grey channel, then depthwise-separable blocks.

    The 8 x 8 stem with stride 4 takes the full-resolution image in one convolution: at 1024 px the first layers of
    an image-classification trunk would cost more than all that follows.
    """

    channels = 160

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.layers = Trunk(
            nn.Conv2d(channels, 16, 8, stride=4, padding=2, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            SeparableBlock(16, 48, stride=2),
            SeparableBlock(48, 48),
            SeparableBlock(48, 96, stride=2),
            SeparableBlock(96, 96),
            SeparableBlock(96, 96),
            SeparableBlock(96, 160, stride=2),
            SeparableBlock(160, 160),
            SeparableBlock(160, 160),
            SeparableBlock(160, 160),
            ends=(3, 5, 8, 12),
            widths=(16, 48, 96, 160),
        )

    def forward(self, pixel_NGPP: Tensor) -> Tensor:
        """Pixels (N, 1, P, P) to the map (N, 160, P/32, P/32)."""
        map_NDHW: Tensor = self.layers(pixel_NGPP)
        return map_NDHW


COMPACT = 24, 48, 96, 160  # channels at strides of 2 to 16


def compact_trunk(channels: int = 1) -> Trunk:
    """A plain small trunk of 3 x 3 convolutions, for patches of 160 px whose defects are a few pixels large.

    Its first stage still sees every second pixel, and its map is of P/16, as `LightTrunk` halves both for speed. 0.17e9
    products on a patch of 160 px.
    """
    modules: list[nn.Module] = []
    for before, width in itertools.pairwise((channels, *COMPACT)):
        modules += [_convolution(before, width, stride=2), Residual(width)]
    return Trunk(*modules, ends=(2, 4, 6, 8), widths=COMPACT)


def _convolution(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """A convolution that adds to what it takes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = _convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape (N, C, H, W)."""
        y: Tensor = x + self.body(x)
        return y


class SeparableBlock(nn.Module):
    """5 x 5 depthwise, then 1 x 1; a residual where the shape is kept."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 5, stride=stride, padding=2, groups=inputs, bias=False)
        self.norm1 = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """The block (N, C, H, W), smaller by its stride."""
        y = torch.relu(self.norm1(self.depthwise(x)))
        y = self.norm2(self.pointwise(y))
        return torch.relu(x + y) if self.residual else torch.relu(y)


GLANCE_WIDTH = 96


def glance_trunk(channels: int = 1) -> Trunk:
    """A third of the light trunk's products: whether there is anything to look at, and hardly what it is.

    The stem takes each block of 8 x 8 pixels as a whole, so that no pixel is read twice.
    """
    return Trunk(
        nn.Conv2d(channels, 48, 8, stride=8, bias=False),
        nn.BatchNorm2d(48),
        nn.ReLU(inplace=True),
        SeparableBlock(48, 64, stride=2),
        SeparableBlock(64, 64),
        SeparableBlock(64, GLANCE_WIDTH, stride=2),
        SeparableBlock(GLANCE_WIDTH, GLANCE_WIDTH),
        SeparableBlock(GLANCE_WIDTH, GLANCE_WIDTH),
        ends=(3, 5, 6, 8),
        widths=(48, 64, GLANCE_WIDTH, GLANCE_WIDTH),
    )


# those that stand in no library
OURS: Mapping[str, Callable[[int], nn.Module]] = {"light": LightTrunk, "glance": glance_trunk, "compact": compact_trunk}
