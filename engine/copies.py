"""A bundle under another manifest, for a while: what is asked of the same graphs, but otherwise."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.looks import NO_GLANCE
from engine.manifest import GLANCE_FILE, Manifest


@contextmanager
def changed_copy(bundle: Path, **changes: Any) -> Iterator[Path]:  # noqa: ANN401 - the manifest's own
    """A folder with the files of a bundle and a changed manifest, until the block ends; never with a release record.

    Args:
        bundle: folder of the bundle.
        changes: of the manifest, by its keys; a graph that it then does not ask for is left out.

    Raises:
        BundleError: the bundle is not whole, or must not be changed so.
    """
    manifest = Manifest.read(bundle)
    changed = replace(manifest, **changes)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "bundle"
        copy.mkdir()
        files = {
            name: sha256
            for name, sha256 in manifest.files.items()
            if name != GLANCE_FILE or changed.glance != NO_GLANCE
        }
        for name in files:
            (copy / name).write_bytes(manifest.verified(bundle, name))
        replace(changed, files=files).write(copy)  # their hashes are known: nothing is read again to sign it
        yield copy


@contextmanager
def seen_whole(bundle: Path) -> Iterator[Path]:
    """A folder of the bundle without its glance, until the block ends: the bundle's own where it has none.

    For what asks of the whole network, such as other precisions, GPUs and extremes.

    Raises:
        BundleError: the bundle is not whole.
    """
    if Manifest.read(bundle).glance == NO_GLANCE:
        yield bundle
        return
    with changed_copy(bundle, glance=NO_GLANCE) as whole:
        yield whole
