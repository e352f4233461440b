"""The record of what was answered: one SQLite row for each screen, written before the answer leaves.

And of which bundle was in service when: one row for each that was put there, never changed.

The answer is kept as the JSON text that was sent, so that asking again returns the same bytes whatever
later versions would write. SQLite runs in WAL mode with `synchronous=FULL`: a verdict that the line has
received survives a power cut. All calls block; the routes make them in a thread.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

import alembic.command
import alembic.config
import alembic.util
from sqlalchemy import ColumnElement, Connection, Engine, String, create_engine, delete, event, select
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import ConnectionPoolEntry

MIGRATIONS = Path(__file__).parent / "migrations"
RECORD_FILE = "screens.sqlite"
BUSY_TIMEOUT_S = 5.0
LONGEST_ANSWER = 2**14  # characters that a full disk must have room for, for a record to be ready: most take 2,000


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)  # SQLite keeps no zone: all rows are UTC


class StoreError(Exception):
    """The record could not be read or written; whoever asked must not be answered with a verdict."""


class Base(DeclarativeBase):
    """The tables of the record."""


class ScreenRow(Base):
    """One answered screen."""

    __tablename__ = "screens"
    # never reuse an id: the cursor of a page is one
    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012 - SQLAlchemy declares it so

    id: Mapped[int] = mapped_column(primary_key=True)
    screen_id: Mapped[str] = mapped_column(String(64), unique=True)
    digest: Mapped[str] = mapped_column(String(32))
    verdict: Mapped[str] = mapped_column(String(8))
    recorded_at: Mapped[datetime]
    answer: Mapped[str]


class ActivationRow(Base):
    """One bundle that was put in service; it was until the next row's."""

    __tablename__ = "activations"

    id: Mapped[int] = mapped_column(primary_key=True)
    bundle: Mapped[str]
    digest: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(64))
    configured: Mapped[str | None]
    activated_at: Mapped[datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """A bundle that was put in service.

    Attributes:
        bundle: its name in the catalogue.
        digest: of its manifest.
        name: of its model.
        version: of its model.
        configured: what INSPECT_BUNDLE was set to then; None where it was not.
    """

    bundle: str
    digest: str
    name: str
    version: str
    configured: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A recorded answer; `digest` is of the pixels that it was given for, `answer` the JSON text, the time is UTC."""

    screen_id: str
    digest: str
    verdict: str
    answer: str
    recorded_at: datetime = field(default_factory=_now, compare=False)


_Value = TypeVar("_Value", Activation, Answered)


class Page(NamedTuple):
    """Answers, newest first, and the cursor of the next page; None at the end."""

    items: tuple[Answered, ...]
    next: int | None


class Store:
    """The record in `state_dir`, made and migrated to the newest revision when it is opened.

    Attributes:
        failure: why the record could not be written, or read, the last time; empty where it could.
        reusable_bytes: of the file, when it was last looked at: what pruned screens took and new ones will take.
    """

    def __init__(self, state_dir: Path, *, migrate: bool = True) -> None:
        """Open the record; without `migrate` as it is: whoever only looks does not change it under a running service.

        Raises:
            StoreError: the folder or the database cannot be made, read or migrated.
        """
        self._file = state_dir / RECORD_FILE
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            self._engine = _engine(self._file)
            if migrate:
                _migrate(self._engine)
            with self._engine.connect() as connection:
                self.reusable_bytes = _reusable_bytes(connection)
            self._identity = _identity(self._file)
        except alembic.util.CommandError as error:  # a revision that is not among ours
            raise StoreError(
                f"cannot open the record in {state_dir}: it is of a later version of the service ({error}): start "
                "that, or put a copy of before in its place"
            ) from error
        except (OSError, SQLAlchemyError) as error:
            raise StoreError(f"cannot open the record in {state_dir}: {_said(error)}") from error
        self._closed = False
        self.failure = ""

    def find(self, screen_id: str) -> Answered | None:
        """The answer recorded for `screen_id`, or None.

        Raises:
            StoreError: the record cannot be read.
        """
        with self._reading() as session:
            row = session.scalar(select(ScreenRow).where(ScreenRow.screen_id == screen_id))
            return None if row is None else _read(Answered, row)

    def record(self, answered: Answered) -> None:
        """Write one answer durably; on return it survives a power cut.

        Raises:
            StoreError: nothing was written; for a `screen_id` that has an answer already, too.
        """
        with self._writing(refused=f"screen {answered.screen_id} has an answer already") as session:
            session.add(ScreenRow(**asdict(answered)))

    def page(self, *, limit: int, cursor: int | None = None) -> Page:
        """Up to `limit` answers, newest first, older than `cursor`.

        A cursor stays valid while screens are added: new ones come before the first page.

        Raises:
            StoreError: the record cannot be read.
        """
        query = select(ScreenRow).order_by(ScreenRow.id.desc()).limit(limit + 1)
        if cursor is not None:
            query = query.where(ScreenRow.id < cursor)
        with self._reading() as session:
            rows = session.scalars(query).all()
        shown = rows[:limit]
        return Page(tuple(_read(Answered, row) for row in shown), shown[-1].id if len(rows) > limit else None)

    def activate(self, activation: Activation) -> None:
        """Write durably which bundle is in service from now on.

        Raises:
            StoreError: nothing was written.
        """
        with self._writing() as session:
            session.add(ActivationRow(**asdict(activation), activated_at=_now()))

    def delete_before(self, moment: datetime, *, at_most: int) -> int:
        """Delete screens that were answered before this moment, in UTC without a zone; how many they were.

        Raises:
            StoreError: nothing was deleted.
        """
        with self._reading() as session:  # which may take long, and keeps nobody from writing
            old = session.scalars(select(ScreenRow.id).where(ScreenRow.recorded_at < moment).limit(at_most)).all()
        if old:
            with self._writing() as session:
                session.execute(delete(ScreenRow).where(ScreenRow.id.in_(old)))
        return len(old)

    def look(self) -> None:
        """See how full the record is, and whether one that failed is sound again, by a row that does not stay."""
        if not self.failure:
            self.failure = self._astray()
            if not self.failure:
                with suppress(StoreError), self._reading() as session:  # it is kept in `failure`
                    self.reusable_bytes = _reusable_bytes(session.connection())
            return
        tried = ScreenRow(screen_id="", digest="", verdict="", recorded_at=_now(), answer=" " * LONGEST_ANSWER)
        with suppress(StoreError):  # it is kept in `failure`
            self.page(limit=1)
            with self._writing() as session:
                session.add(tried)
                session.flush()
                session.delete(tried)

    def last_activation(self) -> Activation | None:
        """The bundle that was put in service last, or None.

        Raises:
            StoreError: the record cannot be read.
        """
        return self._last_activation()

    def activated_before(self, bundle: str, digest: str, *, alias: str = "") -> Activation | None:
        """The last that is another bundle than this one, or None; `alias` is a second name of this one.

        Raises:
            StoreError: the record cannot be read.
        """
        other = ActivationRow.bundle.not_in((bundle, alias)) | (ActivationRow.digest != digest)
        return self._last_activation(other)

    def digests(self, name: str, version: str) -> frozenset[str]:
        """Of each bundle that was in service as this version of this model.

        Raises:
            StoreError: the record cannot be read.
        """
        query = select(ActivationRow.digest).where(ActivationRow.name == name, ActivationRow.version == version)
        with self._reading() as session:
            return frozenset(session.scalars(query))

    def _last_activation(self, *where: ColumnElement[bool]) -> Activation | None:
        query = select(ActivationRow).where(*where).order_by(ActivationRow.id.desc()).limit(1)
        with self._reading() as session:
            row = session.scalar(query)
            return None if row is None else _read(Activation, row)

    def close(self) -> None:
        """Close all connections; a thread that comes later is refused: it would write what nobody is told any more."""
        self._closed = True
        self._engine.dispose()

    @contextmanager
    def _writing(self, *, refused: str = "") -> Iterator[Session]:
        """A transaction; `refused` is said where the tables do not take it, which is no failure of the record.

        Raises:
            StoreError: nothing was written.
        """
        try:
            if astray := self._astray():
                self.failure = astray
                raise StoreError(f"cannot write the record: {astray}")
            with self._session() as session, session.begin():
                yield session
        except IntegrityError as error:
            raise StoreError(refused or f"cannot write the record: {_said(error)}") from error
        except SQLAlchemyError as error:
            self.failure = _said(error)
            raise StoreError(f"cannot write the record: {self.failure}") from error
        else:
            self.failure = ""

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        """A session for reading.

        Raises:
            StoreError: the record cannot be read.
        """
        try:
            with self._session() as session:
                yield session
        except SQLAlchemyError as error:
            self.failure = _said(error)
            raise StoreError(f"cannot read the record: {self.failure}") from error

    def _astray(self) -> str:
        """Why what is written would be lost; empty where the file lies where it lay."""
        there = _identity(self._file)
        return "" if there == self._identity else f"{self._file} is gone, or another file by now"

    def _session(self) -> Session:
        if self._closed:
            raise StoreError("the record is closed")
        return Session(self._engine)


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another of the same name; None where there is none."""
    try:
        there = path.stat()
    except OSError:
        return None
    return there.st_dev, there.st_ino


def _said(error: Exception) -> str:
    """What the database said, without the statement that it said it of."""
    return str(getattr(error, "orig", None) or error)


def _engine(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _durable)
    return engine


def _durable(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _migrate(engine: Engine) -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with engine.begin() as connection:
        # Python's driver opens no transaction for DDL of itself: a power cut would leave half of a revision
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "head")


def _reusable_bytes(connection: Connection) -> int:
    pages, page_bytes = (
        int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()) for name in ("freelist_count", "page_size")
    )
    return pages * page_bytes


def _read(kind: type[_Value], row: Base) -> _Value:
    return kind(**{field.name: getattr(row, field.name) for field in fields(kind)})
