"""Which bundle is in service, and how another takes its place while screens come in.

    1  find       service.catalogue   name -> folder
    2  load       service.serving     verified and loaded beside the active one
    3  release    service.release     without a record of release as it will run it is refused, unless it is told so
    4  prove      service.scheduler   the golden patches on every device: the self-test, and the warm-up
    5  record     service.store       what a restart begins with
    6  flip       service.active      the next screen takes the new one
    7  close      service.active      the old one, once its last screen is answered

Until step 6 the active bundle knows nothing of it: whatever fails before changes nothing.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog

from engine import BundleError, EngineError, Manifest, bundle_sha256
from service.active import Active
from service.catalogue import Catalogue, Look
from service.errors import BundleRefused, BundleUnknown, ServiceError, SwapInProgress
from service.memory import give_back
from service.metrics import Metrics
from service.selftest import SelfTestReport
from service.serving import Loaded, Serving, load_bundle, naming
from service.settings import Settings
from service.store import Activation, Store

State = Literal["active", "previous", "available", "broken"]
Outcome = Literal["activated", "rolled_back", "unchanged"]
ReleaseGate = Callable[[Path, str, str], None]  # folder, runtime, precision

log: structlog.stdlib.BoundLogger = structlog.get_logger("service.models")


def no_gate(_path: Path, _runtime: str, _precision: str) -> None:
    """Require no release."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel:
    """One bundle.

    Attributes:
        bundle: by what it can be named.
        name: of its model; empty where it is broken.
        version: of its model.
        state: `previous` is the one that a rollback goes to.
        reason: what is wrong with it on the disk; empty when nothing is.
    """

    bundle: str
    name: str
    version: str
    state: State
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
        active: what is in service now.
        previous: what a rollback goes to; None where there is nothing.
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
        metrics: which name the bundle and count the swaps.
        require_release: raises a `ServiceError` where the bundle in that folder must not be put in service yet in this
            runtime and precision.
    """

    def __init__(
        self,
        first: Serving,
        *,
        catalogue: Catalogue,
        store: Store,
        settings: Settings,
        metrics: Metrics,
        require_release: ReleaseGate,
    ) -> None:
        self._active = Active(first)
        self._catalogue = catalogue
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._require_release = require_release
        self._swapping = threading.Lock()
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
            BundleRefused: it is broken, does not fit the line, or fails its self-test.
            SwapInProgress: another call is under way.
            ServiceError: it was not released.
            StoreError: it could not be recorded.
        """
        with self._alone():
            gate = no_gate if without_release else self._require_release
            return self._swap(bundle, self._catalogue.path(bundle), "activated", gate=gate)

    def roll_back(self) -> Swap:
        """Put the bundle in service that was before; a second time leads back again.

        It must be what it was then, and needs no release: it has been in service.

        Raises:
            BundleUnknown: no other was in service before, or its folder is gone.
            BundleRefused: it is broken by now, or another.
            SwapInProgress: another call is under way.
            StoreError: the record failed.
        """
        with self._alone():
            before = self._before(self.current)
            if before is None:
                raise BundleUnknown("no other bundle was in service before this one")
            return self._swap(before.bundle, self._catalogue.path(before.bundle), "rolled_back", digest=before.digest)

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
                _listed(name, self._catalogue.look(name), active, before)
                for name in sorted({*self._catalogue.names(), *known})
            ),
        )

    def close(self) -> None:
        """Close what is in service; screens under way fail."""
        self._active.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold off other swaps, and count this one where it fails."""
        try:
            if not self._swapping.acquire(blocking=False):
                raise SwapInProgress("wait until it is there, then ask again")
            try:
                yield
            finally:
                self._swapping.release()
        except Exception:
            self._metrics.swaps.labels("refused").inc()
            raise

    def _swap(
        self, bundle: str, path: Path, outcome: Outcome, *, gate: ReleaseGate = no_gate, digest: str = ""
    ) -> Swap:
        """Steps 2 to 7, unless the bundle is in service already; `digest` is what it must have, if not empty."""
        started_at = time.monotonic()
        if _same_digest(path, digest) == self.current.digest and bundle == self.current.bundle:
            outcome = "unchanged"
        else:
            with ExitStack() as undo:
                new = self._prove(bundle, path, gate)
                undo.callback(new.close)
                self._store.activate(activation(bundle, new.digest, new.manifest, self._settings))
                old = self._active.flip(new)
                undo.pop_all()  # from here on it is the active one
            self._show(outcome)
            self._active.retire(old)
            del old  # the last that holds it
            give_back()
        self._metrics.swaps.labels(outcome).inc()
        active, before = self.current, self._before(self.current)
        return Swap(
            outcome=outcome,
            active=NamedModel(bundle=active.bundle, name=active.manifest.name, version=active.manifest.version),
            previous=None
            if before is None
            else NamedModel(bundle=before.bundle, name=before.name, version=before.version),
            duration_s=round(time.monotonic() - started_at, 3),
        )

    def _prove(self, bundle: str, path: Path, gate: ReleaseGate) -> Serving:
        """The bundle, loaded, released and warm, its self-test passed on every device.

        Raises:
            BundleRefused: it is broken, or failed.
            ServiceError: it was not released.
        """
        try:
            loaded = load_bundle(path, self._settings)
        except EngineError as error:
            raise BundleRefused(str(error)) from error
        try:
            gate(path, loaded.backends[0].runtime, loaded.backends[0].precision)
        except ServiceError:
            loaded.close()
            raise
        new = Serving(loaded, bundle=bundle, record=self._store, settings=self._settings)
        report = new.scheduler.tested()
        if not report.ok:
            new.close()
            raise BundleRefused(f"self-test: {report.detail}")
        return new

    def _before(self, active: Serving) -> Activation | None:
        """What was in service before; the answer to whoever wants to go back."""
        return self._store.activated_before(active.bundle, active.digest)

    def _show(self, event: str) -> None:
        """Name the bundle in service, for machines and in the log."""
        manifest = self.current.manifest
        self._metrics.show_model(manifest.name, manifest.version, self.current.runtime, labels=manifest.label_names)
        log.info(event, bundle=self.current.bundle, model=manifest.name, version=manifest.version)


def load_first(
    catalogue: Catalogue, last: Activation | None, settings: Settings, *, configured: bool
) -> tuple[str, Loaded]:
    """The bundle with which a service starts, loaded, and its name: whichever was decided on last.

    That is the last activation, unless INSPECT_BUNDLE is set to another bundle than it was then, or `configured` asks
    for it. One that was activated must still be what it was: a line never runs another model without anybody's doing,
    so where it is gone the service does not start.

    Raises:
        EngineError: it must not be served, or not here.
    """
    setting = configured_bundle(settings)
    changed = last is not None and setting is not None and setting != last.configured
    if last is None or configured or changed or last.bundle == catalogue.configured:
        with naming(settings.bundle):
            return catalogue.configured, load_bundle(settings.bundle, settings)
    try:
        path = catalogue.path(last.bundle)
        _same_digest(path, last.digest)
        return last.bundle, load_bundle(path, settings)
    except (ServiceError, BundleError) as error:
        way_out = "put it back, or start once with --configured to serve INSPECT_BUNDLE instead"
        raise BundleError(f"{error}; {way_out}", key=f"{last.bundle}, which was in service last") from error


def configured_bundle(settings: Settings) -> str | None:
    """The bundle that INSPECT_BUNDLE is set to; None where it is not, and the embedded one stands in."""
    return str(settings.bundle.resolve()) if "bundle" in settings.model_fields_set else None


def activation(bundle: str, digest: str, manifest: Manifest, settings: Settings) -> Activation:
    """What the record says of a bundle that is put in service."""
    return Activation(
        bundle=bundle,
        digest=digest,
        name=manifest.name,
        version=manifest.version,
        configured=configured_bundle(settings),
    )


def _same_digest(path: Path, expected: str) -> str:
    """The digest of the bundle that lies there; any will do where none is expected.

    Raises:
        BundleRefused: it is broken, or another.
    """
    try:
        found = bundle_sha256(path)
    except BundleError as error:
        raise BundleRefused(str(error)) from error
    if found != (expected or found):
        raise BundleRefused("manifest.json: is another by now than when the bundle was put in service")
    return found


def _listed(bundle: str, look: Look, active: Serving, before: Activation | None) -> ListedModel:
    """A bundle of the list: what it is, and what is wrong with it on the disk."""
    named: Manifest | Activation | None = look.manifest
    state: State = "broken" if named is None else "available"
    digest = look.digest
    if bundle == active.bundle:
        named, state, digest = active.manifest, "active", active.digest
    elif before is not None and bundle == before.bundle:
        named, state, digest = before, "previous", before.digest
    changed = "" if look.digest == digest else "another bundle lies there by now"
    return ListedModel(
        bundle=bundle,
        name="" if named is None else named.name,
        version="" if named is None else named.version,
        state=state,
        reason=look.reason or changed,
    )
