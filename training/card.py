"""MODEL_CARD.md: what a bundle is, what it learnt from, how well, and what was measured with it afterwards."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine import Manifest
from training.architecture import NetworkConfig
from training.calibration import Calibration
from training.config import Config
from training.evaluation import Report
from training.intervals import Interval, span
from training.judging import model_of
from training.network import Network, parameter_table
from training.temperature import Sureness

CARD_FILE = "MODEL_CARD.md"
MEASURED = "## Measured on "
BANDS = "## Review bands"
THRESHOLDS = "## Thresholds"


def model_card(
    manifest: Manifest,
    config: Config,
    network: Network,
    measured: Mapping[str, Report],
    calibration: Calibration,
    sureness: Mapping[str, Sureness],
    *,
    notes: str,
    revision: str | None = None,
    start_sha256: str | None = None,
) -> str:
    """MODEL_CARD.md: what the bundle is, what it learnt from and how well."""
    lines = [
        f"# {manifest.name} {manifest.version}",
        "",
        f"{_what(config.network)}, trunk `{config.network.trunk_name}`, patches of {manifest.patch_px} px.",
        "",
    ]
    if notes:
        lines += [notes.strip(), ""]
    lines += ["## Parameters", "", "| part | parameters |", "| --- | --- |"]
    table = parameter_table(network)
    lines += [f"| {name} | {count:,} |" for name, count in [*table, ("sum", sum(c for _, c in table))]]
    for part, found in measured.items():
        lines += ["", f"## Patches of the {part} part ({found.patches})", ""]
        lines += ["The thresholds were chosen on them too.", ""] if part == "validation" else []
        lines += [
            "| label | threshold | precision | recall | F | patches with it |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {label} | {manifest.labels[label].threshold:.3f} | {r.precision:.3f} | {r.recall:.3f} "
            f"| {r.f_measure:.3f} | {r.positives} |"
            for label, r in found.per_label.items()
        ]
        lines += [f"| macro | | {found.precision:.3f} | {found.recall:.3f} | {found.f_measure:.3f} | |"]
    lines += ["", "## Probabilities", "", *_probabilities(sureness)]
    lines += ["", BANDS, "", *_bands(calibration)]
    by = "" if revision is None else f", revision `{revision}`"
    lines += ["", "## Data and configuration", "", f"Data id `{manifest.data_id}`, seed {config.seed}{by}.", ""]
    if config.start is not None:
        sha256 = "" if start_sha256 is None else f", SHA-256 `{start_sha256}`"
        lines += [f"Begun with the weights `{config.start.name}`{sha256}.", ""]
    folders: dict[str, Any] = {section: {"folders"} for section in ("data", "phase1", "phase2")}
    shown = config.model_dump_json(indent=2, exclude={"run": True, "start": True, **folders})
    return "\n".join([*lines, "```json", shown, "```", ""])


def _what(network: NetworkConfig) -> str:
    if network.method == "two_stage":
        return f"Two-stage multi-label network (Zhou et al. 2023), {network.pooling} pooling"
    return f"`{network.method}`, a method to compare with the two-stage network"


def recalibrated_card(card: str, manifest: Manifest, calibration: Calibration, *, before: Manifest) -> str:
    """The card of a bundle with the graphs of another one and other limits.

    Figures of screens that were measured with the limits before are left out; those of the training and of other
    precisions stay, by theirs, and the card says so.

    Args:
        card: of the bundle before.
        manifest: of the new one.
        calibration: its limits.
        before: manifest of the bundle before.
    """
    origin = (
        f"Version {manifest.limits_version} of the limits, for the graphs of {before.name} {before.version}. The "
        "tables of patches above, and verdicts and F of precisions beside float32, are by the limits that it was "
        "exported with."
    )
    card = card_without(card, THRESHOLDS)
    return card_with(card, manifest, BANDS, [origin, "", *_bands(calibration), ""])


def _probabilities(sureness: Mapping[str, Sureness]) -> Iterator[str]:
    yield "Scores are divided by a temperature, which is in the weights; 1 where none was better on patches that it was"
    yield "not fitted on. Before and after, on such patches:"
    yield ""
    yield "| label | temperature | expected calibration error | log loss |"
    yield "| --- | --- | --- | --- |"
    for label, one in sureness.items():
        errors, losses = (one.error_before, one.error_after), (one.loss_before, one.loss_after)
        cells = (f"{before:.5f}, {after:.5f}" for before, after in (errors, losses))
        yield f"| {label} | {one.temperature:.3f} | {' | '.join(cells)} |"


def _bands(calibration: Calibration) -> Iterator[str]:
    found, costs, intervals = calibration.tally, calibration.costs, calibration.intervals
    yield f"Chosen at the least cost on {found.defective} defective and {found.clean} clean screens. Costs of a screen:"
    yield f"{costs}."
    yield from (f"**{said[0].upper()}{said[1:]}.**" for said in calibration.warnings())
    yield ""
    yield "| label | low | high |" + (" spread of low | of high |" if intervals else "") + " escaped | escaped, alone |"
    yield "| --- | --- | --- | --- | --- |" + (" --- | --- |" if intervals else "")
    for number, (label, limit) in enumerate(calibration.limits.items()):
        spans = [] if intervals is None else [intervals.lows[number], intervals.highs[number]]
        cells = [f"{value:.3f}" for value in limit.review] + [span(one, "-") for one in spans]
        escapes = calibration.by_label[label]
        cells += [f"{n} of {of} ({low:.1%}-{high:.1%})" for n, of, _, low, high in (escapes.escape, escapes.alone)]
        yield f"| {label} | {' | '.join(cells)} |"
    yield ""
    if intervals:
        yield "The spread holds 2.5 to 97.5 % of the limits that draws of the screens give: no interval of confidence."
    yield "Escaped: of the screens with the label, and of those with no other, each left out of the choice; with 95 %"
    yield "intervals (Wilson 1927)."
    yield ""
    yield "| of screens | chosen on | left out of them (95 %) |"
    yield "| --- | --- | --- |"
    for name, value, other in (
        ("escape", found.escape, intervals and intervals.escape),
        ("overkill", found.overkill, intervals and intervals.overkill),
        ("review", found.review(costs), intervals and intervals.review),
    ):
        yield f"| {name} | {value:.1%} | {_percent(other)} |"


def _percent(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.mean:.1%} ({interval.low:.1%}-{interval.high:.1%})"


def add_figures(bundle: Path, *, on: str, evaluation: Path, judgement: Path) -> None:
    """Write what `evaluate` and `judge` measured into a bundle's card; figures of the same screens are replaced.

    The bundle becomes another one by its hash, so this comes before its release.

    Args:
        bundle: folder of the bundle.
        on: what screens they are, one line.
        evaluation: JSON of `evaluate`.
        judgement: JSON of `judge`.

    Raises:
        BundleError: the bundle is not whole.
        ValueError: `on` is empty or of several lines, or a file is not what it should be, or of another bundle.
    """
    if not on.strip() or len(on.splitlines()) != 1:
        raise ValueError("say in one line what screens were measured")
    manifest = Manifest.read(bundle)
    own = model_of(manifest.name, manifest.version, manifest.limits_version)
    try:
        for file in (evaluation, judgement):
            models = json.loads(file.read_text())["models"]
            if models != [own]:
                raise ValueError(f"{file} is of {' and of '.join(models) or 'no model'}, not of {own}")
        section = list(_figures(json.loads(evaluation.read_text()), json.loads(judgement.read_text())))
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{evaluation} and {judgement} are not what `evaluate` and `judge` write: {error!r}"
        ) from error
    card = bundle / CARD_FILE
    kept = card_without(card.read_text(), MEASURED + on)
    card.write_text(kept.rstrip() + "\n\n" + "\n".join([MEASURED + on, "", *section, ""]))
    manifest.sign(bundle)


def card_with(card: str, manifest: Manifest, heading: str, section: Sequence[str]) -> str:
    """The card of a bundle with another look at its windows, told in a section; what was measured before is left out.

    Args:
        card: of the bundle before.
        manifest: of the new one.
        heading: of the section, whose earlier text goes.
        section: its lines.
    """
    for old in [heading, *(line for line in card.splitlines() if line.startswith(MEASURED))]:
        card = card_without(card, old)
    _, _, rest = card.partition("\n")
    return f"# {manifest.name} {manifest.version}\n" + rest.rstrip() + "\n\n" + "\n".join([heading, "", *section])


def card_without(card: str, heading: str) -> str:
    """The card without the section of this heading."""
    before, found, after = card.partition(heading + "\n")
    following = after.find("\n## ")
    return before + (after[following + 1 :] if found and following >= 0 else "")


def _figures(evaluation: dict[str, Any], judgement: dict[str, Any]) -> Iterator[str]:
    yield f"Patches ({evaluation['patches']}), with 95 % intervals (Wilson 1927):"
    yield ""
    yield "| label | precision | recall | F | patches with it | calibration error |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for label, r in evaluation["per_label"].items():
        precision, recall = (f"{r[key]:.3f} ({_span(r[key + '_interval'])})" for key in ("precision", "recall"))
        figures = f"{r['f_measure']:.3f} | {r['positives']} | {r['calibration_error']:.4f}"
        yield f"| {label} | {precision} | {recall} | {figures} |"
    macro = " | ".join(f"{evaluation[key]:.3f}" for key in ("precision", "recall", "f_measure"))
    yield f"| macro | {macro} | | |"
    yield ""
    yield f"Screens ({judgement['screens']}):"
    yield ""
    yield "| of screens | count | share | 95 % interval |"
    yield "| --- | --- | --- | --- |"
    for name, key in (
        ("escape: defective, passed", "escape"),
        ("overkill: clean, failed", "overkill"),
        ("review", "review"),
    ):
        count, of, ratio, low, high = judgement[key]
        yield f"| {name} | {count} of {of} | {ratio:.1%} | {low:.1%}-{high:.1%} |"
    yield ""
    yield "| label | screens with it | escaped | boxes found | false boxes |"
    yield "| --- | --- | --- | --- | --- |"
    for label, r in judgement["labels"].items():
        found, escaped = r["boxes_found"], r["escape"]
        yield f"| {label} | {r['screens_with']} | {escaped[0]} | {found[0]} of {found[1]} | {r['false_boxes']} |"
    bands = sorted(
        {b for r in judgement["labels"].values() for b in r["by_contrast"]}, key=lambda b: float(b.split("-")[0])
    )
    if bands:
        yield ""
        yield "Boxes found and, after it, screens escaped, by contrast in multiples of the local noise:"
        yield ""
        yield f"| label | {' | '.join(bands)} |"
        yield f"| --- |{' --- |' * len(bands)}"
    for label, r in judgement["labels"].items() if bands else ():
        cells = (f"{_of(r['by_contrast'].get(band))}, {_of(r['escape_by_contrast'].get(band))}" for band in bands)
        yield f"| {label} | {' | '.join(cells)} |"


def _span(interval: list[float]) -> str:
    low, high = interval
    return f"{low:.2f}-{high:.2f}"


def _of(share: list[float] | None) -> str:
    return "-" if share is None else f"{share[0]}/{share[1]}"
