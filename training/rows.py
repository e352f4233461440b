"""Files of the data form: CSV tables row by row, and arrays."""

import csv
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_rows(path: Path, *columns: str) -> list[dict[str, str]]:
    """Every row of a CSV file, by the names of its header.

    Args:
        path: of the file.
        columns: that it must have, in every row.

    Raises:
        ValueError: the file is no CSV file, or lacks a column; the message names the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            found = []
            for row in rows:
                absent = [column for column in columns if row.get(column) is None]
                if absent:
                    raise ValueError(f"{path}, line {rows.line_num}: no {absent[0]}")
                found.append(row)
            return found
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


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
