"""A Dockerfile's instructions, as Docker reads them; the CPU image's unless another is named."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
GPU_DOCKERFILE = ROOT / "deploy" / "Dockerfile.gpu"


class Instruction(NamedTuple):
    """One instruction, its continued lines joined."""

    name: str
    arguments: str


def instructions(path: Path = DOCKERFILE) -> list[Instruction]:
    """Every instruction, in order."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def arguments_of(name: str, path: Path = DOCKERFILE) -> list[str]:
    """Arguments of every instruction of this name."""
    return [instruction.arguments for instruction in instructions(path) if instruction.name == name]


def copied(path: Path = DOCKERFILE) -> list[str]:
    """What the image takes from the build context."""
    sources = (arguments.split() for arguments in arguments_of("COPY", path) if not arguments.startswith("--from"))
    return [source for *origins, _ in sources for source in origins]


def environment(path: Path = DOCKERFILE) -> dict[str, str]:
    """Variables that the image sets."""
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(arguments_of("ENV", path))))


def health_command(path: Path = DOCKERFILE) -> list[str]:
    """The command that says whether a container is healthy."""
    (arguments,) = arguments_of("HEALTHCHECK", path)
    command: list[str] = json.loads(arguments[arguments.index("[") :])
    return command


def in_context(path: str) -> bool:
    """Whether .dockerignore lets a path at the root into the build context: its last match decides."""
    allowed = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#") and fnmatch(path, line.removeprefix("!")):
            allowed = line.startswith("!")
    return allowed
