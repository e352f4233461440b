"""The release gate: may this bundle decide over screens here?

A sealed set of screens goes through the inspector, as it would on the line. Whole verdicts, not tensors, must be those
that follow from the training module's own probabilities, which the export wrote beside the set. What passes leaves
`release.json` in the bundle; `require_release` asks for it before a bundle is activated.
"""

import csv
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.progress import track

from engine import (
    RELEASE_FILE,
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
from service.errors import ReleaseMissing
from service.files import inspect_files, inspector
from service.inspector import Inspection
from service.problems import Problem
from service.selftest import SelfTestReport
from service.serving import load_bundle
from service.settings import Settings
from service.verdict import Outcome

SEALED_FILE = "sealed.json"


class ReleaseError(Exception):
    """The gate cannot be run: the sealed set is not whole, or is another bundle's."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SealedScreen(_Strict):
    """One screen of the set: its file's hash, the windows (top, left), and the module's probabilities (K, C)."""

    sha256: str
    windows: list[tuple[int, int]]
    probability: list[list[float]]


class Sealed(_Strict):
    """`sealed.json`, written by `python -m training export --golden DIR`."""

    name: str
    version: str
    labels: list[str]
    screens: dict[str, SealedScreen]


class Count(_Strict):
    """`count` of `of` screens."""

    count: int
    of: int


class Tally(_Strict):
    """Whole screens against the truth: `escape`, defective ones that passed; `overkill`, clean ones that failed."""

    escape: Count
    overkill: Count


class Release(_Strict):
    """What the gate found; as `release.json` in the bundle, the record of it.

    Attributes:
        manifest_sha256: of the bundle's manifest, which holds the hashes of all else.
        sealed_sha256: of the sealed set's file, which holds the hashes of the screens.
        released_at: when.
        runs_as: as what it ran: runtime, precision, batch and versions, and on a GPU on which and by which plan.
        screens: how many were inspected.
        different: those whose verdict is not the one that follows from the module's probabilities.
        slot_spread: by label, how far the same patch's score moves with its slot in the batch.
        guard: by label, how far it may: the guard band that verdicts are given with.
        finite: whether black, white, noisy and saturated patches gave finite features and probabilities.
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
    slot_spread: dict[str, float]
    guard: dict[str, float]
    finite: bool
    tally: Tally
    active: str
    active_sha256: str
    active_tally: Tally

    @property
    def refusals(self) -> list[str]:
        """Why the bundle may not be released; empty when it may."""
        # what is no number is not within the guard band either
        moved = {label: s for label, s in self.slot_spread.items() if not s <= self.guard.get(label, 0.0)}
        checks = {
            f"the verdict differs from the module's on {', '.join(self.different)}": bool(self.different),
            f"a score moves with the slot of its patch, beyond the guard band: {moved}": bool(moved),
            "a probability on extreme patches is not finite": not self.finite,
        }
        for name in ("escape", "overkill"):
            new, old = getattr(self.tally, name), getattr(self.active_tally, name)
            checks[f"{name} {new.count} of {new.of} is worse than the {old.count} of {self.active}"] = (
                new.count > old.count
            )
        return [reason for reason, refused in checks.items() if refused]


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
    active_sha256 = bundle_sha256(active)
    sealed = _read_sealed(golden, manifest)
    bad = _defective(golden, {Path(name).stem for name in sealed.screens})
    devices = _examine_devices(bundle, settings)
    different: list[str] = []
    verdicts: dict[str, Outcome] = {}
    for name, inspection in _inspect(bundle, golden, list(sealed.screens), settings):
        assert inspection.verdict is not None
        verdicts[name] = inspection.verdict.verdict
        if not _as_the_module_says(inspection, sealed.screens[name], manifest, devices.guard):
            different.append(name)
    tally = old = _tally(verdicts, bad)
    if active.resolve() != bundle.resolve():
        old = _tally(dict(_verdicts(active, golden, list(sealed.screens), settings)), bad)
    release = Release(
        manifest_sha256=digest,
        sealed_sha256=hashlib.sha256((golden / SEALED_FILE).read_bytes()).hexdigest(),
        released_at=datetime.now(UTC),
        runs_as=devices.runs_as,
        screens=len(verdicts),
        different=different,
        slot_spread=devices.slot_spread,
        guard=devices.guard,
        finite=devices.finite,
        tally=tally,
        active=_describe(active),
        active_sha256=active_sha256,
        active_tally=old,
    )
    if bundle_sha256(bundle) != digest:
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
    yield "scores by slot", f"differ by at most {max(found.slot_spread.values(), default=0.0):.1e}"
    yield "extreme patches", "finite" if found.finite else "not finite"
    yield "escape", share("escape")
    yield "overkill", share("overkill")


class _Devices(NamedTuple):
    """What was found on the devices themselves."""

    runs_as: RunsAs
    guard: dict[str, float]
    slot_spread: dict[str, float]
    finite: bool


def _examine_devices(bundle: Path, settings: Settings) -> _Devices:
    """What is worst on any of the devices."""
    with closing(load_bundle(bundle, settings)) as loaded:
        try:
            for backend in loaded.backends:
                check_finite(backend)
            finite = True
        except ParityError:  # a finding, which the record tells
            finite = False
        patches = slot_patches(loaded.golden.pixels)
        spreads = [measure_slots(backend, patches).probability for backend in loaded.backends]
        guards = [backend.guard for backend in loaded.backends]
        return _Devices(
            runs_as=runs_as(loaded.backends),
            guard={label: min(guard[label] for guard in guards) for label in guards[0]},
            slot_spread={label: float(np.max([spread[label] for spread in spreads])) for label in spreads[0]},
            finite=finite,
        )


def _read_sealed(golden: Path, manifest: Manifest) -> Sealed:
    try:
        sealed = Sealed.model_validate_json((golden / SEALED_FILE).read_bytes())
    except OSError as error:
        raise ReleaseError(f"{golden / SEALED_FILE} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ReleaseError(f"{golden / SEALED_FILE}: {error.errors()[0]['msg']}") from error
    if (sealed.name, sealed.version, tuple(sealed.labels)) != (manifest.name, manifest.version, manifest.label_names):
        raise ReleaseError(
            f"{golden} was sealed for {sealed.name} {sealed.version}, this bundle is {manifest.name} {manifest.version}"
        )
    if not sealed.screens:
        raise ReleaseError(f"{golden / SEALED_FILE} holds no screen")
    for name, screen in sealed.screens.items():
        path = golden / "screens" / name
        if Path(name).name != name or not path.is_file():
            raise ReleaseError(f"{golden} lacks the screen {name!r}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != screen.sha256:
            raise ReleaseError(f"{path} is not the file that was sealed")
    return sealed


def _defective(golden: Path, screens: set[str]) -> set[str]:
    """Names, without suffix, of those of the screens that boxes.csv knows a defect of.

    Raises:
        ReleaseError: it cannot be read, names a screen that is not in the set, or leaves the set without a defective
            or without a clean screen: then no escape, or no overkill, could be seen.
    """
    boxes = golden / "boxes.csv"
    try:
        with boxes.open(newline="") as file:
            bad = {row["screen"] for row in csv.DictReader(file)}
    except (OSError, KeyError) as error:
        raise ReleaseError(f"{boxes} cannot be read: without it nothing is known of escapes") from error
    if strangers := bad - screens:
        raise ReleaseError(f"{boxes} names the screen {min(strangers)!r}, which is not in the sealed set")
    if not bad:
        raise ReleaseError(f"{golden} holds no defective screen: no escape could be seen")
    if bad == screens:
        raise ReleaseError(f"{golden} holds no clean screen: no overkill could be seen")
    return bad


def _inspect(bundle: Path, golden: Path, names: Sequence[str], settings: Settings) -> Iterator[tuple[str, Inspection]]:
    paths = [golden / "screens" / name for name in names]
    with inspector(settings.model_copy(update={"bundle": bundle})) as inspects:
        results = inspect_files(inspects, paths, raw_size=None)
        shown = track(results, f"inspect by {bundle.name}", total=len(names), console=Console(stderr=True))
        for name, result in zip(names, shown, strict=True):
            if isinstance(result.outcome, Problem):
                raise ReleaseError(f"{name} cannot be inspected: {result.outcome.code}: {result.outcome.detail}")
            yield name, result.outcome


def _as_the_module_says(
    inspection: Inspection, sealed: SealedScreen, manifest: Manifest, guard: dict[str, float]
) -> bool:
    """Whether verdict, reasons and present labels are those of the module's probabilities, judged by the same rules."""
    found = inspection.verdict
    assert found is not None
    pixels = inspection.frame.pixels
    windows: tuple[Window, ...] = cover(*pixels.shape, patch_px=manifest.patch_px, overlap_px=manifest.overlap_px)
    probability = np.array(sealed.probability, np.float32)
    form = (len(windows), len(manifest.labels))
    if [(window.top, window.left) for window in windows] != sealed.windows or probability.shape != form:
        return False
    seen = Observed(
        frame=pixels,
        size_from=inspection.frame.size_from,
        expected=windows,
        windows=windows,
        probability=probability,
        activation=np.zeros((*form, 1, 1), np.float32),
        self_test=SelfTestReport(ok=True, age_s=0.0, difference=0.0, detail=""),
    )
    wanted = aggregate(seen, manifest, guard)
    present = {label: result.present for label, result in found.labels.items()}
    return (found.verdict, found.reasons, present) == (
        wanted.verdict,
        wanted.reasons,
        {label: result.present for label, result in wanted.labels.items()},
    )


def _verdicts(bundle: Path, golden: Path, names: Sequence[str], settings: Settings) -> Iterator[tuple[str, Outcome]]:
    for name, inspection in _inspect(bundle, golden, names, settings):
        assert inspection.verdict is not None
        yield name, inspection.verdict.verdict


def _tally(verdicts: dict[str, Outcome], bad: set[str]) -> Tally:
    defective = [verdict for name, verdict in verdicts.items() if Path(name).stem in bad]
    clean = [verdict for name, verdict in verdicts.items() if Path(name).stem not in bad]
    return Tally(
        escape=Count(count=defective.count("pass"), of=len(defective)),
        overkill=Count(count=clean.count("fail"), of=len(clean)),
    )


def _describe(bundle: Path) -> str:
    manifest = Manifest.read(bundle)
    return f"{manifest.name} {manifest.version}"
