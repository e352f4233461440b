"""What is done to the record beside a running service: a copy of it, and fewer screens in it."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from service.store import RECORD_FILE, Store, StoreError

BATCH = 1000  # screens that are deleted in one transaction: a verdict waits no longer than for one of those


def back_up(state_dir: Path, target: Path) -> None:
    """Copy the record, as it is at one moment, to a file that does not exist; a service may be writing to it.

    Raises:
        StoreError: there is no record, or it cannot be copied.
    """
    source = _record_of(state_dir)
    if target.exists():
        raise StoreError(f"{target} exists")
    part = target.with_name(f"{target.name}.part")
    try:
        part.unlink(missing_ok=True)  # of a copy that was killed
        with closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True)) as record:
            with closing(sqlite3.connect(part)) as copy:
                record.backup(copy)
            part.rename(target)
    except (sqlite3.Error, OSError) as error:
        part.unlink(missing_ok=True)
        raise StoreError(f"cannot copy the record to {target}: {error}") from error


def prune(state_dir: Path, before: datetime, *, tell: Callable[[int], None] = lambda count: None) -> int:
    """Delete the screens that were answered before a moment; how many they were.

    Their ids are free from then on. The file keeps its size, and new screens take the room.

    Args:
        state_dir: folder of the record; a service may be writing to it.
        before: with a zone.
        tell: hears of each part that is deleted how many screens were in it.

    Raises:
        StoreError: there is no record, or it cannot be changed.
    """
    _record_of(state_dir)
    limit, deleted = before.astimezone(UTC).replace(tzinfo=None), 0
    with closing(Store(state_dir, migrate=False)) as store:
        while count := store.delete_before(limit, at_most=BATCH):
            deleted += count
            tell(count)
    return deleted


def _record_of(state_dir: Path) -> Path:
    path = state_dir / RECORD_FILE
    if not path.is_file():
        raise StoreError(f"there is no record in {state_dir}")
    return path
