"""An SQLite file of somebody else's: opened for reading only, large tables straight into narrow columns."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import adbc_driver_manager
import adbc_driver_sqlite.dbapi
import polars

from harness.errors import UsageError

PART_ROWS = 250_000  # read at a time: bounds what is held in wide types
MAX_PARTS = 1000
BATCH_ROWS = "65536"  # the driver's default of 1024 takes longer
_KINDS = {"text": polars.Binary}  # not String: nobody promises that it is UTF-8
_BROKEN = (
    sqlite3.Error,
    adbc_driver_manager.Error,
    polars.exceptions.PolarsError,
    polars.exceptions.PanicException,
    OverflowError,
    UnicodeError,  # SQLite's own message, with damaged bytes in it
)


@dataclass(frozen=True)
class SqliteFile:
    """A readable file; `tables` are the names of the columns of each table."""

    path: Path
    tables: dict[str, tuple[str, ...]]

    def has(self, table: str, *columns: str) -> bool:
        """Whether the table is there, with these columns."""
        return set(columns) <= set(self.tables.get(table, ())) if table in self.tables else False

    def count(self, table: str) -> int:
        """Rows of a table, 0 where it is absent."""
        return self.rows(f'SELECT count(*) FROM "{table}"')[0][0] if table in self.tables else 0

    def rows(self, query: str) -> list[tuple]:
        """The rows of a small result; text that is no UTF-8 has replacement characters."""
        with self.said(), closing(_connect(self.path)) as base:
            return base.execute(query).fetchall()

    def parts(
        self,
        table: str,
        columns: dict[str, str],
        narrow: Callable[[polars.DataFrame], polars.DataFrame],
        where: str = "",
    ) -> list[polars.DataFrame]:
        """Integer `columns` (name: SQL) of a table, in parts, each made small by `narrow`; two are read at a time.

        A column named `text` is bytes instead. Raises UsageError where a column holds anything else."""
        chosen = ", ".join(f'{sql} AS "{name}"' for name, sql in columns.items())
        query = f'SELECT {chosen} FROM "{table}" WHERE rowid BETWEEN %d AND %d {where}'
        low, high = self.rows(f'SELECT coalesce(min(rowid), 0), coalesce(max(rowid), -1) FROM "{table}"')[0]
        step = max(PART_ROWS, (high - low) // MAX_PARTS + 1)

        def part(first: int) -> polars.DataFrame:
            wide = self._integers(query % (first, min(first + step - 1, high)), list(columns), table)
            return narrow(wide).rechunk()  # a copy: one column of the driver's would keep all of them in memory

        with self.said(), ThreadPoolExecutor(2) as pool:
            return list(pool.map(part, range(low, high + 1, step)))

    def _integers(self, query: str, columns: list[str], table: str) -> polars.DataFrame:
        uri = _uri(self.path)
        with adbc_driver_sqlite.dbapi.connect(uri) as base, base.cursor() as cursor:
            cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": BATCH_ROWS})
            cursor.execute(query)
            frame = polars.DataFrame(cursor.fetch_arrow())
        if frame.is_empty():
            return polars.DataFrame(schema={name: _KINDS.get(name, polars.Int64) for name in columns})
        for name, kind in frame.schema.items():
            if kind != _KINDS.get(name, polars.Int64):
                raise UsageError(f"{self.path}: column {name} of {table} holds {kind}, not integers: export it again")
        return frame

    @contextmanager
    def said(self) -> Iterator[None]:
        """Whatever breaks while reading becomes one line."""
        try:
            yield
        except _BROKEN as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(
                f"{self.path}: damaged, or not as its program writes it ({reason}): export it again"
            ) from None


def open_sqlite(path: Path) -> SqliteFile:
    """The tables of a file. Raises UsageError for a damaged one."""
    file = SqliteFile(path, {})
    names = [name for (name,) in file.rows("SELECT name FROM sqlite_master WHERE type = 'table'")]
    file.tables.update(
        (name, tuple(row[1] for row in file.rows(f'PRAGMA table_info("{name}")'))) for name in names if '"' not in name
    )
    return file


def _connect(path: Path) -> sqlite3.Connection:
    base = sqlite3.connect(_uri(path), uri=True)
    base.text_factory = lambda text: text.decode("utf-8", "replace")
    return base


def _uri(path: Path) -> str:
    """For reading only: without `immutable` SQLite may write a file beside it."""
    return f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1"
