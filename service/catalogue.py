"""The bundles that may be put in service, each by a plain name: what lies on the disk, whatever is running.

A name is that of a folder in `INSPECT_BUNDLES`, or `@configured` for the bundle of `INSPECT_BUNDLE` where that lies
elsewhere. Who asks by HTTP says a name and never a path, so that nothing else on the machine can be read or told apart.

A link is no bundle: a name would stand for one folder today and for another tomorrow. Where INSPECT_BUNDLE is one, it
is followed once, when the service starts, and what it leads to has the name of its own folder.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from engine import BundleError, Manifest, bundle_sha256
from service.errors import BundleUnknown

CONFIGURED = "@configured"
NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}"  # no separator, and no dot in front: neither `..` nor a hidden folder
KEPT = 256  # bundles whose last look is remembered

Stamp = tuple[tuple[str, int, int, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A bundle as it lies on the disk.

    Attributes:
        manifest: None where it is broken.
        digest: of the manifest; empty where it is broken.
        reason: why it is broken; empty where it is not.
    """

    manifest: Manifest | None = None
    digest: str = ""
    reason: str = ""


class Catalogue:
    """Bundles by name.

    Args:
        configured: bundle of the settings.
        folder: of the others, or None.

    Attributes:
        folder: as above, absolute.
        configured: name of the configured one: its folder's where that lies in `folder`.
    """

    def __init__(self, *, configured: Path, folder: Path | None) -> None:
        path = configured.resolve()
        self.folder = None if folder is None else folder.resolve()
        self.configured = path.name if path.parent == self.folder and re.fullmatch(NAME, path.name) else CONFIGURED
        self._configured_path = path

    def names(self) -> list[str]:
        """The configured bundle's, and that of every folder which is not hidden; also of those that cannot be named.

        The configured one's alone where the folder of bundles cannot be read, as while its disk is away.
        """
        try:
            folders = [] if self.folder is None else [path.name for path in self.folder.iterdir() if _is_folder(path)]
        except OSError:
            folders = []
        return sorted({self.configured, *(name for name in folders if not name.startswith("."))})

    def proper(self, name: str) -> str:
        """The one name of a bundle that has two: `@configured` is the folder's where there is one."""
        return self.configured if name == CONFIGURED else name

    def path(self, name: str) -> Path:
        """Where the bundle of this name lies.

        Raises:
            BundleUnknown: there is none.
        """
        if self.proper(name) == self.configured:
            return self._configured_path
        if self.folder is None:
            raise BundleUnknown("INSPECT_BUNDLES is not set, so only the configured bundle can be named")
        path = self.folder / name
        if not re.fullmatch(NAME, name) or not _is_folder(path):
            raise BundleUnknown("no folder of this name lies in the folder of bundles")
        return path

    def look(self, name: str) -> Look:
        """Verify a bundle's manifest and files; hashed again only after a file has changed."""
        if self.proper(name) != self.configured and not re.fullmatch(NAME, name):
            return Look(reason=f"the folder's name must be {NAME}")
        try:
            path = self.path(name)
            return _look(path, _stamp(path))
        except BundleUnknown as error:
            return Look(reason=error.detail)


def _is_folder(path: Path) -> bool:
    """Whether this is a folder itself, and no link to one; what cannot be looked at is none."""
    try:
        return path.is_dir() and not path.is_symlink()
    except OSError:
        return False


def _stamp(path: Path) -> Stamp:
    """What changes when a file of the folder does: the time of its last change too, which nobody can set."""
    try:
        stats = [(file.name, file.stat()) for file in sorted(path.iterdir()) if file.is_file()]
    except OSError:
        return ()  # the look itself says what is wrong
    return tuple((name, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino) for name, stat in stats)


@lru_cache(maxsize=KEPT)
def _look(path: Path, stamp: Stamp) -> Look:
    try:
        digest = bundle_sha256(path)
        return Look(manifest=Manifest.read(path), digest=digest)
    except BundleError as error:
        return Look(reason=str(error))
