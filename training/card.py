"""MODEL_CARD.md: what a bundle is, what it learnt from, how well, and what was measured with it afterwards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine import Manifest
from training.architecture import NetworkConfig
from training.config import Config
from training.evaluation import Report
from training.network import Network, parameter_table

CARD_FILE = "MODEL_CARD.md"
MEASURED = "## Measured on "


def model_card(
    manifest: Manifest,
    config: Config,
    network: Network,
    measured: Mapping[str, Report],
    *,
    notes: str,
    revision: str | None = None,
) -> str:
    """MODEL_CARD.md: what the bundle is, what it learnt from and how well."""
    lines = [
        f"# {manifest.name} {manifest.version}",
        "",
        f"{_what(config.network)}, trunk `{config.network.trunk}`, patches of {manifest.patch_px} px.",
        "",
    ]
    if notes:
        lines += [notes.strip(), ""]
    lines += ["## Parameters", "", "| part | parameters |", "| --- | --- |"]
    table = parameter_table(network)
    lines += [f"| {name} | {count:,} |" for name, count in [*table, ("sum", sum(c for _, c in table))]]
    for part, found in measured.items():
        lines += ["", f"## Patches of the {part} part ({found.patches})", ""]
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
    lines += ["", "## Review bands", "", "| label | low | high |", "| --- | --- | --- |"]
    lines += [
        f"| {label} | {limit.review[0]:.3f} | {limit.review[1]:.3f} |" for label, limit in manifest.labels.items()
    ]
    by = "" if revision is None else f", revision `{revision}`"
    lines += ["", "## Data and configuration", "", f"Data id `{manifest.data_id}`, seed {config.seed}{by}.", ""]
    if config.start is not None:
        sha256 = hashlib.sha256(config.start.read_bytes()).hexdigest()
        lines += [f"Begun with the weights `{config.start.name}`, SHA-256 `{sha256}`.", ""]
    folders: dict[str, Any] = {section: {"folders"} for section in ("data", "phase1", "phase2")}
    shown = config.model_dump_json(indent=2, exclude={"run": True, "start": True, **folders})
    return "\n".join([*lines, "```json", shown, "```", ""])


def _what(network: NetworkConfig) -> str:
    if network.method == "two_stage":
        return f"Two-stage multi-label network (Zhou et al. 2023), {network.pooling} pooling"
    return f"`{network.method}`, a method to compare with the two-stage network"


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
        ValueError: `on` is empty or of several lines, or a file is not what it should be.
    """
    if not on.strip() or len(on.splitlines()) != 1:
        raise ValueError("say in one line what screens were measured")
    manifest = Manifest.read(bundle)
    try:
        section = list(_figures(json.loads(evaluation.read_text()), json.loads(judgement.read_text())))
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{evaluation} and {judgement} are not what `evaluate` and `judge` write: {error!r}"
        ) from error
    card = bundle / CARD_FILE
    kept = _without(card.read_text(), MEASURED + on)
    card.write_text(kept.rstrip() + "\n\n" + "\n".join([MEASURED + on, "", *section, ""]))
    manifest.sign(bundle)


def _without(card: str, heading: str) -> str:
    """The card without the section of this heading."""
    before, found, after = card.partition(heading + "\n")
    following = after.find("\n## ")
    return before + (after[following + 1 :] if found and following >= 0 else "")


def _figures(evaluation: dict[str, Any], judgement: dict[str, Any]) -> Iterator[str]:
    yield f"Patches ({evaluation['patches']}), with 95 % intervals (Wilson 1927):"
    yield ""
    yield "| label | precision | recall | F | patches with it |"
    yield "| --- | --- | --- | --- | --- |"
    for label, r in evaluation["per_label"].items():
        precision, recall = (f"{r[key]:.3f} ({_span(r[key + '_interval'])})" for key in ("precision", "recall"))
        yield f"| {label} | {precision} | {recall} | {r['f_measure']:.3f} | {r['positives']} |"
    macro = " | ".join(f"{evaluation[key]:.3f}" for key in ("precision", "recall", "f_measure"))
    yield f"| macro | {macro} | |"
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
