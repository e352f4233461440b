"""Tables of a folder: CSV files row by row, where what is broken is a finding and not the end."""

from collections.abc import Sequence
from pathlib import Path

from training.rows import read_lines
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
        header, lines = read_lines(path)
        if missing := [column for column in columns if column not in header]:
            told = f"{path.name} has the header {','.join(header)!r}, without {', '.join(missing)}"
            return [], [Finding("table", told)]
        for number, (line, row, wrong) in enumerate(lines):
            if wrong:
                findings.append(Finding("table", f"{path.name}, row {number} (line {line}): {wrong}"))
            else:
                rows.append((number, row))
    except ValueError as error:
        findings.append(Finding("table", f"{error}; {len(rows)} rows before it are sound"))
    return rows, findings
