"""Files of the data form: CSV tables row by row, and arrays."""

import csv
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_lines(path: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, str], str]]]:
    """The header of a CSV file; and of every row its line, its values by the header, and what is wrong with it.

    A row with values too few lacks those; nothing is wrong where the last text is empty.

    Raises:
        ValueError: the file is no CSV file, its header has a name twice, or other marks than commas; iterating raises
            it too.
    """
    rows = _lines(path)
    _, header, _ = next(rows)
    return list(header), rows


def _lines(path: Path) -> Iterator[tuple[int, dict[str, str], str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)  # else a quote that stays open takes the rows after it
            header = list(reader.fieldnames or [])
            if again := [name for name in header if header.count(name) > 1]:
                raise ValueError(f"{path} has the column {again[0]!r} twice")
            if len(header) == 1 and (mark := next((mark for mark in ";\t" if mark in header[0]), "")):
                raise ValueError(f"{path} has {mark!r} between its columns: save it with commas")
            yield 1, dict.fromkeys(header, ""), ""
            for row in reader:
                yield reader.line_num, row, _wrong(row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _wrong(row: Mapping[str | None, str | None]) -> str:
    if None in row:
        return "more values than the header has"
    if None in row.values():
        return "fewer values than the header has"
    broken = next((name for name, value in row.items() if "\n" in (value or "") or "\r" in (value or "")), None)
    return "" if broken is None else f"{broken} goes on over several lines: is a quote left open?"


def read_rows(path: Path, *columns: str) -> list[dict[str, str]]:
    """Every row of a CSV file, by the names of its header.

    Args:
        path: of the file.
        columns: that it must have, in its header and in every row.

    Raises:
        ValueError: the file is no CSV file, lacks a column, or a row has more values or one of several lines; the
            message names the header or the line.
    """
    found = []
    header, rows = read_lines(path)
    if missing := [column for column in columns if column not in header]:
        raise ValueError(f"{path} has the header {','.join(header)!r}: no {missing[0]}")
    for line, row, wrong in rows:
        absent = [column for column in columns if row.get(column) is None]
        if absent:
            raise ValueError(f"{path}, line {line}: no {absent[0]}")
        if wrong and None not in row.values():  # columns that nobody asked for may be absent
            raise ValueError(f"{path}, line {line}: {wrong}")
        found.append(row)
    return found


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file; its lines end with a line feed on every system."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def read_arrays(path: Path, keys: Sequence[str]) -> list[NDArray[np.integer[Any]]]:
    """Arrays of whole numbers of an .npz file, by their keys.

    Raises:
        ValueError: it cannot be read, lacks one, or has other values.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = [arrays[key] for key in keys]
    except KeyError as error:
        raise ValueError(f"there is no array {error}") from error
    except (OSError, ValueError, TypeError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"no arrays: {error}") from error
    if not all(np.issubdtype(array.dtype, np.integer) for array in found):
        raise ValueError(f"{', '.join(keys)}: not all are whole numbers")
    return found
