"""A finished run to a bundle: calibrate, measure, describe, export."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from rich import get_console

from engine import (
    NO_SECOND_LOOK,
    NO_TURNED_LOOK,
    Difference,
    FrameLimits,
    LabelLimits,
    Manifest,
    SecondLook,
    TurnedLook,
    infer,
    load,
)
from engine.export import export
from training.calibration import Calibration, calibrate
from training.card import model_card
from training.config import Config
from training.costs import Costs
from training.datasets import PatchSet, refuse_known
from training.evaluation import Report, report
from training.folder import LEARNT_DATA, RunFolder, data_id, learnt_by_run, load_run, refuse_changed
from training.inference import reasoned, see, served
from training.network import FeaturesGraph, Network, Output, ReasoningGraph
from training.patches import dropped, refuse_dropped, refuse_other_windows
from training.precision import Made, Proof, add_precisions, calibration_patches
from training.record import revision_of
from training.rows import read_rows
from training.temperature import Sureness, fit_temperatures, sigmoid, temperature_facts

FP32_TOLERANCE = 1e-3  # of probability; the two runtimes sum in different orders
PARITY_PATCHES = 16
STAGE_BY_STAGE = ("kssnet", "tdrg")
# the darkest of rendered frames have a contrast of 2 grey levels, a frame without light has not
FRAME = FrameLimits(saturated_ratio_max=0.2, contrast_min=2)
GOLDEN_PATCHES = 8  # at most: pixels of noise do not compress, and a bundle should stay small


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exported:
    """A bundle that was written.

    Attributes:
        manifest: of it.
        network: the module that it computes as, with its temperatures.
        difference: between float32 graphs and module.
        made: the other precisions.
        calibration: its limits, and what they do.
        sureness: of each label, with its temperature.
        unshown: labels that no golden patch shows, so that no self-test would miss them.
    """

    manifest: Manifest
    network: Network
    difference: Difference
    made: dict[str, Made]
    calibration: Calibration
    sureness: dict[str, Sureness]
    unshown: list[str]


def export_run(
    run: Path,
    out: Path,
    *,
    version: str,
    batch_size: int = 5,
    overlap_px: int = 0,
    second_look: SecondLook = NO_SECOND_LOOK,
    turned_look: TurnedLook = NO_TURNED_LOOK,
    notes: str = "",
    precisions: Sequence[str] = (),
    calibration: Sequence[Path] = (),
    costs: Costs | None = None,
) -> Exported:
    """Make a bundle of a finished run.

    Args:
        run: the run's folder.
        out: the bundle's folder.
        version: the bundle's version; its name is the run's.
        batch_size: patches that the runtime takes at once.
        overlap_px: by how much the service's windows overlap.
        second_look: whether the service looks again where a border may cut a defect.
        turned_look: whether it looks at windows in doubt in all positions; the limits are chosen for it then.
        notes: Markdown that the model card carries as it is.
        precisions: others to make beside float32: fp16, bf16, int8, int8-trt.
        calibration: cut folders whose screens, all of them, decide temperatures, thresholds and review bands together
            with the validation part: screens in the shares that the line sees, none of them learnt from.
        costs: of the line; None: the defaults of `Costs`.

    Raises:
        ValueError: the run is not finished, its data is gone or other than what is served, or it has not learnt what it
            is to look at turned.
        ParityError: the exported graphs do not give the module's probabilities, or another precision does not hold;
            nothing is written then.
    """
    network, config, _ = load_run(run)
    refuse_changed(run, config)
    refuse_other_windows([*config.data.folders, *calibration], overlap_px=overlap_px)
    refuse_dropped(calibration or config.data.folders)
    _refuse_unfit(run, config, precisions, turned_look)
    refuse_known(calibration, config.all_folders)
    learnt = learnt_by_run(run, config)
    _refuse_learnt(run, learnt, calibration)

    seen = [_see(network, patches) for patches in _sets(config, calibration)]
    sureness, seen = _temper(network, seen)
    sets = [one.served(network, turned_look) for one in seen]
    found = _calibrate(config, sets, costs or Costs())
    judged = {"validation": sets[0]}
    if _has_test_part(config):
        judged["test"] = _see(network, PatchSet(config.data.folders, "test")).served(network, turned_look)
    measured = {part: one.report(found.limits) for part, one in judged.items()}

    manifest = Manifest(
        name=config.name,
        version=version,
        labels=found.limits,
        patch_px=sets[0].patches.patch_px,
        overlap_px=overlap_px,
        second_look=second_look,
        turned_look=turned_look,
        batch_size=batch_size,
        frame=FRAME,
        files={},
        parity_tolerance={"fp32": FP32_TOLERANCE},
        data_id=data_id([*config.all_folders, *calibration]),
        training={
            **_facts(config, measured),
            **found.facts(),
            **temperature_facts(sureness),
            LEARNT_DATA: " ".join(learnt),
        },
    )
    card = model_card(
        manifest,
        config,
        network,
        measured,
        found,
        sureness,
        notes=notes,
        revision=revision_of(run),
        start_sha256=RunFolder(run).start_sha256,
    )
    thresholds = [limit.threshold for limit in found.limits.values()]
    golden = golden_patches(sets[0].once, sets[0].patches.labels, thresholds)
    pixels = sets[0].patches.pixels(parity_patches(sets[0].once, golden, thresholds))
    features = FeaturesGraph(network)
    made: dict[str, Made] = {}

    def finish(draft: Path) -> None:
        status.stop()  # what follows has bars of its own
        proof = _proof(draft, config, features, pixels, judged.get("test", sets[0]))
        made.update(add_precisions(draft, precisions, proof))

    with get_console().status("graphs") as status:  # seconds, without a step to count
        difference = export(
            out,
            features=features,
            reasoning=ReasoningGraph(network),
            manifest=manifest,
            golden_pixels=pixels[: len(golden)],
            parity_pixels=pixels,
            card=card,
            finish=finish if precisions else None,
        )
    return Exported(
        manifest=Manifest.read(out),
        network=network,
        difference=difference,
        made=made,
        calibration=found,
        sureness=sureness,
        unshown=[
            label
            for column, (label, limit) in enumerate(found.limits.items())
            if (sets[0].once[golden, column] < limit.threshold).all()
        ],
    )


def _refuse_unfit(run: Path, config: Config, precisions: Sequence[str], turned_look: TurnedLook) -> None:
    """Refuse a run that cannot do what the bundle is to do."""
    learnt = RunFolder(run).learnt_phases
    if not learnt or (config.network.stages == 2 and "phase2" not in learnt):
        what = "stage 2 of " if learnt else ""
        raise ValueError(f"{what}{run} has learnt nothing: no run of it had epochs")
    if "fp16" in precisions and config.network.method in STAGE_BY_STAGE:
        raise ValueError(f"{config.network.method} is not made in fp16: its trunk is taken apart, stage by stage")
    if turned_look.ratio_max and not (config.augmentation.flip and config.augmentation.quarter_turns):
        raise ValueError(f"{run} has not learnt patches in all positions: augmentation.flip and quarter_turns")


def _refuse_learnt(run: Path, learnt: Collection[str], calibration: Sequence[Path]) -> None:
    if known := [folder for folder in calibration if data_id([folder]) in learnt]:
        raise ValueError(f"{run}, or a run that it begins with has learnt from {known[0]}: calibrate on other screens")


@dataclass(frozen=True, slots=True, eq=False)
class _Served:
    """A set with its probabilities (N, L): each window looked at once, and as the service looks at it."""

    patches: PatchSet
    once: NDArray[np.float32]
    probability: NDArray[np.float32]

    def report(self, limits: Mapping[str, LabelLimits]) -> Report:
        """Its figures at the thresholds."""
        thresholds = [limit.threshold for limit in limits.values()]
        return report(self.probability, self.patches.labels, labels=self.patches.label_names, thresholds=thresholds)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Seen:
    """A set as the network sees it: what stage 1 gives, and scores (N, L) before the sigmoid, reasoned by screen."""

    patches: PatchSet
    output: Output
    score: NDArray[np.float64]

    def tempered(self, network: Network, temperature_L: NDArray[np.float64]) -> "_Seen":
        """As it was seen before the network was given temperatures, as the network sees it with them."""
        output = network.seen_tempered(self.output, torch.from_numpy(temperature_L).float())
        return replace(self, output=output, score=self.score / temperature_L)

    def served(self, network: Network, look: TurnedLook) -> _Served:
        """As the service has it, by the network with its temperatures."""
        once = sigmoid(self.score).astype(np.float32)
        return _Served(self.patches, once, served(network, self.output, self.patches, once, look))


def _sets(config: Config, folders: Sequence[Path]) -> list[PatchSet]:
    """The validation part, and all folders as one."""
    validation = PatchSet(config.data.folders, "validation")
    if not folders:
        return [validation]
    more = PatchSet(folders, None)
    if (more.label_names, more.patch_px) != (validation.label_names, validation.patch_px):
        raise ValueError(f"{folders[0]} differs from the run's data in labels or patch size")
    return [validation, more]


def _see(network: Network, patches: PatchSet) -> _Seen:
    fabric = Fabric(accelerator="cpu")
    output = see(network, patches, fabric)
    score = reasoned(network, output, patches, fabric, group="screen").astype(np.float64)
    return _Seen(patches=patches, output=output, score=score)


def _temper(network: Network, seen: Sequence[_Seen]) -> tuple[dict[str, Sureness], list[_Seen]]:
    """Give the network the temperatures that fit what it has seen; they, and the sets as it sees them from then on."""
    patches = [one.patches for one in seen]
    sureness = fit_temperatures(
        np.concatenate([one.score for one in seen]), *_truth(patches), labels=patches[0].label_names
    )
    temperature = np.array([one.temperature for one in sureness.values()])
    network.temper(torch.from_numpy(temperature).float())
    return sureness, [one.tempered(network, temperature) for one in seen]


def _calibrate(config: Config, sets: Sequence[_Served], costs: Costs) -> Calibration:
    """Limits by all sets together, but for a validation part from which patches were dropped."""
    lacks = bool(dropped(config.data.folders))
    sets = sets[1:] if lacks else sets
    patches = [one.patches for one in sets]
    chose = np.arange(sum(len(one) for one in patches)) < len(patches[0])  # the validation part
    last = config.start is None and all(phase.keep == "last" or not phase.epochs for phase in config.phases)
    return calibrate(
        np.concatenate([one.probability for one in sets]),
        *_truth(patches),
        labels=patches[0].label_names,
        costs=costs,
        chose_weights=None if lacks or last else chose,
    )


def _truth(sets: Sequence[PatchSet]) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Labels (N, L) and numbers of the screens (N,) of all sets together; a screen of one set is no other's."""
    first = np.cumsum([0, *(one.screens.max() + 1 for one in sets)])
    screens = [one.screens + start for one, start in zip(sets, first, strict=False)]
    return np.concatenate([one.labels for one in sets]), np.concatenate(screens)


def _proof(draft: Path, config: Config, features: FeaturesGraph, pixels: NDArray[np.uint8], judged: _Served) -> Proof:
    """What other precisions are made with and held against: the draft's float32 graphs."""
    with closing(load(draft, "onnxruntime")) as backend:
        maps, expected = infer(backend, pixels)
    return Proof(
        features=features,
        calibration=calibration_patches(PatchSet(config.data.folders, "train"), seed=config.seed),
        pixels=pixels,
        expected=expected,
        activation=maps.activation,
        patches=judged.patches,
        reference=judged.once,
    )


def golden_patches(
    probability: NDArray[np.float32], target: NDArray[np.int8], thresholds: Sequence[float]
) -> list[int]:
    """Patches for the self-test: every label that is found somewhere, if few patches show them all, and a clean one.

    Args:
        probability: of the patches (N, L).
        target: their labels (N, L); 1, 0 or -1.
        thresholds: by label, from where it is present.
    """
    found = (target == 1) & (probability >= np.array(thresholds))
    chosen: list[int] = []
    while found.any() and len(chosen) < GOLDEN_PATCHES - 1:
        chosen.append(int(np.argmax(found.sum(axis=1))))
        found &= ~found[chosen[-1]]
    clean = np.flatnonzero((target == 0).all(axis=1))
    return [*chosen, int(clean[0])] if len(clean) else chosen or [0]


def parity_patches(probability: NDArray[np.float32], golden: Sequence[int], thresholds: Sequence[float]) -> list[int]:
    """Patches to compare graphs and module on: the golden ones, then the most doubtful.

    The most doubtful are those whose probability (N, L) of a label is nearest to its threshold, of L.
    """
    doubtful = np.argsort(np.abs(probability - np.array(thresholds)).min(axis=1), kind="stable")
    return list(dict.fromkeys([*golden, *doubtful.tolist()]))[:PARITY_PATCHES]


def _has_test_part(config: Config) -> bool:
    tables = (read_rows(folder / "splits.csv", "part") for folder in config.data.folders)
    return any(row["part"] == "test" for table in tables for row in table)


def _facts(config: Config, measured: Mapping[str, Report]) -> dict[str, float | str]:
    facts: dict[str, float | str] = {"seed": float(config.seed), "trunk": config.network.trunk_name}
    for part, found in measured.items():
        for key in ("accuracy", "precision", "recall", "f_measure"):
            facts[f"{part}_{key}"] = round(float(getattr(found, key)), 4)
    return facts
