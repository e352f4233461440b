"""The tables of Zhou et al. 2023, and four of ours: which rows they have and what the paper reports of them.

A row is a title and settings in the language of `fit --set`; what it does not set is the preset's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from training.config import Config
from training.methods import METHODS, PaperMethod

PresetName = Literal["cpu", "full"]

STAGES = "stage 1", "stage 2"
POINTS = "energy", "pointing"  # see `training.localisation`
OURS_TITLE = "two-stage"  # of its row, where methods are compared

A_FEW_STEPS = ("data.patches_per_epoch=32", "phase1.epochs=1", "phase1.batch=8", "phase1.warmup_steps=0")
# accuracy and F that the paper reports
OF_WIDTHS = {
    64: (0.971, 0.964),
    128: (0.974, 0.965),
    256: (0.972, 0.969),
    512: (0.977, 0.973),
    1024: (0.973, 0.968),
    2048: (0.970, 0.965),
}
OF_ALPHAS = {
    0.0: (0.971, 0.962),
    0.2: (0.974, 0.969),
    0.4: (0.977, 0.973),
    0.6: (0.973, 0.964),
    0.8: (0.972, 0.965),
    1.0: (0.969, 0.957),
}
OF_BATCHES = {
    2: (0.7911, 0.7276),
    4: (0.8447, 0.7877),
    8: (0.9676, 0.9603),
    16: (0.9671, 0.9597),
    32: (0.9766, 0.9727),
    40: (0.9766, 0.9733),
    44: (0.9779, 0.9739),
}
# of the preset `cpu`, where a method learns little at the others' rate: the best of 3e-3, 1e-3 and 3e-4 on the
# validation part of one fold
OWN_RATES = {"tdrg": ("phase1.learning_rate=3e-4",), "sewerml": ("phase1.learning_rate=1e-3",)}
HEAVY = "vgg16", "inception_v3"  # which the preset `cpu` only shows to run
TAUGHT = "network.pooling=attention", "loss.map=4.0"
BEST = "map loss, contrast 0.1"
BETTER = (*TAUGHT, "loss.contrast=0.1")  # of the variants, by F on validation
POINTING = "resnet50", "two_stage"  # whose maps Fig. 7 sets side by side
NARROW = (8, 16, 32, 64, 128, 256)  # of the compact trunk, whose map has 160 channels


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One method or setting.

    `x` is its place on the axis of a plot, `paper` what the paper reports (accuracy, F), `from_phase1` says that it
    begins with the phase-1 weights of the two-stage network of the same seed and data, `heavy` that this preset only
    shows that it runs.
    """

    title: str
    settings: tuple[str, ...] = ()
    x: float | None = None
    paper: tuple[float, float] | None = None
    from_phase1: bool = False
    heavy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """How screens are cut: patches of so many pixels, each so far from the next, of screens so many times smaller."""

    patch_px: int
    shrink: int
    stride_px: int | None = None


STEEL = Windows(patch_px=256, shrink=1, stride_px=224)  # of images of 1600 x 256


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTable:
    """A table: its title, its rows, over all folds or one, and what its axis is where it is a curve."""

    title: str
    rows: tuple[Row, ...]
    every_fold: bool = False
    axis: str = ""
    logarithmic: bool = False
    columns: tuple[str, ...] = ("screen",)  # patches that reason together, see `evaluate`; "image"; or stages
    figures: tuple[str, ...] = ("f_measure", "fitted_f_measure")  # of each column; the first one is drawn
    windows: Windows | None = None  # None: those of the preset
    settings: tuple[str, ...] = ()  # of every row, and of what rows begin with

    @property
    def of_maps(self) -> bool:
        """Whether it tells where maps point, and not how scores fare."""
        return self.columns == STAGES

    @property
    def judged(self) -> str:
        """The column by which rows are held against each other: the last stage, or the first way of grouping."""
        return self.columns[-1 if self.of_maps else 0]


def one_stage(base: Config, *more: str) -> tuple[str, ...]:
    """Settings of a method with one stage: the epochs and the rates that the others have in both."""
    whole = f"phase1.epochs={_epochs(base)}", *_rates("phase1", base)
    return (*whole, "phase2.epochs=0", "loss.contrast=0", *more)


def _epochs(base: Config) -> int:
    """Of both phases."""
    return base.phase1.epochs + base.phase2.epochs


def _rates(phase: str, base: Config) -> tuple[str, ...]:
    """Settings of one phase that does the work of both: it holds phase 1's rate where that does, and then falls."""
    hold = _hold(base) or 0.0
    return (
        f"{phase}.learning_rate={base.phase1.learning_rate}",
        f"{phase}.schedule={base.phase2.schedule}",
        f"{phase}.hold={hold}",
    )


def _hold(base: Config) -> float | None:
    """Share of its steps that one phase in the place of both keeps the rate; None where they say no one thing of it."""
    first, second = base.phases
    if (first.schedule, second.schedule) == ("constant", "cosine") and second.epochs:
        return (first.epochs + second.hold * second.epochs) / _epochs(base)
    holds = {phase.hold for phase in base.phases if phase.epochs}
    if len(holds) > 1 or (any(holds) and second.schedule == "constant"):
        return None
    return max(holds, default=0.0)


def refuse_unclear_hold(row: Row, base: Config) -> None:
    """Refuse a row of one phase that cannot hold its rate as two phases do.

    Raises:
        ValueError: it cannot, and is one.
    """
    if _hold(base) is None and any(".hold=" in setting for setting in row.settings):
        holds = f"phase1.hold = {base.phase1.hold:g} and phase2.hold = {base.phase2.hold:g}"
        remedy = "give both the same, with schedule = 'cosine', or leave the row out"
        raise ValueError(f"{row.title!r} has one phase, in which {holds} mean no one thing: {remedy}")


def table(name: str, preset: PresetName, base: Config, *, own_rates: bool = True) -> StudyTable:
    """A table by its name.

    Args:
        name: "2" to "7" and "9" as in the paper, "relations", "open", "variants" or "maps" (what Fig. 7 shows,
            measured); 8, for which nothing is trained, is `training.studies.counts`.
        preset: whose rows.
        base: the preset's configuration.
        own_rates: methods that learn little at the others' rate have one of their own; False: where it was chosen.

    Raises:
        ValueError: there is no such table.
    """
    if name not in TABLES:
        raise ValueError(f"no table {name!r}: there are 8, {', '.join(TABLES)}")
    wanted = TABLES[name](preset, base)
    own = () if own_rates else sum(OWN_RATES.values(), ())
    rows = (replace(row, settings=tuple(one for one in row.settings if one not in own)) for row in wanted.rows)
    return replace(wanted, rows=tuple(rows))


def _methods(preset: PresetName, base: Config) -> StudyTable:
    return StudyTable(
        title="Methods (Table 2)",
        rows=tuple(_method(row, preset, base, (row.screens[0], row.screens[3])) for row in METHODS.values()),
        every_fold=True,
    )


def _two_stages(preset: PresetName, base: Config) -> StudyTable:
    return StudyTable(
        title="Graph reasoning and pretraining (Table 3)",
        rows=(
            Row(
                title="neither: stage 1 alone, without contrast",
                settings=("network.method=feature_clustering", *one_stage(base)),
                paper=(0.965, 0.959),
            ),
            Row(
                title="reasoning without pretraining",
                settings=("phase1.epochs=0", f"phase2.epochs={_epochs(base)}", *_rates("phase2", base)),
                paper=(0.973, 0.965),
            ),
            Row(title="both", paper=(0.977, 0.973)),
        ),
    )


def _classifiers(preset: PresetName, base: Config) -> StudyTable:
    return StudyTable(
        title="Classifier 1 (Table 4)",
        rows=(
            Row(title="dot product", settings=("network.classifier=dot",), paper=(0.971, 0.963)),
            Row(title="cosine", paper=(0.977, 0.973)),
        ),
    )


def _widths(preset: PresetName, base: Config) -> StudyTable:
    return StudyTable(
        title="Width of the label features d (Table 5)",
        axis="d",
        logarithmic=True,
        rows=tuple(
            Row(
                title=f"d = {d}",
                settings=(f"network.feature_width={d}",),
                x=d,
                paper=OF_WIDTHS[d] if preset == "full" else None,  # d of another trunk
            )
            for d in (OF_WIDTHS if preset == "full" else NARROW)
        ),
    )


def _alphas(preset: PresetName, base: Config) -> StudyTable:
    return StudyTable(
        title="Weight of the contrast alpha (Table 6)",
        axis="alpha",
        rows=tuple(
            Row(title=f"alpha = {alpha}", settings=(f"loss.contrast={alpha}",), x=alpha, paper=paper)
            for alpha, paper in OF_ALPHAS.items()
        ),
    )


def _batches(preset: PresetName, base: Config) -> StudyTable:
    return StudyTable(
        title="Patches in a batch of phase 2, from the same phase-1 weights (Table 7)",
        axis="B",
        logarithmic=True,
        rows=tuple(
            Row(
                title=f"B = {size}",
                settings=("phase1.epochs=0", f"phase2.batch={size}"),
                x=size,
                paper=paper,
                from_phase1=True,
            )
            for size, paper in OF_BATCHES.items()
        ),
        # phase 1 is another one on another number of devices, by their batch normalisation
        settings=(f"devices={math.gcd(base.devices, *OF_BATCHES)}",),
    )


def _methods_on_steel(preset: PresetName, base: Config) -> StudyTable:
    return StudyTable(
        title="Methods on another data set (Table 9), by whole images",
        windows=STEEL,
        columns=("image",),
        rows=tuple(_method(row, preset, base, (row.steel[0], row.steel[3])) for row in METHODS.values()),
        every_fold=True,
    )


def _relations(preset: PresetName, base: Config) -> StudyTable:
    return StudyTable(
        title="What patches relate to, trained and evaluated",
        rows=(
            Row(title="trained on mixed batches (the paper)"),
            Row(title="trained by screen (as served)", settings=("relations=screen",)),
            Row(
                title="by screen, cosine relations",
                settings=("relations=screen", "network.relation_similarity=cosine"),
            ),
            Row(
                title="by screen, features of unit length",
                settings=("relations=screen", "network.reasoned_features=unit"),
            ),
            Row(title="trained on nothing but the patch itself", settings=("network.relate_to=itself",)),
            Row(
                title="no reasoning at all: stage 1 with contrast",
                settings=(
                    "network.method=feature_clustering",
                    *one_stage(base, f"loss.contrast={base.loss.contrast}"),
                ),
            ),
        ),
        columns=("screen", "batch:32", "single"),
    )


def _left_open(preset: PresetName, base: Config) -> StudyTable:
    return StudyTable(
        title="What the paper leaves open",
        rows=(
            Row(title="as it is here"),
            Row(title="a bare cosine", settings=("network.cosine_scale=1", "network.learn_scale=false")),
            Row(title="scaled cosines in Eq. 6", settings=("network.relation_scores=scaled",)),
            Row(title="edges in both directions", settings=("network.symmetric=true",)),
            Row(title="a leaky ReLU in Eq. 7", settings=("network.relation_activation=leaky_relu",)),
            Row(title="nodes of unit length", settings=("network.normalise_nodes=true",)),
            Row(title="classifier 2 begins as classifier 1", settings=("network.scores_from=classifier1",)),
            Row(title="features of unit length in stage 2", settings=("network.reasoned_features=unit",)),
        ),
    )


def _variants(preset: PresetName, base: Config) -> StudyTable:
    attention, taught = TAUGHT[:1], TAUGHT
    return StudyTable(
        title="Beyond the paper",
        rows=(
            Row(title="as in the paper"),
            Row(title="attention by each label's map", settings=attention),
            Row(title="attention and map loss", settings=taught),
            Row(title="map loss, by screen", settings=(*taught, "relations=screen")),
            Row(title=BEST, settings=BETTER),
            Row(
                title="map loss, contrast 0.1, no reasoning",
                settings=("network.method=feature_clustering", *taught, *one_stage(base, "loss.contrast=0.1")),
            ),
            Row(title=f"{BEST}, classifier 2 as classifier 1", settings=(*BETTER, "network.scores_from=classifier1")),
            # what the loss on the maps is worth without anything of the paper's:
            # a linear layer on each label's pooled map
            Row(
                title="map loss, plain: a linear classifier alone",
                settings=(
                    *("network.method=feature_clustering", "network.classifier=dot"),
                    *(*taught, *one_stage(base)),
                ),
            ),
            Row(title="map loss, asymmetric", settings=(*taught, "loss.negative_focus=2.0")),
            Row(
                title="map loss, by screen, cosine relations",
                settings=(*taught, "relations=screen", "network.relation_similarity=cosine"),
            ),
            Row(
                title="map loss, by screen, cosine relations, scaled scores",
                settings=(
                    *(*taught, "relations=screen", "network.relation_similarity=cosine"),
                    "network.relation_scores=scaled",
                ),
            ),
            Row(title="map loss, bank of 64", settings=(*taught, "network.relate_to=bank")),
            Row(title="asymmetric", settings=("loss.negative_focus=2.0",)),
            Row(title="bank of 64 in place of the batch", settings=("network.relate_to=bank",)),
        ),
    )


def _maps(preset: PresetName, base: Config) -> StudyTable:
    return StudyTable(
        title="Where activation maps point (Fig. 7)",
        rows=(
            *(_method(METHODS[method], preset, base) for method in POINTING),
            Row(title=BEST, settings=BETTER),
        ),
        every_fold=True,
        columns=STAGES,
        figures=POINTS,
    )


def _method(row: PaperMethod, preset: PresetName, base: Config, paper: tuple[float, float] | None = None) -> Row:
    light = preset == "cpu" and row.chooses_trunk
    settings: tuple[str, ...] = (f"network.method={row.method}",)
    if not light:
        settings += (f"network.trunk={row.trunk}",)
    if row.method != "two_stage":
        settings += one_stage(base)
    if preset == "cpu":
        settings += OWN_RATES.get(row.method, ())
    heavy = preset == "cpu" and row.trunk in HEAVY
    title = "plain trunk, in the place of ResNet-50" if light and row.method == "plain" else row.title
    return Row(title=title, settings=settings + A_FEW_STEPS * heavy, paper=paper, heavy=heavy)


TABLES: dict[str, Callable[[PresetName, Config], StudyTable]] = {
    "2": _methods,
    "3": _two_stages,
    "4": _classifiers,
    "5": _widths,
    "6": _alphas,
    "7": _batches,
    "9": _methods_on_steel,
    "relations": _relations,
    "open": _left_open,
    "variants": _variants,
    "maps": _maps,
}
