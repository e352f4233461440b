"""The configuration of a training run: one TOML file, checked at the boundary, copied into the run's folder."""

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from training.architecture import NetworkConfig
from training.faults import read_toml, validated

PHASES = ("phase1", "phase2")


class _Section(BaseModel):
    # finite alone: JSON has null for the rest, and a run whose config.json holds that can never be continued
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(_Section):
    """Folders made by `python -m training cut`."""

    folders: list[Path] = Field(min_length=1)  # all have the same labels and patch size
    workers: int = Field(0, ge=0)  # processes that load and augment
    resident: bool = False  # the device's memory holds the training part, a byte a pixel, and no worker loads it
    positives: float | None = Field(None, gt=0, lt=1)  # share with a defect in a shuffled epoch; None: as is
    hard: float = Field(0.0, ge=0, lt=1)  # share of a shuffled epoch drawn by the last loss of each patch
    patches_per_epoch: int | None = Field(None, ge=1)  # None: all of them


class Augmentation(_Section):
    """Applied to the training part only. The paper names the kinds but not the strengths."""

    flip: bool = True  # in both directions
    quarter_turns: bool = True  # rotation by 0, 90, 180 or 270 degrees, which keeps every pixel
    # pixels either way, what comes in mirrored: for trunks whose strides see a defect otherwise from pixel to pixel.
    # The maps stay: over 3 pixels some small defects lie in a cell that is told to have none
    shift: int = Field(0, ge=0, lt=16)
    rotation_degrees: float = Field(0.0, ge=0, le=180)  # free rotation on top; corners are filled with 0
    brightness: float = Field(0.2, ge=0)  # factor 1 +- brightness
    contrast: float = Field(0.2, ge=0)
    gamma: float = Field(0.0, ge=0, lt=1)  # exponent 1 +- gamma
    noise: float = Field(0.0, ge=0)  # largest standard deviation of added noise, grey levels


class Phase(_Section):
    """One of the two phases. The defaults are the paper's."""

    folders: list[Path] = []  # learns from these instead of data.folders, e.g. smaller patches of the same screens
    epochs: int = Field(40, ge=0)
    batch: int = Field(32, ge=1)  # patches of a step, of all devices together
    accumulate: int = Field(1, ge=1)  # parts in which a device's share goes through the trunk: see `training.parts`
    optimiser: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(1e-3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)  # SGD only
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    hold: float = Field(0.0, ge=0, lt=1)  # share of the steps that keep the rate before a cosine falls
    warmup_steps: int = Field(0, ge=0)
    freeze: bool = False  # phase 2 only: stage 1 stays as it is, its batch normalisation too, and stage 2 alone learns
    keep: Literal["best", "last"] = "best"  # the epoch whose weights it ends with: best by F at 0.5 on validation
    statistics: int = Field(0, ge=0)  # patches that batch normalisation is measured on after an epoch; 0: running means


class Loss(_Section):
    """Weights of the parts of the loss. The defaults are the paper's."""

    contrast: float = Field(0.4, ge=0)  # alpha, phase 1 only
    temperature: float = Field(0.1, gt=0)
    negative_focus: float = Field(0.0, ge=0)  # not the paper's: how much less an easy absent label counts
    map: float = Field(0.0, ge=0)  # loss on the labels' maps, both phases; needs attention pooling
    map_positive_weight: float = Field(4.0, gt=0)


class Config(_Section):
    """Everything that `fit` needs.

    `relations` says which patches relate in phase 2: "batch" is the paper's shuffled batch, "screen" batches whole
    screens and relates only patches of the same one, as the service does.
    """

    name: str = Field(min_length=1)
    run: Path  # the folder that the run is written to
    # weights (.safetensors) of an earlier run with the same network and labels. A phase 2 that learns begins the label
    # graph anew all the same, from its classifier 1
    start: Path | None = None
    # "trunk": of those weights the trunk's alone, and labels and heads may be others
    start_part: Literal["network", "trunk"] = "network"
    start_share: float = Field(0.0, ge=0, lt=1)  # of those weights in the finished run's: see `training.folder`
    seed: int = Field(0, ge=0)
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: Literal["auto", "cuda", "cpu"] = "auto"  # "auto": a GPU where there is one; several devices: GPUs
    devices: int = Field(1, ge=1)  # of this machine, or of each node
    nodes: int = Field(1, ge=1)  # machines; several are started by torchrun and see the same folders
    threads: int | None = Field(None, ge=1)  # CPU threads; None: torch's choice
    checkpoint_minutes: float = Field(10.0, ge=0)  # the most that a killed run loses; 0: saved after every step
    relations: Literal["batch", "screen"] = "batch"
    data: Data
    network: NetworkConfig = NetworkConfig()
    augmentation: Augmentation = Augmentation()
    phase1: Phase = Phase()
    phase2: Phase = Phase()
    loss: Loss = Loss()

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401 - pydantic's signature
        """Refuse what cannot work together."""
        if self.start_share and self.start is None:
            raise ValueError("start_share needs start: there are no other weights to take a share of")
        if self.start_part == "trunk" and (self.start is None or self.start_share):
            raise ValueError("start_part = 'trunk' needs start, and leaves no network for a start_share")
        if any(phase.hold and phase.schedule == "constant" for phase in self.phases):
            raise ValueError("hold needs schedule = 'cosine': a constant rate never falls")
        if self.phase1.freeze:
            raise ValueError("phase1.freeze: phase 1 trains stage 1, and would learn nothing")
        if self.phase2.freeze and (self.network.stages == 1 or self.phase2.statistics):
            raise ValueError("phase2.freeze keeps stage 1: it needs a network with two, and statistics = 0")
        begins = self.start is not None and self.start_part == "network"
        if self.phase2.freeze and not self.phase1.epochs and not begins:
            raise ValueError("phase2.freeze keeps a stage 1 that has learnt nothing: phase1.epochs = 0, and no start")
        world = self.devices * self.nodes
        for name, phase in zip(PHASES, self.phases, strict=True):
            if phase.epochs and phase.batch % world:
                raise ValueError(f"{name}.batch = {phase.batch} does not divide over {world} devices")
        if self.data.resident and self.augmentation.rotation_degrees:
            raise ValueError("data.resident has no free rotation: set augmentation.rotation_degrees = 0")
        if self.loss.map > 0 and not self.network.has_label_features:
            raise ValueError(f"network.method = {self.network.method!r} has no map of each label: set loss.map = 0")
        if self.loss.map > 0 and not self.network.has_label_maps:
            raise ValueError("loss.map needs network.pooling = 'attention': average pooling has no map")
        if self.network.pooling == "attention" and not self.network.has_label_features:
            remedy = "set network.pooling = 'average'"
            raise ValueError(f"network.method = {self.network.method!r} pools nothing by attention: {remedy}")
        if self.network.stages == 1 and self.phase2.epochs:
            raise ValueError(f"network.method = {self.network.method!r} has one stage: set phase2.epochs = 0")
        whole = self.network.method in ("kssnet", "tdrg")
        if whole and max(self.phase1.accumulate, self.phase2.accumulate) > 1:
            raise ValueError(f"network.method = {self.network.method!r} takes a batch whole: accumulate = 1")
        if self.network.method == "tdrg" and self.phase1.batch < 2 * self.devices * self.nodes:
            raise ValueError("network.method = 'tdrg' normalises over a step's patches: two at least on each device")
        if self.loss.contrast and not self.network.has_label_features:
            raise ValueError(f"network.method = {self.network.method!r} has no label features: set loss.contrast = 0")

    @property
    def phases(self) -> tuple[Phase, Phase]:
        """In their order."""
        return self.phase1, self.phase2

    @property
    def all_folders(self) -> list[Path]:
        """Every folder of data, as often as it is named."""
        return [*self.data.folders, *self.phase1.folders, *self.phase2.folders]

    def moved(self, to: Callable[[Path], Path]) -> "Config":
        """The same configuration with every path in it changed."""
        sections = {
            name: section.model_copy(update={"folders": [to(folder) for folder in section.folders]})
            for name, section in (("data", self.data), ("phase1", self.phase1), ("phase2", self.phase2))
        }
        start = None if self.start is None else to(self.start)
        return self.model_copy(update={"run": to(self.run), "start": start, **sections})


Override = Annotated[str, "key=value, the key dotted, the value in TOML"]


def read_config(path: Path, overrides: list[Override] | None = None) -> Config:
    """Read a TOML file and apply overrides such as `phase1.epochs=2`.

    Relative folders are taken from the folder of the file.

    Raises:
        ValueError: not TOML, or a key is unknown, missing or out of range; the message names it.
    """
    values = read_toml(path)
    for override in overrides or []:
        _apply(values, override)
    folder = path.resolve().parent
    return validated(Config, values, path).moved(lambda place: folder / place)


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ValueError(f"--set takes key=value, not {override!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ValueError(f"--set {key}: {section} is not a section")
    values[last] = value


def flat(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Values of tables within tables, by their dotted keys."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{key}.")
        else:
            yield before + key, value
