"""The release gate: may this bundle decide over screens here?

A sealed set of screens goes through the inspector, as it would on the line. Whole verdicts, not tensors, must be those
that follow from the training module's own probabilities, which the export wrote beside the set. What passes leaves
`release.json` in the bundle; `require_release` asks for it before a bundle is activated.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.progress import track

from engine import (
    RELEASE_FILE,
    Backend,
    Manifest,
    ParityError,
    RunsAs,
    Window,
    bundle_sha256,
    check_finite,
    cover,
    measure_slots,
    runs_as,
    slot_patches,
)
from service.aggregation import Observed, aggregate
from service.brightness import Brightness
from service.errors import ReleaseMissing
from service.files import inspect_files, inspector_of
from service.inspector import Inspection
from service.problems import Problem
from service.sealed import SEALED_FILE, ReleaseError, SealedScreen, defective, read_sealed
from service.selftest import SelfTestReport
from service.serving import Loaded, load_bundle, naming
from service.settings import Settings
from service.verdict import Outcome


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Count(_Strict):
    """`count` of `of` screens."""

    count: int
    of: int


class Tally(_Strict):
    """Whole screens against the truth: `escape`, defective ones that passed; `overkill`, clean ones that failed."""

    escape: Count
    overkill: Count


class Device(_Strict):
    """What was found on one device.

    Attributes:
        slot_spread: by label, how far the same patch's score moves with its slot in the batch.
        guard: by label, how far it may: the guard band that this device's verdicts are given with.
        finite: whether black, white, noisy and saturated patches gave finite features and probabilities.
    """

    slot_spread: dict[str, float]
    guard: dict[str, float]
    finite: bool

    def refusals(self, tolerance: float) -> Iterator[str]:
        """Why the bundle may not be released on it, where no score may move by more than `tolerance`."""
        spreads = [(label, spread, self.guard.get(label, 0.0)) for label, spread in self.slot_spread.items()]
        # written so that what is no number is within nothing
        if moved := [f"{label} by {spread:.2g}" for label, spread, guard in spreads if not spread <= guard]:
            yield f"a score moves with the slot of its patch, beyond the guard band: {', '.join(moved)}"
        # a plan's guard band is its spread: without a limit, one that moves all scores would send all screens to review
        if wide := [
            f"{label} by {spread:.2g} (guard band {guard:.2g})"
            for label, spread, guard in spreads
            if not (spread <= tolerance and guard <= tolerance)
        ]:
            limit = f"the {tolerance:g} that the bundle's parity tolerance allows"
            yield f"a score moves with the slot of its patch by more than {limit}: {', '.join(wide)}"
        if not self.finite:
            yield "a probability on extreme patches is not finite"


class Release(_Strict):
    """What the gate found; as `release.json` in the bundle, the record of it.

    Attributes:
        manifest_sha256: of the bundle's manifest, which holds the hashes of all else.
        sealed_sha256: of the sealed set's file, which holds the hashes of the screens.
        released_at: when.
        runs_as: as what it ran: runtime, precision, batch and versions, and on a GPU on which and by which plan.
        screens: how many were inspected.
        different: those whose verdict is not the one that follows from the module's probabilities.
        tolerance: the bundle's parity tolerance in this precision, beyond which no score may move with its slot.
        devices: what was found on each.
        tally: of this bundle on the set.
        active: name and version of the bundle that it is to replace.
        active_sha256: of that bundle's manifest.
        active_tally: of that bundle on the same set.
    """

    manifest_sha256: str
    sealed_sha256: str
    released_at: datetime
    runs_as: RunsAs
    screens: int
    different: list[str]
    tolerance: float
    devices: list[Device]
    tally: Tally
    active: str
    active_sha256: str
    active_tally: Tally

    @property
    def refusals(self) -> list[str]:
        """Why the bundle may not be released; empty when it may."""
        found = [f"the verdict differs from the module's on {', '.join(self.different)}"] if self.different else []
        for number, device in enumerate(self.devices):
            found += [f"device {number}: {refusal}" for refusal in device.refusals(self.tolerance)]
        for name in ("escape", "overkill"):
            new, old = getattr(self.tally, name), getattr(self.active_tally, name)
            if new.count > old.count:
                found.append(f"{name} {new.count} of {new.of} is worse than the {old.count} of {self.active}")
        return found


def run(bundle: Path, golden: Path, *, active: Path, settings: Settings) -> Release:
    """Put a bundle through the gate, and leave or take away its record.

    Args:
        bundle: to be released.
        golden: the sealed set: a folder in the data form, with `sealed.json` of this bundle.
        active: the bundle that it is to replace.
        settings: runtime, precision, batch, threads and frame size of the line.

    Raises:
        ReleaseError: the set is not whole, or not this bundle's, or another bundle took its place meanwhile.
        EngineError: a bundle must not be served, or not here.
    """
    record = bundle / RELEASE_FILE
    record.unlink(missing_ok=True)  # whatever happens now, what stands there is no longer the last word
    digest = bundle_sha256(bundle)
    manifest = Manifest.read(bundle)
    sealed = read_sealed(golden, manifest)
    names = list(sealed.screens)
    bad = defective(golden, {Path(name).stem for name in names})
    loaded, devices = _load_and_examine(bundle, settings)
    different: list[str] = []
    verdicts: dict[str, Outcome] = {}
    for name, inspection in _inspect(loaded, golden, names, settings):
        verdicts[name] = _verdict_of(inspection)
        if not _as_the_module_says(inspection, sealed.screens[name], manifest):
            different.append(name)
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
        different=different,
        tolerance=loaded.golden.tolerance,
        devices=devices,
        tally=tally,
        active=_model_of(beside),
        active_sha256=beside.digest,
        active_tally=active_tally,
    )
    if {loaded.digest, bundle_sha256(bundle)} != {digest}:
        raise ReleaseError(f"{bundle} was replaced while it was in the gate")
    if not release.refusals:
        record.write_text(release.model_dump_json(indent=2) + "\n")
    return release


def require_release(bundle: Path, /, runs: RunsAs, *, digest: str, active: str | None) -> None:
    """Refuse a bundle that has not passed the gate as it will run, against the bundle that it is to replace.

    Args:
        bundle: its folder, where its record lies.
        runs: as what it was loaded; without its plan where it is not loaded yet, of which nothing is asked then.
        digest: of its manifest, as it was loaded.
        active: digest of the bundle in service; None where it does not matter.

    Raises:
        ReleaseMissing: it has no record, or one of other files, of another way to run, or against another bundle.
    """
    try:
        release = Release.model_validate_json((bundle / RELEASE_FILE).read_bytes())
    except OSError as error:
        raise ReleaseMissing("the bundle has not passed the release gate: `python -m service release`") from error
    except ValidationError as error:  # of another form, as before a record named plan and versions
        raise ReleaseMissing(f"{RELEASE_FILE} cannot be read: release the bundle again") from error
    if release.manifest_sha256 != digest:
        raise ReleaseMissing("the release record is of another version of this bundle")
    if (release.runs_as.without_plan() if runs.plan is None else release.runs_as) != runs:
        raise ReleaseMissing(f"the bundle was released for {release.runs_as}, and is to run as {runs}")
    if release.refusals:
        raise ReleaseMissing(f"the release record is a refusal: {release.refusals[0]}")
    if active is not None and release.active_sha256 != active:
        raise ReleaseMissing(
            f"the bundle was held against {release.active}, which is not in service now: release it against what is"
        )


def is_released(bundle: Path, /, runs: RunsAs, *, digest: str, active: str | None) -> bool:
    """Whether `require_release` takes a bundle."""
    try:
        require_release(bundle, runs, digest=digest, active=active)
    except ReleaseMissing:
        return False
    return True


def rows(found: Release) -> Iterator[tuple[str, str]]:
    """The record for people: what was checked, and what was found."""

    def share(name: str) -> str:
        new, old = getattr(found.tally, name), getattr(found.active_tally, name)
        return f"{new.count} of {new.of} ({found.active}: {old.count})"

    yield "runs as", str(found.runs_as)
    yield "verdicts as the module's", f"{found.screens - len(found.different)} of {found.screens}"
    spread = max((s for device in found.devices for s in device.slot_spread.values()), default=0.0)
    yield "scores by slot", f"differ by at most {spread:.1e} (may by {found.tolerance:g})"
    yield "extreme patches", "finite" if all(device.finite for device in found.devices) else "not finite"
    yield "escape", share("escape")
    yield "overkill", share("overkill")


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
        devices = [_examine(backend, patches) for backend in loaded.backends]
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


def _as_the_module_says(inspection: Inspection, sealed: SealedScreen, manifest: Manifest) -> bool:
    """Whether verdict, reasons and present labels are those of the module's probabilities, judged by the same rules.

    The guard band is one of them: that of the device which the screen was on. The windows of a second look are the
    module's own: where its scores and the bundle's differ by a hair, so may the windows that are in doubt.
    """
    found = inspection.verdict
    assert found is not None
    pixels = inspection.frame.pixels
    expected: tuple[Window, ...] = cover(*pixels.shape, patch_px=manifest.patch_px, overlap_px=manifest.overlap_px)
    probability = np.array(sealed.probability, np.float32)
    form = (len(sealed.windows), len(manifest.labels))
    if [(window.top, window.left) for window in expected] != sealed.windows[: len(expected)]:
        return False
    added = tuple(Window(-1, -1, top, left) for top, left in sealed.windows[len(expected) :])  # in no grid
    if len(added) > manifest.second_look.most(len(expected)) or probability.shape != form:
        return False
    seen = Observed(
        brightness=Brightness.of(pixels),
        size_from=inspection.frame.size_from,
        expected=expected,
        windows=expected + added,
        probability=probability,
        activation=np.zeros((*form, 1, 1), np.float32),
        self_test=SelfTestReport(ok=True, age_s=0.0, difference=0.0, detail=""),
    )
    wanted = aggregate(seen, manifest, inspection.guard)
    present = {label: result.present for label, result in found.labels.items()}
    return (found.verdict, found.reasons, present) == (
        wanted.verdict,
        wanted.reasons,
        {label: result.present for label, result in wanted.labels.items()},
    )


def _tally(verdicts: dict[str, Outcome], bad: set[str]) -> Tally:
    defects = [verdict for name, verdict in verdicts.items() if Path(name).stem in bad]
    clean = [verdict for name, verdict in verdicts.items() if Path(name).stem not in bad]
    return Tally(
        escape=Count(count=defects.count("pass"), of=len(defects)),
        overkill=Count(count=clean.count("fail"), of=len(clean)),
    )


def _model_of(loaded: Loaded) -> str:
    manifest = loaded.backends[0].manifest
    return f"{manifest.name} {manifest.version}"
