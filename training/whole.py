"""Files, and bundles made of others, that are there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from engine import RELEASE_FILE


def replace(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside the old one and put it in its place; a kill or a power cut leaves the one or the other.

    Raises:
        OSError: it cannot be written, as on a full disk; it names the file, and nothing is left beside it.
    """
    partial = file.with_suffix(".partial")
    try:
        write(partial)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own for a full disk
        partial.unlink(missing_ok=True)
        first, *_ = (str(error).strip() or type(error).__name__).splitlines()
        raise OSError(f"{file} cannot be written; is the disk full? ({first})") from error
    os.replace(partial, file)


@contextmanager
def drafted(bundle: Path, out: Path) -> Iterator[Path]:
    """A copy of a bundle's files to change, which becomes `out` at the end of the block; nothing is left of a failure.

    Its record of release is not copied: it was of other verdicts.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _copy(bundle, draft)
        yield draft
        os.rename(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _copy(bundle: Path, draft: Path) -> None:
    """Its files, to be written to even where they may not be in the bundle itself."""
    for path in sorted(bundle.rglob("*")):
        place = draft / path.relative_to(bundle)
        if path.is_dir():
            place.mkdir()
        elif path.name != RELEASE_FILE:
            shutil.copyfile(path, place)
    draft.chmod(0o755)  # a temporary folder is the user's alone
