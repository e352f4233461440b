"""A bundle made of another one: drafted beside its place, and moved there once it is whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine import RELEASE_FILE


@contextmanager
def drafted(bundle: Path, out: Path) -> Iterator[Path]:
    """A copy of a bundle's files to change, which becomes `out` at the end of the block; nothing is left of a failure.

    Its record of release is not copied: it was of other verdicts.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        shutil.copytree(bundle, draft, ignore=shutil.ignore_patterns(RELEASE_FILE), dirs_exist_ok=True)
        yield draft
        draft.chmod(0o755)
        os.rename(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
