"""Tables of a folder: CSV files row by row, where what is broken is a finding and not the end."""

import csv
from collections.abc import Sequence
from pathlib import Path

from training.validation.findings import Finding


def read_table(path: Path, columns: Sequence[str]) -> tuple[list[tuple[int, dict[str, str]]], list[Finding]]:
    """Rows that have a value for each column of the header, with their number from 0; and what is wrong with others.

    The number is that of the row in the file, which masks refer to. Without one of `columns` there is no row.
    """
    if not path.is_file():
        return [], [Finding("table", f"{path.name} is missing")]
    rows: list[tuple[int, dict[str, str]]] = []
    findings: list[Finding] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or [])]
            if missing:
                header = ",".join(map(str, reader.fieldnames or []))
                return [], [Finding("table", f"{path.name} has the header {header!r}, without {', '.join(missing)}")]
            for number, row in enumerate(reader):
                if None in row or None in row.values():
                    findings.append(
                        Finding("table", f"{path.name}, row {number}: not as many values as the header has")
                    )
                else:
                    rows.append((number, row))
    except (csv.Error, UnicodeDecodeError) as error:
        findings.append(Finding("table", f"{path.name} cannot be read after row {len(rows) - 1}: {error}"))
    return rows, findings
