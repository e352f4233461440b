"""Reading JSON objects strictly: every key known, every value of its type and range, errors name the key.

It knows nothing of what a manifest holds. A schema library would bring a dependency into every process
that loads numpy alone today, and would still not see duplicate keys.
"""

import json
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from engine.errors import BundleError


@dataclass(frozen=True, slots=True)
class Table:
    """One JSON object, and the dotted path at which it stands (empty at the top)."""

    values: dict[str, Any]
    path: str

    def key(self, name: str) -> str:
        """Dotted path of one of the keys, safe to print whatever the file holds."""
        shown = name.encode("ascii", "backslashreplace").decode()[:100]
        return f"{self.path}.{shown}" if self.path else shown

    def expect(self, required: Collection[str], *, optional: Collection[str] = ()) -> None:
        """Refuse unless all of `required` and nothing but `required` and `optional` is there."""
        for name in required:
            if name not in self.values:
                raise BundleError("is missing", key=self.key(name))
        for name in self.values:
            if name not in required and name not in optional:
                raise BundleError("is not known", key=self.key(name))

    def names(self, *, pattern: re.Pattern[str]) -> list[str]:
        """The keys, where they are free; each must match `pattern`."""
        for name in self.values:
            if pattern.fullmatch(name) is None:
                raise BundleError(f"the name must match {pattern.pattern}", key=self.key(name))
        return list(self.values)

    def table(self, name: str) -> "Table":
        """The object under a key."""
        value = self.values[name]
        if not isinstance(value, dict):
            raise BundleError(f"must be an object, is {_kind(value)}", key=self.key(name))
        return Table(value, self.key(name))

    def text(self, name: str, *, pattern: re.Pattern[str] | None = None) -> str:
        """The text under a key: one printable line that matches `pattern`."""
        value = self.values[name]
        if not isinstance(value, str):
            raise BundleError(f"must be a text, is {_kind(value)}", key=self.key(name))
        if not value or not value.isprintable():
            raise BundleError("must be one line of printable characters", key=self.key(name))
        if pattern is not None and pattern.fullmatch(value) is None:
            raise BundleError(f"must match {pattern.pattern}", key=self.key(name))
        return value

    def integer(self, name: str, *, low: int, high: int) -> int:
        """The whole number under a key, `low` and `high` included."""
        value = self.values[name]
        if not isinstance(value, int) or isinstance(value, bool):
            raise BundleError(f"must be a whole number, is {_kind(value)}", key=self.key(name))
        if not low <= value <= high:
            raise BundleError(f"must be from {low} to {high}", key=self.key(name))
        return value

    def number(self, name: str, *, low: float = -math.inf, high: float = math.inf) -> float:
        """The finite number under a key, `low` and `high` included."""
        return _number(self.values[name], key=self.key(name), low=low, high=high)

    def numbers(self, name: str, *, count: int, low: float, high: float) -> list[float]:
        """The list of `count` finite numbers under a key, `low` and `high` included."""
        value = self.values[name]
        if not isinstance(value, list) or len(value) != count:
            raise BundleError(f"must be a list of {count} numbers", key=self.key(name))
        return [_number(entry, key=self.key(name), low=low, high=high) for entry in value]


def parse_object(raw: bytes, *, path: str) -> Table:
    """The JSON object that `raw` holds.

    Args:
        raw: JSON in UTF-8, without duplicate keys.
        path: what to call the whole of it in an error.

    Raises:
        BundleError: no UTF-8, no JSON, no object, or a key stands twice in one object.
    """
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError as error:
        raise BundleError("is not UTF-8", key=path) from error
    except (ValueError, RecursionError) as error:
        raise BundleError("is not JSON", key=path) from error
    if not isinstance(value, dict):
        raise BundleError(f"must be an object, is {_kind(value)}", key=path)
    return Table(value, "")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise BundleError("stands twice in one object", key=Table(values, "").key(name))
        values[name] = value
    return values


def _number(value: object, *, key: str, low: float, high: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise BundleError(f"must be a number, is {_kind(value)}", key=key)
    try:
        number = float(value)
    except OverflowError as error:
        raise BundleError("must be a finite number", key=key) from error
    if not math.isfinite(number):
        raise BundleError("must be a finite number", key=key)
    if not low <= number <= high:
        raise BundleError(f"must be from {low:g} to {high:g}", key=key)
    return number


def _kind(value: object) -> str:
    """A JSON type in words."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
