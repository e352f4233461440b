"""The release gate: may this bundle decide over screens here?

A sealed set of screens goes through the inspector, as it would on the line. Whole verdicts, not tensors, must be those
that follow from the training module's own probabilities and maps, which the export wrote beside the set. What passes
leaves its record in the bundle, see `service.released`, which is asked for before a bundle is activated.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from engine import (
    Backend,
    Manifest,
    ParityError,
    bundle_sha256,
    check_finite,
    measure_slots,
    runs_as,
    seen_whole,
    slot_patches,
)
from service.agreement import Comparison
from service.files import inspect_files, inspector_of
from service.inspector import Inspection
from service.module_verdict import beside_module
from service.problems import Problem
from service.released import Count, Device, Release, Tally, keep
from service.sealed import SEALED_FILE, ReleaseError, Sealed, defective, read_sealed
from service.serving import Loaded, load_bundle, naming
from service.settings import Settings
from service.verdict import Outcome


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
    compared: dict[str, Comparison] = {}
    verdicts: dict[str, Outcome] = {}
    for name, inspection in _inspect(loaded, golden, names, settings):
        verdicts[name] = _verdict_of(inspection)
        compared[name] = beside_module(
            inspection,
            sealed.screens[name],
            maps[name],
            manifest,
            tolerance=loaded.golden.tolerance,
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
        different=[name for name, found in compared.items() if found.agreement == "different"],
        rounded=[name for name, found in compared.items() if found.agreement == "rounded"],
        why={name: found.why for name, found in compared.items() if found.why},
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
    for name in found.rounded:
        yield f"rounded: {name}", found.why.get(name, "")
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
