"""What pydantic found wrong with a file, in words."""

from pydantic import ValidationError


def faults_of(error: ValidationError) -> str:
    """Each key that is wrong, dotted, and why."""
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
