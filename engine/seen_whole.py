"""A bundle without its glance: for what asks of the whole network, such as other precisions, GPUs and extremes."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from engine.looks import NO_GLANCE
from engine.manifest import GLANCE_FILE, RELEASE_FILE, Manifest


@contextmanager
def seen_whole(bundle: Path) -> Iterator[Path]:
    """A folder of the bundle without its glance, until the block ends: the bundle's own where it has none.

    Raises:
        BundleError: the bundle is not whole.
    """
    manifest = Manifest.read(bundle)
    if manifest.glance == NO_GLANCE:
        yield bundle
        return
    with tempfile.TemporaryDirectory() as folder:
        ignored = shutil.ignore_patterns(GLANCE_FILE, RELEASE_FILE)
        whole = Path(shutil.copytree(bundle, Path(folder) / bundle.name, ignore=ignored))
        replace(manifest, glance=NO_GLANCE).sign(whole)
        yield whole
