"""Copies of the record and fewer screens in it, while another process writes."""

import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.__main__ import app
from service.server import alone_in
from service.settings import SettingsError
from service.store import RECORD_FILE, Answered, Store, StoreError
from service.upkeep import back_up, prune, restore

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


def answered(number: int, at: datetime = NOON) -> Answered:
    return Answered(
        screen_id=f"s-{number}", digest="d", verdict="pass", answer="{}", recorded_at=at.replace(tzinfo=None)
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """The service's own, which stays open."""
    with closing(Store(tmp_path / "state")) as store:
        yield store


def test_a_copy_is_the_record_of_one_moment(store: Store, tmp_path: Path) -> None:
    store.record(answered(1))
    back_up(tmp_path / "state", tmp_path / "copy.sqlite")
    store.record(answered(2))
    (tmp_path / "restored").mkdir()
    (tmp_path / "copy.sqlite").rename(tmp_path / "restored" / RECORD_FILE)
    with closing(Store(tmp_path / "restored")) as restored:
        assert restored.find("s-1") == answered(1)
        assert restored.find("s-2") is None
        restored.record(answered(3))


def test_a_copy_overwrites_nothing_and_needs_a_record(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "copy.sqlite"
    target.write_text("precious")
    with pytest.raises(StoreError, match="exists"):
        back_up(tmp_path / "state", target)
    assert target.read_text() == "precious"
    with pytest.raises(StoreError, match="no record"):
        back_up(tmp_path, tmp_path / "other.sqlite")
    with pytest.raises(StoreError, match="cannot copy"):
        back_up(tmp_path / "state", tmp_path / "none" / "copy.sqlite")
    assert not list(tmp_path.glob("*.part"))


def test_a_copy_that_breaks_off_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    (tmp_path / RECORD_FILE).write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="cannot copy"):
        back_up(tmp_path, tmp_path / "copy.sqlite")
    assert [path.name for path in tmp_path.iterdir()] == [RECORD_FILE]


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A record of 200 screens that was killed, so that its journal lies beside it; a copy has the first 50."""
    with closing(Store(tmp_path / "state")) as store:
        for number in range(50):
            store.record(answered(number))
        back_up(tmp_path / "state", tmp_path / "copy.sqlite")
        for number in range(50, 200):
            store.record(answered(number))
        killed = shutil.copytree(tmp_path / "state", tmp_path / "killed")
    assert (killed / f"{RECORD_FILE}-wal").stat().st_size > 0
    return killed


def test_a_copy_takes_the_place_of_a_record_that_was_killed(killed: Path, tmp_path: Path) -> None:
    kept = restore(killed, tmp_path / "copy.sqlite")
    assert kept is not None
    assert {path.name for path in killed.iterdir() if kept.name not in path.name} == {RECORD_FILE, "service.lock"}
    with closing(Store(killed)) as store:
        assert store.find("s-49") == answered(49)
        assert store.find("s-50") is None
        store.record(answered(50))
    assert kept.stat().st_nlink == 1  # one file, which nothing else writes to
    restore(killed, kept)  # what was recorded since the copy is not lost
    with closing(Store(killed)) as store:
        assert store.find("s-199") == answered(199)


def test_a_copy_takes_the_place_of_a_record_whose_journal_is_left(killed: Path, tmp_path: Path) -> None:
    (killed / RECORD_FILE).rename(tmp_path / "away")
    assert restore(killed, tmp_path / "copy.sqlite") is None
    with closing(Store(killed)) as store:
        assert [store.find(f"s-{number}") for number in (49, 50)] == [answered(49), None]
        store.record(answered(50))
    with closing(sqlite3.connect(killed / RECORD_FILE)) as record:
        assert record.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def refuse(*_: Path) -> None:
    raise PermissionError("fs.protected_hardlinks")


def test_a_record_that_cannot_be_linked_is_kept_all_the_same(store: Store, tmp_path: Path) -> None:
    store.record(answered(1))
    back_up(tmp_path / "state", tmp_path / "copy.sqlite")
    store.record(answered(2))
    store.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "hardlink_to", refuse)
        kept = restore(tmp_path / "state", tmp_path / "copy.sqlite")
    assert kept is not None
    with closing(sqlite3.connect(kept)) as record:
        assert record.execute("SELECT count(*) FROM screens").fetchone() == (2,)


def test_a_copy_takes_the_place_of_a_record_that_is_gone(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "state")) as store:
        store.record(answered(1))
        back_up(tmp_path / "state", tmp_path / "copy.sqlite")
    assert restore(tmp_path / "new", tmp_path / "copy.sqlite") is None
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [RECORD_FILE, "service.lock"]


def test_what_is_no_whole_record_is_not_put_in_its_place(store: Store, tmp_path: Path) -> None:
    store.record(answered(1))
    (tmp_path / "other.sqlite").write_bytes(b"no record" * 1000)
    for copy in ("other.sqlite", "none.sqlite"):
        with pytest.raises(StoreError, match="cannot put"):
            restore(tmp_path / "state", tmp_path / copy)
    assert store.find("s-1") == answered(1)
    assert not list((tmp_path / "state").glob("*.part"))
    with alone_in(tmp_path / "state"), pytest.raises(SettingsError, match="another service"):
        restore(tmp_path / "state", tmp_path / "other.sqlite")


def test_a_damaged_record_is_not_copied(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        for number in range(200):
            store.record(answered(number))
    data = bytearray((tmp_path / RECORD_FILE).read_bytes())
    data[3 * 4096 : 6 * 4096] = b"\xff" * (3 * 4096)
    (tmp_path / RECORD_FILE).write_bytes(data)
    with pytest.raises(StoreError, match="cannot copy"):
        back_up(tmp_path, tmp_path / "copy.sqlite")
    assert not list(tmp_path.glob("copy*"))


def test_older_screens_are_deleted_and_their_ids_are_free(store: Store, tmp_path: Path) -> None:
    for number in range(5):
        store.record(answered(number, NOON + timedelta(hours=number - 3)))
    told: list[int] = []
    here = timezone(timedelta(hours=2))
    assert prune(tmp_path / "state", NOON.astimezone(here), tell=told.append) == 3
    assert told == [3]
    assert [item.screen_id for item in store.page(limit=9).items] == ["s-4", "s-3"]
    store.record(answered(0))  # by the service, beside it
    assert store.find("s-0") == answered(0)
    assert prune(tmp_path / "state", NOON) == 0


def test_many_are_deleted_part_by_part(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.upkeep.BATCH", 2)
    for number in range(5):
        store.record(answered(number))
    told: list[int] = []
    assert prune(tmp_path / "state", NOON + timedelta(seconds=1), tell=told.append) == 5
    assert told == [2, 2, 1]


def test_a_record_in_use_is_no_fault(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.store.BUSY_TIMEOUT_S", 0.05)
    store.record(answered(1))
    with closing(sqlite3.connect(tmp_path / "state" / RECORD_FILE)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            prune(tmp_path / "state", NOON + timedelta(days=1))
    assert store.find("s-1") == answered(1)


def test_the_commands_say_what_they_did(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSPECT_STATE_DIR", str(tmp_path / "state"))
    store.record(answered(1))
    store.record(answered(2, NOON + timedelta(days=2)))
    answer = CliRunner().invoke(app, ["backup", str(tmp_path / "copy.sqlite")])
    assert (answer.exit_code, "copy.sqlite: 0.0 MB" in answer.stdout) == (0, True)
    answers = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "JST-9")
        time.tzset()
        for day in ("2026-05-06", "0001-01-01"):
            answers.append(CliRunner().invoke(app, ["prune", "--before", day]))
    time.tzset()
    assert [(answer.exit_code, answer.stdout) for answer in answers] == [
        (0, "1 screens of before 2026-05-06 00:00 JST are deleted\n"),
        (0, "0 screens of before 1970-01-01 00:00 JST are deleted\n"),
    ]
    assert store.find("s-1") is None
    assert store.find("s-2") is not None
    store.close()
    answer = CliRunner().invoke(app, ["restore", str(tmp_path / "copy.sqlite")])
    assert answer.exit_code == 0, answer.output
    assert "; the one of before is " in answer.stdout
    with closing(Store(tmp_path / "state")) as restored:
        assert restored.find("s-1") is not None
