"""The record of a release: what the gate found of a bundle, and whether it may be believed.

`release.json` in the bundle holds one for each runtime and precision that passed, so that one folder can serve a line
with a GPU and one without. Whoever activates a bundle holds the record against what was really loaded.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from pydantic import Field, ValidationError

from engine import RELEASE_FILE, RunsAs
from service.agreement import too_many
from service.errors import ReleaseMissing
from service.sealed import Strict
from service.serving import Loaded

SCREENS_MOST = 10**9  # a record with more is none
REVIEW_RISE = 0.1  # of the clean screens: so many more than of the active bundle may go to review


class Count(Strict):
    """`count` of `of` screens."""

    count: int = Field(ge=0, le=SCREENS_MOST)
    of: int = Field(ge=0, le=SCREENS_MOST)


class Tally(Strict):
    """Whole screens against the truth.

    Attributes:
        escape: defective ones that passed.
        overkill: clean ones that failed.
        review: clean ones that a person has to look at.
    """

    escape: Count
    overkill: Count
    review: Count


class Device(Strict):
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


class Release(Strict):
    """What the gate found; as `release.json` in the bundle, the record of it.

    Attributes:
        manifest_sha256: of the bundle's manifest, which holds the hashes of all else.
        sealed_sha256: of the sealed set's file, which holds the hashes of the screens.
        released_at: when.
        runs_as: as what it ran: runtime, precision, batch and versions, and on a GPU on which and by which plan.
        screens: how many were inspected.
        different: those whose verdict is not the one that follows from the module's probabilities and maps, or, where a
            glance clears windows of a clean screen, from what stands for them.
        rounded: those whose verdict is not that one either, but has a score so near to a limit that rounding decides.
        why: what tells them apart, by screen of either list; an older record does not tell.
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
    screens: int = Field(ge=0, le=SCREENS_MOST)
    different: list[str]
    rounded: list[str]
    why: dict[str, str] = Field(default_factory=dict)
    tolerance: float
    devices: list[Device]
    tally: Tally
    active: str
    active_sha256: str
    active_tally: Tally

    @property
    def refusals(self) -> list[str]:
        """Why the bundle may not be released; empty when it may."""
        found = []
        if self.different:
            told = [f"{name} ({self.why[name]})" if name in self.why else name for name in self.different]
            found.append(f"the verdict differs from the module's on {', '.join(told)}")
        if too_many(len(self.rounded), self.screens):
            found.append(f"rounding decides the verdict on {len(self.rounded)} of {self.screens} screens")
        for number, device in enumerate(self.devices):
            found += [f"device {number}: {refusal}" for refusal in device.refusals(self.tolerance)]
        for name in ("escape", "overkill"):
            new, old = getattr(self.tally, name), getattr(self.active_tally, name)
            if new.count > old.count:
                found.append(f"{name} {new.count} of {new.of} is worse than the {old.count} of {self.active}")
        new, old = self.tally.review, self.active_tally.review
        if new.count - old.count > REVIEW_RISE * new.of:
            found.append(
                f"{new.count} of {new.of} clean screens go to review, {old.count} of {self.active}'s: more than "
                f"{REVIEW_RISE:.0%} of them on top"
            )
        return found

    def flaws(self, loaded: Loaded | None) -> Iterator[str]:
        """Why it proves nothing, whatever it says: it saw too little, or other devices than a bundle was loaded on."""
        if not self.tally.escape.of or not self.tally.overkill.of:
            yield "it saw no defective screen, or no clean one"
        if self.screens != self.tally.escape.of + self.tally.overkill.of:
            yield "it does not say of every screen what became of it"
        if not self.devices:
            yield "it names no device"
        if loaded is None:
            return
        if [device.guard for device in self.devices] != [dict(backend.guard) for backend in loaded.backends]:
            yield "its guard bands are not those of the devices here"
        if self.tolerance != loaded.golden.tolerance:
            yield f"it was held to {self.tolerance:g}, and the bundle states {loaded.golden.tolerance:g}"


class Releases(Strict):
    """`release.json`: the last record of each runtime and precision, by `key_of`."""

    records: dict[str, Release]


def key_of(runs: RunsAs) -> str:
    """What a record is kept by: of another batch, version, GPU or plan there is one at a time."""
    return f"{runs.runtime} {runs.precision}"


def read_releases(bundle: Path) -> Releases:
    """The records of a bundle.

    Raises:
        ReleaseMissing: it has none that can be read.
    """
    try:
        return Releases.model_validate_json((bundle / RELEASE_FILE).read_bytes())
    except OSError as error:
        raise ReleaseMissing("the bundle has not passed the release gate: `python -m service release`") from error
    except ValidationError as error:  # of another form, as before there was one for each runtime
        raise ReleaseMissing(f"{RELEASE_FILE} cannot be read: release the bundle again") from error


def keep(bundle: Path, release: Release) -> None:
    """Write a record in the place of the last one of its runtime and precision; a refusal only takes that one away."""
    with _alone(bundle):
        try:
            records = read_releases(bundle).records
        except ReleaseMissing:
            records = {}
        others = {key: other for key, other in records.items() if key != key_of(release.runs_as)}
        _write(bundle, others if release.refusals else {**others, key_of(release.runs_as): release})


@contextmanager
def _alone(bundle: Path) -> Iterator[None]:
    """No other gate writes meanwhile, as that of another runtime."""
    folder = os.open(bundle, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks, on which whoever writes last wins
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(bundle: Path, records: dict[str, Release]) -> None:
    if not records:
        (bundle / RELEASE_FILE).unlink(missing_ok=True)
        return
    handle, draft = tempfile.mkstemp(prefix=f".{RELEASE_FILE}-", dir=bundle)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(Releases(records=records).model_dump_json(indent=2) + "\n")
        Path(draft).chmod(0o644)
        os.replace(draft, bundle / RELEASE_FILE)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def require_release(
    bundle: Path, /, runs: RunsAs, *, digest: str, active: str | None, loaded: Loaded | None = None
) -> None:
    """Refuse a bundle that has not passed the gate as it will run, against the bundle that it is to replace.

    Args:
        bundle: its folder, where its record lies.
        runs: as what it was loaded; without its plan where it is not loaded yet, of which nothing is asked then.
        digest: of its manifest, as it was loaded.
        active: digest of the bundle in service; None where it does not matter.
        loaded: the bundle, whose guard bands and tolerance are asked for; None where it is not loaded yet.

    Raises:
        ReleaseMissing: it has no record, or one of other files, of another way to run, against another bundle, or one
            that proves nothing.
    """
    records = read_releases(bundle).records
    release = records.get(key_of(runs))
    if release is None:
        released = ", ".join(str(record.runs_as) for record in records.values())
        raise ReleaseMissing(f"the bundle was released for {released}, and is to run as {runs}")
    if release.manifest_sha256 != digest:
        raise ReleaseMissing("the release record is of another version of this bundle")
    if (release.runs_as.without_plan() if runs.plan is None else release.runs_as) != runs:
        raise ReleaseMissing(f"the bundle was released for {release.runs_as}, and is to run as {runs}")
    if release.refusals:
        raise ReleaseMissing(f"the release record is a refusal: {release.refusals[0]}")
    for flaw in release.flaws(loaded):
        raise ReleaseMissing(f"the release record proves nothing: {flaw}")
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
