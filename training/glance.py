"""A glance for a bundle: a small network that clears windows on CPUs, and hardly any of those with a defect.

A window tells something where the whole network gives a label a score from which a screen does not pass, or from which
the bundle looks again. Where the label is there it has found a defect, or its trace: from those windows the least doubt
is chosen that is looked at, as high as the share of them allows that may be cleared. What it takes for a defect where
there is none need not be kept. Doubts are those of the graph as it is served here, in each runtime and precision. What
the glance costs in F is then measured as with any other bundle, by `evaluate` on a CPU.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn

from engine import (
    Backend,
    Glance,
    Manifest,
    RuntimeUnavailable,
    load,
    read_golden,
    seen_whole,
    self_test,
)
from engine.doubt import write_glance
from training.card import CARD_FILE, card_with
from training.config import Config
from training.datasets import PatchSet, refuse_known
from training.evaluation import bundle_probability, fitting_patches
from training.folder import LEARNT_DATA, data_id, learnt_by_bundle, learnt_by_run, load_run
from training.measures import wilson
from training.network import Network
from training.whole import drafted

SECTION = "## Glance"
GLANCE_DATA = "glance_data_id"  # of a manifest's facts: `data_id` of all that its limit was chosen on
SHARE = "glance_share"  # of a manifest's facts: of the windows in which a defect is found, what may be cleared
CLEAN_WINDOWS = 256  # whose mean features stand for a cleared one
BEYOND_PX = 32  # of a patch's mirror image around it: maps are padded with zeros, beside which a glance sees less
CLEARS_ALL = Glance(doubt_min=1.0)  # so that the whole network is spared while doubts are asked for
MARGIN = 0.98  # of the doubt of golden patches: another CPU rounds otherwise, and its self-test must hold


class Doubt(nn.Module):
    """What is exported as `glance.onnx`: how sure a network is that there is anything in a patch."""

    TRUNK = "network.trunk"  # the part that may round where the features graph does

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 1, S, S) uint8 to the highest probability of any label (N,)."""
        feature_NLF, cosine_NL, _ = self.network.features(pixels)
        return torch.sigmoid(self.network.reason(feature_NLF, cosine_NL)).amax(dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The least doubt that is looked at, and what that does to the windows that it was chosen on.

    Attributes:
        doubt_min: the least doubt that is looked at.
        windows: all of them.
        found: those in which the whole network finds a defect that is there, or may be.
        lost: of these, how many are cleared.
        cleared: of all.
        screen_labels: labels of screens that it finds in any of their windows.
        screen_labels_lost: of these, how many in nothing but cleared windows.
        screens: those in which it finds any such label.
        screens_lost: of these, how many in nothing but cleared windows: they may escape.
    """

    doubt_min: float
    windows: int
    found: int
    lost: int
    cleared: int
    screen_labels: int
    screen_labels_lost: int
    screens: int
    screens_lost: int

    def facts(self) -> dict[str, float]:
        """For the manifest."""
        figures = {f"glance_{name}": float(value) for name, value in asdict(self).items()}
        return {**figures, "glance_escape_bound": round(self.escape_bound, 4)}

    @property
    def escape_bound(self) -> float:
        """What the share of screens that escape by it may be with 97.5 %, of those that the whole network finds."""
        return wilson(self.screens_lost, self.screens).high

    def __str__(self) -> str:
        return (
            f"clears {self.cleared} of {self.windows} windows ({self.cleared / self.windows:.1%}), {self.lost} of the "
            f"{self.found} in which a defect is found among them; all such windows of {self.screen_labels_lost} of "
            f"{self.screen_labels} labels of screens, and of {self.screens_lost} of {self.screens} screens: "
            f"at most {self.escape_bound:.1%} of such screens escape by it (97.5 %), besides those by the limits"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Doubts:
    """The least doubts of a glance in all that its bundle is served as here.

    Attributes:
        windows: (N,) of a set's.
        golden: (G,) of the golden patches.
        golden_probability: (G, L) the answers of these.
    """

    windows: NDArray[np.float32]
    golden: NDArray[np.float32]
    golden_probability: NDArray[np.float32]

    def most(self, manifest: Manifest, *, low: NDArray[np.float64] | None = None) -> float:
        """What a limit is at most: it clears no golden patch that tells something, see `telling`."""
        tells = telling(self.golden_probability, manifest, low=low).any(axis=1)
        return MARGIN * float(self.golden[tells].min(initial=1.0))

    def refuse_silent(self, manifest: Manifest, *, low: NDArray[np.float64] | None = None) -> None:
        """Golden patches of which none tells anything hold no limit.

        Raises:
            ValueError: they are such.
        """
        if not telling(self.golden_probability, manifest, low=low).any():
            raise ValueError(
                f"no golden patch of {manifest.name} tells anything: a self-test would not find a blind glance"
            )


def add_glance(
    bundle: Path, run: Path, folders: Sequence[Path], out: Path, *, version: str, lost: float, part: str | None = None
) -> tuple[Manifest, Chosen]:
    """Write a bundle with the graphs and limits of another one and a glance.

    Args:
        bundle: that has none yet, or another.
        run: folder of the finished run of the small network, of one stage and with the bundle's labels.
        folders: cut folders with the bundle's labels and patch size, in the shares of the line, that neither run nor
            bundle has learnt from.
        out: folder of the new bundle, which must not exist.
        version: of the new bundle.
        lost: share of the windows in which a defect is found that may be cleared, below 1.
        part: train, validation or test; None takes all screens.

    Raises:
        ValueError: the version is the bundle's own, `out` exists, the run is of other labels or has two stages, the
            data does not fit or was learnt from, no defect is found in any window, no golden patch tells anything,
            nothing would be cleared, or what would stand for a cleared window tells something.
        BundleError: the bundle is not whole.
        InferenceError: the new bundle does not give its golden patches their answers.
    """
    before = Manifest.read(bundle)
    if version == before.version:
        raise ValueError(f"--version {version} is that of {bundle}: with a glance it needs another one")
    if out.exists():
        raise ValueError(f"{out} exists: name another folder for the new bundle")
    network, config = _network_of(run, before)
    learnt = learnt_by_run(run, config)
    _refuse_learnt([*learnt, *learnt_by_bundle(before)], folders, part)
    patches = fitting_patches(before, folders, part=part)
    with seen_whole(bundle) as whole, drafted(whole, out) as draft:
        with closing(load(draft, "onnxruntime", precision="fp32")) as backend:
            tells = telling(bundle_probability(backend, patches, group="screen"), before)
            may_be_there = patches.labels != 0  # or is not known
            clean = _clean(backend, patches, np.flatnonzero(~(tells | may_be_there).any(axis=1)))
        beyond = min(BEYOND_PX, before.patch_px - 1)
        write_glance(draft, Doubt(network), clean, side_px=before.patch_px + 2 * beyond, part=Doubt.TRUNK)
        replace(before, glance=CLEARS_ALL).sign(draft)
        doubts = doubts_of(draft, patches)
        doubts.refuse_silent(before)
        chosen = choose(doubts.windows, tells & may_be_there, patches.screens, lost=lost, most=doubts.most(before))
        manifest = replace(
            before,
            version=version,
            glance=Glance(doubt_min=chosen.doubt_min),
            training={
                **before.training,
                **chosen.facts(),
                SHARE: lost,
                GLANCE_DATA: " ".join(data_id([folder]) for folder in folders),
                LEARNT_DATA: " ".join(dict.fromkeys([*learnt_by_bundle(before), *learnt])),
            },
        )
        card = draft / CARD_FILE
        origin = f"Graphs and limits are those of {before.name} {before.version}."
        card.write_text(card_with(card.read_text(), manifest, SECTION, said(chosen, origin)))
        manifest.sign(draft)
        prove(draft)
    return Manifest.read(out), chosen


def prove(bundle: Path) -> None:
    """Hold a bundle to its golden patches, as all that it is served as here.

    Raises:
        InferenceError: it does not give them their answers, or the glance clears one that shows something.
    """
    for backend in _served(bundle):
        with closing(backend):
            self_test(backend, read_golden(bundle, backend.precision, backend.manifest))


def telling(
    probability: NDArray[np.float32], manifest: Manifest, *, low: NDArray[np.float64] | None = None
) -> NDArray[np.bool_]:
    """Which probabilities (N, L) keep a screen from passing, or have their window looked at again.

    Args:
        probability: of the windows.
        manifest: of the bundle.
        low: (L,) of the labels' bands, in place of the manifest's.
    """
    low = manifest.review_low if low is None else low
    for look in (manifest.second_look, manifest.turned_look):
        if look.ratio_max:
            low = np.minimum(low, look.score_min)
    return np.asarray(probability >= low)


def choose(
    doubt: NDArray[np.float32],
    found_NL: NDArray[np.bool_],
    screens: NDArray[np.int64],
    *,
    lost: float,
    most: float = 1.0,
) -> Chosen:
    """The highest limit that clears no more of the windows in which a defect is found than a share of them.

    Args:
        doubt: (N,) of the glance.
        found_NL: (N, L) labels that are there, or may be, and that the whole network finds.
        screens: (N,) the number of each window's screen.
        lost: that share, below 1.
        most: what the limit is at most.

    Raises:
        ValueError: there is no such window, or nothing would be cleared.
    """
    found = np.asarray(found_NL.any(axis=1))
    if not found.any():
        raise ValueError("the bundle finds no labelled defect in any of these windows: no limit can be chosen on them")
    limit = limit_of(doubt, found, lost=lost, most=most)
    cleared = doubt < limit
    if not cleared.any():
        raise ValueError(
            f"no window has less doubt than {limit:.3g}, which must be looked at: nothing would be cleared"
        )
    of_screens, left = _of_screens(found_NL, screens), _of_screens(found_NL & ~cleared[:, None], screens)
    return Chosen(
        doubt_min=limit,
        windows=len(doubt),
        found=int(found.sum()),
        lost=int((cleared & found).sum()),
        cleared=int(cleared.sum()),
        screen_labels=int(of_screens.sum()),
        screen_labels_lost=int((of_screens & ~left).sum()),
        screens=int(of_screens.any(axis=1).sum()),
        screens_lost=int((of_screens.any(axis=1) & ~left.any(axis=1)).sum()),
    )


def limit_of(doubt: NDArray[np.float32], found: NDArray[np.bool_], *, lost: float, most: float) -> float:
    """See `choose`; of windows (N,) some of which must be found.

    It clears what is below it.
    """
    kept = np.sort(doubt[found])
    return min(float(kept[int(lost * len(kept) + 1e-9)]), most)  # of k in n, k are lost, though k / n * n may be less


def _of_screens(found_NL: NDArray[np.bool_], screens: NDArray[np.int64]) -> NDArray[np.bool_]:
    """What is found in any window of each screen (S, L)."""
    numbers, number_N = np.unique(screens, return_inverse=True)
    found_SL = np.zeros((len(numbers), found_NL.shape[1]), np.bool_)
    np.logical_or.at(found_SL, number_N, found_NL)
    return found_SL


def _network_of(run: Path, manifest: Manifest) -> tuple[Network, Config]:
    network, config, labels = load_run(run)
    if labels != manifest.label_names:
        raise ValueError(f"{run} knows {', '.join(labels)}, the bundle {', '.join(manifest.label_names)}")
    if config.network.stages != 1:
        raise ValueError(f"{run} has two stages, and a glance is at one patch alone: train `feature_clustering`")
    return network, config


def _refuse_learnt(learnt: Sequence[str], folders: Sequence[Path], part: str | None) -> None:
    refuse_known(folders, [])
    for folder in folders if part in (None, "train") else ():
        if data_id([folder]) in learnt:
            raise ValueError(f"run or bundle has learnt from {folder}: take others, or --part test")


def _served(bundle: Path) -> Iterator[Backend]:
    """As what it is served on this CPU: by ONNX Runtime, and by OpenVINO in the precisions that both have."""
    yield load(bundle, "onnxruntime", precision="fp32")
    made = Manifest.read(bundle).precisions
    for precision in ("fp32", "bf16"):
        if precision in made:
            with suppress(RuntimeUnavailable):  # the limit is then chosen without
                yield load(bundle, "openvino", precision=precision)


def doubts_of(bundle: Path, patches: PatchSet) -> Doubts:
    """The least doubts of windows and golden patches in all that a bundle is served as here.

    Args:
        bundle: with a glance that clears all, see `CLEARS_ALL`: the whole network is then spared.
        patches: the windows.
    """
    golden = read_golden(bundle)
    windows, shown = np.ones(len(patches), np.float32), np.ones(len(golden.pixels), np.float32)
    for backend in _served(bundle):
        with closing(backend):
            for k in track(range(len(patches)), f"doubts, {backend.runtime} {backend.precision}", transient=True):
                windows[k] = min(windows[k], backend.features(patches.pixels([k])).doubt[0])
            for k, pixels in enumerate(golden.pixels):
                shown[k] = min(shown[k], backend.features(pixels[None]).doubt[0])
    return Doubts(windows=windows, golden=shown, golden_probability=golden.probability)


def _clean(backend: Backend, patches: PatchSet, clean: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
    """What stands for a cleared window: the mean over some of them, and a flat map, which says nothing about where.

    Raises:
        ValueError: there is none, or what stands for them tells something.
    """
    if not len(clean):
        raise ValueError("every window tells something, or may have a label: nothing can be cleared")
    chosen = clean[np.linspace(0, len(clean) - 1, min(CLEAN_WINDOWS, len(clean))).astype(int)]
    seen = [backend.features(patches.pixels([k])) for k in chosen]
    label_features = np.concatenate([one.label_features for one in seen]).mean(axis=0, keepdims=True)
    stage1 = np.concatenate([one.stage1 for one in seen]).mean(axis=0, keepdims=True)
    probability = backend.reason(label_features, stage1)
    if telling(probability, backend.manifest).any():
        scores = ", ".join(f"{score:.3f}" for score in probability[0])
        raise ValueError(f"what would stand for a clean window has the scores {scores}, and would not pass")
    maps = np.stack([one.activation[0] for one in seen])
    level = np.broadcast_to(maps.mean(axis=(0, 2, 3), keepdims=True)[0], maps.shape[1:])
    return {"label_features": label_features[0], "stage1": stage1[0], "activation": level}


def said(chosen: Chosen, origin: str) -> list[str]:
    """For the card, with where the rest comes from: lines of the section."""
    return [
        f"On CPUs a small network glances at every window, and the whole one sees those of which it has a doubt of "
        f"{chosen.doubt_min:.4f} or more. On the windows that this was chosen on it {chosen}: by the whole network, a "
        f"score that does not pass or is looked at again, of a label that is there. {origin}",
        "",
    ]
