"""What every part of the bench is given: a bundle, frames, time, and services to post them to."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine import NO_SECOND_LOOK, NO_TURNED_LOOK, Manifest, Window, changed_copy, cover
from service.bench.report import BenchError
from service.client import ClientError, Served, serving
from service.rendering import read_frame, render
from service.traffic import Traffic

FRAME = (10240, 5120)  # height and width, pixels
SCREENS, SEED = 6, 7


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """One run's work, the same for every part.

    Attributes:
        bundle: to be served, and whose manifest simulated devices take.
        frames: (H, W) grey each, of the size `FRAME`.
        seconds: of a measurement.
        picture: to draw the growth in; None draws none.
        tell: what is being measured just now.
    """

    bundle: Path
    frames: Sequence[NDArray[np.uint8]]
    seconds: float
    picture: Path | None = None
    tell: Callable[[str], None] = lambda text: None

    @cached_property
    def manifest(self) -> Manifest:
        """The bundle's."""
        return Manifest.read(self.bundle)

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """Of one frame."""
        manifest = self.manifest
        return cover(*FRAME, patch_px=manifest.patch_px, overlap_px=manifest.overlap_px)

    @contextmanager
    def looking_once(self) -> Iterator["Work"]:
        """The same work with a copy of the bundle that asks for no further look, until the block ends."""
        with changed_copy(self.bundle, second_look=NO_SECOND_LOOK, turned_look=NO_TURNED_LOOK) as once:
            yield replace(self, bundle=once)

    @contextmanager
    def served(
        self, settings: Mapping[str, str] | None = None, *, module: Sequence[str] = ("service",)
    ) -> Iterator[Served]:
        """The bundle served by a process of its own, until the block ends.

        Args:
            settings: INSPECT_* variables beside the bundle's.
            module: what `python -m` runs instead of the service.

        Raises:
            BenchError: it was not ready in time, or failed.
        """
        own = {"INSPECT_BUNDLE": str(self.bundle), "INSPECT_LOG_LEVEL": "warning"}
        try:
            with serving({**own, **(settings or {})}, module=module) as served:
                yield served
        except ClientError as error:
            raise BenchError(str(error)) from error

    def loaded(self, served: Served) -> Traffic:
        """What was posted for `seconds`.

        Raises:
            BenchError: no screen was answered.
        """
        traffic = Traffic(served, self.frames)
        traffic.load_for(self.seconds)
        if not traffic.durations:
            raise BenchError(f"no screen was answered: {traffic.failures[:1]}")
        return traffic


def render_frames() -> list[NDArray[np.uint8]]:
    """Rendered frames, by the command that anybody has.

    Raises:
        RenderingError: they could not be rendered, or read.
    """
    with tempfile.TemporaryDirectory() as folder:
        render(Path(folder), screens=SCREENS, seed=SEED, size=FRAME)
        files = sorted((Path(folder) / "screens").glob("*.png"))
        return [read_frame(file) for file in files]
