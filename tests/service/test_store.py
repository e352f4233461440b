import shutil
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from service.store import MIGRATIONS, RECORD_FILE, Activation, Answered, Base, Store, StoreError


def answered(number: int) -> Answered:
    return Answered(
        screen_id=f"screen-{number}", digest=f"{number:032x}", verdict="pass", answer=f'{{"n": {number}}}\n'
    )


def activation(bundle: str, *, digest: str = "0" * 64, configured: str | None = "/srv/bundle") -> Activation:
    return Activation(bundle=bundle, digest=digest, name="screens", version=bundle, configured=configured)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


def test_answer_comes_back_byte_for_byte(store: Store) -> None:
    given = Answered(screen_id="ü", digest="f" * 32, verdict="fail", answer='{"score": 0.1,\n "ü": "\\u0000"}')
    store.record(given)
    assert store.find("ü") == given


def test_unknown_screen_has_no_answer(store: Store) -> None:
    assert store.find("screen-1") is None


def test_answers_survive_a_restart(tmp_path: Path) -> None:
    first = Store(tmp_path)
    first.record(answered(1))
    first.close()
    second = Store(tmp_path)
    assert second.find("screen-1") == answered(1)
    second.close()


def test_second_answer_for_a_screen_is_refused_and_changes_nothing(store: Store) -> None:
    store.record(answered(1))
    other = Answered(screen_id="screen-1", digest="0" * 32, verdict="fail", answer="{}")
    with pytest.raises(StoreError, match="screen-1 has an answer already"):
        store.record(other)
    assert store.find("screen-1") == answered(1)


def test_a_record_that_cannot_be_written_says_so_until_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.store.BUSY_TIMEOUT_S", 0.05)
    store = Store(tmp_path)
    with closing(sqlite3.connect(tmp_path / RECORD_FILE)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert store.failure == ""
        with pytest.raises(StoreError, match="locked"):
            store.activate(activation("one"))
        with pytest.raises(StoreError, match="locked"):
            store.record(answered(1))
        store.look()
        assert "locked" in store.failure
        other.rollback()
    store.look()
    assert store.failure == ""
    store.record(answered(1))
    with pytest.raises(StoreError, match="has an answer already"):
        store.record(answered(1))
    assert store.failure == ""  # that is no fault of the record
    store.close()


def test_a_record_that_cannot_be_read_is_not_ready_either(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with closing(sqlite3.connect(tmp_path / RECORD_FILE)) as other:
        other.execute("ALTER TABLE screens RENAME TO lost")
        for read in (lambda: store.find("one"), lambda: store.page(limit=1)):
            store.failure = ""
            with pytest.raises(StoreError, match=r"cannot read the record: no such table: screens$"):
                read()
            assert store.failure == "no such table: screens"
        store.look()
        assert store.failure == "no such table: screens"
        other.execute("ALTER TABLE lost RENAME TO screens")
    store.look()
    assert store.failure == ""
    assert store.page(limit=9).items == ()  # what was tried did not stay
    store.close()


@pytest.mark.parametrize("replaced", [False, True])
def test_nothing_is_written_to_a_file_that_nobody_will_find(tmp_path: Path, replaced: bool) -> None:
    store = Store(tmp_path)
    store.record(answered(1))
    (tmp_path / RECORD_FILE).rename(tmp_path / "away")
    if replaced:
        shutil.copyfile(tmp_path / "away", tmp_path / RECORD_FILE)
    store.look()
    assert "is gone, or another file by now" in store.failure
    with pytest.raises(StoreError, match="is gone, or another file by now"):
        store.record(answered(2))
    (tmp_path / "away").replace(tmp_path / RECORD_FILE)
    store.look()
    assert store.failure == ""
    store.record(answered(2))
    store.close()


def test_room_that_deleted_screens_leave_is_told(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.reusable_bytes == 0
    for number in range(100):
        store.record(replace(answered(number), answer=" " * 3000))
    store.look()
    assert store.reusable_bytes == 0
    store.delete_before(datetime.max, at_most=100)
    store.look()
    assert 300_000 < store.reusable_bytes < 600_000
    store.close()
    again = Store(tmp_path)
    assert again.reusable_bytes == store.reusable_bytes
    again.close()


def test_whether_a_record_can_be_written_is_found_out_by_writing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.failure = "the disk was full"
    before = (tmp_path / f"{RECORD_FILE}-wal").stat().st_size
    store.look()
    assert (tmp_path / f"{RECORD_FILE}-wal").stat().st_size > before
    assert store.failure == ""
    store.close()


def test_pages_are_newest_first_and_end(store: Store) -> None:
    for number in range(5):
        store.record(answered(number))
    first = store.page(limit=2)
    second = store.page(limit=2, cursor=first.next)
    third = store.page(limit=2, cursor=second.next)
    assert [*first.items, *second.items, *third.items] == [answered(number) for number in (4, 3, 2, 1, 0)]
    assert third.next is None


def test_page_that_ends_exactly_has_no_next(store: Store) -> None:
    for number in range(2):
        store.record(answered(number))
    assert store.page(limit=2).next is None


def test_cursor_is_stable_while_screens_arrive(store: Store) -> None:
    for number in range(4):
        store.record(answered(number))
    first = store.page(limit=2)
    store.record(answered(4))
    assert store.page(limit=2, cursor=first.next).items == (answered(1), answered(0))


def test_empty_record_is_one_empty_page(store: Store) -> None:
    assert store.page(limit=10) == ((), None)


def test_threads_record_at_the_same_time(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(store.record, map(answered, range(40))))
    assert len(store.page(limit=100).items) == 40


def test_commits_are_durable(store: Store, tmp_path: Path) -> None:
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_revisions_make_exactly_the_declared_tables(store: Store, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'screens.sqlite'}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()


def test_the_last_activation_comes_back_whole_after_a_restart(tmp_path: Path) -> None:
    first = Store(tmp_path)
    assert first.last_activation() is None
    first.activate(activation("one", configured=None))
    first.activate(activation("two"))
    first.close()
    second = Store(tmp_path)
    assert second.last_activation() == activation("two")
    assert second.activated_before("two", "0" * 64) == activation("one", configured=None)
    second.close()


def test_the_activation_before_is_the_last_of_another_bundle(store: Store) -> None:
    now = activation("two", digest="2" * 64)
    assert store.activated_before(now.bundle, now.digest) is None
    store.activate(now)
    assert store.activated_before(now.bundle, now.digest) is None
    # the same name with other content is another bundle
    for before in (activation("one"), activation("two", digest="1" * 64)):
        store.activate(before)
        for _ in range(2):
            store.activate(now)
        assert store.activated_before(now.bundle, now.digest) == before


def test_a_record_of_the_first_version_is_carried_over(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / "screens.sqlite") as other:
        other.execute("DROP TABLE activations")
        other.execute("UPDATE alembic_version SET version_num = '0001'")
        other.execute("INSERT INTO screens VALUES (1, 'old', 'd', 'pass', '2026-01-01 00:00:00', '{}')")
    other.close()
    store = Store(tmp_path)
    assert store.find("old") == Answered(screen_id="old", digest="d", verdict="pass", answer="{}")
    assert store.last_activation() is None
    store.activate(activation("one"))
    assert store.last_activation() == activation("one")
    store.close()


@pytest.mark.parametrize("revision", ["0001_screens.py", "0002_activations.py"])
def test_a_migration_that_is_interrupted_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    interrupted = shutil.copytree(MIGRATIONS, tmp_path / "migrations")
    script = interrupted / "versions" / revision
    body = script.read_text().replace(
        "\n\n\ndef downgrade", '\n    raise RuntimeError("the power went")\n\n\ndef downgrade'
    )
    script.write_text(body)
    with monkeypatch.context() as patch:
        patch.setattr("service.store.MIGRATIONS", interrupted)
        with pytest.raises(RuntimeError, match="the power went"):
            Store(tmp_path / "state")
    with sqlite3.connect(tmp_path / "state" / "screens.sqlite") as left:
        assert left.execute("SELECT name FROM sqlite_master").fetchall() == []
    left.close()
    store = Store(tmp_path / "state")
    store.activate(activation("one"))
    assert store.last_activation() == activation("one")
    store.close()


def test_a_closed_record_refuses_whoever_comes_late(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.close()
    for late in (
        lambda: store.record(answered(1)),
        lambda: store.activate(activation("one")),
        lambda: store.find("screen-1"),
        lambda: store.digests("screens", "one"),
    ):
        with pytest.raises(StoreError, match="closed"):
            late()
    again = Store(tmp_path)
    assert (again.find("screen-1"), again.last_activation()) == (None, None)
    again.close()


def test_the_digests_of_a_version_are_those_that_were_in_service_as_it(store: Store) -> None:
    assert store.digests("screens", "one") == set()
    for digest in ("1" * 64, "2" * 64, "1" * 64):
        store.activate(activation("one", digest=digest))
    assert store.digests("screens", "one") == {"1" * 64, "2" * 64}
    assert store.digests("screens", "two") == store.digests("others", "one") == set()


def test_the_activation_before_is_none_under_another_name_of_the_same_bundle(store: Store) -> None:
    store.activate(activation("two", digest="2" * 64))
    store.activate(activation("@configured", digest="1" * 64))
    store.activate(activation("one", digest="1" * 64))
    before = store.activated_before("one", "1" * 64, alias="@configured")
    assert before == activation("two", digest="2" * 64)


def test_failing_database_is_a_store_error(store: Store, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "screens.sqlite") as other:
        other.execute("DROP TABLE screens")
        other.execute("DROP TABLE activations")
    other.close()
    with pytest.raises(StoreError, match="cannot write"):
        store.activate(activation("one"))
    with pytest.raises(StoreError, match="cannot read"):
        store.last_activation()
    with pytest.raises(StoreError, match="cannot read"):
        store.activated_before("one", "")
    with pytest.raises(StoreError, match="cannot read"):
        store.digests("screens", "one")
    with pytest.raises(StoreError, match="cannot write"):
        store.record(answered(1))
    with pytest.raises(StoreError, match="cannot read"):
        store.find("screen-1")
    with pytest.raises(StoreError, match="cannot read"):
        store.page(limit=1)


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "screens.sqlite").write_bytes(b"not a database, but long enough to be looked at " * 40)
    with pytest.raises(StoreError, match="cannot open"):
        Store(tmp_path)


def test_record_of_a_later_version_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / "screens.sqlite") as other:
        other.execute("UPDATE alembic_version SET version_num = '9999'")
    other.close()
    with pytest.raises(StoreError, match=r"of a later version of the service .*'9999'.*put a copy of before"):
        Store(tmp_path)


def test_state_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot open"):
        Store(tmp_path / "file" / "state")
