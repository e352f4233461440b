"""Inspect files without HTTP: what the line's service would say of them, by the same code.

Decoding and reasoning of one file overlap with the features of another, as they do in the service.
"""

import itertools
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from engine import InferenceError
from service.catalogue import CONFIGURED
from service.errors import ServiceError, UnreadableImage, UnsupportedMedia
from service.images import RAW, SUFFIXES, Source
from service.inspector import Forgetful, Inspection, Inspector
from service.problems import Problem, describe
from service.room import Decoding, Room
from service.serving import Loaded, Serving, load_bundle, naming
from service.settings import Settings

IN_FLIGHT = 3
NO_HURRY_S = 600.0

log: structlog.stdlib.BoundLogger = structlog.get_logger("service.files")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileResult:
    """One file: its inspection, or the problem that it met."""

    path: Path
    screen_id: str
    outcome: Inspection | Problem


@contextmanager
def inspector(settings: Settings) -> Iterator[Inspector]:
    """An inspector of the settings' bundle that keeps no record.

    Raises:
        EngineError: the bundle must not be used, or not here.
    """
    with naming(settings.bundle):
        loaded = load_bundle(settings.bundle, settings)
    with inspector_of(loaded, settings) as ready:
        yield ready


@contextmanager
def inspector_of(loaded: Loaded, settings: Settings) -> Iterator[Inspector]:
    """The same of a bundle that was loaded with these settings; it is closed in the end."""
    # files do not refuse each other
    roomy = settings.model_copy(update={"max_queue_patches": settings.max_queue_patches * IN_FLIGHT})
    decoding = Decoding(room=Room(settings.max_memory_bytes // 2))
    serving = Serving(loaded, bundle=CONFIGURED, record=Forgetful(), settings=roomy, decoding=decoding)
    with closing(serving):
        yield serving.inspector


def inspect_files(
    inspector: Inspector, paths: Sequence[Path], *, raw_size: tuple[int, int] | None
) -> Iterator[FileResult]:
    """Results in the order of `paths`.

    Args:
        inspector: what inspects.
        paths: image files, or raw pixels where the suffix names no image.
        raw_size: (height, width) of raw files.
    """
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        pending: deque[Future[FileResult]] = deque()
        for path in paths:
            if len(pending) == IN_FLIGHT:  # no more: results that nobody has taken yet hold their frames
                yield pending.popleft().result()
            pending.append(pool.submit(_inspect, inspector, path, raw_size))
        while pending:
            yield pending.popleft().result()


def screen_id_of(path: Path) -> str:
    """The file's name as a screen's: without its suffix, foreign characters replaced."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", path.stem)[:64]
    return name if name.strip(".") else name.replace(".", "_") or "_"


def picture_paths(overlay: Path, paths: Sequence[Path]) -> list[Path]:
    """Where the picture of each file goes: `overlay` itself for one file, else a name of its own in that folder.

    Two files of one name, from two folders, get two pictures: the second has a number.
    """
    if len(paths) == 1 and not overlay.is_dir():
        return [overlay]
    names: dict[str, None] = {}
    for path in paths:
        first = screen_id_of(path)
        numbered = (f"{first}-{number}" for number in itertools.count(2))
        names[next(name for name in itertools.chain([first], numbered) if name not in names)] = None
    return [overlay / f"{name}.png" for name in names]


def _inspect(inspector: Inspector, path: Path, raw_size: tuple[int, int] | None) -> FileResult:
    screen_id = screen_id_of(path)
    outcome: Inspection | Problem
    try:
        source = _read(path, raw_size)
        outcome = inspector.inspect(screen_id, source, deadline_at=time.monotonic() + NO_HURRY_S)
    except InferenceError as error:
        log.error("failed", path=str(path), exc_info=error)
        outcome = describe(error, instance=str(path))
    except ServiceError as error:
        outcome = describe(error, instance=str(path))
    return FileResult(path=path, screen_id=screen_id, outcome=outcome)


def _read(path: Path, raw_size: tuple[int, int] | None) -> Source:
    media_type = SUFFIXES.get(path.suffix.lower())
    if media_type is None and raw_size is None:
        raise UnsupportedMedia(f"{path.suffix or 'no suffix'} names no image: give --size for raw pixels")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror}") from error
    if media_type is None:
        return Source(data=data, media_type=RAW, size=raw_size)
    return Source(data=data, media_type=media_type)
