"""The release gate: may this bundle decide over screens here?

A sealed set of screens goes through the inspector, as it would on the line. Whole verdicts, not tensors, must be those
that follow from the training module's own probabilities and maps, which the export wrote beside the set. What passes
leaves its record in the bundle, see `service.released`, which is asked for before a bundle is activated.
"""

import hashlib
from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from engine import (
    Backend,
    Manifest,
    ParityError,
    TurnedLook,
    Window,
    bundle_sha256,
    check_finite,
    cover,
    measure_slots,
    runs_as,
    seen_whole,
    slot_patches,
)
from service.aggregation import Judgement, Observed, aggregate
from service.agreement import HAIR, Agreement, agree
from service.brightness import Brightness
from service.files import inspect_files, inspector_of
from service.inspector import Inspection
from service.problems import Problem
from service.released import Count, Device, Release, Tally, keep
from service.sealed import SEALED_FILE, ReleaseError, Sealed, SealedScreen, defective, read_sealed
from service.selftest import SelfTestReport
from service.serving import Loaded, load_bundle, naming
from service.settings import Settings
from service.verdict import Outcome

SHIFTED = 0.01  # more than what was looked at by one alone moves the scores of the windows that it is reasoned with


def run(bundle: Path, golden: Path, *, active: Path, settings: Settings) -> Release:
    """Put a bundle through the gate, and leave its record, or take away that of the same runtime and precision.

    A run that comes to no end changes no record.

    Args:
        bundle: to be released.
        golden: the sealed set: a folder in the data form, with `sealed.json` of this bundle.
        active: the bundle that it is to replace.
        settings: runtime, precision, batch, threads and frame size of the line.

    Raises:
        ReleaseError: the set is not whole, or not this bundle's, or another bundle took its place meanwhile.
        EngineError: a bundle must not be served, or not here.
    """
    digest = bundle_sha256(bundle)
    manifest = Manifest.read(bundle)
    sealed = read_sealed(golden, manifest)
    names = list(sealed.screens)
    maps = _maps(sealed, manifest)
    bad = defective(golden, {Path(name).stem for name in names})
    loaded, devices = _load_and_examine(bundle, settings)
    agreements: dict[str, Agreement] = {}
    verdicts: dict[str, Outcome] = {}
    for name, inspection in _inspect(loaded, golden, names, settings):
        verdicts[name] = _verdict_of(inspection)
        agreements[name] = _beside_the_module(
            inspection,
            sealed.screens[name],
            maps[name],
            manifest,
            loaded.golden.tolerance,
            has_defect=Path(name).stem in bad,
        )
    beside, tally = loaded, _tally(verdicts, bad)
    active_tally = tally
    if active.resolve() != bundle.resolve():
        beside = _load(active, settings)
        others = {name: _verdict_of(found) for name, found in _inspect(beside, golden, names, settings)}
        active_tally = _tally(others, bad)
    release = Release(
        manifest_sha256=digest,
        sealed_sha256=hashlib.sha256((golden / SEALED_FILE).read_bytes()).hexdigest(),
        released_at=datetime.now(UTC),
        runs_as=runs_as(loaded.backends),
        screens=len(verdicts),
        different=[name for name, found in agreements.items() if found == "different"],
        rounded=[name for name, found in agreements.items() if found == "rounded"],
        tolerance=loaded.golden.tolerance,
        devices=devices,
        tally=tally,
        active=_model_of(beside),
        active_sha256=beside.digest,
        active_tally=active_tally,
    )
    if {loaded.digest, bundle_sha256(bundle)} != {digest}:
        raise ReleaseError(f"{bundle} was replaced while it was in the gate")
    keep(bundle, release)
    return release


def rows(found: Release) -> Iterator[tuple[str, str]]:
    """The record for people: what was checked, and what was found."""

    def share(name: str) -> str:
        new, old = getattr(found.tally, name), getattr(found.active_tally, name)
        return f"{new.count} of {new.of} ({found.active}: {old.count})"

    yield "runs as", str(found.runs_as)
    same = found.screens - len(found.different) - len(found.rounded)
    yield "verdicts as the module's", f"{same} of {found.screens} ({len(found.rounded)} more with a score at a limit)"
    spread = max((s for device in found.devices for s in device.slot_spread.values()), default=0.0)
    yield "scores by slot", f"differ by at most {spread:.1e} (may by {found.tolerance:g})"
    yield "extreme patches", "finite" if all(device.finite for device in found.devices) else "not finite"
    yield "escape", share("escape")
    yield "overkill", share("overkill")
    yield "clean screens in review", share("review")


def _load(bundle: Path, settings: Settings) -> Loaded:
    """A bundle as a swap loads it: what the gate would build, or make smaller, is not what comes into service."""
    with naming(bundle):
        return load_bundle(bundle, settings, prebuilt=True)


def _load_and_examine(bundle: Path, settings: Settings) -> tuple[Loaded, list[Device]]:
    """A bundle, and what is found on each of its devices, before any inspects."""
    loaded = _load(bundle, settings)
    with ExitStack() as unused:
        unused.callback(loaded.close)
        patches = slot_patches(loaded.golden.pixels)
        with seen_whole(bundle) as whole, ExitStack() as besides:
            # a glance would clear extremes before the network meets them
            examined = loaded if whole == bundle else besides.enter_context(closing(_load(whole, settings)))
            devices = [_examine(backend, patches) for backend in examined.backends]
        unused.pop_all()
    return loaded, devices


def _examine(backend: Backend, patches: NDArray[np.uint8]) -> Device:
    try:
        check_finite(backend)
        finite = True
    except ParityError:  # a finding, which the record tells
        finite = False
    spread = measure_slots(backend, patches).probability
    return Device(slot_spread=spread, guard=dict(backend.guard), finite=finite)


def _inspect(
    loaded: Loaded, golden: Path, names: Sequence[str], settings: Settings
) -> Iterator[tuple[str, Inspection]]:
    """Inspect the set by a bundle, which is closed in the end."""
    paths = [golden / "screens" / name for name in names]
    with inspector_of(loaded, settings) as inspects:
        results = inspect_files(inspects, paths, raw_size=None)
        shown = track(results, f"inspect by {_model_of(loaded)}", total=len(names), console=Console(stderr=True))
        for name, result in zip(names, shown, strict=True):
            if isinstance(result.outcome, Problem):
                raise ReleaseError(f"{name} cannot be inspected: {result.outcome.code}: {result.outcome.detail}")
            yield name, result.outcome


def _verdict_of(inspection: Inspection) -> Outcome:
    assert inspection.verdict is not None  # nothing was answered before
    return inspection.verdict.verdict


def _maps(sealed: Sealed, manifest: Manifest) -> dict[str, NDArray[np.float32]]:
    """The module's maps of each screen, (K, C, h, w).

    Raises:
        ReleaseError: they are not those of its windows.
    """
    maps = {}
    for name, screen in sealed.screens.items():
        try:
            maps[name] = screen.activation(manifest)
        except ValueError as error:
            raise ReleaseError(f"{SEALED_FILE}: {name}: {error}") from error
    return maps


def _beside_the_module(
    inspection: Inspection,
    sealed: SealedScreen,
    activation: NDArray[np.float32],
    manifest: Manifest,
    tolerance: float,
    *,
    has_defect: bool,
) -> Agreement:
    """Whether a verdict is that of the module's probabilities and maps (K, C, h, w), judged by the same rules.

    The guard band is one of them: that of the device which the screen was on. Boxes may differ as rounding moves them,
    see `service.agreement`. The windows of a second look are the module's own, and those that it looked at turned. What
    a glance clears must change neither the verdict nor the labels of a screen that has a defect; of a clean one it may,
    for there it spares the whole network a mistake.
    """
    found = inspection.verdict
    assert found is not None
    pixels = inspection.frame.pixels
    expected: tuple[Window, ...] = cover(*pixels.shape, patch_px=manifest.patch_px, overlap_px=manifest.overlap_px)
    spared = _spared(inspection, sealed, manifest)
    alone = np.array(sealed.probability, np.float32)
    probability = alone.copy()
    for k, scores in spared.items():
        probability[k] = scores
    if [(window.top, window.left) for window in expected] != sealed.windows[: len(expected)]:
        return "different"
    added = tuple(Window(-1, -1, top, left) for top, left in sealed.windows[len(expected) :])  # in no grid
    if len(added) > manifest.second_look.most(len(expected)) or probability.shape != activation.shape[:2]:
        return "different"
    if len(sealed.turned) > manifest.turned_look.most(len(sealed.windows)):
        return "different"
    seen = Observed(
        brightness=Brightness.of(pixels),
        size_from=inspection.frame.size_from,
        expected=expected,
        windows=expected + added,
        windows_turned=len(sealed.turned),
        windows_cleared=int(inspection.cleared.sum()),
        probability=probability,
        activation=activation,
        self_test=SelfTestReport(ok=True, age_s=0.0, difference=0.0, detail=""),
    )
    wanted = aggregate(seen, manifest, inspection.guard)
    if has_defect and _told(aggregate(replace(seen, probability=alone), manifest, inspection.guard)) != _told(wanted):
        return "different"
    mine = _looks(
        [(window.top, window.left) for window in inspection.windows], inspection.turned, inspection.probability
    )
    module = _looks(sealed.windows, sealed.turned, probability)
    cleared = {sealed.windows[k] for k in spared}
    same_looks = _turns(mine, but=cleared) == _turns(module, but=cleared)
    within = tolerance if same_looks else max(tolerance, SHIFTED)
    if not _looks_agree(mine, module, manifest.turned_look, within, but=cleared):
        return "different"
    # what a glance hides from a further look at a defect is no rounding
    alike = same_looks or (has_defect and _hidden(inspection, sealed, manifest))
    return agree(found, wanted, manifest, tolerance=tolerance, same_windows=alike)


def _spared(inspection: Inspection, sealed: SealedScreen, manifest: Manifest) -> dict[int, NDArray[np.float32]]:
    """The windows of the module that a glance cleared, with their scores (C,) here, which must pass.

    The whole network gives such a window a score of its own, and a glance that of any clean one.
    """
    low = manifest.review_low
    looked = zip(inspection.windows, inspection.probability, inspection.cleared, strict=True)
    mine = {(window.top, window.left): scores for window, scores, cleared in looked if cleared}
    return {k: mine[at] for k, at in enumerate(sealed.windows) if at in mine and (mine[at] < low).all()}


def _told(judgement: Judgement) -> tuple[Outcome, dict[str, bool]]:
    """The verdict, and which labels there are."""
    return judgement.verdict, {label: found.present for label, found in judgement.labels.items()}


def _hidden(inspection: Inspection, sealed: SealedScreen, manifest: Manifest) -> bool:
    """Whether the module looked again over a window that a glance cleared, where the service did not look."""
    side = manifest.patch_px
    places = [(window.top, window.left) for window in inspection.windows]
    cleared = [place for place, clear in zip(places, inspection.cleared, strict=True) if clear]
    return any(
        abs(top - other_top) < side and abs(left - other_left) < side
        for top, left in set(sealed.windows) - set(places)
        for other_top, other_left in cleared
    )


class _Look(NamedTuple):
    """Whether a window was looked at turned, and its scores (C,) in the end."""

    turned: bool
    scores: NDArray[np.float32]


_Looks = dict[tuple[int, int], _Look]  # by top and left


def _looks(places: Sequence[tuple[int, int]], turned: Sequence[int], probability: NDArray[np.float32]) -> _Looks:
    return {place: _Look(k in turned, probability[k]) for k, place in enumerate(places)}


def _turns(looks: _Looks, *, but: Set[tuple[int, int]]) -> dict[tuple[int, int], bool]:
    return {place: look.turned for place, look in looks.items() if place not in but}


def _looks_agree(
    mine: _Looks, module: _Looks, look: TurnedLook, tolerance: float, *, but: Set[tuple[int, int]]
) -> bool:
    """Whether the scores of every window that both have seen, but for some, differ by no more than the tolerance.

    One that was looked at turned by one alone has other scores. It may be so where the one that did not look had a
    score as near to a limit of the doubt, or had no such look left.
    """
    for place in (mine.keys() & module.keys()) - but:
        one, other = mine[place], module[place]
        if one.turned == other.turned:
            if not (np.abs(one.scores - other.scores) <= tolerance + HAIR).all():
                return False
            continue
        once, looks = (other, module) if one.turned else (one, mine)
        limits = np.array([[look.score_min], [look.score_max]])
        near = (np.abs(once.scores - limits) <= tolerance + HAIR).any()
        if not near and sum(other.turned for other in looks.values()) < look.most(len(looks)):
            return False
    return True


def _tally(verdicts: dict[str, Outcome], bad: set[str]) -> Tally:
    defects = [verdict for name, verdict in verdicts.items() if Path(name).stem in bad]
    clean = [verdict for name, verdict in verdicts.items() if Path(name).stem not in bad]
    return Tally(
        escape=Count(count=defects.count("pass"), of=len(defects)),
        overkill=Count(count=clean.count("fail"), of=len(clean)),
        review=Count(count=clean.count("review"), of=len(clean)),
    )


def _model_of(loaded: Loaded) -> str:
    manifest = loaded.backends[0].manifest
    return f"{manifest.name} {manifest.version}"
