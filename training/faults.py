"""What pydantic found wrong with a file, in words."""

from pydantic import ValidationError


def faults_of(error: ValidationError) -> str:
    """Each key that is wrong, dotted, and why; of keys that do not go together, why alone."""
    found = ((".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, ")) for one in error.errors())
    return "; ".join(f"{key}: {why}" if key else why for key, why in found)
