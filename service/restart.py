"""What the record says of the bundle in service, and what a start, a swap and a release hold against it.

A line never runs another model without anybody's doing: what was in service last must lie where it lay, unchanged, or
the service does not start. Somebody's doing is a swap, another INSPECT_BUNDLE, or `--configured`.
"""

from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from engine import BundleError, Manifest, bundle_sha256
from service.catalogue import Catalogue
from service.errors import BundleRefused, ServiceError, VersionTaken
from service.serving import Loaded, load_bundle, naming
from service.settings import Settings
from service.store import RECORD_FILE, Activation, Store


class Decided(NamedTuple):
    """The bundle that was decided on: name, folder, and the digest that it must have; empty where any will do."""

    bundle: str
    path: Path
    digest: str


def decided(catalogue: Catalogue, last: Activation | None, settings: Settings, *, configured: bool = False) -> Decided:
    """The bundle with which a service starts: whichever was decided on last, unchanged.

    That is the last activation, unless INSPECT_BUNDLE is set to another bundle than it was then, or `configured` asks
    for it. A setting that is gone is no decision: it may have been lost.

    Raises:
        BundleError: it is gone, or another by now.
    """
    setting = configured_bundle(settings)
    changed = last is not None and setting is not None and setting != last.configured
    if last is None or configured or changed:
        return Decided(catalogue.configured, catalogue.path(catalogue.configured), "")
    bundle = catalogue.proper(last.bundle)
    try:
        path = catalogue.path(bundle)
        digest_of(path, expected=last.digest)
        return Decided(bundle, path, last.digest)
    except (ServiceError, BundleError) as error:
        lost = setting is None and last.configured is not None and bundle == catalogue.configured
        reason = f"INSPECT_BUNDLE was {last.configured} and is not set any more" if lost else str(error)
        raise _not_what_it_was(last, reason) from error


def load_first(
    catalogue: Catalogue, last: Activation | None, settings: Settings, *, configured: bool
) -> tuple[str, Loaded]:
    """The bundle with which a service starts, loaded, and its name; see `decided`.

    Raises:
        EngineError: it must not be served, or not here.
    """
    bundle, path, digest = decided(catalogue, last, settings, configured=configured)
    if last is None or not digest:
        with naming(path):
            return bundle, load_bundle(path, settings)
    try:
        loaded = load_bundle(path, settings)
    except BundleError as error:
        raise _not_what_it_was(last, str(error)) from error
    if loaded.digest != digest:
        loaded.close()
        raise _not_what_it_was(last, "manifest.json: was replaced while the bundle was loaded")
    return bundle, loaded


def in_service(settings: Settings) -> Path:
    """Folder of the bundle that a service with these settings and their record has in service.

    Raises:
        BundleError: it is gone, or another by now.
        StoreError: the record cannot be read.
    """
    last = None
    if (settings.state_dir / RECORD_FILE).exists():  # to look for it makes none
        with closing(Store(settings.state_dir, migrate=False)) as store:
            last = store.last_activation()
    return decided(Catalogue(configured=settings.bundle, folder=settings.bundles), last, settings).path


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


def refuse_second_of_a_version(new: Activation, store: Store) -> None:
    """Refuse a bundle that calls itself what another was called while it was in service.

    A verdict names its bundle by name and version: with two of them it would name neither.

    Raises:
        VersionTaken: it does.
        StoreError: the record cannot be read.
    """
    before = store.digests(new.name, new.version)
    if before and new.digest not in before:
        raise VersionTaken(
            f"another bundle was in service as {new.name} {new.version}: export this one under another version"
        )


def digest_of(path: Path, *, expected: str = "") -> str:
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


def _not_what_it_was(last: Activation, reason: str) -> BundleError:
    way_out = "put it back, or start once with --configured to serve INSPECT_BUNDLE instead"
    return BundleError(f"{reason}; {way_out}", key=f"{last.bundle}, which was in service last")
