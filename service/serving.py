"""A bundle in service: its backends, the scheduler before them, and the inspector that judges by its manifest.

Everything that a screen meets of a bundle hangs on one object, so that a screen which has taken it meets one bundle
alone, from its pixels to the version in its verdict.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from engine import (
    Backend,
    BundleError,
    Golden,
    Manifest,
    PlanError,
    Tuning,
    bundle_sha256,
    cover,
    load_all,
    made_as,
    read_golden,
    runs_as,
    tuning_of,
)
from service.inspector import Inspector, Record
from service.room import Decoding
from service.scheduler import Scheduler
from service.settings import Settings

log: structlog.stdlib.BoundLogger = structlog.get_logger("service.serving")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loaded:
    """A bundle that was verified and loaded, and serves nobody yet.

    Attributes:
        backends: one a device.
        golden: patches of its self-test.
        digest: of its manifest, see `engine.bundle_sha256`; empty for one that did not come from a folder.
    """

    backends: Sequence[Backend]
    golden: Golden
    digest: str = ""

    def close(self) -> None:
        """Close the backends of a bundle that does not come to serve."""
        for backend in self.backends:
            backend.close()


class Serving:
    """A bundle that inspects screens, from now until `close`.

    Args:
        loaded: what to serve; closed by `close`.
        bundle: its name in the catalogue.
        record: of what was answered.
        settings: frame, queue and self-test.
        decoding: shared by all bundles of the process.
    """

    def __init__(self, loaded: Loaded, *, bundle: str, record: Record, settings: Settings, decoding: Decoding) -> None:
        backend = loaded.backends[0]
        self.bundle = bundle
        self.digest = loaded.digest
        self.manifest = backend.manifest
        self.runs_as = runs_as(loaded.backends)
        self.tuned = tuning_of(backend)
        self.scheduler = Scheduler(
            loaded.backends,
            loaded.golden,
            max_patches=settings.max_queue_patches,
            self_test_interval_s=settings.self_test_interval_s,
        )
        self.inspector = Inspector(
            backend,
            self.scheduler,
            record,
            frame_size=settings.frame_size,
            max_pixels=settings.max_pixels,
            decoding=decoding,
        )

    def close(self) -> None:
        """Fail what still waits, end the device threads and close the backends."""
        self.scheduler.close()


def load_bundle(path: Path, settings: Settings, *, prebuilt: bool = False, beside: Tuning | None = None) -> Loaded:
    """Verify a bundle and load it into the settings' runtime.

    Args:
        path: its folder.
        settings: of the line.
        prebuilt: whether its plan must be there and its batch fit, see `engine.Options`.
        beside: how the bundle in service shares out the CPUs' threads.

    Raises:
        EngineError: it must not be served, not here, or not on this line, or another one took its place meanwhile.
    """
    digest = bundle_sha256(path)
    backends = load_all(
        path,
        settings.runtime,
        precision=settings.precision,
        threads=settings.threads,
        batch_size=settings.batch,
        prebuilt=prebuilt,
        beside=beside,
    )
    try:
        loaded = Loaded(backends=backends, golden=read_golden(path, made_as(backends[0])), digest=digest)
        _check_line(backends[0].manifest, settings)
        if bundle_sha256(path) != digest:  # each part is whole by itself, and they may be of two bundles
            raise BundleError("was replaced while the bundle was loaded", key="manifest.json")
    except BaseException:
        for backend in backends:
            backend.close()
        raise
    for number, backend in enumerate(backends):
        tuned = tuning_of(backend)
        log.info(
            "loaded",
            device=number,
            runtime=backend.runtime,
            precision=backend.precision,
            batch_size=backend.batch_size,
            threads=None if tuned is None else str(tuned.share),
            notes=list(getattr(backend, "notes", ())),
        )
    return loaded


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say which bundle is wrong, where its own error names only what in it."""
    try:
        yield
    except BundleError as error:
        raise BundleError(error.detail, key=f"{path}: {error.key}") from error
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error


def _check_line(manifest: Manifest, settings: Settings) -> None:
    """Refuse a bundle with which no frame of the line could be inspected.

    Raises:
        BundleError: the agreed frame is smaller than a patch, or has more patches than may wait.
    """
    if settings.frame_size is None:
        return
    height, width = settings.frame_size
    if min(height, width) < manifest.patch_px:
        raise BundleError(f"the line's frame of {width} x {height} pixels is smaller than a patch", key="patch_px")
    patches = len(cover(height, width, patch_px=manifest.patch_px, overlap_px=manifest.overlap_px))
    if patches > settings.max_queue_patches:
        fits = settings.max_queue_patches
        raise BundleError(f"the line's frame has {patches} patches, of which only {fits} may wait", key="patch_px")
