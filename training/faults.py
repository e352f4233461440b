"""TOML files read and checked, and what pydantic found wrong with them, in words."""

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

_Model = TypeVar("_Model", bound=BaseModel)


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file, with or without a mark of its byte order.

    Raises:
        ValueError: it is not TOML; the message names the file.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error


def validated(model: type[_Model], values: dict[str, Any], path: Path) -> _Model:
    """What the values of a file are to a model.

    Raises:
        ValueError: they do not fit it; the message names the file and each key that is wrong.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{path}: {faults_of(error)}") from error


def faults_of(error: ValidationError) -> str:
    """Each key that is wrong, dotted, and why; of keys that do not go together, why alone."""
    found = ((".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, ")) for one in error.errors())
    return "; ".join(f"{key}: {why}" if key else why for key, why in found)
