"""The deployment's knobs: the one place that reads the environment.

Order of precedence: `INSPECT_<NAME>` in the environment, then the TOML file that `INSPECT_CONFIG`
names, then the default. pydantic-settings ignores environment variables that no field claims, so
`read_settings` refuses them itself: a misspelt setting that silently does nothing would leave a line
running on another configuration than its engineer believes. Facts about the model are in the bundle's
manifest, not here.
"""

import os
import re
import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, DirectoryPath, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from engine import DEFAULT_BUNDLE

PREFIX = "INSPECT_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
FRAME_SIZE = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")


class SettingsError(ValueError):
    """A setting that is unknown, unreadable or out of range; the message names it."""


def parse_frame_size(text: str) -> tuple[int, int]:
    """Read `WIDTHxHEIGHT`, the order in which cameras are described, as (height, width).

    Raises:
        ValueError: it is written otherwise.
    """
    match = FRAME_SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"expected WIDTHxHEIGHT such as 5120x10240, got {text!r}")
    return int(match[2]), int(match[1])


def _frame_size(value: object) -> object:
    if isinstance(value, list):  # of a TOML file: in which order?
        raise ValueError('expected a text such as "5120x10240"')
    return parse_frame_size(value) if isinstance(value, str) else value


def default_state_dir() -> Path:
    """The user's state folder after the XDG base directory specification."""
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "screen-inspection"


class Settings(BaseSettings):
    """Every deployment knob, read once in `service/__main__.py` and never changed afterwards."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    bundle: Path = Field(DEFAULT_BUNDLE, description="folder of the bundle to serve")
    bundles: DirectoryPath | None = Field(None, description="folder of bundles that may be put in service by name")
    runtime: str = Field(
        "auto",
        description="what executes the features graph: tensorrt, openvino or onnxruntime; auto takes the first that is "
        "usable; fake runs no network, for load tests",
    )
    precision: Literal["fp32", "fp16", "bf16", "int8"] | None = Field(
        None,
        description="of the features graph: fp32, fp16, bf16 or int8; a GPU takes fp16 where it was exported, OpenVINO "
        "bf16 where it was and the CPU has it, else fp32",
    )
    batch: int | None = Field(
        None, ge=1, le=1024, description="patches in a batch; the bundle's manifest decides when unset"
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of the runtime; it decides when unset")
    state_dir: Path = Field(
        default_factory=default_state_dir, description="folder of the record of verdicts; of one service alone"
    )
    frame_size: Annotated[tuple[int, int] | None, NoDecode, BeforeValidator(_frame_size)] = Field(
        None, description="the line's frame as WIDTHxHEIGHT; every other size is refused"
    )
    max_body_bytes: int = Field(
        # an uncompressed colour frame of 5120 x 10240 is 150 MiB
        160 * 2**20,
        ge=1,
        description="largest request body",
    )
    max_pixels: int = Field(100_000_000, ge=1, description="largest frame, checked before it is decoded")
    max_screens_in_flight: int = Field(
        16,
        ge=1,
        description="screens received or inspected at the same time; more are refused",
    )
    max_memory_bytes: int = Field(
        # ten frames of 5120 x 10240 or three colour bodies of them, and beside that two colour PNG files of that size
        # being decoded, or one TIFF; what alone is larger than its half goes alone
        2**30,
        ge=1,
        description="of screens in flight: half for bodies and frames, half for decoding files; what has no room waits."
        " Beside it up to 160 MiB of raw frames that are over are kept for the next ones",
    )
    max_queue_patches: int = Field(1000, ge=1, description="patches waiting for a device; more are refused")
    deadline_s: float = Field(30.0, gt=0, le=300, description="time to answer when the request names none")
    self_test_interval_s: float = Field(60.0, gt=0, lt=120, description="time between self-tests")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe line: debug, info, warning or error"
    )
    log_format: Literal["json", "console"] = Field("json", description="json for machines, console for people")

    @property
    def url(self) -> str:
        """Where a client on this machine finds the service."""
        # who listens everywhere is asked on loopback
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - asked, not listened on
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def largest_frame_pixels(self) -> int:
        """Pixels of the agreed frame, or of the largest that is taken where none is agreed."""
        return self.max_pixels if self.frame_size is None else self.frame_size[0] * self.frame_size[1]


def read_settings() -> Settings:
    """The settings of this process.

    Raises:
        SettingsError: an `INSPECT_*` variable or a key of the file that no field claims, a file that
            cannot be read, or a value out of range.
    """
    given = {name.upper(): value for name, value in os.environ.items() if value}  # as pydantic-settings reads names
    known = [CONFIG_VARIABLE, *(_variable(name) for name in Settings.model_fields)]
    for name in sorted(os.environ):
        if name.upper().startswith(PREFIX):
            _refuse_unknown(name.upper(), known)
    values = _read_file(given.get(CONFIG_VARIABLE))
    try:
        return Settings(**{name: value for name, value in values.items() if _variable(name) not in given})
    except ValidationError as error:
        problems = (f"{_variable(str(item['loc'][0]))}: {item['msg']}" for item in error.errors())
        raise SettingsError("; ".join(problems)) from error


def _variable(field: str) -> str:
    return f"{PREFIX}{field.upper()}"


def _refuse_unknown(name: str, known: Sequence[str]) -> None:
    if name not in known:
        nearest = get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise SettingsError(f"unknown setting {name}; did you mean {nearest}?")


def _read_file(path: str | None) -> dict[str, Any]:
    """The keys of the TOML file at `path`, each the lower-case name of a field."""
    if not path:
        return {}
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{CONFIG_VARIABLE}: cannot read {path}: {error}") from error
    for key in values:
        _refuse_unknown(key, list(Settings.model_fields))
    return values
