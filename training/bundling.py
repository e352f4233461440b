"""A finished run to a bundle: calibrate, measure, describe, export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

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
from training.patches import refuse_dropped, refuse_other_windows
from training.precision import Made, Proof, add_precisions, calibration_patches
from training.record import revision_of
from training.temperature import Sureness, fit_temperatures, sigmoid, temperature_facts

FP32_TOLERANCE = 1e-3  # of probability; the two runtimes sum in different orders
PARITY_PATCHES = 16
STAGE_BY_STAGE = ("kssnet", "tdrg")
GOLDEN_PATCHES = 2  # pixels of noise do not compress, and a bundle should stay small


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
    """

    manifest: Manifest
    network: Network
    difference: Difference
    made: dict[str, Made]
    calibration: Calibration
    sureness: dict[str, Sureness]


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
    frame: FrameLimits | None = None,
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
        frame: limits of the frame checks; None: 20 % saturated pixels and a contrast of 2 grey levels,
            which the darkest of rendered frames have and a frame without light has not.
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
    refuse_dropped(calibration)
    if config.network.stages == 2 and config.phase2.epochs == 0 and config.start is None:
        raise ValueError(f"stage 2 of {run} has learnt nothing: phase2.epochs = 0")
    if "fp16" in precisions and config.network.method in STAGE_BY_STAGE:
        raise ValueError(f"{config.network.method} is not made in fp16: its trunk is taken apart, stage by stage")
    if turned_look.ratio_max and not (config.augmentation.flip and config.augmentation.quarter_turns):
        raise ValueError(f"{run} has not learnt patches in all positions: augmentation.flip and quarter_turns")
    refuse_known(calibration, config.all_folders)
    learnt = learnt_by_run(run, config)
    if known := [folder for folder in calibration if data_id([folder]) in learnt]:
        raise ValueError(f"{run}, or a run that it begins with has learnt from {known[0]}: calibrate on other screens")
    validation = PatchSet(config.data.folders, "validation")
    sets = [_see(network, patches) for patches in _sets(validation, calibration)]
    target, screens = np.concatenate([one.patches.labels for one in sets]), _screens(sets)
    score = np.concatenate([one.score for one in sets])
    sureness = fit_temperatures(score, target, screens, labels=validation.label_names)
    temperature = np.array([one.temperature for one in sureness.values()])
    network.temper(torch.from_numpy(temperature).float())
    sets = [one.tempered(network, temperature) for one in sets]
    probability = [one.served(network, turned_look) for one in sets]
    last = config.phase2 if config.phase2.epochs else config.phase1
    found = calibrate(
        np.concatenate(probability),
        target,
        screens,
        labels=validation.label_names,
        costs=costs or Costs(),
        weights_chosen=not calibration and last.keep == "best",
    )
    limits, judged = found.limits, sets[0]
    measured = {"validation": _report(probability[0], validation, limits)}
    if _has_test_part(config):
        judged = _see(network, PatchSet(config.data.folders, "test"))
        measured["test"] = _report(judged.served(network, turned_look), judged.patches, limits)
    chosen = parity_patches(sets[0].once, validation.labels, [limit.threshold for limit in limits.values()])
    manifest = Manifest(
        name=config.name,
        version=version,
        labels=limits,
        patch_px=validation.patch_px,
        overlap_px=overlap_px,
        second_look=second_look,
        turned_look=turned_look,
        batch_size=batch_size,
        frame=frame or FrameLimits(saturated_ratio_max=0.2, contrast_min=2),
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
    patches = np.stack([validation.patch(int(i)) for i in chosen])[:, None]
    features = FeaturesGraph(network)
    made: dict[str, Made] = {}

    def finish(draft: Path) -> None:
        with closing(load(draft, "onnxruntime")) as backend:
            maps, expected = infer(backend, patches)
        proof = Proof(
            features=features,
            calibration=calibration_patches(PatchSet(config.data.folders, "train"), seed=config.seed),
            pixels=patches,
            expected=expected,
            activation=maps.activation,
            patches=judged.patches,
            reference=judged.once,
        )
        made.update(add_precisions(draft, precisions, proof))

    difference = export(
        out,
        features=features,
        reasoning=ReasoningGraph(network),
        manifest=manifest,
        golden_pixels=patches[:GOLDEN_PATCHES],
        parity_pixels=patches,
        card=model_card(
            manifest,
            config,
            network,
            measured,
            found,
            sureness,
            notes=notes,
            revision=revision_of(run),
            start_sha256=RunFolder(run).start_sha256,
        ),
        finish=finish if precisions else None,
    )
    return Exported(
        manifest=Manifest.read(out),
        network=network,
        difference=difference,
        made=made,
        calibration=found,
        sureness=sureness,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Seen:
    """A set as the network sees it: what stage 1 gives, and scores (N, L) before the sigmoid, reasoned by screen."""

    patches: PatchSet
    output: Output
    score: NDArray[np.float64]

    @property
    def once(self) -> NDArray[np.float32]:
        """Probabilities (N, L), each window looked at once."""
        return sigmoid(self.score).astype(np.float32)

    def tempered(self, network: Network, temperature_L: NDArray[np.float64]) -> _Seen:
        """As it was seen before the network was given temperatures, as the network sees it with them."""
        output = network.seen_tempered(self.output, torch.from_numpy(temperature_L).float())
        return replace(self, output=output, score=self.score / temperature_L)

    def served(self, network: Network, look: TurnedLook) -> NDArray[np.float32]:
        """Probabilities (N, L) as the service has them, by the network with its temperatures."""
        return served(network, self.output, self.patches, self.once, look)


def _see(network: Network, patches: PatchSet) -> _Seen:
    fabric = Fabric(accelerator="cpu")
    output = see(network, patches, fabric)
    score = reasoned(network, output, patches, fabric, group="screen").astype(np.float64)
    return _Seen(patches=patches, output=output, score=score)


def _sets(validation: PatchSet, folders: Sequence[Path]) -> list[PatchSet]:
    """The validation part, and all folders as one."""
    if not folders:
        return [validation]
    more = PatchSet(folders, None)
    if (more.label_names, more.patch_px) != (validation.label_names, validation.patch_px):
        raise ValueError(f"{folders[0]} differs from the run's data in labels or patch size")
    return [validation, more]


def _screens(sets: Sequence[_Seen]) -> NDArray[np.int64]:
    """Numbers of the screens (N,) of all sets together; those of one set are no other's."""
    first = np.cumsum([0, *(one.patches.screens.max() + 1 for one in sets)])
    return np.concatenate([one.patches.screens + start for one, start in zip(sets, first, strict=False)])


def parity_patches(
    probability: NDArray[np.float32], target: NDArray[np.int8], thresholds: Sequence[float]
) -> NDArray[np.int64]:
    """Patches to compare graphs and module on: the most telling first, then the most doubtful.

    The first two become the golden patches: one with as many labels as there are, and one without any. The most
    doubtful are those whose probability (N, L) of a label is nearest to its threshold, of L.
    """
    labels = (target == 1).sum(axis=1)
    clean = np.flatnonzero((target == 0).all(axis=1))
    first = [int(np.argmax(labels)), int(clean[0]) if len(clean) else 0]
    doubtful = np.argsort(np.abs(probability - np.array(thresholds)).min(axis=1), kind="stable")
    return np.array(list(dict.fromkeys([*first, *doubtful.tolist()]))[:PARITY_PATCHES])


def _report(probability: NDArray[np.float32], patches: PatchSet, limits: Mapping[str, LabelLimits]) -> Report:
    thresholds = [limit.threshold for limit in limits.values()]
    return report(probability, patches.labels, labels=patches.label_names, thresholds=thresholds)


def _has_test_part(config: Config) -> bool:
    return any("test" in _parts(folder) for folder in config.data.folders)


def _parts(folder: Path) -> set[str]:
    rows = (folder / "splits.csv").read_text().splitlines()[1:]
    return {row.rsplit(",", 1)[1] for row in rows}


def _facts(config: Config, measured: Mapping[str, Report]) -> dict[str, float | str]:
    facts: dict[str, float | str] = {"seed": float(config.seed), "trunk": config.network.trunk_name}
    for part, found in measured.items():
        for key in ("accuracy", "precision", "recall", "f_measure"):
            facts[f"{part}_{key}"] = round(float(getattr(found, key)), 4)
    return facts
