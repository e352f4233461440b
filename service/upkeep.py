"""What is done to the record: a copy of it, and fewer screens in it, beside a running service; a copy in its place."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

from service.server import alone_in
from service.store import RECORD_FILE, Store, StoreError

WAL = "-wal"
JOURNALS = (WAL, "-shm", "-journal")  # that SQLite has beside a record
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
        with (
            closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True)) as record,
            closing(sqlite3.connect(part)) as copy,
        ):
            record.backup(copy)
        _check(part)
        part.rename(target)
    except (sqlite3.Error, OSError) as error:
        part.unlink(missing_ok=True)
        raise StoreError(f"cannot copy the record to {target}: {error}") from error


def restore(state_dir: Path, copy: Path) -> Path | None:
    """Put a copy in the record's place; no service may be running.

    Returns:
        Where the record of before is kept; None where there was none.

    Raises:
        StoreError: it is no whole record, or cannot be put there.
        SettingsError: a service keeps its record there.
    """
    with alone_in(state_dir):
        record, part = state_dir / RECORD_FILE, state_dir / f"{RECORD_FILE}.part"
        try:
            _remove(part)  # of a call that was killed
            _take(copy, part)
            kept = _keep(record)
            part.rename(record)
        except (sqlite3.Error, OSError) as error:
            _remove(part)
            raise StoreError(f"cannot put {copy} in the place of the record: {error}") from error
    return kept


def _take(copy: Path, part: Path) -> None:
    """Copy a record into one file, with what its journal holds: one that `restore` kept has one."""
    shutil.copyfile(copy, part)
    if (journal := _beside(copy, WAL)).is_file():
        shutil.copyfile(journal, _beside(part, WAL))
        with closing(sqlite3.connect(part)) as record:
            record.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    _check(part)


def _keep(record: Path) -> Path | None:
    """Give a record a second name, and its journals that name alone: SQLite would play them into the next one.

    There is no moment without a record meanwhile, in which a service would begin an empty one.
    """
    kept = record.with_name(f"{record.stem}-replaced-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}{record.suffix}")
    there = record.exists()
    if there:
        with suppress(sqlite3.Error), closing(sqlite3.connect(record)) as old:
            old.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # one file holds it all then, unless it is damaged
        try:
            kept.hardlink_to(record)
        except OSError:  # another's file, or a file system that has no links
            part = _beside(kept, ".part")
            shutil.copyfile(record, part)
            part.rename(kept)
    for journal in JOURNALS:
        with suppress(FileNotFoundError):
            _beside(record, journal).rename(_beside(kept, journal))
    return kept if there else None


def _beside(record: Path, journal: str) -> Path:
    return record.with_name(record.name + journal)


def _remove(record: Path) -> None:
    for journal in ("", *JOURNALS):
        _beside(record, journal).unlink(missing_ok=True)


def _check(path: Path) -> None:
    """Read a whole record.

    Raises:
        sqlite3.Error: it is damaged, or none.
    """
    with closing(sqlite3.connect(path)) as record:
        (said,) = record.execute("PRAGMA quick_check(1)").fetchone()
        record.execute("SELECT count(*) FROM screens")
    if said != "ok":
        raise sqlite3.DatabaseError(said)


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
