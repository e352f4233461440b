"""Which bundle is in service, and how another takes its place while screens come in.

    1  find       service.catalogue   name -> folder
    2  load       service.serving     verified and loaded beside the active one
    3  release    service.released    without a record of release as it will run it is refused, unless it is told so
    4  prove      service.scheduler   the golden patches on every device: the self-test, and the warm-up
    5  record     service.store       what a restart begins with, and only while nothing is stopping
    6  flip       service.active      the next screen takes the new one
    7  close      service.active      the old one, once its last screen is answered

Until step 5 the active bundle knows nothing of it, and whatever fails changes nothing, but for a fault of a GPU, which
may take the other bundle's context along (`engine.tensorrt`); after it nothing fails. Steps 2 to 4 are done in a thread
of their own and have `PROVEN_WITHIN_S`; where a device hangs they are left behind (`service.attempts`).
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import structlog

from engine import EngineError, Manifest, RunsAs, runs_as, would_run_as
from service.active import Active
from service.attempts import LEFT_MOST, Attempts, TooManyLeft
from service.catalogue import CONFIGURED, Catalogue, Look
from service.errors import BundleRefused, BundleUnknown, SwapInProgress
from service.memory import give_back
from service.metrics import Metrics
from service.released import is_released, require_release
from service.restart import activation, digest_of, refuse_second_of_a_version
from service.room import Decoding
from service.selftest import FRESH_S, SelfTestReport
from service.serving import Serving, load_bundle
from service.settings import Settings
from service.store import Activation, Store

State = Literal["active", "previous", "available", "broken"]
Outcome = Literal["activated", "rolled_back", "unchanged"]

SELF_TEST_WITHIN_S = FRESH_S  # the first; a device that needs longer could never prove a pass
PROVEN_WITHIN_S = 300.0  # read, loaded, warm and self-tested; what takes longer hangs

log: structlog.stdlib.BoundLogger = structlog.get_logger("service.models")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel:
    """One bundle.

    Attributes:
        bundle: by what it can be named.
        name: of its model; empty where it is broken.
        version: of its model.
        limits: version of its limits; 0 where its manifest does not lie on the disk any more.
        state: `previous` is the one that a rollback goes to.
        released: whether it has passed the release gate as it runs here, or would run; where it is not in service, also
            against the one that is. False where something is wrong with it on the disk.
        reason: what that is; empty when nothing is.
    """

    bundle: str
    name: str
    version: str
    limits: int
    state: State
    released: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelList:
    """What there is; `folder` is where bundles are put to be found, None where there is no such folder."""

    folder: str | None
    models: tuple[ListedModel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedModel:
    """A bundle that is or was in service."""

    bundle: str
    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """What became of a request to put a bundle in service.

    Attributes:
        outcome: `unchanged` where it was in service already.
        active: what this call put in service; another may have followed until the bundle before was closed.
        previous: what a rollback went to from there; None where there was nothing.
        duration_s: until the bundle before was closed.
    """

    outcome: Outcome
    active: NamedModel
    previous: NamedModel | None
    duration_s: float


class Models:
    """The bundle in service, and those that may take its place.

    Args:
        first: with which the service starts; recorded already, closed by `close`.
        catalogue: of what may follow.
        store: of activations, and of the answers that every bundle gives.
        settings: for what is loaded.
        decoding: shared with `first`.
        metrics: which name the bundle and count the swaps.
    """

    def __init__(
        self,
        first: Serving,
        *,
        catalogue: Catalogue,
        store: Store,
        settings: Settings,
        decoding: Decoding,
        metrics: Metrics,
    ) -> None:
        self._active = Active(first)
        self._catalogue = catalogue
        self._store = store
        self._settings = settings
        self._decoding = decoding
        self._metrics = metrics
        self._swapping = threading.Lock()
        self._attempts = Attempts[Serving]()
        self._show("serving")

    @property
    def current(self) -> Serving:
        """The bundle in service, to look at; a screen takes it instead."""
        return self._active.current

    @property
    def waiting_patches(self) -> int:
        """Patches that wait or run, those of a bundle that is being left too."""
        return sum(serving.scheduler.waiting_patches for serving in self._active.open)

    def report(self) -> SelfTestReport:
        """The self-test of the bundle in service."""
        return self.current.scheduler.report()

    def take(self) -> AbstractContextManager[Serving]:
        """The bundle in service, for one screen until the block ends.

        Raises:
            NotReady: the service is stopping.
        """
        return self._active.take()

    def activate(self, bundle: str, *, without_release: bool = False) -> Swap:
        """Put a bundle in service; on return the one before is closed.

        Args:
            bundle: its name in the catalogue.
            without_release: whether to take it without a record of release.

        Raises:
            BundleUnknown: no bundle has this name.
            BundleRefused: it is broken, does not fit the line, lacks its plan, fails its self-test, or hangs.
            SwapInProgress: another call is under way, several hang, or several bundles before are still in use.
            VersionTaken: another was in service under its name and version.
            ReleaseMissing: it was not released, as it will run and against the one in service.
            NotReady: the service is stopping.
            StoreError: it could not be recorded.
        """
        return self._swap(lambda: (self._catalogue.proper(bundle), ""), "activated", without_release=without_release)

    def roll_back(self) -> Swap:
        """Put the bundle in service that was before; a second time leads back again.

        It must be what it was then, and needs no release: it has been in service. A GPU needs its plan all the same:
        after an upgrade of TensorRT, or on another GPU, the start has built that of the bundle in service alone.

        Raises:
            BundleUnknown: no other was in service before, or its folder is gone.
            BundleRefused: it is broken by now, or another, or lacks its plan, which `engine build` makes.
            SwapInProgress: another call is under way, several hang, or several bundles before are still in use.
            NotReady: the service is stopping.
            StoreError: the record failed.
        """
        return self._swap(self._way_back, "rolled_back", without_release=True)

    def list(self) -> ModelList:
        """Every bundle that is or was in service, or can be put there.

        Raises:
            StoreError: the record cannot be read.
        """
        active = self.current
        before = self._before(active)
        known = {active.bundle} | ({before.bundle} if before else set())
        folder = self._catalogue.folder
        return ModelList(
            folder=None if folder is None else str(folder),
            models=tuple(
                self._listed(name, self._catalogue.look(name), active, before)
                for name in sorted({*self._catalogue.names(), *known})
            ),
        )

    def close(self) -> None:
        """Close what is in service; screens under way fail, and so does a swap, whatever it waits for."""
        self._attempts.close()
        self._active.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold off other swaps, and count this one where it fails."""
        try:
            if not self._swapping.acquire(blocking=False):
                raise SwapInProgress("wait until it is there, then ask again")
            try:
                if len(self._active.open) > LEFT_MOST:
                    raise SwapInProgress(f"{LEFT_MOST} bundles before still have screens under way, and are in memory")
                yield
            finally:
                self._swapping.release()
        except Exception:
            self._metrics.swaps.labels("refused").inc()
            raise

    def _way_back(self) -> tuple[str, str]:
        before = self._before(self.current)
        if before is None:
            raise BundleUnknown("no other bundle was in service before this one")
        return before.bundle, before.digest

    def _swap(self, wanted: Callable[[], tuple[str, str]], outcome: Outcome, *, without_release: bool) -> Swap:
        """Steps 2 to 7, unless the bundle is in service already.

        `wanted` gives its name and the digest that it must have, if not empty, while no other swap is under way.
        """
        started_at = time.monotonic()
        with self._alone():
            bundle, digest = wanted()
            old = self.current
            with _refusing():
                path = self._catalogue.path(bundle)
                unchanged = digest_of(path, expected=digest) == old.digest and bundle == old.bundle
            if unchanged:
                outcome, before = "unchanged", self._before(old)
                active = _named(old.bundle, old.manifest)
                previous = None if before is None else _named(before.bundle, before)
            else:
                active = self._replace(bundle, path, outcome, without_release=without_release, digest=digest)
                previous = _named(old.bundle, old.manifest)
                self._show(outcome)
            self._metrics.swaps.labels(outcome).inc()
        if not unchanged:
            self._active.retire(old)  # which a sender that stalls may put off: no other swap waits for it
            del old  # the last that holds it
            give_back()
        return Swap(
            outcome=outcome, active=active, previous=previous, duration_s=round(time.monotonic() - started_at, 3)
        )

    def _replace(self, bundle: str, path: Path, outcome: Outcome, *, without_release: bool, digest: str) -> NamedModel:
        """Steps 2 to 6: the new bundle is the active one, or an exception says why not and nothing has changed."""
        prove = partial(self._proven, bundle, path, without_release=without_release, digest=digest)
        try:
            new = self._attempts.make(prove, within_s=PROVEN_WITHIN_S, discard=Serving.close)
        except TimeoutError:
            log.error("the new bundle hangs and is left", bundle=bundle)
            raise BundleRefused(f"was not loaded and self-tested within {PROVEN_WITHIN_S:g} s") from None
        except TooManyLeft:
            raise SwapInProgress(f"{LEFT_MOST} swaps hang and hold what they loaded: restart the service") from None
        with ExitStack() as undo:
            undo.callback(new.close)
            recorded = activation(bundle, new.digest, new.manifest, self._settings)
            refuse_second_of_a_version(recorded, self._store)
            self._active.flip(new, lambda: self._store.activate(recorded))
            undo.pop_all()  # from here on it is the active one
        return _named(bundle, new.manifest)

    def _proven(self, bundle: str, path: Path, *, without_release: bool, digest: str) -> Serving:
        """Steps 2 to 4: the bundle, loaded, released and warm, its self-test passed on every device.

        Raises:
            BundleRefused: it is broken, or failed, or is another than that of `digest`.
            ReleaseMissing: it was not released.
        """
        with _refusing():
            # to build a plan takes minutes of the GPU that inspects, and a smaller batch was not released
            loaded = load_bundle(path, self._settings, prebuilt=True, beside=self.current.tuned)
        with ExitStack() as undo:
            undo.callback(loaded.close)
            if loaded.digest != (digest or loaded.digest):
                raise BundleRefused("manifest.json: was replaced while the bundle was loaded")
            if not without_release:
                runs, active = runs_as(loaded.backends), self.current.digest
                require_release(path, runs, digest=loaded.digest, active=active, loaded=loaded)
            new = Serving(loaded, bundle=bundle, record=self._store, settings=self._settings, decoding=self._decoding)
            undo.pop_all()  # its devices' own threads close the backends
            undo.callback(new.close)
            report = new.scheduler.tested(SELF_TEST_WITHIN_S)
            if not report.ok:
                raise BundleRefused(f"self-test: {report.detail}")
            undo.pop_all()
        return new

    def _before(self, active: Serving) -> Activation | None:
        """What was in service before; the answer to whoever wants to go back."""
        alias = CONFIGURED if active.bundle == self._catalogue.configured else ""
        before = self._store.activated_before(active.bundle, active.digest, alias=alias)
        return None if before is None else replace(before, bundle=self._catalogue.proper(before.bundle))

    def _show(self, event: str) -> None:
        """Name the bundle in service, for machines and in the log."""
        serving, manifest = self.current, self.current.manifest
        self._metrics.show_model(manifest.name, manifest.version, serving.runs_as.runtime, labels=manifest.label_names)
        log.info(event, bundle=serving.bundle, model=manifest.name, version=manifest.version)
        if not self._released(serving.bundle, serving.runs_as, serving.digest, active=None):
            log.warning("not released as it runs here", bundle=serving.bundle, runs_as=str(serving.runs_as))

    def _released(self, bundle: str, runs: RunsAs, digest: str, *, active: str | None) -> bool:
        """Whether a bundle's record of release is of this digest, of how it runs, and against that one in service."""
        try:
            return is_released(self._catalogue.path(bundle), runs, digest=digest, active=active)
        except BundleUnknown:  # its folder is gone, or cannot be named
            return False

    def _listed(self, bundle: str, look: Look, active: Serving, before: Activation | None) -> ListedModel:
        """A bundle of the list: what it is, and what is wrong with it on the disk."""
        named: Manifest | Activation | None = look.manifest
        state: State = "broken" if named is None else "available"
        digest, runs = look.digest, active.runs_as
        if look.manifest is not None:
            asked = self._settings
            runs = would_run_as(look.manifest, runs, precision=asked.precision, batch_size=asked.batch)
        if bundle == active.bundle:
            named, state, digest, runs = active.manifest, "active", active.digest, active.runs_as
        elif before is not None and bundle == before.bundle:
            named, state, digest = before, "previous", before.digest
        # the record names no limits: those of a bundle that was in service are known while it lies there
        known = active.manifest if state == "active" else look.manifest if look.digest == digest else None
        reason = look.reason or ("" if look.digest == digest else "another bundle lies there by now")
        # what is in service was held against one that no longer is
        against = None if state == "active" else active.digest
        return ListedModel(
            bundle=bundle,
            name="" if named is None else named.name,
            version="" if named is None else named.version,
            limits=0 if known is None else known.limits_version,
            state=state,
            released=not reason and self._released(bundle, runs, digest, active=against),
            reason=reason,
        )


@contextmanager
def _refusing() -> Iterator[None]:
    """Whatever is wrong with a bundle is a refusal.

    Raises:
        BundleRefused: it is wrong.
    """
    try:
        yield
    except EngineError as error:
        raise BundleRefused(str(error)) from error
    except OSError as error:  # whose text holds a path
        raise BundleRefused(f"cannot be read: {error.strerror}") from error


def _named(bundle: str, model: Manifest | Activation) -> NamedModel:
    return NamedModel(bundle=bundle, name=model.name, version=model.version)
